"""Tool executions, each counted once as `tool.calls`, whichever of several layers sees it.

The outermost layer owns an execution: a tool that runs inside a tool is part of it, unless a model was called in
between (an agent used as a tool decides for itself). Where no layer runs the tool, the results that the host hands back
to the model tell of it, once per tool call id. A framework that runs a tool again after an error executes it again.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass

from meterhouse import attribution
from meterhouse.call import Call, new_call_id
from meterhouse.events import Row, cut
from meterhouse.tool_memory import ToolMemory, shown_as, unique
from meterhouse.trouble import warn_once
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


@dataclass(frozen=True, slots=True)
class ToolResult:
    """A tool's result that the host hands back to a model. `name` may be unknown (empty), an id may not exist."""

    tool_call_id: str
    name: str = ""
    failed: bool = False
    earlier: bool = False
    """It stands before the last that the model said: it counts only where this process saw the model ask for it."""


class Execution:
    """A tool that runs. `owner`: the execution around it; without a `call` it is part of that, and no event itself.

    Ended by the first of `finish`, `failed` and `discard`; from then on it owns nothing: what a task that it left
    behind does is its own.
    """

    def __init__(
        self, name: str, tool_call_id: str = "", owner: "Execution | None" = None, call: Call | None = None
    ) -> None:
        self.name = name
        self.tool_call_id = tool_call_id
        self.model_called = False
        self.ended = False
        self._owner = owner
        self._call = call
        self._forget: Callable[[], None] | None = None

    @contextmanager
    def running(self) -> Iterator["Execution"]:
        """What runs inside is part of this execution. For generators: around each step, never across a `yield`."""
        token = _inside.set(self)
        try:
            yield self
        finally:
            with suppress(ValueError):  # left in another context than entered: there an ended execution owns nothing
                _inside.reset(token)

    def failed(self) -> None:
        """The tool said that it failed, though nothing was raised."""
        owner = self._owner
        if self._call is None and not self.ended and owner is not None and shown_as(self.name, owner.name):
            owner.failed()  # the same execution, seen by two layers
        self.finish(FAILED)

    def discard(self) -> None:
        """It turned out to be no execution: nothing is counted."""
        if not self.ended and self._forget is not None:
            self._forget()
        self.ended, self._call = True, None

    def finish(self, status: str) -> None:
        """`ok`, `failed` or `aborted`; the first one counts."""
        call, self._call = self._call, None
        self.ended = True
        if call is not None:
            call.finish(status, [Row(TOOL_CALLS, 1)], {USAGE_SOURCE: REPORTED})


@contextmanager
def executing(name: object, *, tool_call_id: str | None = None, in_agent: bool = False) -> Iterator[Execution]:
    """Around the execution of a tool, sync or async: counts it as `ok`, `failed` or `aborted` when it is left.

    Give the id under which the model asked for it where the layer knows it. `in_agent`: an agent of a framework runs
    it and hands its result back itself; no result that the host hands back is of this execution.
    """
    execution = begin(name, tool_call_id=tool_call_id, in_agent=in_agent)
    try:
        with execution.running():
            yield execution
    except BaseException as error:
        execution.finish(FAILED if isinstance(error, Exception) else ABORTED)
        raise
    else:
        execution.finish(OK)


def begin(name: object, *, tool_call_id: str | None = None, in_agent: bool = False) -> Execution:
    """A tool starts, for layers that tell of start and end in two places; never raises. See `executing`.

    What it calls is part of it only inside `running()`.
    """
    try:
        return _begin(cut(str(name)), tool_call_id or "", in_agent or _in_framework.get())
    except Exception:  # noqa: BLE001 - the tool must run whatever becomes of its metering
        warn_once("tool", "Meterhouse could not meter a tool call.", with_trace=True)
        return Execution(str(name))


def _begin(name: str, tool_call_id: str, in_agent: bool) -> Execution:
    owner = current()
    known = unique(tool_call_id)
    if known:
        _memory.first_time(tool_call_id)
    if owner is not None and _is_part(owner, name, tool_call_id):
        return Execution(name, tool_call_id, owner)
    call = Call(new_call_id(), {OPERATION: "execute_tool", TOOL_NAME: name}, intent=False)
    execution = Execution(name, tool_call_id, owner, call)
    if not known:
        execution._forget = _memory.executed(payer(), name, credited=not in_agent)
    return execution


def _is_part(owner: Execution, name: str, tool_call_id: str) -> bool:
    if not owner.model_called:
        return True
    asked_for = tool_call_id and (tool_call_id != owner.tool_call_id or not unique(tool_call_id))
    return owner.name == name and not asked_for


def current() -> Execution | None:
    """The tool that the running code is part of."""
    running = _inside.get()
    while running is not None and running.ended:
        running = running._owner
    return running


def model_called() -> None:
    """A model is called: what tools run from now on inside the running tool were decided by it."""
    running = current()
    while running is not None:
        running.model_called = True
        running = running._owner


def learn(asker: str, names: Mapping[str, str]) -> None:
    """A model that was called for `asker`, a `payer()`, asked for these tools: tool call id -> name."""
    _memory.learn(asker, names)


def refused(tool_call_ids: Iterable[str]) -> None:
    """These were answered, or will be, without an execution: their results handed back count nothing."""
    for tool_call_id in tool_call_ids:
        if unique(tool_call_id):
            _memory.first_time(tool_call_id)


@contextmanager
def counted_by_framework() -> Iterator[None]:
    """Around a model call of a framework that counts its tools itself: what it hands back are no executions of their
    own. It answers a tool call id also where it refused to run the tool, or where the "tool" only ends the run.
    """
    token = _in_framework.set(True)
    try:
        yield
    finally:
        try:
            _in_framework.reset(token)
        except ValueError:  # left in another context than entered: a generator that the event loop closed
            _in_framework.set(False)


def in_framework() -> bool:
    """True inside `counted_by_framework`."""
    return _in_framework.get()


def handed_back(provider: str, results: Callable[[], Iterable[ToolResult]]) -> "HandedBack | None":
    """What the host hands back to the model in one request; None where there is nothing. Never raises."""
    try:
        found = list(results())
        if _in_framework.get():
            refused(result.tool_call_id for result in found)
            return None
        return HandedBack(provider, found) if found else None
    except Exception:  # noqa: BLE001 - the host's call must go out whatever becomes of its metering
        warn_once("handed_back", "Meterhouse could not meter tool results.", with_trace=True)
        return None


class HandedBack:
    """The tool results of one request: those with an id are counted at once, the others when it was `accepted`."""

    def __init__(self, provider: str, results: Sequence[ToolResult]) -> None:
        self._provider = provider
        self._payer = payer()
        # Begun now, for whom the request is: `accepted` may come from anywhere, the garbage collector for one.
        self._without_id = [(one, self._begun(one)) for one in results if not (one.earlier or unique(one.tool_call_id))]
        with_id = [one for one in results if unique(one.tool_call_id) and (not one.earlier or _asked_for(one))]
        self._count([(one, self._begun(one)) for one in with_id if self._is_first(one)])

    def accepted(self) -> None:
        """The model took the request: results without an id are counted here, so that a repeated try is not."""
        results, self._without_id = self._without_id, []
        self._count(results)

    def _is_first(self, result: ToolResult) -> bool:
        return _memory.first_result(self._payer, _name(result), result.tool_call_id)

    def _count(self, results: Sequence[tuple[ToolResult, Call]]) -> None:
        # Names that agree first: where `search` ran by MCP and `web_search` as a function, each keeps its own.
        left = [(one, call) for one, call in results if not _memory.claim(self._payer, _name(one), one.tool_call_id)]
        for one, call in left:
            if not _memory.claim(self._payer, _name(one), one.tool_call_id, prefixed=True):
                call.finish(FAILED if one.failed else OK, [Row(TOOL_CALLS, 1)], {USAGE_SOURCE: SDK_LOOP})

    def _begun(self, result: ToolResult) -> Call:
        known = {OPERATION: "execute_tool", PROVIDER: self._provider}
        if name := _name(result):
            known[TOOL_NAME] = name
        named = unique(result.tool_call_id)
        call_id = _of_result(self._provider, result.tool_call_id) if named else new_call_id()
        return Call(call_id, known, intent=False)


_inside: ContextVar[Execution | None] = ContextVar("meterhouse_tool", default=None)
_in_framework: ContextVar[bool] = ContextVar("meterhouse_framework", default=False)
_memory = ToolMemory()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_memory.after_fork)


def _asked_for(result: ToolResult) -> bool:
    return bool(_memory.name(result.tool_call_id))


def _name(result: ToolResult) -> str:
    return cut(result.name or _memory.name(result.tool_call_id))


def payer() -> str:
    """For whom tools are remembered here: the customer, empty where none is known."""
    return attribution.resolved().customer or ""


def _of_result(provider: str, tool_call_id: str) -> str:
    return hashlib.sha256(f"tool\0{provider}\0{tool_call_id}".encode()).hexdigest()[:32]
