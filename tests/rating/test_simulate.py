"""`prices simulate` and `rate shadow`: a small history under two books, every amount worked out by hand."""

import csv
import json
from xml.etree import ElementTree

import commands
import pytest
from sqlalchemy import select, update

from meterhouse_rating import money, shadow
from meterhouse_rating.periods import PeriodError
from meterhouse_rating.simulate import Change, Simulation, months_of, simulate
from meterhouse_rating.simulate_picture import as_svg
from meterhouse_rating.simulate_report import as_text
from meterhouse_store import tables

OLD = """
book: old
currency: USD
metrics:
  input: {unit: token, meters: [llm.tokens.input]}
  output: {unit: token, meters: [llm.tokens.output]}
plans:
  pay:
    components:
      in: {model: graduated, metric: input, per: 1000, tiers: [{up_to: 1000, price: 2.00}, {price: 1.00}]}
      out: {model: per_unit, metric: output, per: 1000, by: [model], prices: [{model: big, price: 9.00}], default: 3.00}
  fee:
    unbilled: [llm.tokens.output]
    components:
      base: {model: recurring, price: 10.00, pay: advance}
      in: {model: per_unit, metric: input, per: 1000, price: 1.00}
"""
NEW = """
book: new
currency: USD
metrics:
  input: {unit: token, meters: [llm.tokens.input]}
  output: {unit: token, meters: [llm.tokens.output]}
plans:
  pay:
    components:
      in: {model: graduated, metric: input, per: 1000, tiers: [{up_to: 3000, price: 2.00}, {price: 1.00}]}
      out: {model: per_unit, metric: output, per: 1000, by: [model], prices: [{model: big, price: 8.00}], default: none}
      least: {model: minimum, amount: 6.00}
  fee:
    unbilled: [llm.tokens.output]
    components:
      base: {model: recurring, price: 12.00, pay: advance}
      in: {model: per_unit, metric: input, per: 1000, price: 1.00}
"""


@pytest.fixture(scope="module")
def house(new_house, tmp_path_factory):
    made = new_house("simulate_tests", tmp_path_factory.mktemp("simulate"))
    it = next(made)
    it.publish(OLD)
    for name, plan in (("acme", "pay"), ("bolt", "pay"), ("club", "fee")):
        it.customer(name, plan=plan)
    it.collected()
    it.event("acme", "llm.tokens.input", "2000", "2026-09-05T00:00:00")
    it.event("acme", "llm.tokens.output", "1000", "2026-09-06T00:00:00", model="big")
    it.event("acme", "llm.tokens.input", "500", "2026-10-05T00:00:00")
    it.event("bolt", "llm.tokens.output", "2000", "2026-10-05T00:00:00", model="big")
    it.event("bolt", "llm.tokens.output", "1000", "2026-10-05T00:00:00", model="small")
    it.event("club", "llm.tokens.input", "1000", "2026-10-07T00:00:00")
    it.close("2026-09")
    it.close("2026-10")
    yield it
    made.close()


@pytest.fixture
def call(house, command_environment, tmp_path):
    (tmp_path / "new.yaml").write_text(NEW)

    def run(*arguments):
        environment = command_environment(house)
        done = commands.run(arguments, env=environment, cwd=tmp_path)
        return done.returncode, done.stdout, done.stderr

    return run


def test_each_customer_is_priced_by_both_books_over_all_months(house):
    made = simulate(house.world, NEW, ["2026-09", "2026-10"])
    # acme old: Sep 1,000 x 2/1,000 + 1,000 x 1/1,000 = 3.00, + 9.00; Oct 500 x 2/1,000 = 1.00; together 13.00
    # acme new: Sep 2,000 x 2/1,000 = 4.00 + 8.00; Oct 1.00 and 5.00 up to the minimum; together 18.00
    # bolt old: 18.00 + 3.00 = 21.00; new: Sep the minimum 6.00, Oct 16.00, small without a price; together 22.00
    # club old: two fees of 10.00 and 1.00 (the fee for November is not counted); new: 24.00 + 1.00
    assert {it.customer_id: (it.old_minor, it.new_minor) for it in made.ranked} == {
        "acme": (1300, 1800),
        "club": (2100, 2500),
        "bolt": (2100, 2200),
    }
    assert [it.customer_id for it in made.ranked] == ["acme", "club", "bolt"]
    total = made.totals["USD"]
    assert (total.old_minor, total.new_minor) == (5500, 6500)


def test_it_tells_moves_between_tiers_minimums_items_and_what_has_no_price(house):
    made = simulate(house.world, NEW, ["2026-09", "2026-10"])
    assert [(it.customer_id, it.month, it.component, it.old, it.new) for it in made.moves] == [
        ("acme", "2026-09", "in", "1000..", "0..3000"),
        ("bolt", "2026-09", "least", "", "minimum"),
        ("acme", "2026-10", "in", "0..1000", "0..3000"),
        ("acme", "2026-10", "least", "", "minimum"),
    ]
    assert {(item.name, item.model): sums for (_, item), sums in made.items.items()} == {
        ("input", ""): (500, 600),
        ("output", "big"): (2700, 2400),
        ("output", "small"): (300, 0),
        ("least", ""): (0, 1100),
        ("base", ""): (2000, 2400),
    }
    (left,) = made.left.values()
    assert (left.meter, left.reason, left.events, str(left.quantity.normalize())) == (
        "llm.tokens.output",
        "no_price",
        1,
        "1E+3",
    )
    assert left.customers == {"bolt"}


def test_a_metric_that_one_book_prices_by_model_and_the_other_not_is_compared_as_a_whole(house):
    plain = NEW.replace("by: [model], prices: [{model: big, price: 8.00}], default: none}", "price: 7.00}")
    said = as_text(simulate(house.world, plain, ["2026-09", "2026-10"]))
    # 3,000 of big and 1,000 of small: 27.00 and 3.00 by the old book, 4,000 at 7.00 by the new one.
    shown = [" ".join(line.split()) for line in said.splitlines() if line.startswith("  output")]
    assert shown == ["output all (by model in the old book) 30.00 28.00 -2.00 USD"]
    both = as_text(simulate(house.world, NEW, ["2026-09", "2026-10"]))
    assert [line.split()[:2] for line in both.splitlines() if line.startswith("  output")] == [
        ["output", "big"], ["output", "small"],
    ]  # fmt: skip


def test_its_own_book_changes_nothing_and_nothing_is_written(house):
    before = [house.rows(table) for table in (tables.price_books, tables.ratings, tables.rated_lines)]
    made = simulate(house.world, OLD, ["2026-09", "2026-10"])
    assert {it.minor for it in made.ranked} == {0}
    assert made.moves == []
    assert made.left == {}
    assert [house.rows(table) for table in (tables.price_books, tables.ratings, tables.rated_lines)] == before


def test_the_picture_is_the_same_each_time_and_well_formed(house):
    made = simulate(house.world, NEW, ["2026-09", "2026-10"])
    picture = as_svg(made)
    assert picture == as_svg(simulate(house.world, NEW, ["2026-09", "2026-10"]))
    texts = [it.text for it in ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")]
    assert "Revenue 2026-09 to 2026-10, price book new: 55.00 → 65.00 USD" in texts
    assert texts[2:] == ["acme", "+5.00", "club", "+4.00", "bolt", "+1.00"]


def test_the_picture_uses_its_room_and_no_currency_crowds_out_another():
    made = Simulation(("2026-10",), "new")
    for n in range(30):
        made.changes[f"yen-{n}", "JPY"] = Change(f"yen-{n}", "JPY", 1_000_000, 1_000_000 + 1000 * n)
        made.changes[f"usd-{n}", "USD"] = Change(f"usd-{n}", "USD", 1000, 1000 - n)
    bars = [it for it in ElementTree.fromstring(as_svg(made)).iter() if it.tag.endswith("rect")][1:]
    # All of one side: the longest bar takes the room between the names and the amounts.
    assert (bars[0].get("x"), bars[0].get("width")) == ("210", "550.00")
    assert (bars[-1].get("x"), bars[-1].get("width")) == ("330.00", "550.00")
    said = as_text(made)
    assert [sum(f"{name}-{n} " in said for n in range(30)) for name in ("yen", "usd")] == [10, 10]


def test_the_command_prints_a_table_and_writes_csv_and_picture_and_ends_with_3(call, tmp_path):
    code, shown, _ = call(
        *[
            "prices",
            "simulate",
            "--book",
            "new.yaml",
            "--period",
            "2026-09..2026-10",
            "--csv",
            "it.csv",
            "--picture",
            "it.svg",
        ]
    )
    assert code == 3
    assert "3 customers would pay more, 0 less, 0 the same." in shown
    assert "  acme      13.00  18.00   +5.00  +38.5" in shown
    assert "Without a price under the new book:" in shown
    rows = list(csv.DictReader((tmp_path / "it.csv").read_text().splitlines()))
    assert [(it["customer"], it["old"], it["new"], it["change"], it["change_percent"]) for it in rows] == [
        ("acme", "13.00", "18.00", "5.00", "38.5"),
        ("club", "21.00", "25.00", "4.00", "19"),
        ("bolt", "21.00", "22.00", "1.00", "4.8"),
    ]
    assert (tmp_path / "it.svg").read_text().startswith("<svg ")


def test_one_customer_as_json(call):
    code, shown, _ = call(
        *["prices", "simulate", "--book", "new.yaml", "--period", "2026-10", "--customer", "acme", "--json"]
    )
    assert code == 0
    found = json.loads(shown)
    assert [(it["customer"], it["old"], it["new"]) for it in found["customers"]] == [("acme", "1.00", "6.00")]


@pytest.mark.parametrize("period", ["2026-13", "October", "2026-10..2026-09", "2020-01..2026-01", "2026-10-01"])
def test_what_are_no_months_is_refused(period):
    with pytest.raises(PeriodError, match=r"Write 2026-10|ends before|at most 24"):
        months_of(period)


def test_months_are_named_with_both_ends():
    assert months_of("2026-11..2027-02") == ("2026-11", "2026-12", "2027-01", "2027-02")


def test_closed_ratings_are_rated_again_to_the_byte(call):
    code, shown, told = call("rate", "shadow", "--period", "2026-10")
    assert (code, shown, told) == (0, "5 lines compared, nothing differs.\n", "")


def test_other_code_is_seen_on_the_line_that_it_changes(house, monkeypatch):
    right = money.to_minor
    # Planted: code that rounds up by one cent.
    monkeypatch.setattr("meterhouse_rating.lines.to_minor", lambda *given: right(*given) + 1)
    found = shadow.again(house.world, "2026-10", "acme")
    assert [(it.line, it.field, it.old, it.new) for it in found.differences] == [
        ("in", "amount", "1", "1.01"),
        ("in", "explanation", found.differences[1].old, found.differences[1].new),
    ]


def test_a_stored_line_that_was_altered_is_seen(house):
    lines = tables.rated_lines
    is_it = (lines.c.component == "in") & (lines.c.amount_minor == 300)  # acme's September
    with house.world.engine.begin() as connection:
        connection.execute(update(lines).where(is_it).values(unit="altered"))
    try:
        (found,) = shadow.again(house.world, "2026-09").differences
    finally:
        with house.world.engine.begin() as connection:
            connection.execute(update(lines).where(is_it).values(unit="token"))
    assert (found.customer_id, found.line, found.field, found.old, found.new) == (
        "acme",
        "in",
        "unit",
        "altered",
        "token",
    )


def test_a_rating_that_is_only_told_in_other_words_is_listed_and_no_difference(house, call):
    """As one that was closed by another version, which called its fee otherwise."""
    lines = tables.rated_lines
    is_it = (lines.c.component == "in") & (lines.c.amount_minor == 300)  # acme's September
    with house.world.engine.begin() as connection:
        (was,) = connection.execute(select(lines).where(is_it)).mappings().all()
        other = {"description": "in (of September)", "explanation": {**was["explanation"], "steps": []}}
        connection.execute(update(lines).where(is_it).values(**other))
    try:
        code, shown, _ = call("rate", "shadow", "--period", "2026-09")
    finally:
        with house.world.engine.begin() as connection:
            connection.execute(update(lines).where(is_it).values({name: was[name] for name in other}))
    assert code == 0
    assert "  the same in other words: acme 2026-09-01..2026-10-01: in\n" in shown
    assert shown.endswith("compared, nothing differs.\n")


def test_two_books_line_by_line(call):
    code, shown, _ = call("rate", "shadow", "--period", "2026-09", "--book", "new.yaml")
    assert code == 1
    assert "amount_exact" in shown
    assert "acme" in shown


def test_another_systems_totals(house, tmp_path):
    file = tmp_path / "theirs.csv"
    file.write_text("customer,metric,quantity,amount\nacme,input,500,1.00\nacme,output,7,0.10\nbolt,output,,21.00\n")
    found = shadow.against(house.world, "2026-10", file)
    assert [(it.customer_id, it.line, it.field, it.old, it.new) for it in found.differences] == [
        ("acme", "output", "quantity", "7", "-"),
        ("acme", "output", "amount", "0.1", "-"),
        ("club", "base", "quantity", "-", "1"),
        ("club", "base", "amount", "-", "10"),
        ("club", "input", "quantity", "-", "1000"),
        ("club", "input", "amount", "-", "1"),
    ]
    assert found.same == 2
    file.write_text("customer,metric,quantity,amount\nacme,input,many,1.00\n")
    with pytest.raises(shadow.TotalsRefused, match="line 2: 'many' is no number"):
        shadow.totals_of(file)
