"""The demo's comparison, with figures worked out by hand: it agrees when all agrees and names what does not."""

import json
import sys
from dataclasses import replace
from decimal import Decimal
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> ModuleType:
    spec = spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


demo = load("demo_proof")


def attempt(number: int, request_id: str, units: dict[str, int], outcome: str = "served", user: str = "acme") -> str:
    return json.dumps(
        {
            "number": number,
            "request_id": request_id,
            "end_user": user,
            "model": "gpt-5-mini",
            "outcome": outcome,
            "units": units,
        }
    )


# Two calls of acme, the first after a refused attempt; one of globex that broke off.
LOG = [
    attempt(1, "r1", {}, "refused"),
    attempt(2, "r1", {"llm.tokens.input": 100, "llm.tokens.output": 7}),
    attempt(3, "r2", {"llm.tokens.input": 40}),
    attempt(4, "r3", {"llm.tokens.input": 60, "llm.tokens.output": 3}, "cut_off", "globex"),
]
TRACE = ["TIMESTAMP,ContextTokens,GeneratedTokens", "t,1000,10", "t,2000,20", "t,300,0"]


def stored(customer: str, request_id: str, meter: str, quantity: int, status: str = "ok"):
    return demo.StoredUnits(customer, request_id, meter, status, Decimal(quantity))


STORED = [
    stored("acme", "r1", "llm.tokens.input", 100),
    stored("acme", "r1", "llm.tokens.output", 7),
    stored("acme", "r1", "llm.requests", 1),
    stored("acme", "r2", "llm.tokens.input", 40),
    stored("acme", "r2", "llm.requests", 1),
    stored("globex", "r3", "llm.requests", 1, "unfinished"),
    stored("acme", "", "llm.tokens.input", 1300),
    stored("acme", "", "llm.tokens.output", 10),
    stored("acme", "", "llm.requests", 2),
    stored("globex", "", "llm.tokens.input", 2000),
    stored("globex", "", "llm.tokens.output", 20),
    stored("globex", "", "llm.requests", 1),
    stored("acme", "", "tool.calls", 2),
]
# input 100 + 40 + 1300 + 2000, output 7 + 10 + 20, requests 3 + 3
RATED = {"llm.tokens.input": Decimal(3440), "llm.tokens.output": Decimal(37), "tool.calls": Decimal(2)}
INVOICES = [
    demo.Invoice(
        "acme",
        "A-1",
        "USD",
        500,
        500,
        "paid",
        {"llm.tokens.input": Decimal(1440), "llm.tokens.output": Decimal(17), "tool.calls": Decimal(2)},
    ),
    demo.Invoice(
        "globex", "A-2", "USD", 700, 700, "paid", {"llm.tokens.input": Decimal(2000), "llm.tokens.output": Decimal(20)}
    ),
]


@pytest.fixture
def evidence():
    return demo.Evidence(
        served=demo.served_calls(LOG),
        tools=2,
        replayed=demo.replayed_units(TRACE, ("acme", "globex")),
        stored=STORED,
        rated=RATED,
        unbilled={"llm.requests": Decimal(6)},
        unrated={},
        suspended=0,
        invoices=INVOICES,
    )


def test_when_all_agrees_there_is_no_difference_and_the_killed_call_is_listed(evidence):
    proof = demo.prove(evidence)
    assert proof.differences == ()
    assert [(call.request_id, call.customer, dict(call.units)) for call in proof.unfinished] == [
        ("r3", "globex", {"llm.tokens.input": 60, "llm.tokens.output": 3})
    ]
    rows = {row.meter: row for row in proof.rows}
    assert rows["llm.tokens.input"] == demo.MeterRow(
        "llm.tokens.input",
        served=Decimal(200),
        replayed=Decimal(3300),
        stored=Decimal(3440),
        unfinished=Decimal(60),
        rated=Decimal(3440),
        unbilled=Decimal(0),
        invoiced=Decimal(3440),
    )
    assert (rows["llm.requests"].served, rows["llm.requests"].replayed, rows["llm.requests"].unbilled) == (3, 3, 6)


def test_attempts_with_one_request_id_are_one_call():
    first, second, third = demo.served_calls(LOG)
    assert (first.attempts, first.cut_off, dict(first.units)) == (
        2,
        False,
        {"llm.tokens.input": 100, "llm.tokens.output": 7},
    )
    assert (second.attempts, third.cut_off) == (1, True)


def test_a_call_that_was_served_and_not_stored_is_a_difference(evidence):
    more = demo.served_calls([*LOG, attempt(5, "r9", {"llm.tokens.output": 1})])
    proof = demo.prove(replace(evidence, served=more))
    assert proof.differences == (
        "request r9 of acme was served and is not stored",
        "llm.requests: served 4 + replayed 3 is not stored 6 + unfinished 0",
        "llm.tokens.output: served 11 + replayed 30 is not stored 37 + unfinished 3",
    )


def test_an_attempt_without_a_request_id_matches_nothing_and_is_a_difference(evidence):
    proof = demo.prove(replace(evidence, served=demo.served_calls([*LOG, attempt(5, "", {})])))
    assert "request (none) 5 of acme was served and is not stored" in proof.differences


@pytest.mark.parametrize(
    ("position", "changed", "sentence"),
    [
        (0, {"quantity": Decimal(101)}, "request r1 of acme: llm.tokens.input served 100, stored 101"),
        (0, {"customer": "globex"}, "request r1 of acme is stored for globex"),
        (3, {"request_id": "rx"}, "request rx is stored and was never served"),
        (6, {"quantity": Decimal(1299)}, "history of acme: llm.tokens.input replayed 1300, stored 1299"),
        (12, {"quantity": Decimal(1)}, "tool.calls: served 2 + replayed 0 is not stored 1 + unfinished 0"),
    ],
)
def test_every_event_that_is_stored_wrongly_is_named(evidence, position, changed, sentence):
    rows = list(STORED)
    rows[position] = replace(rows[position], **changed)
    assert sentence in demo.prove(replace(evidence, stored=rows)).differences


def test_units_that_swap_between_two_calls_are_seen_although_every_sum_agrees(evidence):
    rows = list(STORED)
    rows[0], rows[3] = replace(rows[0], quantity=Decimal(40)), replace(rows[3], quantity=Decimal(100))
    assert demo.prove(replace(evidence, stored=rows)).differences == (
        "request r1 of acme: llm.tokens.input served 100, stored 40",
        "request r2 of acme: llm.tokens.input served 40, stored 100",
    )


def test_tokens_of_a_call_that_is_also_unfinished_are_a_difference(evidence):
    rows = [*STORED, stored("globex", "r3", "llm.tokens.input", 60)]
    differences = demo.prove(replace(evidence, stored=rows)).differences
    assert "request r3 of globex: llm.tokens.input served 0, stored 60" in differences


def test_units_between_store_rating_and_invoice_are_compared(evidence):
    lost = {**RATED, "llm.tokens.output": Decimal(36)}
    assert demo.prove(replace(evidence, rated=lost)).differences == (
        "llm.tokens.output: stored 37 is not rated 36 + unbilled 0",
        "llm.tokens.output: rated 36 is not 37 on invoice lines",
    )
    unpriced = demo.prove(replace(evidence, unrated={"tool.calls": Decimal(2)}, suspended=1)).differences
    assert unpriced == ("tool.calls: 2 units have no price", "1 events are in suspense: meterhouse suspense list")


def test_a_cent_between_our_invoice_and_stripes_is_a_difference(evidence):
    invoices = [replace(INVOICES[0], stripe_total_minor=501), replace(INVOICES[1], state="finalised")]
    assert demo.prove(replace(evidence, invoices=invoices)).differences == (
        "invoice A-1 of acme: 500 here, 501 at Stripe (minor units)",
        "invoice A-2 of globex is finalised, not paid",
    )


def test_without_a_log_of_the_provider_the_rest_is_still_compared(evidence):
    proof = demo.prove(replace(evidence, served=None))
    assert proof.differences == ()
    assert {row.served for row in proof.rows} == {None}
    assert [call.request_id for call in proof.unfinished] == ["r3"]
