"""CrewAI: the tools it executes, agent, task and run of all its work, and models that it alone sees.

Tools: `run` and `arun` of its tools, `invoke` and `ainvoke` of their structured twins; what its cache answers, or what
it refuses (bad arguments, usage limit), does not get there or runs nothing. The role is the agent's name, the task the
step. A run (a kickoff of a crew or a lone agent) is a conversation of its own; in a flow the flow's id is. Model calls:
`call` and `acall` of every model class, counted here only where no SDK below it is metered.
"""

import importlib
import inspect
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any

from meterhouse import attribution, patches, tools
from meterhouse.attribution import Hint, fail_task
from meterhouse.frameworks import subclasses
from meterhouse.frameworks.model_calls import ModelCall

_LIMIT = "handle_max_iterations_exceeded"
_COUNTS = {
    "input": "prompt_tokens",
    "cache_read": "cached_prompt_tokens",
    "cache_write": "cache_creation_tokens",
    "output": "completion_tokens",
    "reasoning": "reasoning_tokens",
}
"""Our name of a count -> CrewAI's, in which cached tokens are part of the prompt and reasoning of the completion."""

_told: ContextVar["dict[str, int] | None"] = ContextVar("meterhouse_crewai", default=None)
"""What the model of the running call has told CrewAI of its usage so far."""


def install(module: ModuleType) -> None:
    """Patch the classes of the package, once it is imported as a whole."""
    for owner, name, wrapper in _patches(module):
        patches.wrap(owner, name, wrapper)
    for base, wrappers in _abstract():
        subclasses.wrap(base, wrappers)
    for user in _users_of_limit():
        patches.wrap(user, _LIMIT, _limit)


def remove(module: ModuleType) -> None:
    """Undo `install`."""
    for owner, name, _ in _patches(module):
        patches.unwrap(owner, name)
    for base, wrappers in _abstract():
        subclasses.unwrap(base, wrappers)
    for user in _users_of_limit():
        patches.unwrap(user, _LIMIT)


def _patches(module: ModuleType) -> Iterator[tuple[type, str, Callable[..., Any]]]:
    """Class, method and wrapper; the class is the one that defines the method. Older versions lack some of them."""
    base = importlib.import_module("crewai.tools.base_tool")
    structured = importlib.import_module("crewai.tools.structured_tool").CrewStructuredTool
    patches: list[tuple[type, tuple[str, ...], Callable[..., Any]]] = [
        (base.BaseTool, ("run",), _run_tool),
        (base.BaseTool, ("arun",), _run_tool_async),
        (base.Tool, ("run",), _run_tool),
        (base.Tool, ("arun",), _run_tool_async),
        (structured, ("invoke",), _run_tool),
        (structured, ("ainvoke",), _run_tool_async),
        (module.Crew, ("kickoff", "kickoff_async", "akickoff"), _kick_off),
        (module.Flow, ("kickoff", "kickoff_async", "akickoff"), _kick_off_flow),
        (module.BaseLLM, ("_track_token_usage_internal",), _track),
    ]
    for kind, names, wrapper in patches:
        for name in names:
            owner = next((one for one in kind.__mro__ if name in vars(one)), None)
            if owner is not None and (owner is kind or kind is module.Flow):
                yield owner, name, wrapper


def _abstract() -> list[tuple[type, subclasses.Wrappers]]:
    agent = importlib.import_module("crewai.agents.agent_builder.base_agent").BaseAgent
    llm = importlib.import_module("crewai.llms.base_llm").BaseLLM
    work = dict.fromkeys(("execute_task", "aexecute_task", "kickoff", "kickoff_async", "akickoff"), _work)
    return [(agent, work), (llm, {"call": _call, "acall": _call_async})]


def _users_of_limit() -> list[ModuleType]:
    """The modules that have the function under its name, by which they call it."""
    loaded = [module for name, module in list(sys.modules.items()) if name.startswith("crewai.")]
    return [module for module in loaded if isinstance(module, ModuleType) and _LIMIT in vars(module)]


def _run_tool(wrapped: Any, tool: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with _executing(tool) as check:
        return check(wrapped(*args, **kwargs))


async def _run_tool_async(wrapped: Any, tool: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with _executing(tool) as check:
        return check(await wrapped(*args, **kwargs))


@contextmanager
def _executing(tool: Any) -> Iterator[Callable[[Any], Any]]:
    """Around one execution; the result is passed through what it yields."""
    with tools.executing(getattr(tool, "name", "")) as execution:
        before = _uses(tool)

        def check(result: Any) -> Any:
            if type(result).__name__ == "ToolFailure":
                execution.discard() if _unused(tool, before) else execution.failed()
            return result

        try:
            yield check
        except Exception:
            if _unused(tool, before):
                execution.discard()
            raise


def _uses(tool: Any) -> object:
    return getattr(tool, "current_usage_count", None)


def _unused(tool: Any, before: object) -> bool:
    """CrewAI counts a use when arguments and limit are checked, right before it runs the tool."""
    return before is not None and _uses(tool) == before


def _kick_off(wrapped: Any, _crew: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _inside(_conversation(uuid.uuid4().hex), wrapped, args, kwargs)


def _kick_off_flow(wrapped: Any, flow: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if type(flow).__module__.startswith("crewai."):  # its agents and its memory are flows inside
        return wrapped(*args, **kwargs)
    inputs = kwargs.get("inputs") or (args[0] if args else None)
    resumed = inputs.get("id") if isinstance(inputs, Mapping) else None
    return _inside(_conversation(resumed or getattr(flow, "flow_id", None)), wrapped, args, kwargs)


def _work(wrapped: Any, agent: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    task = kwargs.get("task") or (args[0] if args else None)
    step = getattr(task, "name", None) or getattr(task, "key", None)
    hint = _conversation(uuid.uuid4().hex, agent_name=getattr(agent, "role", None), step=step)
    return _inside(hint, wrapped, args, kwargs)


def _conversation(conversation: object, **known: object) -> Hint:
    """A crew in a flow, and an agent in a crew, take part in the conversation that there is."""
    if attribution.current().conversation is None:
        known["conversation"] = conversation
    return Hint(**known)


def _inside(hint: Hint, wrapped: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with hint:
        result = wrapped(*args, **kwargs)
    return _awaited(hint, result) if inspect.iscoroutine(result) else result


async def _awaited(hint: Hint, result: Any) -> Any:
    with hint.fresh():
        return await result


def _limit(wrapped: Any, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    fail_task()  # max_iter is reached: CrewAI makes the model answer with what it has
    return wrapped(*args, **kwargs)


def _call(wrapped: Any, llm: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    call = _model_call(llm)
    call.admit()
    with _telling(call):
        return wrapped(*args, **kwargs)


async def _call_async(wrapped: Any, llm: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    call = _model_call(llm)
    await call.admit_async()
    with _telling(call):
        return await wrapped(*args, **kwargs)


@contextmanager
def _telling(call: ModelCall) -> Iterator[None]:
    """Around a model call that `_track` is told the usage of."""
    told: dict[str, int] = {}
    token = _told.set(told)
    try:
        with call.making(tell=lambda: {"usage": told}):
            yield
    finally:
        _told.reset(token)
    call.end(lambda: {"usage": told})


def _model_call(llm: Any) -> ModelCall:
    provider = getattr(llm, "provider", None)
    if provider == "openai" and not type(llm).__module__.startswith("crewai."):
        provider = None  # CrewAI takes every model for OpenAI's that does not say whose it is
    return ModelCall(provider, getattr(llm, "model", None))


def _track(wrapped: Any, llm: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A model class tells CrewAI what it used: what it adds to the model's totals."""
    before = dict(llm._token_usage)
    result = wrapped(*args, **kwargs)
    told = _told.get()
    if told is not None:
        for ours, theirs in _COUNTS.items():
            told[ours] = told.get(ours, 0) + llm._token_usage.get(theirs, 0) - before.get(theirs, 0)
    return result
