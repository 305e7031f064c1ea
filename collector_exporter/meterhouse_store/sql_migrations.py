"""How the SQL schema came to be what `tables` says: the changes of tables that existed before, in their order.

A table that is new needs nothing here, `create_all` makes it. A column that is new in a table which a release has had
needs a migration: its version, and the statements, which SQLite and PostgreSQL both understand. They run in the
transaction that also notes the version, so a database is in one version or the next, never between.

What SQL cannot say is a function: it is called with the connection, after the tables of today are there, and also on
what an older backup brings. So it may be repeated.
"""

import json
from collections.abc import Callable
from typing import Final

from sqlalchemy import Column, Connection, Integer, MetaData, String, Table, inspect, select, text

from meterhouse_store import audit
from meterhouse_store.audit_rules import PRICE_DECISION
from meterhouse_store.ledger_chain import seal_unsealed
from meterhouse_store.tables import UtcTime, audit_log, metadata

MIGRATIONS: Final[tuple[tuple[int, tuple[str, ...]], ...]] = (
    # 1 is the first release's.
    (2, ("ALTER TABLE customers ADD COLUMN reference VARCHAR(256)",)),
    (3, ("ALTER TABLE ledger_entries ADD COLUMN grant_id VARCHAR(64)",)),
    (4, ("ALTER TABLE credentials ADD COLUMN role VARCHAR(16) NOT NULL DEFAULT 'metering'",)),
    (5, ("DROP TABLE allowances",)),  # nothing wrote it yet; it is made anew
    (
        6,
        (
            "CREATE INDEX IF NOT EXISTS invoices_by_customer ON invoices (namespace, customer_id, period_start)",
            "CREATE INDEX IF NOT EXISTS invoice_transitions_by_invoice ON invoice_transitions (invoice_id, changed_at)",
        ),
    ),
    (7, ()),  # FILLED
    (8, ()),  # FILLED
    (9, ()),  # FILLED
    (10, ()),  # FILLED
)


def _disputes_name_invoices(connection: Connection) -> None:
    # The table came without a version of its own: databases of version 6 have it, and lack it.
    if "stripe_invoice_id" not in {it["name"] for it in inspect(connection).get_columns("disputes")}:
        connection.execute(text("ALTER TABLE disputes ADD COLUMN stripe_invoice_id VARCHAR(64)"))


_price_audit = Table(
    "price_audit",
    MetaData(),
    Column("namespace", String(64), primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("recorded_at", UtcTime, nullable=False),
    Column("what", String(16), nullable=False),
    Column("proposal_id", String(64)),
    Column("version", Integer),
    Column("who", String(128), nullable=False),
    Column("account", String(128), nullable=False),
    Column("why", String(500), nullable=False),
)
FORMER: Final = {_price_audit.name: _price_audit}
"""Tables that older backups bring and nothing has today: what is in FILLED moves their rows and drops them."""


def _price_decisions_are_in_the_log(connection: Connection) -> None:
    for index in audit_log.indexes:
        index.create(connection, checkfirst=True)
    table = _price_audit
    if not inspect(connection).has_table(table.name):
        return
    # Since there is the audit log it was told of each row as well.
    query = select(audit_log.c.namespace, audit_log.c.details).where(audit_log.c.what == PRICE_DECISION)
    said = {(row.namespace, json.loads(row.details)[audit.ADDED]["position"]) for row in connection.execute(query)}
    for row in connection.execute(select(table).order_by(table.c.namespace, table.c.position)).mappings().all():
        if (row["namespace"], row["position"]) not in said:
            audit.note(
                connection,
                row["namespace"],
                PRICE_DECISION,
                subject=row["what"],
                who=row["who"],
                why=row["why"],
                at=row["recorded_at"],
                added={name: row[name] for name in ("position", "what", "proposal_id", "version", "account")},
            )
    table.drop(connection)
    if connection.dialect.name == "postgresql":  # on SQLite the triggers are all there is of the rules
        for rule in ("kept", "there"):
            connection.execute(text(f"DROP FUNCTION IF EXISTS {table.name}_{rule}()"))


def _invoices_say_what_remains(connection: Connection) -> None:
    # As far as it was known: what the customer's balance paid is seen when Stripe is asked next.
    for table, columns in (("invoices", ("remaining_minor",)), ("metered_invoices", ("remaining_minor", "paid_minor"))):
        there = {it["name"] for it in inspect(connection).get_columns(table)}
        for column in columns:
            if column not in there:
                connection.execute(text(f"ALTER TABLE {table} ADD COLUMN {column} BIGINT"))
    for statement in (
        "UPDATE invoices SET remaining_minor = coalesce(stripe_total_minor, total_minor) - (SELECT "
        "coalesce(sum(pre_payment_minor), 0) FROM credit_note_issues WHERE state = 'issued' AND "
        "credit_note_issues.invoice_id = invoices.invoice_id) WHERE state IN ('finalised', 'failed') AND "
        "remaining_minor IS NULL",
        "UPDATE metered_invoices SET remaining_minor = total_minor WHERE state IN ('finalised', 'failed') AND "
        "remaining_minor IS NULL",
        "UPDATE metered_invoices SET paid_minor = total_minor WHERE state = 'paid' AND paid_minor IS NULL",
    ):
        connection.execute(text(statement))


def _compared_months_are_seen_to(connection: Connection) -> None:
    if "handled_at" not in {it["name"] for it in inspect(connection).get_columns("meter_periods")}:
        kind = UtcTime().compile(connection.dialect)
        connection.execute(text(f"ALTER TABLE meter_periods ADD COLUMN handled_at {kind}"))


FILLED: Final[tuple[tuple[int, Callable[[Connection], None]], ...]] = (
    (3, seal_unsealed),  # the ledger's hash chain
    (7, _disputes_name_invoices),
    (8, _price_decisions_are_in_the_log),
    (9, _invoices_say_what_remains),
    (10, _compared_months_are_seen_to),
)

VERSION: Final = MIGRATIONS[-1][0]
"""The schema version of a database that this Meterhouse writes."""


def apply(connection: Connection, found: int) -> None:
    """Run what a database of version `found` lacks, in the caller's transaction."""
    for version, statements in MIGRATIONS:
        if version > found:
            for statement in statements:
                connection.execute(text(statement))
    metadata.create_all(connection)  # tables that came later
    fill(connection, found)


def fill(connection: Connection, found: int) -> None:
    """Complete the rows of version `found` in tables of today."""
    for version, complete in FILLED:
        if version > found:
            complete(connection)
