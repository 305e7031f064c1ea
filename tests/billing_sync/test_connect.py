"""Stripe Connect: every call in the account that sells, fees of the platform to the minor unit; real SDK over HTTP."""

import json
import urllib.request
from dataclasses import replace
from datetime import timedelta

import pytest
import stripe
from sqlalchemy import event, func, select

from meterhouse_billing import (
    accounts,
    credit_records,
    fee_records,
    invoice_disputes,
    news,
    policies,
    purchases,
    records,
    top_up_news,
    top_ups,
)
from meterhouse_billing.application_fees import given_back, read_fee
from meterhouse_billing.credit_run import credit
from meterhouse_billing.gateway import BillingError, Gateway, StripeUnavailable
from meterhouse_billing.reconcile import reconcile
from meterhouse_billing.run import bill
from meterhouse_store import registry, tables

SHOP, OTHER = "acct_1SHOP0000000000", "acct_1OTHER000000000"


@pytest.mark.parametrize(
    ("said", "total", "currency", "fee"),
    [
        ("2.5%", 10_000, "USD", 250),
        ("2.5%", 1_020, "USD", 26),  # 25.5: half up
        ("2.5%", 1_060, "USD", 27),  # 26.5
        ("2.5%", 1_019, "USD", 25),  # 25.475
        ("0.1%", 499, "JPY", 0),
        ("2.5%", 1_230, "KWD", 30),  # 30.75: Stripe takes tens of fils
        ("2.5%", 5_000, "KWD", 130),  # 125
        ("2.5%", 123_400, "MGA", 3_100),  # 30.85 ariary, which has whole ones alone
        ("100%", 7, "USD", 7),
        ("USD=1.50,EUR=1", 10_000, "USD", 150),
        ("USD=1.50,EUR=1", 100, "USD", 100),  # never more than the invoice
        ("USD=1.50,EUR=1", 10_000, "GBP", 0),
        ("2.5%", -400, "USD", 0),
        ("none", 10_000, "USD", 0),
    ],
)
def test_a_fee_is_exact_to_the_minor_unit(said, total, currency, fee):
    assert read_fee(said).of(total, currency) == fee
    assert read_fee(read_fee(said).canonical()) == read_fee(said)


@pytest.mark.parametrize("said", ["0%", "101%", "-1%", "USD", "USD=0", "XXX=1", "USD=1.005", "many"])
def test_a_fee_that_is_none_is_refused(said):
    with pytest.raises(ValueError, match="is "):
        read_fee(said)


def put(world, customer_id="", **settings):
    wanted = {name.replace("_", "-"): value for name, value in settings.items()}
    policies.change(world.engine, "test", customer_id, wanted, who="anna", why="contract", now=world.now())


def invoices(sandbox, account):
    stripe.enable_telemetry = False
    client = stripe.StripeClient("sk_test_123", base_addresses={"api": sandbox.url}, stripe_account=account)
    return client.v1.invoices.list({"limit": 100}).data


def run(world):
    return list(bill(world, records.drafts(world.engine, "test"), approve=True))


def pay(sandbox, invoice, account, verb="pay"):
    with urllib.request.urlopen(f"{sandbox.url}/_sandbox/{verb}/{invoice}?account={account}", data=b""):
        pass


def balances(books):
    entries = tables.ledger_entries
    query = select(entries.c.account, func.sum(entries.c.amount_minor)).group_by(entries.c.account)
    with books.engine.connect() as connection:
        return {account: amount for account, amount in connection.execute(query) if amount}


@pytest.mark.parametrize("books", ["sqlite", "postgres"], indirect=True)
def test_an_invoice_of_a_connected_account_is_there_alone_and_its_fee_is_posted_when_it_is_paid(books, world, sandbox):
    put(world, stripe_account=SHOP, application_fee="2.5%")
    world = world.of("")
    books.rating("acme", [("usage", "input", "10", 1020)])
    run(world)
    assert invoices(sandbox, None) == []
    [invoice] = invoices(sandbox, SHOP)
    assert (invoice.total, invoice.status) == (1020, "open")
    assert balances(books) == {"receivable": 1020, "revenue": -1020}
    pay(sandbox, invoice.id, SHOP)
    assert news.poll(world) == [f"acme {invoice.id}: finalised -> paid", "acme: the platform kept 0.26 USD"]
    assert news.poll(world) == []
    # the ledger is the seller's: of 10.20 it has 9.94, and 0.26 are its cost
    assert balances(books) == {"application_fees": 26, "cash": 994, "revenue": -1020}
    rows = reconcile(world, records.drafts(books.engine, "test", every=True))
    assert [row.differences for row in rows] == [()]
    assert [it.differences for it in accounts.compare(world, rows)] == [()]
    assert fee_records.sums(books.engine, "test") == [("acme", "USD", 26)]


def test_a_fee_in_dinars_is_asked_for_and_given_back_in_tens_of_fils(books, world, sandbox):
    put(world, stripe_account=SHOP, application_fee="2.5%", paid_credit="refund")
    world = world.of("")
    rating = books.rating("dinar", [("usage", "input", "10", 5_010)], currency="KWD")
    assert [step for step in run(world) if step.failed] == []
    [invoice] = invoices(sandbox, SHOP)
    pay(sandbox, invoice.id, SHOP)
    # 125.25 fils of 5.010 KWD: 0.130, since Stripe takes no single fils
    assert news.poll(world)[-1] == "dinar: the platform kept 0.130 KWD"
    books.correction(rating, [(0, -1_230)])  # 31.9 of them
    list(credit(world, credit_records.notes(books.engine, "test", only_open=True), approve=True))
    assert news.poll(world) == ["dinar: the platform gave 0.030 KWD of its fee back"]
    assert balances(books)["application_fees"] == 100


def test_the_fee_is_remembered_with_stripes_invoice_or_neither_is(books, world, sandbox, monkeypatch):
    put(world, stripe_account=SHOP, application_fee="2.5%")
    world = world.of("")
    books.rating("acme", [("usage", "input", "10", 1020)])
    asked = fee_records.asked

    def killed(*_about):
        raise KeyboardInterrupt

    monkeypatch.setattr(fee_records, "asked", killed)
    with pytest.raises(KeyboardInterrupt):
        run(world)
    [row] = books.rows(tables.invoices)
    assert row["stripe_invoice_id"] is None
    monkeypatch.setattr(fee_records, "asked", asked)
    later = world.now() + timedelta(hours=1)
    put(replace(world, now=lambda: later), application_fee="10%")  # what was sent with the draft holds
    run(world)
    [invoice] = invoices(sandbox, SHOP)
    [fee] = books.rows(tables.application_fees)
    assert (fee["stripe_invoice_id"], fee["asked_minor"]) == (invoice.id, 26)
    pay(sandbox, invoice.id, SHOP)
    assert news.poll(world)[-1] == "acme: the platform kept 0.26 USD"


@pytest.mark.parametrize(
    ("taken", "back", "total", "currency", "fee"),
    [
        (26, 1020, 1020, "USD", 26),  # all of it
        (26, 510, 1020, "USD", 13),
        (26, 0, 1020, "USD", 0),
        (25, 500, 1000, "USD", 13),  # 12.5: half up
        (25, 499, 1000, "USD", 12),  # 12.475
        (1, 499, 1000, "USD", 0),
        (1, 500, 1000, "USD", 1),
        (26, 2000, 1020, "USD", 26),  # never more than it was
        (26, -5, 1020, "USD", 0),
        (26, 5, 0, "USD", 0),
        (130, 1230, 5000, "KWD", 30),  # 31.98
        (130, 1350, 5000, "KWD", 40),  # 35.1
    ],
)
def test_what_goes_back_of_a_fee_is_exact_to_what_can_be_charged(taken, back, total, currency, fee):
    assert given_back(taken, back, total, currency) == fee


def sold(books, world, sandbox, paid_credit, total=1020):
    """An invoice of a connected account with a fee of 2.5 %, paid; the world, the rating, the payment."""
    put(world, stripe_account=SHOP, application_fee="2.5%", paid_credit=paid_credit)
    world = world.of("")
    rating = books.rating("acme", [("usage", "input", "10", total)])
    run(world)
    [invoice] = invoices(sandbox, SHOP)
    pay(sandbox, invoice.id, SHOP)
    news.poll(world)
    [row] = books.rows(tables.application_fees)
    return world, rating, row["payment_intent"]


def fee_in_stripe(world, intent):
    """(taken, given back, how often) of the platform's fee."""
    asked = {"expand": ["latest_charge"]}
    payment = world.gateway.call(lambda client: client.v1.payment_intents.retrieve(intent, asked))
    name = payment.latest_charge.application_fee
    client = world.on("").gateway._client
    given = client.v1.application_fees.refunds.list(name).data
    fee = client.v1.application_fees.retrieve(name)
    return fee.amount, fee.amount_refunded, [it.amount for it in given][::-1]


@pytest.mark.parametrize("books", ["sqlite", "postgres"], indirect=True)
@pytest.mark.parametrize("how", ["refund", "balance", "outside"])
def test_a_credit_note_gives_back_its_part_of_the_fee_once(books, world, sandbox, how):
    world, rating, intent = sold(books, world, sandbox, how)
    assert fee_in_stripe(world, intent) == (26, 0, [])
    books.correction(rating, [(0, -300)])  # 300 of 1020: of 26 cents 7.647
    list(credit(world, credit_records.notes(books.engine, "test", only_open=True), approve=True))
    [row] = reconcile(world, records.drafts(books.engine, "test", every=True))
    assert [it.code for it in row.differences] == ["fee_refund_behind"]
    assert news.poll(world) == ["acme: the platform gave 0.08 USD of its fee back"]
    assert news.poll(world) == []
    assert fee_in_stripe(world, intent) == (26, 8, [8])
    assert balances(books)["application_fees"] == 18
    assert fee_records.sums(books.engine, "test") == [("acme", "USD", 18)]
    rows = reconcile(world, records.drafts(books.engine, "test", every=True))
    assert [row.differences for row in rows] == [()]
    assert [it.differences for it in accounts.compare(world, rows)] == [()]


@pytest.mark.parametrize("seen", ["each", "all at once"])
def test_many_small_refunds_by_hand_give_back_what_one_large_one_does(books, world, sandbox, seen):
    world, _, intent = sold(books, world, sandbox, "refund")
    # 3 x 170 of 1020 come to half of the fee (13), each alone to 4.33; the rest brings all of it
    for amount in (170, 170, 170):
        world.gateway.call(lambda client, amount=amount: client.v1.refunds.create(refund_of(intent, amount)))
        if seen == "each":
            news.poll(world)
    news.poll(world)
    assert fee_in_stripe(world, intent)[1] == 13
    world.gateway.call(lambda client: client.v1.refunds.create(refund_of(intent, 510)))
    news.poll(world)
    assert fee_in_stripe(world, intent) == (26, 26, [4, 5, 4, 13] if seen == "each" else [13, 13])
    assert news.poll(world) == []
    assert balances(books) == {"adjustments": 1020, "revenue": -1020}


def refund_of(intent, amount):
    return {"payment_intent": intent, "amount": amount}


def test_what_the_platform_gave_back_by_hand_counts_and_a_lost_answer_is_not_given_twice(books, world, sandbox):
    world, _, intent = sold(books, world, sandbox, "refund")
    asked = {"expand": ["latest_charge"]}
    payment = world.gateway.call(lambda client: client.v1.payment_intents.retrieve(intent, asked))
    platform = world.on("").gateway
    platform.call(
        lambda client: client.v1.application_fees.refunds.create(payment.latest_charge.application_fee, {"amount": 3})
    )
    world.gateway.call(lambda client: client.v1.refunds.create(refund_of(intent, 510)))
    sandbox.faults.lose_reply_of = {sandbox.faults.posts + 1}  # the call is done, and its answer is lost
    news.poll(world)
    assert fee_in_stripe(world, intent) == (26, 13, [3, 10])
    assert balances(books)["application_fees"] == 13


def post(sandbox, path):
    with urllib.request.urlopen(f"{sandbox.url}/_sandbox/{path}?account={SHOP}", data=b"") as reply:
        return json.loads(reply.read())


@pytest.mark.sampled(6)
@pytest.mark.parametrize("books", ["sqlite", "postgres"], indirect=True)
@pytest.mark.parametrize("told_by", ["poll", "webhook"])
@pytest.mark.parametrize(("decision", "back"), [("lost", 26), ("won", 0), ("warning_closed", 0), ("under_review", 0)])
def test_a_dispute_gives_the_fee_back_when_it_is_lost_and_once(books, world, sandbox, told_by, decision, back):
    world, _, intent = sold(books, world, sandbox, "refund")

    def look(kind, dispute):
        about = {"object": "dispute", "id": dispute, "payment_intent": intent}
        if told_by == "poll":
            return news.poll(world)
        tell(books, world, f"charge.dispute.{kind}", about)
        return news.process(world)

    dispute = post(sandbox, f"dispute/{intent}")["id"]
    assert not any("gave" in line for line in look("created", dispute))
    assert fee_in_stripe(world, intent) == (26, 0, [])  # nobody knows yet how it ends
    post(sandbox, f"dispute/{dispute}/{decision}")
    said = "acme: the platform gave 0.26 USD of its fee back"
    assert (said in look("closed", dispute)) == bool(back)
    assert fee_in_stripe(world, intent)[1] == back
    assert balances(books).get("application_fees", 0) == 26 - back
    look("closed", dispute)
    assert fee_in_stripe(world, intent) == (26, back, [back] if back else [])
    rows = reconcile(world, records.drafts(books.engine, "test", every=True))
    assert [row.differences for row in rows] == [()]
    assert [it.differences for it in accounts.compare(world, rows)] == [()]


def test_a_refund_before_the_rest_is_lost_in_a_dispute_brings_the_whole_fee_back(books, world, sandbox):
    world, _, intent = sold(books, world, sandbox, "refund")
    world.gateway.call(lambda client: client.v1.refunds.create(refund_of(intent, 340)))  # a third: 8.67 of 26
    news.poll(world)
    dispute = post(sandbox, f"dispute/{intent}")["id"]  # of the other 680
    post(sandbox, f"dispute/{dispute}/lost")
    news.poll(world)
    assert fee_in_stripe(world, intent) == (26, 26, [9, 17])


def test_what_a_lost_dispute_asks_for_is_a_difference_until_it_is_given_back(books, world, sandbox):
    world, _, intent = sold(books, world, sandbox, "refund")
    dispute = post(sandbox, f"dispute/{intent}")["id"]
    post(sandbox, f"dispute/{dispute}/lost")
    list(invoice_disputes.record(world))
    [row] = reconcile(world, records.drafts(books.engine, "test", every=True))
    assert [it.code for it in row.differences] == ["fee_refund_behind"]
    assert news.poll(world) == ["acme: the platform gave 0.26 USD of its fee back"]
    [row] = reconcile(world, records.drafts(books.engine, "test", every=True))
    assert row.differences == ()


def tell(books, world, kind, about):
    number = len(books.rows(tables.webhook_inbox))
    event = {"id": f"evt_{number}", "type": kind, "created": 1_793_620_800 + number, "account": SHOP}
    assert news.receive(books.engine, "test", json.dumps(event | {"data": {"object": about}}), world.now())


class Listed:
    """Counts the lists of refunds that are asked for; a look at a payment fails while it `is_down`."""

    def __init__(self, monkeypatch):
        self.lists, self.is_down = 0, False
        lists, payment = Gateway.refunds, Gateway.payment

        def counted(gateway, since):
            self.lists += 1
            return lists(gateway, since)

        def looked(gateway, intent):
            if self.is_down:
                raise StripeUnavailable("no answer")
            return payment(gateway, intent)

        monkeypatch.setattr(Gateway, "refunds", counted)
        monkeypatch.setattr(Gateway, "payment", looked)


def test_webhooks_ask_stripe_for_its_refunds_only_where_one_of_them_is_about_a_refund(
    books, world, sandbox, monkeypatch
):
    world, _, intent = sold(books, world, sandbox, "refund")
    asked = Listed(monkeypatch)
    [invoice] = invoices(sandbox, SHOP)
    tell(books, world, "invoice.updated", {"id": invoice.id})
    tell(books, world, "charge.updated", {"id": "ch_1", "object": "charge", "payment_intent": intent})
    assert len(news.process(world)) == 2 and asked.lists == 0
    refund = world.gateway.call(lambda client: client.v1.refunds.create(refund_of(intent, 510)))
    tell(books, world, "refund.created", {"id": refund.id, "object": "refund", "payment_intent": intent})
    assert news.process(world)[-1] == "acme: the platform gave 0.13 USD of its fee back"
    assert asked.lists == 1  # for the ledger, which knows of no refund by its event alone
    assert fee_in_stripe(world, intent) == (26, 13, [13])


def test_a_refund_whose_fee_could_not_be_looked_at_is_told_of_again(books, world, sandbox, monkeypatch):
    world, _, intent = sold(books, world, sandbox, "refund")
    asked = Listed(monkeypatch)
    refund = world.gateway.call(lambda client: client.v1.refunds.create(refund_of(intent, 510)))
    tell(books, world, "refund.created", {"id": refund.id, "object": "refund", "payment_intent": intent})
    asked.is_down = True
    with pytest.raises(StripeUnavailable):
        news.process(world)
    asked.is_down = False
    assert news.process(world)[-1] == "acme: the platform gave 0.13 USD of its fee back"
    assert news.process(world) == [] and fee_in_stripe(world, intent) == (26, 13, [13])


def test_a_refund_that_is_told_of_before_the_payment_takes_its_part_of_the_fee_all_the_same(books, world, sandbox):
    put(world, stripe_account=SHOP, application_fee="2.5%")
    world = world.of("")
    books.rating("acme", [("usage", "input", "10", 1020)])
    run(world)
    [invoice] = invoices(sandbox, SHOP)
    pay(sandbox, invoice.id, SHOP)
    asked = {"invoice": invoice.id, "status": "paid"}
    [paid] = world.gateway.call(lambda client: client.v1.invoice_payments.list(asked)).data
    intent = paid.payment.payment_intent
    refund = world.gateway.call(lambda client: client.v1.refunds.create(refund_of(intent, 510)))
    tell(books, world, "refund.created", {"id": refund.id, "object": "refund", "payment_intent": intent})
    news.process(world)
    assert fee_in_stripe(world, intent) == (26, 0, [])  # nobody knows here that it was paid
    tell(books, world, "invoice.paid", {"id": invoice.id})
    assert news.process(world)[1:] == [
        "acme: the platform kept 0.26 USD", "acme: the platform gave 0.13 USD of its fee back",
    ]  # fmt: skip
    assert fee_in_stripe(world, intent) == (26, 13, [13])


def test_customers_with_accounts_of_their_own_are_billed_there(books, world, sandbox):
    for name, account in (("acme", SHOP), ("globex", OTHER), ("initech", None)):
        books.rating(name, [("usage", "input", "10", 5000)])
        if account:
            put(world, name, stripe_account=account, application_fee="USD=1.25")
    run(world)
    assert [len(invoices(sandbox, account)) for account in (SHOP, OTHER, None)] == [1, 1, 1]
    pay(sandbox, invoices(sandbox, OTHER)[0].id, OTHER)
    found = news.poll(world)
    assert found[1:] == ["globex: the platform kept 1.25 USD"] and found[0].startswith("globex in_")
    assert balances(books)["cash"] == 4875
    rows = reconcile(world, records.drafts(books.engine, "test", every=True))
    assert [row.differences for row in rows] == [(), (), ()]
    assert [it.differences for it in accounts.compare(world, rows)] == [(), (), ()]
    assert policies.accounts(books.engine, "test") == ["", OTHER, SHOP]


def test_a_fee_that_stripe_did_not_keep_is_a_difference(books, world, sandbox):
    put(world, stripe_account=SHOP, application_fee="2.5%")
    world = world.of("")
    books.rating("acme", [("usage", "input", "10", 10_000)])
    run(world)
    [invoice] = invoices(sandbox, SHOP)
    world.gateway.call(lambda client: client.v1.invoices.pay(invoice.id, {"paid_out_of_band": True}))
    news.poll(world)
    [row] = reconcile(world, records.drafts(books.engine, "test", every=True))
    assert [(it.code, it.cause) for it in row.differences] == [
        ("fee_differs", "the application fee was to be 2.50 USD, 0.00 were kept")
    ]


def test_of_what_nobody_is_charged_there_is_no_fee_and_no_difference(books, world, sandbox):
    """0.30 USD move to the customer's balance in Stripe; of the next invoice 0.60 are left, less than the fee of it."""
    put(world, stripe_account=SHOP, application_fee="USD=1.50")
    world = world.of("")
    books.rating("small", [("usage", "input", "1", 30)])
    rating = books.rating("acme", [("usage", "input", "10", 2000)])
    run(world)
    for invoice in invoices(sandbox, SHOP):
        if invoice.status == "open":
            pay(sandbox, invoice.id, SHOP)
    news.poll(world)
    books.correction(rating, [(0, -1000)])  # on acme's balance
    list(credit(world, credit_records.notes(books.engine, "test", only_open=True), approve=True))
    news.poll(world)
    assert balances(books)["application_fees"] == 75  # half of 1.50 went back
    books.rating("acme", [("usage", "input", "5", 1060)], month=11)
    run(world)
    [second] = [one for one in invoices(sandbox, SHOP) if one.status == "open"]
    assert second.amount_due == 60
    pay(sandbox, second.id, SHOP)
    assert news.poll(world)[-1] == "acme: the platform kept 0.60 USD"
    rows = reconcile(world, records.drafts(books.engine, "test", every=True))
    assert [row.differences for row in rows] == [(), (), ()]


def test_news_is_taken_of_the_accounts_that_sell_here_and_looked_up_in_them(books, world, sandbox):
    put(world, "acme", stripe_account=SHOP)
    put(world, "globex", stripe_account=OTHER)
    for name in ("acme", "globex"):
        books.rating(name, [("usage", "input", "10", 5000)])
    run(world)
    [mine], [theirs] = invoices(sandbox, SHOP), invoices(sandbox, OTHER)
    pay(sandbox, mine.id, SHOP)

    def event(number, account, invoice):
        about = {
            "id": f"evt_{number}",
            "type": "invoice.paid",
            "created": 1_793_620_800,
            "data": {"object": {"id": invoice}},
        }
        return json.dumps(about | ({"account": account} if account else {}))

    receive = (books.engine, "test")
    assert not news.receive(*receive, event(1, "acct_1STRANGER00000", mine.id), world.now())
    assert news.receive(*receive, event(2, OTHER, mine.id), world.now())  # another seller names our invoice
    assert news.receive(*receive, event(3, None, mine.id), world.now())  # and so does the platform
    assert [line.rpartition(": ")[2] for line in news.process(world)] == ["is not in Stripe (any more)"] * 2
    assert news.receive(*receive, event(4, SHOP, mine.id), world.now())
    assert news.process(world) == [f"invoice.paid {mine.id}: finalised -> paid"]
    states = {row["stripe_invoice_id"]: row["state"] for row in books.rows(tables.invoices)}
    assert states == {mine.id: "paid", theirs.id: "finalised"}


def test_what_is_in_one_account_does_not_move_to_another(books, world):
    books.rating("acme", [("usage", "input", "10", 5000)])
    run(world)
    for customer in ("acme", ""):
        with pytest.raises(BillingError, match="acme is in Stripe already"):
            put(world, customer, stripe_account=SHOP)
    registry.add_customer(books.engine, "test", "globex", now=world.now())
    put(world, "globex", stripe_account=SHOP)
    assert policies.load(books.engine, "test", "globex").stripe_account == SHOP
    with pytest.raises(BillingError, match="is the id of a connected account"):
        put(world, "globex", stripe_account="cus_1")


def test_a_top_up_is_paid_to_the_connected_account_less_the_fee(books, world, sandbox):
    put(world, stripe_account=SHOP, application_fee="10%", top_up_amounts="USD=50")
    world = world.of("")
    registry.add_customer(books.engine, "test", "acme", currency="USD", now=world.now())
    page = top_ups.start(world, "acme", 5000, "https://example.com/", who="olga")
    name, _, query = page.url.rpartition("/")[2].partition("?")
    assert query == f"account={SHOP}"
    opener = urllib.request.build_opener(_Stay)
    opener.open(urllib.request.Request(f"{sandbox.url}/_sandbox/checkout/{name}?{query}", data=b"")).close()
    assert news.poll(world) == ["acme: 50.00 USD of credits bought"]
    assert balances(books) == {"application_fees": 500, "cash": 4500, "deferred_credits": -5000}
    [row] = books.rows(tables.credit_purchases)
    refund = {"payment_intent": row["payment_intent"], "amount": 1000}
    world.gateway.call(lambda client: client.v1.refunds.create(refund))
    assert news.poll(replace(world, who="poll")) == [
        "acme: 10.00 USD of a top-up were refunded; the platform gave 1.00 USD of its fee back"
    ]
    # a fifth of the payment went back, and so a fifth of the fee
    assert balances(books) == {"application_fees": 400, "cash": 3600, "deferred_credits": -4000}
    assert news.poll(world) == []
    dispute = post(sandbox, f"dispute/{row['payment_intent']}")["id"]  # of the other 40.00
    assert news.poll(world) == ["acme: 40.00 USD of a top-up were disputed (fraudulent)"]
    post(sandbox, f"dispute/{dispute}/lost")
    assert news.poll(world) == ["acme: the platform gave 4.00 USD of its fee back"]
    assert balances(books) == {}
    assert news.poll(world) == []


def test_a_run_that_dies_at_any_commit_of_a_paid_top_up_posts_its_money_and_its_fee_once(books, world, sandbox):
    put(world, stripe_account=SHOP, application_fee="10%", top_up_amounts="USD=50")
    world, left = world.of(""), [0]

    def die(_connection):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    def settle(name):
        [row] = [row for row in purchases.unsettled(books.engine, "test", world.now()) if row["customer_id"] == name]
        return top_up_news.settle(world, row)

    event.listen(books.engine, "commit", die)
    opener = urllib.request.build_opener(_Stay)
    for number in range(1, 7):  # the payment's name, the credits, the fee, the notice, that it is paid, fees given back
        registry.add_customer(books.engine, "test", f"c{number}", currency="USD", now=world.now())
        page = top_ups.start(world, f"c{number}", 5000, "https://example.com/", who="olga").url.rpartition("/")[2]
        opener.open(f"{sandbox.url}/_sandbox/checkout/{page}", data=b"").close()
        left[0] = number
        with pytest.raises(KeyboardInterrupt):
            settle(f"c{number}")
        settle(f"c{number}")
        expected = {"application_fees": 500, "cash": 4500, "deferred_credits": -5000}
        assert balances(books) == {account: amount * number for account, amount in expected.items()}


class _Stay(urllib.request.HTTPRedirectHandler):
    def http_error_303(self, request, reply, *_rest):
        return reply
