"""Crashes at every call and step, faults and outages: Stripe's totals equal the ledger's exactly."""

import pytest
from invoice_months import Killed, check

from meterhouse_billing import approvals, credit_records, records
from meterhouse_billing.credit_run import credit
from meterhouse_billing.run import bill
from meterhouse_sandbox.stripe_server import application
from meterhouse_store import tables

CALLS = 8  # customer, draft, lines, finalise, void, draft and lines again, finalise; then the credit note is the ninth


@pytest.mark.parametrize(
    ("seed", "books"),
    [
        (1, "postgres"),
        *(pytest.param(*it, marks=pytest.mark.long) for it in ((1, "sqlite"), (2, "sqlite"), (4, "postgres"))),
    ],
    indirect=["books"],
)
def test_whatever_crashes_stripe_has_what_the_ledger_has_once_and_to_the_minor_unit(seed, books, serve, tmp_path):
    with serve(application(tmp_path / "stripe")) as server:
        assert check(seed, books, server.url) == []


@pytest.mark.parametrize("books", ["sqlite", pytest.param("postgres", marks=pytest.mark.long)], indirect=True)
def test_a_crash_before_or_after_each_outgoing_call_changes_nothing(books, sandbox, world, monkeypatch):
    """One customer per call and side: drafted, finalised, voided, issued again, credited."""
    send, killing = world.gateway.send, {}

    def dying(operation, request, key):
        killing["calls"] += 1
        if killing["at"] == (killing["calls"], "before"):
            raise Killed
        answer = send(operation, request, key)
        if killing["at"] == (killing["calls"], "after"):
            raise Killed
        return answer

    monkeypatch.setattr(world.gateway, "send", dying)

    def insist(act):
        try:
            list(act())
        except Killed:
            list(act())

    def run(name):
        yield from bill(world, records.drafts(books.engine, "test", customer_id=name), approve=True)
        yield from credit(world, credit_records.notes(books.engine, "test", name, only_open=True), approve=True)

    def void(name):
        [draft] = records.drafts(books.engine, "test", customer_id=name, period="2026-10")
        if records.invoice(books.engine, draft.invoice_id)["state"] != "draft":
            yield from approvals.void(world, draft, "address", reissue=True)

    cases = [(number, side) for number in range(1, CALLS + 2) for side in ("before", "after")]
    for number, side in cases:
        name = f"{side}-{number}"
        killing |= {"calls": 0, "at": (number, side)}
        rating_id = books.rating(name, [("flat", "", "1", 4000), ("usage", "input", "5", 1000)])
        insist(lambda name=name: run(name))
        insist(lambda name=name: void(name))
        books.correction(rating_id, [(1, -300)], f"note-{name}")
        insist(lambda name=name: run(name))
        assert killing["calls"] >= number, "the crash happened"
    v1 = sandbox.client.v1
    found = list(v1.invoices.list({"limit": 100}).auto_paging_iter())
    assert sorted((one.status, one.amount_remaining) for one in found if one.status != "void") == [
        ("open", 4700) for _ in cases
    ]
    assert len([one for one in found if one.status == "void"]) == len(cases)
    assert [one.total for one in v1.credit_notes.list({"limit": 100}).data] == [300] * len(cases)
    assert len(v1.customers.list({"limit": 100}).data) == len(cases)
    entries = books.rows(tables.ledger_entries)
    assert sum(row["amount_minor"] for row in entries if row["account"] == "receivable") == 4700 * len(cases)
    assert {row["state"] for row in books.rows(tables.outbox)} == {"done"}
