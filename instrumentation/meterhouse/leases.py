"""What a customer may still use, as the collector granted it (docs/contracts.md section 5). Pure: no I/O, no clock."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal
from typing import Any, Final

ALLOW: Final = "allow"
PAUSE: Final = "pause"
CALL: Final = "call"
TASK: Final = "task"
UNREACHABLE: Final = "unreachable"
"""Reason of a pause that nobody asked for: the allowance is not known, and the customer is to be stopped then."""
USED_UP: Final = "units_used_up"

_EXACT: Final = Context(prec=60, traps=[])
"""The host's own context may round, or raise."""
MOST: Final = 10**18
"""More units, or units per unit of a meter, no answer may name."""
LONGEST_TEXT: Final = 256
METERS: Final = 1000

RENEW_AT: Final = 0.5
"""After this part of its time, or of its units, a lease is renewed in the background."""
PAUSED_AGAIN_S: Final = 5.0
RETRY_S: Final = 5.0
UNSUPPORTED_AGAIN_S: Final = 600.0
LONGEST_S: Final = 3600.0
NEVER: Final = float("inf")


@dataclass(slots=True)
class Lease:
    """One answer for one (customer, agent); times in seconds of the monotonic clock.

    `left`: units that may still be used, None for no limit. `until`: how long a pause holds at least, if that is known.
    """

    allowed: bool
    renew_at: float
    expires_at: float = NEVER
    lease_id: str = ""
    left: Decimal | None = None
    low: Decimal | None = None
    """Below this many units the next lease is asked for; None where it has been."""
    weights: Mapping[str, Decimal] = field(default_factory=dict)
    used: dict[str, Decimal] = field(default_factory=dict)
    """What the events that name this lease come to, by limited meter, since it was granted first."""
    limited: frozenset[str] = frozenset()
    """The meters that any answer of this lease had a weight for."""
    pause_at: str = CALL
    on_unreachable: str = ALLOW
    reason: str = ""
    until: datetime | None = None

    def over(self, now: float) -> bool:
        """True when it says nothing any more: expired, or used up."""
        return now >= self.expires_at or (self.left is not None and self.left <= 0)

    def follow(self, before: "Lease") -> None:
        """Go on from the answer before, where both are of one lease."""
        if before.lease_id == self.lease_id:
            self.used, self.limited = before.used, before.limited | self.limited

    def go_on(self, before: "Lease") -> None:
        """Go on with the lease before, where no answer came: it names events, and what they come to is told when one
        does."""
        self.lease_id = before.lease_id
        self.follow(before)

    def spend(self, meter: str, quantity: int | float) -> None:
        """Count down what was used; a quantity that does not count costs nothing."""
        weight = self.weights.get(meter)
        if weight and self.left is not None and 0 <= quantity <= 10**15:
            self.left = less(self.left, weight, Decimal(str(quantity)))

    def count(self, meter: str, quantity: int | float) -> None:
        """Keep what was used of a limited meter, to tell it with the next question."""
        if meter in self.limited and 0 <= quantity <= 10**15:
            self.used[meter] = total(self.used.get(meter, Decimal(0)), Decimal(str(quantity)))


def less(left: Decimal, weight: Decimal, quantity: Decimal) -> Decimal:
    """What is left of the units when `quantity` was used."""
    return _EXACT.subtract(left, _EXACT.multiply(weight, quantity))


def total(one: Decimal, other: Decimal) -> Decimal:
    """The sum, exactly."""
    return _EXACT.add(one, other)


def unlimited(now: float, again_s: float) -> Lease:
    """Where nobody limits anything: asked again after `again_s`, in the background."""
    return Lease(True, now + again_s)


def unreachable(now: float, policy: str) -> Lease:
    """Where nobody answers: what the customer's last lease, or the operator, says about that."""
    allowed = policy != PAUSE
    return Lease(allowed, now + RETRY_S, on_unreachable=policy, reason="" if allowed else UNREACHABLE)


def granted(reply: Any, date: str | None, now: float, spent: Mapping[str, Decimal]) -> Lease:
    """The lease of a reply; `date` is its HTTP Date. Raises ValueError for what is no such reply.

    How long it holds is the server's own clock's affair. `spent`: what was used, by meter, since the request was made,
    which the answer cannot know of.
    """
    if not isinstance(reply, Mapping) or reply.get("decision") not in (ALLOW, PAUSE):
        raise ValueError("the answer has no decision")
    lasts_s = _lasts_s(reply.get("expires_at"), date)
    weights = _weights(reply.get("weights"))
    units = None if reply.get("units") is None else _decimal(reply["units"], -MOST)
    lease_id, reason = _text(reply, "lease_id"), _text(reply, "reason")
    allowed = reply["decision"] == ALLOW and (units is None or units > 0)
    lease = Lease(
        allowed=allowed,
        renew_at=now + (lasts_s * RENEW_AT if allowed else min(PAUSED_AGAIN_S, lasts_s)),
        expires_at=now + lasts_s,
        lease_id=lease_id,
        left=units if allowed else None,
        low=None if units is None else _EXACT.multiply(units, Decimal(str(RENEW_AT))),
        weights=weights,
        limited=frozenset(weights),
        pause_at=TASK if reply.get("pause_at") == TASK else CALL,
        on_unreachable=PAUSE if reply.get("on_unreachable") == PAUSE else ALLOW,
        reason="" if allowed else reason or (USED_UP if reply["decision"] == ALLOW else ""),
        until=None if allowed else datetime.now(UTC) + timedelta(seconds=lasts_s),
    )
    for meter, quantity in spent.items():
        if lease.left is not None:
            lease.left = less(lease.left, weights.get(meter, Decimal(0)), quantity)
    return lease


def _lasts_s(expires_at: object, date: str | None) -> float:
    from email.utils import parsedate_to_datetime

    if not isinstance(expires_at, str):
        raise ValueError("the answer has no expires_at")
    end = datetime.fromisoformat(expires_at)
    # A Date is cut to whole seconds: taken as the next one, no lease is held for longer than it was given.
    sent = parsedate_to_datetime(date) + timedelta(seconds=1) if date else datetime.now(UTC)
    if end.tzinfo is None or sent.tzinfo is None:
        raise ValueError("expires_at has no time zone")
    return min(max((end - sent).total_seconds(), 1.0), LONGEST_S)


def _weights(found: object) -> dict[str, Decimal]:
    if found is None:
        return {}
    if not isinstance(found, Mapping) or len(found) > METERS:
        raise ValueError(f"weights are an object: meter -> units, at most {METERS}")
    return {str(meter): _decimal(weight) for meter, weight in found.items()}


def _decimal(found: object, least: int = 0) -> Decimal:
    text = str(found) if isinstance(found, str | int | float) and not isinstance(found, bool) else ""
    number = _EXACT.create_decimal(text if len(text) <= LONGEST_TEXT else "")
    if not number.is_finite() or not least <= number <= MOST:
        raise ValueError(f"{text!r:.40} is no number from {least} to 10^18")
    return number


def _text(reply: Mapping[str, Any], name: str) -> str:
    found = reply.get(name) or ""
    if not isinstance(found, str) or len(found) > LONGEST_TEXT:
        raise ValueError(f"{name} is a text of at most {LONGEST_TEXT} characters")
    return found
