"""Graduated tiers: each unit is priced by the tier that its place in the period falls in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from meterhouse_rating.document import Block
from meterhouse_store.numbers import plain


@dataclass(frozen=True)
class Tier:
    """Units up to and including `up_to` (None: all the rest) cost `price` per `per` units."""

    up_to: Decimal | None
    price: Decimal
    line: int


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
        price = entry.number("price")
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
            tiers.append(Tier(up_to, price, entry.line))
    return tuple(tiers)


def graduate(
    start: Decimal, quantity: Decimal, tiers: Sequence[Tier], per: Decimal
) -> tuple[Decimal, list[Mapping[str, Any]]]:
    """The amount for `quantity` units that follow on `start` units, and the arithmetic, tier by tier."""
    amount, lower, place, left = Decimal(0), Decimal(0), start, quantity
    steps: list[Mapping[str, Any]] = []
    for tier in tiers:
        room = left if tier.up_to is None else max(Decimal(0), min(left, tier.up_to - place))
        if room > 0:
            part = room * tier.price / per
            steps.append(
                {
                    "tier": f"{plain(lower)}..{'' if tier.up_to is None else plain(tier.up_to)}",
                    "quantity": plain(room),
                    "price": plain(tier.price),
                    "per": plain(per),
                    "amount": plain(part),
                    "book_line": tier.line,
                }
            )
            amount, place, left = amount + part, place + room, left - room
        lower = tier.up_to or lower
    return amount, steps
