"""Caps of budgets in months that are rated in parts: they hold over the whole month; every amount by hand."""

import json
import zipfile
from decimal import Decimal

import pytest
from rating_samples import at
from test_evidence import written
from test_plan_changes import parts
from typer.testing import CliRunner

from meterhouse_rating import costs_book, outlook, simulate
from meterhouse_rating.commands import rate
from meterhouse_rating.costs_entries import Entry
from meterhouse_rating.evidence import make
from meterhouse_rating.evidence_check.main import verify
from meterhouse_rating.periods import parse
from meterhouse_rating.usage_statement import state
from meterhouse_store import budgets, registry, tables
from meterhouse_store.budgets import MONEY, UNITS, Budget
from meterhouse_store.registry import ALWAYS

BOOK = """
book: capped
currency: USD
plan_changes: {apply: at_once%s}
metrics:
  input: {unit: token, meters: [llm.tokens.input, llm.tokens.cache_read]}
plans:
  small: {components: {in: {model: per_unit, metric: input, price: 1.00}}}
  big: {components: {tokens: {model: per_unit, metric: input, price: 0.50}}}
  flat:
    components:
      base: {model: flat, price: 50.00, included: {input: 10}, overage: {input: {tiers: [{price: 1.00}]}}}
"""


def cap(house, limit, of="", when="2026-10-02"):
    measure = UNITS if of else MONEY
    budget = Budget("acme", "most", measure, Decimal(limit), **({"of": of} if of else {}))
    budgets.set_budget(house.world.engine, "test", budget, who="ann", why="agreed", now=at(when))


def changed(house, usage="restart", day="2026-10-11"):
    """acme is on small, and on big from a day on."""
    house.publish(BOOK % (", usage: carry_on" if usage == "carry_on" else ""))
    house.customer("acme", plan="small", valid_from=at("2026-09-01"), now=at("2026-09-01"))
    house.customer("acme", plan="big", valid_from=at(day), now=at("2026-10-01"))
    house.collected()


def used(house, quantity, day, meter="llm.tokens.input"):
    house.event("acme", meter, quantity, f"{day}T00:00:00")


OVER = "Above the cap of 100 %s: not billed"


@pytest.mark.sampled(2)
@pytest.mark.parametrize("usage", [pytest.param("restart", marks=pytest.mark.long), "carry_on"])
@pytest.mark.parametrize(
    ("of", "first", "second", "expected"),
    [
        # 80.00 of 100.00 are used up: 20.00 of 50.00 are billed
        ("", "80", "100", [[("in", 8000)], [("tokens", 5000), (OVER % "USD", -3000)]]),
        # The cap is passed by 20.00 already: nothing of the rest is billed
        ("", "120", "100", [[("in", 12000), (OVER % "USD", -2000)], [("tokens", 5000), (OVER % "USD", -5000)]]),
        # 20 of 50 tokens are billed, by the metric or by the meter
        ("input", "80", "50", [[("in", 8000)], [("tokens", 2500), (OVER % "input", -1500)]]),
        ("llm.tokens.input", "80", "50", [[("in", 8000)], [("tokens", 2500), (OVER % "llm.tokens.input", -1500)]]),
        ("llm.tokens.cache_read", "80", "50", [[("in", 8000)], [("tokens", 2500)]]),
    ],
)  # fmt: skip
def test_a_cap_holds_over_both_parts_of_a_month_whose_plan_changed(
    sqlite_house, tmp_path, usage, of, first, second, expected
):
    house = sqlite_house
    changed(house, usage)
    used(house, first, "2026-10-05")
    used(house, second, "2026-10-20")
    cap(house, "100", of)
    amounts = [sum(amount for _, amount in lines) for lines in expected]
    said = [it.outcome.rated.total_minor for it in house.run("2026-10", dry_run=True) if it.outcome]
    assert said == amounts
    customer = registry.customers(house.world.engine, "test", "acme")[0]
    assert sum(state(house.world, customer, "2026-10", parse("2026-10", "UTC")).totals.values()) == sum(amounts)
    same = simulate.simulate(house.world, BOOK % (", usage: carry_on" if usage == "carry_on" else ""), ("2026-10",))
    assert {(it.old_minor, it.new_minor) for it in same.changes.values()} == {(sum(amounts), sum(amounts))}
    house.run("2026-10")
    assert [lines for _, _, lines in parts(house)] == expected
    house.close("2026-10")
    assert [lines for _, _, lines in parts(house)] == expected
    pack = make(house.world, "acme", parse("2026-10", "UTC"), tmp_path / "pack.zip")
    done = pack.findings.recomputed
    assert pack.verified and not any("cap" in it for it in pack.findings.carried)
    capped = sum(what.startswith("Above") for lines in expected for what, _ in lines)
    assert done.get("what is above caps, from the events and the lines", 0) == capped
    assert done["what earlier parts of the month used of caps, from their lines"] == 1


def test_what_other_parts_used_of_a_cap_cannot_be_forged_and_is_carried_where_they_are_not_in_the_pack(
    sqlite_house, tmp_path, command_environment
):
    house = sqlite_house
    changed(house, "carry_on")
    used(house, "80", "2026-10-05")
    used(house, "50", "2026-10-20")
    cap(house, "100", "input")
    house.close("2026-10")
    file = tmp_path / "pack.zip"
    make(house.world, "acme", parse("2026-10", "UTC"), file)
    for change in ({"meters": {"llm.tokens.input": "70"}}, {"ratings": []}, {"meters": {}}):
        with zipfile.ZipFile(file) as archive:
            files = {it: archive.read(it) for it in archive.namelist()}
        value = json.loads(files["ratings.json"])
        value[1]["caps"]["earlier"].update(change)
        files["ratings.json"] = json.dumps(value).encode()
        assert verify(written(files, tmp_path / "forged.zip")).findings.problems
    second = make(house.world, "acme", parse("2026-10-11..2026-11-01", "UTC"), tmp_path / "second.zip")
    assert second.verified
    assert "what other parts of the month used of caps: they are not before it in the pack" in second.findings.carried
    for line in house.rows(tables.rated_lines):
        done = CliRunner().invoke(rate, ["explain", line["line_id"], "--json"], env=command_environment(house))
        assert done.exit_code == 0, (line["description"], done.output)


def test_what_customers_see_of_a_capped_month_in_parts_goes_on_from_part_to_part(sqlite_house):
    house = sqlite_house
    changed(house, day="2026-11-11")
    used(house, "80", "2026-11-05")
    used(house, "100", "2026-11-20")
    cap(house, "100", when="2026-11-02")
    assert [it.rated.total_minor for it in outlook.look(house.world, "acme").outcomes] == [8000, 2000]


def test_a_fee_uses_nothing_of_a_cap_of_money_in_either_part(sqlite_house):
    """A month of plan flat in two parts: 50.00 and 60 - 10 tokens, then 80: 130.00 of usage, 30.00 above the cap."""
    house = sqlite_house
    house.publish(BOOK % "")
    house.customer("acme", plan="flat", valid_from=at("2026-09-01"), now=at("2026-10-01"))
    house.collected()
    used(house, "60", "2026-10-05")
    used(house, "80", "2026-10-20")
    cap(house, "100")
    house.close("2026-10-01..2026-10-11")
    house.close("2026-10-11..2026-11-01")
    assert [[amount for _, amount in lines] for _, _, lines in parts(house)] == [[5000, 5000], [8000, -3000]]


def test_a_part_that_is_closed_after_the_later_one_has_what_that_left_of_the_cap(sqlite_house):
    house = sqlite_house
    changed(house)
    used(house, "80", "2026-10-05")
    used(house, "100", "2026-10-20")
    cap(house, "100")
    house.close("2026-10-11..2026-11-01")
    house.close("2026-10-01..2026-10-11")
    assert [sum(amount for _, amount in lines) for _, _, lines in parts(house)] == [5000, 5000]
    assert {row["state"] for row in house.rows(tables.ratings)} == {"closed"}


MARKED = """
book: marked
currency: USD
plan_changes: {apply: at_once}
metrics: {tools: {unit: call, meters: [tool.calls]}}
plans:
  small: {components: {tools: {model: cost_plus, metric: tools, markup: 50}}}
  big: {components: {calls: {model: cost_plus, metric: tools, markup: 100, by: [tool]}}}
"""


def test_a_cap_of_units_holds_over_both_parts_where_costs_are_marked_up(sqlite_house, tmp_path):
    """echo costs 0.02, fetch 0.04. 60 and 20 calls on small: 1.20 + 0.80, half more. Of 30 and 30 on big 20 are left of
    the cap of 100: 10 of each, at 0.04 and 0.08; 20 of each are not billed, 0.80 and 1.60.
    """
    house = sqlite_house
    house.publish(MARKED, now=at("2026-01-01"))
    house.customer("acme", plan="small", valid_from=at("2026-09-01"), now=at("2026-09-01"))
    house.customer("acme", plan="big", valid_from=at("2026-10-11"), now=at("2026-10-01"))
    for tool, price in (("echo", "0.02"), ("fetch", "0.04")):
        entry = Entry("tool.calls", Decimal(price), currency="USD", valid_from=ALWAYS, why="w", who="ann", tool=tool)
        costs_book.add(house.world.engine, "test", [entry], at("2026-10-01"))
    for tool, quantity, day in (
        ("echo", "60", "05"),
        ("fetch", "20", "05"),
        ("echo", "30", "20"),
        ("fetch", "30", "20"),
    ):
        house.event("acme", "tool.calls", quantity, f"2026-10-{day}T00:00:00", tool=tool)
    house.collected()
    cap(house, "100", "tool.calls")
    expected = [
        [("tools", 300)],
        [("calls", 120), ("calls", 240), (OVER % "tool.calls", -240)],
    ]
    said = [it.outcome.rated.total_minor for it in house.run("2026-10", dry_run=True) if it.outcome]
    assert said == [300, 120]
    house.close("2026-10")
    assert [lines for _, _, lines in parts(house)] == expected
    pack = make(house.world, "acme", parse("2026-10", "UTC"), tmp_path / "pack.zip")
    assert pack.verified
    assert any("units whose costs are marked up" in it for it in pack.findings.carried)
