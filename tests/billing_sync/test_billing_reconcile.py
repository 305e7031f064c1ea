"""`bill reconcile` both ways: every difference has a cause and a next step, and a restore is safe to go on from."""

import json

import pytest
from sqlalchemy import delete, update
from typer.testing import CliRunner

from meterhouse_billing import accounts, credit_records, news, records
from meterhouse_billing import reconcile as comparison
from meterhouse_billing.commands import bill as commands
from meterhouse_billing.credit_run import credit
from meterhouse_billing.run import bill
from meterhouse_rating import ledger
from meterhouse_rating.ledger import Entry, Posting
from meterhouse_store import switches, tables
from meterhouse_store.sql import begin_write

LINES = [("flat", "", "1", 4000), ("usage", "input", "1000", 1000)]  # 50.00


def run(world, approve=True):
    drafts = records.drafts(world.engine, "test")
    notes = credit_records.notes(world.engine, "test", only_open=True)
    return [str(step) for step in [*bill(world, drafts, approve=approve), *credit(world, notes, approve=approve)]]


def codes(world):
    rows = comparison.reconcile(world, records.drafts(world.engine, "test", every=True))
    compared = accounts.compare(world, rows)
    found = [one for row in rows for one in row.differences] + [one for it in compared for one in it.differences]
    assert all(one.cause and one.next_step for one in found)
    return [one.code for one in found]


def pay(sandbox, invoice):
    sandbox.client.v1.invoices.pay(invoice.id, {"payment_method": "pm_card_visa"})


@pytest.mark.parametrize("books", ["sqlite", "postgres"], indirect=True)
def test_a_whole_month_is_equal_at_every_station(books, sandbox, world):
    rating_id = books.rating("acme", LINES)
    books.rating("small", [("usage", "input", "1", 30)])  # below the least charge: onto the balance
    assert codes(world) == ["not_invoiced", "not_invoiced"]
    run(world, approve=False)
    assert codes(world) == []
    run(world)
    assert codes(world) == []
    acme = next(one for one in sandbox.client.v1.invoices.list().data if one.total == 5000)
    books.correction(rating_id, [(1, -300)])
    assert codes(world) == ["credit_note_waits"]
    run(world)
    assert codes(world) == []
    pay(sandbox, acme)
    assert codes(world) == ["state_behind", "payment_differs", "account_differs"]
    news.poll(world)
    assert codes(world) == []
    books.correction(rating_id, [(0, -200)], "second")
    run(world)
    rows = comparison.reconcile(world, records.drafts(world.engine, "test", every=True))
    [one, two] = accounts.compare(world, rows)
    assert (one.ledger_minor, one.open_minor, one.balance_minor, one.differences) == (-200, 0, -200, ())
    assert (two.ledger_minor, two.open_minor, two.balance_minor, two.differences) == (30, 0, 30, ())


def test_an_adjustment_by_hand_is_shown_apart_and_is_no_difference(books, sandbox, world):
    books.rating("acme", LINES)
    run(world)
    sides = (Entry("receivable", -700, "USD"), Entry("adjustments", 700, "USD"))
    with begin_write(books.engine) as connection:
        posting = Posting("adjustment", "a-1", "goodwill", sides)
        ledger.post(connection, "test", "acme", [posting], effective_at=world.now(), recorded_at=world.now())
    assert codes(world) == []


@pytest.mark.parametrize(
    ("plant", "found"),
    [
        (lambda v1, invoice: v1.invoices.create({"customer": invoice.customer}), ["foreign_invoice"]),
        (lambda v1, invoice: v1.invoice_items.create({"customer": invoice.customer, "amount": 5}), ["orphan_item"]),
        (
            lambda v1, invoice: v1.invoices.create(
                {"customer": invoice.customer, "metadata": invoice.metadata.to_dict()}
            ),
            ["invoice_twice"],
        ),
        (
            lambda v1, invoice: v1.credit_notes.create(
                {
                    "invoice": invoice.id,
                    "lines": [
                        {
                            "type": "invoice_line_item",
                            "amount": 7,
                            "invoice_line_item": invoice.lines.data[0].id,
                        }
                    ],
                }
            ),
            ["credit_note_unknown", "account_differs"],
        ),
        (lambda v1, invoice: v1.invoices.void_invoice(invoice.id), ["state_behind", "account_differs"]),
    ],
)
def test_what_somebody_did_in_stripe_is_found_and_named(books, sandbox, world, plant, found):
    books.rating("acme", LINES)
    run(world)
    [invoice] = sandbox.client.v1.invoices.list().data
    plant(sandbox.client.v1, invoice)
    assert codes(world) == found


def test_a_refund_that_was_made_by_hand_in_stripe_is_found_and_posted_once(books, sandbox, world):
    from meterhouse_billing import policies

    rating_id = books.rating("acme", LINES)
    run(world)
    v1 = sandbox.client.v1
    [invoice] = v1.invoices.list().data
    pay(sandbox, invoice)
    news.poll(world)
    policies.change(world.engine, "test", "acme", {"paid-credit": "refund"}, who="c", why="w", now=world.now())
    books.correction(rating_id, [(1, -300)])
    run(world)  # refunds 3.00 by a credit note, which is none by hand
    assert news.poll(world) == []
    intent = v1.invoice_payments.list({"invoice": invoice.id}).data[0].payment.payment_intent
    v1.refunds.create({"payment_intent": intent, "amount": 1200})
    assert codes(world) == ["refund_behind"]
    assert news.poll(world) == ["acme: 12.00 USD of SANDBOX-0001 were refunded in Stripe"]
    assert news.poll(world) == []
    assert codes(world) == []
    sums = {}
    for row in books.rows(tables.ledger_entries):
        sums[row["account"]] = sums.get(row["account"], 0) + row["amount_minor"]
    # 50.00 came in, 3.00 and 12.00 went back; the customer owes nothing.
    assert sums == {"receivable": 0, "revenue": -4700, "cash": 3500, "adjustments": 1200}


def test_the_command_prints_causes_with_next_steps_and_exits_with_3(books, sandbox, world, monkeypatch):
    environment = {"METERHOUSE_DATA": str(books.settings.data), "METERHOUSE_NAMESPACE": "test", **sandbox.environment}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    books.rating("acme", LINES)
    run(world)
    pay(sandbox, sandbox.client.v1.invoices.list().data[0])
    done = CliRunner().invoke(commands, ["reconcile"])
    assert done.exit_code == 3
    assert "acme: 50.00 are paid in Stripe, 0.00 are recorded here\n  -> `meterhouse bill poll`" in done.output
    news.poll(world)
    done = CliRunner().invoke(commands, ["reconcile", "--json"])
    found = json.loads(done.stdout)
    assert (done.exit_code, found["equal"], found["accounts"][0]["ledger_minor"]) == (0, True, 0)


# ---- after a restore


def restored(books, world):
    """Everything here is as it was before `bill run`: what is in Stripe is newer than the backup."""
    names = (
        "payments credit_note_transitions credit_note_issues invoice_findings invoice_transitions invoice_issues "
        "invoice_lines invoices outbox"
    )
    with begin_write(books.engine) as connection:
        for name in names.split():
            connection.execute(delete(tables.metadata.tables[name]))
        connection.execute(update(tables.customers).values(stripe_customer_id=None))
        why = f"{switches.RESTORED} from the backup of 1 November: compare with Stripe first"
        switches.record(connection, "test", "sync", "off", who="ops", why=why, now=world.now())


@pytest.mark.parametrize("approve", [False, True])
def test_what_was_made_after_the_backup_is_taken_over_and_not_made_again(
    books, sandbox, world, later, monkeypatch, approve
):
    from meterhouse_sandbox import stripe_state

    rating_id = books.rating("acme", LINES)
    run(world, approve=approve)
    if approve:
        books.correction(rating_id, [(1, -300)])
        run(world)
    restored(books, world)
    before = sandbox.faults.posts
    assert "sync of namespace test is off" in next(step for step in run(later) if "EXCEPTION" in step)
    assert (sandbox.faults.posts, books.rows(tables.invoices)[0]["stripe_invoice_id"]) == (before, None)  # frozen
    environment = {"METERHOUSE_DATA": str(books.settings.data), "METERHOUSE_NAMESPACE": "test", **sandbox.environment}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    done = CliRunner().invoke(commands, ["reconcile", "--unfreeze"])
    assert (done.exit_code, "Sync of test is on again: reconciled: 1 invoice" in done.output) == (3, True)
    monkeypatch.setattr(stripe_state, "KEY_LIFETIME_S", -1)  # Stripe has forgotten the keys
    run(later)
    run(later)
    v1 = sandbox.client.v1
    assert [len(of.list().data) for of in (v1.customers, v1.invoices, v1.credit_notes)] == [1, 1, int(approve)]
    assert codes(later) == []
    assert books.rows(tables.invoices)[0]["state"] == "finalised"


def test_a_freeze_is_not_lifted_while_a_person_has_something_to_settle(books, sandbox, world, monkeypatch):
    environment = {"METERHOUSE_DATA": str(books.settings.data), "METERHOUSE_NAMESPACE": "test", **sandbox.environment}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    books.rating("acme", LINES)
    run(world)
    [invoice] = sandbox.client.v1.invoices.list().data
    sandbox.client.v1.invoices.create({"customer": invoice.customer, "metadata": invoice.metadata.to_dict()})
    switches.turn(
        books.engine, "test", {"sync": "off"}, who="ops", why="restored from the backup of x", now=world.now()
    )
    done = CliRunner().invoke(commands, ["reconcile", "--unfreeze"])
    assert (done.exit_code, "Sync stays off: 1 difference a person has to settle first" in done.output) == (3, True)
    assert not switches.is_on(books.engine, "test", switches.SYNC)
