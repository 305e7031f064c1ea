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

from meterhouse_rating import credit_changes, ledger_proof, statements
from meterhouse_rating import run as running
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
