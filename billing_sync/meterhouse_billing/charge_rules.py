"""By which rule a customer is charged for credits when little is left: rows that say who set them, when and why."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, Engine, RowMapping, insert, select

from meterhouse_billing.gateway import BillingError
from meterhouse_rating import credit_book
from meterhouse_rating.credit_changes import customer_currency
from meterhouse_store.sql import begin_write
from meterhouse_store.tables import credit_charge_rules as table

MOST_A_DAY: Final = 24
MOST_A_MONTH: Final = 500


@dataclass(frozen=True)
class Rule:
    """Below `below_minor` buy `amount_minor`, so often at most; `amount_minor` 0: it is off, and `why` says since what.

    Days and months are the customer's. `who` and `why` are of the change that counts.
    """

    customer_id: str
    below_minor: int
    amount_minor: int
    per_day: int
    per_month: int
    currency: str
    who: str
    why: str
    recorded_at: datetime

    @property
    def is_on(self) -> bool:
        return self.amount_minor > 0


def rules(engine: Engine, namespace: str) -> list[Rule]:
    """The rule of each customer that ever had one, on or off."""
    query = select(table).where(table.c.namespace == namespace).order_by(table.c.customer_id, table.c.recorded_at)
    with engine.connect() as connection:
        return list({row["customer_id"]: _rule(row) for row in connection.execute(query).mappings()}.values())


def current(connection: Connection, namespace: str, customer_id: str) -> Rule | None:
    """The customer's rule, on or off."""
    query = select(table).where(table.c.namespace == namespace, table.c.customer_id == customer_id)
    row = connection.execute(query.order_by(table.c.recorded_at.desc()).limit(1)).mappings().one_or_none()
    return None if row is None else _rule(row)


def put(engine: Engine, namespace: str, rule: Rule, *, write: bool = True) -> None:
    """Set a customer's rule. Raises BillingError with everything that is wrong, CreditsRefused."""
    wrong = [] if rule.why.strip() else ["say why: it is kept with the change"]
    if rule.below_minor < 0 or rule.amount_minor < 0:
        wrong.append("amounts are not negative")
    if not 0 < rule.per_day <= MOST_A_DAY or not rule.per_day <= rule.per_month <= MOST_A_MONTH:
        wrong.append(f"it charges 1 to {MOST_A_DAY} times a day, and as often or more a month, {MOST_A_MONTH} at most")
    with begin_write(engine) as connection:
        currency = customer_currency(connection, namespace, rule.customer_id)
        if currency != rule.currency:
            wrong.append(f"{rule.customer_id} pays in {currency}, not in {rule.currency}")
        on_invoices = credit_book.top_up_in_force(connection, namespace, rule.customer_id, currency, rule.recorded_at)
        if rule.is_on and on_invoices is not None:
            wrong.append("its rule that buys on invoices holds: `meterhouse credits top-up-on-invoice` with 0 ends it")
        if wrong:
            raise BillingError("; ".join(wrong))
        if write:
            _append(connection, namespace, rule)


def end(connection: Connection, namespace: str, customer_id: str, *, why: str, now: datetime) -> None:
    """Turn the customer's rule off because a charge failed, where it is on."""
    rule = current(connection, namespace, customer_id)
    if rule is None or not rule.is_on:
        return
    said: dict[str, Any] = {"amount_minor": 0, "who": "stripe", "why": f"a charge failed: {why}", "recorded_at": now}
    _append(connection, namespace, replace(rule, **said))


def _append(connection: Connection, namespace: str, rule: Rule) -> None:
    """The rule becomes the one that counts: recorded after the one before, whatever the clock says."""
    before = current(connection, namespace, rule.customer_id)
    moment = rule.recorded_at
    if before is not None and before.recorded_at >= moment:
        moment = before.recorded_at + timedelta(microseconds=1)
    cut = {"who": rule.who[:128], "why": rule.why[:500], "recorded_at": moment}
    connection.execute(insert(table).values(namespace=namespace, **vars(rule) | cut))


def _rule(row: RowMapping) -> Rule:
    return Rule(**{name: row[name] for name in Rule.__dataclass_fields__})
