"""Which months are due: worked out by hand, whether or not days are summed; and of whom all usage is read for it."""

import pytest
from rating_samples import at

from meterhouse_rating import known, recorrect, usage, windows
from meterhouse_rating.periods import PeriodError
from meterhouse_rating.queries import FIRST_USAGE
from meterhouse_store import registry, rollups, tables

BOOK = """
book: due
currency: USD
metrics:
  input: {unit: token, meters: [llm.tokens.input]}
plans:
  pay: {components: {in: {model: per_unit, metric: input, price: 1.00}}}
"""


@pytest.fixture
def house(sqlite_house):
    """It is 21 November. tokyo and settled are registered in October and first used something in August or earlier;
    settled's August and September are closed. of_old is registered in July. late's first event is not known yet.
    """
    house = sqlite_house
    house.publish(BOOK, now=at("2026-01-01"))
    october = {"now": at("2026-10-05")}
    house.customer("of_old", now=at("2026-07-10"), valid_from=at("2026-07-10"))
    house.customer("settled", **october)
    house.customer("tokyo", time_zone="Asia/Tokyo", **october)
    house.customer("late", **october)
    house.customer("quiet", **october)
    for customer, when, more in (
        ("settled", "2026-08-20T00:00:00", {}),
        ("settled", "2026-09-20T00:00:00", {}),
        ("of_old", "2026-08-20T00:00:00", {}),
        ("tokyo", "2026-08-31T16:00:00", {}),  # 1 September there
        ("late", "2026-08-20T00:00:00", {"received": "2026-11-21T12:00:01"}),
        ("late", "2026-09-20T00:00:00", {}),
        ("stranger", "2026-09-10T00:00:00", {}),
    ):
        house.event(customer, "llm.tokens.input", "1", when, **more)
    house.collected("2026-11-21T12:00:00")
    for month in ("2026-08", "2026-09"):
        house.close(month, customer="settled")
    house.at(at("2026-11-21T12:00:00"))
    return house


DUE = {
    "of_old": ("2026-07-01T00", 5),
    "settled": ("2026-10-01T00", 2),
    "tokyo": ("2026-08-31T15", 3),
    "late": ("2026-09-01T00", 3),
    "quiet": ("2026-10-01T00", 2),
    "stranger": ("2026-09-01T00", 3),
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("summed", [True, False])
def test_the_months_that_are_due_begin_with_the_first_usage_or_the_contract(house, summed, monkeypatch):
    if summed:
        rollups.roll_up(house.world.client, settled_s=0)
    asked, query = [], type(house.world.client).query

    def recorded(client, text, *arguments, **more):
        if text == FIRST_USAGE:
            asked.append(more["parameters"]["customers"])
        return query(client, text, *arguments, **more)

    monkeypatch.setattr(type(house.world.client), "query", recorded)
    found = windows.asked_for(house.world, None, None, known.terms(house.world), at("2026-11-21T12:00:00"))
    due = {}
    for window in found:
        for name in window.members:
            due.setdefault(name, []).append(f"{window.period.start:%Y-%m-%dT%H}")
    assert {name: (months[0], len(months)) for name, months in due.items()} == DUE
    # of_old began before its usage, what settled used before is closed.
    assert asked == [["late", "stranger", "tokyo"]]
    one = windows.asked_for(house.world, None, "late", known.terms(house.world), at("2026-11-21T12:00:00"))
    assert [f"{it.period.start:%m}" for it in one] == ["09", "10", "11"]


def test_nobody_s_first_usage_is_asked_for_where_it_changes_nothing(house):
    assert usage.first_usage(house.world.client, "test", [], as_of=at("2026-11-21")) == {}


def test_a_month_that_comes_to_nothing_is_closed_once_and_due_no_more(house):
    house.customer("idle", now=at("2026-09-20"))
    house.run(None)
    assert "idle" not in {row["customer_id"] for row in house.rows(tables.ratings)}
    closed = [str(it) for it in house.close(None) if "idle" in str(it)]
    assert closed == ["closed idle 0.00 USD 2026-09-01..2026-10-01", "closed idle 0.00 USD 2026-10-01..2026-11-01"]
    assert [it for it in house.close(None) if "idle" in str(it)] == []
    found = windows.asked_for(house.world, None, "idle", known.terms(house.world), at("2026-11-21T12:00:00"))
    assert [str(it.period) for it in found] == ["2026-11-01..2026-12-01"]
    # Before it was there nothing of it was due, and nothing is closed.
    house.close("2026-08")
    assert {f"{row['period_start']:%m}" for row in house.rows(tables.ratings) if row["customer_id"] == "idle"} == {
        "09",
        "10",
    }


def test_after_the_end_of_a_contract_only_months_in_which_there_is_something_are_due(house):
    """gone's contract ended with October 2026; it is February 2028. In March 2027 it used something all the same."""
    engine = house.world.engine
    for name in ("gone", "back"):
        house.customer(name, now=at("2026-09-20"), time_zone="Asia/Tokyo")
        house.event(name, "llm.tokens.input", "2", "2026-10-20T00:00:00")
        registry.end_contract(
            engine, "test", name, at("2026-10-31T15:00:00"), who="ann", why="moved", now=at("2026-10-21")
        )
        house.close(None, customer=name)
    house.customer("back", valid_from=at("2027-12-31T15:00:00"), now=at("2027-12-01"))

    def due(name):
        found = windows.asked_for(house.world, None, name, known.terms(house.world), house.world.now())
        return [f"{it.period.start:%Y-%m}" for it in found]

    house.at(at("2028-02-10"))
    house.collected("2028-02-10T00:00:00", position=2000)
    assert (due("gone"), due("back")) == ([], ["2027-12", "2028-01"])  # as they begin in UTC
    house.event("gone", "llm.tokens.input", "5", "2027-03-31T16:00:00")  # 1 April in Tokyo
    assert due("gone") == ["2027-02", "2027-03"]  # the days are those of UTC
    for _ in range(2):
        house.run(None, customer="gone")
        (left,) = [row for row in house.rows(tables.unrated_usage) if row["customer_id"] == "gone"]
        assert (left["reason"], int(left["quantity"]), f"{left['period_start']:%Y-%m-%dT%H}") == (
            "contract_ended",
            5,
            "2027-03-31T15",
        )
    house.world.client.command(
        "INSERT INTO events SELECT * REPLACE ('retracted' AS reason, toUInt64(18446744073709551615) AS first, "
        "toDateTime64('2028-02-01 00:00:00', 6, 'UTC') AS decided_at, 'd' AS decision_id) FROM events FINAL "
        "WHERE quantity = 5"
    )
    house.run(None, customer="gone")
    assert [row for row in house.rows(tables.unrated_usage) if row["customer_id"] == "gone"] == []
    assert due("gone") == []


def test_what_is_late_of_a_contract_that_ended_long_ago_is_on_the_rating_of_the_month_before(house):
    """Whatever the policy; of what is not billed late no month is due."""
    for name in ("gone", "quit"):
        house.customer(name, now=at("2026-09-20"))
        house.event(name, "llm.tokens.input", "2", "2026-10-20T00:00:00")
        registry.end_contract(
            house.world.engine, "test", name, at("2026-11-01"), who="ann", why="moved", now=at("2026-10-21")
        )
    recorrect.set_policy(house.world.engine, "test", "quit", "none", who="ann", why="agreed", now=at("2026-10-21"))
    for name in ("gone", "quit"):
        house.close(None, customer=name)
        house.event(name, "llm.tokens.input", "7", "2026-10-21T00:00:00", received="2027-03-08T00:00:00")
    for day, position in (("2027-03-10", 2000), ("2027-05-10", 3000)):
        house.at(at(day))
        house.collected(f"{day}T00:00:00", position=position)
        for name in ("gone", "quit"):
            house.run(None, customer=name)
        rated = {it["rating_id"]: it for it in house.rows(tables.ratings)}
        (line,) = [it for it in house.rows(tables.rated_lines) if it["kind"] == "correction"]
        on = rated[line["rating_id"]]
        assert (on["customer_id"], f"{on['period_start']:%Y-%m}", line["amount_minor"]) == ("gone", "2027-02", 700)
    for name in ("gone", "quit"):
        house.close(None, customer=name)
        house.run(None, customer=name)
    late = [it for it in house.rows(tables.ratings) if it["customer_id"] in ("gone", "quit")]
    assert [(it["customer_id"], f"{it['period_start']:%Y-%m}", it["state"]) for it in late if it["plan"] == ""] == [
        ("gone", "2027-02", "closed")
    ]
    for name in ("gone", "quit"):
        assert windows.asked_for(house.world, None, name, known.terms(house.world), house.world.now()) == []


def test_what_is_late_of_a_month_that_came_to_nothing_is_corrected(house):
    house.customer("idle", now=at("2026-10-02"))
    house.close("2026-10")
    house.event("idle", "llm.tokens.input", "3", "2026-10-20T00:00:00", received="2026-11-22T00:00:00")
    house.collected("2026-12-05T00:00:00", position=2000)
    house.at(at("2026-12-05T00:00:00"))
    house.close("2026-11", customer="idle")
    (line,) = [row for row in house.rows(tables.rated_lines) if row["kind"] == "correction"]
    assert (line["description"], line["amount_minor"]) == ("in (correction of 2026-10-01..2026-11-01)", 300)


def test_a_customer_that_nobody_knows_and_who_used_nothing_is_refused(house):
    for act in (house.run, house.close):
        with pytest.raises(PeriodError, match="nobody is not registered and has used nothing in 2026-09-01"):
            act("2026-09", customer="nobody")
    assert [it.name for it in house.run("2026-09", customer="stranger")][:3] == ["watermark", "usage", "unrated"]
    assert [it.name for it in house.run("2026-09", customer="quiet")][:2] == ["watermark", "usage"]
    assert [it.name for it in house.run("2026-09", customer="tokyo")][:2] == ["watermark", "usage"]
