"""The aggregate query as text, and the exactness of what comes back."""

from decimal import Decimal

import pytest
from rating_samples import at

from meterhouse_rating.periods import Period
from meterhouse_rating.queries import aggregate_query, window_parameters
from meterhouse_rating.usage import aggregates

OCTOBER = Period(at("2026-10-01"), at("2026-11-01"))


def test_the_query_groups_by_the_priced_dimensions_only_and_binds_every_value():
    assert aggregate_query(("model", "tool"), None) == (
        "SELECT billed_customer_id, meter, status, model, tool, count(), sum(quantity) FROM usage WHERE "
        "namespace = {namespace:String} "
        "AND event_time >= fromUnixTimestamp64Nano({start_ns:Int64}, 'UTC') "
        "AND event_time < fromUnixTimestamp64Nano({end_ns:Int64}, 'UTC') "
        "AND known_at > fromUnixTimestamp64Nano({after_ns:Int64}, 'UTC') "
        "AND known_at <= fromUnixTimestamp64Nano({as_of_ns:Int64}, 'UTC') "
        "GROUP BY billed_customer_id, meter, status, model, tool "
        "ORDER BY billed_customer_id, meter, status, model, tool LIMIT 10001 BY billed_customer_id"
    )


def test_the_query_of_one_customer_binds_its_name():
    assert " AND billed_customer_id IN {customers:Array(String)} GROUP BY" in aggregate_query((), ["acme"])
    parameters = window_parameters("live", OCTOBER, as_of=at("2026-11-02"), customers=["acme' OR 1"])
    assert parameters["customers"] == ["acme' OR 1"]
    assert (parameters["start_ns"], parameters["end_ns"]) == (1790812800 * 10**9, 1793491200 * 10**9)


def test_a_dimension_that_is_no_column_never_reaches_the_query():
    with pytest.raises(ValueError, match="no dimensions of usage"):
        aggregate_query(("model) --",), None)


def test_periods_are_half_open_to_the_nanosecond_and_sums_are_exact(sqlite_house):
    house = sqlite_house
    names = "namespace, customer_id, meter, event_id, event_time, quantity, received_at, first, status"
    start = 1790812800 * 10**9
    end = 1793491200 * 10**9
    rows = [
        ("before", start - 1, "1"),
        ("first", start, "0.000000001"),
        ("big", start + 1, "123456789012345.000000001"),
        ("last", end - 1, "0.000000001"),
        ("after", end, "1"),
    ]
    values = ", ".join(
        f"('test', 'acme', 'agent.seconds', '{name}', fromUnixTimestamp64Nano({moment}, 'UTC'), "
        f"toDecimal128('{quantity}', 9), toDateTime64('2026-11-02', 9, 'UTC'), 1, 'ok')"
        for name, moment, quantity in rows
    )
    house.world.client.command(f"INSERT INTO events ({names}) VALUES {values}")
    (found,) = aggregates(house.world.client, "test", OCTOBER, (), as_of=at("2026-11-02"))["acme"]
    assert (found.events, found.quantity) == (3, Decimal("123456789012345.000000003"))


def test_an_event_that_arrived_twice_counts_once(sqlite_house):
    house = sqlite_house
    for received in ("2026-10-05T00:01:00", "2026-10-05T00:02:00"):
        house.event("acme", "llm.tokens.input", "7", "2026-10-05T00:00:00", event_id="one", received=received)
    (found,) = aggregates(house.world.client, "test", OCTOBER, (), as_of=at("2026-11-02"))["acme"]
    assert (found.events, found.quantity) == (1, Decimal(7))


def test_customers_with_strange_names_are_asked_for_literally(sqlite_house):
    house = sqlite_house
    name = "a'b\\c\n\"{x:String}"
    house.event(name, "llm.tokens.input", "7", "2026-10-05T00:00:00")
    found = aggregates(house.world.client, "test", OCTOBER, (), as_of=at("2026-11-02"), customers=[name])
    assert list(found) == [name]
