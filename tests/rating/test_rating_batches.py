"""Customers settled many at a time come out byte for byte as customers settled one by one."""

import gc
import hashlib
import json
import random
import shutil
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from rating_samples import at
from sqlalchemy import select

from meterhouse_rating import catalogues, costs_book, credit_changes, known, ledger_proof, reading, statements
from meterhouse_rating import run as running
from meterhouse_rating.beside import beside
from meterhouse_rating.credits import Grant
from meterhouse_rating.periods import PeriodError
from meterhouse_rating.recorrect import set_policy
from meterhouse_rating.run import Request, close, run
from meterhouse_store import tables
from meterhouse_store.completeness import Gathering, Held
from meterhouse_store.sql import open_engine

BOOK = """
book: batches
currency: USD
metrics:
  input: {unit: token, meters: [llm.tokens.input]}
  output: {unit: token, meters: [llm.tokens.output]}
plans:
  pay:
    components:
      pack: {model: credit_pack, price: 1.00, credits: 1.50, expires_days: 40}
      in: {model: graduated, metric: input, per: 1000, tiers: [{up_to: 2000, price: 2.00}, {price: 1.00}]}
  flat:
    components:
      fee: {model: flat, price: 5.00}
      in: {model: included, metric: input, included: 1000, per: 1000, price: 3.00}
      out: {model: per_unit, metric: output, per: 1000, price: 0.40}
      floor: {model: minimum, amount: 9.00}
"""
MONEY = (
    "ratings", "rated_lines", "unrated_usage", "accounted_usage", "credit_grants", "credit_notes", "rating_statements",
    "ledger_transactions", "ledger_entries",
)  # fmt: skip


def random_world(house, seed):
    """Customers on two plans, with gifts that end, and a stranger; usage of two months, with and without prices."""
    chance = random.Random(seed)
    house.publish(BOOK)
    names = [f"c{number}" for number in range(9)]
    for name in names:
        house.customer(name, chance.choice(["pay", "flat"]))
    world = house.world
    for name in chance.sample(names, 4):
        gift = Grant("", "promotional", chance.randrange(100, 900), at("2026-09-01"), expires_at=at("2026-10-20"))
        told = {"reference": "gift", "who": "ann", "why": "sorry", "now": at("2026-09-01")}
        credit_changes.grant(world.engine, world.namespace, name, gift, None, **told)
    for name in chance.sample(names, 3):
        set_policy(
            world.engine, "test", name, chance.choice(["credit_note", "none"]), who="a", why="b", now=at("2026-09-01")
        )
    usage(house, chance, [*names, "stranger"], 9)
    return chance, names


def usage(house, chance, names, month, **received):
    """Events of the month: a third of the customers have none, and a meter that has no price on every plan."""
    house.events(
        [
            {
                "customer_id": name,
                "meter": chance.choice(["llm.tokens.input", "llm.tokens.output", "llm.tokens.input"]),
                "quantity": str(chance.randrange(1, 4000)),
                "when": f"2026-{month:02}-{chance.randrange(1, 29):02}T{chance.randrange(24):02}:00:00",
                "event_id": f"{chance.getrandbits(64):x}",
                "service_name": "shop",
                "credential_id": chance.choice(["key-1", "key-2"]),
                **received,
            }
            for name in chance.sample(names, 2 * len(names) // 3)
            for _ in range(chance.randrange(1, 4))
        ]
    )


def lived(world, batch, monkeypatch):
    """Two months of the world, run and closed in batches of that size; what its money tables hold, and the steps."""
    monkeypatch.setattr(running, "BATCH", batch)
    steps = []
    for month, day in (("2026-09", "2026-10-10"), ("2026-10", "2026-11-21")):
        here = replace(world, now=lambda day=day: datetime.fromisoformat(f"{day}T12:00:00+00:00"))
        steps += [str(it) for it in run(here, Request(month, dry_run=True))]
        steps += [str(it) for it in run(here, Request(month))]
        steps += [str(it) for it in close(here, Request(month), grace=timedelta(hours=1), wait_s=0)]
    with world.engine.connect() as connection:
        tables_of = {
            name: [
                dict(row) for row in connection.execute(select(table).order_by(*table.primary_key.columns)).mappings()
            ]
            for name, table in ((name, tables.metadata.tables[name]) for name in MONEY)
        }
    told = [it for it in steps if " mirrored" not in f" {it}"]
    return hashlib.sha256(json.dumps(tables_of, sort_keys=True, default=str).encode()).hexdigest(), tables_of, told


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in (1, 2))])
def test_a_random_world_settled_in_batches_has_the_bytes_of_one_settled_customer_by_customer(
    sqlite_house, monkeypatch, seed
):
    house = sqlite_house
    chance, names = random_world(house, seed)
    usage(house, chance, names, 10)
    usage(house, chance, names, 9, received="2026-11-01T00:00:00")  # after September was closed
    house.collected()
    other = house.settings.data / "other.db"
    house.world.engine.dispose()
    shutil.copyfile(house.settings.data / "meterhouse.db", other)
    alone = lived(house.world, 1, monkeypatch)
    engine = open_engine(house.settings.model_copy(update={"sql_url": f"sqlite:///{other}"}))
    together = lived(replace(house.world, engine=engine), 200, monkeypatch)
    assert together[2] == alone[2]
    assert together[1] == alone[1]
    assert together[0] == alone[0]
    assert {len(together[1][name]) > 0 for name in MONEY if name != "credit_notes"} == {True}
    assert {row["kind"] for row in together[1]["rated_lines"]} >= {"usage", "credit_pack", "minimum", "correction"}
    assert ledger_proof.prove(engine, "test").problems == []
    engine.dispose()


# What is asked of the warehouse in other words: measures, how tasks ended, dimensions, and what usage costs.
ALL_QUERIES = """
book: every query
currency: USD
metrics:
  input: {unit: token, meters: [llm.tokens.input], tasks: ok_only}
  output: {unit: token, meters: [llm.tokens.output]}
  peak: {unit: call, meters: [api.calls], aggregate: max}
plans:
  pay:
    trial_days: 10
    components:
      in: {model: per_unit, metric: input, per: 1000, by: [model], prices: [{model: gpt-4o, price: 1}], default: 2}
      out: {model: cost_plus, metric: output, markup: 100}
      peak: {model: per_unit, metric: peak, price: 10}
"""


def ranged(house, monkeypatch, first):
    """Two months lived, with so many customers in the first range: money tables, steps, October's events and ranges."""
    other = house.settings.data / f"in-{first}.db"
    shutil.copyfile(house.settings.data / "meterhouse.db", other)
    engine = open_engine(house.settings.model_copy(update={"sql_url": f"sqlite:///{other}"}))
    monkeypatch.setattr(reading, "FIRST", first)
    _, rows, told = lived(replace(house.world, engine=engine), 2, monkeypatch)
    engine.dispose()
    sums = [it.split(": ")[1].split() for it in told if it.startswith("usage 2026-10")]
    lines = [it for it in told if not it.startswith("usage")]
    return rows, lines, sum(int(it[0].replace(",", "")) for it in sums), len(sums)


def test_usage_that_is_read_in_ranges_of_names_comes_out_as_if_it_was_read_at_once(sqlite_house, monkeypatch):
    house = sqlite_house
    chance, names = random_world(house, 3)
    # Between and around the names of those who are registered: with no letter, in capitals, with letters of two bytes.
    strangers = ["!", "C", "c3-eu", "c3é", "c8-", "d", "élan", "\U0001f600"]
    usage(house, chance, [*names, *names, *strangers, *strangers], 10)
    for name in strangers:
        house.event(name, "llm.tokens.input", "1500", "2026-10-20T00:00:00")
    house.collected()
    house.world.engine.dispose()
    at_once = ranged(house, monkeypatch, 1000)
    in_ranges = ranged(house, monkeypatch, 2)
    assert at_once[3] == 3
    # Of c0, c1; c2 to c5; c6 to c8, in the dry run and the run; then 8 strangers, listed as unrated, are among 17.
    assert in_ranges[3] == 3 + 3 + 4
    assert in_ranges[:3] == at_once[:3]
    assert {row["customer_id"] for row in in_ranges[0]["unrated_usage"]} >= set(strangers)


def test_whatever_a_plan_asks_of_the_warehouse_is_asked_range_by_range(sqlite_house, monkeypatch):
    house = sqlite_house
    house.publish(ALL_QUERIES)
    told = {"valid_from": None, "now": at("2026-09-01"), "who": "test", "why": "imported"}
    costs_book.pin(house.world.engine, "test", catalogues.text(), **told)
    names = [f"c{number}" for number in range(5)]
    for number, name in enumerate(names):
        house.customer(name, valid_from=at("2026-10-05" if number % 2 else "2026-08-01"))
        for day in range(1, 28, 5):
            task = f"{name}-{day % 2}"
            model = ("gpt-4o", "gpt-4o-mini")[day % 2]
            more = {"provider": "openai", "model": model, "task_id": task if day % 4 else ""}
            house.event(name, "llm.tokens.input", str(1000 * number + day), f"2026-10-{day:02}T01:00:00", **more)
            house.event(name, "llm.tokens.output", str(100 * number + day), f"2026-10-{day:02}T01:00:00", **more)
        house.event(name, "api.calls", str(number + 1), "2026-10-17T00:00:00")
        house.event(name, "agent.tasks", "1", "2026-10-28T00:00:00", task_id=f"{name}-0")
        house.event(name, "agent.tasks", "1", "2026-10-28T00:00:00", task_id=f"{name}-1", status="failed")
    house.collected()
    house.world.engine.dispose()
    at_once = ranged(house, monkeypatch, 1000)
    in_ranges = ranged(house, monkeypatch, 2)
    assert in_ranges[:3] == at_once[:3]
    assert in_ranges[3] > at_once[3]
    lines = {(row["component"], row["kind"]) for row in in_ranges[0]["rated_lines"]}
    assert {("in", "usage"), ("out", "usage"), ("peak", "usage")} <= lines


@pytest.mark.parametrize("number", [*range(12), 1000, 10_007])
@pytest.mark.parametrize("first", [1, 2, 3, 500])
def test_every_name_is_in_exactly_one_range(number, first):
    names = sorted(f"c{it}" for it in range(number))
    ranges = reading.ranges_of(names, first)
    for name in (*names[:: 1 + number // 100], "", " ", "c", "c4x", "\U0001f600"):
        assert sum(name in one for one in ranges) == 1
    sizes = [sum(name in one for name in names) for one in ranges]
    assert sum(sizes) == number
    # A range that is not the last has its doubled size, and the last is no less than the first, unless it is alone.
    assert sizes[:-1] == [first * 2**at for at in range(len(ranges) - 1)]
    assert len(ranges) == 1 or sizes[-1] >= first


def test_a_run_that_is_stopped_asks_for_no_more_ranges(sqlite_house, monkeypatch):
    house = sqlite_house
    house.publish(BOOK)
    for number in range(9):
        house.customer(f"c{number}")
        house.event(f"c{number}", "llm.tokens.input", "1000", "2026-10-05T00:00:00")
    house.collected()
    monkeypatch.setattr(reading, "FIRST", 1)
    asked, gather = [], known.gather

    def failing(world, terms, period, as_of, only, *more, **told):
        asked.append(only)
        if len(asked) == 2:
            raise ConnectionError("the warehouse is away")
        return gather(world, terms, period, as_of, only, *more, **told)

    monkeypatch.setattr(known, "gather", failing)
    with pytest.raises(ConnectionError, match="the warehouse is away"):
        house.run("2026-10")
    # Those before it are settled, and the next run finds the rest.
    assert [row["customer_id"] for row in house.rows(tables.ratings)] == ["c0"]
    monkeypatch.setattr(known, "gather", gather)
    house.run("2026-10")
    assert sorted(row["customer_id"] for row in house.rows(tables.ratings)) == [f"c{number}" for number in range(9)]


def test_what_is_read_ahead_has_half_of_the_processors(sqlite_house):
    client = sqlite_house.world.client
    asked = "SELECT getSetting('max_threads'), {it:String}"
    ((whole, _),) = client.query(asked, parameters={"it": "a"}).result_rows
    assert beside(client).query(asked, parameters={"it": "a"}).result_rows == [(max(whole // 2, 1), "a")]
    assert client.query(asked, parameters={"it": "a"}).result_rows == [(whole, "a")]


def test_customers_beside_one_that_cannot_be_closed_are_closed(house):
    house.publish(BOOK.replace("      pack", "      #"))
    for name in ("a", "b", "c"):
        house.customer(name)
        house.event(name, "llm.tokens.input", "1000", "2026-10-05T00:00:00")
    house.event("b", "llm.tokens.input", "1000", "2026-09-05T00:00:00")
    house.collected()
    house.run("2026-09")
    with pytest.raises(PeriodError, match=r"b: close 2026-09-01..2026-10-01 before 2026-10-01..2026-11-01"):
        house.close("2026-10")
    closed = {row["customer_id"] for row in house.rows(tables.ratings) if row["state"] == "closed"}
    assert closed == {"a"}  # they are settled in the order of their names, and the run stops at b


@pytest.mark.parametrize("number", [1, 2, 3, 5, 6])
def test_every_closed_customer_has_its_own_statement_in_however_many_parts_they_are_asked_for(
    sqlite_house, monkeypatch, number
):
    house = sqlite_house
    monkeypatch.setattr(statements, "_FIRST", 1)
    monkeypatch.setattr(statements, "_ASKED", 2)
    house.publish(BOOK)
    for name in range(number):
        house.customer(f"c{name}")
        for day in range(1, name + 2):
            house.event(f"c{name}", "llm.tokens.input", "1", f"2026-10-{day:02}T00:00:00")
    house.collected()
    house.close("2026-10")
    told = {row["rating_id"]: row["verdict"] for row in house.rows(tables.rating_statements)}
    events = {
        row["customer_id"]: told[row["rating_id"]].split(" event")[0].split()[-1] for row in house.rows(tables.ratings)
    }
    assert events == {f"c{name}": str(name + 1) for name in range(number)}


def test_control_totals_that_could_not_be_read_ahead_are_read_with_the_first_customers(sqlite_house, monkeypatch):
    house = sqlite_house
    house.publish(BOOK)
    house.customer("a")
    house.event("a", "llm.tokens.input", "1", "2026-10-05T00:00:00", credential_id="key-1")
    house.collected()

    def away(_):
        raise ConnectionError("the warehouse is away")

    monkeypatch.setattr(Gathering, "begin", away)
    house.close("2026-10")
    (row,) = house.rows(tables.rating_statements)
    assert [it["credential_id"] for it in row["statement"]["received"]] == ["key-1"]


def test_garbage_is_looked_for_as_often_after_a_run_as_before(sqlite_house):
    house = sqlite_house
    house.publish(BOOK)
    house.collected()
    before = gc.get_threshold()
    house.run("2026-10")
    stopped = run(house.world, Request("2026-10"))
    next(stopped)
    assert gc.get_threshold() != before
    stopped.close()
    assert gc.get_threshold() == before


def test_completeness_of_many_customers_is_that_of_each(sqlite_house):
    house = sqlite_house
    sent = {"record_id": "r1", "process_id": "p"}
    for name, key in (("a", "key-1"), ("a", "key-2"), ("b", "key-1"), ("c", "key-3")):
        house.event(
            name, "llm.tokens.input", "5", "2026-10-05T07:30:00", service_name="shop", credential_id=key, **sent
        )
    for key, reason in (("key-1", "customer_missing"), ("key-2", "customer_missing"), ("key-9", "customer_missing")):
        house.event("", "llm.tokens.input", "5", "2026-10-06T00:00:00", credential_id=key, reason=reason, **sent)
    house.event("b", "llm.tokens.input", "5", "2026-10-06T00:00:00", credential_id="key-3", reason="bad_number", **sent)
    house.collected()
    points = [
        "namespace",
        "customer_id",
        "meter",
        "series",
        "part",
        "start_time",
        "event_time",
        "value",
        "factor",
        "first",
    ]
    began, seen = at("2026-09-30"), at("2026-10-02")
    house.world.client.insert(
        "cumulative_points",
        [
            ["test", "c", "pages.read", "s1", 1, began, seen, 42, 1, 1],
            ["test", "c", "pages.read", "s1", 1, seen, at("2026-10-03"), 7, 1, 1],
        ],
        column_names=points,
    )
    window = (house.world.client, "test", at("2026-10-01"), at("2026-11-01"))
    together = Gathering(*window).of(["a", "b", "c", "nobody"])
    assert together == {name: Gathering(*window).of([name])[name] for name in ("a", "b", "c", "nobody")}
    assert [(it.credential_id, it.events, it.hours) for it in together["a"].streams] == [
        ("key-1", 1, (at("2026-10-05T07:00"),)),
        ("key-2", 1, (at("2026-10-05T07:00"),)),
    ]
    # Of nobody: one row with either key of a's, one with b's.
    assert together["a"].held == (Held("customer_missing", False, 2),)
    assert together["b"].held == (Held("bad_number", True, 1), Held("customer_missing", False, 1))
    assert [it.credential_id for it in together["b"].received] == ["key-1"]
    assert (together["c"].resets, together["a"].resets) == (1, 0)
    assert [(it.meter, it.totals) for it in together["c"].baselines] == [("pages.read", 2)]
    assert together["nobody"].streams == together["nobody"].held == ()
