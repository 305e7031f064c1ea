"""Disputes of invoices' payments: recorded, posted once each, shown; real SDK over HTTP, in any order of news."""

import json
import random
import urllib.request
from datetime import timedelta

import pytest
from metered import NOVEMBER, OCTOBER, Metered
from sqlalchemy import func, select, text
from typer.testing import CliRunner

from meterhouse_billing import accounts, disputes, invoice_disputes, news, records
from meterhouse_billing.commands import bill as commands
from meterhouse_billing.credits_commands import credits as credit_commands
from meterhouse_billing.reconcile import reconcile
from meterhouse_billing.run import bill
from meterhouse_store import tables
from meterhouse_store.sql import begin_write, open_engine


def post(sandbox, path):
    with urllib.request.urlopen(f"{sandbox.url}/_sandbox/{path}", data=b"") as reply:
        return reply.read().decode()


def paid(books, world, sandbox):
    """An invoice of 50.00 that is paid; its payment."""
    books.rating("acme", [("usage", "input", "10", 5000)], stated=False)
    list(bill(world, records.drafts(books.engine, "test"), approve=True))
    [invoice] = sandbox.client.v1.invoices.list({"limit": 1}).data
    post(sandbox, f"pay/{invoice.id}")
    news.poll(world)
    [payment] = sandbox.client.v1.invoice_payments.list({"invoice": invoice.id}).data
    return payment.payment.payment_intent


def balances(books):
    entries = tables.ledger_entries
    query = select(entries.c.account, func.sum(entries.c.amount_minor)).group_by(entries.c.account)
    with books.engine.connect() as connection:
        return {account: amount for account, amount in connection.execute(query) if amount}


def owed(world):
    [account] = accounts.compare(world, reconcile(world, records.drafts(world.engine, "test", every=True)))
    return account


AS_PAID = {"cash": 5000, "revenue": -5000}
TAKEN = {"receivable": 5000, "revenue": -5000}


@pytest.mark.parametrize("books", ["sqlite", "postgres"], indirect=True)
@pytest.mark.parametrize(("decision", "after"), [("won", AS_PAID), ("lost", TAKEN)])
def test_money_that_a_bank_takes_is_owed_again_and_is_back_when_the_dispute_is_won(
    books, world, sandbox, decision, after
):
    intent = paid(books, world, sandbox)
    dispute = json.loads(post(sandbox, f"dispute/{intent}"))["id"]
    assert [it.code for it in owed(world).differences] == ["dispute_behind"]
    [said] = news.poll(world)
    assert said == "acme: 50.00 USD of invoice SANDBOX-0001 are disputed (fraudulent): needs_response"
    assert news.poll(world) == []
    assert balances(books) == TAKEN
    assert (owed(world).ledger_minor, owed(world).disputed_minor, owed(world).differences) == (5000, 5000, ())
    [invoice] = books.rows(tables.invoices)
    assert invoice["state"] == "paid"
    post(sandbox, f"dispute/{dispute}/{decision}")
    assert news.poll(world) == [
        f"acme: 50.00 USD of invoice SANDBOX-0001 are disputed (fraudulent): {decision}",
    ]
    assert news.poll(world) == []
    assert balances(books) == after
    assert owed(world).differences == ()


@pytest.mark.parametrize("decision", ["won", "lost"])
@pytest.mark.parametrize("seed", range(4))
def test_news_of_a_dispute_ends_the_same_in_any_order_and_however_often(books, world, sandbox, decision, seed):
    intent, chance = paid(books, world, sandbox), random.Random(seed)
    dispute = json.loads(post(sandbox, f"dispute/{intent}"))["id"]
    if seed % 2:  # its beginning was seen, or all of it is seen afterwards only
        news.poll(world)
    post(sandbox, f"dispute/{dispute}/{decision}")
    every = [
        {"id": f"evt_{number}", "type": f"charge.dispute.{kind}", "created": 1_793_620_800, "data": {"object": about}}
        for number, (kind, about) in enumerate(
            ((kind, {"id": dispute, "object": "dispute", "payment_intent": intent}))
            for kind in ("created", "funds_withdrawn", "updated", "closed", "funds_reinstated")
        )
    ] * 2
    chance.shuffle(every)
    for event in every:
        news.receive(books.engine, "test", json.dumps(event), world.now())
        if chance.random() < 0.5:
            news.process(world)
    news.process(world)
    assert balances(books) == (AS_PAID if decision == "won" else TAKEN)
    assert [row["status"] for row in books.rows(tables.disputes)] == [decision]
    assert news.poll(world) == []


def test_an_inquiry_takes_nothing_and_an_answer_that_comes_late_undoes_nothing(books, world, sandbox):
    intent = paid(books, world, sandbox)
    dispute = json.loads(post(sandbox, f"dispute/{intent}"))["id"]
    early = sandbox.client.v1.disputes.retrieve(dispute).to_dict()
    post(sandbox, f"dispute/{dispute}/warning_needs_response")
    news.poll(world)
    assert balances(books) == AS_PAID
    post(sandbox, f"dispute/{dispute}/won")
    news.poll(world)
    with begin_write(books.engine) as connection:
        assert not disputes.keep(connection, "test", "acme", early, world.now())
    assert [row["status"] for row in books.rows(tables.disputes)] == ["won"]


def test_a_dispute_that_goes_on_is_looked_at_until_it_is_decided(books, world, sandbox):
    intent = paid(books, world, sandbox)
    body = json.dumps({"now": world.now().timestamp()}).encode()
    urllib.request.urlopen(
        urllib.request.Request(f"{sandbox.url}/_sandbox/clock", body, {"content-type": "application/json"})
    ).close()
    dispute = json.loads(post(sandbox, f"dispute/{intent}"))["id"]
    news.poll(world)
    later = type(world)(world.engine, world.gateway, "test", "anna", lambda: world.now() + timedelta(days=60))
    post(sandbox, f"dispute/{dispute}/won")
    [said] = invoice_disputes.record(later)
    assert said.endswith("won") and balances(books) == AS_PAID


def test_a_dispute_of_a_metered_invoice_is_the_same(books, sandbox):
    metered = Metered(books.engine, sandbox.url)
    metered.customer("acme")
    metered.setup()
    metered.truth.use("acme", "documents", OCTOBER, 250)
    metered.sync()
    metered.at(NOVEMBER + timedelta(hours=2))
    [invoice] = metered.client.v1.invoices.list({"limit": 1}).data
    post(sandbox, f"pay/{invoice.id}")
    news.poll(metered.world)
    [payment] = metered.client.v1.invoice_payments.list({"invoice": invoice.id}).data
    post(sandbox, f"dispute/{payment.payment.payment_intent}")
    [said] = news.poll(metered.world)
    assert said.startswith("acme: 5.00 USD of invoice SANDBOX-")
    assert balances(books) == {}  # 5.00 were paid of what nobody rated here, and taken back


def test_disputes_are_listed_with_the_invoices_and_not_with_the_top_ups(books, world, sandbox, monkeypatch):
    post(sandbox, f"dispute/{paid(books, world, sandbox)}")
    news.poll(world)
    monkeypatch.setenv("METERHOUSE_DATA", str(books.settings.data))
    monkeypatch.setenv("METERHOUSE_NAMESPACE", "test")
    done = CliRunner().invoke(commands, ["status"])
    assert done.exit_code == 0, done.exception
    told = done.stdout
    assert "Payments that banks took back or ask about" in told
    assert "fraudulent" in told and "needs_response" in told
    [row] = json.loads(CliRunner().invoke(commands, ["status", "--json"]).stdout)["disputes"]
    assert (row["customer_id"], row["amount_minor"], row["number"]) == ("acme", 5000, "SANDBOX-0001")
    assert json.loads(CliRunner().invoke(credit_commands, ["top-ups", "--json"]).stdout)["disputes"] == []


@pytest.mark.parametrize("books", ["sqlite", "postgres"], indirect=True)
@pytest.mark.parametrize("before", ["a table without the column", "no table"])
def test_a_database_of_version_6_learns_of_which_invoice_a_dispute_is(books, before):
    with books.engine.begin() as connection:
        connection.execute(
            text(
                "DROP TABLE disputes" if before == "no table" else "ALTER TABLE disputes DROP COLUMN stripe_invoice_id"
            )
        )
        connection.execute(text("UPDATE schema_version SET version = 6"))
    engine = open_engine(books.settings)
    assert disputes.listed(engine, "test") == []
    engine.dispose()
