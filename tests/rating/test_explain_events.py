"""`rate explain` down to the events: they add up to the quantity, and the book gives the amount, or it says so."""

import json

import pytest
from evidence_samples import agreed_and_closed, furnished
from rating_samples import at
from typer.testing import CliRunner

from meterhouse_rating.commands import rate
from meterhouse_store import tables


@pytest.fixture(scope="module")
def house(new_house, tmp_path_factory):
    """For looking only."""
    making = new_house("explain", tmp_path_factory.mktemp("explain"))
    yield furnished(next(making))
    making.close()


@pytest.fixture
def explain(command_environment):
    def call(house, line, *more):
        done = CliRunner().invoke(rate, ["explain", line, *more], env=command_environment(house))
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.output

    return call


def lines(house):
    return {row["description"]: row for row in house.rows(tables.rated_lines)}


def test_a_line_is_told_with_its_line_of_the_book_its_events_and_that_they_add_up(house, explain):
    code, said = explain(house, lines(house)["tools"]["line_id"], "--events", "2")
    assert code == 0, said
    told = said.splitlines()
    begin = told.index(
        "  In the book: tools: {model: graduated, metric: tools, "
        "tiers: [{up_to: 10, price: 0.50}, {price: 0.25, flat: 1.00}]}"
    )
    assert told[begin + 1 :] == [
        "  16 events: 16 tool.calls.",
        "    time                 event  meter       quantity  status  model, tool  trace",
        "    2026-10-13 08:00:00  e12    tool.calls         1  ok      search",
        "    2026-10-14 08:00:00  e13    tool.calls         1  ok      search",
        "    and 14 more events (--events 16 shows all)",
        "  Checked: the events add up to the quantity and the arithmetic gives the amount.",
    ]


def test_every_kind_of_line_is_checked(house, explain):
    for row in lines(house).values():
        code, said = explain(house, row["line_id"], "--json")
        behind = json.loads(said)["behind"]
        assert (code, behind["problems"]) == (0, []), said
        usage = row["kind"] == "usage"
        both = ["the events add up to the quantity", "the arithmetic gives the amount"]
        assert behind["checked"] == (both if usage else both[1:]), row["description"]
        assert bool(behind["events"]["count"]) == usage
    output = json.loads(explain(house, lines(house)["fee: output"]["line_id"], "--json")[1])["behind"]["events"]
    assert output["meters"] == {"llm.tokens.output": "900000", "llm.tokens.reasoning": "500000"}
    assert [it.get("trace_id") for it in output["shown"]] == [None, "cafe"]


def test_without_events_no_warehouse_is_asked(house, explain, monkeypatch):
    monkeypatch.setattr("meterhouse_rating.commands.world_of", lambda *_: pytest.fail("the warehouse was asked"))
    code, said = explain(house, lines(house)["tools"]["line_id"], "--events", "0")
    assert code == 0 and said.startswith("tools: 16 calls, 7.50 USD"), said


@pytest.mark.long
def test_agreements_and_corrections_are_explained_and_what_does_not_add_up_is_said(house_of_berlin, explain):
    house, rows = house_of_berlin, house_of_berlin.rows(tables.rated_lines)
    kinds = {row["kind"]: row["line_id"] for row in rows}
    for kind in ("credit_pack", "discount", "credit_applied"):
        code, said = explain(house, kinds[kind])
        assert code == 0 and said.endswith("  Checked: the arithmetic gives the amount.\n"), said
    later = next(row["line_id"] for row in rows if row["description"] == "in" and row["amount_minor"] == 175)
    code, said = explain(house, later)
    assert code == 0 and "  90 were rated earlier this month." in said.splitlines(), said
    correction = next(row["line_id"] for row in rows if row["kind"] == "correction")
    code, text = explain(house, correction)
    said = [" ".join(it.split()) for it in text.splitlines()]
    assert code == 0 and "Exactly 1.5 EUR, of two amounts that were rounded by themselves: 1.50." in said, text
    of = "of 2026-08-31T22:00:00Z..2026-09-30T22:00:00Z"
    assert f"1 event {of} became known since it was closed: 40 llm.tokens.input." in said
    assert any(it.startswith("2026-09-21 12:00:00 ") for it in said)
    own = next(row["line_id"] for row in rows if row["description"] == "calls")
    assert "  In the book: model: package" in explain(house, own)[1].splitlines()
    # An event turns up in the warehouse that was there when the period was closed, and was not rated.
    house.event("berlin", "api.calls", "900", "2026-10-06T12:00:00", task_id="")
    peak = next(row["line_id"] for row in rows if row["description"] == "peak")
    code, said = explain(house, peak)
    assert code == 1 and "its quantity, from the events: it says 700, recomputed it is 900" in said, said


@pytest.fixture
def house_of_berlin(request):
    made = request.getfixturevalue("sqlite_house")
    agreed_and_closed(made)
    return made


def test_no_id_at_all_is_said_to_be_none():
    for line in ("", "  "):
        done = CliRunner().invoke(rate, ["explain", line])
        assert (done.exit_code, done.stderr.startswith("Name the line by its id")) == (2, True)


COUNTED = """
book: test
currency: USD
metrics:
  talks: {unit: talk, meters: [llm.requests], aggregate: unique, of: conversation_id}
  most: {unit: token, meters: [llm.tokens.input], aggregate: max}
  stored: {unit: GB day, meters: [agent.seconds], aggregate: time_weighted, per: day}
plans:
  pay:
    components:
      talks: {model: per_unit, metric: talks, price: 1.00}
      most: {model: per_unit, metric: most, price: 0.10}
      store: {model: per_unit, metric: stored, price: 0.10}
"""


def test_a_correction_of_what_is_no_sum_is_counted_again_from_all_events_of_its_period(sqlite_house, explain):
    house = sqlite_house
    house.publish(COUNTED)
    house.customer("acme", now=at("2026-10-01"))
    house.at(at("2026-11-05"))
    house.collected("2026-11-05T00:00:00")
    for meter, quantity, talk in (
        ("llm.requests", "1", "c1"),
        ("llm.tokens.input", "50", ""),
        ("agent.seconds", "2", ""),
    ):
        house.event("acme", meter, quantity, "2026-10-02T00:00:00", conversation_id=talk)
    house.close("2026-10")
    house.at(at("2026-12-05"))
    house.collected("2026-12-05T00:00:00", position=2000)
    house.close("2026-11")
    house.at(at("2026-12-21"))
    house.collected("2026-12-21T00:00:00", position=3000)
    for meter, quantity, talk in (
        ("llm.requests", "1", "c2"),
        ("llm.tokens.input", "70", ""),
        ("agent.seconds", "5", ""),
    ):
        house.event(
            "acme", meter, quantity, "2026-10-22T00:00:00", received="2026-12-10T00:00:00", conversation_id=talk
        )
    house.run("2026-12")
    corrections = {it: row for it, row in lines(house).items() if row["kind"] == "correction"}
    # 1 talk more, 20 tokens more, 3 GB more for 10 days of October and for November.
    assert sorted((it.split()[0], row["quantity"]) for it, row in corrections.items()) == [
        ("most", 20), ("store", 30), ("store", 90), ("talks", 1),
    ]  # fmt: skip
    for name, row in corrections.items():
        code, said = explain(house, row["line_id"])
        assert code == 0, said
        checked = "Checked: the events add up to the quantity and the arithmetic gives the amount."
        assert said.splitlines()[-1].strip() == checked, (name, said)
