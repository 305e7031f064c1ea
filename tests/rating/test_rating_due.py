"""Which months are due: worked out by hand, whether or not days are summed; and of whom all usage is read for it."""

import pytest
from rating_samples import at

from meterhouse_rating import known, usage, windows
from meterhouse_rating.queries import FIRST_USAGE
from meterhouse_store import rollups, tables

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


def test_what_is_late_of_a_month_that_came_to_nothing_is_corrected(house):
    house.customer("idle", now=at("2026-10-02"))
    house.close("2026-10")
    house.event("idle", "llm.tokens.input", "3", "2026-10-20T00:00:00", received="2026-11-22T00:00:00")
    house.collected("2026-12-05T00:00:00", position=2000)
    house.at(at("2026-12-05T00:00:00"))
    house.close("2026-11", customer="idle")
    (line,) = [row for row in house.rows(tables.rated_lines) if row["kind"] == "correction"]
    assert (line["description"], line["amount_minor"]) == ("in (correction of 2026-10-01..2026-11-01)", 300)
