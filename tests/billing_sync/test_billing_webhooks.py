"""The webhook endpoint and what comes of its events."""

import json
import random
import time
import urllib.error
import urllib.request

import pytest
import stripe
from sqlalchemy import func, select

from meterhouse_billing import news, records
from meterhouse_billing.run import bill
from meterhouse_billing.webhooks import MAX_BODY, Refused, application, verify
from meterhouse_sandbox.stripe_webhooks import signature
from meterhouse_store import tables

SECRET = "whsec_test"
NOON = 1_793_620_800


def post(url, body, header):
    request = urllib.request.Request(url + "/webhooks/stripe", data=body, headers={"Stripe-Signature": header})
    try:
        with urllib.request.urlopen(request) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.code, json.load(refusal)


def invoiced(books, world, customer_id="acme", amount=5000):
    """A finalised invoice; returns its id in Stripe."""
    books.rating(customer_id, [("usage", "input", "10", amount)])
    list(bill(world, records.drafts(books.engine, "test", customer_id=customer_id), approve=True))
    return next(row for row in books.rows(tables.invoices) if row["customer_id"] == customer_id)["stripe_invoice_id"]


def as_customer(sandbox, verb, stripe_id):
    with urllib.request.urlopen(f"{sandbox.url}/_sandbox/{verb}/{stripe_id}", data=b""):
        pass


def events(sandbox):
    return [json.dumps(event.to_dict()) for event in sandbox.client.v1.events.list({"limit": 100}).data]


def balance(books, account):
    entries = tables.ledger_entries
    with books.engine.connect() as connection:
        query = select(func.coalesce(func.sum(entries.c.amount_minor), 0)).where(entries.c.account == account)
        return connection.execute(query).scalar_one()


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (None, "signature"),
        ("nonsense", "signature"),
        (f"t={NOON},v1=é", "signature"),
        (signature(b"{}", "whsec_other", NOON), "signature"),
        (signature(b"{ }", SECRET, NOON), "signature"),  # of other bytes
        (signature(b"{}", SECRET, NOON - 301), "-301 s"),
        (signature(b"{}", SECRET, NOON + 301), r"\+301 s"),
    ],
)
def test_a_signature_that_is_wrong_old_or_from_the_future_is_refused(header, why):
    with pytest.raises(Refused, match=why):
        verify(b"{}", header, SECRET, NOON)


@pytest.mark.parametrize("skew_s", [-299, 0, 299])
def test_a_right_signature_within_five_minutes_is_taken(skew_s):
    assert verify(b"{}", signature(b"{}", SECRET, NOON + skew_s), SECRET, NOON) == "{}"


def test_bytes_that_are_no_text_are_refused():
    with pytest.raises(Refused):
        verify(b"\xff", signature(b"\xff", SECRET, NOON), SECRET, NOON)


def test_the_endpoint_stores_a_verified_event_once_and_refuses_the_rest(books, serve):
    event = {"id": "evt_1", "type": "customer.created", "created": 1, "data": {"object": {"id": "cus_1"}}}
    body = json.dumps(event).encode()
    now = int(time.time())
    with serve(application(books.engine, "test", SECRET, lambda: None)) as server:
        assert post(server.url, body, signature(body, SECRET, now)) == (200, {"received": True, "new": True})
        assert post(server.url, body, signature(body, SECRET, now)) == (200, {"received": True, "new": False})
        assert post(server.url, body, signature(body, "wrong", now))[0] == 400
        for junk in (
            b"[]",
            b"{}",
            b'{"id": 1, "type": "x", "created": 1, "data": {"object": {}}}',
            b'{"id": "e", "type": "x", "created": -1000000000000000000, "data": {"object": {}}}',
            b"{",
            b"[" * 100_000,
        ):
            assert post(server.url, junk, signature(junk, SECRET, now))[0] == 400
        large = b" " * (MAX_BODY + 1)
        assert post(server.url, large, signature(large, SECRET, now))[0] == 413
        with urllib.request.urlopen(server.url + "/healthz") as reply:
            assert json.load(reply) == {"status": "ok"}
    [row] = books.rows(tables.webhook_inbox)
    assert (row["event_id"], row["object_id"], row["processed_at"]) == ("evt_1", "cus_1", None)


def test_a_refused_delivery_is_one_line_of_the_log_with_what_to_check(books, serve, caplog):
    body = b"{}"
    with serve(application(books.engine, "test", SECRET, lambda: None)) as server:
        assert post(server.url, body, signature(body, "whsec_other", int(time.time())))[0] == 400
    [line] = [record.getMessage() for record in caplog.records if record.name == "meterhouse_billing.webhooks"]
    assert line.startswith("refused a delivery: the signature does not fit (")
    assert "is STRIPE_WEBHOOK_SECRET here what the sender signs with?" in line
    assert "\n" not in line


def test_the_sandbox_says_once_that_an_event_was_not_taken_and_why(books, tmp_path, serve, caplog, wait):
    from meterhouse_sandbox.stripe_server import application as stripe_sandbox

    def told():
        return [record.getMessage() for record in caplog.records if record.name == "meterhouse_sandbox.stripe_webhooks"]

    with serve(application(books.engine, "test", SECRET, lambda: None)) as endpoint:
        url = endpoint.url + "/webhooks/stripe"
        with serve(stripe_sandbox(tmp_path / "other", webhook_url=url, webhook_secret="whsec_other")) as server:
            client = stripe.StripeClient("sk_test_1", base_addresses={"api": server.url})
            client.v1.customers.create({"name": "Acme"})
            wait(lambda: [record for record in caplog.records if "refused a delivery" in record.getMessage()][2:])
    [line] = told()
    assert line.startswith("customer.created evt_")
    assert f"{url} did not take it: HTTP 400" in line
    assert "the signature does not fit" in line


def test_a_payment_moves_the_state_and_is_posted_once(books, sandbox, world):
    stripe_id = invoiced(books, world)
    as_customer(sandbox, "pay", stripe_id)
    for payload in events(sandbox):
        news.receive(books.engine, "test", payload, world.now())
    assert len(news.process(world)) == 5  # customer created; invoice created, updated, finalized, paid
    assert news.process(world) == []
    assert books.rows(tables.invoices)[0]["state"] == "paid"
    [payment] = books.rows(tables.payments)
    assert (payment["amount_minor"], payment["currency"], payment["customer_id"]) == (5000, "USD", "acme")
    assert (balance(books, "cash"), balance(books, "receivable"), balance(books, "revenue")) == (5000, 0, -5000)


@pytest.mark.parametrize("seed", range(5))
def test_duplicates_in_any_order_end_in_the_same_state(books, sandbox, world, seed):
    paid, failed, void = (invoiced(books, world, name) for name in ("paid", "failed", "void"))
    as_customer(sandbox, "fail", paid)
    as_customer(sandbox, "pay", paid)
    as_customer(sandbox, "fail", failed)
    sandbox.client.v1.invoices.void_invoice(void)
    deliveries = events(sandbox) * 3
    random.Random(seed).shuffle(deliveries)
    for payload in deliveries:
        news.receive(books.engine, "test", payload, world.now())
        news.process(world)
    states = {row["customer_id"]: row["state"] for row in books.rows(tables.invoices)}
    assert states == {"paid": "paid", "failed": "failed", "void": "void"}
    assert [payment["amount_minor"] for payment in books.rows(tables.payments)] == [5000]
    assert balance(books, "cash") == 5000


def test_an_answer_that_comes_late_does_not_take_back_that_an_invoice_is_paid(books, sandbox, world):
    stripe_id = invoiced(books, world)
    as_customer(sandbox, "fail", stripe_id)
    late = world.gateway.invoice(stripe_id)
    as_customer(sandbox, "pay", stripe_id)
    paid = world.gateway.invoice(stripe_id)
    for shown in (paid, late):
        records.take_over(books.engine, "test", shown, who="stripe", why="poll", now=world.now())
    [row] = books.rows(tables.invoices)
    assert (row["state"], row["paid_at"]) == ("paid", paid.paid_at)
    assert paid.paid_at is not None


def test_what_was_missed_is_found_by_polling(books, sandbox, world):
    stripe_id = invoiced(books, world)
    assert news.poll(world) == []
    as_customer(sandbox, "pay", stripe_id)
    assert news.poll(world) == [f"acme {stripe_id}: finalised -> paid"]
    assert news.poll(world) == []
    assert balance(books, "cash") == 5000


def test_invoices_of_others_are_left_alone(books, sandbox, world):
    customer = sandbox.client.v1.customers.create({"name": "Somebody"})
    sandbox.client.v1.invoices.create({"customer": customer.id})
    for payload in events(sandbox):
        news.receive(books.engine, "test", payload, world.now())
    assert sorted(outcome.partition(": ")[2] for outcome in news.process(world)) == [
        "ignored",
        "not an invoice of ours",
    ]


def test_a_small_amount_that_moved_to_the_balance_is_paid_with_the_next_invoice(books, sandbox, world):
    invoiced(books, world, amount=30)
    [row] = books.rows(tables.invoices)
    assert (row["state"], books.rows(tables.payments)) == ("paid", [])
    assert balance(books, "receivable") == 30


def test_the_sandbox_delivers_and_the_endpoint_does_the_rest(books, tmp_path, serve, sandbox, world, wait):
    """Sandbox -> signed webhook -> inbox -> fetch -> state and ledger, over HTTP all the way."""
    from dataclasses import replace

    from meterhouse_billing.gateway import connect
    from meterhouse_sandbox.stripe_server import application as stripe_sandbox

    own = []
    with serve(application(books.engine, "test", SECRET, lambda: own and news.process(own[0]))) as endpoint:
        url = endpoint.url + "/webhooks/stripe"
        with serve(stripe_sandbox(tmp_path / "other", webhook_url=url, webhook_secret=SECRET)) as server:
            environment = {"STRIPE_API_KEY": "sk_test_1", "METERHOUSE_STRIPE_URL": server.url}
            own.append(replace(world, gateway=connect(environment, live=False)))
            stripe_id = invoiced(books, own[0])
            with urllib.request.urlopen(f"{server.url}/_sandbox/pay/{stripe_id}", data=b""):
                pass
            wait(lambda: len(books.rows(tables.webhook_inbox)) == 5)
            wait(lambda: all(row["processed_at"] for row in books.rows(tables.webhook_inbox)))
    assert books.rows(tables.invoices)[0]["state"] == "paid"
    assert balance(books, "cash") == 5000
