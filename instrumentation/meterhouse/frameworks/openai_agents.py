"""OpenAI Agents SDK: its tools, agents, conversations and turns, and models that it alone sees.

Tools: where the SDK invokes a function tool (its own functions, agents as tools, the tools of its MCP servers), behind
approval and input guardrails, and `execute` of its computer, shell and patch tools. Turns: the function that runs one,
which knows the agent. No trace processor is involved: it works with tracing off, and sends nothing anywhere.
"""

import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any

from meterhouse import patches, tools
from meterhouse.attribution import Hint, fail_task
from meterhouse.frameworks import subclasses
from meterhouse.frameworks.model_calls import ModelCall, Told
from meterhouse.frameworks.streams import Tally, watched_async
from meterhouse.trouble import warn_once

_turns: ContextVar[list[int] | None] = ContextVar("meterhouse_agents_turns", default=None)
"""The number of the running run's turn, as the one item of a list that its tasks share."""
_NATIVE = ("ComputerAction", "ShellAction", "LocalShellAction", "ApplyPatchAction", "CustomToolAction")
_NATIVE_TOOLS = ("computer_tool", "shell_tool", "local_shell_tool", "apply_patch_tool", "custom_tool")
_USAGE = {
    "input": ("input_tokens",),
    "cache_read": ("input_tokens_details", "cached_tokens"),
    "cache_write": ("input_tokens_details", "cache_write_tokens"),
    "output": ("output_tokens",),
    "reasoning": ("output_tokens_details", "reasoning_tokens"),
}


def install(module: ModuleType) -> None:
    """Patch the SDK; a host's own module `agents.run` is none of it."""
    if hasattr(module, "AgentRunner"):
        for owner, name, wrapper in _patches(module):
            patches.wrap(owner, name, wrapper)
        subclasses.wrap(sys.modules["agents.models.interface"].Model, _MODEL)


def remove(module: ModuleType) -> None:
    """Undo `install`."""
    if hasattr(module, "AgentRunner"):
        for owner, path, _ in _patches(module):
            *kind, name = path.split(".")
            patches.unwrap(getattr(owner, kind[0]) if kind else owner, name)
        subclasses.unwrap(sys.modules["agents.models.interface"].Model, _MODEL)


def _patches(run: ModuleType) -> Iterator[tuple[ModuleType, str, Any]]:
    """Module, path in it and wrapper of everything that is patched."""
    loop, execution, actions = (
        sys.modules[f"agents.run_internal.{name}"] for name in ("run_loop", "tool_execution", "tool_actions")
    )
    yield run, "AgentRunner.run", _run
    yield run, "AgentRunner.run_streamed", _run_streamed
    yield run, "run_single_turn", _turn
    yield loop, "run_single_turn_streamed", _turn
    yield sys.modules["agents.exceptions"], "MaxTurnsExceeded.__init__", _limit
    yield sys.modules["agents.exceptions"], "ToolTimeoutError.__init__", _failing
    yield sys.modules["agents.tool"], "maybe_invoke_function_tool_failure_error_function", _failing
    invoke = "_invoke_function_tool_with_metadata"
    yield execution, invoke if hasattr(execution, invoke) else "invoke_function_tool", _invoke
    for name in _NATIVE:
        if hasattr(actions, name):
            yield actions, f"{name}.execute", _native


async def _run(wrapped: Any, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with _in_run(kwargs):
        return await wrapped(*args, **kwargs)


def _run_streamed(wrapped: Any, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with _in_run(kwargs):  # the task that it starts keeps this context
        return wrapped(*args, **kwargs)


@contextmanager
def _in_run(kwargs: Mapping[str, Any]) -> Iterator[None]:
    config = kwargs.get("run_config")
    group = config.get("group_id") if isinstance(config, Mapping) else getattr(config, "group_id", None)
    known = (kwargs.get("conversation_id"), getattr(kwargs.get("session"), "session_id", None), group)
    token = _turns.set([0])
    try:
        with Hint(conversation=next(filter(None, known), None)):
            yield
    finally:
        _turns.reset(token)


async def _turn(wrapped: Any, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    about = kwargs.get("bindings") or kwargs.get("agent") or (args[1] if len(args) > 1 else None)
    turns = _turns.get()
    if turns is not None:
        turns[0] += 1
    agent = getattr(about, "public_agent", about)
    with Hint(agent_name=getattr(agent, "name", None), step=None if turns is None else str(turns[0])):
        return await wrapped(*args, **kwargs)


def _limit(wrapped: Any, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    # An error handler of the host's may turn it into an answer. An agent that is a tool leaves that to its owner.
    if tools.current() is None:
        fail_task()
    return wrapped(*args, **kwargs)


async def _invoke(wrapped: Any, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tool, context = kwargs.get("function_tool"), kwargs.get("context")
    hint = Hint(agent_name=getattr(getattr(context, "agent", None), "name", None))
    tool_call_id = _id(context, "tool_call_id")
    with hint, tools.executing(getattr(tool, "name", None), tool_call_id=tool_call_id, in_agent=True) as execution:
        result = await wrapped(*args, **kwargs)
        if _waits(context):
            execution.discard()  # an agent used as a tool wants an approval first; it goes on in another execution
        return result


def _waits(context: Any) -> bool:
    state, call = sys.modules.get("agents.agent_tool_state"), getattr(context, "tool_call", None)
    if state is None or call is None:
        return False
    try:
        result = state.peek_agent_tool_run_result(call, scope_id=state.get_agent_tool_state_scope(context))
    except Exception:  # noqa: BLE001 - the host's run must go on
        warn_once("agents", "Meterhouse could not see whether an agent used as a tool waits.", with_trace=True)
        return False
    return bool(getattr(result, "interruptions", None))


def _failing(wrapped: Any, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The SDK makes text of an error of the running tool, or finds that it takes too long."""
    execution = tools.current()
    if execution is not None:
        execution.failed()
    return wrapped(*args, **kwargs)


async def _native(wrapped: Any, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    run = kwargs.get("action") or kwargs.get("call")
    tool = next((getattr(run, name) for name in _NATIVE_TOOLS if hasattr(run, name)), None)
    tool_call_id = _id(getattr(run, "tool_call", None), "call_id")
    with tools.executing(getattr(tool, "name", None), tool_call_id=tool_call_id, in_agent=True) as execution:
        result = await wrapped(*args, **kwargs)
        item = getattr(result, "raw_item", None)
        if type(result).__name__ == "ToolApprovalItem" or _refused(kwargs.get("context_wrapper"), tool, tool_call_id):
            execution.discard()
        elif _member(item, "status") == "failed":
            execution.failed()
        return result


def _refused(context: Any, tool: Any, tool_call_id: str | None) -> bool:
    try:
        return context.get_approval_status(tool.name, tool_call_id) is False
    except Exception:  # noqa: BLE001 - the host's run must go on
        warn_once("agents", "Meterhouse could not see whether a tool was refused.", with_trace=True)
        return False


async def _get_response(wrapped: Any, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    call = _model_call(model)
    await call.admit_async()
    with call.making():
        response = await wrapped(*args, **kwargs)
    call.end(lambda: _told(response.usage, response.response_id))
    return response


async def _stream_response(
    wrapped: Any, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> AsyncIterator[Any]:
    call = _model_call(model)
    await call.admit_async()
    stream = watched_async(call, wrapped(*args, **kwargs), _Events(), counts_tools=True)
    try:
        async for event in stream:
            yield event
    finally:
        await stream.aclose()


_MODEL = {"get_response": _get_response, "stream_response": _stream_response}


class _Events(Tally):
    """The usage stands in the last event of a stream."""

    def __init__(self) -> None:
        self._told: Told = {}

    def take(self, piece: Any) -> None:
        response: Any = getattr(piece, "response", None)
        if getattr(response, "usage", None) is not None:
            self._told = {**_told(response.usage, response.id), "model": response.model}

    def told(self) -> Told:
        return self._told


def _told(usage: Any, response_id: Any) -> Told:
    counts = {}
    for name, path in _USAGE.items():
        value = usage
        for member in path:
            value = _member(value, member)
        counts[name] = value
    return {"id": response_id, "usage": counts}


def _model_call(model: Any) -> ModelCall:
    name = getattr(model, "model", None)
    provider = name.partition("/")[0] if isinstance(name, str) and "/" in name else type(model).__name__
    return ModelCall(provider, name)


def _id(thing: Any, name: str) -> str | None:
    value = _member(thing, name)
    return value if isinstance(value, str) else None


def _member(thing: Any, name: str) -> Any:
    return thing.get(name) if isinstance(thing, Mapping) else getattr(thing, name, None)
