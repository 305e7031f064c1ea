"""LangChain: executions of its tools, and the usage of chat models that no choke point of an SDK sees.

Tools: `BaseTool.run` and `arun`, once per execution, whoever calls them (LangGraph's ToolNode, AgentExecutor, hosts).
Models: `_generate`, `_stream` and their async forms of every chat model, below caches and rate limits. Usage as in
`langchain_core.messages.ai.UsageMetadata`: cached and audio tokens are part of the input, reasoning of the output.
"""

from collections.abc import AsyncIterator, Iterator, Mapping
from types import ModuleType
from typing import Any

from meterhouse import patches, tools
from meterhouse.attribution import Hint, fail_task
from meterhouse.frameworks import subclasses
from meterhouse.frameworks.model_calls import ModelCall, Told
from meterhouse.frameworks.streams import Tally, watched, watched_async
from meterhouse.trouble import warn_once
from meterhouse.usage import Quantity, count, together
from meterhouse.vocabulary import OK

_USAGE = {
    "input": ("input_tokens",),
    "cache_read": ("input_token_details", "cache_read"),
    "cache_write": ("input_token_details", "cache_creation"),
    "audio_input": ("input_token_details", "audio"),
    "output": ("output_tokens",),
    "reasoning": ("output_token_details", "reasoning"),
    "audio_output": ("output_token_details", "audio"),
}
_CONVERSATIONS = ("thread_id", "session_id", "conversation_id")
"""Keys of `configurable` and `metadata` by which LangGraph, message histories and LangSmith know a conversation."""
_NO_TOOLS = ("InvalidTool", "ExceptionTool")
"""What an AgentExecutor runs where the model named no tool of its, or its answer could not be parsed."""


def install(module: ModuleType) -> None:
    """Patch the tools, the chat models, or the AgentExecutor."""
    if module.__name__ == "langchain_core.language_models.chat_models":
        subclasses.wrap(module.BaseChatModel, _MODEL)
        return
    for path, wrapper in _patches(module).items():
        patches.wrap(module, path, wrapper)


def remove(module: ModuleType) -> None:
    """Undo `install`."""
    if module.__name__ == "langchain_core.language_models.chat_models":
        subclasses.unwrap(module.BaseChatModel, _MODEL)
        return
    for path in _patches(module):
        *kind, name = path.split(".")
        patches.unwrap(getattr(module, kind[0]) if kind else module, name)


def _patches(module: ModuleType) -> dict[str, Any]:
    if module.__name__ == "langchain_core.tools.base":
        return {"BaseTool.run": _run, "BaseTool.arun": _arun, "_format_output": _format_output}
    return {
        "AgentExecutor._call": _executor_call,
        "AgentExecutor._acall": _executor_acall,
        "AgentExecutor._should_continue": _should_continue,
    }


def _run(wrapped: Any, tool: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with _tool_hint(kwargs), tools.executing(tool.name, tool_call_id=kwargs.get("tool_call_id")) as execution:
        try:
            result = wrapped(*args, **kwargs)
        except Exception as error:
            _raised(execution, error)
            raise
        _returned(execution, tool, result)
        return result


async def _arun(wrapped: Any, tool: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with _tool_hint(kwargs), tools.executing(tool.name, tool_call_id=kwargs.get("tool_call_id")) as execution:
        try:
            result = await wrapped(*args, **kwargs)
        except Exception as error:
            _raised(execution, error)
            raise
        _returned(execution, tool, result)
        return result


def _raised(execution: tools.Execution, error: Exception) -> None:
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "GraphInterrupt" in kinds:
        execution.discard()  # the graph waits for a person; it executes the tool again, from its start, afterwards
    elif "GraphBubbleUp" in kinds:
        execution.finish(OK)  # a command to the graph around


def _returned(execution: tools.Execution, tool: Any, result: Any) -> None:
    if type(tool).__name__ in _NO_TOOLS:
        execution.discard()
    elif getattr(result, "status", None) == "error":
        execution.failed()


def _format_output(wrapped: Any, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    # An error that the tool is told to handle is text from here on, unless the tool was called with an id.
    status = kwargs.get("status", args[-1] if args else None)
    execution = tools.current()
    if status == "error" and execution is not None:
        execution.failed()
    return wrapped(*args, **kwargs)


def _generate(wrapped: Any, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    call = _model_call(model, args, kwargs)
    call.admit()
    with call.making(counts_tools=tools.in_framework()):
        result = wrapped(*args, **kwargs)
    call.end(lambda: _told(result))
    return result


async def _agenerate(wrapped: Any, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    call = _model_call(model, args, kwargs)
    await call.admit_async()
    with call.making(counts_tools=tools.in_framework()):
        result = await wrapped(*args, **kwargs)
    call.end(lambda: _told(result))
    return result


def _stream(wrapped: Any, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
    call = _model_call(model, args, kwargs)
    call.admit()
    yield from watched(call, wrapped(*args, **kwargs), _Chunks(), counts_tools=tools.in_framework())


async def _astream(wrapped: Any, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AsyncIterator[Any]:
    call = _model_call(model, args, kwargs)
    await call.admit_async()
    stream = watched_async(call, wrapped(*args, **kwargs), _Chunks(), counts_tools=tools.in_framework())
    try:
        async for chunk in stream:
            yield chunk
    finally:
        await stream.aclose()


_MODEL = {"_generate": _generate, "_agenerate": _agenerate, "_stream": _stream, "_astream": _astream}


class _Chunks(Tally):
    """What the chunks of a stream tell: their usages add up, as they do in LangChain itself."""

    def __init__(self) -> None:
        self._usage: dict[str, list[Quantity | None]] = {}
        self._model: str | None = None
        self._id: str | None = None

    def take(self, piece: Any) -> None:
        told = _of_message(getattr(piece, "message", None))
        self._model = told.get("model") or self._model
        self._id = told.get("id") or self._id
        for name, quantity in told["usage"].items():
            self._usage.setdefault(name, []).append(quantity)

    def told(self) -> Told:
        usage = {name: together(*quantities) for name, quantities in self._usage.items()}
        return {"model": self._model, "id": self._id, "usage": usage}


def _told(result: Any) -> Told:
    """A ChatResult: several generations of one call share its usage, which each of the messages may repeat."""
    return _of_message(result.generations[0].message) if result.generations else {}


def _of_message(message: Any) -> dict[str, Any]:
    usage, about = getattr(message, "usage_metadata", None), getattr(message, "response_metadata", None) or {}
    counts = {}
    if isinstance(usage, Mapping):
        counts = {name: quantity for name, path in _USAGE.items() if (quantity := count(usage, *path)) is not None}
    return {"model": about.get("model_name") or about.get("model"), "id": about.get("id"), "usage": counts}


def _model_call(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ModelCall:
    manager = args[2] if len(args) > 2 else kwargs.get("run_manager")
    try:
        about = model._get_ls_params()
    except Exception:  # noqa: BLE001 - a model of the host's own must be called whatever it says of itself
        warn_once("langchain", "Meterhouse could not read which model LangChain calls.", with_trace=True)
        about = {}
    return ModelCall(about.get("ls_provider"), about.get("ls_model_name"), _hint(getattr(manager, "metadata", None)))


def _tool_hint(kwargs: Mapping[str, Any]) -> Hint:
    config = kwargs.get("config") or {}
    return _hint(config.get("metadata") or kwargs.get("metadata"), config.get("configurable"))


def _hint(*known: Any) -> Hint:
    """What the metadata of a run, and its `configurable`, tell of agent, conversation and step."""
    everything: dict[str, Any] = {}
    for mapping in known:
        everything |= mapping or {}
    return Hint(
        agent_name=everything.get("lc_agent_name"),
        conversation=next((str(everything[key]) for key in _CONVERSATIONS if everything.get(key)), None),
        step=everything.get("langgraph_node"),
    )


def _executor_call(wrapped: Any, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with tools.counted_by_framework():
        return wrapped(*args, **kwargs)


async def _executor_acall(wrapped: Any, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with tools.counted_by_framework():
        return await wrapped(*args, **kwargs)


def _should_continue(wrapped: Any, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    going_on = wrapped(*args, **kwargs)
    if not going_on and tools.current() is None:  # an agent that is another's tool leaves the judgement to that one
        fail_task()
    return going_on
