"""Customers on the meters: what they pay is in the ledger, and who goes back to invoices has no subscription left."""

import urllib.request
from datetime import timedelta

import pytest
from metered import NOVEMBER, OCTOBER, Metered

from meterhouse_billing import invoice_notices, meter_end, meter_payments, news, payment_pauses, policies
from meterhouse_billing.invoice_notices import NoticeSettings
from meterhouse_billing.payment_pauses import PauseSettings
from meterhouse_store import tables

HOUR = timedelta(hours=1)
DECEMBER = NOVEMBER + timedelta(days=30)


@pytest.fixture
def metered(books, sandbox):
    made = Metered(books.engine, sandbox.url)
    made.customer("acme")
    assert [step.text for step in made.setup() if step.failed] == []
    return made


def invoices(metered):
    return metered.client.v1.invoices.list({"limit": 100}).data


def pay(metered, how, invoice):
    request = urllib.request.Request(f"{metered.url}/_sandbox/{how}/{invoice.id}", b"", method="POST")
    urllib.request.urlopen(request).close()


def entries(books):
    return sorted((row["account"], row["amount_minor"]) for row in books.rows(tables.ledger_entries))


def subscription(metered):
    [found] = metered.client.v1.subscriptions.list({"limit": 10, "status": "all"}).data
    return found


def ends(metered):
    return [str(step) for step in meter_end.end(metered.run())]


def test_a_payment_of_a_metered_month_is_posted_once_whoever_tells_of_it(books, metered):
    metered.truth.use("acme", "documents", OCTOBER, 250)
    metered.sync()
    metered.at(NOVEMBER + 2 * HOUR)
    [invoice] = invoices(metered)
    assert (invoice.status, invoice.total) == ("open", 500)
    assert news.poll(metered.world) == []
    pay(metered, "pay", invoice)
    [told] = news.poll(metered.world)
    assert told == f"acme {invoice.id}: paid; 5.00 USD (payment of invoice {invoices(metered)[0].number})"
    assert entries(books) == [("cash", 500), ("receivable", -500)]
    event = f'{{"id": "evt_1", "type": "invoice.paid", "created": 1, "data": {{"object": {{"id": "{invoice.id}"}}}}}}'
    news.receive(books.engine, "test", event, metered.truth.now)
    assert news.process(metered.world) == [f"invoice.paid {invoice.id}: nothing new"]
    assert news.poll(metered.world) == []
    assert entries(books) == [("cash", 500), ("receivable", -500)]


def told(metered):
    """Kind -> the notice that invoices ask for now."""
    found = invoice_notices.of_invoices(metered.engine, "test", NoticeSettings(), metered.truth.now)
    return {it.kind: it for it in found}


def follow(metered, days=3):
    settings = PauseSettings(pause_after_failed_payment_days=days)
    return payment_pauses.follow(metered.engine, "test", settings, metered.truth.now)


def test_a_failed_payment_is_told_and_reminded_of_pauses_and_payment_lifts_the_pause_with_a_receipt(books, metered):
    metered.truth.use("acme", "documents", OCTOBER, 250)
    metered.sync()
    metered.at(NOVEMBER + 2 * HOUR)
    news.poll(metered.world)
    [invoice] = invoices(metered)
    issued = told(metered)
    assert set(issued) == {"invoice"}
    facts = issued["invoice"].facts
    assert (facts["total"], facts["currency"], facts["number"]) == ("5.00", "USD", invoice.number)
    assert (facts["period_start"][:10], facts["period_end"][:10]) == ("2026-10-01", "2026-11-01")
    assert [it["amount"] for it in facts["lines"] if it["description"].startswith("250 x")] == ["5.00"]
    pay(metered, "fail", invoice)
    assert news.poll(metered.world) == [f"acme {invoice.id}: failed"]
    assert news.poll(metered.world) == []
    assert set(told(metered)) == {"invoice", "payment_failed"}
    assert follow(metered) == []
    metered.at(NOVEMBER + timedelta(days=3, hours=2))
    assert follow(metered) == ["acme is paused: a payment failed on 2026-11-01"]
    # issued at two o'clock on the first of November, due at two o'clock on the first of December
    for day, expected in ((26, set()), (27, {"payment_due"}), (30, set()), (31, {"overdue"}), (60, set())):
        metered.at(NOVEMBER + timedelta(days=day, hours=2))
        assert set(told(metered)) == expected, day
    pay(metered, "pay", invoice)
    said = news.poll(metered.world)  # November's is one of nothing
    assert [it for it in said if it.startswith(f"acme {invoice.id}: paid; 5.00 USD")]
    assert follow(metered) == ["acme goes on: no payment of it stands as failed"]
    assert set(told(metered)) == {"receipt"}


def test_what_the_balance_pays_of_a_metered_invoice_is_neither_reminded_of_nor_in_its_receipt(books, metered):
    [subscription] = metered.run().subscriptions
    earlier = metered.client.v1.invoices.create({"customer": subscription.stripe_customer_id, "currency": "usd"})
    less = {"customer": subscription.stripe_customer_id, "invoice": earlier.id, "amount": -200, "currency": "usd"}
    metered.client.v1.invoice_items.create(less)
    metered.client.v1.invoices.finalize_invoice(earlier.id)  # 2.00 to the customer's balance
    metered.truth.use("acme", "documents", OCTOBER, 250)
    metered.sync()
    metered.at(NOVEMBER + 2 * HOUR)
    news.poll(metered.world)
    [invoice] = [it for it in invoices(metered) if it.id != earlier.id]
    assert (invoice.total, invoice.amount_remaining) == (500, 300)
    metered.at(NOVEMBER + timedelta(days=31, hours=2))
    assert told(metered)["overdue"].facts["total"] == "3.00"
    pay(metered, "pay", invoice)
    news.poll(metered.world)
    assert told(metered)["receipt"].facts["total"] == "3.00"


@pytest.mark.parametrize("backwards", [False, True])
def test_news_of_a_metered_invoice_ends_the_same_in_any_order_and_however_often(books, metered, backwards):
    metered.truth.use("acme", "documents", OCTOBER, 250)
    metered.sync()
    metered.at(NOVEMBER + 2 * HOUR)
    [invoice] = invoices(metered)
    seen = [metered.gateway.invoice(invoice.id)]
    pay(metered, "fail", invoice)
    seen.append(metered.gateway.invoice(invoice.id))
    pay(metered, "pay", invoice)
    seen.append(metered.gateway.invoice(invoice.id))
    for shown in [*seen, *seen[::-1]] if backwards else [*seen, *seen]:
        meter_payments.take_over(metered.world, shown)
    [row] = books.rows(tables.metered_invoices)
    assert (row["state"], row["total_minor"], row["paid_at"]) == ("paid", 500, seen[-1].paid_at)
    assert entries(books) == [("cash", 500), ("receivable", -500)]
    assert follow(metered, 0) == []


def test_who_is_sent_invoices_of_a_subscription_has_the_payment_terms_of_the_policy(books, sandbox):
    metered = Metered(books.engine, sandbox.url)
    policies.change(books.engine, "test", "", {"days-until-due": "14"}, who="ann", why="terms", now=OCTOBER)
    metered.customer("acme", email="olga@acme.example")
    metered.setup()
    metered.truth.use("acme", "documents", OCTOBER, 250)
    metered.sync()
    metered.at(NOVEMBER + 2 * HOUR)
    policies.change(books.engine, "test", "", {"days-until-due": "20"}, who="ann", why="new", now=NOVEMBER)
    news.poll(metered.world)
    assert told(metered)["invoice"].facts["due_at"][:10] == "2026-11-15"  # it went out with the terms of then


def test_who_goes_back_to_invoices_is_billed_the_last_month_by_meters_and_no_more(books, metered):
    metered.truth.use("acme", "documents", OCTOBER, 5)
    metered.switch("acme", "invoices", NOVEMBER)
    name = subscription(metered).id
    assert ends(metered) == [f"acme: {name} ends in Stripe on 2026-11-01"]
    assert ends(metered) == []
    assert subscription(metered).status == "active"
    metered.sync()
    metered.at(DECEMBER + 2 * HOUR)
    assert subscription(metered).status == "canceled"
    assert [it.total for it in invoices(metered)] == [10]
    assert ends(metered) == []


def test_a_switch_that_is_taken_back_leaves_the_subscription_as_it_was(metered):
    for driver, end in (("invoices", int(NOVEMBER.timestamp())), ("meters", None), ("invoices", NOVEMBER.timestamp())):
        metered.at(metered.truth.now + HOUR)
        metered.switch("acme", driver, NOVEMBER)
        assert len(ends(metered)) == 1
        assert subscription(metered).cancel_at == end


def test_a_subscription_of_a_month_that_begun_unmetered_is_ended_at_once(metered):
    metered.at(OCTOBER + 2 * HOUR)
    metered.switch("acme", "invoices", OCTOBER)
    name = subscription(metered).id
    assert ends(metered) == [f"acme: {name} is ended in Stripe: billed by invoices since 2026-10-01"]
    assert subscription(metered).status == "canceled"
    assert ends(metered) == []
    metered.at(NOVEMBER + 2 * HOUR)
    assert invoices(metered) == []


def test_what_stripe_refuses_is_an_exception_and_is_tried_again(metered):
    metered.client.v1.subscriptions.cancel(subscription(metered).id, {})
    metered.switch("acme", "invoices", NOVEMBER)
    [told] = ends(metered)
    assert told.startswith("acme: EXCEPTION: ") and "could not be ended" in told
    assert len(ends(metered)) == 1
