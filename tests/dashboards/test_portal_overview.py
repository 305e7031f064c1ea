"""What the portal reads: usage from the real engine, cost and plans from the real SQL schema."""

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from sqlalchemy import insert

from meterhouse_portal import overview
from meterhouse_portal.overview import Cost, MeterUsage, Month, Unrated
from meterhouse_rating.late import LateUsage
from meterhouse_rating.periods import Period
from meterhouse_store import registry, sql, tables
from meterhouse_store.settings import Settings

NOW = datetime(2026, 11, 21, 3, 30, tzinfo=UTC)
NOVEMBER = Month(2026, 11)


@pytest.fixture
def engine(tmp_path):
    engine = sql.open_engine(Settings(data=tmp_path / "data"))
    registry.ensure_namespace(engine, "live", now=NOW)
    yield engine
    engine.dispose()


@pytest.fixture
def store_events(warehouse_client):
    def store(*rows: tuple[str, str, str, str, str]) -> None:
        values = ", ".join(
            f"('{namespace}', '{customer}', '{meter}', 'e{index}', toDateTime64('{time}', 9, 'UTC'), {quantity}, '', "
            f"'{'customer_missing' if not customer else ''}', toDateTime64('{time}', 9, 'UTC'), {index})"
            for index, (namespace, customer, meter, time, quantity) in enumerate(rows)
        )
        warehouse_client.command(
            "INSERT INTO events (namespace, customer_id, meter, event_id, event_time, quantity, raw_value, reason, "
            f"received_at, first) VALUES {values}"
        )

    return store


def test_the_month_is_half_open_in_each_customer_s_own_time_zone(reader_client, store_events):
    store_events(
        # Berlin is one hour ahead of UTC on both edges, Honolulu ten behind.
        ("live", "berlin", "llm.requests", "2026-10-31 22:59:59.999999999", "1"),
        ("live", "berlin", "llm.requests", "2026-10-31 23:00:00", "2"),
        ("live", "berlin", "llm.requests", "2026-11-30 22:59:59.999999999", "4"),
        ("live", "berlin", "llm.requests", "2026-11-30 23:00:00", "8"),
        ("live", "honolulu", "llm.requests", "2026-11-01 09:59:59", "16"),
        ("live", "honolulu", "llm.requests", "2026-12-01 09:59:59", "32"),
        ("live", "stranger", "llm.requests", "2026-11-01 00:00:00", "64"),
        ("live", "stranger", "llm.requests", "2026-12-01 00:00:00", "128"),
        ("test", "stranger", "llm.requests", "2026-11-02 00:00:00", "256"),
    )

    found = overview.read_warehouse(
        reader_client, "live", NOVEMBER, {"berlin": "Europe/Berlin", "honolulu": "Pacific/Honolulu"}
    )

    assert found.usage == {
        "berlin": [MeterUsage("llm.requests", Decimal(6), 2)],
        "honolulu": [MeterUsage("llm.requests", Decimal(32), 1)],
        "stranger": [MeterUsage("llm.requests", Decimal(64), 1)],
    }


def test_what_is_held_back_is_counted_by_reason_and_is_in_nobody_s_usage(reader_client, store_events):
    store_events(
        ("live", "", "llm.requests", "2026-11-01 00:00:00", "1"),
        ("", "", "llm.requests", "2026-11-30 23:59:59", "1"),  # what could not be read is everybody's
        ("live", "", "llm.requests", "2026-12-01 00:00:00", "1"),
        ("live", "", "llm.requests", "2026-10-31 23:59:59", "1"),
        ("live", "", "llm.requests", "2025-01-02 00:00:00", "1"),
        ("test", "", "llm.requests", "2026-11-02 00:00:00", "1"),
    )

    found = overview.read_warehouse(reader_client, "live", NOVEMBER, {})

    assert (found.suspense, found.suspense_elsewhere) == ({"customer_missing": 2}, 3)
    assert found.usage == {}
    assert found.latest_event_time is None


def test_the_watermark_is_that_of_the_slowest_collector(warehouse_client, reader_client):
    assert overview.read_warehouse(reader_client, "live", NOVEMBER, {}).projected_through is None
    warehouse_client.command(
        "INSERT INTO checkpoints (collector_id, segment, position, projected_through, step) VALUES "
        "('a', 's', 1, '2026-11-21 03:00:00', 1), ('b', 's', 1, '2026-11-21 02:00:00', 1)"
    )

    found = overview.read_warehouse(reader_client, "live", NOVEMBER, {})

    assert found.projected_through == datetime(2026, 11, 21, 2, tzinfo=UTC)


def test_a_month_without_usage_knows_when_the_latest_was(reader_client, store_events):
    store_events(("live", "acme", "llm.requests", "2026-09-30 12:00:00", "1"))

    found = overview.read_warehouse(reader_client, "live", NOVEMBER, {})

    assert found.latest_event_time == datetime(2026, 9, 30, 12, tzinfo=UTC)


def rating(rating_id, customer_id, start, end, total_minor, state="open"):
    return {
        "rating_id": rating_id,
        "namespace": "live",
        "customer_id": customer_id,
        "period_start": start,
        "period_end": end,
        "state": state,
        "currency": "EUR",
        "plan": "team",
        "book_version": 1,
        "watermark": {},
        "as_of": NOW,
        "inputs_sha256": "i",
        "result_sha256": "r",
        "total_minor": total_minor,
        "rated_at": NOW,
    }


def test_costs_plans_and_invoices_come_from_sql_also_when_the_warehouse_is_down(engine):
    registry.add_customer(
        engine, "live", "acme", name="Acme GmbH", time_zone="Europe/Berlin", currency="EUR", plan="team", now=NOW
    )
    start, end = datetime(2026, 10, 31, 23, tzinfo=UTC), datetime(2026, 11, 30, 23, tzinfo=UTC)
    october = datetime(2026, 9, 30, 22, tzinfo=UTC)
    with sql.begin_write(engine) as connection:
        connection.execute(insert(tables.ratings), [rating("r1", "acme", start, end, 1234)])
        connection.execute(insert(tables.ratings), [rating("r0", "acme", october, start, 999, "closed")])
        connection.execute(
            insert(tables.invoices).values(
                invoice_id="i1", namespace="live", customer_id="acme", rating_id="r1", period_start=start,
                period_end=end, state="draft", currency="EUR", total_minor=1234, created_at=NOW,
            )
        )  # fmt: skip

    found = overview.read(engine, "live", NOVEMBER, None, NOW)

    (acme,) = found.customers
    assert (acme.name, acme.plan, acme.usage) == ("Acme GmbH", "team", ())
    assert acme.costs == (Cost(start, end, "open", 1234, "EUR", NOW, "draft"),)
    assert found.warehouse is None


def test_unrated_usage_is_summed_by_hint_and_what_is_free_by_choice_is_left_out(engine):
    period = NOVEMBER.within("UTC")
    row = {
        "namespace": "live", "customer_id": "acme", "period_start": period.start, "period_end": period.end,
        "meter": "m", "dimensions": {}, "quantity": Decimal(1),
    }  # fmt: skip
    rows = [
        {**row, "unrated_id": "1", "events": 3, "reason": "no_price", "hint": "add m"},
        {**row, "unrated_id": "2", "events": 4, "reason": "no_price", "hint": "add m"},
        {**row, "unrated_id": "3", "events": 5, "reason": "unbilled_meter", "hint": "free"},
        {**row, "unrated_id": "4", "events": 6, "reason": "no_price", "hint": "other", "namespace": "test"},
        {**row, "unrated_id": "5", "events": 2, "reason": "cost_unknown", "hint": "set it"},
    ]
    with sql.begin_write(engine) as connection:
        connection.execute(insert(tables.unrated_usage), rows)

    found = overview.read(engine, "live", NOVEMBER, None, NOW)
    other = overview.read(engine, "live", Month(2026, 10), None, NOW)

    assert found.unrated == (Unrated("no_price", "add m", 7), Unrated("cost_unknown", "set it", 2))
    assert [(customer.customer_id, customer.unpriced) for customer in found.customers] == [("acme", 9)]
    assert (found.unrated_elsewhere, other.unrated, other.unrated_elsewhere) == (0, (), 9)


def test_the_plan_shown_is_the_one_that_prices_the_month(engine):
    for plan, valid_from in (("team", datetime(2026, 9, 1, tzinfo=UTC)), ("gold", datetime(2026, 11, 15, tzinfo=UTC))):
        registry.add_customer(engine, "live", "acme", plan=plan, valid_from=valid_from, now=NOW)

    def plan_in(month):
        (acme,) = overview.read(engine, "live", month, None, NOW).customers
        return acme.plan

    assert [plan_in(Month(2026, month)) for month in (8, 10, 11, 12)] == [None, "team", "team", "gold"]


def test_usage_that_came_after_its_period_was_closed_is_late(engine, reader_client, store_events):
    start, end = datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC)
    row = {**rating("r1", "acme", start, end, 100, "closed"), "as_of": datetime(2026, 10, 20, tzinfo=UTC)}
    with sql.begin_write(engine) as connection:
        connection.execute(insert(tables.ratings), [row])
    # The helper stores an event as received at its event time, so only the last one came after the closing.
    store_events(
        ("live", "acme", "llm.requests", "2026-10-19 00:00:00", "1"),
        ("live", "acme", "llm.requests", "2026-10-21 00:00:00", "4"),
    )

    def late_in(month):
        return overview.read_late(engine, reader_client, "live", month, {"acme": "UTC"}, NOW)

    assert late_in(Month(2026, 10)) == (LateUsage("acme", Period(start, end), "llm.requests", 1, Decimal(4)),)
    assert late_in(NOVEMBER) == ()


def test_the_customers_with_the_most_events_come_first_and_the_rest_is_counted(engine, monkeypatch):
    monkeypatch.setattr(overview, "CUSTOMERS_SHOWN", 2)
    usage = {name: [MeterUsage("llm.requests", Decimal(1), events)] for name, events in (("a", 1), ("b", 9), ("c", 5))}

    found = overview.read(engine, "live", NOVEMBER, overview.FromWarehouse(usage), NOW)

    assert [customer.customer_id for customer in found.customers] == ["b", "c"]
    assert found.not_shown == 1
