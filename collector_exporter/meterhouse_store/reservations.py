"""What agents hold of limits, and what may be handed out. Pure: rows of `allowances` and `leases` in, an answer out.

A limit's `left` is the limit less all usage that is in the warehouse. Of that is reserved, for each lease,

    what it was granted with its last answer, plus what its agent had used until then, less what of it has arrived

so that at any moment usage that arrived + usage on its way + what may still be used is at most the limit. A lease that
was given back reserves only what has not arrived yet; one that ended otherwise stays reserved until its usage has
arrived, or until LAPSE after its end, when it is taken for one that was not used.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import ROUND_CEILING, Context, Decimal
from typing import Any, Final

LASTS: Final = timedelta(seconds=60)
"""An agent that cannot be reached goes on at most this long with what it was granted."""
PAUSE_LASTS: Final = timedelta(seconds=3)
"""A paused agent that makes a call asks again after this time: so long does the end of a pause take to reach it."""
LAPSE: Final = timedelta(minutes=15)
PARTS: Final = 8
"""A lease is an eighth of what is free, at least."""
RESERVED: Final = "reserved"
"""Reason of a pause where all that is left is in other agents' leases: it ends when they are settled."""

_EXACT: Final = Context(prec=60)
_UP: Final = Context(prec=30, rounding=ROUND_CEILING)


@dataclass(frozen=True)
class Limit:
    """One limit, in units of its own: `left` of it, the `least` share worth handing out, and what one of a meter costs.

    `agent_id` '' is about all agents of the customer.
    """

    name: str
    agent_id: str
    left: Decimal
    least: Decimal
    weights: Mapping[str, Decimal]
    reason: str

    def is_about(self, agent_id: str) -> bool:
        return self.agent_id in ("", agent_id)

    def units(self, quantities: Mapping[str, Decimal]) -> Decimal:
        """What so much of the meters comes to in this limit's units."""
        found = Decimal(0)
        for meter, quantity in quantities.items():
            found = _EXACT.fma(self.weights.get(meter, Decimal(0)), quantity, found)
        return found

    def as_json(self) -> dict[str, Any]:
        numbers = {"left": str(self.left), "least": str(self.least)}
        weights = {meter: str(weight) for meter, weight in sorted(self.weights.items())}
        return {"name": self.name, "agent_id": self.agent_id, **numbers, "weights": weights, "reason": self.reason}

    @classmethod
    def of_json(cls, found: Mapping[str, Any]) -> "Limit":
        weights = {meter: Decimal(weight) for meter, weight in found["weights"].items()}
        numbers = Decimal(found["left"]), Decimal(found["least"])
        return cls(found["name"], found["agent_id"], *numbers, weights, found["reason"])


@dataclass(frozen=True)
class Held:
    """A lease as it stands: units `granted` by limit, quantities `used` and `arrived` by meter."""

    lease_id: str
    agent_id: str
    expires_at: datetime
    granted: Mapping[str, Decimal] = field(default_factory=dict)
    used: Mapping[str, Decimal] = field(default_factory=dict)
    arrived: Mapping[str, Decimal] = field(default_factory=dict)

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> "Held":
        """Of a row of `leases`."""
        found = [{name: Decimal(it) for name, it in row[what].items()} for what in ("granted", "used", "arrived")]
        return cls(row["lease_id"], row["agent_id"], row["expires_at"], *found)

    def reserved(self, limit: Limit, now: datetime) -> Decimal:
        """What it keeps of the limit from everybody else."""
        if not limit.is_about(self.agent_id) or now >= self.expires_at + LAPSE:
            return Decimal(0)
        on_its_way = _EXACT.subtract(limit.units(self.used), limit.units(self.arrived))
        return max(Decimal(0), _EXACT.add(self.granted.get(limit.name, Decimal(0)), on_its_way))


@dataclass(frozen=True)
class Answer:
    """What an agent is told, and the units by limit that are reserved for it from now on."""

    allowed: bool
    reason: str | None = None
    units: Decimal | None = None
    weights: Mapping[str, Decimal] = field(default_factory=dict)
    granted: Mapping[str, Decimal] = field(default_factory=dict)


def free(limit: Limit, held: Sequence[Held], now: datetime) -> Decimal:
    """What is left of a limit and not reserved."""
    left = limit.left
    for it in held:
        left = _EXACT.subtract(left, it.reserved(limit, now))
    return left


def kept(limits: Sequence[Limit], before: Held, used: Mapping[str, Decimal]) -> dict[str, Decimal]:
    """What is left of a lease's last grant, now that so much is used: its agent goes on with it until the answer."""
    since = {meter: quantity - before.used.get(meter, Decimal(0)) for meter, quantity in used.items()}
    left = {it.name: _EXACT.subtract(before.granted.get(it.name, Decimal(0)), it.units(since)) for it in limits}
    return {name: units for name, units in left.items() if units > 0}


def decide(
    limits: Sequence[Limit], held: Sequence[Held], now: datetime, keeps: Mapping[str, Decimal] | None = None
) -> Answer:
    """What to hand out of the limits of one agent. In `held` the lease that is renewed stands without a grant.

    What it `keeps` of its last grant is not taken away, whatever else is left: it may be used already.

    Several limits become one number: a lease of 1, of which each meter costs as much as it takes of the limit that it
    comes nearest to; so none of them can be passed before the lease is used up.
    """
    shares: dict[str, Decimal] = {}
    for limit in limits:
        there, own = free(limit, held, now), (keeps or {}).get(limit.name, Decimal(0))
        if there <= 0 and own <= 0:
            return Answer(False, limit.reason if limit.left <= 0 else RESERVED)
        shares[limit.name] = max(own, min(there, max(_UP.divide(there, Decimal(PARTS)), limit.least)))
    if not limits:
        return Answer(True)
    if len(limits) == 1:
        return Answer(True, None, shares[limits[0].name], limits[0].weights, shares)
    weights: dict[str, Decimal] = {}
    for limit in limits:
        for meter, weight in limit.weights.items():
            part = _UP.divide(weight, shares[limit.name])
            weights[meter] = max(part, weights.get(meter, Decimal(0)))
    return Answer(True, None, Decimal(1), weights, shares)
