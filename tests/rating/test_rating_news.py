"""`rate run --new`: what came since the last time is rated as a run over the whole month would rate it."""

import json

import pytest
from rating_samples import at
from sqlalchemy import select
from typer.testing import CliRunner

from meterhouse_rating import news, usage
from meterhouse_rating.commands import rate
from meterhouse_rating.run import Request, run
from meterhouse_store import tables

BOOK = """
book: news
currency: USD
metrics:
  input: {unit: token, meters: [llm.tokens.input]}
plans:
  pay:
    components:
      in: {model: graduated, metric: input, per: 1000, tiers: [{up_to: 2000, price: 2.00}, {price: 1.00}]}
"""


@pytest.fixture
def running(house):
    """Three customers on the evening of 20 October, with usage of the 5th; rated, and looked at for what is new."""
    house.publish(BOOK)
    for name in ("a", "b", "c"):
        house.customer(name, now=at("2026-10-01"))
        used(house, name, "1000", "2026-10-05T00:00:00")
    moment(house, "2026-10-20T20:00:00")
    house.run(None)
    assert new(house) == ["watermark", "usage", *3 * ["unchanged"]]  # the first time it looks at all
    assert new(house) == ["watermark", "usage"]
    return house


def used(house, name, quantity, when, **more):
    house.event(name, "llm.tokens.input", quantity, when, **more)


def moment(house, now):
    house.at(at(now))
    house.collected(now)


def new(house):
    """The steps of a run for what is new."""
    return [it.name for it in run(house.world, Request(None, new=True))]


def totals(house):
    return {row["customer_id"]: row["total_minor"] for row in house.rows(tables.ratings)}


def everything(house):
    """All that a run writes about ratings, but when it was made."""
    whole = [
        {name: value for name, value in row.items() if name not in ("as_of", "rated_at", "watermark")}
        for row in house.rows(tables.ratings)
    ]
    return whole, house.rows(tables.rated_lines), house.rows(tables.unrated_usage)


def test_only_customers_with_new_usage_are_rated_and_as_a_whole_run_rates_them(running, monkeypatch):
    house = running
    used(house, "a", "2500", "2026-10-20T20:00:30")
    moment(house, "2026-10-20T20:02:00")
    asked = []
    monkeypatch.setattr(
        usage, "gather", lambda *it, gather=usage.gather, **more: asked.append(it[2]) or gather(*it, **more)
    )
    assert new(house) == ["watermark", "usage", "rated", "mirrored"]
    # 2.00 and 2.00 of the first 2,000 tokens, and 1.50 of 1,500 more.
    assert totals(house) == {"a": 550, "b": 200, "c": 200}
    assert [str(it) for it in asked] == ["2026-10-19..2026-11-01"]  # what was before is not read again
    written = everything(house)
    assert {it.name for it in house.run(None)} == {"watermark", "usage", "unchanged"}
    assert everything(house) == written
    assert new(house) == ["watermark", "usage"]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("late_at_most", [0, 50], ids=["all", "by name"])
def test_usage_that_comes_late_is_new_too(running, monkeypatch, late_at_most):
    monkeypatch.setattr(news, "_LATE_AT_MOST", late_at_most)
    house = running
    used(house, "b", "1000", "2026-10-07T00:00:00", received="2026-10-20T20:01:00")
    used(house, "b", "1000", "2026-09-07T00:00:00", received="2026-10-20T20:01:00")  # left to --due
    moment(house, "2026-10-20T20:02:00")
    assert new(house)[2:] == ["rated", "mirrored"]
    used(house, "b", "1000", "2026-10-20T20:02:30")
    moment(house, "2026-10-20T20:04:00")
    assert new(house)[2:] == ["rated", "mirrored"]
    assert totals(house) == {"a": 200, "b": 500, "c": 200}
    written = everything(house)
    house.run("2026-10")
    assert everything(house) == written


def test_a_copy_of_an_event_that_came_before_changes_nothing(running):
    house = running
    event = {"event_id": "e1", "record_id": "r"}
    used(house, "a", "500", "2026-10-20T20:00:10", **event)
    moment(house, "2026-10-20T20:02:00")
    new(house)
    used(house, "a", "500", "2026-10-20T20:00:10", received="2026-10-20T20:03:00", **event)
    moment(house, "2026-10-20T20:04:00")
    assert new(house) == ["watermark", "usage", "unchanged"]
    assert totals(house)["a"] == 300


def test_after_midnight_and_for_another_book_all_is_read_anew(running):
    house = running
    moment(house, "2026-10-21T00:01:00")
    used(house, "c", "1000", "2026-10-21T00:00:30", received="2026-10-21T00:00:40")
    assert new(house)[2:] == ["rated", "mirrored"]
    assert totals(house)["c"] == 400
    graduated = BOOK[BOOK.index("in: {") :]
    by_model = "in: {model: per_unit, metric: input, by: [model], prices: [{model: m1, price: 0.05}], default: 0.01}"
    house.publish(BOOK.replace(graduated, by_model), valid_from=at("2026-10-01"))
    used(house, "c", "1000", "2026-10-21T00:02:30", model="m1", received="2026-10-21T00:02:40")
    moment(house, "2026-10-21T00:03:00")
    assert new(house)[-1] == "mirrored"
    assert totals(house)["c"] == 7000  # 20.00 of 2,000 tokens, 50.00 of 1,000 of the model m1
    written = everything(house)
    house.run("2026-10")
    assert everything(house) == written


def test_a_run_that_was_stopped_leaves_what_is_new_to_the_next(running):
    house = running
    used(house, "a", "1000", "2026-10-20T20:00:30")
    moment(house, "2026-10-20T20:02:00")
    going = run(house.world, Request(None, new=True))
    next(going), next(going)
    going.close()
    assert new(house)[2:] == ["rated", "mirrored"]
    assert totals(house)["a"] == 400


def test_customers_with_corrections_or_a_closed_month_are_left_to_the_other_runs(running):
    house = running
    with house.world.engine.begin() as connection:
        first = connection.execute(select(tables.ratings.c.rating_id).where(tables.ratings.c.customer_id == "a"))
        is_it = tables.rated_lines.c.rating_id == first.scalar_one()
        connection.execute(tables.rated_lines.update().where(is_it).values(kind="correction"))
    used(house, "a", "1000", "2026-10-20T20:00:30")
    used(house, "stranger", "1000", "2026-10-20T20:00:30")
    moment(house, "2026-10-20T20:02:00")
    assert new(house) == ["watermark", "usage"]
    assert totals(house)["a"] == 200


def test_the_command_says_how_many_were_rated_and_whose_usage_has_no_price(
    sqlite_house, command_environment, monkeypatch
):
    for name, value in command_environment(sqlite_house).items():
        monkeypatch.setenv(name, value)
    sqlite_house.publish(BOOK)
    sqlite_house.customer("a", now=at("2026-11-01"))
    used(sqlite_house, "a", "1000", "2026-11-05T00:00:00")
    sqlite_house.collected("2026-11-20T00:00:00")
    done = CliRunner().invoke(rate, ["run", "--new"])
    assert (done.exit_code, done.output.splitlines()[-1]) == (0, "1 rated anew. `meterhouse rate status` shows all.")
    sqlite_house.event("a", "tool.calls", "1", "2026-11-20T00:00:30")
    sqlite_house.collected("2026-11-20T00:02:00")
    done = CliRunner().invoke(rate, ["run", "--new", "--json"])
    assert (done.exit_code, json.loads(done.stdout)) == (3, {"rated": ["a"], "exceptions": ["a"]})
    for more in (["--due"], ["--period", "2026-11"], ["--customer", "a"], ["--dry-run"]):
        assert CliRunner().invoke(rate, ["run", "--new", *more]).exit_code == 2
