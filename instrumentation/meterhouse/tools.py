"""Tool executions, each counted once as `tool.calls`, whichever of several layers sees it.

The outermost layer owns an execution: a tool that runs inside a tool is part of it, unless a model was called in
between (an agent used as a tool decides for itself). Where no layer runs the tool, the results that the host hands back
to the model tell of it, once per tool call id.
"""

import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from meterhouse import attribution
from meterhouse.call import Call, new_call_id
from meterhouse.events import Row, cut
from meterhouse.runtime import warn_once
from meterhouse.vocabulary import (
    ABORTED,
    FAILED,
    OK,
    OPERATION,
    PROVIDER,
    REPORTED,
    SDK_LOOP,
    TOOL_CALLS,
    TOOL_NAME,
    USAGE_SOURCE,
)

REMEMBERED = 100_000
"""Tool call ids and names kept in memory, the oldest forgotten first."""
_UNIQUE = re.compile(r"(?=.*\d)[A-Za-z0-9_-]{9,}\Z")
"""Ids drawn at random; some servers only number the calls of an answer (`functions.search:0`, `call_1`)."""


@dataclass(frozen=True, slots=True)
class ToolResult:
    """A tool's result that the host hands back to a model. `name` may be unknown (empty), an id may not exist."""

    tool_call_id: str
    name: str = ""
    failed: bool = False


class Execution:
    """A tool that runs. `owner`: an execution around it that it is part of, so that it is no event of its own."""

    def __init__(self, name: str, owner: "Execution | None", call: Call | None) -> None:
        self.name = name
        self.model_called = False
        self._owner = owner
        self._call = call

    def failed(self) -> None:
        """The tool said that it failed, though nothing was raised."""
        self.finish(FAILED)

    def discard(self) -> None:
        """It turned out to be no execution: nothing is counted."""
        self._call = None

    def finish(self, status: str) -> None:
        """`ok`, `failed` or `aborted`; the first one counts."""
        call, self._call = self._call, None
        if call is not None:
            call.finish(status, [Row(TOOL_CALLS, 1)], {USAGE_SOURCE: REPORTED})


_inside: ContextVar[Execution | None] = ContextVar("meterhouse_tool", default=None)
_lock = threading.Lock()
_told: OrderedDict[str, None] = OrderedDict()
"""Tool call ids that were counted, by whichever layer."""
_names: OrderedDict[str, str] = OrderedDict()
"""Tool call id -> the tool that the model asked for."""
_unclaimed: OrderedDict[str, dict[str, int]] = OrderedDict()
"""Customer -> tool -> executions counted by a layer that did not know the tool call id."""


@contextmanager
def executing(name: object, *, tool_call_id: str | None = None) -> Iterator[Execution]:
    """Around the execution of a tool, sync or async: counts it as `ok`, `failed` or `aborted` when it is left.

    Give the id under which the model asked for it where the layer knows it.
    """
    execution = begin(name, tool_call_id=tool_call_id)
    token = _inside.set(execution)
    try:
        yield execution
    except BaseException as error:
        execution.finish(FAILED if isinstance(error, Exception) else ABORTED)
        raise
    else:
        execution.finish(OK)
    finally:
        try:
            _inside.reset(token)
        except ValueError:  # left in another context than entered: a generator that the event loop closed
            _inside.set(None)


def begin(name: object, *, tool_call_id: str | None = None) -> Execution:
    """A tool starts, for layers that tell of start and end in two places; never raises. See `executing`."""
    try:
        return _begin(cut(str(name)), tool_call_id)
    except Exception:  # noqa: BLE001 - the tool must run whatever becomes of its metering
        warn_once("tool", "Meterhouse could not meter a tool call.", with_trace=True)
        return Execution(str(name), None, None)


def _begin(name: str, tool_call_id: str | None) -> Execution:
    owner = _inside.get()
    if tool_call_id and _UNIQUE.match(tool_call_id):
        _first_time(tool_call_id)
    elif owner is None:
        _add_unclaimed(name)
    if owner is not None and (owner.name == name or not owner.model_called):
        return Execution(name, owner, None)
    return Execution(name, None, Call(new_call_id(), {OPERATION: "execute_tool", TOOL_NAME: name}, intent=False))


def model_called() -> None:
    """A model is called: what tools run from now on inside the running tool were decided by it."""
    running = _inside.get()
    while running is not None:
        running.model_called = True
        running = running._owner


def learn(names: Mapping[str, str]) -> None:
    """The model asked for these tools: tool call id -> name."""
    if names:
        with _lock:
            for tool_call_id, name in names.items():
                _remember(_names, tool_call_id, name)


class HandedBack:
    """The tool results of one request: those with an id are counted at once, the others when it was `accepted`."""

    def __init__(self, provider: str, results: Iterable[ToolResult]) -> None:
        self._provider = provider
        self._without_id: list[ToolResult] = []
        for result in results:
            if not _UNIQUE.match(result.tool_call_id):
                self._without_id.append(result)
            elif _first_time(result.tool_call_id):
                self._count(result)

    def accepted(self) -> None:
        """The model took the request: results without an id are counted here, so that a repeated try is not."""
        results, self._without_id = self._without_id, []
        for result in results:
            self._count(result)

    def _count(self, result: ToolResult) -> None:
        name = cut(result.name or _names.get(result.tool_call_id, ""))
        if _claim(name):
            return
        known = {OPERATION: "execute_tool", PROVIDER: self._provider}
        if name:
            known[TOOL_NAME] = name
        unique = _UNIQUE.match(result.tool_call_id)
        call_id = _of_result(self._provider, result.tool_call_id) if unique else new_call_id()
        call = Call(call_id, known, intent=False)
        call.finish(FAILED if result.failed else OK, [Row(TOOL_CALLS, 1)], {USAGE_SOURCE: SDK_LOOP})


def handed_back(provider: str, results: Callable[[], Iterable[ToolResult]]) -> HandedBack | None:
    """What the host hands back to the model in one request; None where there is nothing. Never raises."""
    try:
        found = list(results())
        return HandedBack(provider, found) if found else None
    except Exception:  # noqa: BLE001 - the host's call must go out whatever becomes of its metering
        warn_once("handed_back", "Meterhouse could not meter tool results.", with_trace=True)
        return None


def _first_time(tool_call_id: str) -> bool:
    with _lock:
        if tool_call_id in _told:
            return False
        _remember(_told, tool_call_id, None)
        return True


def _add_unclaimed(name: str) -> None:
    with _lock:
        of_customer = _unclaimed.get(_customer(), {})
        of_customer[name] = of_customer.get(name, 0) + 1
        _remember(_unclaimed, _customer(), of_customer)


def _claim(name: str) -> bool:
    """True when a layer has counted an execution of this tool whose id it did not know."""
    with _lock:
        of_customer = _unclaimed.get(_customer(), {})
        # A host may show the model its MCP tools under a prefix of its own.
        known = name if name in of_customer else next((one for one in of_customer if _is_suffix(one, name)), None)
        if known is None:
            return False
        of_customer[known] -= 1
        if not of_customer[known]:
            del of_customer[known]
        return True


def _is_suffix(inner: str, shown: str) -> bool:
    before = shown[: -len(inner)] if inner and shown.endswith(inner) else ""
    return bool(before) and not before[-1].isalnum()


def _customer() -> str:
    return attribution.current().payer() or ""


def _of_result(provider: str, tool_call_id: str) -> str:
    return hashlib.sha256(f"tool\0{provider}\0{tool_call_id}".encode()).hexdigest()[:32]


def _remember(memory: OrderedDict, key: object, value: object) -> None:  # type: ignore[type-arg]
    memory[key] = value
    memory.move_to_end(key)
    if len(memory) > REMEMBERED:
        memory.popitem(last=False)
