"""What a namespace, or one customer of it, wants of billing: settings as rows that say who set them, when and why."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from sqlalchemy import Connection, Engine, bindparam, insert, select

from meterhouse_billing.application_fees import NO_FEE, Fee, read_fee
from meterhouse_billing.gateway import BillingError
from meterhouse_rating.money import chargeable, show, to_minor
from meterhouse_store.currencies import MINOR_DIGITS
from meterhouse_store.numbers import D
from meterhouse_store.sql import begin_write
from meterhouse_store.tables import billing_settings as table
from meterhouse_store.tables import customers

BALANCE: Final = "balance"
REFUND: Final = "refund"
OUTSIDE: Final = "outside"

APPROVAL, TWO_PERSONS, CHANGE, TERMS, PAID_CREDIT, AUTOMATIC_TAX, TOP_UPS, ACCOUNT, FEE, STREAM = (
    "approval",
    "two-persons",
    "unusual-change",
    "days-until-due",
    "paid-credit",
    "automatic-tax",
    "top-up-amounts",
    "stripe-account",
    "application-fee",
    "meter-stream",
)
OF_CUSTOMERS: Final = (TERMS, PAID_CREDIT, AUTOMATIC_TAX, TOP_UPS, ACCOUNT, FEE)
"""Settings that a customer may have otherwise than the namespace."""

# Built once. The customer's own settings come last: they override the namespace's.
_LOADED: Final = (
    select(table)
    .where(table.c.namespace == bindparam("namespace"), table.c.customer_id.in_(("", bindparam("customer"))))
    .order_by(table.c.customer_id, table.c.recorded_at)
)


@dataclass(frozen=True)
class Policy:
    """The settings that hold; money in minor units by upper-case currency."""

    automatic: bool = False
    """Whether invoices without anything to look at are approved without a person."""
    limits_minor: Mapping[str, int] = field(default_factory=dict)
    """Above this one person approves and another finalises; once there is one, other currencies' limit is 0."""
    unusual_change: Decimal = Decimal(2)
    """An invoice this many times the customer's usual one, or that part of it, is looked at."""
    days_until_due: int = 30
    paid_credit: str = BALANCE
    """Where a credit note on a paid invoice goes: balance | refund | outside."""
    automatic_tax: bool = False
    """Whether Stripe computes tax on invoices."""
    top_up_amounts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """What customers may buy of credits at once, in minor units by upper-case currency; none: they may not."""

    stripe_account: str = ""
    """The connected account that sells (`acct_...`); '': the account of the key."""
    fee: Fee = NO_FEE
    """What the platform keeps of each invoice of a connected account."""

    meter_stream: str = "off"
    """Whether meter events go by Stripe's stream: on, off, or auto, when there are very many."""

    def needs_two(self, amount_minor: int, currency: str) -> bool:
        """Whether the one who finalises must be another than the one who approved."""
        return bool(self.limits_minor) and abs(amount_minor) > self.limits_minor.get(currency, 0)

    def limit(self, currency: str) -> str:
        """For people."""
        return f"{show(self.limits_minor.get(currency, 0), currency)} {currency}"


def load(engine: Engine, namespace: str, customer_id: str = "") -> Policy:
    """The policy for a customer of the namespace; what nobody set is as `Policy` has it."""
    with engine.connect() as connection:
        rows = connection.execute(_LOADED, {"namespace": namespace, "customer": customer_id}).mappings().all()
    found: dict[str, Any] = {row["setting"]: row["value"] for row in rows}
    given = {_FIELDS[name]: _READ[name](value) for name, value in found.items()}
    return Policy(**given)


def taxed(engine: Engine, namespace: str) -> Callable[[str], bool]:
    """Says of a customer whether Stripe computes tax on its invoices."""
    is_it = (table.c.namespace == namespace) & (table.c.setting == AUTOMATIC_TAX)
    with engine.connect() as connection:
        rows = connection.execute(select(table).where(is_it).order_by(table.c.recorded_at)).mappings().all()
    said = {row["customer_id"]: row["value"] == "on" for row in rows}
    return lambda customer_id: said.get(customer_id, said.get("", False))


def change(
    engine: Engine, namespace: str, customer_id: str, wanted: Mapping[str, str], *, who: str, why: str, now: datetime
) -> None:
    """Set settings (name -> what was typed), all or none. Raises BillingError with everything that is wrong."""
    if not why.strip():
        raise BillingError("say why: it is kept with the change")
    wrong, values = [], {}
    for name, text in wanted.items():
        if customer_id and name not in OF_CUSTOMERS:
            wrong.append(f"{name} is for a whole namespace")
        try:
            values[name] = _TYPED[name](text)
        except (ValueError, InvalidOperation) as problem:
            wrong.append(f"{name} {text!r}: {problem if isinstance(problem, ValueError) else 'is no number'}")
    if wrong:
        raise BillingError("; ".join(wrong))
    with begin_write(engine) as connection:
        if ACCOUNT in values:
            _stays(connection, namespace, customer_id)
        for name, value in values.items():
            row = {"namespace": namespace, "customer_id": customer_id, "setting": name, "recorded_at": now}
            connection.execute(insert(table).values(**row, value=value, who=who[:128], why=why[:500]))


def _stays(connection: Connection, namespace: str, customer_id: str) -> None:
    """What is in one of Stripe's accounts stays there. Raises BillingError where a customer of the change is."""
    own = select(table.c.customer_id).where(table.c.namespace == namespace, table.c.setting == ACCOUNT)
    query = select(customers.c.customer_id).where(
        customers.c.namespace == namespace, customers.c.stripe_customer_id.is_not(None)
    )
    mine = customers.c.customer_id == customer_id if customer_id else customers.c.customer_id.not_in(own)
    there = connection.execute(query.where(mine).limit(1)).scalar()
    if there is not None:
        raise BillingError(
            f"{there} is in Stripe already, and customers, invoices and payments do not move from one account to "
            "another: name the account before the first invoice, or use another customer (or namespace)"
        )


def accounts(engine: Engine, namespace: str) -> list[str]:
    """The Stripe accounts of a namespace: its own one ('' for the key's) first, then those of single customers."""
    query = select(table).where(table.c.namespace == namespace, table.c.setting == ACCOUNT)
    with engine.connect() as connection:
        rows = connection.execute(query.order_by(table.c.recorded_at)).mappings().all()
    said = {row["customer_id"]: str(row["value"]) for row in rows}
    own = said.pop("", "")
    return [own, *sorted({account for account in said.values() if account != own})]


def history(engine: Engine, namespace: str) -> list[dict[str, Any]]:
    """Every change, oldest first."""
    query = select(table).where(table.c.namespace == namespace).order_by(table.c.recorded_at, table.c.setting)
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(query).mappings()]


def _approval(text: str) -> str:
    return _one_of(text, ("automatic", "person"))


def _paid_credit(text: str) -> str:
    return _one_of(text, (BALANCE, REFUND, OUTSIDE))


def _on_or_off(text: str) -> str:
    return _one_of(text, ("on", "off"))


def _one_of(text: str, choices: tuple[str, ...]) -> str:
    if text not in choices:
        raise ValueError(f"is one of {', '.join(choices)}")
    return text


def _limits(text: str) -> dict[str, int]:
    """`USD=1000,EUR=900` in major units; `none` for no limit."""
    limits = {}
    for part in () if text == "none" else text.split(","):
        currency, _, amount = part.strip().partition("=")
        if currency not in MINOR_DIGITS or not amount:
            raise ValueError("is a list such as USD=1000,EUR=900 or none")
        limit = D(amount)
        if limit < 0 or not chargeable(limit, currency):
            raise ValueError(f"{amount} {currency} is no amount that can be charged")
        limits[currency] = to_minor(limit, currency, "half_even")
    return limits


def _top_ups(text: str) -> dict[str, list[int]]:
    """`USD=10/50/100,EUR=20` in major units; `none` for none."""
    found: dict[str, list[int]] = {}
    for part in () if text == "none" else text.split(","):
        currency, _, amounts = part.strip().partition("=")
        if currency not in MINOR_DIGITS or not amounts:
            raise ValueError("is a list such as USD=10/50/100,EUR=20/50 or none")
        for amount in amounts.split("/"):
            each = D(amount)
            if each <= 0 or not chargeable(each, currency):
                raise ValueError(f"{amount} {currency} is no amount that can be charged")
            found.setdefault(currency, []).append(to_minor(each, currency, "half_even"))
    return found


def _account(text: str) -> str:
    """`acct_...`; `none` for the key's own account."""
    if text != "none" and not re.fullmatch(r"acct_[0-9A-Za-z]{8,60}", text):
        raise ValueError("is the id of a connected account (acct_...) or none")
    return "" if text == "none" else text


def _factor(text: str) -> str:
    if D(text) <= 1:
        raise ValueError("is a number above 1")
    return text


def _days(text: str) -> int:
    days = int(text) if text.isascii() and text.isdigit() else -1
    if not 0 <= days <= 365:
        raise ValueError("is a number of days from 0 to 365")
    return days


_TYPED: Final[dict[str, Callable[[str], Any]]] = {
    APPROVAL: _approval,
    TWO_PERSONS: _limits,
    CHANGE: _factor,
    TERMS: _days,
    PAID_CREDIT: _paid_credit,
    AUTOMATIC_TAX: _on_or_off,
    TOP_UPS: _top_ups,
    ACCOUNT: _account,
    FEE: lambda text: read_fee(text).canonical(),
    STREAM: lambda text: _one_of(text, ("on", "off", "auto")),
}
_FIELDS: Final = {
    APPROVAL: "automatic",
    TWO_PERSONS: "limits_minor",
    CHANGE: "unusual_change",
    TERMS: "days_until_due",
    PAID_CREDIT: "paid_credit",
    AUTOMATIC_TAX: "automatic_tax",
    TOP_UPS: "top_up_amounts",
    ACCOUNT: "stripe_account",
    FEE: "fee",
    STREAM: "meter_stream",
}
_READ: Final[dict[str, Callable[[Any], Any]]] = {
    APPROVAL: lambda value: value == "automatic",
    TWO_PERSONS: dict,
    CHANGE: D,
    TERMS: int,
    PAID_CREDIT: str,
    AUTOMATIC_TAX: lambda value: value == "on",
    TOP_UPS: lambda value: {currency: tuple(sorted(set(amounts))) for currency, amounts in value.items()},
    ACCOUNT: str,
    FEE: read_fee,
    STREAM: str,
}
