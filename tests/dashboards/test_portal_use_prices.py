"""What single uses cost: the same on pages, in the API and in downloads, and in sum what the lines come to."""

import csv
import io
import re
from datetime import timedelta
from decimal import Decimal

import pytest
from portal_samples import COLUMNS, NOW, TOKEN, event, portal_world, row, text_of, visiting
from starlette.testclient import TestClient

from meterhouse_portal import access_keys, app
from meterhouse_portal.rendering import Rendering
from meterhouse_rating import run as rating_run
from meterhouse_rating.run import Request
from meterhouse_store.brand import Brand

BOOK = """
book: tests
currency: EUR
metrics:
  input_tokens: {unit: token, meters: [llm.tokens.input]}
  output_tokens: {unit: token, meters: [llm.tokens.output]}
  tools_run: {unit: call, meters: [tool.calls], aggregate: count}
  talks: {unit: talk, meters: [llm.requests], aggregate: unique, of: conversation_id}
unbilled: {meters: [agent.tasks]}
plans:
  pay:
    components:
      input: {model: per_unit, metric: input_tokens, by: [model], per: 1000,
              prices: [{model: gpt-5*, price: 2.00}], default: none}
      output: {model: graduated, metric: output_tokens, per: 1000, tiers: [{up_to: 1000, price: 3.00}, {price: 1.00}]}
      tools: {model: per_unit, metric: tools_run, price: 0.50}
      talks: {model: per_unit, metric: talks, price: 1.00}
"""
EVENTS = [
    event("acme", "llm.tokens.output", "2026-10-05 10:00:00", 500, call="c-oct", model="gpt-5"),
    # The month's output is 3,000 tokens: 1,000 at 3.00 and 2,000 at 1.00 are 5.00, on average 1.6667 for 1,000.
    event("acme", "llm.tokens.input", "2026-11-10 10:00:00", 1000, call="c-1", model="gpt-5-mini"),
    event("acme", "llm.tokens.output", "2026-11-10 10:00:00", 1000, call="c-1", model="gpt-5-mini"),
    event("acme", "llm.tokens.input", "2026-11-11 10:00:00", 500, call="c-2", model="=mystery"),
    event("acme", "llm.tokens.output", "2026-11-11 10:00:00", 2000, call="c-2", model="=mystery"),
    event("acme", "tool.calls", "2026-11-12 10:00:00", 7, call="c-3", tool="search"),
    event("acme", "llm.requests", "2026-11-13 10:00:00", 1, call="c-4", conversation="talk-1"),
    event("acme", "agent.tasks", "2026-11-14 10:00:00", 1, call="c-5"),
    event("globex", "llm.tokens.output", "2026-11-11 10:00:00", 9_000_000, call="c-2", model="secret"),
]


@pytest.fixture(scope="module")
def world(warehouse_address, tmp_path_factory):
    folder = tmp_path_factory.mktemp("portal") / "data"
    with portal_world(warehouse_address, folder, BOOK, EVENTS) as made:
        yield made


def rows_of(page):
    found = re.findall(r'<td class="n price">(.*?)</td>', page, re.DOTALL)
    return [text_of(cell).strip() for cell in found]


def test_every_call_of_the_log_says_what_it_costs_or_why_it_has_no_price(world):
    with visiting(world, "vera@acme.example") as browser:
        assert rows_of(browser.get("/account/usage").text) == [
            "free",
            "llm. requests: priced for the month as a whole",
            "0.50 EUR",  # by events, whatever they hold
            "≈ 3.333 EUR llm. tokens. input: has no price yet",
            "≈ 3.667 EUR",
        ]


def test_a_call_opens_to_the_price_of_each_event_and_the_line_it_is_on(world):
    with visiting(world, "vera@acme.example") as browser:
        shown = text_of(browser.get("/account/actions?id=c-1&at=2026-11-10T10:00:00%2B00:00").text)
    assert "llm. tokens. input 1,000 2.00 EUR input (gpt-5-mini): one price for all units of its line" in shown
    assert "llm. tokens. output 1,000 ≈ 1.667 EUR output: the average of its line" in shown


def test_pages_the_api_and_downloads_have_the_same_prices_which_add_up_to_the_lines(world):
    pyarrow = pytest.importorskip("pyarrow.parquet", reason="this machine lacks pyarrow")
    at, settings = world
    with visiting(world, "vera@acme.example") as browser:
        csv_rows = list(csv.DictReader(io.StringIO(browser.get("/account/usage.csv").text)))
        table = pyarrow.read_table(io.BytesIO(browser.get("/account/usage.parquet").content))
    # One is in the order of time, the other in none.
    csv_rows, table = sorted(csv_rows, key=lambda it: it["event_id"]), table.sort_by("event_id")
    found = {(it["call_id"], it["meter"]): (it["price"], it["currency"], it["price_is"]) for it in csv_rows}
    by_line = {}
    for it in csv_rows:
        by_line.setdefault(it["line"], set()).add((it["call_id"], it["meter"]))
    assert by_line == {
        "input (gpt-5-mini)": {("c-1", "llm.tokens.input")},
        "output": {("c-1", "llm.tokens.output"), ("c-2", "llm.tokens.output")},
        "tools": {("c-3", "tool.calls")}, "talks": {("c-4", "llm.requests")},
        "": {("c-2", "llm.tokens.input"), ("c-5", "agent.tasks")},
    }  # fmt: skip
    assert table["line"].to_pylist() == [it["line"] for it in csv_rows]
    assert found["c-1", "llm.tokens.input"] == ("2", "EUR", "exact")
    assert found["c-1", "llm.tokens.output"] == ("1.666666666666666666", "EUR", "average")
    assert found["c-3", "tool.calls"] == ("0.5", "EUR", "exact")
    none = ""
    assert found["c-2", "llm.tokens.input"] == (none, "EUR", "no_price")
    assert found["c-4", "llm.requests"] == (none, "EUR", "whole_line")
    assert found["c-5", "agent.tasks"] == (none, "EUR", "free")
    output = sum(Decimal(price) for (_, meter), (price, *_) in found.items() if meter == "llm.tokens.output")
    assert abs(output - 5) < Decimal("1e-12")
    assert [None if it is None else f"{it.normalize():f}" for it in table["price"].to_pylist()] == [
        None if it["price"] == none else it["price"] for it in csv_rows
    ]
    _, key = access_keys.create(at.engine, "live", "acme", "tests", who="tests", now=NOW)
    with TestClient(app.build(settings, TOKEN, now=lambda: NOW)) as api:
        items = api.get("/api/v1/actions", headers={"Authorization": f"Bearer {key}"}).json()["items"]
    assert [it["lines"] for it in items] == [[], ["talks"], ["tools"], ["output"], ["input (gpt-5-mini)", "output"]]
    assert [(it["id"], it["price"], it["currency"], it["price_is"], it["unpriced"]) for it in items] == [
        ("c-5", None, "EUR", "free", {}),
        ("c-4", None, "EUR", "unknown", {"llm.requests": "whole_line"}),
        ("c-3", "0.5", "EUR", "exact", {}),
        ("c-2", "3.333333333333333333", "EUR", "average", {"llm.tokens.input": "no_price"}),
        ("c-1", "3.666666666666666666", "EUR", "average", {}),
    ]


def test_what_came_after_its_month_was_closed_is_on_no_line_of_it(world):
    late = event("acme", "llm.tokens.output", "2026-10-06 10:00:00", 700, call="c-late", model="gpt-5")
    values = row(900, late)
    at = values.rindex("toDateTime64('2026-10-06")
    values = values[:at] + f"toDateTime64('{NOW + timedelta(hours=1):%Y-%m-%d %H:%M:%S}', 9, 'UTC'), 900)"
    world[0].client.command(f"INSERT INTO events ({COLUMNS}) VALUES {values}")
    with visiting(world, "vera@acme.example", now=NOW + timedelta(hours=2)) as browser:
        shown = rows_of(browser.get("/account/usage?period=2026-10").text)
        found = list(csv.DictReader(io.StringIO(browser.get("/account/usage.csv?period=2026-10").text)))
    assert shown[0].endswith("output: came after its month was closed; a later invoice corrects it")
    assert shown[1] == "1.50 EUR"  # all of October's 500 tokens are in the first tier
    assert {(it["call_id"], it["price"], it["price_is"]) for it in found} == {
        ("c-late", "", "after_closing"), ("c-oct", "1.5", "exact"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("amount", "average", "shown"),
    [
        ("60", False, "60.00 EUR"), ("0.000015", False, "0.000015 EUR"), ("1234.5", False, "1,234.50 EUR"),
        ("0", False, "0.00 EUR"), ("0.00001234567", True, "≈ 0.00001235 EUR"), ("1234.5678", True, "≈ 1,234.57 EUR"),
    ],
)  # fmt: skip
def test_small_prices_never_look_like_nothing(amount, average, shown):
    assert Rendering(Brand()).price(Decimal(amount), "EUR", average) == shown


def test_what_was_closed_of_the_month_by_itself_is_named_beside_the_sum_that_it_is_not_in(world):
    with visiting(world, "gus@globex.example") as browser:
        before = text_of(browser.get("/account").text)
        list(rating_run.close(world[0], Request("2026-11-01..2026-11-12", "globex"), grace=timedelta(0), wait_s=5))
        after = text_of(browser.get("/account").text)
    assert "So far 9,002.00 EUR" in before and "billed by itself" not in before  # 1,000 at 3.00, the rest at 1.00
    assert "So far 0.00 EUR" in after and "9,000,000" in after
    said = "What was used from 2026-11-01 00:00 UTC to 2026-11-12 00:00 UTC is billed by itself, and not in this sum."
    assert said in after
