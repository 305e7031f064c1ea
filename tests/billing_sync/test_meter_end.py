"""Customers on the meters: what they pay is in the ledger, and who goes back to invoices has no subscription left."""

import urllib.request
from datetime import timedelta

import pytest
from metered import NOVEMBER, OCTOBER, Metered

from meterhouse_billing import meter_end, news
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
    assert told == f"acme {invoice.id}: 5.00 USD (payment of invoice {invoices(metered)[0].number})"
    assert entries(books) == [("cash", 500), ("receivable", -500)]
    event = f'{{"id": "evt_1", "type": "invoice.paid", "created": 1, "data": {{"object": {{"id": "{invoice.id}"}}}}}}'
    news.receive(books.engine, "test", event, metered.truth.now)
    assert news.process(metered.world) == [f"invoice.paid {invoice.id}: nothing new"]
    assert news.poll(metered.world) == []
    assert entries(books) == [("cash", 500), ("receivable", -500)]


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
