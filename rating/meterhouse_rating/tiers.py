"""Graduated tiers: each unit is priced by the tier that its place in the period falls in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from meterhouse_rating.charges import step
from meterhouse_rating.document import Block
from meterhouse_store.numbers import plain


@dataclass(frozen=True)
class Tier:
    """Units up to and including `up_to` (None: all the rest) cost `price` per `per` units, and `flat` for the first."""

    up_to: Decimal | None
    price: Decimal
    line: int
    flat: Decimal = Decimal(0)


def read_per(block: Block) -> Decimal:
    """`per`, the number of units that a price is for; only numbers by which every price divides without a remainder."""
    per = block.number("per", default=Decimal(1), positive=True)
    if per is None:
        return Decimal(1)
    rest = per
    for factor in (2, 5):
        while rest % factor == 0:
            rest /= factor
    if rest != 1:
        block.wrong(f"a price per {plain(per)} has no exact decimal value", "Use 1, 1000 or 1_000_000.", key="per")
    return per


def read_tiers(block: Block) -> tuple[Tier, ...]:
    """The list `tiers`, in ascending order, the last one open."""
    tiers: list[Tier] = []
    blocks = block.list_of_blocks("tiers")
    edge = Decimal(0)
    for index, entry in enumerate(blocks):
        flat = entry.number("flat", default=Decimal(0))
        price = entry.number("price", default=Decimal(0) if entry.has("flat") else None)
        up_to = entry.number("up_to", positive=True) if entry.has("up_to") else None
        last = index == len(blocks) - 1
        if last and entry.has("up_to"):
            entry.wrong("the last tier ends", "Leave `up_to` out of the last tier: it takes all the rest.", key="up_to")
        elif not last and not entry.has("up_to"):
            entry.wrong("a tier without an end is not the last", "Give it `up_to`, or move it to the end.")
        if up_to is not None and up_to <= edge:
            entry.wrong(
                f"ends at {plain(up_to)}, the tier before it at {plain(edge)}", "Sort the tiers upwards.", key="up_to"
            )
        edge = up_to or edge
        entry.done()
        if price is not None:
            tiers.append(Tier(up_to, price, entry.line, flat or Decimal(0)))
    return tuple(tiers)


def read_price_or_tiers(block: Block) -> tuple[Tier, ...]:
    """`tiers`, or one `price` for all units."""
    if not block.has("price"):
        return read_tiers(block)
    if block.has("tiers"):
        block.wrong("has a price and tiers", "Keep one of the two.", key="tiers")
    price = block.number("price")
    return () if price is None else (Tier(None, price, block.line_of("price")),)


def graduate(
    start: Decimal, quantity: Decimal, tiers: Sequence[Tier], per: Decimal
) -> tuple[Decimal, list[Mapping[str, Any]]]:
    """The amount for `quantity` units that follow on `start` units, and the arithmetic, tier by tier.

    A tier's flat fee is due with its first unit.
    """
    amount, lower, place, left = Decimal(0), Decimal(0), start, quantity
    steps: list[Mapping[str, Any]] = []
    for tier in tiers:
        room = left if tier.up_to is None else max(Decimal(0), min(left, tier.up_to - place))
        if room > 0:
            if place == lower and tier.flat:
                steps.append(_flat_step(lower, tier))
                amount += tier.flat
            steps.append(_step(lower, tier, room, per))
            amount, place, left = amount + room * tier.price / per, place + room, left - room
        lower = tier.up_to or lower
    return amount, steps


def by_volume(quantity: Decimal, tiers: Sequence[Tier], per: Decimal) -> tuple[Decimal, list[Mapping[str, Any]]]:
    """The amount for all units at the price of the tier that the last of them reaches; nothing for no units."""
    if quantity <= 0:
        return Decimal(0), []
    lower = Decimal(0)
    for tier in tiers:
        if tier.up_to is None or quantity <= tier.up_to:
            steps = [_flat_step(lower, tier)] if tier.flat else []
            return tier.flat + quantity * tier.price / per, [*steps, _step(lower, tier, quantity, per)]
        lower = tier.up_to
    raise AssertionError("the last tier takes all the rest")


def _step(lower: Decimal, tier: Tier, quantity: Decimal, per: Decimal) -> dict[str, Any]:
    return {"tier": _name(lower, tier)} | step(quantity, tier.price, per, tier.line)


def _flat_step(lower: Decimal, tier: Tier) -> dict[str, Any]:
    return {"tier": _name(lower, tier), "fee": plain(tier.flat), "amount": plain(tier.flat), "book_line": tier.line}


def _name(lower: Decimal, tier: Tier) -> str:
    return f"{plain(lower)}..{'' if tier.up_to is None else plain(tier.up_to)}"
