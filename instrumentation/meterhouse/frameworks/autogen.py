"""AutoGen (agentchat and core): tool executions, agents' names, and model clients that the framework alone sees.

Tools: `run` and `run_stream` of every tool class, which come after the arguments were checked; those of an MCP
workbench are counted by the MCP client. Model calls: `create` and `create_stream` of every client; usage as in
`autogen_core.models.RequestUsage`, input and output tokens. A result from AutoGen's own cache is no call.
"""

from collections.abc import AsyncIterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any

from meterhouse import patches, tools
from meterhouse.attribution import Hint
from meterhouse.frameworks import streams, subclasses
from meterhouse.frameworks.model_calls import ModelCall, Told
from meterhouse.vocabulary import ABORTED, FAILED, OK

_handing_over: ContextVar[bool] = ContextVar("meterhouse_autogen_handoff", default=False)


def install(module: ModuleType) -> None:
    """Patch the tools, the model clients, the agents, or how an assistant runs a tool: what this module defines."""
    if hasattr(module, "AssistantAgent"):
        patches.wrap(module, "AssistantAgent._execute_tool_call", _tool_call)
    else:
        subclasses.wrap(*_patched(module))


def remove(module: ModuleType) -> None:
    """Undo `install`."""
    if hasattr(module, "AssistantAgent"):
        patches.unwrap(module.AssistantAgent, "_execute_tool_call")
    else:
        subclasses.unwrap(*_patched(module))


def _patched(module: ModuleType) -> tuple[type, subclasses.Wrappers]:
    if hasattr(module, "BaseChatAgent"):
        return module.BaseChatAgent, _AGENT
    if hasattr(module, "ChatCompletionClient"):
        return module.ChatCompletionClient, _CLIENT
    return module.BaseTool, _TOOL


async def _tool_call(wrapped: Any, _agent: Any, args: Any, kwargs: Any) -> Any:
    call, handoffs = kwargs.get("tool_call", args[0] if args else None), kwargs.get("handoff_tools")
    if handoffs is None:
        handoffs = args[2] if len(args) > 2 else ()
    token = _handing_over.set(any(tool.name == getattr(call, "name", None) for tool in handoffs))
    try:
        return await wrapped(*args, **kwargs)
    finally:
        _handing_over.reset(token)


async def _run(wrapped: Any, tool: Any, args: Any, kwargs: Any) -> Any:
    if _handing_over.get():
        return await wrapped(*args, **kwargs)
    with tools.executing(tool.name):
        return await wrapped(*args, **kwargs)


async def _run_stream(wrapped: Any, tool: Any, args: Any, kwargs: Any) -> AsyncIterator[Any]:
    execution = tools.begin(tool.name)
    try:
        async for piece in streams.stepped_async(execution.running, wrapped(*args, **kwargs)):
            yield piece
    except BaseException as error:
        execution.finish(FAILED if isinstance(error, Exception) else ABORTED)
        raise
    execution.finish(OK)


async def _messages(wrapped: Any, agent: Any, args: Any, kwargs: Any) -> Any:
    with _inside(agent):
        return await wrapped(*args, **kwargs)


def _messages_stream(wrapped: Any, agent: Any, args: Any, kwargs: Any) -> AsyncIterator[Any]:
    return streams.stepped_async(lambda: _inside(agent), wrapped(*args, **kwargs))


@contextmanager
def _inside(agent: Any) -> Any:
    """What an agent does with the model and its tools."""
    with Hint(agent_name=agent.name), tools.counted_by_framework():
        yield


async def _create(wrapped: Any, client: Any, args: Any, kwargs: Any) -> Any:
    call = _model_call(client)
    await call.admit_async()
    with call.making(counts_tools=False):
        result = await wrapped(*args, **kwargs)
    if not getattr(result, "cached", False):
        call.end(lambda: _told(result))
    return result


async def _create_stream(wrapped: Any, client: Any, args: Any, kwargs: Any) -> AsyncIterator[Any]:
    call = _model_call(client)
    await call.admit_async()
    tally = _Tally()
    steps = streams.stepped_async(lambda: call.running(counts_tools=False), wrapped(*args, **kwargs))
    try:
        async for piece in steps:
            tally.take(piece)
            yield piece
    except BaseException as error:
        await steps.aclose()
        call.broken(error, tally.told)
        raise
    if not tally.cached:
        call.end(tally.told)


class _Tally(streams.Tally):
    """The last piece of a stream is its result."""

    def __init__(self) -> None:
        self._result: Any = None

    @property
    def cached(self) -> bool:
        return bool(getattr(self._result, "cached", False))

    def take(self, piece: Any) -> None:
        if not isinstance(piece, str):
            self._result = piece

    def told(self) -> Told:
        return _told(self._result)


def _model_call(client: Any) -> ModelCall:
    arguments = getattr(client, "_create_args", None)
    model = arguments.get("model") if isinstance(arguments, dict) else None
    return ModelCall(type(client).__name__, model)


def _told(result: Any) -> Told:
    usage = getattr(result, "usage", None)
    return {} if usage is None else {"usage": {"input": usage.prompt_tokens, "output": usage.completion_tokens}}


_TOOL = {"run": _run, "run_stream": _run_stream}
_AGENT = {"on_messages": _messages, "on_messages_stream": _messages_stream}
_CLIENT = {"create": _create, "create_stream": _create_stream}
