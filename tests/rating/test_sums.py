"""What is asked of the warehouse at once is what single questions would have told."""

import random
from datetime import timedelta
from decimal import Decimal
from itertools import combinations

import pytest
from rating_samples import at

from meterhouse_rating import sums, usage
from meterhouse_rating.periods import Period
from meterhouse_rating.queries import EPOCH, WOUND_BACK
from meterhouse_rating.sums import By
from meterhouse_rating.usage import Wanted

AS_OF = at("2026-10-20")
EDGES = [at("2026-09-22"), at("2026-10-01"), at("2026-10-06"), at("2026-10-10"), at("2026-11-01")]
BY_DAY = By(("toDate(event_time, {zone:String})", "meter"), {"zone": "Europe/Berlin"})
BY_MODEL = By(("model",), some=True)


def asked(house, dimensions=("model",), more=(BY_DAY, BY_MODEL), edges=EDGES):
    return sums.ask(house.world.client, "test", "acme", edges, as_of=AS_OF, dimensions=dimensions, more=more)


def test_each_sum_has_what_was_used_between_its_moments_and_rating_what_was_known(sqlite_house):
    used = sqlite_house.event
    used("acme", "llm.tokens.input", "0.000000001", "2026-10-01T00:00:00", model="a")
    used("acme", "llm.tokens.input", "20", "2026-10-05T22:30:00", model="b")  # the 6th in Berlin
    used("acme", "llm.tokens.input", "300", "2026-10-06T00:00:00", model="a")
    used("acme", "llm.tokens.input", "4000", "2026-10-09T12:00:00", model="a", received="2026-10-21T00:00:00")
    used("acme", "llm.tokens.input", "50000", "2026-11-01T00:00:00", model="a")
    used("globex", "llm.tokens.input", "600000", "2026-10-02T00:00:00", model="secret")
    told = asked(sqlite_house)
    whole = Period(EDGES[1], EDGES[4])
    rows = told.rows(whole, AS_OF, ("model",), (), tasks=False)
    assert [(it.dimensions, it.events, it.quantity) for it in rows] == [
        ((("model", "a"),), 2, Decimal("300.000000001")),
        ((("model", "b"),), 1, Decimal(20)),
    ]
    (all_models,) = told.rows(whole, AS_OF, (), (), tasks=False)
    assert (all_models.events, all_models.quantity) == (3, Decimal("320.000000001"))
    (first,) = told.rows(Period(EDGES[1], EDGES[2]), AS_OF, (), (), tasks=False)
    assert first.quantity == Decimal("20.000000001")
    days = sorted((f"{it.values[0]}", it.quantity) for it in told.by(BY_DAY, whole))
    # What became known later is used, too.
    assert days == [
        ("2026-10-01", Decimal("0.000000001")),
        ("2026-10-06", Decimal(20)),
        ("2026-10-06", Decimal(300)),
        ("2026-10-09", Decimal(4000)),
    ]
    assert {it.values for it in told.by(BY_MODEL, whole)} == {("a",), ("b",)}
    assert min(it.first for it in told.by(BY_MODEL, whole)) == EDGES[1]


def test_random_usage_is_told_for_every_period_as_by_a_question_of_its_own(sqlite_house):
    chance = random.Random(20261129)
    made = []
    for number in range(400):
        when = at("2026-09-20") + timedelta(seconds=chance.randrange(45 * 86400))
        made.append(
            {
                "customer_id": chance.choice(["acme", "acme", "globex"]),
                "meter": chance.choice(["llm.tokens.input", "llm.tokens.output", "tool.calls"]),
                "quantity": str(Decimal(chance.randrange(-(10**12), 10**13)) / 10**9),
                "when": f"{when:%Y-%m-%dT%H:%M:%S}",
                "received": f"{when + timedelta(seconds=chance.choice([5, 86400 * 9])):%Y-%m-%dT%H:%M:%S}",
                "model": chance.choice(["a", "ä", "Z", ""]),
                "tool": chance.choice(["", "search"]),
                "status": chance.choice(["ok", "ok", "failed"]),
                "event_id": f"e-{number}",
            }
        )
    sqlite_house.events(made)
    told = asked(sqlite_house, ("model", "tool"))
    client, compared = sqlite_house.world.client, 0
    for start, end in combinations(EDGES, 2):
        for dimensions in (("model", "tool"), ("tool",), ()):
            own = {"as_of": AS_OF, "customers": ["acme"]}
            window, wanted = Period(start, end), Wanted(dimensions)
            alone = usage.gather(client, "test", window, wanted, **own)
            rows = told.rows(window, AS_OF, dimensions, (), tasks=False)
            assert usage.gather(client, "test", window, wanted, **own, sums=told) == alone
            assert tuple(rows) == alone["acme"].rows
            compared += len(rows)
    assert compared > 200


def test_what_it_does_not_tell_it_leaves_to_a_question_of_its_own(sqlite_house, monkeypatch):
    sqlite_house.events(
        [
            {"customer_id": "acme", "meter": "tool.calls", "quantity": "1", "when": "2026-10-02T00:00:00",
             "tool": f"tool-{number}", "event_id": f"e-{number}"}
            for number in range(8)
        ]
    )  # fmt: skip
    month = Period(EDGES[1], EDGES[4])
    told = asked(sqlite_house, ("tool",))
    assert len(told.rows(month, AS_OF, ("tool",), (), tasks=False)) == 8
    assert told.rows(month, AS_OF, ("tool",), ("tool.calls",), tasks=False) == []
    assert told.rows(month, AS_OF, ("model",), (), tasks=False) is None
    assert told.rows(month, AS_OF, ("tool",), (), tasks=True) is None
    assert told.rows(month, AS_OF - timedelta(days=1), ("tool",), (), tasks=False) is None
    assert told.rows(Period(EDGES[1], at("2026-10-31")), AS_OF, ("tool",), (), tasks=False) is None
    with pytest.raises(ValueError, match="was not asked for"):
        told.by(BY_DAY, Period(EDGES[1], at("2026-10-31")))
    # Of too many kinds not all are told to rating, which then asks as it does of others; the days stay whole.
    monkeypatch.setattr(sums, "MAX_GROUPS", 4)
    by_tool = By(("tool",))
    few = asked(sqlite_house, ("tool",), (BY_DAY, by_tool, BY_MODEL))
    assert few.rows(month, AS_OF, ("tool",), (), tasks=False) is None
    assert len(few.by(by_tool, month)) == 8
    assert sum(it.events for it in few.by(BY_DAY, month)) == 8


def test_what_was_told_of_now_is_not_taken_for_what_was_known_then(sqlite_house):
    sqlite_house.event("acme", "tool.calls", "1", "2026-10-02T00:00:00")
    told = asked(sqlite_house, ())
    sqlite_house.event("acme", "tool.calls", "10", "2026-10-02T00:00:00", received="2026-10-03T00:00:00")
    month, own = Period(EDGES[1], EDGES[4]), {"as_of": AS_OF, "customers": ["acme"], "sums": told}

    def found(**more):
        return sum(
            it.quantity
            for it in usage.gather(sqlite_house.world.client, "test", month, Wanted(), **own, **more)["acme"].rows
        )

    assert found(after=EPOCH) == 1  # told before
    assert found(after=at("2026-10-02T12:00:00")) == 10
    assert found(source=WOUND_BACK) == 11
