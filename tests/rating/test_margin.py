"""Margins: revenue that adds up however it is divided, cost beside it, and what is not known."""

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import commands
import pytest

from meterhouse_rating import costs_book, costs_rates
from meterhouse_rating.costs_entries import Entry
from meterhouse_rating.margin import NOT_DIVIDED, Margins, margins, share_out
from meterhouse_rating.periods import PeriodError
from meterhouse_store.numbers import plain
from meterhouse_store.registry import ALWAYS

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)

BOOK = """
book: margins
currency: USD
rates:
  - {from: EUR, to: USD, rate: 1.1, valid_from: 2026-01-01}
metrics:
  tokens: {unit: token, meters: [llm.tokens.input, llm.tokens.output]}
  tools: {unit: call, meters: [tool.calls]}
unbilled:
  meters: [llm.requests]
plans:
  pay:
    components:
      base: {model: flat, price: 10.00}
      tokens:
        {model: graduated, metric: tokens, per: 1000, tiers: [{up_to: 1000, price: 1.00}, {price: 0.5}]}
      tools: {model: per_unit, metric: tools, price: 0.10}
"""


def cost(house: Any, meter: str, price: str, currency: str = "USD", **more: Any) -> None:
    entry = Entry(meter, Decimal(price), currency, ALWAYS, why="test", who="test", **more)
    costs_book.add(house.world.engine, "test", [entry], NOW)


@pytest.fixture
def month(sqlite_house: Any) -> Any:
    """October of two customers. acme: 3,000 tokens of two agents and 3 tool calls, one of which failed."""
    house = sqlite_house
    house.publish(BOOK)
    for name in ("acme", "beta"):
        house.customer(name, valid_from=ALWAYS)
    when = "2026-10-20T10:00:00"
    house.event("acme", "llm.tokens.input", "2000", when, agent_id="a", model="m1", conversation_id="c1")
    house.event("acme", "llm.tokens.output", "500", when, agent_id="a", model="m2", conversation_id="c2")
    house.event("acme", "llm.tokens.output", "500", when, agent_id="b", model="m1", conversation_id="c2")
    house.event("acme", "tool.calls", "2", when, agent_id="a", tool="search")
    house.event("acme", "tool.calls", "1", when, agent_id="b", tool="search", status="failed")
    house.event("beta", "llm.tokens.input", "100", when, agent_id="a", model="m1")
    house.collected()
    cost(house, "llm.tokens.*", "0.2", per=1000)
    cost(house, "tool.calls", "0.03")
    house.run()
    costs_rates.refresh(house.world)
    return house


def by(house: Any, *names: str) -> dict[tuple[str, ...], tuple[str, str, str]]:
    found = margins(house.world, "2026-10", names)
    return {it.values: (str(it.revenue), plain(it.cost), plain(it.margin)) for it in found.shares}


def total(found: Margins) -> int:
    return sum(it.revenue_minor for it in found.shares)


def test_revenue_less_cost_by_customer_and_divided_by_usage_to_the_cent(month: Any) -> None:
    # acme: 10.00, tokens 1.00 + 2 x 0.50, tools 2 x 0.10 (the failed call is not billed); cost 3 x 0.2 and 3 x 0.03.
    # beta: 10.00 and a tenth of 1.00; cost 0.1 x 0.2.
    assert by(month, "customer") == {("acme",): ("12.20", "0.69", "11.51"), ("beta",): ("10.10", "0.02", "10.08")}
    # 2.00 for 3,000 tokens: 2,500 of a are 1.67, 500 of b 0.33 (1.666..., 0.333...). Fees are not divided.
    assert by(month, "customer", "agent") == {
        ("acme", NOT_DIVIDED): ("10.00", "0", "10"),
        ("acme", "a"): ("1.87", "0.56", "1.31"),
        ("acme", "b"): ("0.33", "0.13", "0.2"),
        ("beta", NOT_DIVIDED): ("10.00", "0", "10"),
        ("beta", "a"): ("0.10", "0.02", "0.08"),
    }
    for names in (("conversation", "tool", "step", "source", "provider"), ("period",), ()):
        assert total(margins(month.world, "2026-10", names)) == 2230
    # acme's 200 cents by 2,000, 500 and 500 of 3,000 tokens are 133 1/3, 33 1/3 and 33 1/3: the cent that is left goes
    # to the first. With it are the 10 cents of beta.
    found = by(month, "model", "meter")
    assert [found[key][0] for key in sorted(found) if key[1].startswith("llm")] == ["1.44", "0.33", "0.33"]
    # Calls that did not end well are lines of their own.
    told = margins(month.world, "2026-10", ["customer"])
    assert [(it.status, it.events, plain(it.cost), it.currency) for it in told.not_ok] == [("failed", 1, "0.03", "USD")]
    assert [it.not_ok for it in told.shares] == [Decimal("0.03"), Decimal(0)]
    # The view says the same per customer.
    query = "SELECT customer_id, revenue, cost, cost_not_ok, unknown_events, margin FROM margins ORDER BY customer_id"
    assert [tuple(row) for row in month.world.client.query(query).result_rows] == [
        ("acme", Decimal("12.2"), Decimal("0.69"), Decimal("0.03"), 0, Decimal("11.51")),
        ("beta", Decimal("10.1"), Decimal("0.02"), Decimal(0), 0, Decimal("10.08")),
    ]


def test_cost_in_another_currency_is_converted_by_the_books_rate_or_told_apart(month: Any) -> None:
    cost(month, "tool.calls", "0.02", "EUR", tool="search")
    costs_rates.refresh(month.world)
    # 0.6 and 3 x 0.02 x 1.1.
    assert by(month, "customer")[("acme",)][1] == "0.666"
    cost(month, "tool.calls", "3", "JPY", tool="sear*", agent_id="a")
    costs_rates.refresh(month.world)
    acme = margins(month.world, "2026-10", ["customer"]).shares[0]
    assert (acme.certain, acme.foreign) == (False, {"JPY": Decimal(6)})
    assert acme.cost == Decimal("0.622")


def test_a_closed_period_has_the_margin_it_had_and_later_prices_change_nothing(month: Any) -> None:
    month.close()
    before = by(month, "customer", "agent")
    month.publish(BOOK.replace("price: 0.10", "price: 9"), valid_from=datetime(2026, 10, 1, tzinfo=UTC))
    assert by(month, "customer", "agent") == before
    assert before[("acme", "a")] == ("1.87", "0.56", "1.31")


def test_shares_add_up_to_the_amount_whatever_the_weights() -> None:
    assert share_out(100, {("a",): Decimal(1), ("b",): Decimal(1), ("c",): Decimal(1)}) == {
        ("a",): 34, ("b",): 33, ("c",): 33,
    }  # fmt: skip
    assert share_out(-100, {("a",): Decimal(1), ("b",): Decimal(2)}) == {("a",): -33, ("b",): -67}
    assert share_out(1, {("a",): Decimal("0.4"), ("b",): Decimal("0.6")}) == {("a",): 0, ("b",): 1}
    assert share_out(0, {("a",): Decimal(1)}) == {("a",): 0}


def test_the_command_shows_tables_and_one_document(month: Any, command_environment: Any) -> None:
    with pytest.raises(PeriodError, match="no margin by colour"):
        margins(month.world, "2026-10", ["colour"])
    month.event("acme", "llm.images", "1", "2026-10-21T10:00:00", agent_id="a")
    month.collected(position=1001)
    words = ["margin", "--period", "2026-10"]
    environment = command_environment(month)
    told = commands.run(words, env=environment)
    assert told.returncode == 3, told.stderr
    assert told.stdout == (
        "  customer  revenue  cost    margin                  unknown cost\n"
        "  acme        12.20  0.69  <= 11.51  USD  <= 94.3 %  1 of 6 events\n"
        "  beta        10.10  0.02     10.08  USD     99.8 %\n"
        "  Total       22.30  0.71  <= 21.59  USD  <= 96.8 %  1 of 7 events\n"
        "\n"
        "  calls that are  events  cost       unknown cost\n"
        "  failed               1  0.03  USD\n"
        "\n"
        "Of 1 event the cost is unknown: such margins are at most what is shown (`meterhouse costs status`).\n"
    )
    asked = commands.run([*words, "--json", "--by", "customer,agent"], env=environment)
    found = json.loads(asked.stdout)
    first = next(it for it in found["margins"] if (it["customer"], it["agent"]) == ("acme", "a"))
    assert (first["revenue_minor"], first["cost"], first["margin"], first["margin_at_most"]) == (
        187,
        "0.56",
        None,
        "1.31",
    )
