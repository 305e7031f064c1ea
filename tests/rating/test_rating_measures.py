"""What a metric counts: text of the queries, their results on the real engine, and what 'conserved' means for each."""

from dataclasses import replace
from decimal import Decimal

import pytest
from rating_samples import at, book_with, rated, used

from meterhouse_rating import queries, usage
from meterhouse_rating.book import parse
from meterhouse_rating.engine import ConservationError
from meterhouse_rating.metrics import ALL_TASKS, OK_ONLY, Metric
from meterhouse_rating.periods import Period
from meterhouse_rating.sorting import Measure, Measurement, measurements
from meterhouse_store.tables import rated_lines, unrated_usage

OCTOBER = Period(at("2026-10-01"), at("2026-11-01"))
AS_OF = at("2026-11-21")


def metric(aggregate, of=None, per="1", meters=("agent.seconds",)):
    return Metric("m", "unit", meters, 1, aggregate, of, Decimal(per))


def measured(house, aggregate, *dimensions, of=None, per="1", tasks=ALL_TASKS, free=("failed",), as_of=AS_OF):
    wanted = Measurement(metric(aggregate, of, per), dimensions, free, tasks)
    found = usage.gather(house.world.client, "test", OCTOBER, usage.Wanted((), False, (wanted,)), as_of=as_of)
    return [
        (customer, *(value for _, value in it.dimensions), it.events, it.value)
        for customer in sorted(found)
        for it in found[customer].measures
    ]


def level(house, quantity, when, customer="acme", **columns):
    house.event(customer, "agent.seconds", quantity, when, **columns)


# ---- the text --------------------------------------------------------------------------------------------------------


def test_a_count_of_different_values_is_exact_and_binds_the_name_of_an_attribute():
    wanted = Measurement(metric("unique", "attributes.user"), ("attributes.region",), ("failed",), ALL_TASKS)
    text = queries.measure_query(wanted, None)
    assert text.startswith(
        "SELECT billed_customer_id, attributes[{attribute_0:String}], count(), "
        "uniqExact(attributes[{attribute_of:String}]) FROM usage WHERE "
    )
    assert " AND meter IN {meters:Array(String)} AND status NOT IN {free:Array(String)} GROUP BY " in text
    parameters = queries.measure_parameters("test", OCTOBER, wanted, as_of=AS_OF)
    assert (parameters["attribute_0"], parameters["attribute_of"]) == ("region", "user")
    assert (parameters["meters"], parameters["free"]) == (["agent.seconds"], ["failed"])


@pytest.mark.parametrize("name", ["attributes.a'b", "attributes.", "attributes.x y", "quantity", "model) --"])
def test_a_dimension_that_is_none_never_reaches_a_query(name):
    with pytest.raises(ValueError, match="no dimensions of usage"):
        queries.measure_query(Measurement(metric("max"), (name,), (), ALL_TASKS), None)
    with pytest.raises(ValueError, match="no dimensions of usage"):
        queries.aggregate_query((name,), None)


# ---- on the engine ---------------------------------------------------------------------------------------------------


def test_the_maximum_of_billed_calls_per_dimension(sqlite_house):
    for quantity, model, status in (("3", "a", "ok"), ("7.5", "a", "ok"), ("99", "a", "failed"), ("2", "b", "ok")):
        level(sqlite_house, quantity, "2026-10-05T00:00:00", model=model, status=status)
    assert measured(sqlite_house, "max", "model") == [
        ("acme", "a", 2, Decimal("7.5")),
        ("acme", "b", 1, Decimal(2)),
    ]


def test_different_values_are_counted_once_and_an_absent_one_counts_as_one(sqlite_house):
    for conversation in ("c1", "c1", "c2", "", ""):
        level(sqlite_house, "1", "2026-10-05T00:00:00", conversation_id=conversation)
    level(sqlite_house, "1", "2026-10-05T00:00:00", customer="other", conversation_id="c1")
    assert measured(sqlite_house, "unique", of="conversation_id") == [("acme", 5, 3), ("other", 1, 1)]


def test_a_level_holds_from_its_event_to_the_next_and_from_before_the_period_on(sqlite_house):
    # 10 from September on: 4 days of October; then 20 for 6 days; then 0: 10 x 96 h + 20 x 144 h = 3,840
    level(sqlite_house, "10", "2026-09-20T00:00:00")
    level(sqlite_house, "20", "2026-10-05T00:00:00")
    level(sqlite_house, "0", "2026-10-11T00:00:00")
    assert measured(sqlite_house, "time_weighted", per="3600") == [("acme", 2, Decimal(3840))]


def test_levels_of_several_things_add_up(sqlite_house):
    for volume, quantity in (("v1", "10"), ("v2", "1")):
        level(sqlite_house, quantity, "2026-10-31T00:00:00", agent_id=volume)
    level(sqlite_house, "0", "2026-10-31T12:00:00", agent_id="v1")
    # v1: 10 for 12 h; v2: 1 for 24 h
    assert measured(sqlite_house, "time_weighted", of="agent_id", per="3600") == [("acme", 3, Decimal(144))]
    assert measured(sqlite_house, "latest", of="agent_id") == [("acme", 3, Decimal(1))]


def test_a_period_under_way_counts_a_level_up_to_now(sqlite_house):
    level(sqlite_house, "2", "2026-10-01T00:00:00")
    assert measured(sqlite_house, "time_weighted", per="86400", as_of=at("2026-10-04")) == [("acme", 1, Decimal(6))]


def test_the_latest_level_goes_on_when_there_was_no_event_in_the_period(sqlite_house):
    level(sqlite_house, "5", "2026-09-20T00:00:00")
    assert measured(sqlite_house, "latest") == [("acme", 0, Decimal(5))]


def test_of_two_levels_at_the_same_moment_the_one_with_the_later_name_holds(sqlite_house):
    level(sqlite_house, "5", "2026-10-20T00:00:00", event_id="b")
    level(sqlite_house, "9", "2026-10-20T00:00:00", event_id="a")
    assert measured(sqlite_house, "latest") == [("acme", 2, Decimal(5))]


def test_calls_of_tasks_that_failed_are_left_out_where_the_book_says_so(sqlite_house):
    for task, quantity in (("good", "1"), ("bad", "2"), ("open", "3"), ("", "4")):
        level(sqlite_house, quantity, "2026-10-05T00:00:00", task_id=task)
    outcome(sqlite_house, "good", "ok", "2026-11-02T00:00:00")
    outcome(sqlite_house, "bad", "failed", "2026-10-06T00:00:00")
    assert measured(sqlite_house, "max", tasks=OK_ONLY) == [("acme", 2, Decimal(4))]
    wanted = usage.Wanted((), True)
    rows = usage.gather(sqlite_house.world.client, "test", OCTOBER, wanted, as_of=AS_OF)["acme"].rows
    assert sorted((row.task, row.quantity) for row in rows if row.meter == "agent.seconds") == [
        ("", Decimal(4)),
        ("failed", Decimal(2)),
        ("ok", Decimal(1)),
        ("open", Decimal(3)),
    ]


def test_a_task_that_failed_and_was_run_again_well_ended_well(sqlite_house):
    level(sqlite_house, "1", "2026-10-05T00:00:00", task_id="t")
    outcome(sqlite_house, "t", "failed", "2026-10-05T01:00:00")
    outcome(sqlite_house, "t", "ok", "2026-10-05T02:00:00")
    assert measured(sqlite_house, "max", tasks=OK_ONLY) == [("acme", 1, Decimal(1))]


def outcome(house, task, status, when):
    house.event("acme", "agent.tasks", "1", when, task_id=task, status=status)


# ---- rated -----------------------------------------------------------------------------------------------------------

BOOK = """
book: measured
currency: USD
metrics:
  conversations: {unit: conversation, meters: [llm.requests], aggregate: unique, of: conversation_id}
  storage: {unit: GB hour, meters: [storage.gb], aggregate: time_weighted, per: hour}
  calls: {unit: call, meters: [tool.calls], aggregate: count, statuses: [ok, failed]}
  seconds: {unit: s, meters: [agent.seconds], tasks: ok_only}
unbilled: {meters: [agent.tasks]}
plans:
  pay:
    components:
      talk: {model: graduated, metric: conversations, tiers: [{up_to: 2, price: 1.00}, {price: 0.50}]}
      store: {model: per_unit, metric: storage, price: 0.01}
      tools: {model: per_unit, metric: calls, price: 0.10}
      work: {model: per_unit, metric: seconds, price: 0.25}
"""


def test_a_month_of_all_of_them_is_rated_and_everything_that_went_in_is_accounted_for(sqlite_house, monkeypatch):
    house = sqlite_house
    from meterhouse_store.meters import Meter

    gauge = Meter("storage.gb", "GBy", "stored", "decimal", Decimal(1))
    house.world = replace(house.world, meters={**house.world.meters, "storage.gb": gauge})
    house.publish(BOOK)
    house.customer("acme")
    for conversation in ("a", "a", "b", "c"):
        house.event("acme", "llm.requests", "1", "2026-10-02T00:00:00", conversation_id=conversation)
    house.event("acme", "storage.gb", "5", "2026-10-31T00:00:00")
    for status in ("ok", "failed", "aborted"):
        house.event("acme", "tool.calls", "3", "2026-10-02T00:00:00", status=status)
    house.event("acme", "agent.seconds", "8", "2026-10-02T00:00:00", task_id="good")
    house.event("acme", "agent.seconds", "4", "2026-10-02T00:00:00", task_id="bad")
    outcome(house, "good", "ok", "2026-10-03T00:00:00")
    outcome(house, "bad", "failed", "2026-10-03T00:00:00")
    house.collected()
    house.run()
    # 3 conversations: 2 x 1.00 + 0.50; 5 GB for 24 h x 0.01; 2 calls; 8 s of the task that ended well
    assert sorted((row["description"], row["quantity"], row["amount_minor"]) for row in house.rows(rated_lines)) == [
        ("store", Decimal(120), 120),
        ("talk", Decimal(3), 250),
        ("tools", Decimal(2), 20),
        ("work", Decimal(8), 200),
    ]
    meters = {row["description"]: row["explanation"]["meters"] for row in house.rows(rated_lines)}
    assert meters["talk"] == {"llm.requests": "4"}
    assert sorted((row["meter"], row["quantity"], row["reason"]) for row in house.rows(unrated_usage)) == [
        ("agent.seconds", Decimal(4), "unbilled_task"),
        ("agent.tasks", Decimal(1), "unbilled_meter"),
        ("agent.tasks", Decimal(1), "unbilled_status"),
        ("tool.calls", Decimal(3), "unbilled_status"),
    ]


def test_a_measure_over_other_events_than_there_are_is_found_out():
    book = parse(BOOK)
    (talk, _) = measurements(book, book.plans.values())
    row = used("llm.requests", "4", events=4)
    declared = frozenset({"llm.requests"})

    def with_measure(events):
        return rated(book, row, plan="pay", declared=declared, measures=(Measure(talk, (), events, Decimal(3)),))

    assert with_measure(4).total_minor == 250
    with pytest.raises(ConservationError, match="measured over 3 events, and there are 4"):
        with_measure(3)


def test_usage_that_nothing_was_measured_for_is_found_out():
    book = parse(BOOK)
    with pytest.raises(ConservationError, match="measured over 0 events"):
        rated(book, used("llm.requests", "4", events=4), plan="pay", declared=frozenset({"llm.requests"}))


def test_a_component_may_bill_other_calls_than_its_metric_and_the_metric_others_than_the_book():
    book = book_with("in: {model: per_unit, metric: input, price: 1, statuses: [aborted]}")
    result = rated(book, used("llm.tokens.input", "5"), used("llm.tokens.input", "7", status="aborted"))
    assert result.total_minor == 700
    assert [(left.reason, left.quantity) for left in result.leftovers] == [("unbilled_status", Decimal(5))]


def test_a_customer_with_more_groups_than_are_rated_is_left_unrated_and_the_others_are_rated(sqlite_house, monkeypatch):
    house = sqlite_house
    monkeypatch.setattr(queries, "MAX_GROUPS", 2)
    monkeypatch.setattr(usage, "MAX_GROUPS", 2)
    house.publish(
        BOOK.replace(
            "metric: calls, price: 0.10",
            "metric: calls, by: [call_id], default: 0.10, prices: [{call_id: x, price: 1}]",
        )
        .replace("[llm.requests], aggregate: unique, of: conversation_id", "[llm.requests]")
        .replace("storage.gb", "api.calls")
    )
    house.customer("acme")
    house.customer("other")
    for number in range(4):
        house.event("acme", "tool.calls", "1", "2026-10-02T00:00:00", call_id=f"call-{number}")
    house.event("other", "tool.calls", "1", "2026-10-02T00:00:00", call_id="x")
    house.collected()
    house.run()
    assert [row["amount_minor"] for row in house.rows(rated_lines)] == [100]
    (left,) = house.rows(unrated_usage)
    assert (left["customer_id"], left["reason"], left["quantity"]) == ("acme", "too_many_groups", Decimal(4))
    assert "combinations of call_id" in left["hint"]
