"""One's own costs: what was negotiated, what tools and own units ask, and what is declared to cost nothing.

An entry says which usage it is of and what that costs. It is never changed: a later one supersedes it, and a retraction
takes it back.
"""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from meterhouse_rating.costs_catalogue import STANDARD_TIERS, Asked, Price
from meterhouse_rating.ids import digest
from meterhouse_store.numbers import plain

NEGOTIATED: Final = "negotiated"
OWN: Final = "own"
DECLARED: Final = "declared"
SOURCES: Final = (NEGOTIATED, OWN, DECLARED)

MATCHED: Final = (
    "customer_id",
    "agent_id",
    "tool",
    "service_tier",
    "cache_ttl",
    "modality",
    "model",
    "provider",
    "meter",
)
"""What an entry may name, the most important first: of two entries the one that says more about the first of these that
differ prices the usage; of two that say as much, the one recorded last."""

MAX_DECIMALS: Final = 18
MAX_PRICE: Final = Decimal(10) ** 12
MAX_PER: Final = 10**12


@dataclass(frozen=True)
class Usage(Asked):
    """Usage as costs see it: what a catalogue goes by, and tool, agent and customer where an entry names any."""

    tool: str = ""
    agent_id: str = ""
    customer_id: str = ""


@dataclass(frozen=True)
class Entry:
    """`price` of `currency` per `per` units of the usage that it names, for events of [valid_from, valid_until)."""

    meter: str
    price: Decimal
    currency: str
    valid_from: datetime
    per: int = 1
    source: str = OWN
    provider: str = ""
    model: str = ""
    modality: str = ""
    cache_ttl: str = ""
    service_tier: str = ""
    tool: str = ""
    agent_id: str = ""
    customer_id: str = ""
    valid_until: datetime | None = None
    recorded_at: datetime | None = None
    who: str = ""
    why: str = ""
    entry_id: str = ""

    def name(self, namespace: str, retracted: int) -> str:
        """The entry's one name; `retracted`: how often it was taken back before."""
        said = [getattr(self, it) for it in MATCHED]
        until = None if self.valid_until is None else self.valid_until.isoformat()
        money = [plain(self.price), self.per, self.currency, self.valid_from.isoformat(), until, self.source]
        return digest(["cost entry", namespace, said, money, retracted])

    def covers(self, moment: datetime) -> bool:
        return self.valid_from <= moment and (self.valid_until is None or moment < self.valid_until)

    def matches(self, usage: Usage) -> bool:
        """Whether it is a cost of this usage. One that names no service tier is of the standard tier."""
        if not self.service_tier and usage.service_tier.lower() not in STANDARD_TIERS:
            return False
        return all(_matches(it, getattr(self, it), getattr(usage, it)) for it in MATCHED if getattr(self, it))

    def rank(self) -> tuple[Any, ...]:
        """Of the entries that match, the one of the highest rank counts."""
        said = tuple(_weight(getattr(self, it)) for it in MATCHED)
        return said, self.recorded_at, self.entry_id

    def cost(self) -> Price:
        return Price(self.price, self.per, self.currency, self.entry_id, free=not self.price)


def mistakes(entry: Entry, currencies: frozenset[str]) -> list[str]:
    """All that is wrong with an entry, each with what to do."""
    found = []
    if entry.price < 0 or entry.price > MAX_PRICE:
        found.append(f"a cost is 0 or more, and at most {MAX_PRICE:,}")
    if -int(entry.price.normalize().as_tuple().exponent) > MAX_DECIMALS:
        found.append(f"a cost has at most {MAX_DECIMALS} decimals: write it --per more units")
    if not 1 <= entry.per <= MAX_PER:
        found.append(f"--per is a whole number from 1 to {MAX_PER:,}")
    if entry.currency not in currencies:
        found.append(f"{entry.currency!r} is no currency: write the three letters of ISO 4217, such as USD")
    if entry.valid_until is not None and entry.valid_until <= entry.valid_from:
        found.append("it ends before it begins")
    if entry.source not in SOURCES:
        found.append(f"{entry.source!r} is no source: {', '.join(SOURCES)}")
    if entry.source == DECLARED and entry.price:
        found.append("what is declared to cost nothing has the cost 0")
    for name in MATCHED:
        text = getattr(entry, name)
        if name in ("customer_id", "agent_id") and "*" in text:
            found.append(f"{name} {text!r}: name one, or leave it out for all")
        elif "*" in text[:-1]:
            found.append(f"{name} {text!r}: a * stands at the end, for any rest")
        if len(text) > 256:
            found.append(f"{name} has at most 256 characters")
    if not entry.meter:
        found.append("name the meter")
    if not entry.why.strip():
        found.append("say why: it is kept with the entry")
    return found


def _matches(name: str, pattern: str, value: str) -> bool:
    # As in catalogues, providers and models are the same however they are capitalised.
    mine, its = (pattern.lower(), value.lower()) if name in ("provider", "model") else (pattern, value)
    return its.startswith(mine[:-1]) if mine.endswith("*") else its == mine


def _weight(pattern: str) -> tuple[int, int]:
    """An exact name says more than the beginning of one, a long beginning more than a short one."""
    if not pattern.rstrip("*"):
        return 0, 0
    return (1, len(pattern)) if pattern.endswith("*") else (2, 0)
