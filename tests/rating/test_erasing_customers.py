"""A customer is erased that is called like a word that prices, ratings and records have: what others owe stays."""

import json
from decimal import Decimal

import pytest
from rating_samples import at

from meterhouse_rating import recorrect
from meterhouse_store import budgets, privacy, registry, tables
from meterhouse_store.budgets import UNITS, Budget

BOOK = """
book: test
currency: USD
metrics:
  input: {unit: token, meters: [llm.tokens.input]}
plans:
  pay:
    components:
      sent: {model: graduated, metric: input, tiers: [{up_to: 1000, price: 0.01}, {price: 0.005}]}
"""
WORDS = ["pay", "USD", "sent", "token"]
MORE = ["open", "closed", "usage", "input", "ok", "add", "hard_cap", "budget", "invoice"]


@pytest.fixture
def furnished(sqlite_house):
    """acme, with a closed and an open month, a budget and a decision of somebody."""
    house = sqlite_house
    house.publish(BOOK, now=at("2026-09-01"))
    house.customer("acme", now=at("2026-10-01"), valid_from=at("2026-10-01"))
    for when in ("2026-10-02", "2026-11-02"):
        house.event("acme", "llm.tokens.input", "1500", f"{when}T00:00:00")
    house.collected()
    house.close("2026-10")
    house.run("2026-11")
    engine = house.world.engine
    budget = Budget("acme", "tokens", UNITS, Decimal(5000), of="llm.tokens.input")
    budgets.set_budget(engine, "test", budget, who="ann", why="agreed", now=at("2026-11-03"))
    recorrect.set_policy(engine, "test", "acme", "credit_note", who="ann", why="as the other", now=at("2026-11-03"))
    return house


def erase(house, name, pseudonym="erased-1"):
    engine = house.world.engine
    erasure = privacy.begin(engine, "e1", "test", name, who="ann", why="ticket", now=at("2026-11-20"))
    privacy.rename(engine, erasure, pseudonym, {})
    privacy.finish(engine, erasure, pseudonym, at("2026-11-20"))


def of_others(house):
    """All rows but the erasure's own, and those of the customer that is erased."""
    found = {}
    for table in tables.metadata.sorted_tables:
        if table.name not in ("erasures", "audit_log"):
            rows = house.rows(table)
            found[table.name] = [row for row in rows if row.get("customer_id", "acme") == "acme"]
    return found


@pytest.mark.sampled(2)
@pytest.mark.parametrize("word", WORDS + [pytest.param(word, marks=pytest.mark.long) for word in MORE])
def test_whatever_a_customer_is_called_its_erasure_changes_nothing_of_others(furnished, word):
    registry.add_customer(
        furnished.world.engine, "test", word, name=f"Jane {word}", reference=word, now=at("2026-11-19")
    )
    before = of_others(furnished)
    erase(furnished, word)
    assert of_others(furnished) == before
    steps = {it.name for it in furnished.run("2026-11") if it.outcome}
    assert steps == {"unchanged"}


def test_what_people_wrote_and_copies_of_requests_forget_the_name_but_keep_what_they_are_about(furnished):
    engine = furnished.world.engine
    registry.add_customer(engine, "test", "open", name="Jane Doe", plan="pay", now=at("2026-11-19"))
    more = Budget("acme", "more", UNITS, Decimal(7), of="llm.tokens.input")
    budgets.set_budget(engine, "test", more, who="ann", why="as Jane Doe of open asked", now=at("2026-11-19"))
    erase(furnished, "open")
    said = [row["why"] for row in furnished.rows(tables.budget_changes) if row["name"] == "more"]
    assert said == ["as erased of erased-1 asked"]
    log = furnished.rows(tables.audit_log)
    assert not [row for row in log if "Jane" in json.dumps(row, default=str)]
    (contract,) = [
        json.loads(row["details"]) for row in log if row["customer_id"] == "erased-1" and row["what"] == "contract"
    ]
    assert contract["added"]["plan"] == "pay"
