"""Google ADK: the tools it executes, the agent, session and invocation of all that runs, and models that it alone sees.

Tools: `run_async` of every tool class. Agents: `run_async` and `run_live` of every agent; the session is the
conversation, the invocation the step. Model calls: `generate_content_async` of every model class, counted here only
where no SDK below it is metered. Usage as in google-genai's UsageMetadata: the prompt contains the cached tokens;
thoughts, and what tools put into the prompt, are beside the other counts.
"""

from types import ModuleType
from typing import Any

from meterhouse import patches, tools
from meterhouse.attribution import Hint, fail_task
from meterhouse.frameworks import subclasses
from meterhouse.frameworks.model_calls import ModelCall, Told
from meterhouse.frameworks.streams import Tally, watched_async
from meterhouse.usage import count, together

_COUNTS = ("prompt", "tool_use_prompt", "cached_content", "candidates", "thoughts")
_RUNS = ("run_async", "run_live")
_STEERING = ("FinishTaskTool", "SetModelResponseTool", "TransferToAgentTool")
"""ADK's own, by which a model hands over or ends: no tools that the agent was given."""
_NOT_EXECUTED = ("Invoking `", "This tool call requires confirmation", "This tool call is rejected")
"""How the errors begin that ADK answers instead of running the tool."""


def install(module: ModuleType) -> None:
    """Patch what the module has: agents, the limit of an invocation, models, or tools."""
    if _is(module, "base_agent"):
        for name in _RUNS:
            patches.wrap(module, f"BaseAgent.{name}", _run)
    elif _is(module, "invocation_context"):
        patches.wrap(module, "InvocationContext.increment_llm_call_count", _count_llm_call)
    else:
        subclasses.wrap(*_abstract(module))


def remove(module: ModuleType) -> None:
    """Undo `install`."""
    if _is(module, "base_agent"):
        for name in _RUNS:
            patches.unwrap(module.BaseAgent, name)
    elif _is(module, "invocation_context"):
        patches.unwrap(module.InvocationContext, "increment_llm_call_count")
    else:
        subclasses.unwrap(*_abstract(module))


def _is(module: ModuleType, name: str) -> bool:
    return module.__name__.endswith(f".{name}")


def _abstract(module: ModuleType) -> tuple[type, subclasses.Wrappers]:
    if _is(module, "base_llm"):
        return module.BaseLlm, {"generate_content_async": _generate}
    return module.BaseTool, {"run_async": _execute}


def _run(wrapped: Any, agent: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The same events; agent, session and invocation are known while they are made, not to their consumer."""
    context = args[0] if args else kwargs.get("parent_context")
    hint = Hint(
        agent_name=getattr(agent, "name", None),
        conversation=getattr(getattr(context, "session", None), "id", None),
        step=getattr(context, "invocation_id", None),
    )
    return hint(wrapped)(*args, **kwargs)


def _count_llm_call(wrapped: Any, _context: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    try:
        return wrapped(*args, **kwargs)
    except Exception:
        fail_task()  # max_llm_calls is reached: the only thing that it raises
        raise


async def _execute(wrapped: Any, tool: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if _steers(tool):
        return await wrapped(*args, **kwargs)
    tool_call_id = getattr(kwargs.get("tool_context"), "function_call_id", None)
    with tools.executing(getattr(tool, "name", ""), tool_call_id=tool_call_id, in_agent=True) as execution:
        result = await wrapped(*args, **kwargs)
        if isinstance(result, dict):
            if result.get("isError") or result.get("is_error"):
                execution.failed()
            elif str(result.get("error", "")).startswith(_NOT_EXECUTED):
                execution.discard()
        return result


def _steers(tool: Any) -> bool:
    function = getattr(tool, "func", None)  # in 1.0 a transfer is a plain function of ADK's
    ours = getattr(function, "__name__", "") == "transfer_to_agent"
    return type(tool).__name__ in _STEERING or (ours and str(function.__module__).startswith("google.adk."))


def _generate(wrapped: Any, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The same answers; an async generator, as `wrapped` makes one."""
    request = args[0] if args else kwargs.get("llm_request")
    name = getattr(request, "model", None) or getattr(model, "model", None)
    return _admitted(ModelCall(None, name), wrapped, args, kwargs)


async def _admitted(call: ModelCall, wrapped: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    await call.admit_async()
    tools.model_called()  # now: ADK runs the tools of an answer before it asks whether there is another
    answers = watched_async(call, wrapped(*args, **kwargs), _Answers(), counts_tools=True)
    try:
        async for answer in answers:
            yield answer
    finally:
        await answers.aclose()


class _Answers(Tally):
    """The answers that one request gets: pieces of a stream, at last the whole. The last usage is of all of them."""

    def __init__(self) -> None:
        self._model: Any = None
        self._usage: Any = None

    def take(self, piece: Any) -> None:
        self._model = getattr(piece, "model_version", None) or self._model
        self._usage = getattr(piece, "usage_metadata", None) or self._usage

    def told(self) -> Told:
        counts = {name: getattr(self._usage, f"{name}_token_count", None) for name in _COUNTS}
        told = {name: count(counts, name) for name in _COUNTS}
        usage = {
            "input": together(told["prompt"], told["tool_use_prompt"]),
            "cache_read": told["cached_content"],
            "output": together(told["candidates"], told["thoughts"]),
            "reasoning": told["thoughts"],
        }
        return {"model": self._model, "usage": usage}
