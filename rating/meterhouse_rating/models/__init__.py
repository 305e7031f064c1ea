"""The price models: one file each, registered here under the name that a price book uses.

A model's `read(name, block, metrics, currency)` makes its component from the price book, or returns None after having
collected what is wrong.
"""

from collections.abc import Callable, Sequence
from typing import Final

from meterhouse_rating.charges import Component
from meterhouse_rating.document import Block
from meterhouse_rating.models import credit_pack, flat, graduated, per_unit

Reader = Callable[[str, Block, Sequence[str], str], Component | None]

MODELS: Final[dict[str, Reader]] = {
    "per_unit": per_unit.read,
    "graduated": graduated.read,
    "flat": flat.read,
    "credit_pack": credit_pack.read,
}
