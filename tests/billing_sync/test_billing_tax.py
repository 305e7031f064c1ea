"""Tax: from the price book's words to Stripe's items, Stripe's amounts to the ledger, and back."""

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from meterhouse_billing import approvals, policies, records, taxes
from meterhouse_billing.lines import Line, Tax
from meterhouse_billing.reconcile import reconcile
from meterhouse_billing.run import bill
from meterhouse_billing.taxes import NotTaxable
from meterhouse_store import tables

NOW = datetime(2026, 11, 2, 8, tzinfo=UTC)
EXCLUSIVE = {"behaviour": "exclusive", "code": "txcd_10103001"}
INCLUSIVE = {"behaviour": "inclusive", "code": "txcd_10103001"}


def run(world, approve=True):
    return [str(step) for step in bill(world, records.drafts(world.engine, world.namespace), approve=approve)]


def rate(books, lines, customer="acme", **more):
    """A closed rating of lines (kind, metric, quantity, amount, explanation)."""
    return books.rating(customer, lines, **more)


def automatic(books, value="on", customer=""):
    wanted = {policies.AUTOMATIC_TAX: value}
    policies.change(books.engine, "test", customer, wanted, who="anna", why="registered", now=datetime.now(UTC))


def lives_in(sandbox, books, country):
    """Everybody in Stripe gets an address there."""
    for customer in sandbox.client.v1.customers.list().data:
        sandbox.client.v1.customers.update(customer.id, {"address": {"country": country}})


def accounts(books):
    """Account -> balance, debits positive."""
    found = {}
    for entry in books.rows(tables.ledger_entries):
        found[entry["account"]] = found.get(entry["account"], 0) + entry["amount_minor"]
    return {account: amount for account, amount in found.items() if amount}


def invoice_of(sandbox):
    [invoice] = sandbox.client.v1.invoices.list({"limit": 100}).data
    lines = sandbox.client.v1.invoices.line_items.list(invoice.id, {"limit": 100}).data
    return invoice, sorted(lines, key=lambda line: line.metadata["meterhouse_line_id"])


def line(name, amount, tax=None, kind="usage", component="in", off=()):
    return Line(
        name, 0, kind, component, "input", name, Decimal(1), "", amount, Decimal(amount) / 100, False,
        Tax("exclusive", "txcd_1") if tax is None else tax, tuple(off),
    )  # fmt: skip


# ---- what is taxed --------------------------------------------------------------------------------------------------


def test_discounts_go_off_what_they_are_of_and_credits_off_what_they_pay():
    lines = [
        line("tokens", 10_000),
        line("calls", 5_000, Tax("exclusive", "txcd_2"), component="calls"),
        line("fee", 2_000, kind="flat", component="fee"),
        line("Launch", -3_000, Tax(), "discount", "discounts", [("tokens", 0), ("calls", 0)]),
        line("Credits applied", -6_000, Tax(), "credit_applied", "credits", [("tokens", 5_500), ("calls", 500)]),
    ]
    # 30.00 in proportion to 100 and 50: 20.00 and 10.00. Then 55.00 of the 80.00 left, and 5.00 of the 40.00.
    found = taxes.net(lines, "USD")
    assert found.left == {"tokens": 2_500, "calls": 3_500, "fee": 2_000}
    assert found.hosts == {"Launch": "tokens", "Credits applied": "tokens"}
    assert sum(found.left.values()) == sum(it.amount_minor for it in lines)


def test_a_correction_goes_off_its_own_component_first_and_then_off_what_is_taxed_alike():
    other = Tax("exclusive", "txcd_2")
    lines = [
        line("a", 300, other, component="a"),
        line("b", 200, component="b"),
        line("c", 100, component="c"),
        line("b (correction)", -250, kind="correction", component="b"),
    ]
    assert taxes.net(lines, "USD").left == {"a": 300, "b": 0, "c": 50}


def test_what_cannot_be_taxed_is_refused_with_what_to_do():
    with pytest.raises(NotTaxable, match="does not say whether tax is in the price of 'x'"):
        taxes.net([line("x", 100, Tax("unspecified", "txcd_1"))], "USD")
    with pytest.raises(NotTaxable, match=r"0\.50 USD of 'c' is more than the invoice has to be paid.*credit_note"):
        taxes.net([line("x", 100), line("c", -150, kind="correction")], "USD")
    inclusive = line("y", 100, Tax("inclusive", "txcd_1"))
    with pytest.raises(NotTaxable, match="some prices of this invoice have tax in them and others have not"):
        taxes.net([line("x", 100), inclusive, line("credits", -50, Tax(), "credit_applied", "credits")], "USD")
    # Without anything taken off the two stand side by side: each line is taxed by itself.
    assert taxes.net([line("x", 100), inclusive], "USD").left == {"x": 100, "y": 100}


# ---- on its way to Stripe -------------------------------------------------------------------------------------------


def test_items_carry_what_the_book_says_of_tax_also_where_stripe_computes_none(books, sandbox, world):
    rate(books, [
        ("usage", "input", "10", 1_000, {"tax": EXCLUSIVE}),
        ("usage", "output", "5", 500, {"tax": {"behaviour": None, "code": "txcd_20030000"}}),
        ("usage", "plain", "5", 100, {}),
        ("discount", "", "1", -100, {"steps": [{"off": "usage input", "amount": "-1.00"}]}),
    ])  # fmt: skip
    run(world)
    invoice, lines = invoice_of(sandbox)
    assert (invoice.total, invoice.automatic_tax.enabled, invoice.status) == (1_500, False, "open")
    told = [(it.amount, it.pricing and (it.pricing.price_details.product, it.pricing.tax_behavior)) for it in lines]
    assert told == [
        (1_000, ("meterhouse_txcd_10103001", "exclusive")),
        (500, ("meterhouse_txcd_20030000", "unspecified")),
        (100, None),
        (-100, None),
    ]
    assert sandbox.client.v1.products.retrieve("meterhouse_txcd_20030000").tax_code == "txcd_20030000"
    assert "tax" not in accounts(books)


def test_tax_on_top_is_owed_by_the_customer_and_to_the_tax_office(books, sandbox, world, later):
    automatic(books)
    rate(books, [
        ("usage", "input", "10", 10_003, {"tax": EXCLUSIVE}),
        ("flat", "", "1", 4_900, {"tax": EXCLUSIVE}),
        ("discount", "", "1", -2_000, {"steps": [{"off": "usage input", "amount": "-20.00"}]}),
        ("credit_applied", "", "1", -1_000, {"steps": [{"pays": "usage input", "amount": "10.00", "grant": "g"}]}),
    ])  # fmt: skip
    # Nobody knows yet where the customer is: it stays a draft.
    assert "could not compute the tax (requires_location_inputs)" in run(world)[-1]
    assert invoice_of(sandbox)[0].status == "draft"
    lives_in(sandbox, books, "DE")
    assert "could not compute the tax" in run(world)[-1]  # which is not asked for again in the same hour
    steps = run(later)
    run(later)
    assert not [step for step in steps if "EXCEPTION" in step], steps
    invoice, lines = invoice_of(sandbox)
    assert [(it.amount, it.description) for it in lines] == [
        (7_003, "usage input: 10 tokens, less 30.00 USD in discounts, credits and corrections"),
        (4_900, "flat"),
    ]
    # 19 % of 70.03 is 13.3057, of 49.00 9.31: 13.31 + 9.31.
    assert (invoice.total, invoice.total_excluding_tax, invoice.status) == (14_165, 11_903, "open")
    # Receivable as Stripe's invoice, to the cent; credits were used up, the rest is revenue.
    assert accounts(books) == {
        "receivable": 14_165,
        "tax": -2_262,
        "revenue": -12_903,
        "deferred_credits": 1_000,
    }
    [row] = reconcile(world, records.drafts(world.engine, "test", period="2026-10"))
    assert (row.rated_minor, row.stripe_minor, row.differences) == (11_903, 11_903, ())
    items = {it["line_id"]: it["stripe_item_id"] for it in books.rows(tables.invoice_lines)}
    assert items["rating-acme-2"] == items["rating-acme-3"] == items["rating-acme-0"] == lines[0].id

    sandbox.client.v1.invoices.pay(invoice.id, {"paid_out_of_band": True})
    shown = world.gateway.invoice(invoice.id)
    records.take_over(world.engine, "test", shown, who="stripe", why="paid", now=NOW)
    assert accounts(books)["cash"] == 14_165 and "receivable" not in accounts(books)


def test_tax_within_prices_is_no_revenue(books, sandbox, world, later):
    automatic(books, customer="acme")
    rate(books, [("usage", "input", "10", 11_900, {"tax": INCLUSIVE})])
    rate(books, [("usage", "input", "10", 5_000, {"tax": EXCLUSIVE})], customer="globex")  # not with automatic tax
    run(world)
    lives_in(sandbox, books, "DE")
    sandbox.client.v1.invoices.delete(
        next(it.id for it in sandbox.client.v1.invoices.list().data if it.total == 11_900)
    )
    run(world)
    # 119.00 with 19 % in it: 100.00 and 19.00. Nobody owes more for it.
    assert accounts(books) == {"receivable": 16_900, "revenue": -15_000, "tax": -1_900}


def test_a_void_invoice_owes_no_tax_and_the_next_one_its_own(books, sandbox, world, later):
    automatic(books)
    rate(books, [("usage", "input", "10", 10_000, {"tax": EXCLUSIVE})], month=9)
    run(world)
    lives_in(sandbox, books, "FR")
    run(later)
    assert accounts(books) == {"receivable": 12_000, "tax": -2_000, "revenue": -10_000}
    [draft] = records.drafts(world.engine, "test", period="2026-09")
    list(approvals.void(world, draft, "wrong name", reissue=True))
    assert accounts(books) == {"receivable": 10_000, "revenue": -10_000}  # owed again, by another invoice
    run(world)
    assert accounts(books) == {"receivable": 12_000, "tax": -2_000, "revenue": -10_000}
    assert sorted(it["kind"] for it in books.rows(tables.ledger_transactions)) == [
        "reissue", "tax", "tax", "usage", "void", "void_tax",
    ]  # fmt: skip
    # What went out stays as it went out, whatever is set now.
    automatic(books, "off")
    [row] = reconcile(world, records.drafts(world.engine, "test", period="2026-09"))
    assert row.differences == ()


def test_tax_that_nobody_asked_for_is_not_finalised(books, sandbox, world):
    rate(books, [("usage", "input", "10", 10_000, {"tax": EXCLUSIVE})])
    run(world, approve=False)
    automatic(books)
    said = run(world, approve=False)
    assert any("deleted in Stripe and made again" in step for step in said)  # the setting makes it another invoice
    assert invoice_of(sandbox)[0].automatic_tax.enabled


def test_each_account_that_sells_has_the_product_of_a_tax_code(books, sandbox, world):
    """A customer of a connected account beside one of the key's own, both with the same code."""
    shop = {"stripe-account": "acct_1SHOP0000000000"}
    policies.change(books.engine, "test", "globex", shop, who="anna", why="its seller", now=NOW)
    for customer in ("acme", "globex"):
        rate(books, [("usage", "input", "10", 1_000, {"tax": EXCLUSIVE})], customer=customer)
    steps = run(world)
    assert not [step for step in steps if "EXCEPTION" in step or "deleted" in step], steps
    for account in ("", shop["stripe-account"]):
        client = world.gateway.on(account)._client
        assert [it.status for it in client.v1.invoices.list().data] == ["open"]
        assert client.v1.products.retrieve("meterhouse_txcd_10103001").tax_code == "txcd_10103001"


def test_a_product_that_is_not_there_is_an_exception_and_no_deleted_draft(books, sandbox, world, monkeypatch):
    monkeypatch.setattr("meterhouse_billing.run._ensure_product", lambda *_: None)
    rate(books, [("usage", "input", "10", 1_000, {"tax": EXCLUSIVE})])
    for _ in range(2):
        assert "EXCEPTION: Stripe refused: No such product: 'meterhouse_txcd_10103001'" in run(world)[-1]
    assert invoice_of(sandbox)[0].status == "draft"
