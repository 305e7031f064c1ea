"""The price models: one file each, registered here under the name that a price book uses.

A model's `read(name, block, scope)` makes its component from the price book, or returns None after having collected
what is wrong.
"""

from collections.abc import Callable
from typing import Final

from meterhouse_rating.charges import Component
from meterhouse_rating.document import Block
from meterhouse_rating.models import (
    cost_plus,
    credit_pack,
    flat,
    formula,
    graduated,
    included,
    matrix,
    minimum,
    package,
    per_unit,
    percentage,
    recurring,
    volume,
)
from meterhouse_rating.models.reading import Scope

Reader = Callable[[str, Block, Scope], Component | None]

MODELS: Final[dict[str, Reader]] = {
    "per_unit": per_unit.read,
    "graduated": graduated.read,
    "volume": volume.read,
    "package": package.read,
    "percentage": percentage.read,
    "included": included.read,
    "matrix": matrix.read,
    "cost_plus": cost_plus.read,
    "formula": formula.read,
    "flat": flat.read,
    "recurring": recurring.read,
    "minimum": minimum.read,
    "credit_pack": credit_pack.read,
}
