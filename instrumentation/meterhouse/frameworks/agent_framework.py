"""Microsoft Agent Framework: tool executions, agents' names and sessions, and chat clients that it alone sees.

Tools: the function call inside `FunctionTool.invoke`, after approval and validation. Model calls: `_inner_get_response`
of every chat client, once per round trip. Usage as in `agent_framework.UsageDetails`: cached tokens are part of the
input, reasoning of the output. Streams are pulled by their consumer, so what is known holds around each pull.
"""

import contextvars
import weakref
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from meterhouse import patches, tools
from meterhouse.attribution import Hint
from meterhouse.frameworks import subclasses
from meterhouse.frameworks.model_calls import ModelCall, Told
from meterhouse.trouble import warn_once
from meterhouse.vocabulary import ABORTED, OK

_USAGE = {
    "input": "input_token_count",
    "cache_read": "cache_read_input_token_count",
    "cache_write": "cache_creation_input_token_count",
    "output": "output_token_count",
    "reasoning": "reasoning_output_token_count",
}


def install(module: ModuleType) -> None:
    """Patch the tools, the agents, or the chat clients: whichever this module defines."""
    if module.__name__.endswith("._tools"):
        patches.wrap(module, "FunctionTool._invoke_function", _execute)
    elif module.__name__.endswith("._agents"):
        patches.wrap(module, "RawAgent.run", _run)
    else:
        subclasses.wrap(module.BaseChatClient, _CLIENT)


def remove(module: ModuleType) -> None:
    """Undo `install`."""
    if module.__name__.endswith("._tools"):
        patches.unwrap(module.FunctionTool, "_invoke_function")
    elif module.__name__.endswith("._agents"):
        patches.unwrap(module.RawAgent, "run")
    else:
        subclasses.unwrap(module.BaseChatClient, _CLIENT)


async def _execute(wrapped: Any, tool: Any, args: Any, kwargs: Any) -> Any:
    with tools.executing(getattr(tool, "name", None) or type(tool).__name__):
        return await wrapped(*args, **kwargs)


def _run(wrapped: Any, agent: Any, args: Any, kwargs: Any) -> Any:
    session = kwargs.get("session")
    hint = Hint(
        agent_name=getattr(agent, "name", None),
        agent_id=getattr(agent, "id", None),
        conversation=getattr(session, "session_id", None),
    )
    with _inside(hint):
        running = wrapped(*args, **kwargs)
    if not kwargs.get("stream"):
        return _inside_of(hint, running)
    return _pulled(running, lambda: _inside(hint))


async def _inside_of(hint: Hint, running: Awaitable[Any]) -> Any:
    with _inside(hint):
        return await running


@contextmanager
def _inside(hint: Hint) -> Iterator[None]:
    """What an agent does with the model and its tools."""
    with hint.fresh(), tools.counted_by_framework():
        yield


def _respond(wrapped: Any, client: Any, args: Any, kwargs: Any) -> Any:
    call = ModelCall(_provider(client), _model(client))
    if not kwargs.get("stream"):
        return _whole(call, wrapped, args, kwargs)
    call.admit()
    stream = _Stream(call)
    try:
        with stream.pull():
            response = wrapped(*args, **kwargs)
    except BaseException as error:
        call.broken(error)
        raise
    return _pulled(response, stream.pull, stream)


async def _whole(call: ModelCall, wrapped: Any, args: Any, kwargs: Any) -> Any:
    await call.admit_async()
    with call.making(counts_tools=False):
        response = await wrapped(*args, **kwargs)
    call.end(lambda: _told(response))
    return response


class _Stream:
    """A streamed answer: what its updates told so far, and how the last pull ended."""

    def __init__(self, call: ModelCall) -> None:
        self._call = call
        self._told: Told = {}
        self._at_end = False
        self._error: BaseException | None = None
        # Its end may come from anywhere, the garbage collector for one: it is for whom it was asked for.
        self._context = contextvars.copy_context()

    @contextmanager
    def pull(self) -> Iterator[None]:
        """Around one pull of an update."""
        with self._call.running(counts_tools=False):
            try:
                yield
            except StopAsyncIteration:
                self._at_end = True
                raise
            except BaseException as error:
                self._error = error
                raise

    def take(self, update: Any) -> None:
        """Look at an update; it is passed on as it is."""
        try:
            found = [content for content in update.contents or () if getattr(content, "type", None) == "usage"]
            known = {"model": getattr(update, "model", None), "id": getattr(update, "response_id", None)}
            for content in found:
                self._told = {**known, "usage": _counts(content.usage_details)}
        except Exception:  # noqa: BLE001 - the host's stream must go on whatever we make of it
            warn_once("agent_framework", "Meterhouse could not read an update of Agent Framework.", with_trace=True)

    def over(self) -> None:
        """It was read to its end, broke off, was closed or collected; the first of these counts."""
        if self._error is not None:
            self._context.run(self._call.broken, self._error, lambda: self._told)
        else:
            self._context.run(self._call.end, lambda: self._told, OK if self._at_end else ABORTED)


def _pulled(response: Any, inside: Callable[[], Any], stream: _Stream | None = None) -> Any:
    """The same stream of responses, each pulled `inside`."""
    try:
        response.with_pull_context_manager(inside)
        if stream is not None:
            response.with_transform_hook(stream.take)
            response.with_cleanup_hook(stream.over)
            weakref.finalize(response, stream.over)  # the host may just let go of it: old versions cannot be closed
    except Exception:  # noqa: BLE001 - the host's stream must go on, of whatever kind it is
        warn_once("agent_framework", "Meterhouse cannot follow a stream of Agent Framework.", with_trace=True)
    return response


def _provider(client: Any) -> object:
    return getattr(client, "OTEL_PROVIDER_NAME", None) or type(client).__name__


def _model(client: Any) -> object:
    return getattr(client, "model", None) or getattr(client, "model_id", None)


def _told(response: Any) -> Told:
    usage = getattr(response, "usage_details", None)
    known = {"model": getattr(response, "model", None), "id": getattr(response, "response_id", None)}
    return {**known, "usage": _counts(usage)}


def _counts(usage: object) -> dict[str, Any]:
    if not isinstance(usage, Mapping):
        return {}
    return {name: usage.get(key) for name, key in _USAGE.items()}


_CLIENT = {"_inner_get_response": _respond}
