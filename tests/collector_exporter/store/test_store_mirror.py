"""Money copied from SQL into the real engine."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from sqlalchemy import delete, insert, update

from meterhouse_store import mirror, registry, tables
from meterhouse_store.settings import Settings
from meterhouse_store.sql import begin_write, open_engine

START = datetime(2026, 10, 1, tzinfo=UTC)
END = datetime(2026, 11, 1, tzinfo=UTC)
RATED = datetime(2026, 11, 2, 3, 4, 5, 678901, tzinfo=UTC)


@pytest.fixture
def engine(tmp_path):
    found = open_engine(Settings(data=tmp_path))
    yield found
    found.dispose()


@pytest.fixture
def namespace(engine, request):
    name = f"mirror-{abs(hash(request.node.name)) % 10**8}"
    registry.ensure_namespace(engine, name, now=START)
    return name


@pytest.fixture
def client(warehouse):
    found = warehouse.client(database="meterhouse", autogenerate_session_id=False)
    yield found
    found.close()


def rating(namespace, **changes):
    return {
        "rating_id": f"{namespace}-r1", "namespace": namespace, "customer_id": "acme", "period_start": START,
        "period_end": END, "state": "open", "currency": "USD", "plan": "team", "book_version": 1, "watermark": {"c": 1},
        "as_of": END, "inputs_sha256": "i", "result_sha256": "first", "total_minor": 1234, "rated_at": RATED,
    } | changes  # fmt: skip


def line(namespace, number, **changes):
    return {
        "line_id": f"{namespace}-l{number}", "rating_id": f"{namespace}-r1", "position": number, "kind": "usage",
        "component": "tokens", "metric": None, "description": f"line {number}", "quantity": Decimal("1000.5"),
        "unit": "{token}", "dimensions": {"model": "m"}, "amount_exact": Decimal("12.3400000000001"),
        "amount_minor": 1234, "currency": "USD", "explanation": {"steps": []},
    } | changes  # fmt: skip


def read(client, namespace, columns, view):
    query = f"SELECT {columns} FROM {view} WHERE namespace = {{n:String}} ORDER BY ALL"
    return client.query(query, parameters={"n": namespace}).result_rows


def test_lines_arrive_exactly_and_once_however_often_they_are_pushed(engine, client, namespace):
    huge = Decimal("123456789012345678901.123456789012345678")
    with begin_write(engine) as sql:
        sql.execute(insert(tables.ratings), rating(namespace))
        sql.execute(insert(tables.rated_lines), [line(namespace, 1), line(namespace, 2, amount_exact=huge)])
    for _ in range(3):
        mirror.push(engine, client, namespace, rating_id=f"{namespace}-r1")
    found = read(
        client, namespace, "position, quantity, amount_exact, amount_minor, metric, dimensions, rated_at", "rated_lines"
    )
    assert found == [
        (1, Decimal("1000.5"), Decimal("12.3400000000001"), 1234, "", '{"model": "m"}', RATED.replace(tzinfo=None)),
        (2, Decimal("1000.5"), huge, 1234, "", '{"model": "m"}', RATED.replace(tzinfo=None)),
    ]


def test_lines_that_a_later_run_replaced_leave_the_view(engine, client, namespace):
    with begin_write(engine) as sql:
        sql.execute(insert(tables.ratings), rating(namespace))
        sql.execute(insert(tables.rated_lines), [line(namespace, 1), line(namespace, 2)])
    mirror.push(engine, client, namespace)
    with begin_write(engine) as sql:
        sql.execute(delete(tables.rated_lines).where(tables.rated_lines.c.line_id == f"{namespace}-l2"))
        sql.execute(
            update(tables.ratings).values(
                result_sha256="second", rated_at=RATED + timedelta(microseconds=1), total_minor=7
            )
        )
    mirror.push(engine, client, namespace, rating_id=f"{namespace}-r1")
    assert read(client, namespace, "position", "rated_lines") == [(1,)]


def test_a_rating_that_sql_no_longer_has_leaves_the_view(engine, client, namespace):
    with begin_write(engine) as sql:
        sql.execute(insert(tables.ratings), rating(namespace))
        sql.execute(insert(tables.rated_lines), [line(namespace, 1)])
    mirror.push(engine, client, namespace)
    with begin_write(engine) as sql:
        sql.execute(delete(tables.rated_lines))
        sql.execute(delete(tables.ratings))
    mirror.push_all(engine, client)
    assert read(client, namespace, "position", "rated_lines") == []


def test_ledger_invoice_and_payment_show_their_latest_state(engine, client, namespace):
    with begin_write(engine) as sql:
        sql.execute(insert(tables.ratings), rating(namespace))
        sql.execute(
            insert(tables.ledger_transactions),
            {
                "transaction_id": f"{namespace}-t", "namespace": namespace, "customer_id": "acme", "kind": "usage",
                "source_id": "l1", "effective_at": END, "recorded_at": RATED, "corrects": None, "memo": "",
            },
        )  # fmt: skip
        for position, account, amount in ((0, "receivable", 1234), (1, "revenue", -1234)):
            sql.execute(
                insert(tables.ledger_entries),
                {"transaction_id": f"{namespace}-t", "position": position, "account": account, "amount_minor": amount,
                 "currency": "USD"},
            )  # fmt: skip
        sql.execute(
            insert(tables.invoices),
            {
                "invoice_id": f"{namespace}-i", "namespace": namespace, "customer_id": "acme",
                "rating_id": f"{namespace}-r1", "period_start": START, "period_end": END, "state": "draft",
                "currency": "USD", "total_minor": 1234, "created_at": RATED,
            },
        )  # fmt: skip
    mirror.push(engine, client, namespace, invoice_id=f"{namespace}-i")
    assert read(client, namespace, "state, stripe_invoice_id, paid_at", "invoices") == [("draft", "", None)]
    with begin_write(engine) as sql:
        sql.execute(
            update(tables.invoices).values(state="paid", paid_at=RATED + timedelta(days=1), stripe_invoice_id="in_1")
        )
        sql.execute(
            insert(tables.payments),
            {"payment_id": f"{namespace}-p", "namespace": namespace, "invoice_id": f"{namespace}-i",
             "customer_id": "acme", "amount_minor": 1234, "currency": "USD", "paid_at": RATED + timedelta(days=1)},
        )  # fmt: skip
    for _ in range(2):
        mirror.push(engine, client, namespace, invoice_id=f"{namespace}-i")
    assert read(client, namespace, "state, stripe_invoice_id", "invoices") == [("paid", "in_1")]
    assert read(client, namespace, "amount_minor", "payments") == [(1234,)]
    assert read(client, namespace, "account, amount_minor", "ledger_entries") == [
        ("receivable", 1234),
        ("revenue", -1234),
    ]


def test_an_id_of_another_namespace_is_not_found(engine, client, namespace):
    with pytest.raises(LookupError, match="ratings has no 'nothing'"):
        mirror.push(engine, client, namespace, rating_id="nothing")
