"""Copies money from SQL, where it lives, into ClickHouse, where finance and Grafana read it.

Every copy may be repeated: rows have the ids they have in SQL, and the views of schema/mirrors.sql show each once. SQL
is read in one transaction, so that a rating and its lines belong together.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from decimal import Context, Decimal
from itertools import islice
from typing import Any

from clickhouse_connect.driver.client import Client
from sqlalchemy import BigInteger, Connection, Engine, Select, Text, cast, func, select

from meterhouse_store import tables

CHUNK_ROWS = 20_000
_NAMES = 1000  # at most in one statement
_AMOUNT_STEP = Decimal(1).scaleb(-18)  # of amount_exact in the mirror
_WIDE = Context(prec=100)  # the default of 28 digits is too small for 18 decimals of a large amount

_TIME = "DateTime64(6, 'UTC')"
_MAYBE_TIME = f"Nullable({_TIME})"
_NAME = "LowCardinality(String)"

# The mirrors' columns and types, in the order of their rows; beside the DDL so that an insert asks nothing first.
_RATINGS = {
    "namespace": _NAME, "customer_id": "String", "rating_id": "String", "period_start": _TIME, "period_end": _TIME,
    "state": _NAME, "plan": _NAME, "book_version": "UInt32", "currency": _NAME, "total_minor": "Int64",
    "as_of": _TIME, "rated_at": _TIME, "closed_at": _MAYBE_TIME, "result_sha256": "String", "version": "UInt64",
}  # fmt: skip
_LINES = {
    "namespace": _NAME, "customer_id": "String", "rating_id": "String", "result_sha256": "String",
    "line_id": "String", "position": "UInt32", "kind": _NAME, "component": _NAME, "metric": _NAME,
    "description": "String", "quantity": "Decimal(38, 9)", "unit": _NAME, "dimensions": "String",
    "amount_exact": "Decimal(76, 18)", "amount_minor": "Int64", "currency": _NAME, "explanation": "String",
}  # fmt: skip
_LEDGER = {
    "namespace": _NAME, "customer_id": "String", "transaction_id": "String", "position": "UInt32", "kind": _NAME,
    "source_id": "String", "account": _NAME, "amount_minor": "Int64", "currency": _NAME, "effective_at": _TIME,
    "recorded_at": _TIME, "corrects": "String", "memo": "String",
}  # fmt: skip
_INVOICES = {
    "namespace": _NAME, "customer_id": "String", "invoice_id": "String", "rating_id": "String",
    "period_start": _TIME, "period_end": _TIME, "state": _NAME, "currency": _NAME, "total_minor": "Int64",
    "stripe_invoice_id": "String", "stripe_total_minor": "Nullable(Int64)", "number": "String",
    "hosted_url": "String", "created_at": _TIME, "finalised_at": _MAYBE_TIME, "paid_at": _MAYBE_TIME,
    "tax_added_minor": "Int64", "tax_contained_minor": "Int64", "credited_minor": "Int64", "version": "UInt64",
}  # fmt: skip
_PAYMENTS = {
    "namespace": _NAME, "customer_id": "String", "payment_id": "String", "invoice_id": "String",
    "amount_minor": "Int64", "currency": _NAME, "paid_at": _TIME,
}  # fmt: skip
_DECISIONS = {
    "namespace": _NAME, "decision_id": "String", "kind": _NAME, "row_id": "String", "customer_id": "String",
    "meter": _NAME, "event_time": "DateTime64(9, 'UTC')", "event_id": "String", "quantity": "Decimal(38, 9)",
    "reason": _NAME, "billed_customer_id": "String", "original_reason": _NAME, "follows": "String", "why": "String",
    "who": _NAME, "decided_at": _TIME, "version": "UInt8",
}  # fmt: skip


def push(
    engine: Engine, client: Client, namespace: str, *, rating_id: str | None = None, invoice_id: str | None = None
) -> None:
    """Copy one rating (its lines and its customer's ledger), or one invoice (its payments and its customer's ledger),
    or, with neither, all of the namespace.

    Raises LookupError for an id that is not there; errors of the client pass through, and the call is then repeated.
    """
    with engine.connect() as sql:
        if rating_id is not None:
            of_rating = tables.ratings.c.rating_id == rating_id
            customer = _customer_of(sql, tables.ratings, of_rating, namespace, rating_id)
            # Ratings and invoices come last: one that is in the mirror says that all of it is.
            _push_ledger(sql, client, namespace, customer)
            _push_ratings(sql, client, namespace, of_rating)
        if invoice_id is not None:
            is_it = tables.invoices.c.invoice_id == invoice_id
            customer = _customer_of(sql, tables.invoices, is_it, namespace, invoice_id)
            _push_ledger(sql, client, namespace, customer)
            _push_payments(sql, client, namespace, tables.payments.c.invoice_id == invoice_id)
            _push_invoices(sql, client, namespace, is_it)
        if rating_id is None and invoice_id is None:
            _push_ledger(sql, client, namespace, None)
            _push_ratings(sql, client, namespace)
            _blank_removed_ratings(sql, client, namespace)
            _push_payments(sql, client, namespace)
            _push_invoices(sql, client, namespace)


def push_ratings(engine: Engine, client: Client, namespace: str, rating_ids: Sequence[str]) -> None:
    """Copy some ratings, their lines, and their customers' ledger."""
    ratings = tables.ratings
    with engine.connect() as sql:
        for start in range(0, len(rating_ids), _NAMES):
            chosen = ratings.c.rating_id.in_(rating_ids[start : start + _NAMES])
            whose = select(ratings.c.customer_id).where(chosen, ratings.c.namespace == namespace)
            # Ratings come last: one that is in the mirror says that all of it is.
            _push_ledger(sql, client, namespace, whose)
            _push_ratings(sql, client, namespace, chosen)


def push_ledger(engine: Engine, client: Client, namespace: str) -> None:
    """Copy the namespace's whole ledger: what is posted outside of ratings and invoices comes with none of them."""
    with engine.connect() as sql:
        _push_ledger(sql, client, namespace, None)


def push_all(engine: Engine, client: Client) -> None:
    """Copy every namespace: for a warehouse that was rebuilt."""
    with engine.connect() as sql:
        names = list(sql.execute(select(tables.namespaces.c.namespace)).scalars())
    for name in names:
        push(engine, client, name)


def push_decisions(engine: Engine, client: Client) -> None:
    """Copy the decisions about usage that are not in the mirror; there they wait to be applied (decided.py)."""
    decisions = tables.decisions
    mirrored, last = client.query("SELECT count(), max(decided_at) FROM mirror_decisions FINAL").result_rows[0]
    last = last.replace(tzinfo=UTC)
    with engine.connect() as sql:
        total = sql.execute(select(func.count()).select_from(decisions)).scalar_one()
        if total == mirrored:
            return
        older = sql.execute(select(func.count()).where(decisions.c.decided_at <= last)).scalar_one()
        query = select(decisions).order_by(decisions.c.decided_at)
        # They come in the order in which they were decided; where one is missing before the last, all are copied again.
        # Those that were applied stay so: theirs is a higher version.
        if older == mirrored:
            query = query.where(decisions.c.decided_at > last)
        rows = ({**row, "event_time": row["event_time_ns"], "version": 0} for row in _rows(sql, query))
        _insert(client, "mirror_decisions", _DECISIONS, rows)


def _customer_of(sql: Connection, table: Any, is_it: Any, namespace: str, name: str) -> Select[Any]:
    whose = select(table.c.customer_id).where(is_it, table.c.namespace == namespace)
    if sql.execute(whose).scalar_one_or_none() is None:
        raise LookupError(f"{table.name} has no {name!r} in namespace {namespace!r}")
    return whose


def _push_ratings(sql: Connection, client: Client, namespace: str, *conditions: Any) -> None:
    ratings, lines = tables.ratings, tables.rated_lines
    chosen = (ratings.c.namespace == namespace, *conditions)
    # Explanations are copied as the text that they are stored as: they are most of a line.
    columns = [cast(it, Text).label(it.name) if it is lines.c.explanation else it for it in lines.c]
    query = (
        select(*columns, ratings.c.namespace, ratings.c.customer_id, ratings.c.result_sha256)
        .join(ratings, ratings.c.rating_id == lines.c.rating_id)
        .where(*chosen)
    )
    # Lines go first: until its rating names their result they are not in the view.
    _insert(client, "mirror_rated_lines", _LINES, (_line(row) for row in _rows(sql, query)))
    ratings_rows = (
        {**row, "version": _version(row["rated_at"], row["closed_at"])}
        for row in _rows(sql, select(ratings).where(*chosen))
    )
    _insert(client, "mirror_ratings", _RATINGS, ratings_rows)


def _blank_removed_ratings(sql: Connection, client: Client, namespace: str) -> None:
    """An open rating may have been replaced by one of another period: its lines must leave the view."""
    kept = set(sql.execute(select(tables.ratings.c.rating_id).where(tables.ratings.c.namespace == namespace)).scalars())
    mirrored = client.query(
        "SELECT * FROM mirror_ratings FINAL WHERE namespace = {namespace:String} AND result_sha256 != ''",
        parameters={"namespace": namespace},
    )
    gone = [row for row in mirrored.named_results() if row["rating_id"] not in kept]
    blank = ({**row, "result_sha256": "", "version": row["version"] + 1} for row in gone)
    _insert(client, "mirror_ratings", _RATINGS, blank)


def _push_invoices(sql: Connection, client: Client, namespace: str, *conditions: Any) -> None:
    invoices, transitions = tables.invoices, tables.invoice_transitions
    changed = (
        select(transitions.c.invoice_id, func.max(transitions.c.changed_at).label("changed_at"))
        .group_by(transitions.c.invoice_id)
        .subquery()
    )
    tax, notes = tables.invoice_taxes, tables.credit_note_issues
    credited = (
        select(
            notes.c.invoice_id,
            cast(func.sum(notes.c.pre_payment_minor), BigInteger).label("credited_minor"),
            func.max(notes.c.issued_at).label("credited_at"),
        )
        .where(notes.c.issued_at.is_not(None))
        .group_by(notes.c.invoice_id)
        .subquery()
    )
    query = (
        select(
            invoices,
            changed.c.changed_at,
            func.coalesce(tax.c.added_minor, 0).label("tax_added_minor"),
            func.coalesce(tax.c.contained_minor, 0).label("tax_contained_minor"),
            func.coalesce(credited.c.credited_minor, 0).label("credited_minor"),
            credited.c.credited_at,
        )
        .outerjoin(changed, changed.c.invoice_id == invoices.c.invoice_id)
        .outerjoin(credited, credited.c.invoice_id == invoices.c.invoice_id)
        .outerjoin(tax, tax.c.stripe_invoice_id == invoices.c.stripe_invoice_id)
        .where(invoices.c.namespace == namespace, *conditions)
    )
    moments = ("created_at", "changed_at", "finalised_at", "paid_at", "credited_at")
    rows = ({**row, "version": _version(*(row[name] for name in moments))} for row in _rows(sql, query))
    _insert(client, "mirror_invoices", _INVOICES, rows)


def _push_payments(sql: Connection, client: Client, namespace: str, *conditions: Any) -> None:
    payments = tables.payments
    query = select(payments).where(payments.c.namespace == namespace, *conditions)
    _insert(client, "mirror_payments", _PAYMENTS, _rows(sql, query))


def _push_ledger(sql: Connection, client: Client, namespace: str, customers: Select[Any] | None) -> None:
    transactions, entries = tables.ledger_transactions, tables.ledger_entries
    query = (
        select(transactions, entries.c.position, entries.c.account, entries.c.amount_minor, entries.c.currency)
        .join(entries, entries.c.transaction_id == transactions.c.transaction_id)
        .where(transactions.c.namespace == namespace)
    )
    if customers is not None:
        query = query.where(transactions.c.customer_id.in_(customers))
    _insert(client, "mirror_ledger_entries", _LEDGER, _rows(sql, query))


def _rows(sql: Connection, query: Select[Any]) -> Iterator[dict[str, Any]]:
    result = sql.execution_options(yield_per=CHUNK_ROWS).execute(query)
    names = list(result.keys())
    for row in result:
        yield dict(zip(names, row, strict=True))


def _line(row: dict[str, Any]) -> dict[str, Any]:
    return {
        **row,
        "dimensions": json.dumps(row["dimensions"], sort_keys=True),
        "amount_exact": row["amount_exact"].quantize(_AMOUNT_STEP, context=_WIDE),
    }


def _version(*times: datetime | None) -> int:
    """Microseconds of the latest time: a later state of the row wins, the same state again changes nothing."""
    latest = max(time for time in times if time is not None)
    return int(latest.timestamp()) * 1_000_000 + latest.microsecond


def _insert(client: Client, table: str, columns: dict[str, str], rows: Iterable[dict[str, Any]]) -> None:
    iterator = iter(rows)
    while chunk := [_values(row, columns) for row in islice(iterator, CHUNK_ROWS)]:
        client.insert(
            table,
            chunk,
            column_names=list(columns),
            column_type_names=list(columns.values()),
            # Acknowledged means stored: neither the server's insert queue nor a distributed table's own.
            settings={"async_insert": 0, "distributed_foreground_insert": 1},
        )


def _values(row: dict[str, Any], columns: dict[str, str]) -> Sequence[Any]:
    """The row in the order of the columns; where SQL has nothing and the mirror no NULL, the empty string."""
    return [
        "" if row[name] is None and not kind.startswith("Nullable") else row[name] for name, kind in columns.items()
    ]
