"""Evidence packs recompute what began before their period: credits from the ledger, levels, and what is above a cap."""

import gzip
import json
import zipfile
from decimal import Decimal

import pytest
from rating_samples import at
from test_evidence import written
from typer.testing import CliRunner

from meterhouse_rating import credit_changes
from meterhouse_rating.commands import rate
from meterhouse_rating.credits import Grant
from meterhouse_rating.evidence import make
from meterhouse_rating.evidence_check.container import EVENTS
from meterhouse_rating.evidence_check.main import verify
from meterhouse_rating.periods import parse
from meterhouse_store import budgets
from meterhouse_store.budgets import MONEY, Budget

BOOK = """
book: levels
currency: USD
metrics:
  input: {unit: token, meters: [llm.tokens.input]}
  stored: {unit: GB, meters: [llm.pages], aggregate: latest, of: attributes.volume}
  held: {unit: GB hour, meters: [llm.images], aggregate: time_weighted, per: hour, of: attributes.volume}
plans:
  pay:
    components:
      in: {model: per_unit, metric: input, per: 1000, price: 2.00}
      stored: {model: per_unit, metric: stored, price: 0.10}
      held: {model: per_unit, metric: held, per: 1000, price: 1.00}
"""


@pytest.fixture
def pack(sqlite_house, tmp_path):
    """October of acme. By hand: 3,000 tokens 6.00. Stored at its end: a 7 from September on, b 5: 12 at 0.10 1.20.

    Held: 10 from September on up to 11 October (240 hours), then 20 (504 hours): 12,480 GB hours, 12.48. A cap of 18.00
    takes 1.68. Of credits, the gift of 5.00 pays first, of which September used 2.94 (2.00, 7 stored, 24 hours of 10);
    then 4.00 bought in September and 1.00 in October; and not what begins in November.
    """
    house = sqlite_house
    house.at(at("2026-11-05"))
    house.publish(BOOK, now=at("2026-08-01"))
    house.customer("acme", now=at("2026-08-01"))
    for name, kind, minor, since, priority in (
        ("bought", "bought", 400, "2026-09-02", 0),
        ("gift", "promotional", 500, "2026-09-03", 0),
        ("more", "bought", 100, "2026-10-20", 0),
        ("later", "bought", 9900, "2026-11-01", -1),
    ):
        told = {"reference": name, "who": "ann", "why": "sorry", "now": at("2026-09-05")}
        grant = Grant("", kind, minor, at(since), None, priority)
        credit_changes.grant(house.world.engine, "test", "acme", grant, None, **told)
    cap = Budget("acme", "most", MONEY, Decimal(18))
    budgets.set_budget(house.world.engine, "test", cap, who="ann", why="agreed", now=at("2026-10-02"))
    for meter, quantity, when, volume in (
        ("llm.tokens.input", "1000", "2026-09-10T00:00:00", ""),
        ("llm.pages", "3", "2026-09-10T00:00:00", "a"),
        ("llm.pages", "7", "2026-09-11T00:00:00", "a"),
        ("llm.images", "10", "2026-09-30T00:00:00", "a"),
        ("llm.tokens.input", "3000", "2026-10-10T00:00:00", ""),
        ("llm.pages", "5", "2026-10-11T00:00:00", "b"),
        ("llm.images", "20", "2026-10-11T00:00:00", "a"),
    ):
        house.event("acme", meter, quantity, when, attributes={"volume": volume})
    for month, through in (("2026-09", "2026-10-03"), ("2026-10", "2026-11-05")):
        house.at(at(through))
        house.collected(f"{through}T00:00:00", position=int(through[5:7]) * 100)
        house.close(month)
    file = tmp_path / "acme.zip"
    result = make(house.world, "acme", parse("2026-10", "UTC"), file)
    assert result.verified, result.as_text()
    return file, result


def test_credits_levels_and_caps_are_recomputed_and_nothing_of_them_is_only_carried(pack):
    _, result = pack
    amounts = {line["description"]: line["amount_minor"] for line in result.ratings[0]["lines"]}
    assert amounts == {
        "in": 600,
        "stored": 120,
        "held": 1248,
        "Above the cap of 18 USD: not billed": -168,
        "Credits applied": -706,
    }
    done = result.findings.recomputed
    assert done["rules of grants of credits: when they hold, and their order"] == 1
    assert done["balances of credits before a rating, from the ledger"] == 1
    assert done["levels of before the period, that go on into it"] == 2
    assert done["quantities of lines, from the events"] == 3
    assert done["caps, by the names of their lines that the ledger seals"] == 1
    assert done["what is above caps, from the events and the lines"] == 1
    assert set(result.findings.carried) == {
        "statements of completeness, as they were made when the period was closed",
        "other ledger transactions of the customer: their causes are not in the pack",
        "seals of other customers between those of the pack (a pack made with anchors has them)",
    }


def test_explaining_a_line_of_levels_reads_those_that_go_on_into_the_month(pack, sqlite_house, command_environment):
    _, result = pack
    for line in result.ratings[0]["lines"]:
        done = CliRunner().invoke(rate, ["explain", line["line_id"], "--json"], env=command_environment(sqlite_house))
        assert done.exit_code == 0, (line["description"], done.output)
        assert json.loads(done.output)["behind"]["problems"] == []


def _grants(**changed):
    """Every grant with another rule."""
    return lambda it: [grant.update(changed) for grant in it[0]["grants"].values()]


FORGERIES = [
    ("ledger.json", lambda it: it["earlier"].pop(0), "the credits before it"),
    ("ledger.json", lambda it: it["earlier"][0]["entries"][0].update(amount_minor=1), "its seal"),
    ("ratings.json", _grants(priority=1), "its rules, by the ledger"),
    ("ratings.json", _grants(expires_at="2026-12-01T00:00:00.000000000Z"), "its rules, by the ledger"),
    ("ratings.json", _grants(rollover=100), "its rules, by the ledger"),
    ("ratings.json", _grants(kind="promotional"), "its kind, by the ledger"),
    ("ratings.json", _grants(granted_at="2026-09-01T00:00:00.000000000Z"), "from when it holds, by the ledger"),
    ("ratings.json", lambda it: it[0]["levels"][0].update(quantity="1"), "its quantity, from the events"),
    ("ratings.json", lambda it: it[0]["levels"].pop(), "its quantity, from the events"),
    ("ratings.json", lambda it: it[0]["discounts"][0]["cap"].update(limit="10"), "the name of its cap"),
    ("ratings.json", lambda it: it[0]["discounts"][0].update(amount="1.00"), "what is above the cap"),
]


def test_explaining_a_formula_reads_levels_sums_and_the_largest_for_its_inputs(
    sqlite_house, tmp_path, command_environment
):
    """October: 3,000 tokens at 0.001 3.00; at its end 7 GB stored 0.70; held 10 for 744 hours 7.44; the largest 20."""
    house = sqlite_house
    house.at(at("2026-11-05"))
    parts = BOOK.partition("      in: {")[0].replace("  stored:", _LARGEST + "  stored:")
    house.publish(parts + _FORMULA, now=at("2026-08-01"))
    house.customer("acme", now=at("2026-09-30"))
    for meter, quantity, when in (
        ("llm.pages", "7", "2026-09-30T10:00:00"),
        ("llm.images", "10", "2026-09-30T10:00:00"),
        ("llm.tokens.input", "3000", "2026-10-10T00:00:00"),
        ("llm.tokens.output", "20", "2026-10-10T00:00:00"),
        ("llm.tokens.output", "15", "2026-10-11T00:00:00"),
    ):
        house.event("acme", meter, quantity, when, attributes={"volume": "a"})
    house.collected("2026-11-05T00:00:00")
    house.close("2026-10")
    result = make(house.world, "acme", parse("2026-10", "UTC"), tmp_path / "acme.zip")
    assert result.verified, result.as_text()
    (line,) = result.ratings[0]["lines"]
    assert (line["description"], line["amount_minor"]) == ("all", 300 + 70 + 744 + 2000)
    done = CliRunner().invoke(rate, ["explain", line["line_id"], "--json"], env=command_environment(house))
    assert done.exit_code == 0, done.output
    behind = json.loads(done.output)["behind"]
    assert behind["checked"] == ["the events add up to the quantity", "the arithmetic gives the amount"]
    assert behind["events"]["count"] == 3, "those of October"


_LARGEST = "  largest: {unit: token, meters: [llm.tokens.output], aggregate: max}\n"
_FORMULA = """
      all:
        model: formula
        inputs: {tokens: input, stored: stored, held: held, largest: largest}
        amount: tokens * 0.001 + stored * 0.1 + held * 0.001 + largest
"""


def test_what_began_before_cannot_be_forged(pack, tmp_path):
    for name, change, told in FORGERIES:
        with zipfile.ZipFile(pack[0]) as archive:
            files = {it: archive.read(it) for it in archive.namelist()}
        value = json.loads(files[name])
        change(value)
        files[name] = json.dumps(value).encode()
        problems = verify(written(files, tmp_path / "forged.zip")).findings.problems
        assert any(told in it for it in problems), (told, problems)


CAPPED = """
book: capped
currency: USD
metrics:
  input: {unit: token, meters: [llm.tokens.input, llm.tokens.output]}
  tools: {unit: call, meters: [tool.calls]}
plans:
  pay:
    components:
      in: {model: per_unit, metric: input, by: [model], prices: [{model: big, price: 0.10}], default: 0.05}
      tools: {model: package, metric: tools, size: 10, price: 2.00}
      share: {model: percentage, of: [in], percent: 10}
"""


@pytest.fixture
def capped(sqlite_house, tmp_path):
    """October of acme, with two caps of units and one of money. By hand:

    In: big 60 input and 60 output at 0.10 12.00, small 40 at 0.05 2.00; a tenth of it 1.40; 35 calls are 4 packages,
    8.00. The cap of 80 tokens leaves half of each row: 60 at 0.10 6.00, 20 at 0.05 1.00, a tenth 0.70: 7.70 less. That
    is of a component without usage, too, so it is one sum. The cap of 12 calls leaves 2 packages: 4.00 less. What is
    left of usage is 6.00 + 1.00 + 4.00 = 11.00: 1.00 is above the cap of 10.00. The invoice: 14.00 + 1.40 + 8.00 - 7.70
    - 4.00 - 1.00 = 10.70.
    """
    house = sqlite_house
    house.at(at("2026-11-05"))
    house.publish(CAPPED, now=at("2026-08-01"))
    house.customer("acme", now=at("2026-08-01"))
    for name, of, limit in (("a tokens", "input", 80), ("b calls", "tool.calls", 12), ("c most", "", 10)):
        cap = Budget("acme", name, budgets.UNITS if of else MONEY, Decimal(limit), of=of)
        budgets.set_budget(house.world.engine, "test", cap, who="ann", why="agreed", now=at("2026-10-02"))
    for meter, quantity, model in (
        ("llm.tokens.input", "60", "big"),
        ("llm.tokens.output", "60", "big"),
        ("llm.tokens.input", "40", "small"),
        ("tool.calls", "35", ""),
    ):
        house.event("acme", meter, quantity, "2026-10-10T00:00:00", model=model)
    house.collected("2026-11-05T00:00:00")
    house.close()
    file = tmp_path / "acme.zip"
    return file, make(house.world, "acme", parse("2026-10", "UTC"), file)


def test_caps_of_units_and_several_of_them_are_recomputed(capped):
    _, result = capped
    assert result.verified, result.as_text()
    assert {line["description"]: line["amount_minor"] for line in result.ratings[0]["lines"]} == {
        "in (big)": 1200,
        "in (small)": 200,
        "tools": 800,
        "share": 140,
        "Above the cap of 80 input: not billed": -770,
        "Above the cap of 12 tool.calls: not billed": -400,
        "Above the cap of 10 USD: not billed": -100,
    }
    assert result.ratings[0]["total_minor"] == 1070
    assert result.findings.recomputed["what is above caps, from the events and the lines"] == 3
    assert not any("cap" in it for it in result.findings.carried)


def _left_out(rating, name):
    """Without the cap, its discount and its line, as if it had never been."""
    gone = next(it for it in rating["discounts"] if it["cap"]["name"] == name)
    rating["discounts"].remove(gone)
    line = next(it for it in rating["lines"] if it["explanation"].get("discount") == gone["id"])
    rating["lines"].remove(line)
    rating["total_minor"] -= line["amount_minor"]


def _events(files, change):
    lines = gzip.decompress(files[EVENTS]).decode().splitlines()
    files[EVENTS] = gzip.compress("".join(f"{change(it)}\n" for it in lines).encode())


def test_caps_cannot_be_forged(capped, tmp_path):
    def amount(rating, name, text):
        next(it for it in rating["discounts"] if it["cap"]["name"] == name).update(amount=text)

    def limit(rating, name, text):
        next(it for it in rating["caps"]["held"] if it["name"] == name).update(limit=text)

    for change, told in (
        (lambda it: amount(it, "a tokens", "7.69"), "what is above the cap: it says 7.69, recomputed it is 7.7"),
        (lambda it: amount(it, "b calls", "3.99"), "what is above the cap: it says 3.99, recomputed it is 4"),
        (lambda it: amount(it, "c most", "2"), "what is above the cap: it says 2, recomputed it is 1"),
        (lambda it: limit(it, "a tokens", "70"), "are above a cap, and no line takes them off"),
        (lambda it: it["caps"]["held"].pop(0), "what is above the cap: it says 7.7, recomputed it is 0"),
        (lambda it: it["caps"].update(metered=["in"]), "what is above the cap"),
        (lambda it: _left_out(it, "b calls"), "4.00 USD are above a cap, and no line takes them off"),
    ):
        with zipfile.ZipFile(capped[0]) as archive:
            files = {it: archive.read(it) for it in archive.namelist()}
        value = json.loads(files["ratings.json"])
        change(value[0])
        files["ratings.json"] = json.dumps(value).encode()
        problems = verify(written(files, tmp_path / "forged.zip")).findings.problems
        assert any(told in it for it in problems), (told, problems)


def test_levels_of_a_trial_go_on_behind_it_and_are_recomputed(sqlite_house, tmp_path):
    """acme begins on 1 October with ten days of trial. By hand, from 11 October on:

    Stored at the end: a 7, which is of the trial, b 5: 12 at 0.10 1.20. Held: 10 from September on up to 5 October,
    then 20, of which 21 days count: 20 x 504 = 10,080 GB hours, 10.08. Of the tokens 3,000 are free, 1,000 are 2.00.
    """
    house = sqlite_house
    house.at(at("2026-11-05"))
    house.publish(BOOK.replace("  pay:\n", "  pay:\n    trial_days: 10\n"), now=at("2026-08-01"))
    house.customer("acme", now=at("2026-08-01"), valid_from=at("2026-10-01"))
    for meter, quantity, when, volume in (
        ("llm.images", "10", "2026-09-30T00:00:00", "a"),
        ("llm.pages", "3", "2026-09-30T00:00:00", "a"),
        ("llm.pages", "7", "2026-10-04T00:00:00", "a"),
        ("llm.images", "20", "2026-10-05T00:00:00", "a"),
        ("llm.tokens.input", "3000", "2026-10-10T00:00:00", ""),
        ("llm.pages", "5", "2026-10-12T00:00:00", "b"),
        ("llm.tokens.input", "1000", "2026-10-12T00:00:00", ""),
    ):
        house.event("acme", meter, quantity, when, attributes={"volume": volume})
    house.collected("2026-11-05T00:00:00")
    house.close("2026-10")
    file = tmp_path / "acme.zip"
    result = make(house.world, "acme", parse("2026-10", "UTC"), file)
    assert result.verified, result.as_text()
    amounts = {line["description"]: line["amount_minor"] for line in result.ratings[0]["lines"]}
    assert amounts == {"in": 200, "stored": 120, "held": 1008}
    assert result.findings.recomputed["quantities of lines, from the events"] == 3
    assert not any("trial" in it for it in result.findings.carried)
    with zipfile.ZipFile(file) as archive:
        files = {it: archive.read(it) for it in archive.namelist()}
    _events(files, lambda it: it.replace('"quantity":"20"', '"quantity":"19"'))
    problems = verify(written(files, tmp_path / "forged.zip")).findings.problems
    assert any("its quantity, from the events: it says 10080, recomputed it is 9576" in it for it in problems), problems


def test_what_a_grant_carries_on_is_proved_by_the_one_it_comes_from(sqlite_house, tmp_path):
    """5.00 of September, of which 3.00 are rolled over at its end: in October they pay 3.00 of 4.00."""
    house = sqlite_house
    house.at(at("2026-11-05"))
    house.publish(BOOK, now=at("2026-08-01"))
    house.customer("acme", now=at("2026-08-01"))
    told = {"reference": "gift", "who": "ann", "why": "sorry", "now": at("2026-09-01")}
    grant = Grant("", "promotional", 500, at("2026-09-01"), at("2026-10-01"), 0, 300)
    credit_changes.grant(house.world.engine, "test", "acme", grant, None, **told)
    house.event("acme", "llm.tokens.input", "500", "2026-09-10T00:00:00")
    house.event("acme", "llm.tokens.input", "2000", "2026-10-10T00:00:00")
    for month, through in (("2026-09", "2026-10-03"), ("2026-10", "2026-11-05")):
        house.at(at(through))
        house.collected(f"{through}T00:00:00", position=int(through[5:7]) * 100)
        house.close(month)
    file = tmp_path / "acme.zip"
    result = make(house.world, "acme", parse("2026-10", "UTC"), file)
    assert result.verified, result.as_text()
    assert [line["amount_minor"] for line in result.ratings[0]["lines"]] == [400, -300]
    assert result.findings.recomputed["rules of grants of credits: when they hold, and their order"] == 1
    (carried,) = (name for name, it in result.ratings[0]["grants"].items() if not it["rollover"])
    with zipfile.ZipFile(file) as archive:
        files = {it: archive.read(it) for it in archive.namelist()}
    value = json.loads(files["ratings.json"])
    value[0]["grants"][carried]["expires_at"] = "2027-12-01T00:00:00.000000000Z"
    files["ratings.json"] = json.dumps(value).encode()
    problems = verify(written(files, tmp_path / "forged.zip")).findings.problems
    assert any("its rules, by the one that it carries on" in it for it in problems), problems
