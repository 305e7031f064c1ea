"""What single uses of the log cost, by the rated periods they are in: in Python for pages, in SQL for downloads."""

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, TypeVar

from meterhouse_portal.account import MINE, Account
from meterhouse_rating.periods import Period
from meterhouse_rating.priced_parts import Begun, begin
from meterhouse_rating.queries import EPOCH, kind_columns, nanoseconds, window_parameters
from meterhouse_rating.settle import WatermarkWentBack
from meterhouse_rating.shares import AVERAGE, DIGITS, EXACT, FREE, NOT_RATED, SHOWN, Kind, Part, UnitPrice
from meterhouse_rating.sums import By, Sums
from meterhouse_rating.usage import Wanted
from meterhouse_rating.versions import NotThere

_Found = TypeVar("_Found")

MAX_KINDS: Final = 1500
"""So many kinds of usage are priced in a download: as many as fit into a request to the warehouse."""
TOO_MANY_KINDS: Final = "too_many_kinds"

_NONE: Final = UnitPrice(NOT_RATED)
_FOREVER_NS: Final = 2**62
_SEPARATOR: Final = "\x1f"

# Every part of the texts below is a constant, or made by queries.py of a closed list.
# ruff: noqa: S608


@dataclass(frozen=True)
class UsePrice:
    """What a use costs, in major units. `amount` None: nothing of it has a price; `unpriced`: meter -> why not.

    `how`: EXACT, AVERAGE where any part is an average, FREE where all of it is free by the price list.
    """

    amount: Decimal | None
    currency: str
    how: str
    unpriced: Mapping[str, str]
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Use:
    """What an event consumed of a meter, and what that costs."""

    meter: str
    quantity: Decimal
    price: UsePrice


@dataclass(frozen=True)
class InWarehouse:
    """Columns `price`, `currency`, `price_is` and `line` for a query of `usage`, and the parameters that they need."""

    columns: str
    bound: dict[str, Any]


@dataclass(frozen=True)
class Prices:
    """The rated periods that a period of the log touches, and what prices in them depend on."""

    parts: Sequence[Part]
    wanted: Wanted
    columns: str
    """What `use` has to be told of an event."""
    bound: Mapping[str, Any]
    """Parameters of `columns`."""
    _known: dict[Hashable, UnitPrice] = field(default_factory=dict, repr=False, compare=False)

    @property
    def _kind(self) -> list[str]:
        return ["meter", *kind_columns(self.wanted.dimensions, tasks=self.wanted.tasks)]

    def use(self, event_time: datetime, told: Sequence[Any]) -> Use:
        """The event of that time, of which `columns` were told."""
        quantity, known_ns, meter, status, task, *values = told
        kind = Kind(meter, status, task, self._dimensions(values), event_time, _moment(known_ns))
        part, price = self._priced(kind)
        amount = price.of(quantity)
        unpriced = {meter: price.how} if amount is None and price.how != FREE else {}
        currency = (part.currency if part is not None else None) or ""
        return Use(
            meter, quantity, UsePrice(amount, currency, price.how, unpriced, (price.line,) if price.line else ())
        )

    def in_warehouse(self, mine: Account, period: Period, narrowed: str, bound: Mapping[str, Any]) -> InWarehouse:
        """The prices of all the events of a period, narrowed as the log is, as columns of a query."""
        segments = self._segments()
        limits = [_FOREVER_NS, *(_limit(self._part(start)) for start in segments)]
        segment = "arrayCount(edge -> edge <= toUnixTimestamp64Nano(event_time), {edges:Array(Int64)})"
        late = f"toUnixTimestamp64Nano(known_at) > arrayElement({{limits:Array(Int64)}}, {segment} + 1)"
        mine_bound = {**self.bound, **bound, "edges": [nanoseconds(it) for it in segments], "limits": limits}
        keys = [f"toString({segment})", f"toString({late})", *self._kind]
        rows = mine.ask(
            f"SELECT DISTINCT {', '.join(keys)} FROM usage WHERE {MINE}{narrowed} LIMIT {MAX_KINDS}",
            period,
            **mine_bound,
        )
        places: dict[tuple[str, UnitPrice], int] = {("", UnitPrice(TOO_MANY_KINDS)): 1}
        found: dict[int, int] = {}
        for row in rows:
            at, is_late, meter, status, task, *values = row
            start = segments[int(at) - 1] if int(at) else EPOCH
            known = _moment(_FOREVER_NS) if is_late == "1" else EPOCH
            part, price = self._priced(Kind(meter, status, task, self._dimensions(values), start, known))
            name = ((part.currency if part is not None else None) or "", price)
            found[_key(row)] = places.setdefault(name, len(places) + 1)
        text = f"arrayStringConcat([{', '.join(keys)}], '\\x1f')"
        hashed = f"reinterpretAsUInt64(substring(MD5({text}), 1, 8))"
        place = f"transform({hashed}, {{kinds:Array(UInt64)}}, {{places:Array(UInt32)}}, toUInt32(1))"
        units = "if(arrayElement({of_events:Array(UInt8)}, place) = 1, toDecimal128(1, 9), quantity)"
        cost = f"arrayElement({{each:Array(Decimal(76, {DIGITS}))}}, place) * {units}"
        has_price = "arrayElement({priced:Array(UInt8)}, place) = 1"
        columns = (
            f"{place} AS place, if({has_price}, accurateCastOrNull({cost}, 'Decimal(38, {SHOWN})'), NULL) AS price, "
            "arrayElement({currencies:Array(String)}, place) AS currency, "
            "arrayElement({hows:Array(String)}, place) AS price_is, "
            "arrayElement({lines:Array(String)}, place) AS line"
        )
        listed = list(places)
        return InWarehouse(
            columns,
            mine_bound
            | {
                # An empty array has no values to tell which prices are meant: 0 is no key.
                "kinds": list(found) or [0],
                "places": list(found.values()) or [1],
                "each": [it.each or Decimal(0) for _, it in listed],
                "priced": [int(it.each is not None) for _, it in listed],
                "of_events": [int(it.of_events) for _, it in listed],
                "currencies": [currency for currency, _ in listed],
                "hows": [it.how for _, it in listed],
                "lines": [it.line for _, it in listed],
            },
        )

    def _priced(self, kind: Kind) -> tuple[Part | None, UnitPrice]:
        part = self._part(kind.event_time)
        if part is None:
            return None, _NONE
        # The uses of a page are of a few kinds, and finding the line of one takes longer than all else about it.
        alike = (part.period, part.alike(kind))
        if alike not in self._known:
            self._known[alike] = part.unit_price(kind)
        return part, self._known[alike]

    def _part(self, at: datetime) -> Part | None:
        return next((it for it in self.parts if it.period.start <= at < it.period.end), None)

    def _dimensions(self, values: Sequence[Any]) -> tuple[tuple[str, str], ...]:
        return tuple(zip(self.wanted.dimensions, map(str, values), strict=True))

    def _segments(self) -> list[datetime]:
        """Where something about prices changes: parts begin and end, trials end."""
        edges = {moment for it in self.parts for moment in (it.period.start, it.period.end, it.trial_end) if moment}
        return sorted(edges)


@dataclass(frozen=True)
class Pricing:
    """What the prices of a period depend on, before its usage is asked for; `begun` None: there is no price book."""

    mine: Account
    period: Period
    begun: Begun | None
    wanted: Wanted

    @property
    def columns(self) -> str:
        """What `Prices.use` has to be told of an event."""
        kind = ["meter", *kind_columns(self.wanted.dimensions, tasks=self.wanted.tasks)]
        return ", ".join(["quantity", "toUnixTimestamp64Nano(known_at)", *kind])

    @property
    def bound(self) -> dict[str, Any]:
        """Parameters of `columns`."""
        own = window_parameters(self.mine.namespace, self.period, self.wanted.dimensions, as_of=self.mine.now)
        return {name: it for name, it in own.items() if name not in self.mine.bound(self.period)}

    def ask(self, *more: By) -> Sums | None:
        """The usage that prices depend on, and sums of the period by `more`; None where there is nothing to ask for."""
        if self.begun is not None:
            return self.begun.ask(*more, source=self.mine.source)
        return self.mine.sums(self.period, *more) if more else None

    def soonest(self, ask: Callable[["Pricing"], _Found]) -> _Found:
        """What `ask` finds of the view that is planned the soonest (Account.soonest)."""
        return self.mine.soonest(lambda mine: ask(replace(self, mine=mine)))

    def prices(self, told: Sums | None) -> Prices:
        """What the uses cost; without a price book, or while the warehouse is being made anew: not known."""
        try:
            parts = [] if self.begun is None else self.begun.parts(told)
        except WatermarkWentBack:
            parts = []
        return Prices(parts, self.wanted, self.columns, self.bound)


def pricing(mine: Account, period: Period) -> Pricing:
    """How the uses of a period are priced."""
    try:
        begun = begin(mine.world(), mine.customer_id, period)
    except NotThere:
        return Pricing(mine, period, None, Wanted())
    return Pricing(mine, period, begun, begun.wanted)


def prices_of(mine: Account, period: Period) -> Prices:
    """What the uses of a period cost."""
    made = pricing(mine, period)
    return made.prices(made.soonest(lambda it: it.ask()))


def summed(uses: Sequence[Use]) -> UsePrice:
    """What all of the uses of a call cost together."""
    amounts = [it.price.amount for it in uses if it.price.amount is not None]
    hows = {it.price.how for it in uses}
    how = next((it for it in (AVERAGE, EXACT, FREE) if it in hows), NOT_RATED)
    unpriced = {meter: why for it in uses for meter, why in it.price.unpriced.items()}
    currency = next((it.price.currency for it in uses if it.price.currency), "")
    lines = tuple(dict.fromkeys(line for it in uses for line in it.price.lines))
    return UsePrice(sum(amounts, Decimal(0)) if amounts else None, currency, how, unpriced, lines)


def _limit(part: Part | None) -> int:
    return _FOREVER_NS if part is None or part.as_of is None else nanoseconds(part.as_of)


def _key(row: Sequence[Any]) -> int:
    """The same eight bytes as in the query."""
    text = _SEPARATOR.join(map(str, row)).encode()
    return int.from_bytes(hashlib.md5(text, usedforsecurity=False).digest()[:8], "little")


def _moment(nanoseconds_since_1970: int) -> datetime:
    return datetime.fromtimestamp(nanoseconds_since_1970 // 10**9, UTC).replace(
        microsecond=nanoseconds_since_1970 % 10**9 // 1000
    )
