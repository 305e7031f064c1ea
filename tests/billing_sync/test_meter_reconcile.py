"""`bill reconcile` of customers on Stripe's meters: their metered months and their invoiced ones, each to zero."""

import json
import urllib.request
from dataclasses import replace
from datetime import timedelta

import pytest
from metered import BOOK, NOVEMBER, OCTOBER, Metered
from typer.testing import CliRunner

from meterhouse_billing import accounts, drivers, meter_reconcile, news, reconcile_commands, records
from meterhouse_billing import reconcile as comparison
from meterhouse_billing.command_line import world_of
from meterhouse_billing.commands import bill as commands
from meterhouse_billing.run import bill
from meterhouse_store import registry

HOUR = timedelta(hours=1)
DECEMBER = NOVEMBER + timedelta(days=30)
USED = [("usage", "documents", "250", 500)]
WITH_FEE = BOOK + "      base: {model: flat, price: 49.00}\n"


@pytest.fixture
def metered(books, sandbox):
    """250 documents in October, 5.00 USD, invoiced by Stripe."""
    made = Metered(books.engine, sandbox.url)
    made.customer("acme")
    made.setup()
    made.truth.use("acme", "documents", OCTOBER, 250)
    made.sync()
    made.at(NOVEMBER + 2 * HOUR)
    return made


def compared(metered):
    world = metered.world
    rows = comparison.reconcile(world, records.drafts(world.engine, "test", every=True))
    drafts = records.drafts(world.engine, "test", every=True, driver=drivers.METERS)
    rows += meter_reconcile.reconcile(world, drafts, every=True)
    return rows, accounts.compare(world, rows)


def codes(metered):
    rows, owed = compared(metered)
    found = [one for row in rows for one in row.differences] + [one for it in owed for one in it.differences]
    assert all(one.cause and one.next_step for one in found)
    return [one.code for one in found]


def pay(metered):
    [invoice] = metered.client.v1.invoices.list({"limit": 1}).data
    request = urllib.request.Request(f"{metered.url}/_sandbox/pay/{invoice.id}", b"", method="POST")
    urllib.request.urlopen(request).close()


def test_a_metered_month_is_equal_from_the_rating_to_the_payment(books, metered):
    books.rating("acme", USED)
    assert codes(metered) == ["state_behind"]
    news.poll(metered.world)
    assert codes(metered) == []
    [row], [account] = compared(metered)
    assert (row.state, row.rated_minor, row.ledger_minor, row.stripe_minor) == ("finalised", 500, 500, 500)
    assert (account.ledger_minor, account.open_minor, account.balance_minor) == (500, 500, 0)
    pay(metered)
    assert codes(metered) == ["state_behind", "payment_differs", "account_differs"]
    news.poll(metered.world)
    assert codes(metered) == []
    [row], [account] = compared(metered)
    assert (row.state, row.paid_minor, row.stripe_paid_minor, account.ledger_minor) == ("paid", 500, 500, 0)


def test_usage_that_stripe_did_not_invoice_is_a_difference_of_its_month(books, metered):
    books.rating("acme", [("usage", "documents", "260", 520)])
    news.poll(metered.world)
    assert codes(metered) == ["metered_differs", "account_differs"]
    [row], _ = compared(metered)
    assert row.differences[0].cause.startswith("Stripe invoiced 5.00 USD for 2026-10, rated are 5.20")


def test_a_month_that_only_one_of_the_two_knows_waits(books, metered):
    news.poll(metered.world)
    assert codes(metered) == ["not_closed", "account_differs"]
    books.rating("acme", USED)
    assert codes(metered) == []
    books.rating("acme", USED, month=11)
    [_, row], [account] = compared(metered)
    assert [it.code for it in row.differences] == ["not_invoiced"] and row.differences[0].waits
    assert (account.ledger_minor, account.not_finalised_minor, account.differences) == (1000, 500, ())


def test_who_goes_over_to_meters_is_compared_in_the_months_of_both(books, sandbox):
    metered = Metered(books.engine, sandbox.url)
    registry.add_customer(books.engine, "test", "acme", plan="pay", currency="USD", now=OCTOBER)
    books.rating("acme", USED)
    metered.at(NOVEMBER + HOUR)
    list(bill(metered.world, records.drafts(books.engine, "test"), approve=True))
    metered.switch("acme", "meters", NOVEMBER)
    assert [step.text for step in metered.setup() if step.failed] == []
    metered.truth.use("acme", "documents", NOVEMBER, 100)
    metered.sync()
    metered.at(DECEMBER + 2 * HOUR)
    books.rating("acme", [("usage", "documents", "100", 200)], month=11)
    news.poll(metered.world)
    assert codes(metered) == []
    rows, [account] = compared(metered)
    assert [(row.rated_minor, row.stripe_minor) for row in rows] == [(500, 500), (200, 200)]
    assert (account.ledger_minor, account.open_minor) == (700, 700)


@pytest.mark.parametrize("is_paid", [False, True])
def test_a_fee_that_stripe_bills_ahead_of_its_month_is_named_and_no_difference(books, sandbox, monkeypatch, is_paid):
    metered = Metered(books.engine, sandbox.url, book=WITH_FEE)
    registry.add_customer(books.engine, "test", "acme", plan="pay", currency="USD", now=OCTOBER)
    metered.switch("acme", "meters", NOVEMBER)
    assert [step.text for step in metered.setup() if step.failed] == []
    metered.at(NOVEMBER + 2 * HOUR)  # 49.00 for November, at its beginning
    if is_paid:
        pay(metered)
    news.poll(metered.world)
    assert codes(metered) == []
    [october, row], [account] = compared(metered)  # the invoice is October's, its line November's
    assert (october.stripe_minor, october.remaining_minor) == (0, 0 if is_paid else 4900)
    assert (row.rated_minor, row.stripe_minor, row.ahead_minor) == (0, 4900, 4900)
    assert account.ahead_minor == 4900
    assert (account.ledger_minor, account.open_minor) == ((-4900, 0) if is_paid else (0, 4900))
    done = reconcile(books, metered, monkeypatch)
    assert (done.exit_code, "billed ahead" in done.stdout) == (0, True)
    metered.truth.use("acme", "documents", NOVEMBER, 100)
    metered.sync()
    metered.at(DECEMBER + 2 * HOUR)  # 2.00 of November's usage, and 49.00 for December
    news.poll(metered.world)
    assert codes(metered) == ["not_closed", "account_differs"]
    books.rating("acme", [("flat", "base", "1", 4900), ("usage", "documents", "100", 200)], month=11)
    assert codes(metered) == []
    _, november, december = compared(metered)[0]
    assert (november.rated_minor, november.stripe_minor, november.ahead_minor) == (5100, 5100, 0)
    assert (december.rated_minor, december.stripe_minor, december.ahead_minor) == (0, 4900, 4900)


def reconcile(books, metered, monkeypatch, *arguments):
    """The command, at the time of the metered world."""
    for name, value in (("DATA", str(books.settings.data)), ("NAMESPACE", "test"), ("STRIPE_URL", metered.url)):
        monkeypatch.setenv(f"METERHOUSE_{name}", value)
    monkeypatch.setenv("STRIPE_API_KEY", "sk_test_1")
    now = metered.world.now
    monkeypatch.setattr(reconcile_commands, "world_of", lambda *about: replace(world_of(*about), now=now))
    return CliRunner().invoke(commands, ["reconcile", *arguments])


def credited(v1, invoice):
    used = next(line for line in invoice.lines.data if line.amount)
    line = {"type": "invoice_line_item", "amount": 7, "invoice_line_item": used.id}
    v1.credit_notes.create({"invoice": invoice.id, "lines": [line]})


@pytest.mark.parametrize(
    ("plant", "found", "told"),
    [
        (lambda v1, it: v1.invoices.create({"customer": it.customer}), ["foreign_invoice"], None),
        (lambda v1, it: v1.invoice_items.create({"customer": it.customer, "amount": 5}), ["orphan_item"], None),
        (credited, ["account_differs"], None),
        (lambda v1, it: v1.invoices.void_invoice(it.id), ["metered_void", "account_differs"], "is void in Stripe"),
        (lambda v1, it: v1.invoices.pay(it.id, {"paid_out_of_band": True}), [], None),
    ],
)
def test_what_somebody_did_in_stripe_to_a_metered_customer_is_found_and_named(books, metered, plant, found, told):
    books.rating("acme", USED)
    news.poll(metered.world)
    v1 = metered.client.v1
    [invoice] = v1.invoices.list().data
    plant(v1, invoice)
    news.poll(metered.world)
    assert codes(metered) == found
    if told:
        [row], _ = compared(metered)
        assert told in row.differences[0].cause and row.stripe_minor is None


def test_the_command_compares_both_and_names_the_next_step(books, metered, monkeypatch):
    books.rating("acme", [("usage", "documents", "260", 520)])
    news.poll(metered.world)
    done = reconcile(books, metered, monkeypatch)
    assert done.exit_code == 3
    assert "acme: Stripe invoiced 5.00 USD for 2026-10, rated are 5.20" in done.stdout
    done = reconcile(books, metered, monkeypatch, "--period", "2026-10", "--json")
    [row] = json.loads(done.stdout)["invoices"]
    assert (row["rated_minor"], row["stripe_minor"]) == (520, 500)
