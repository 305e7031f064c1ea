"""Claude Agent SDK: a `claude` process calls the model and runs the tools; its messages tell of both.

The choke point is the internal `Query` that `query()` and `ClaudeSDKClient` share: what its transport reads is listened
to, whether or not the host reads it. A turn, from a prompt to its result, is one call.
"""

import contextvars
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from types import ModuleType
from typing import Any

import wrapt

from meterhouse import attribution, limits, patches, tools
from meterhouse.attribution import Hint
from meterhouse.call import Call, new_call_id
from meterhouse.events import cut
from meterhouse.frameworks.claude_messages import LIMITS, Session, ToolEnd, ToolUse, denied, provider
from meterhouse.metered import Request
from meterhouse.trouble import warn_once
from meterhouse.usage import text
from meterhouse.vocabulary import (
    ABORTED,
    CONVERSATION_ID,
    FAILED,
    FRAMEWORK,
    OK,
    PROVIDER,
    USAGE_SOURCE,
)

_PROMPTS_MAX = 1_000
_OF_QUERY = ("__init__", "start", "stream_input", "wait_for_result_and_end_input", "close")


def install(module: ModuleType) -> None:
    """Patch the internal query, or the client whose prompts may be for different customers."""
    if module.__name__.endswith(".client"):
        patches.wrap(module, "ClaudeSDKClient.query", _prompt)
        return
    wrappers: tuple[Callable[..., Any], ...] = (_init, _start, _speaks, _speaks, _close)
    for name, wrapper in zip(_OF_QUERY, wrappers, strict=True):
        if hasattr(module.Query, name):  # older versions tell a string prompt to the CLI in another way
            patches.wrap(module, f"Query.{name}", wrapper)


def remove(module: ModuleType) -> None:
    """Undo `install`."""
    owner = module.ClaudeSDKClient if module.__name__.endswith(".client") else module.Query
    for name in ("query",) if module.__name__.endswith(".client") else _OF_QUERY:
        patches.unwrap(owner, name)


class _Turns:
    """The turns of one CLI process, one after the other, each for whom its prompt was for. Never raises."""

    def __init__(self) -> None:
        self._session = Session()
        self._prompts: deque[contextvars.Context] = deque(maxlen=_PROMPTS_MAX)
        self._context = contextvars.copy_context()
        self._call: Call | None = None
        self._running: dict[str, tools.Execution] = {}
        self._failed: dict[str, tools.Execution] = {}

    def prompted(self) -> None:
        """A prompt is about to go out."""
        if self._call is None:
            self._begin(contextvars.copy_context())
        else:
            self._prompts.append(contextvars.copy_context())

    def heard(self, message: object) -> None:
        """Take a message of the CLI."""
        if not isinstance(message, Mapping):
            return
        try:
            if self._call is None and message.get("type") in ("assistant", "user", "stream_event", "result"):
                self._begin(self._prompts.popleft() if self._prompts else self._context)
            self._context.run(self._heard, message)
        except Exception:  # noqa: BLE001 - the host's messages must reach it whatever we make of them
            warn_once("claude", "Meterhouse could not read a message of the Claude Agent SDK.", with_trace=True)

    def over(self, status: str) -> None:
        """The process is gone: what is open will have no result."""
        try:
            self._context.run(self._over, status)
        except Exception:  # noqa: BLE001 - the host ends its session; our part of it can only be told of
            warn_once("claude", "Meterhouse could not end a turn of the Claude Agent SDK.", with_trace=True)

    def _begin(self, context: contextvars.Context) -> None:
        self._context = context
        request = Request("anthropic", "chat")
        self._call = context.run(Call, new_call_id(), request.attributes())

    def _heard(self, message: Mapping[str, Any]) -> None:
        for told in self._session.take(message):
            if isinstance(told, ToolUse) and told.tool_use_id not in self._running:
                with Hint(agent_name=told.agent, conversation=self._session.session_id):
                    self._running[told.tool_use_id] = tools.begin(
                        told.name, tool_call_id=told.tool_use_id, in_agent=True
                    )
            elif isinstance(told, ToolEnd):
                self._tool_ended(told)
        if message.get("type") == "result":
            self._result(message)

    def _tool_ended(self, end: ToolEnd) -> None:
        execution = self._running.pop(end.tool_use_id, None)
        if execution is None:
            return
        if end.ran is None:
            self._failed[end.tool_use_id] = execution
        elif end.ran:
            execution.finish(FAILED if end.failed else OK)
        else:
            execution.discard()

    def _result(self, result: Mapping[str, Any]) -> None:
        refused = denied(result)
        for tool_use_id in refused & self._running.keys():
            self._running.pop(tool_use_id).discard()
        for tool_use_id, execution in self._failed.items():
            if tool_use_id in refused:
                execution.discard()
            else:
                execution.finish(FAILED)
        self._failed.clear()
        limited = result.get("subtype") in LIMITS
        stopped = (text(result, "terminal_reason") or "").startswith("aborted")
        status = ABORTED if stopped else FAILED if result.get("is_error") and not limited else OK
        if status != OK or limited:
            attribution.fail_task()
        self._finish(status, self._session.usage(result), {PROVIDER: provider(result)})

    def _over(self, status: str) -> None:
        for execution in self._failed.values():
            execution.finish(FAILED)
        for execution in self._running.values():
            execution.finish(ABORTED)
        self._failed.clear()
        self._running.clear()
        if self._call is not None:
            self._finish(status, self._session.unknown(), {})

    def _finish(self, status: str, rows: Any, known: dict[str, str]) -> None:
        call, self._call = self._call, None
        if self._session.session_id and attribution.current().conversation is None:
            known = {**known, CONVERSATION_ID: cut(self._session.session_id)}
        if call is not None:
            call.finish(status, rows, {**known, USAGE_SOURCE: FRAMEWORK})


class _Listened(wrapt.ObjectProxy):  # type: ignore[misc,type-arg,unused-ignore]
    """The transport, whose messages are listened to on their way."""

    def __init__(self, transport: Any) -> None:
        super().__init__(transport)
        self._self_turns = _Turns()

    async def read_messages(self) -> AsyncIterator[Any]:
        turns = self._self_turns
        reading = self.__wrapped__.read_messages()
        try:
            async for message in reading:
                turns.heard(message)
                yield message
        except Exception:
            turns.over(FAILED)
            raise
        finally:
            turns.over(ABORTED)
            if hasattr(reading, "aclose"):
                await reading.aclose()


def _turns(query: Any) -> _Turns | None:
    transport = getattr(query, "transport", None)
    return transport._self_turns if isinstance(transport, _Listened) else None


def _init(wrapped: Callable[..., None], query: Any, args: Any, kwargs: Any) -> None:
    wrapped(*args, **kwargs)
    try:
        query.transport = _Listened(query.transport)
    except Exception:  # noqa: BLE001 - the host's session must start whatever becomes of its metering
        warn_once("claude", "Meterhouse cannot listen to this version of the Claude Agent SDK.", with_trace=True)


async def _start(wrapped: Any, _query: Any, args: Any, kwargs: Any) -> Any:
    await limits.admit_async()
    return await wrapped(*args, **kwargs)


async def _speaks(wrapped: Any, query: Any, args: Any, kwargs: Any) -> Any:
    turns = _turns(query)
    if turns is not None:
        turns.prompted()
    return await wrapped(*args, **kwargs)


async def _close(wrapped: Any, query: Any, args: Any, kwargs: Any) -> Any:
    turns = _turns(query)
    if turns is not None:
        turns.over(ABORTED)
    return await wrapped(*args, **kwargs)


async def _prompt(wrapped: Any, client: Any, args: Any, kwargs: Any) -> Any:
    turns = _turns(getattr(client, "_query", None))
    if turns is not None:
        await limits.admit_async()
        turns.prompted()
    return await wrapped(*args, **kwargs)
