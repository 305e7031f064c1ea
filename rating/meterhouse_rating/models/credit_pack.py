"""Prepaid credits, bought once at the beginning of the contract; the ledger's balance then pays usage lines.

model: credit_pack
price: 20.00          # what the customer pays
credits: 25.00        # what it is worth; the 5.00 beyond the price are promotional
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from meterhouse_rating.charges import Before, Charge, Charged, Portion
from meterhouse_rating.document import Block
from meterhouse_rating.money import chargeable, smallest
from meterhouse_store.numbers import plain


@dataclass(frozen=True)
class CreditPack:
    name: str
    line: int
    price: Decimal
    credits: Decimal
    metrics: tuple[str, ...] = ()
    dimensions: tuple[str, ...] = ()
    memory: str = "contract"

    def charge(self, portions: Sequence[Portion], before: Before) -> Charged:
        """The purchase, unless the contract has made it."""
        if before.charged:
            return Charged(())
        step = {
            "quantity": "1",
            "price": plain(self.price),
            "per": "1",
            "amount": plain(self.price),
            "credits": plain(self.credits),
        }
        charge = Charge(
            "credit_pack", self.name, Decimal(1), "pack", self.price, (step,), self.line, credits=self.credits
        )
        return Charged((charge,))


def read(name: str, block: Block, metrics: Sequence[str], currency: str) -> CreditPack | None:
    """The component, or None when it cannot be made; mistakes are collected by the block."""
    price, credits = block.number("price"), block.number("credits", positive=True)
    for key, amount in (("price", price), ("credits", credits)):
        if amount is not None and not chargeable(amount, currency):
            block.wrong(f"{plain(amount)} is no amount of {currency}", f"Its unit is {smallest(currency)}.", key=key)
    if price is None or credits is None:
        return None
    if credits < price:
        block.wrong("fewer credits than they cost", "Grant at least as much as the price.", key="credits")
    return CreditPack(name, block.line, price, credits)
