"""A ledger to be tampered with: its transactions, and the way past the database's own rules."""

from datetime import UTC, datetime, timedelta

from meterhouse_rating import ledger
from meterhouse_rating.ledger import Entry, Posting
from meterhouse_store import ledger_rules, registry
from meterhouse_store.sql import begin_write

DAY = datetime(2026, 11, 1, tzinfo=UTC)


def sale(number, amount=100, customer="acme", corrects=None):
    sides = (Entry("receivable", amount, "USD"), Entry("revenue", -amount, "USD"))
    return Posting("usage", f"line-{customer}-{number}", f"sale {number} to {customer}", sides, corrects)


def post(engine, *postings, customer="acme", namespace="test", day=0):
    moment = DAY + timedelta(days=day)
    with begin_write(engine) as connection:
        return ledger.post(
            connection, namespace, customer, postings, effective_at=moment, recorded_at=moment + timedelta(hours=1)
        )


def furnished(engine, count=5):
    """`count` transactions of acme, each in a commit of its own; their names."""
    registry.ensure_namespace(engine, "test")
    registry.add_customer(engine, "test", "acme", plan="pay")
    return [post(engine, sale(number), day=number)[0] for number in range(1, count + 1)]


def without_rules(engine):
    """The database of somebody who may do everything in it."""
    with begin_write(engine) as connection:
        for name, table in ledger_rules.NAMES:
            connection.exec_driver_sql(
                f"DROP TRIGGER {name}" if engine.dialect.name == "sqlite" else f"DROP TRIGGER {name} ON {table}"
            )
