"""Whether the current customer may make another model call (docs/contracts.md section 5). Only model calls are stopped.

    admit()    before each model call; raises UsageLimitExceeded when the customer is paused
    spend()    after it: counts its usage against the lease

A customer without an allowance of its own has a lease without limits. Leases are kept per customer and agent and are
renewed in the background by the calls that use them, so that only the first call waits for an answer. Usage without a
customer is never stopped.
"""

import os
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from meterhouse import attribution
from meterhouse.allowance_client import Client, Key
from meterhouse.attribution import Attribution
from meterhouse.events import Recorded
from meterhouse.leases import TASK, Lease
from meterhouse.pauses import UsageLimitExceeded, patience_s
from meterhouse.trouble import warn_once
from meterhouse.vocabulary import AGENT_ID, CUSTOMER_ID, LEASE_ID

if TYPE_CHECKING:  # both take longer to import than all of Meterhouse
    import asyncio
    import concurrent.futures

ENV_WAIT_S: Final = "METERHOUSE_LIMIT_WAIT_S"
ASK_AGAIN_S: Final = 1.0
"""Between two questions of a call that waits for the end of a pause."""


@dataclass(frozen=True, slots=True)
class _Pause:
    """A call has to wait for an answer (None: only for time to pass), `seconds` at most."""

    answer: "concurrent.futures.Future[Lease] | None"
    seconds: float

    def block(self) -> None:
        import concurrent.futures

        if self.answer is None:
            time.sleep(self.seconds)
        else:
            concurrent.futures.wait([self.answer], self.seconds)

    async def rest(self) -> None:
        import asyncio

        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # an event loop of another kind, which the SDKs reach through anyio
            anyio = sys.modules.get("anyio")
            if anyio is None:
                self.block()
            else:
                await anyio.to_thread.run_sync(self.block, abandon_on_cancel=True)
            return
        answered = asyncio.Event()
        if self.answer is not None:
            self.answer.add_done_callback(partial(_wake, loop, answered))
        with suppress(TimeoutError):
            await asyncio.wait_for(answered.wait(), self.seconds)


def _wake(loop: "asyncio.AbstractEventLoop", answered: "asyncio.Event", _: object) -> None:
    with suppress(RuntimeError):  # the loop has ended, and who waited in it as well
        loop.call_soon_threadsafe(answered.set)


def admit(who: Attribution | None = None) -> None:
    """Returns when the call may go out; raises UsageLimitExceeded when the customer is paused.

    `who`: `attribution.resolved()`, where the caller knows it already. Else it raises only what a signal handler of the
    host does.
    """
    waits = _waits(who)
    while (pause := _next(waits)) is not None:
        pause.block()  # where nothing is caught: what ends a wait early is the host's


async def admit_async(who: Attribution | None = None) -> None:
    """`admit` for code in an event loop."""
    waits = _waits(who)
    while (pause := _next(waits)) is not None:
        await pause.rest()


def _waits(who: Attribution | None) -> Iterator[_Pause]:
    who = who or attribution.resolved()
    if not _passes(who):
        yield from _admission(who)


def _next(waits: Iterator[_Pause]) -> _Pause | None:
    try:
        return next(waits, None)
    except UsageLimitExceeded:
        raise
    except Exception:  # noqa: BLE001 - the host's call must go out whatever becomes of its limits
        warn_once("limits", "Meterhouse could not look after usage limits: a call goes out without.", with_trace=True)
        return None


def spend(recorded: Recorded) -> None:
    """Count what was used against its customer's lease."""
    if _client.counting:
        customer = recorded.attributes.get(CUSTOMER_ID)
        if customer:
            key = customer, recorded.attributes.get(AGENT_ID, "")
            lease = recorded.attributes.get(LEASE_ID, "")
            _client.spend(key, [(event.meter, event.quantity) for event in recorded.events()], lease)


def lease_id(who: Attribution) -> str:
    """The id of the lease that a call of theirs is made under, `who` as resolved; empty where there is none."""
    key = _key(who)
    lease = _client.leases.get(key) if key else None
    return lease.lease_id if lease is not None else ""


def task_inside(around: Attribution, task: str) -> None:
    """A task begins inside another: when that one may end, so may this."""
    if around.task in _client.tasks:
        _client.remember(task)


def release() -> None:
    """Give back what is left of the leases: this process ends."""
    _client.release()


def _key(who: Attribution) -> Key | None:
    return (who.customer, who.agent_id or who.agent_name or "") if who.customer else None


def _passes(who: Attribution) -> bool:
    """True where a lease is at hand that says yes, and nothing has to be asked."""
    key = _key(who)
    if key is None:
        return True
    lease = _client.leases.get(key)
    if lease is None or not lease.allowed or time.monotonic() >= lease.renew_at:
        return False
    if lease.left is not None and lease.left <= 0:
        return False
    if who.task and who.task not in _client.tasks:
        _client.remember(who.task)
    return True


def _admission(who: Attribution) -> Generator[_Pause, None, None]:
    """The waits until the call may go out; raises UsageLimitExceeded when it may not."""
    key = _key(who)
    if key is None:
        return
    lease = yield from _asked(key)
    if lease.allowed or _under_way(lease, who):
        _let(who)
        return
    deadline = time.monotonic() + _patience_s()
    while (left := deadline - time.monotonic()) > 0:
        yield _Pause(None, min(ASK_AGAIN_S, left))
        answer = _client.ask(key)
        yield _Pause(answer, min(_client.timeout_s, max(deadline - time.monotonic(), 0.0)))
        lease = _client.leases.get(key, lease)
        if lease.allowed:
            _let(who)
            return
    raise _exceeded(key, lease)


def _asked(key: Key) -> Generator[_Pause, None, Lease]:
    """The lease that holds now. Only where there is none, or it is over, is its answer waited for."""
    lease, now = _client.leases.get(key), time.monotonic()
    if lease is None or lease.over(now):
        answer = _client.ask(key)
        yield _Pause(answer, _client.timeout_s)
        if not answer.done():
            return _client.unanswered(key)
        return answer.result()
    if now >= lease.renew_at:
        _client.ask(key)
    return lease


def _let(who: Attribution) -> None:
    if who.task:
        _client.remember(who.task)


def _under_way(lease: Lease, who: Attribution) -> bool:
    """A task whose calls were let before may end."""
    return lease.pause_at == TASK and who.task in _client.tasks


def _patience_s() -> float:
    from meterhouse.settings import number_of

    said = patience_s()
    return number_of(ENV_WAIT_S, 0.0) if said is None else said


_SAID: Final = {
    "": "the usage limit of customer {} is reached",
    "hard_cap": "the usage limit of customer {} is reached",
    "prepaid_used": "the prepaid credits of customer {} are used up",
    "reserved": "all that customer {} may still use is held by other calls, which ends by itself",
    "unreachable": "nobody says what customer {} may use, and it is stopped then",
}
"""What is said of a pause, by its reason; others are pauses that somebody made."""


def _exceeded(key: Key, lease: Lease) -> UsageLimitExceeded:
    why = f" ({lease.reason})" if lease.reason else ""
    said = _SAID.get(lease.reason, "model calls of customer {} are paused").format(repr(key[0]))
    again = f"; a call after {lease.until.isoformat(timespec='seconds')} asks again" if lease.until else ""
    return UsageLimitExceeded(f"{said}{why}{again}", key[0], lease.reason, lease.until)


_client = Client()


def _after_fork_in_child() -> None:
    global _client
    _client = Client()  # the leases are the parent's


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
