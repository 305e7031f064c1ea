"""PydanticAI: tool executions, the agent, conversation and step of its model calls, and models that it alone sees.

Tools: `ToolManager._raw_execute`, behind validation, approval and hooks, once per execution, output tools left out.
Model calls: `request` and `request_stream` of every model class. Usage as in `pydantic_ai.usage.RequestUsage`: cached
and audio tokens are part of the input, reasoning of the output.
"""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from meterhouse import patches, tools
from meterhouse.attribution import Hint
from meterhouse.frameworks import subclasses
from meterhouse.frameworks.model_calls import ModelCall, Told
from meterhouse.trouble import warn_once
from meterhouse.vocabulary import ABORTED, OK

_USAGE = {
    "input": "input_tokens",
    "cache_read": "cache_read_tokens",
    "cache_write": "cache_write_tokens",
    "cache_write_1h": "cache_write_1h_tokens",
    "audio_input": "input_audio_tokens",
    "output": "output_tokens",
    "reasoning": "output_reasoning_tokens",
    "audio_output": "output_audio_tokens",
}
_NOT_EXECUTED = ("CallDeferred", "ApprovalRequired")


def install(module: ModuleType) -> None:
    """Patch the tool manager, or the model classes there are and those to come."""
    if module.__name__.endswith("tool_manager"):
        patches.wrap(module, "ToolManager._raw_execute", _execute)
    else:
        subclasses.wrap(module.Model, {"request": _request, "request_stream": _stream})


def remove(module: ModuleType) -> None:
    """Undo `install`."""
    if module.__name__.endswith("tool_manager"):
        patches.unwrap(module.ToolManager, "_raw_execute")
    else:
        subclasses.unwrap(module.Model, {"request": _request, "request_stream": _stream})


async def _execute(wrapped: Any, _manager: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    validated = args[0] if args else kwargs.get("validated")
    call, tool = getattr(validated, "call", None), getattr(validated, "tool", None)
    if getattr(getattr(tool, "tool_def", None), "kind", None) == "output":
        return await wrapped(*args, **kwargs)
    name, tool_call_id = getattr(call, "tool_name", None), getattr(call, "tool_call_id", None)
    running = tools.executing(name, tool_call_id=tool_call_id, in_agent=True)
    with _hint(getattr(validated, "ctx", None)), running as execution:
        try:
            return await wrapped(*args, **kwargs)
        except Exception as error:
            if type(error).__name__ in _NOT_EXECUTED:
                execution.discard()  # it waits for an approval or for its result from elsewhere
            raise


async def _request(wrapped: Any, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    context = _run_context()
    call = _model_call(model, context)
    await call.admit_async()
    with call.making(counts_tools=context is not None):
        response = await wrapped(*args, **kwargs)
    call.end(lambda: _told(response))
    return response


def _stream(wrapped: Any, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> "_Opening":
    context = args[3] if len(args) > 3 else kwargs.get("run_context")
    return _Opening(wrapped(*args, **kwargs), _model_call(model, context), in_agent=context is not None)


class _Opening:
    """The context manager that `request_stream` returns: what is known holds while it opens, not for its consumer."""

    def __init__(self, manager: Any, call: ModelCall, *, in_agent: bool) -> None:
        self._manager = manager
        self._call = call
        self._in_agent = in_agent
        self._stream: Any = None

    async def __aenter__(self) -> Any:
        await self._call.admit_async()
        with self._call.making(counts_tools=self._in_agent):
            self._stream = await self._manager.__aenter__()
        return self._stream

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool | None:
        try:
            with self._call.running(counts_tools=self._in_agent):  # a model behind this one ends its own call here
                suppressed: bool | None = await self._manager.__aexit__(kind, error, trace)
        finally:
            if error is not None:
                self._call.broken(error, self._told)
            else:
                left_early = getattr(self._stream, "_finished", True) is False
                self._call.end(self._told, ABORTED if left_early else OK)
        return suppressed

    def _told(self) -> Told:
        return _told(self._stream.get())


def _run_context() -> Any:
    from pydantic_ai._run_context import get_current_run_context

    return get_current_run_context()


def _model_call(model: Any, context: Any) -> ModelCall:
    return ModelCall(_known(model, "system"), _known(model, "model_name"), _hint(context))


def _hint(context: Any) -> Hint:
    if context is None:
        return Hint()
    step = _known(context, "run_step")
    return Hint(
        agent_name=_known(_known(context, "agent"), "name"),
        conversation=_known(context, "conversation_id"),
        step=str(step) if isinstance(step, int) else None,
    )


def _known(thing: object, name: str) -> Any:
    """An attribute that may be missing, or a property that fails: of a model of the host's own, for instance."""
    try:
        return getattr(thing, name, None)
    except Exception:  # noqa: BLE001 - the host's model must be called whatever its properties do
        warn_once("pydantic_ai", "Meterhouse could not read %s of PydanticAI.", name, with_trace=True)
        return None


def _told(response: Any) -> Told:
    usage = response.usage
    usage = usage() if callable(usage) else usage
    counts: Mapping[str, Any] = {}
    if not getattr(usage, "unmeasured_requests", 0):
        counts = {name: getattr(usage, attribute, None) for name, attribute in _USAGE.items()}
    return {"model": response.model_name, "id": response.provider_response_id, "usage": counts}
