"""Prices that mark up what usage cost by the pinned price list and one's own costs: exact, explained and verified."""

import json
import zipfile
from decimal import Decimal

import pytest
from rating_samples import at
from test_evidence import written
from typer.testing import CliRunner

from meterhouse_rating import as_of, catalogues, costs_book, costs_rates, shadow
from meterhouse_rating.costs_entries import Entry
from meterhouse_rating.costs_report import span, status
from meterhouse_rating.evidence import make
from meterhouse_rating.evidence_check.main import verify
from meterhouse_rating.explain_events import behind
from meterhouse_rating.ledger_proof import prove
from meterhouse_rating.periods import parse
from meterhouse_rating.report import lines_named
from meterhouse_rating.run import Request, run
from meterhouse_rating.simulate import simulate
from meterhouse_store.registry import ALWAYS
from meterhouse_store.tables import rated_lines, unrated_usage

BOOK = """
book: markup
currency: USD
metrics:
  input: {unit: token, meters: [llm.tokens.input, llm.tokens.cache_read]}
  output: {unit: token, meters: [llm.tokens.output]}
  tools: {unit: call, meters: [tool.calls]}
  audio: {unit: second, meters: [llm.audio.seconds]}
unbilled: {meters: [llm.requests]}
plans:
  pay:
    components:
      in: {model: cost_plus, metric: input, markup: 200, by: [model]}
      out: {model: cost_plus, metric: output, markup: 200}
      tools: {model: cost_plus, metric: tools, markup: 50, fee: 0.001}
      audio: {model: cost_plus, metric: audio, markup: 100}
"""
MINI = {"provider": "openai", "model": "gpt-4o-mini", "usage_source": "reported"}
SONNET = {"provider": "anthropic", "model": "claude-sonnet-4-5-20250929", "usage_source": "reported"}
CHAT = {"provider": "deepseek", "model": "deepseek-chat", "usage_source": "reported"}
WHISPER = {"provider": "groq", "model": "whisper-large-v3", "usage_source": "reported"}
LLAMA = {"provider": "own", "model": "llama", "usage_source": "reported"}
NOTHING = {"provider": "", "model": "", "usage_source": "", "tool": "", "call_id": ""}


def own(house, meter, price, now, **more):
    said = {"currency": "USD", "valid_from": ALWAYS, "why": "agreed", "who": "test"} | more
    made = costs_book.add(house.world.engine, "test", [Entry(meter, Decimal(price), **said)], at(now))
    return made[0][0].entry_id


def used(house, *events, customer="acme"):
    house.events(
        [
            {"customer_id": customer, "meter": meter, "quantity": quantity, "when": when, **NOTHING, **more}
            for meter, quantity, when, more in events
        ]
    )


def furnished(house):
    """October of acme. What it costs, by hand:

    in: gpt-4o-mini 1,000,000 at 0.15 per million 0.15; sonnet 200,000 in one request at 3 0.60, and 100,000 and 100,001
    read from the cache in one of 200,001 at 6 and 0.60: 0.60 + 0.0600006.
    out: deepseek-chat 1,000,000 at 00:10 UTC at 0.55, and as many at 12:00 at 1.10. The tokens of llama: not known.
    tools: 5 at 0.01 before 15 October, 5 at 0.02 from then on. audio: 2 s and 20 s, at least ten: 30 at 0.111 per hour.
    """
    house.at(at("2026-11-05"))
    house.publish(BOOK, now=at("2026-09-01"))
    house.customer("acme", now=at("2026-09-01"))
    told = {"valid_from": None, "now": at("2026-09-01"), "who": "test", "why": "imported"}
    costs_book.pin(house.world.engine, "test", catalogues.text(), **told)
    own(house, "tool.calls", "0.01", "2026-09-01")
    own(house, "tool.calls", "0.02", "2026-10-14", valid_from=at("2026-10-15"))
    used(
        house,
        ("llm.tokens.input", "1000000", "2026-10-02T10:00:00", MINI | {"call_id": "a"}),
        ("llm.tokens.input", "200000", "2026-10-03T10:00:00", SONNET | {"call_id": "b"}),
        ("llm.tokens.input", "100000", "2026-10-03T11:00:00", SONNET | {"call_id": "c"}),
        ("llm.tokens.cache_read", "100001", "2026-10-03T11:00:00", SONNET | {"call_id": "c"}),
        ("llm.tokens.output", "1000000", "2026-10-04T00:10:00", CHAT | {"call_id": "d"}),
        ("llm.tokens.output", "1000000", "2026-10-04T12:00:00", CHAT | {"call_id": "e"}),
        ("llm.tokens.output", "777", "2026-10-05T12:00:00", LLAMA | {"call_id": "f"}),
        ("llm.audio.seconds", "2", "2026-10-06T12:00:00", WHISPER | {"call_id": "g"}),
        ("llm.audio.seconds", "20", "2026-10-06T13:00:00", WHISPER | {"call_id": "h"}),
        *(("tool.calls", "1", f"2026-10-{day}T12:00:00", {"tool": "search"}) for day in range(10, 20)),
    )
    house.collected("2026-11-05T00:00:00")


# In minor units: 3 x 1.2600006 = 3.7800018 and 3 x 0.15; 3 x 1.65; 0.15 x 1.5 + 0.01; 2 x 30 x 0.111 / 3600 = 0.00185.
LINES = {"in (claude-sonnet-4-5-20250929)": 378, "in (gpt-4o-mini)": 45, "out": 495, "tools": 24, "audio": 0}
TOTAL = 378 + 45 + 495 + 24


def lines_of(house):
    return {row["description"]: row for row in house.rows(rated_lines)}


def test_a_month_is_billed_by_what_it_cost_and_what_has_no_cost_is_an_exception(house):
    furnished(house)
    house.run()
    lines = lines_of(house)
    assert {name: row["amount_minor"] for name, row in lines.items()} == LINES
    steps = {step["amount"] for step in lines["tools"]["explanation"]["steps"]}
    assert steps == {"0.05", "0.1", "0.075", "0.01"}  # by the two costs, half of both on top, the fee
    exact = {"in (claude-sonnet-4-5-20250929)": "3.7800018", "audio": "0.00185", "tools": "0.235"}
    assert {name: str(lines[name]["amount_exact"].normalize()) for name in exact} == exact
    (left,) = house.rows(unrated_usage)
    assert (left["meter"], left["quantity"], left["reason"]) == ("llm.tokens.output", Decimal(777), "cost_unknown")
    assert left["hint"].startswith(
        "what the provider asks for llm.tokens.output (provider own, model llama) is not known (provider_unknown): "
        "meterhouse costs set llm.tokens.output PRICE --per 1000000 --provider own --model llama --why ..., or"
    )
    # What is billed is what margins see, where each event is cut at the eighteenth digit.
    costs_rates.refresh(house.world)
    known = status(house.world, span("2026-10", house.world.now()))
    asked = sum(
        (
            Decimal(step["amount"])
            for row in lines.values()
            for step in row["explanation"]["steps"]
            if "asked_by" in step
        ),
        Decimal(0),
    )
    assert abs(asked - known.costs["USD"]) < Decimal("1e-15")
    # Somebody does as it says; the next run bills it: 777 at 2.00 per million, three times.
    own(house, "llm.tokens.output", "2.00", "2026-11-05", per=1_000_000, provider="own", model="llama")
    house.run()
    assert house.rows(unrated_usage) == []
    assert lines_of(house)["out"]["amount_exact"] == Decimal("4.95") + Decimal("0.004662")


def test_what_was_closed_keeps_its_costs_and_late_usage_is_billed_by_those(sqlite_house, tmp_path):
    house = sqlite_house
    furnished(house)
    house.close()
    assert sum(row["amount_minor"] for row in house.rows(rated_lines)) == TOTAL
    # Afterwards the tool gets dearer for all time, and usage of October comes late: 100 calls, and gpt-4o-mini.
    own(house, "tool.calls", "7.00", "2026-11-10")
    used(
        house,
        ("tool.calls", "100", "2026-10-20T12:00:00", {"tool": "search", "received": "2026-11-12T00:00:00"}),
        (
            "llm.tokens.input",
            "2000000",
            "2026-10-02T11:00:00",
            MINI | {"call_id": "z", "received": "2026-11-12T00:00:00"},
        ),
    )
    house.at(at("2026-12-05"))
    house.collected("2026-12-05T00:00:00", position=2000)
    found = shadow.again(house.world, "2026-10")
    assert (found.differences, found.unknown) == ([], [])
    (known,) = as_of.rate_as_of(house.world, "2026-10", "acme", at("2026-11-15"))
    assert known.same is True
    house.close("2026-11")
    late = {row["description"]: row for row in house.rows(rated_lines) if row["kind"] == "correction"}
    # 100 at 0.02 and half of it, and 0.001 each: 3.10; 2,000,000 at 0.15, three times: 0.90.
    assert {name: row["amount_exact"].normalize() for name, row in late.items()} == {
        "tools (correction of 2026-10-01..2026-11-01)": Decimal("3.1"),
        "in (gpt-4o-mini) (correction of 2026-10-01..2026-11-01)": Decimal("0.9"),
    }
    assert prove(house.world.engine, "test").problems == []
    for row in late.values():
        (line,) = lines_named(house.world.engine, "test", row["line_id"])
        told = behind(house.world, line, 10)
        assert (told.problems, told.count) == ((), 1)


def test_the_events_behind_a_line_add_up_to_it_and_it_is_said_what_the_provider_asks(sqlite_house, command_environment):
    from meterhouse_rating.commands import rate

    house = sqlite_house
    furnished(house)
    house.run()
    line = lines_of(house)["out"]["line_id"]
    done = CliRunner().invoke(
        rate, ["explain", line], env=command_environment(house) | {"METERHOUSE_NAMESPACE": "test"}
    )
    said = [text.strip() for text in done.output.splitlines()]
    assert done.exit_code == 0, done.output
    (cheap,) = (it for it in said if "at 0.55 USD" in it)
    assert cheap.startswith("The provider asks 1,000,000 at 0.55 USD per 1,000,000: 0.55 USD (genai-prices-0.2.3:")
    assert "/deepseek/deepseek-chat output_mtok)." in cheap
    assert "200 % of 1.65 USD: 3.3 USD." in said
    assert "2 events: 2,000,000 llm.tokens.output." in said
    assert "Checked: the events add up to the quantity and the arithmetic gives the amount." in said
    assert "llama" not in done.output


def test_a_pack_recomputes_what_the_provider_asked_and_tells_every_forgery(sqlite_house, tmp_path):
    house = sqlite_house
    furnished(house)
    house.close()
    pack = tmp_path / "acme.zip"
    result = make(house.world, "acme", parse("2026-10", "UTC"), pack)
    assert result.verified, result.as_text()
    found = result.findings
    assert found.recomputed["amounts of lines, from the text of the price book"] == 5
    assert found.recomputed["what providers asked, from the events and the dated costs in the pack"] == 5
    assert found.recomputed["costs of one's own, by the hash that names them"] == 2
    assert found.recomputed["texts of price lists, by the hash they were pinned under"] == 1
    assert not any("asked" in it for it in found.carried)
    with zipfile.ZipFile(pack) as archive:
        for name in ("README.txt", "LIESMICH.txt"):
            text = archive.read(name).decode()
            assert "\n    costs.json  " in text and "\n    catalogues/  " in text

    def forged(change):
        with zipfile.ZipFile(pack) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        change(files)
        return verify(written(files, tmp_path / "forged.zip")).findings.problems

    def edited(name, old, new):
        def change(files):
            (full,) = (it for it in files if it.startswith(name))
            assert old in files[full].decode()
            files[full] = files[full].decode().replace(old, new).encode()

        return change

    def cheaper(files):
        ratings = json.loads(files["ratings.json"])
        for it in ratings[0]["costs"]:
            if it.get("price") == "0.15":
                it["price"] = "0.1"
        files["ratings.json"] = json.dumps(ratings).encode()

    assert any("the price list does not say so" in it for it in forged(cheaper))
    assert any("the SHA-256 of a price list" in it for it in forged(edited("catalogues/", '"0.15"', '"0.14"')))
    assert any(
        "the name of the cost" in it for it in forged(edited("costs.json", '"price": "0.02"', '"price": "0.03"'))
    )


def test_other_books_are_simulated_with_what_usage_cost(sqlite_house):
    house = sqlite_house
    furnished(house)
    found = simulate(house.world, BOOK.replace("markup: 200", "markup: 300"), ["2026-10"])
    # Four times what it costs instead of three: 5.04, 0.60 and 6.60.
    assert (found.totals["USD"].old_minor, found.totals["USD"].new_minor) == (TOTAL, 504 + 60 + 660 + 24)
    assert [it.reason for it in found.left.values()] == ["cost_unknown"]


def test_costs_are_converted_to_the_plans_currency_or_left_with_the_rate_to_add(sqlite_house):
    house = sqlite_house
    furnished(house)
    euros = BOOK.replace("currency: USD", "currency: EUR")
    rates = "rates: [{from: USD, to: EUR, rate: 0.5, valid_from: 2026-10-01}]\n"
    house.publish(euros, now=at("2026-11-01"), valid_from=at("2026-10-01"))
    house.customer("euro", currency="EUR", now=at("2026-09-01"))
    used(house, ("tool.calls", "100", "2026-10-20T12:00:00", {"tool": "search"}), customer="euro")
    house.run(customer="euro")
    (left,) = house.rows(unrated_usage)
    assert (
        left["reason"] == "cost_unknown" and "rates: [{from: USD, to: EUR, rate: ..., valid_from: ...}]" in left["hint"]
    )
    house.publish(euros + rates, now=at("2026-11-02"), valid_from=at("2026-10-01"))
    house.run(customer="euro")
    (line,) = house.rows(rated_lines)
    # 100 at 0.02 USD is 1.00 EUR, half of it on top, and 0.001 each.
    assert line["amount_minor"] == 160
    assert line["explanation"]["steps"][0]["cost"] == "2"


def test_a_run_for_what_is_new_rates_by_cost_as_one_that_reads_all(sqlite_house):
    house = sqlite_house
    furnished(house)
    house.at(at("2026-10-25"))
    house.collected("2026-10-25T00:00:00", position=0)
    list(run(house.world, Request(None, new=True)))
    used(house, ("tool.calls", "2", "2026-10-25T00:00:10", {"tool": "search", "received": "2026-10-25T00:00:30"}))
    house.at(at("2026-10-25T00:01"))
    house.collected("2026-10-25T00:01:00", position=1)
    list(run(house.world, Request(None, new=True)))
    new = {name: row["amount_exact"] for name, row in lines_of(house).items()}
    list(run(house.world, Request(None)))
    assert new == {name: row["amount_exact"] for name, row in lines_of(house).items()}
    assert new["tools"].normalize() == Decimal("0.297")  # 0.235, and 2 x (0.02 x 1.5 + 0.001)


@pytest.mark.parametrize("aggregate", ["max", "unique, of: model", "latest"])
def test_what_is_measured_has_no_cost(aggregate):
    from meterhouse_rating.book import BookRefused
    from meterhouse_rating.book import parse as parse_book

    text = BOOK.replace("meters: [tool.calls]", f"meters: [tool.calls], aggregate: {aggregate}")
    with pytest.raises(BookRefused, match="a maximum, a level or a number of different values has no cost"):
        parse_book(text)
