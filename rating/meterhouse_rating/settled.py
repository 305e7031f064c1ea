"""What is settled already: a customer's ratings in SQL, and what they mean for the next one."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, RowMapping, select

from meterhouse_rating.book import Plan
from meterhouse_rating.charges import Before
from meterhouse_rating.ledger import credit_balance
from meterhouse_rating.money import MINOR_DIGITS
from meterhouse_rating.periods import Period, month_of, overlaps
from meterhouse_store.numbers import D
from meterhouse_store.registry import Contract, Customer
from meterhouse_store.tables import rated_lines, ratings

OPEN = "open"
CLOSED = "closed"


@dataclass(frozen=True)
class Standing:
    """A rating that is stored; `watermark` as it was recorded with it."""

    rating_id: str
    customer_id: str
    period: Period
    state: str
    as_of: datetime
    watermark: Mapping[str, Any]
    inputs_sha256: str
    result_sha256: str
    total_minor: int
    currency: str


def standings(connection: Connection, namespace: str, customer_id: str | None = None) -> list[Standing]:
    """The ratings of a customer, or of the whole namespace, by customer and period."""
    columns = [
        ratings.c[name]
        for name in (
            "rating_id",
            "customer_id",
            "period_start",
            "period_end",
            "state",
            "as_of",
            "watermark",
            "inputs_sha256",
            "result_sha256",
            "total_minor",
            "currency",
        )
    ]
    query = select(*columns).where(ratings.c.namespace == namespace)
    if customer_id is not None:
        query = query.where(ratings.c.customer_id == customer_id)
    found = []
    for row in connection.execute(query.order_by(ratings.c.customer_id, ratings.c.period_start)).mappings():
        values = dict(row)
        period = Period(values.pop("period_start"), values.pop("period_end"))
        found.append(Standing(period=period, **values))
    return found


def contract_in_force(contracts: Iterable[Contract], period: Period) -> Contract | None:
    """The contract of the whole period: the one in force at its start, else the first that begins within it."""
    known = sorted(contracts, key=lambda contract: contract.valid_from)
    at_start = [contract for contract in known if contract.valid_from <= period.start]
    if at_start:
        return at_start[-1]
    return next((contract for contract in known if contract.valid_from < period.end), None)


def settled_before(
    connection: Connection,
    customer: Customer,
    contract: Contract,
    plan: Plan,
    period: Period,
    standing: Sequence[Standing],
) -> tuple[dict[str, Before], int]:
    """Per component what earlier ratings settled, and the credit balance, in minor units, that they leave.

    Closed ratings count, and open ones of earlier periods, as if they were closed as they are.
    """
    counted = [
        it
        for it in standing
        if not overlaps(it.period, period) and (it.state == CLOSED or it.period.start < period.start)
    ]
    month = month_of(period.start, customer.time_zone)
    this_month = {it.rating_id for it in counted if overlaps(it.period, month) and it.period.start >= month.start}
    lines = _lines(connection, [it.rating_id for it in counted])
    before = {}
    for component in plan.components:
        mine = [
            line
            for line in lines
            if line["component"] == component.name
            and line["explanation"].get("price", {}).get("contract") == contract.contract_id
            and (component.memory == "contract" or line["rating_id"] in this_month)
        ]
        if mine:
            before[component.name] = _before(mine)
    open_ids = {it.rating_id for it in counted if it.state == OPEN}
    pending = sum(_credits_of(line) for line in lines if line["rating_id"] in open_ids)
    balance = credit_balance(connection, customer.namespace, customer.customer_id, customer.currency)
    return before, balance + pending


def credits_minor(explanation: Mapping[str, Any], currency: str) -> int:
    """What a credit pack's line grants, from its explanation."""
    return int(D(explanation.get("credits", "0")).scaleb(MINOR_DIGITS[currency]))


def _before(lines: Iterable[RowMapping]) -> Before:
    quantities: dict[str, Decimal] = {}
    charged = False
    for line in lines:
        if line["metric"] is None:
            charged = True
        else:
            quantities[line["metric"]] = quantities.get(line["metric"], Decimal(0)) + line["quantity"]
    return Before(dict(sorted(quantities.items())), charged)


def _credits_of(line: RowMapping) -> int:
    """What the line adds to the credit balance."""
    if line["kind"] == "credit_applied":
        return int(line["amount_minor"])
    return credits_minor(line["explanation"], line["currency"])


def _lines(connection: Connection, rating_ids: Sequence[str]) -> Sequence[RowMapping]:
    if not rating_ids:
        return []
    query = select(rated_lines).where(rated_lines.c.rating_id.in_(rating_ids))
    rows = connection.execute(query.order_by(rated_lines.c.rating_id, rated_lines.c.position))
    return rows.mappings().all()
