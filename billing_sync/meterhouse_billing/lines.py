"""A rated line as it goes on an invoice, with the tax that the price book says of it."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Final


@dataclass(frozen=True)
class Tax:
    """What the book says of a line: whether tax is in its price, and the product's tax code; '' where it does not."""

    behaviour: str = ""
    code: str = ""

    @property
    def product(self) -> str:
        """The product in Stripe that carries the code; one for each code, not one for each line."""
        return f"meterhouse_{self.code or 'usage'}"


UNSAID: Final = Tax()


@dataclass(frozen=True)
class Line:
    """A rated line as it goes on the invoice; `amount_minor` in ISO 4217 minor units, `amount_exact` in major ones.

    `included`: some of its quantity is within what the plan includes. `off`: of a negative line, descriptions of those
    that it is taken off and how much of each, 0 where that is in proportion.
    """

    line_id: str
    position: int
    kind: str
    component: str
    metric: str
    description: str
    quantity: Decimal
    unit: str
    amount_minor: int
    amount_exact: Decimal
    included: bool
    tax: Tax = UNSAID
    off: tuple[tuple[str, int], ...] = ()
