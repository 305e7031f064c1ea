"""Which cost usage has at which time: entries and pinned catalogues go in, dated rates come out. Nothing else is read.

Order: an entry (negotiated or own) that matches, by rank; the catalogue in force when the event happened; what is
declared to cost nothing; else the cost is unknown, with the reason. It is never 0 because nothing is known.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from meterhouse_rating.costs_book import CostBook, Pinned
from meterhouse_rating.costs_catalogue import METERS, NO_CATALOGUE, Price, Unknown
from meterhouse_rating.costs_entries import DECLARED, Entry, Usage
from meterhouse_store.registry import ALWAYS

NO_ENTRY: Final = "no_entry"


@dataclass(frozen=True)
class Rate:
    """What the usage costs from a moment on, until the same usage's next rate."""

    usage: Usage
    valid_from: datetime
    cost: Price | Unknown


def rates(book: CostBook, wanted: Iterable[Usage]) -> list[Rate]:
    """The rates of each usage, from 1970 on, in the order of time; neighbours differ."""
    pinned = sorted(book.catalogues, key=lambda it: (it.valid_from, it.recorded_at, it.catalogue_id))
    found = []
    for usage in wanted:
        mine = sorted((it for it in book.entries if it.matches(usage)), key=Entry.rank, reverse=True)
        last: Price | Unknown | None = None
        for moment in _moments(mine, pinned, usage):
            cost = _at(mine, pinned, usage, moment)
            if cost != last:
                found.append(Rate(usage, moment, cost))
                last = cost
    return found


def named(book: CostBook) -> tuple[set[str], set[str]]:
    """The customers and agents that entries name: usage of all others has the same cost whosever it is."""
    entries = book.entries
    return {it.customer_id for it in entries if it.customer_id}, {it.agent_id for it in entries if it.agent_id}


def _moments(entries: Sequence[Entry], pinned: Sequence[Pinned], usage: Usage) -> list[datetime]:
    """Every moment at which the cost may change."""
    found = {ALWAYS}
    for it in entries:
        found |= {it.valid_from} | ({it.valid_until} if it.valid_until is not None else set())
    for catalogue in pinned:
        found.add(catalogue.valid_from)
        if usage.meter in METERS:
            found |= set(catalogue.read().starts(usage))
    return sorted(it for it in found if it >= ALWAYS)


def _at(entries: Sequence[Entry], pinned: Sequence[Pinned], usage: Usage, moment: datetime) -> Price | Unknown:
    covering = [it for it in entries if it.covers(moment)]
    own = next((it for it in covering if it.source != DECLARED), None)
    if own is not None:
        return own.cost()
    listed: Price | Unknown = Unknown(NO_ENTRY)
    if usage.meter in METERS:
        in_force = [it for it in pinned if it.valid_from <= moment]
        listed = in_force[-1].read().price(usage, moment.date()) if in_force else Unknown(NO_CATALOGUE)
    if isinstance(listed, Price):
        return listed
    declared = next((it for it in covering if it.source == DECLARED), None)
    return listed if declared is None else declared.cost()
