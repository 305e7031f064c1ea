"""LlamaIndex: tool executions, the agent, conversation and step of its agents' model calls, and LLMs it alone sees.

Tools: `call` and `acall` of every tool class. Model calls: the eight methods of every LLM class, in each other. An LLM
has no usage of its own in LlamaIndex: `additional_kwargs` or the provider's raw answer may hold one, in the names of
OpenAI or Anthropic. What is in neither is not guessed.
"""

from collections.abc import AsyncIterator, Iterator, Mapping
from types import ModuleType
from typing import Any

from meterhouse import patches, tools
from meterhouse.attribution import Hint, fail_task
from meterhouse.frameworks import streams, subclasses
from meterhouse.frameworks.model_calls import ModelCall, Told
from meterhouse.trouble import warn_once

_WHOLE, _WHOLE_ASYNC = ("chat", "complete"), ("achat", "acomplete")
_STREAMED, _STREAMED_ASYNC = ("stream_chat", "stream_complete"), ("astream_chat", "astream_complete")
_HANDOFF = "handoff"
"""The reserved name of the tool that passes the work on to another agent: it executes nothing of the host's."""
_WAITS = "WaitingForEvent"


def install(module: ModuleType) -> None:
    """Patch the tool classes, the LLM classes, or the agents: whichever this module defines."""
    name = module.__name__.rpartition(".")[2]
    if name == "types":
        subclasses.wrap(module.BaseTool, _TOOL)
    elif name == "base":
        subclasses.wrap(module.BaseLLM, _LLM)
    elif name == "base_agent":
        subclasses.wrap(module.BaseWorkflowAgent, _STEP)
        _install_runs(module.BaseWorkflowAgent)
    else:
        _install_runs(module.AgentWorkflow)


def remove(module: ModuleType) -> None:
    """Undo `install`."""
    name = module.__name__.rpartition(".")[2]
    if name == "types":
        subclasses.unwrap(module.BaseTool, _TOOL)
    elif name == "base":
        subclasses.unwrap(module.BaseLLM, _LLM)
    else:
        agents = name == "base_agent"
        if agents:
            subclasses.unwrap(module.BaseWorkflowAgent, _STEP)
        for method in _RUNS:
            patches.unwrap(module.BaseWorkflowAgent if agents else module.AgentWorkflow, method)


def _install_runs(owner: type) -> None:
    for name, wrapper in _RUNS.items():
        if name in vars(owner):  # older versions cannot generate an answer at the limit
            patches.wrap(owner, name, wrapper)


def _call(wrapped: Any, tool: Any, args: Any, kwargs: Any) -> Any:
    name = _name(tool)
    if name == _HANDOFF:
        return wrapped(*args, **kwargs)
    with tools.executing(name) as execution:
        return _looked_at(wrapped(*args, **kwargs), execution)


async def _acall(wrapped: Any, tool: Any, args: Any, kwargs: Any) -> Any:
    name = _name(tool)
    if name == _HANDOFF:
        return await wrapped(*args, **kwargs)
    with tools.executing(name) as execution:
        try:
            return _looked_at(await wrapped(*args, **kwargs), execution)
        except Exception as error:
            if type(error).__name__ == _WAITS:
                execution.discard()  # it asks a person, and runs again with the answer
            raise


def _looked_at(output: Any, execution: tools.Execution) -> Any:
    if getattr(output, "is_error", False) is True:
        execution.failed()
    return output


async def _step(wrapped: Any, agent: Any, args: Any, kwargs: Any) -> Any:
    context, memory = _argument(args, kwargs, 0, "ctx"), _argument(args, kwargs, 3, "memory")
    turn = await _stored(context, "num_iterations")
    step = str(turn + 1) if isinstance(turn, int) else None
    with Hint(agent_name=agent.name, conversation=_session(memory), step=step), tools.counted_by_framework():
        return await wrapped(*args, **kwargs)


async def _run_tool(wrapped: Any, owner: Any, args: Any, kwargs: Any) -> Any:
    with await _hint(owner, _argument(args, kwargs, 0, "ctx")):
        return await wrapped(*args, **kwargs)


async def _limit_reached(wrapped: Any, owner: Any, args: Any, kwargs: Any) -> Any:
    fail_task()
    with await _hint(owner, _argument(args, kwargs, 0, "ctx")), tools.counted_by_framework():
        return await wrapped(*args, **kwargs)


async def _hint(owner: Any, context: Any) -> Hint:
    several = hasattr(owner, "root_agent")
    name = await _stored(context, "current_agent_name") if several else getattr(owner, "name", None)
    turn = await _stored(context, "num_iterations")
    session = _session(await _stored(context, "memory"))
    return Hint(agent_name=name, conversation=session, step=str(turn) if isinstance(turn, int) else None)


def _whole(wrapped: Any, llm: Any, args: Any, kwargs: Any) -> Any:
    call = _model_call(llm)
    call.admit()
    with call.making(counts_tools=False):
        response = wrapped(*args, **kwargs)
    call.end(lambda: _told(response))
    return response


async def _whole_async(wrapped: Any, llm: Any, args: Any, kwargs: Any) -> Any:
    call = _model_call(llm)
    await call.admit_async()
    with call.making(counts_tools=False):
        response = await wrapped(*args, **kwargs)
    call.end(lambda: _told(response))
    return response


def _streamed(wrapped: Any, llm: Any, args: Any, kwargs: Any) -> Any:
    call = _model_call(llm)
    call.admit()
    with call.making(counts_tools=False):
        pieces = wrapped(*args, **kwargs)
    if not isinstance(pieces, Iterator):
        return pieces
    return streams.watched(call, pieces, _Tally(), counts_tools=False)


async def _streamed_async(wrapped: Any, llm: Any, args: Any, kwargs: Any) -> Any:
    call = _model_call(llm)
    await call.admit_async()
    with call.making(counts_tools=False):
        pieces = await wrapped(*args, **kwargs)
    if not isinstance(pieces, AsyncIterator):
        return pieces
    return streams.watched_async(call, pieces, _Tally(), counts_tools=False)


_TOOL = {"call": _call, "acall": _acall}
_STEP = {"take_step": _step}
_RUNS = {"_call_tool": _run_tool, "_generate_early_stopping_response": _limit_reached}
_LLM = {
    **dict.fromkeys(_WHOLE, _whole),
    **dict.fromkeys(_WHOLE_ASYNC, _whole_async),
    **dict.fromkeys(_STREAMED, _streamed),
    **dict.fromkeys(_STREAMED_ASYNC, _streamed_async),
}


class _Tally(streams.Tally):
    """The last usage that a piece has: each piece repeats what came before it."""

    def __init__(self) -> None:
        self._told: Told = {}

    def take(self, piece: Any) -> None:
        told = _told(piece)
        if told.get("usage"):
            self._told = told

    def told(self) -> Told:
        return self._told


def _model_call(llm: Any) -> ModelCall:
    try:
        return ModelCall(llm.class_name(), llm.metadata.model_name)
    except Exception:  # noqa: BLE001 - the host's LLM must be called whatever its properties do
        warn_once("llama_index", "Meterhouse could not read what LLM LlamaIndex calls.", with_trace=True)
        return ModelCall("llama_index", "")


def _told(response: Any) -> Told:
    raw = getattr(response, "raw", None)
    usage = _mapping(_mapping(raw).get("usage")) or _mapping(getattr(response, "additional_kwargs", None))
    model, response_id = _mapping(raw).get("model"), _mapping(raw).get("id")
    details, made = _mapping(usage.get("prompt_tokens_details")), _mapping(usage.get("completion_tokens_details"))
    if "prompt_tokens" in usage or "completion_tokens" in usage:
        counts = {
            "input": usage.get("prompt_tokens"),
            "cache_read": details.get("cached_tokens"),
            "output": usage.get("completion_tokens"),
            "reasoning": made.get("reasoning_tokens"),
        }
    else:
        counts = _of_anthropic(usage)
    return {"model": model, "id": response_id, "usage": counts}


def _of_anthropic(usage: Mapping[str, Any]) -> dict[str, Any]:
    """Its input tokens are without those of the cache."""
    parts = {key: usage.get(f"{key}_input_tokens") for key in ("cache_read", "cache_creation")}
    given, made = usage.get("input_tokens"), usage.get("output_tokens")
    whole = [part for part in (given, *parts.values()) if isinstance(part, int)]
    return {
        "input": sum(whole) if isinstance(given, int) else given,
        "cache_read": parts["cache_read"],
        "cache_write": parts["cache_creation"],
        "output": made,
    }


def _mapping(thing: Any) -> Mapping[str, Any]:
    if isinstance(thing, Mapping):
        return thing
    dump = getattr(thing, "model_dump", None)
    dumped = dump() if callable(dump) else None
    return dumped if isinstance(dumped, Mapping) else {}


def _name(tool: Any) -> object:
    return getattr(getattr(tool, "metadata", None), "name", None) or type(tool).__name__


def _session(memory: Any) -> object:
    return getattr(memory, "session_id", None)


def _argument(args: Any, kwargs: Any, place: int, name: str) -> Any:
    return args[place] if len(args) > place else kwargs.get(name)


async def _stored(context: Any, key: str) -> Any:
    """What the run's store has under this key."""
    try:
        return await context.store.get(key, default=None)
    except Exception:  # noqa: BLE001 - the agent must go on whatever its store is like
        warn_once("llama_index_store", "Meterhouse could not read the state of a LlamaIndex run.", with_trace=True)
        return None
