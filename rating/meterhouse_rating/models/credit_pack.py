"""Prepaid credits, bought once at the beginning of the contract; the ledger's balance then pays usage lines.

model: credit_pack
price: 20.00          # what the customer pays
credits: 25.00        # what it is worth; the 5.00 beyond the price are promotional
expires_days: 365     # they hold so long from the start of the period in which it is bought; not given: for ever
priority: 0           # grants of a lower one are used first
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from meterhouse_rating.charges import Before, Charge, Charged, Portion, Setting, step
from meterhouse_rating.document import Block
from meterhouse_rating.models.reading import Scope, read_amount
from meterhouse_store.numbers import plain

MOST: Final = 10_000


@dataclass(frozen=True)
class CreditPack:
    name: str
    line: int
    price: Decimal
    credits: Decimal
    metrics: tuple[str, ...] = ()
    dimensions: tuple[str, ...] = ()
    expires_days: int | None = None
    priority: int = 0
    memory: str = "contract"
    depends_on: tuple[str, ...] | None = ()

    def charge(self, portions: Sequence[Portion], before: Before, setting: Setting) -> Charged:
        """The purchase, unless the contract has made it."""
        if before.charged:
            return Charged(())
        bought = step(Decimal(1), self.price, Decimal(1)) | {"credits": plain(self.credits)}
        charge = Charge(
            "credit_pack",
            self.name,
            Decimal(1),
            "pack",
            self.price,
            (bought,),
            self.line,
            credits=self.credits,
            credits_expire_days=self.expires_days,
            credits_priority=self.priority,
        )
        return Charged((charge,))


def read(name: str, block: Block, scope: Scope) -> CreditPack | None:
    """The component, or None when it cannot be made; mistakes are collected by the block."""
    price, credits = read_amount(block, "price", scope), read_amount(block, "credits", scope, positive=True)
    days = _whole(block, "expires_days", 1) if block.has("expires_days") else None
    priority = _whole(block, "priority", 0) if block.has("priority") else 0
    if price is None or credits is None:
        return None
    if credits < price:
        block.wrong("fewer credits than they cost", "Grant at least as much as the price.", key="credits")
    return CreditPack(name, block.line, price, credits, expires_days=days, priority=priority or 0)


def _whole(block: Block, key: str, least: int) -> int | None:
    number = block.number(key)
    if number is not None and (number != int(number) or not least <= number <= MOST):
        block.wrong(f"{plain(number)} is no whole number from {least} to {MOST}", "Write one, such as 365.", key=key)
        return None
    return None if number is None else int(number)
