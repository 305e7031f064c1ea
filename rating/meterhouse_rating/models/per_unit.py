"""A price per unit, optionally by dimension values such as the model.

model: per_unit
metric: output_tokens
per: 1_000_000
price: 10.00                    # one price for all, or:
by: [model]
prices:                         # the first line that matches counts; a * at the end matches any rest
  - {model: gpt-4o-mini*, price: 0.60}
default: 12.00                  # for everything else; `none` leaves it unrated
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from meterhouse_rating.charges import Before, Charge, Charged, Portion, by_meter, total
from meterhouse_rating.document import Block
from meterhouse_rating.models.dimensions import DIMENSIONS
from meterhouse_rating.tiers import read_per
from meterhouse_store.numbers import plain


@dataclass(frozen=True)
class Price:
    """A price for the usage whose dimensions match the patterns; no patterns match everything."""

    patterns: tuple[str, ...]
    price: Decimal
    line: int

    def matches(self, values: Sequence[str]) -> bool:
        return all(_matches(pattern, value) for pattern, value in zip(self.patterns, values, strict=True))

    def covers(self, other: "Price") -> bool:
        """Whether everything that `other` matches is matched by this one too."""
        return all(_covers(mine, its) for mine, its in zip(self.patterns, other.patterns, strict=True))


@dataclass(frozen=True)
class PerUnit:
    name: str
    line: int
    metric: str
    per: Decimal
    dimensions: tuple[str, ...]
    prices: tuple[Price, ...]
    memory: str = "month"

    @property
    def metrics(self) -> tuple[str, ...]:
        return (self.metric,)

    def charge(self, portions: Sequence[Portion], before: Before) -> Charged:
        """One charge per combination of the dimensions; a unit costs the same whatever came before."""
        groups: dict[tuple[str, ...], list[Portion]] = {}
        for portion in portions:
            known = dict(portion.dimensions)
            groups.setdefault(tuple(known[name] for name in self.dimensions), []).append(portion)
        charges: list[Charge] = []
        unpriced: list[tuple[Portion, str]] = []
        for values, group in sorted(groups.items()):
            price = next((price for price in self.prices if price.matches(values)), None)
            if price is None:
                unpriced += [(portion, self._line_to_add(values)) for portion in group]
            else:
                charges.append(self._charge(values, group, price))
        return Charged(tuple(charges), tuple(unpriced))

    def _charge(self, values: tuple[str, ...], group: Sequence[Portion], price: Price) -> Charge:
        quantity = total(group)
        amount = quantity * price.price / self.per
        named = ", ".join(value or f"no {name}" for name, value in zip(self.dimensions, values, strict=True))
        step = {
            "quantity": plain(quantity),
            "price": plain(price.price),
            "per": plain(self.per),
            "amount": plain(amount),
            "book_line": price.line,
        }
        return Charge(
            kind="usage",
            description=f"{self.name} ({named})" if named else self.name,
            quantity=quantity,
            unit=group[0].unit,
            amount=amount,
            steps=(step,),
            book_line=price.line,
            metric=self.metric,
            dimensions=tuple(zip(self.dimensions, values, strict=True)),
            meters=by_meter(group),
        )

    def _line_to_add(self, values: tuple[str, ...]) -> str:
        pairs = ", ".join(f"{name}: {value!r}" for name, value in zip(self.dimensions, values, strict=True))
        return f"below `prices` of the component `{self.name}` (line {self.line}) add: - {{{pairs}, price: ...}}"


def read(name: str, block: Block, metrics: Sequence[str], currency: str) -> PerUnit | None:
    """The component, or None when it cannot be made; mistakes are collected by the block."""
    metric = block.text("metric", choices=tuple(metrics))
    per = read_per(block)
    dimensions = tuple(dict.fromkeys(_dimension(block, name) for name in block.texts("by", default=())))
    prices = _prices_by(block, dimensions) if dimensions else _one_price(block)
    return None if metric is None else PerUnit(name, block.line, metric, per, dimensions, prices)


def _dimension(block: Block, name: str) -> str:
    """The dimension of that name; of a mistyped one the one that was meant, so that the prices are read by it."""
    if name in DIMENSIONS:
        return name
    near = difflib.get_close_matches(name, DIMENSIONS, n=1)
    remedy = f"Did you mean {near[0]}?" if near else f"Choose from: {', '.join(DIMENSIONS)}."
    block.wrong(f"`{name}` is no dimension of usage", remedy, key="by")
    return near[0] if near else name


def _one_price(block: Block) -> tuple[Price, ...]:
    price = block.number("price")
    return () if price is None else (Price((), price, block.line_of("price")),)


def _prices_by(block: Block, dimensions: tuple[str, ...]) -> tuple[Price, ...]:
    prices: list[Price] = []
    for entry in block.list_of_blocks("prices"):
        patterns = tuple(entry.text(dimension, default="*") or "*" for dimension in dimensions)
        if any("*" in pattern[:-1] for pattern in patterns):
            entry.wrong("a * that is not at the end", "Write the beginning of the name and then *.")
        amount = entry.number("price")
        entry.done()
        if amount is None:
            continue
        price = Price(patterns, amount, entry.line)
        hiding = next((earlier for earlier in prices if earlier.covers(price)), None)
        if hiding:
            entry.wrong(f"never reached: line {hiding.line} matches first", "Move it above that line, or remove it.")
        prices.append(price)
    if block.text("default") != "none":
        rest = block.number("default", default=Decimal(0))
        if rest is not None and block.has("default"):
            prices.append(Price(("*",) * len(dimensions), rest, block.line_of("default")))
    return tuple(prices)


def _matches(pattern: str, value: str) -> bool:
    return value.startswith(pattern[:-1]) if pattern.endswith("*") else value == pattern


def _covers(pattern: str, other: str) -> bool:
    if pattern.endswith("*"):
        return other.rstrip("*").startswith(pattern[:-1])
    return pattern == other
