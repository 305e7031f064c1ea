"""What the price models share in reading the price book."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from meterhouse_rating.document import Block
from meterhouse_rating.models.dimensions import DIMENSIONS, is_dimension
from meterhouse_rating.money import chargeable, largest, smallest
from meterhouse_store.numbers import plain

_PRORATIONS = ("day", "second", "none")


@dataclass(frozen=True)
class Scope:
    """What a component of a plan may name: the book's metrics (name -> how it is aggregated), the plan's currency."""

    metrics: Mapping[str, str]
    currency: str
    components: Sequence[str] = field(default_factory=tuple)  # those above it


def read_metric(block: Block, scope: Scope) -> str | None:
    return block.text("metric", choices=tuple(scope.metrics))


def read_amount(
    block: Block, key: str, scope: Scope, *, default: Decimal | None = None, positive: bool = False
) -> Decimal | None:
    """An amount of money that is charged as it stands, so that it needs no rounding."""
    amount = block.number(key, default=default, positive=positive)
    if amount is not None and not chargeable(amount, scope.currency):
        what = f"{plain(amount)} is no amount of {scope.currency}"
        block.wrong(
            what, f"Its unit is {smallest(scope.currency)}, and the largest {largest(scope.currency)}.", key=key
        )
    return amount


def read_of(block: Block, scope: Scope) -> tuple[str, ...] | None:
    """`of`: names of components above this one; None where it is left out."""
    if not block.has("of"):
        return None
    names = block.texts("of")
    for name in names:
        if name not in scope.components:
            above = ", ".join(scope.components) or "there is none"
            block.wrong(f"`{name}` is no component above this one", f"Choose from: {above}; or move it up.", key="of")
    return names


def read_proration(block: Block, default: str = "day") -> str:
    return block.text("prorate", choices=_PRORATIONS, default=default) or default


def read_dimensions(block: Block, key: str = "by") -> tuple[str, ...]:
    """The dimensions at `key`; of a mistyped one the one that was meant, so that prices are read by it."""
    return tuple(dict.fromkeys(_dimension(block, name, key) for name in block.texts(key, default=())))


def _dimension(block: Block, name: str, key: str) -> str:
    if is_dimension(name):
        return name
    near = difflib.get_close_matches(name, DIMENSIONS, n=1)
    listed = f"Choose from: {', '.join(DIMENSIONS)}; or write attributes.NAME for an attribute of your own."
    block.wrong(f"`{name}` is no dimension of usage", f"Did you mean {near[0]}?" if near else listed, key=key)
    return near[0] if near else name
