"""Which months a version of the price book prices beside the others, and which open ones a new version changes."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from meterhouse_rating import known as what_is_known
from meterhouse_rating.periods import Period, month_of, next_month, short
from meterhouse_rating.versions import Version, in_force
from meterhouse_rating.windows import asked_for
from meterhouse_rating.world import World


@dataclass(frozen=True)
class Reach:
    """The months (UTC) that a version prices: `first`, and all up to `until` (None: no end), which `then` prices."""

    first: Period
    until: datetime | None = None
    then: Version | None = None


def reach(version: Version, known: Sequence[Version]) -> Reach | None:
    """The months of a version, published or `versions.following`; None where others price all of them."""
    every = [*(it for it in known if it.version != version.version), version]
    month = month_of(version.valid_from, "UTC")
    # Who does not price the first month that begins while it is valid prices none after it: what came before it stays.
    first = next((it for it in (month, month_of(month.end, "UTC")) if in_force(every, it) is version), None)
    if first is None:
        return None
    later = [it.valid_from for it in every if it.valid_from > version.valid_from]
    if not later:
        return Reach(first)
    until = next_month(min(later), "UTC")
    return Reach(first, until, in_force(every, month_of(until, "UTC")))


def told(version: Version, known: Sequence[Version], option: str = "`--valid-from {}`") -> str:
    """A sentence on which periods the version prices; `option`: how another valid-from, which is put in, is said."""
    found = reach(version, known)
    every = [*(it for it in known if it.version != version.version), version]
    if found is None:
        last = max(every, key=lambda it: (it.valid_from, it.version))
        day = short(last.valid_from.replace(microsecond=0))
        return (
            f"It prices no month: version {last.version}, valid from {day}, prices those that begin then or later "
            f"({option.format(day)} or later prices months again)."
        )
    text = "It prices periods that begin then or later"
    month = month_of(version.valid_from, "UTC")
    other = in_force(every, month)
    if other is not None and other is not version:
        name = f"{month.start:%Y-%m}"
        text += f"; {name} stays on version {other.version} ({option.format(f'{name}-01')} prices {name} too)"
    if found.until is not None and found.then is not None:
        text += f"; from {found.until:%Y-%m} on version {found.then.version} does"
    return f"{text}."


def open_months(world: World, version: Version) -> dict[str, int]:
    """The months that have begun, are not closed, and would get other prices by the version: `2026-10` -> customers."""
    now = world.now()
    terms = what_is_known.terms(world)
    found: dict[str, set[str]] = {}
    for window in asked_for(world, None, None, terms, now):
        if in_force([*terms.versions, version], window.period) is version:
            middle = window.period.start + (window.period.end - window.period.start) / 2
            found.setdefault(f"{middle.astimezone(UTC):%Y-%m}", set()).update(window.members)
    return {month: len(found[month]) for month in sorted(found)}
