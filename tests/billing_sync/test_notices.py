"""Notices: who is told what, in which form, how often; real SMTP server, real HTTP endpoint, both databases."""

import base64
import email
import email.policy
import hashlib
import hmac
import json
import socket
import threading
import urllib.request
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from aiosmtpd.controller import Controller
from sqlalchemy import insert, select, update
from typer.testing import CliRunner

from meterhouse_billing import (
    credit_records,
    invoice_notices,
    news,
    notice_sending,
    notice_texts,
    notices,
    payment_pauses,
    policies,
    records,
)
from meterhouse_billing.credit_run import credit
from meterhouse_billing.invoice_notices import NoticeSettings
from meterhouse_billing.notice_commands import notices as command
from meterhouse_billing.notice_sending import Sender, send
from meterhouse_billing.notices import Notice
from meterhouse_billing.payment_pauses import PauseSettings
from meterhouse_billing.run import bill
from meterhouse_store import budgets, registry, sql_migrations, tables
from meterhouse_store.brand import Brand
from meterhouse_store.mail import MailSettings
from meterhouse_store.registry import RegistryError
from meterhouse_store.settings import Settings
from meterhouse_store.sql import begin_write, open_engine

NOW = datetime(2026, 11, 2, 8, tzinfo=UTC)
PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 40
PAUSED = {"agent_id": "", "reason": "operator", "since": "2026-11-02T07:59:00+00:00", "why": "key <leaked>"}


@pytest.fixture(params=["sqlite", "postgres"])
def engine(request, sqlite_copy, tmp_path):
    url = (
        sqlite_copy(tmp_path / "m.db") if request.param == "sqlite" else request.getfixturevalue("postgres_schema_url")
    )
    made = open_engine(Settings(data=tmp_path, namespace="test", sql_url=url))
    registry.ensure_namespace(made, "test", now=NOW)
    registry.add_customer(made, "test", "acme", email="olga@acme.example", now=NOW)
    yield made
    made.dispose()


class Inbox:
    """Keeps what arrives; answers DATA with a line of its own where it has one."""

    def __init__(self):
        self.answer, self.messages = "250 OK", []

    async def handle_DATA(self, server, session, envelope):
        if self.answer == "250 OK":
            self.messages.append(email.message_from_bytes(envelope.content, policy=email.policy.default))
        return self.answer


@pytest.fixture
def inbox():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    box = Inbox()
    controller = Controller(box, hostname="127.0.0.1", port=port)
    controller.start()
    box.url = f"smtp://127.0.0.1:{port}"
    yield box
    controller.stop()


@contextmanager
def endpoint(*statuses):
    """A webhook on this machine that answers so, and 200 from then on; what it got is in `got`."""
    answers = list(statuses)

    class Door(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            server.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(answers.pop(0) if answers else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Door)
    server.got = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def tell(engine, *causes, kind="paused", customer="acme", facts=PAUSED, now=NOW):
    told = [Notice("test", customer, kind, (cause,), f"{customer}: {cause}", facts) for cause in causes]
    with begin_write(engine) as connection:
        return notices.keep(connection, told, now)


def sender(engine, inbox=None, brand=None):
    settings = MailSettings(smtp_url=inbox.url if inbox else "", mail_from="billing@operator.example")
    return Sender(engine, "test", settings, brand or Brand(name="Acme AI"))


def states(engine):
    with engine.connect() as connection:
        table = tables.notice_deliveries
        query = select(table.c.address, table.c.state, table.c.attempts).order_by(table.c.address, table.c.delivery_id)
        return [tuple(row) for row in connection.execute(query)]


def test_a_notice_is_mailed_once_in_text_and_html_under_the_operator_s_name_logo_and_colour(engine, inbox, tmp_path):
    (tmp_path / "logo.png").write_bytes(PNG)
    brand = Brand(name="Acme AI", colour="#aa0000", logo=tmp_path / "logo.png", support="help@operator.example")
    assert tell(engine, "one") == 1 and tell(engine, "one") == 0
    assert [it.state for it in send(sender(engine, inbox, brand), NOW)] == ["sent"]
    assert list(send(sender(engine, inbox, brand), NOW + timedelta(days=9))) == []
    (found,) = inbox.messages
    assert (found["To"], found["Subject"]) == ("olga@acme.example", "Acme AI: Model calls are paused")
    assert found["Message-ID"].startswith("<") and found["Message-ID"].endswith("@operator.example>")
    text = found.get_body(("plain",)).get_content()
    assert "Model calls of acme are paused since 2026-11-02 07:59 UTC." in text and "Said    key <leaked>" in text
    html = found.get_body(("html",)).get_content()
    assert "#aa0000" in html and "key &lt;leaked&gt;" in html and "help@operator.example" in html
    (image,) = [part for part in found.walk() if part.get_content_type() == "image/png"]
    assert image.get_content() == PNG and f"cid:{image['Content-ID'][1:-1]}" in html


def test_a_webhook_is_signed_over_id_time_and_raw_body_and_retried_under_the_same_id(engine):
    with endpoint(503, 302) as door:
        url = f"http://127.0.0.1:{door.server_port}/hook"
        made = notices.add_channel(engine, "test", "", url, ["paused"], who="ann", now=NOW)
        tell(engine, "one")
        tell(engine, "two", kind="budget_cap")
        moments = [NOW, NOW + timedelta(seconds=59), NOW + timedelta(minutes=1), NOW + timedelta(minutes=6)]
        outcomes = [[it.state for it in send(sender(engine), moment)] for moment in moments]
        assert outcomes == [["pending"], [], ["pending"], ["sent"]]
    headers, body = door.got[2]
    assert len({got["webhook-id"] for got, _ in door.got}) == 1
    key = base64.b64decode(made.secret.removeprefix("whsec_"))
    signed = f"{headers['webhook-id']}.{int(moments[3].timestamp())}.".encode() + body
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}" and len(key) == 32
    sent = json.loads(body)
    assert (sent["type"], sent["customer_id"], sent["data"]) == ("paused", "acme", PAUSED)


def test_what_is_never_taken_has_failed_after_eight_attempts_and_can_be_begun_anew(engine, inbox):
    tell(engine, "one")
    inbox.answer = "451 later"
    moment, found = NOW, []
    for _ in range(9):
        found += [it.state for it in send(sender(engine, inbox), moment)]
        moment += timedelta(days=1)
    assert found == ["pending"] * 7 + ["failed"]
    assert states(engine) == [("olga@acme.example", "failed", 8)]
    inbox.answer = "250 OK"
    (delivery,) = notices.listed(engine, "test", state="failed")[0]["deliveries"]
    assert "451 later" in delivery["last_error"]
    assert notices.retry(engine, "test", delivery["delivery_id"][:8], moment) == [delivery["delivery_id"]]
    assert [it.state for it in send(sender(engine, inbox), moment)] == ["sent"]
    assert inbox.messages[0]["Message-ID"] == f"<{delivery['delivery_id']}@operator.example>"
    tell(engine, "two")
    inbox.answer = "550 never"
    assert [it.state for it in send(sender(engine, inbox), moment)] == ["failed"]  # there is no point in asking again


def test_an_attempt_that_died_is_made_again_and_two_senders_make_it_once(engine, inbox, monkeypatch):
    tell(engine, "one")
    waiting = sender(engine, inbox)
    both_see = notice_sending.due(waiting, NOW)
    inbox.answer = "451 later"
    with monkeypatch.context() as both:
        both.setattr(notice_sending, "due", lambda *_: both_see)
        assert [it.state for it in send(waiting, NOW)] == ["pending"] and list(send(waiting, NOW)) == []
    inbox.answer = "250 OK"
    assert [it.state for it in send(waiting, NOW + timedelta(minutes=1))] == ["sent"]
    tell(engine, "two")
    monkeypatch.setattr("meterhouse_store.mail.send", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        list(send(waiting, NOW))
    monkeypatch.undo()
    assert list(send(waiting, NOW)) == []
    assert [it.state for it in send(waiting, NOW + timedelta(minutes=1))] == ["sent"]
    assert len(inbox.messages) == 2


def test_channels_are_checked_and_new_ones_get_nothing_old(engine):
    tell(engine, "one")
    notices.add_channel(engine, "test", "acme", "ops@acme.example", [], who="ann", now=NOW)
    assert [address for address, _, _ in states(engine)] == ["olga@acme.example"]
    registry.add_customer(engine, "test", "globex", now=NOW)
    tell(engine, "two")
    tell(engine, "three", customer="globex")
    assert [it[0] for it in states(engine)] == ["olga@acme.example", "olga@acme.example", "ops@acme.example"]
    for address, kinds, words in (
        ("ops@acme.example", [], "already"),
        ("http://elsewhere.example/x", ["nonsense"], "no notices nonsense .*https://"),
        ("nobody", [], "neither an e-mail"),
    ):
        with pytest.raises(RegistryError, match=words):
            notices.add_channel(engine, "test", "acme", address, kinds, who="ann", now=NOW)
    notices.remove_channel(engine, "test", "acme", "ops@acme.example", NOW)
    with pytest.raises(RegistryError, match="is no channel"):
        notices.remove_channel(engine, "test", "acme", "ops@acme.example", NOW)


# ---- invoices


def invoiced(books, state, **changes):
    """An invoice of acme over 12.00, made on the first of November."""
    rating_id = books.rating("acme", [("usage", "input", "100", 1000), ("flat", "", "1", 200)])
    row = {
        "invoice_id": "inv-1", "namespace": "test", "customer_id": "acme", "rating_id": rating_id,
        "period_start": datetime(2026, 10, 1, tzinfo=UTC), "period_end": datetime(2026, 11, 1, tzinfo=UTC),
        "state": state, "currency": "USD", "total_minor": 1200, "number": "A-1", "hosted_url": "https://pay.example/1",
        "created_at": datetime(2026, 11, 1, tzinfo=UTC),
    }  # fmt: skip
    lines = [
        {
            "invoice_id": "inv-1",
            "position": at,
            "line_id": f"{rating_id}-{at}",
            "description": words,
            "quantity": Decimal(1),
            "amount_minor": amount,
        }
        for at, (words, amount) in enumerate((("Input", 1000), ("Fee", 200)))
    ]
    with begin_write(books.engine) as connection:
        connection.execute(insert(tables.invoices).values(**row | changes))
        for line in lines:
            connection.execute(insert(tables.invoice_lines).values(**line))


def kinds(books, now):
    found = invoice_notices.of_invoices(books.engine, "test", NoticeSettings(days_to_look=5), now)
    with begin_write(books.engine) as connection:
        notices.keep(connection, found, now)
    return {it.kind: it for it in found}


def become(books, **changes):
    with begin_write(books.engine) as connection:
        connection.execute(update(tables.invoices).values(**changes))


def test_customers_are_told_before_they_are_charged_around_the_due_day_and_when_it_is_paid(books, inbox):
    invoiced(books, "draft")
    registry.add_customer(books.engine, "test", "acme", email="olga@acme.example", now=NOW)
    found = kinds(books, NOW)
    assert set(found) == {"pre_charge"} and found["pre_charge"].facts["look_until"][:10] == "2026-11-06"
    list(send(sender(books.engine, inbox), NOW))
    text = inbox.messages[0].get_body(("plain",)).get_content().replace("\r\n", "\n")
    assert "12.00 USD will be charged" in text and "Until 2026-11-06 there is time" in text
    assert "Input  10.00\nFee    2.00\nTotal  12.00 USD" in text
    become(books, state="finalised", finalised_at=NOW, remaining_minor=1200)
    told = {}
    for day in (0, 26, 27, 29, 30, 31, 37, 44, 80):  # due after 30 days
        told[day] = set(kinds(books, NOW + timedelta(days=day)))
    assert told == {
        0: {"invoice"}, 26: set(), 27: {"payment_due"}, 29: {"payment_due"}, 30: set(),
        31: {"overdue"}, 37: {"overdue"}, 44: {"overdue"}, 80: set(),
    }  # fmt: skip
    with books.engine.connect() as connection:
        rows = connection.execute(select(tables.notices.c.kind)).scalars().all()
    assert sorted(rows) == ["invoice", "overdue", "overdue", "overdue", "payment_due", "pre_charge"]
    arrived(books, 1200, NOW + timedelta(days=45))
    assert set(kinds(books, NOW + timedelta(days=46))) == {"receipt"}


def arrived(books, amount_minor, at):
    """The invoice is paid, with so much money."""
    become(books, state="paid", paid_at=at)
    [invoice] = books.rows(tables.invoices)
    row = {name: invoice[name] for name in ("namespace", "customer_id", "invoice_id", "currency")}
    with begin_write(books.engine) as connection:
        connection.execute(insert(tables.payments).values(**row, payment_id="p", amount_minor=amount_minor, paid_at=at))


def test_what_is_told_of_an_invoice_is_what_stripe_asks_for_tax_included(books):
    invoiced(books, "draft", stripe_total_minor=1428)
    assert kinds(books, NOW)["pre_charge"].facts["total"] == "14.28"
    become(books, state="finalised", finalised_at=NOW, remaining_minor=1428)
    invoice = kinds(books, NOW)["invoice"]
    assert invoice.subject == "acme: invoice, 14.28 USD"
    said = notice_texts.of("invoice", "acme", "", invoice.facts, Brand()).text
    assert "Input  10.00\nFee    2.00\nTax    2.28\nTotal  14.28 USD" in said
    assert kinds(books, NOW + timedelta(days=31))["overdue"].facts["total"] == "14.28"


def sandbox_post(sandbox, path, body=b""):
    urllib.request.urlopen(urllib.request.Request(f"{sandbox.url}/_sandbox/{path}", body)).close()


def run(world):
    """Invoices and credit notes to Stripe, and its news back."""
    list(bill(world, records.drafts(world.engine, "test"), approve=True))
    list(credit(world, credit_records.notes(world.engine, "test", only_open=True), approve=True))
    news.poll(world)


def reminded(books, sandbox):
    """What the latest invoice's reminders are over, and what Stripe asks for, both in minor units."""
    invoice = sandbox.client.v1.invoices.list().data[0]
    known = next(row for row in books.rows(tables.invoices) if row["stripe_invoice_id"] == invoice.id)
    found = set()
    for day, kind in ((0, "payment_failed"), (28, "payment_due"), (31, "overdue")):
        told = invoice_notices.of_invoices(books.engine, "test", NoticeSettings(), NOW + timedelta(days=day))
        found |= {it.facts["total"] for it in told if it.kind == kind and it.cause[0] == known["invoice_id"]}
    return {int(Decimal(it) * 100) for it in found}, invoice.amount_remaining


@pytest.mark.parametrize("books", ["sqlite", "postgres"], indirect=True)
def test_people_are_reminded_of_what_stripe_still_asks_for(books, sandbox, world):
    """The customer's balance pays a part, a credit note takes off another."""
    sandbox_post(sandbox, "clock", json.dumps({"now": NOW.timestamp()}).encode())
    october = books.rating("acme", [("usage", "input", "100", 1200)])
    run(world)
    [invoice] = sandbox.client.v1.invoices.list().data
    sandbox_post(sandbox, f"pay/{invoice.id}")
    books.correction(october, [(0, -300)], "late")
    run(world)  # 3.00 are on the balance
    november = books.rating("acme", [("usage", "input", "100", 1000)], month=11)
    run(world)
    assert reminded(books, sandbox) == ({700}, 700)
    sandbox_post(sandbox, f"fail/{sandbox.client.v1.invoices.list().data[0].id}")
    news.poll(world)
    assert kinds(books, NOW)["payment_failed"].facts["total"] == "7.00"
    books.correction(november, [(0, -200)], "later")
    run(world)
    assert reminded(books, sandbox) == ({500}, 500)
    sandbox_post(sandbox, f"pay/{sandbox.client.v1.invoices.list().data[0].id}")
    news.poll(world)
    assert reminded(books, sandbox) == (set(), 0)
    assert sorted(it["amount_minor"] for it in books.rows(tables.payments)) == [500, 1200]


def test_people_are_reminded_of_what_an_earlier_invoice_left_on_the_balance_and_of_nothing_that_it_paid(
    books, sandbox, world
):
    """0.30 are too little to be charged: Stripe asks for them with the next invoice. What credits pay is paid."""
    sandbox_post(sandbox, "clock", json.dumps({"now": NOW.timestamp()}).encode())
    books.rating("acme", [("usage", "input", "100", 30)])
    run(world)
    assert reminded(books, sandbox) == (set(), 0)
    books.rating("acme", [("usage", "input", "100", 1000)], month=11)
    run(world)
    assert reminded(books, sandbox) == ({1030}, 1030)
    paid = books.rating("globex", [("usage", "input", "100", 1200)])
    run(world)
    sandbox_post(sandbox, f"pay/{sandbox.client.v1.invoices.list().data[0].id}")
    books.correction(paid, [(0, -1200)], "all")
    run(world)
    books.rating("globex", [("usage", "input", "100", 900)], month=11)
    run(world)
    assert sandbox.client.v1.invoices.list().data[0].status == "paid"
    assert reminded(books, sandbox) == (set(), 0)


def test_reminders_of_an_older_database_are_less_what_credit_notes_took_off(books, sandbox, world):
    sandbox_post(sandbox, "clock", json.dumps({"now": NOW.timestamp()}).encode())
    rating_id = books.rating("acme", [("usage", "input", "100", 1200)])
    run(world)
    books.correction(rating_id, [(0, -300)])
    run(world)
    become(books, remaining_minor=None)  # as it was before
    with begin_write(books.engine) as connection:
        sql_migrations.fill(connection, 8)
    assert reminded(books, sandbox) == ({900}, 900)


def test_a_receipt_is_over_what_arrived_and_there_is_none_for_what_did_not(books):
    """An invoice that moved to the customer's balance, or that credit notes or the balance paid, is paid in Stripe."""
    invoiced(books, "paid", finalised_at=NOW, paid_at=NOW, stripe_total_minor=1200)
    assert set(kinds(books, NOW)) == {"invoice"}
    arrived(books, 700, NOW)
    receipt = kinds(books, NOW)["receipt"]
    assert (receipt.facts["total"], receipt.subject) == ("7.00", "acme: receipt, 7.00 USD")
    said = notice_texts.of("receipt", "acme", "", receipt.facts, Brand()).text
    assert "7.00 USD for invoice A-1 of acme arrived" in said


@pytest.mark.parametrize(
    ("state", "remaining_minor", "said"),
    [
        ("finalised", 1200, ", due on 2026-12-02."),
        ("finalised", 450, ". 4.50 USD are left to pay, due on 2026-12-02."),
        ("finalised", 0, ". Nothing is left to pay."),
        ("paid", None, ". Nothing is left to pay."),
        ("finalised", None, ", due on 2026-12-02."),  # a database of before
    ],
)
def test_an_invoice_is_told_with_what_is_left_to_pay_of_it(books, state, remaining_minor, said):
    paid_at = NOW if state == "paid" else None
    invoiced(books, state, finalised_at=NOW, paid_at=paid_at, stripe_total_minor=1200, remaining_minor=remaining_minor)
    facts = kinds(books, NOW)["invoice"].facts
    told = notice_texts.of("invoice", "acme", "", facts, Brand()).text
    assert f"Invoice A-1 to acme for 2026-10-01 to 2026-11-01{said}\n" in told
    assert "12.00 USD" in told


def test_an_invoice_of_a_customer_in_tokyo_is_told_with_its_own_dates(books):
    start, end = datetime(2026, 9, 30, 15, tzinfo=UTC), datetime(2026, 10, 31, 15, tzinfo=UTC)
    registry.add_customer(books.engine, "test", "acme", time_zone="Asia/Tokyo", now=NOW)
    invoiced(books, "finalised", finalised_at=datetime(2026, 11, 1, 20, tzinfo=UTC), period_start=start, period_end=end)
    facts = kinds(books, NOW)["invoice"].facts
    said = notice_texts.of("invoice", "acme", "", facts, Brand()).text
    # Finalised on the second of November in Tokyo, due 30 days later.
    assert "for 2026-10-01 to 2026-11-01 Asia/Tokyo, due on 2026-12-02." in said


def test_no_invoice_is_approved_by_rule_while_the_customer_may_look_at_it(books, sandbox, world, monkeypatch):
    monkeypatch.setenv("METERHOUSE_DAYS_TO_LOOK", "2")
    books.rating("acme", [("usage", "input", "100", 1000)])
    policies.change(books.engine, "test", "", {"approval": "automatic"}, who="ann", why="agreed", now=NOW)

    def run(at):
        return [
            str(it) for it in bill(replace(world, now=lambda: at), records.drafts(books.engine, "test"), approve=False)
        ]

    assert run(NOW)[-1] == "acme: the customer may look at it until 2026-11-04 08:00 UTC"
    assert run(NOW + timedelta(hours=47))[-1] == "acme: the customer may look at it until 2026-11-04 08:00 UTC"
    assert "finalised" in run(NOW + timedelta(days=2))[-1]


def test_a_failed_payment_pauses_after_the_days_set_and_payment_lifts_only_that(books):
    invoiced(books, "failed", finalised_at=NOW, remaining_minor=1200)
    transition = {"transition_id": "t", "invoice_id": "inv-1", "from_state": "finalised", "to_state": "failed"}
    with begin_write(books.engine) as connection:
        connection.execute(
            insert(tables.invoice_transitions).values(**transition, who="stripe", why="card", changed_at=NOW)
        )
    assert "payment_failed" in kinds(books, NOW)
    later = NOW + timedelta(days=3)
    budgets.pause(books.engine, "test", "acme", who="ann", why="leak", now=NOW)
    assert payment_pauses.follow(books.engine, "test", PauseSettings(), later) == []
    set_to = PauseSettings(pause_after_failed_payment_days=3)
    assert payment_pauses.follow(books.engine, "test", set_to, later - timedelta(seconds=1)) == []
    assert payment_pauses.follow(books.engine, "test", set_to, later) == [
        "acme is paused: a payment failed on 2026-11-02"
    ]
    assert payment_pauses.follow(books.engine, "test", set_to, later) == []
    become(books, state="paid", paid_at=later)
    assert payment_pauses.follow(books.engine, "test", PauseSettings(), later) == [
        "acme goes on: no payment of it stands as failed"
    ]
    assert [it.reason for it in budgets.pauses(books.engine, "test")] == ["operator"]


def test_the_commands_add_send_list_and_retry(books, monkeypatch):
    monkeypatch.setenv("METERHOUSE_DATA", str(books.settings.data))
    monkeypatch.setenv("METERHOUSE_NAMESPACE", "test")
    registry.add_customer(books.engine, "test", "acme", now=NOW)

    def call(*arguments, code=0):
        done = CliRunner().invoke(command, list(arguments))
        assert done.exit_code == code, done.output
        return done.stdout

    assert call("list") == "No notices.\n" and call("send") == "Nothing was due.\n"
    with endpoint() as door:
        url = f"http://127.0.0.1:{door.server_port}/hook"
        added = call("add", url, "--customer", "acme", "--kinds", "paused")
        assert f"{url} gets paused of acme." in added and "whsec_" in added
        assert "whsec_" not in call("channels", "--json") and url in call("channels")
        tell(books.engine, "one", now=datetime.now(UTC))
        assert f"would go to {url}: acme: one" in call("send", "--dry-run") and door.got == []
        assert call("send") == f"sent to {url}: acme: one\n1 sent.\n" and len(door.got) == 1
    listed = json.loads(call("list", "--json"))["notices"]
    assert [(it["kind"], it["deliveries"][0]["state"]) for it in listed] == [("paused", "sent")]
    with begin_write(books.engine) as connection:
        connection.execute(update(tables.notice_deliveries).values(state="failed", last_error="HTTP 500", attempts=8))
    assert "failed  http://" in call("list", code=3) and "after 8 attempts: HTTP 500" in call("list", code=3)
    assert call("retry") == "1 will be sent again.\n"
    assert call("remove", url, "--customer", "acme") == f"{url} gets nothing new.\n"
    call("retry", "abc", code=1)


def test_mail_that_waits_for_a_mail_server_is_not_called_nothing(books, monkeypatch):
    monkeypatch.setenv("METERHOUSE_DATA", str(books.settings.data))
    monkeypatch.setenv("METERHOUSE_NAMESPACE", "test")
    monkeypatch.delenv("METERHOUSE_SMTP_URL", raising=False)
    registry.add_customer(books.engine, "test", "acme", email="olga@acme.example", now=NOW)
    tell(books.engine, "one", "two", now=datetime.now(UTC) - timedelta(seconds=1))
    said = "2 e-mails due and not sent: METERHOUSE_SMTP_URL names no mail server.\n"
    for arguments in (["send", "--dry-run"], ["send"]):
        done = CliRunner().invoke(command, arguments)
        assert (done.exit_code, done.stdout) == (0, said)
    done = CliRunner().invoke(command, ["send", "--json"])
    assert json.loads(done.stdout) == {"deliveries": [], "without_mail_server": 2}
