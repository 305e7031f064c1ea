"""What the host's code meets of its customers' limits: the exception, and how long calls wait instead.

Apart from limits.py, which does the rest, because every agent imports this much.
"""

from contextvars import ContextVar
from typing import TYPE_CHECKING

from meterhouse.attribution import Scope

if TYPE_CHECKING:
    from datetime import datetime


class UsageLimitExceeded(Exception):
    """The customer's usage limit is reached: raised before the provider is called, never retried by its SDK.

    `customer`; `reason`, e.g. hard_cap, or `unreachable` where the allowance cannot be asked for and the customer is to
    be stopped then; `until`: the aware time after which a call asks again whether it may go out, None where each does.
    """

    def __init__(
        self, message: str = "", customer: str = "", reason: str = "", until: "datetime | None" = None
    ) -> None:
        super().__init__(message, customer, reason, until)
        self.customer = customer
        self.reason = reason
        self.until = until

    def __str__(self) -> str:
        return str(self.args[0])


class Waiting(Scope):
    """Model calls inside wait for the end of a pause, instead of raising at once."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def _push(self) -> None:
        _patience.set((*_patience.get(), self))

    def _pop(self) -> None:
        kept = list(_patience.get())
        if self in kept:
            kept.reverse()
            kept.remove(self)
            _patience.set(tuple(reversed(kept)))


_patience: ContextVar[tuple[Waiting, ...]] = ContextVar("meterhouse_patience", default=())


def waiting(seconds: float) -> Waiting:
    """Model calls inside wait up to `seconds` for the end of a pause. Raises ValueError for a negative number."""
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 <= seconds < float("inf"):
        raise ValueError(f"a time to wait is a number of seconds from 0, not {seconds!r:.80}")
    return Waiting(float(seconds))


def patience_s() -> float | None:
    """How long the code around this said that calls wait, None where it said nothing."""
    stack = _patience.get()
    return stack[-1].seconds if stack else None
