"""Credits: grants, the exact order in which they are used up, top-ups, and what becomes of a rest. Pure functions.

The order: `priority` (lower first), then what expires first (never: last), then promotional before bought, then granted
first, then the id. Credits pay usage lines in the order of the lines, never fees, and never more than there is.

A grant pays the usage of every period in which it holds for a moment: granted before the period's end, and not expired
at its start. Its rest goes when the period in which it expires is closed: up to `rollover_minor` of it becomes a new
grant that holds as long again and is not rolled over a second time; the rest is lost. So is what comes back later.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from meterhouse_rating.ids import digest
from meterhouse_rating.periods import Period

BOUGHT: Final = "bought"
PROMOTIONAL: Final = "promotional"

BEFORE_GRANTS: Final = "before-grants"
"""The grant that stands for credits from before they were kept by grants."""

_NEVER: Final = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Grant:
    """Credits of one origin, in minor units: what is left of them, and the rules they follow."""

    grant_id: str
    kind: str
    left_minor: int
    granted_at: datetime
    expires_at: datetime | None = None
    priority: int = 0
    rollover_minor: int = 0
    expired: int = 0
    """How often a rest of it has expired and was posted."""

    def holds_in(self, period: Period) -> bool:
        return self.granted_at < period.end and (self.expires_at is None or self.expires_at > period.start)

    def canonical(self) -> list[Any]:
        """Everything that can change a rating, as JSON."""
        expires = None if self.expires_at is None else self.expires_at.isoformat()
        rules = [expires, self.priority, self.rollover_minor]
        return [self.grant_id, self.kind, self.left_minor, self.granted_at.isoformat(), *rules]


@dataclass(frozen=True)
class TopUp:
    """Buy `amount_minor` whenever less than `below_minor` would be left, at most `limit` times in a period."""

    below_minor: int
    amount_minor: int
    limit: int

    def times(self, usable_minor: int, payable_minor: int) -> int:
        """How often it is bought: so that, all usage paid, at least `below_minor` is left, if the limit lets it."""
        missing = self.below_minor + payable_minor - usable_minor
        return 0 if missing <= 0 else min(self.limit, -(-missing // self.amount_minor))


class Use(NamedTuple):
    """So much of a grant pays for one line."""

    line: int
    grant_id: str
    amount_minor: int


class Ending(NamedTuple):
    """A grant that has expired: what is lost of it, and the grant that carries the rest on, if any."""

    grant: Grant
    lost_minor: int
    carried: Grant | None


def order(grants: Iterable[Grant]) -> list[Grant]:
    """The grants as they are used up."""
    return sorted(
        grants,
        key=lambda it: (it.priority, it.expires_at or _NEVER, it.kind == BOUGHT, it.granted_at, it.grant_id),
    )


def usable(grants: Iterable[Grant], period: Period) -> list[Grant]:
    """The grants that pay for the period, in order."""
    return order(it for it in grants if it.left_minor > 0 and it.holds_in(period))


def burn(grants: Sequence[Grant], payable: Sequence[int]) -> list[Use]:
    """How grants, in their order, pay lines, in theirs; an amount of zero or less needs nothing."""
    uses: list[Use] = []
    left = [it.left_minor for it in grants]
    at = 0
    for line, amount in enumerate(payable):
        open_amount = amount
        while open_amount > 0 and at < len(grants):
            paid = min(open_amount, left[at])
            if paid > 0:
                uses.append(Use(line, grants[at].grant_id, paid))
            left[at] -= paid
            open_amount -= paid
            if left[at] <= 0:
                at += 1
    return uses


def after(grants: Iterable[Grant], used: Mapping[str, int]) -> list[Grant]:
    """The grants when so much of each was used."""
    return [replace(it, left_minor=it.left_minor - used.get(it.grant_id, 0)) for it in grants]


def endings(grants: Iterable[Grant], moment: datetime) -> list[Ending]:
    """The grants that expire up to a moment with something left, in order."""
    found = []
    for it in order(grants):
        if it.expires_at is None or it.expires_at > moment or it.left_minor <= 0:
            continue
        carried = 0 if it.expired else min(it.rollover_minor, it.left_minor)
        following = None
        if carried > 0:
            until = it.expires_at + (it.expires_at - it.granted_at)
            name = digest(["grant", "rollover", it.grant_id])
            following = Grant(name, it.kind, carried, it.expires_at, until, it.priority)
        found.append(Ending(it, it.left_minor - carried, following))
    return found


def carried_over(grants: Iterable[Grant], moment: datetime) -> list[Grant]:
    """The grants as they stand at a moment: what has expired is gone, or carried on."""
    standing = list(grants)
    while ended := endings(standing, moment):
        gone = {it.grant.grant_id for it in ended}
        standing = [it for it in standing if it.grant_id not in gone]
        standing += [it.carried for it in ended if it.carried is not None]
    return order(standing)
