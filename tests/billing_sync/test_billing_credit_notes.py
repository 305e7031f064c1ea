"""Corrections in the customer's favour: from the ledger onto the finalised invoice in Stripe, once, to the cent."""

import json
import urllib.request
from dataclasses import replace

import pytest
import stripe
from sqlalchemy import update

from meterhouse_billing import accounts, approvals, credit_records, news, policies, records
from meterhouse_billing import reconcile as comparison
from meterhouse_billing.credit_run import credit
from meterhouse_billing.crediting import NotCreditable, Note, allocate, before_tax, split, with_tax
from meterhouse_billing.gateway import BillingError, StripeUnavailable
from meterhouse_billing.outbox import Outbox
from meterhouse_billing.run import bill
from meterhouse_store import tables
from meterhouse_store.sql import begin_write

LINES = [("flat", "", "1", 4000), ("usage", "input", "1000", 1000), ("credit_applied", "", "1", -500)]  # 45.00


def run(world, approve=True):
    drafts = records.drafts(world.engine, "test")
    notes = credit_records.notes(world.engine, "test", only_open=True)
    steps = [*bill(world, drafts, approve=approve), *credit(world, notes, approve=approve)]
    return [str(step) for step in steps]


def balance(books, account):
    return sum(row["amount_minor"] for row in books.rows(tables.ledger_entries) if row["account"] == account)


def owed(sandbox):
    """What Stripe says that its customers owe: what remains of open invoices, and the balances."""
    invoices = sandbox.client.v1.invoices.list({"limit": 100}).data
    customers = sandbox.client.v1.customers.list({"limit": 100}).data
    open_ones = sum(one.amount_remaining for one in invoices if one.status == "open")
    return open_ones + sum(one.balance for one in customers)


def invoiced(books, sandbox, world, paid=False, **rating):
    rating_id = books.rating("acme", rating.pop("lines", LINES), **rating)
    run(world)
    [invoice] = sandbox.client.v1.invoices.list().data
    if paid:
        sandbox.client.v1.invoices.pay(invoice.id, {"payment_method": "pm_card_visa"})
        news.poll(world)
    return rating_id, invoice


def after(books, sandbox, invoice):
    """(state here, what remains in Stripe, receivable here, owed in Stripe, cash here)"""
    [row] = books.rows(tables.invoices)
    remains = sandbox.client.v1.invoices.retrieve(invoice.id).amount_remaining
    return row["state"], remains, balance(books, "receivable"), owed(sandbox), balance(books, "cash")


# ---- which lines (pure)


def note(*lines, currency="USD"):
    return Note("n", "test", "acme", "r", currency, -sum(amount for _, amount in lines), lines)


@pytest.mark.parametrize(
    ("lines", "so_far", "credited"),
    [
        ([("a", -300)], {}, {"il_1": 300}),
        ([("a", -300), ("b", -100)], {}, {"il_1": 300, "il_2": 100}),
        ([("a", -300), ("b", 100)], {}, {"il_1": 200}),  # what went up takes from what went down
        ([("a", -300), ("b", 100), ("b", -50)], {}, {"il_1": 250}),
        ([("", -300)], {}, {"il_1": 300}),  # of no line: the first that has enough left
        ([("a", -300)], {"il_1": 900}, {"il_1": 100, "il_2": 200}),  # never above what is left of the line
        ([("c", -20)], {}, {"il_1": 20}),  # a negative line cannot be credited
    ],
)
def test_lines_are_credited_never_above_what_is_left_of_them(lines, so_far, credited):
    items = [("il_1", 1000), ("il_2", 500), ("il_3", -100)]
    assert allocate(note(*lines), items, {"a": "il_1", "b": "il_2", "c": "il_3"}, so_far) == credited


def test_what_does_not_fit_is_refused_with_both_amounts():
    with pytest.raises(NotCreditable, match=r"12\.00 USD does not fit: its invoice has 10\.00 left to be credited"):
        allocate(note(("a", -1200)), [("il_1", 1000)], {"a": "il_1"}, {})


def test_what_no_charge_paid_cannot_be_refunded():
    assert split(300, "refund", 500) == {"refund": 300}
    assert split(300, "refund", 100) == {"refund": 100, "balance": 200}
    assert split(300, "outside", 0) == {"outside": 300}
    assert split(0, "balance", 0) == {}


# ---- on the way to Stripe


@pytest.mark.parametrize("books", ["sqlite", "postgres"], indirect=True)
def test_a_note_on_an_open_invoice_takes_off_what_remains_and_ledger_and_stripe_agree(books, sandbox, world):
    rating_id, invoice = invoiced(books, sandbox, world)
    assert after(books, sandbox, invoice) == ("finalised", 4500, 4500, 4500, 0)
    books.correction(rating_id, [(1, -300), (0, 50)])
    assert run(world, approve=False)[-1].startswith("acme: EXCEPTION: credit note of 2.50 USD waits to be approved")
    assert run(world)[-1] == "acme: credit note SANDBOX-0001-CN-01: 2.50 USD"
    assert run(world) == []
    assert after(books, sandbox, invoice) == ("finalised", 4250, 4250, 4250, 0)
    [made] = sandbox.client.v1.credit_notes.list({"invoice": invoice.id}).data
    usage = next(row for row in books.rows(tables.invoice_lines) if row["position"] == 1)
    assert [(line.invoice_line_item, line.amount) for line in made.lines.data] == [(usage["stripe_item_id"], 250)]
    assert made.metadata["meterhouse_credit_note_id"] == "note"
    moves = [(row["from_state"], row["to_state"], row["who"]) for row in credit_records.history(books.engine, "note")]
    assert moves == [("", "waiting", "anna"), ("waiting", "approved", "anna"), ("approved", "issued", "anna")]
    # Paid afterwards: the rest.
    sandbox.client.v1.invoices.pay(invoice.id, {"payment_method": "pm_card_visa"})
    news.poll(world)
    assert after(books, sandbox, invoice) == ("paid", 0, 0, 0, 4250)


def test_a_note_of_all_that_remains_makes_the_invoice_paid_without_a_payment(books, sandbox, world):
    rating_id, invoice = invoiced(books, sandbox, world)
    books.correction(rating_id, [(0, -4000), (1, -1000), (None, 500)])
    run(world)
    assert after(books, sandbox, invoice) == ("paid", 0, 0, 0, 0)
    assert books.rows(tables.payments) == []


@pytest.mark.parametrize(
    ("policy", "result"),
    [
        (None, ("paid", 0, -300, -300, 4500)),  # on the customer's balance, for the next invoice
        ("refund", ("paid", 0, 0, 0, 4200)),
        ("outside", ("paid", 0, 0, 0, 4200)),
    ],
)
def test_a_note_on_a_paid_invoice_goes_where_the_policy_says(books, sandbox, world, policy, result):
    rating_id, invoice = invoiced(books, sandbox, world, paid=True)
    if policy:
        policies.change(world.engine, "test", "acme", {"paid-credit": policy}, who="c", why="w", now=world.now())
    books.correction(rating_id, [(1, -300)])
    run(world)
    assert after(books, sandbox, invoice) == result
    assert [one.amount for one in sandbox.client.v1.refunds.list().data] == ([300] if policy == "refund" else [])
    assert run(world) == []


@pytest.mark.parametrize(
    ("happened", "refunded", "balance"),
    [
        ("cash", 0, -300),  # no charge paid it
        ("refunded", 100, -200),  # all but 1.00 went back by hand before
        ("disputed", 0, -300),  # the bank has it: a refund would pay it back twice
        ("won", 300, 0),
    ],
)
def test_a_note_is_refunded_as_far_as_the_money_is_still_there(books, sandbox, world, happened, refunded, balance):
    policies.change(world.engine, "test", "acme", {"paid-credit": "refund"}, who="c", why="w", now=world.now())
    rating_id, invoice = invoiced(books, sandbox, world, paid=happened != "cash")
    v1 = sandbox.client.v1
    if happened == "cash":
        v1.invoices.pay(invoice.id, {"paid_out_of_band": True})
    else:
        intent = v1.invoice_payments.list({"invoice": invoice.id}).data[0].payment.payment_intent
    if happened == "refunded":
        v1.refunds.create({"payment_intent": intent, "amount": 4400})
    elif happened in ("disputed", "won"):
        dispute = bank(sandbox, intent)
        if happened == "won":
            bank(sandbox, f"{dispute}/won")
    news.poll(world)
    books.correction(rating_id, [(1, -300)])
    assert not any("EXCEPTION" in line for line in run(world))
    assert [one.total for one in v1.credit_notes.list().data] == [300]
    assert sum(one.amount for one in v1.refunds.list().data) == refunded + (4400 if happened == "refunded" else 0)
    assert v1.customers.list().data[0].balance == balance
    rows = comparison.reconcile(world, records.drafts(books.engine, "test", every=True))
    assert [one for row in rows for one in row.differences] == []
    assert [it.differences for it in accounts.compare(world, rows)] == [()]


def bank(sandbox, said):
    """A customer's bank takes a payment back, or decides; the dispute's id."""
    with urllib.request.urlopen(f"{sandbox.url}/_sandbox/dispute/{said}", data=b"") as answer:
        return json.loads(answer.read())["id"]


def test_a_credit_on_the_balance_pays_the_next_invoice_here_and_in_stripe(books, sandbox, world):
    rating_id, _ = invoiced(books, sandbox, world, paid=True)
    books.correction(rating_id, [(1, -300)])
    run(world)
    books.rating("acme", LINES, month=11)
    run(world)
    assert (balance(books, "receivable"), owed(sandbox)) == (4200, 4200)
    [newest, _] = sandbox.client.v1.invoices.list().data
    sandbox.client.v1.invoices.pay(newest.id, {"payment_method": "pm_card_visa"})
    news.poll(world)
    assert (balance(books, "receivable"), owed(sandbox), balance(books, "cash")) == (0, 0, 8700)


def test_late_usage_after_finalising_is_no_change_of_the_invoice_but_a_note_that_waits_for_it(books, sandbox, world):
    rating_id = books.rating("acme", LINES)
    books.correction(rating_id, [(1, -300)])
    assert run(world, approve=False)[-1] == "acme: credit note of 3.00 USD waits until its invoice is finalised"
    run(world)
    [invoice] = sandbox.client.v1.invoices.list().data
    assert (invoice.total, owed(sandbox), balance(books, "receivable")) == (4500, 4200, 4200)


def test_several_notes_never_take_more_than_a_line_has(books, sandbox, world):
    rating_id, invoice = invoiced(books, sandbox, world)
    for number in range(4):
        books.correction(rating_id, [(1, -300)], f"note-{number}")
    run(world)
    # 10.00 of the usage line, the other 2.00 of the fee
    credited = [
        line.amount
        for made in sandbox.client.v1.credit_notes.list({"invoice": invoice.id}).data
        for line in reversed(made.lines.data)
    ]
    assert sorted(credited) == [100, 200, 300, 300, 300]
    assert after(books, sandbox, invoice) == ("finalised", 3300, 3300, 3300, 0)
    books.correction(rating_id, [(1, -3400)], "too-much")
    # 38.00 of the fee are left, but the invoice as a whole, with the credits that paid some of it, has 33.00.
    assert "34.00 USD does not fit: its invoice has 33.00 left to be credited" in run(world)[-1]
    assert after(books, sandbox, invoice)[1] == 3300


def test_yen_are_credited_in_yen(books, sandbox, world):
    rating_id, invoice = invoiced(books, sandbox, world, lines=[("usage", "input", "10", 1500)], currency="JPY")
    books.correction(rating_id, [(0, -120)])
    run(world)
    [made] = sandbox.client.v1.credit_notes.list().data
    assert (made.total, made.currency) == (120, "jpy")
    assert after(books, sandbox, invoice) == ("finalised", 1380, 1380, 1380, 0)


def test_two_persons_for_a_note_above_the_limit(books, sandbox, world):
    rating_id, _ = invoiced(books, sandbox, world)
    books.correction(rating_id, [(1, -300)])
    wanted = {"two-persons": "USD=2", "approval": "automatic"}
    policies.change(world.engine, "test", "", wanted, who="c", why="w", now=world.now())
    assert "above 2.00 USD by one and issued by another" in run(world, approve=False)[-1]
    assert "anna approved it, and above 2.00 USD another person issues it" in run(world)[-1]
    [draft] = records.drafts(world.engine, "test", period="2026-10")
    for name in ("anna", " ANNA", "anna@example.com"):  # who approved it, however that is spelt
        with pytest.raises(BillingError, match="another person issues it"):
            list(approvals.finalise_approved(replace(world, who=name), draft, ""))
    [step] = approvals.finalise_approved(replace(world, who="ben"), draft, "")
    assert str(step) == "acme: credit note SANDBOX-0001-CN-01: 3.00 USD"


def test_a_note_that_the_rule_approved_before_there_was_a_limit_is_approved_by_a_person(books, sandbox, world):
    rating_id, _ = invoiced(books, sandbox, world)
    books.correction(rating_id, [(1, -300)])
    change = {"who": "c", "why": "w", "now": world.now()}
    policies.change(world.engine, "test", "", {"approval": "automatic"}, **change)
    [note] = credit_records.notes(world.engine, "test", only_open=True)
    steps = credit(world, [note], approve=False)
    assert "approved" in str(next(steps))
    steps.close()  # the process ends here
    policies.change(world.engine, "test", "", {"two-persons": "USD=2"}, **change)
    assert "above 2.00 USD a person approves, not the rule: `meterhouse bill approve`" in run(world)[-1]
    [draft] = records.drafts(world.engine, "test", period="2026-10")
    list(approvals.approve(world, draft, ""))
    with pytest.raises(BillingError, match="anna approved it"):
        list(approvals.finalise_approved(world, draft, ""))
    [step] = approvals.finalise_approved(replace(world, who="ben"), draft, "")
    assert str(step) == "acme: credit note SANDBOX-0001-CN-01: 3.00 USD"


def test_an_invoice_with_credit_notes_is_not_voided(books, sandbox, world):
    rating_id, _ = invoiced(books, sandbox, world)
    books.correction(rating_id, [(1, -300)])
    [draft] = records.drafts(world.engine, "test", period="2026-10")
    with pytest.raises(BillingError, match="it has credit notes"):
        list(approvals.void(world, draft, "w", reissue=False))


def test_a_crash_after_the_answer_and_a_lost_reply_make_one_note(books, sandbox, world, later, monkeypatch):
    from meterhouse_sandbox import stripe_state

    rating_id, invoice = invoiced(books, sandbox, world)
    books.correction(rating_id, [(1, -300)])
    store = Outbox._done
    monkeypatch.setattr(Outbox, "_done", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(world)
    monkeypatch.setattr(Outbox, "_done", store)
    run(world)
    assert len(sandbox.client.v1.credit_notes.list().data) == 1
    books.correction(rating_id, [(1, -100)], "second")
    sandbox.faults.lose_reply_of = set(range(sandbox.faults.posts + 1, sandbox.faults.posts + 6))
    with pytest.raises(StripeUnavailable):
        run(world)
    sandbox.faults.lose_reply_of = set()
    monkeypatch.setattr(stripe_state, "KEY_LIFETIME_S", -1)  # Stripe has forgotten the key
    run(later)
    assert len(sandbox.client.v1.credit_notes.list().data) == 2
    assert after(books, sandbox, invoice) == ("finalised", 4100, 4100, 4100, 0)


# ---- the sandbox's own rules


def test_the_sandbox_refuses_what_stripe_refuses(books, sandbox, world):
    books.rating("acme", LINES)
    run(world, approve=False)
    client = sandbox.client.v1
    [invoice] = client.invoices.list().data
    line = next(one for one in invoice.lines.data if one.amount == 1000)

    def note(amount, item=line.id, **more):
        credited = {"type": "invoice_line_item", "invoice_line_item": item, "amount": amount}
        return client.credit_notes.create({"invoice": invoice.id, "lines": [credited], **more})

    def refused(what, *given, **more):
        with pytest.raises(stripe.InvalidRequestError, match=what):
            note(*given, **more)

    refused("needs a finalized invoice", 100)
    client.invoices.finalize_invoice(invoice.id)
    refused("1000 are left", 1001)
    refused("No such line", 1, "il_other")
    refused("post payment amount", 100, refund_amount=100)  # nothing is paid yet
    refused("unknown parameter", 100, voided=True)
    made = note(100)
    assert client.invoices.retrieve(invoice.id).amount_remaining == 4400
    client.credit_notes.void_credit_note(made.id)
    assert client.invoices.retrieve(invoice.id).amount_remaining == 4500
    client.invoices.pay(invoice.id, {"payment_method": "pm_card_visa"})
    refused("post payment amount", 100)
    assert note(100, refund_amount=60, credit_amount=40).type == "post_payment"
    refused("901 cannot be credited", 901, credit_amount=901)
    [customer] = client.customers.list().data
    assert customer.balance == -40


# ---- tax


def taxed(books, sandbox, world, later, behaviour):
    """An invoice over 45.00 with 19 % tax."""
    now = world.now()
    policies.change(world.engine, "test", "", {"automatic-tax": "on"}, who="c", why="w", now=now)
    rating_id = books.rating("acme", [("flat", "", "1", 4000), ("usage", "input", "1000", 500)])
    tax = {"tax": {"behaviour": behaviour, "code": "txcd_10103001"}}
    with begin_write(books.engine) as connection:
        connection.execute(update(tables.rated_lines).values(explanation=tax))
    run(world, approve=False)
    [customer] = sandbox.client.v1.customers.list().data
    sandbox.client.v1.customers.update(customer.id, {"address": {"country": "DE"}})
    run(later)
    [invoice] = sandbox.client.v1.invoices.list().data
    return rating_id, invoice


@pytest.mark.parametrize("paid", [False, True])
def test_tax_on_top_goes_back_with_the_line_and_the_ledger_follows(books, sandbox, world, later, paid):
    rating_id, invoice = taxed(books, sandbox, world, later, "exclusive")
    assert invoice.total == 5355  # 45.00 and 8.55
    if paid:
        sandbox.client.v1.invoices.pay(invoice.id, {"payment_method": "pm_card_visa"})
        news.poll(later)
    books.correction(rating_id, [(1, -250)])
    assert run(later)[-1].startswith("acme: credit note SANDBOX-0001-CN-01: 2.50 USD")
    # 19 % of 2.50 is 0.475, half up 0.48: 2.98 go back.
    owed_now = -298 if paid else 5057
    assert (balance(books, "receivable"), owed(sandbox), balance(books, "tax")) == (owed_now, owed_now, -807)
    rows = comparison.reconcile(later, records.drafts(later.engine, "test", every=True))
    assert [row.differences for row in rows] == [()]
    assert [one.differences for one in accounts.compare(later, rows)] == [()]


@pytest.mark.parametrize("behaviour", ["exclusive", "inclusive"])
@pytest.mark.parametrize("lost", ["crash", "saved_500_done", "dropped_after"])
def test_a_note_that_took_most_of_its_line_is_recorded_when_its_answer_was_lost(
    books, sandbox, world, later, monkeypatch, behaviour, lost
):
    """Stripe would preview no second one of that size."""
    rating_id, _ = taxed(books, sandbox, world, later, behaviour)
    books.correction(rating_id, [(1, -400)])
    with monkeypatch.context() as patched, pytest.raises((KeyboardInterrupt, StripeUnavailable)):
        if lost == "crash":
            patched.setattr(Outbox, "_done", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        else:
            send = later.gateway.send

            def losing(*given):
                script = json.dumps({"script": [lost] * 5}).encode()
                urllib.request.urlopen(urllib.request.Request(f"{sandbox.url}/_sandbox/faults", script)).close()
                return send(*given)

            patched.setattr(later.gateway, "send", losing)
        run(later)
    urllib.request.urlopen(urllib.request.Request(f"{sandbox.url}/_sandbox/faults", b"{}")).close()
    run(later)
    assert [row["state"] for row in books.rows(tables.credit_note_issues)] == ["issued"]
    assert len(sandbox.client.v1.credit_notes.list().data) == 1
    rows = comparison.reconcile(later, records.drafts(later.engine, "test", every=True))
    assert [row.differences for row in rows] == [()]
    assert [one.differences for one in accounts.compare(later, rows)] == [()]


@pytest.mark.parametrize("paid", [False, True])
def test_tax_within_a_price_goes_back_with_it_to_the_cent(books, sandbox, world, later, paid):
    rating_id, invoice = taxed(books, sandbox, world, later, "inclusive")
    # 19/119 of 40.00 are 6.386, of 5.00 0.798: 6.39 and 0.80 within 45.00.
    assert (invoice.total, balance(books, "tax"), balance(books, "revenue")) == (4500, -719, -3781)
    if paid:
        sandbox.client.v1.invoices.pay(invoice.id, {"payment_method": "pm_card_visa"})
        news.poll(later)
    books.correction(rating_id, [(1, -250)])
    assert run(later)[-1].startswith("acme: credit note SANDBOX-0001-CN-01: 2.50 USD")
    [made] = sandbox.client.v1.credit_notes.list().data
    # Half of the line: 2.10 before tax, and 0.40.
    assert (made.total, [it.amount for it in made.lines.data], made.total_taxes[0].amount) == (250, [210], 40)
    owed_now = -250 if paid else 4250
    assert (balance(books, "receivable"), owed(sandbox)) == (owed_now, owed_now)
    assert (balance(books, "tax"), balance(books, "revenue")) == (-679, -3571)
    books.correction(rating_id, [(1, -250)], "second")
    assert run(later)[-1].startswith("acme: credit note SANDBOX-0001-CN-02: 2.50 USD")
    assert (balance(books, "tax"), balance(books, "revenue")) == (-639, -3361)
    rows = comparison.reconcile(later, records.drafts(later.engine, "test", every=True))
    assert [row.differences for row in rows] == [()]
    assert [one.differences for one in accounts.compare(later, rows)] == [()]


def test_what_comes_to_no_whole_cent_with_its_tax_waits_for_a_person(books, sandbox, world, later):
    rating_id, _ = taxed(books, sandbox, world, later, "inclusive")
    books.correction(rating_id, [(1, -3)])  # 0.02 before tax are 0.02 with it, 0.03 are 0.04
    assert "3 of a line of 500, of which 80 are tax, cannot be credited to the cent" in run(later)[-1]
    assert sandbox.client.v1.credit_notes.list().data == []


@pytest.mark.parametrize(
    ("gross", "amount", "contained", "net"),
    [
        (500, 500, 80, 420),
        (250, 500, 80, 210),
        (4, 500, 80, 3),
        (1, 500, 80, 1),
        (119, 11_900, 1_900, 100),
        (7, 7, 0, 7),
    ],
)
def test_before_tax_is_what_with_its_tax_is_the_amount(gross, amount, contained, net):
    assert before_tax(gross, amount, contained) == net
    assert with_tax(net, amount, contained) == gross
