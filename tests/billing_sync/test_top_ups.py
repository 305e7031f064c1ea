"""Top-ups: credits that a customer buys through Stripe, once each, taken back with the money; over HTTP, real SDK."""

import contextlib
import itertools
import json
import urllib.request
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import func, select
from sqlalchemy.event import listen, remove
from typer.testing import CliRunner

from meterhouse_billing import charge_rules, news, policies, purchases, top_up_charges, top_up_news, top_ups
from meterhouse_billing.charge_rules import Rule
from meterhouse_billing.credits_commands import credits as command
from meterhouse_billing.gateway import BillingError, StripeUnavailable
from meterhouse_billing.top_ups import TopUpRefused
from meterhouse_rating import credit_changes
from meterhouse_rating.credit_changes import BOUGHT
from meterhouse_rating.credits import Grant
from meterhouse_store import registry, tables

BACK = "https://example.com/account"


def post(sandbox, path, body=b""):
    request = urllib.request.Request(
        f"{sandbox.url}/_sandbox/{path}", data=body, headers={"Accept": "application/json"}
    )
    opener = urllib.request.build_opener(_Stay)
    with opener.open(request) as reply:
        return reply.read()


class _Stay(urllib.request.HTTPRedirectHandler):
    def http_error_303(self, request, reply, *_rest):
        return reply


@pytest.fixture
def acme(books, world, sandbox):
    """A customer who may buy 10.00 or 50.00, at the sandbox's time."""
    registry.add_customer(books.engine, "test", "acme", currency="USD", email="olga@acme.example", now=world.now())
    wanted = {policies.TOP_UPS: "USD=10/50"}
    policies.change(books.engine, "test", "", wanted, who="anna", why="we sell credits", now=world.now())
    post(sandbox, "clock", json.dumps({"now": world.now().timestamp()}).encode())
    return world


def pay(sandbox, started):
    post(sandbox, f"checkout/{started.url.rpartition('/')[2]}")


def balances(books):
    entries = tables.ledger_entries
    query = select(entries.c.account, func.sum(entries.c.amount_minor)).group_by(entries.c.account)
    with books.engine.connect() as connection:
        return {account: amount for account, amount in connection.execute(query) if amount}


def told(books):
    return sorted((row["kind"], row["facts"]["amount"]) for row in books.rows(tables.notices))


def events(sandbox):
    """All that Stripe would deliver, the oldest first."""
    return [it.to_dict() for it in sandbox.client.v1.events.list({"limit": 100}).data][::-1]


def deliver(world, some):
    for event in some:
        news.receive(world.engine, "test", json.dumps(event), world.now())
    return list(iter(lambda: news.process(world), []))


@pytest.mark.parametrize("books", ["sqlite", "postgres"], indirect=True)
def test_a_page_that_is_paid_is_one_grant_whatever_comes_how_often_and_in_which_order(books, acme, sandbox):
    started = top_ups.start(acme, "acme", 5000, BACK, who="olga@acme.example", reference="form-1")
    assert top_ups.start(acme, "acme", 5000, BACK, who="olga@acme.example", reference="form-1") == started
    assert balances(books) == {}  # asked for is not paid
    assert list(top_up_news.poll(acme)) == []
    pay(sandbox, started)
    came = [event for event in events(sandbox) if event["type"].startswith(("checkout", "payment", "charge"))]
    assert len(came) == 3
    for number, order in enumerate(itertools.permutations(came)):
        deliver(acme, [{**event, "id": f"{event['id']}{number}"} for event in order])
    assert news.poll(acme) == []
    assert balances(books) == {"cash": 5000, "deferred_credits": -5000}
    [grant] = books.rows(tables.credit_grants)
    assert (grant["kind"], grant["amount_minor"], grant["expires_at"]) == ("bought", 5000, None)
    assert told(books) == [("top_up", "50.00")]
    [session] = sandbox.client.v1.checkout.sessions.list().data
    assert (session.amount_total, session.currency, session.payment_status) == (5000, "usd", "paid")


def test_without_webhooks_the_poll_finds_the_payment_and_a_page_that_nobody_paid_is_over(books, acme, sandbox):
    paid, left = (top_ups.start(acme, "acme", 1000, BACK, who="olga", reference=name) for name in ("a", "b"))
    pay(sandbox, paid)
    assert news.poll(acme) == ["acme: 10.00 USD of credits bought"]
    post(sandbox, "clock", json.dumps({"now": acme.now().timestamp() + 90_000}).encode())
    assert news.poll(acme) == ["acme: 10.00 USD of credits were not paid in time"]
    pay(sandbox, left)  # too late: Stripe takes nothing
    assert news.poll(acme) == []
    assert balances(books) == {"cash": 1000, "deferred_credits": -1000}


@pytest.mark.parametrize("lost", [False, True])
def test_a_form_that_is_sent_again_when_its_page_is_over_leads_nowhere_and_a_new_one_does(acme, sandbox, lost):
    """Stripe's answer was had, or lost: then a day later the session is found, and has no address any more."""
    form = {"who": "olga", "reference": "form-1"}
    if lost:
        sandbox.faults.lose_reply_of = {sandbox.faults.posts + number for number in range(2, 8)}
        with pytest.raises(StripeUnavailable):
            top_ups.start(acme, "acme", 1000, BACK, **form)
        sandbox.faults.lose_reply_of = set()
    else:
        top_ups.start(acme, "acme", 1000, BACK, **form)
    moment = acme.now() + timedelta(hours=30)
    later = replace(acme, now=lambda: moment)
    post(sandbox, "clock", json.dumps({"now": later.now().timestamp()}).encode())
    with pytest.raises(TopUpRefused, match="the page is over: begin again"):
        top_ups.start(later, "acme", 1000, BACK, **form)
    assert news.poll(later) == ["acme: 10.00 USD of credits were not paid in time"]
    started = top_ups.start(later, "acme", 1000, BACK, who="olga", reference="form-2")
    pay(sandbox, started)
    assert news.poll(later) == ["acme: 10.00 USD of credits bought"]


def test_a_top_up_that_is_gone_in_stripe_keeps_no_other_news_from_being_taken(books, acme, sandbox):
    gone, paid = (top_ups.start(acme, "acme", 1000, BACK, who="olga", reference=name) for name in ("a", "b"))
    purchases.change(books.engine, gone.purchase_id, stripe_id="cs_test_gone")
    pay(sandbox, paid)
    said = sorted(news.poll(acme))
    assert said[0] == "acme: 10.00 USD of credits bought"
    assert said[1].startswith("acme: a top-up of 10.00 USD is not in Stripe (any more)")


def paid_and_used(books, acme, sandbox, used):
    """50.00 bought, so much of it used on a closed rating."""
    pay(sandbox, top_ups.start(acme, "acme", 5000, BACK, who="olga"))
    news.poll(acme)
    [row] = books.rows(tables.credit_purchases)
    if used:
        sides = [("deferred_credits", used, row["grant_id"]), ("receivable", -used, None)]
        posting = credit_changes.Posting(
            "credit_applied", "line", "", tuple(credit_changes.Entry(a, n, "USD", g) for a, n, g in sides)
        )
        with books.engine.begin() as connection:
            moments = {"effective_at": acme.now(), "recorded_at": acme.now()}
            credit_changes.ledger.post(connection, "test", "acme", [posting], **moments)
    return row["payment_intent"]


def test_a_refund_takes_credits_back_as_far_as_they_are_there_once(books, acme, sandbox):
    intent = paid_and_used(books, acme, sandbox, used=3500)
    for amount in (1000, 2000):
        sandbox.client.v1.refunds.create({"payment_intent": intent, "amount": amount})
    refunds = [event for event in events(sandbox) if event["type"].startswith(("refund", "charge.refund"))]
    deliver(acme, [*refunds[::-1], *refunds])
    assert news.poll(acme) == []
    # 30.00 went back, 15.00 of the credits were there: 15.00 are let off
    assert balances(books) == {"cash": 2000, "adjustments": 1500, "receivable": -3500}
    posted = [row for row in books.rows(tables.ledger_transactions) if row["kind"] == "credit_refunded"]
    assert len(posted) == 2 and all(row["corrects"] for row in posted)


@pytest.mark.parametrize(
    ("decision", "after"),
    [
        ("lost", {"adjustments": 2000, "receivable": -2000}),
        ("won", {"cash": 5000, "deferred_credits": -3000, "receivable": -2000}),
    ],
)
def test_a_dispute_takes_the_credits_and_gives_them_back_when_it_is_won(books, acme, sandbox, decision, after):
    intent = paid_and_used(books, acme, sandbox, used=2000)
    dispute = json.loads(post(sandbox, f"dispute/{intent}"))["id"]
    assert news.poll(acme) == [
        "acme: 50.00 USD of a top-up were disputed (fraudulent), 20.00 of which were used already"
    ]
    assert balances(books) == {"adjustments": 2000, "receivable": -2000}
    post(sandbox, f"dispute/{dispute}/{decision}")
    much_later = replace(acme, now=lambda: acme.now() + timedelta(days=80))  # what is not decided is still looked at
    assert news.poll(much_later) == (["acme: 50.00 USD of a top-up came again"] if decision == "won" else [])
    assert news.poll(acme) == []
    assert balances(books) == after
    assert [row["status"] for row in books.rows(tables.disputes)] == [decision]


def test_what_is_not_offered_is_refused_with_what_to_do(books, acme):
    with pytest.raises(TopUpRefused, match=r"20\.00 is not offered: 10\.00, 50\.00 USD are"):
        top_ups.start(acme, "acme", 2000, BACK, who="olga")
    policies.change(books.engine, "test", "acme", {policies.AUTOMATIC_TAX: "on"}, who="a", why="w", now=acme.now())
    assert "credits are sold on invoices" in top_ups.offer(acme, "acme").refusal
    registry.add_customer(books.engine, "test", "emil", currency="EUR", now=acme.now())
    assert top_ups.offer(acme, "emil").refusal.startswith("nothing is offered in EUR: `meterhouse bill settings")


# ---- automatic


@pytest.fixture
def ruled(books, acme, sandbox):
    """Below 20.00 the customer buys 50.00, twice a day and three times a month; 15.00 are there; its card is good."""
    card(sandbox, acme, "pm_card_visa")
    rule(acme)
    grant = Grant("", BOUGHT, 1500, acme.now() - timedelta(days=1))
    named = {"reference": "wire", "who": "anna", "why": "wire", "now": acme.now()}
    credit_changes.grant(books.engine, "test", "acme", grant, "USD", **named)
    return acme


def rule(world, **more):
    values = {"below_minor": 2000, "amount_minor": 5000, "per_day": 2, "per_month": 3, "currency": "USD", **more}
    charge_rules.put(world.engine, "test", Rule("acme", **values, who="anna", why="order 7", recorded_at=world.now()))


def card(sandbox, world, method):
    customer = top_up_charges.stripe_customers.registered(world, "acme")
    name = top_up_charges.stripe_customers.ensure(world, customer)["stripe_customer_id"]
    sandbox.client.v1.customers.update(name, {"invoice_settings": {"default_payment_method": method}})


def charged(world):
    return [str(step) for step in top_up_charges.charge_due(world)]


def payments(sandbox):
    return [(it.amount, it.status) for it in sandbox.client.v1.payment_intents.list().data]


@pytest.mark.parametrize("books", ["sqlite", "postgres"], indirect=True)
def test_below_its_threshold_a_customer_is_charged_once_and_not_above_it(books, ruled, sandbox):
    assert [str(it) for it in top_up_charges.charge_due(ruled, dry_run=True)] == [
        "acme: would be charged 50.00 USD for credits"
    ]
    assert payments(sandbox) == []
    assert charged(ruled) == ["acme: 50.00 USD of credits bought"]
    assert charged(ruled) == []  # 65.00 are there
    assert news.poll(ruled) == []
    assert payments(sandbox) == [(5000, "succeeded")]
    assert balances(books) == {"cash": 6500, "deferred_credits": -6500}
    assert told(books) == [("top_up", "50.00")]


@pytest.mark.parametrize("ahead", [-90, 1, 90])
def test_what_was_bought_counts_at_once_whatever_the_clock_of_stripe_says(ruled, sandbox, ahead):
    post(sandbox, "clock", json.dumps({"now": ruled.now().timestamp() + ahead}).encode())
    assert charged(ruled) == ["acme: 50.00 USD of credits bought"]
    assert charged(ruled) == []  # 65.00 are there
    assert payments(sandbox) == [(5000, "succeeded")]


def test_a_rule_charges_no_oftener_than_it_says(books, ruled, sandbox):
    rule(ruled, below_minor=100_000_00)
    assert charged(ruled) + charged(ruled) == ["acme: 50.00 USD of credits bought"] * 2
    assert charged(ruled) == ["acme: 115.00 USD are left, and it was charged 2 times this day, which is the most"]
    tomorrow = replace(ruled, now=lambda: ruled.now() + timedelta(days=1))
    assert charged(tomorrow) == ["acme: 50.00 USD of credits bought"]
    assert "3 times this month" in charged(tomorrow)[0]
    assert len(payments(sandbox)) == 3


@pytest.mark.parametrize("fault", ["dropped_before", "dropped_after", "saved_500", "saved_500_done"])
@pytest.mark.parametrize("days", [0, 2])
def test_a_charge_whose_reply_was_lost_is_continued_and_made_once(books, ruled, sandbox, fault, days):
    post(sandbox, "faults", json.dumps({"script": [fault] * 5}).encode())
    with pytest.raises(StripeUnavailable):
        charged(ruled)
    post(sandbox, "faults", b"{}")
    after = replace(ruled, now=lambda: ruled.now() + timedelta(days=days))  # after two days Stripe has forgotten keys
    post(sandbox, "clock", json.dumps({"now": after.now().timestamp()}).encode())
    assert charged(after) == ["acme: 50.00 USD of credits bought"]
    assert charged(after) == [] and payments(sandbox) == [(5000, "succeeded")]
    assert balances(books) == {"cash": 6500, "deferred_credits": -6500}


@pytest.mark.parametrize("fault", ["dropped_after", "saved_500_done"])
@pytest.mark.parametrize("meanwhile", ["the rule is turned off", "the card is gone"])
def test_a_charge_that_was_made_is_granted_whatever_is_changed_before_that_is_known(
    books, ruled, sandbox, monkeypatch, fault, meanwhile
):
    post(sandbox, "faults", json.dumps({"script": [fault] * 5}).encode())
    with pytest.raises(StripeUnavailable):
        charged(ruled)
    post(sandbox, "faults", b"{}")
    if meanwhile == "the card is gone":
        monkeypatch.setattr(top_up_charges, "_default_method", lambda *_: None)
    else:
        rule(ruled, amount_minor=0)
    assert charged(ruled) == ["acme: 50.00 USD of credits bought"]
    assert charged(ruled) == [] and payments(sandbox) == [(5000, "succeeded")]
    assert balances(books) == {"cash": 6500, "deferred_credits": -6500}


class Crash(BaseException):
    """The process dies."""


@pytest.mark.parametrize("step", ["ask", "change", "settle", "grant", "keep"])
def test_a_run_that_dies_after_any_step_is_continued_by_the_next(books, ruled, sandbox, monkeypatch, step):
    where = {"ask": purchases, "change": purchases, "settle": top_up_news, "keep": top_up_news.notices}
    module = where.get(step, credit_changes)
    real = getattr(module, step)
    # `ask` dies outside of its transaction, when the row is there: before Stripe is asked
    target = (top_up_charges, "_charge") if step == "ask" else (module, step)

    def dies(*given, **named):
        if step != "ask":
            real(*given, **named)
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(*target, dies)
        with pytest.raises(Crash):
            charged(ruled)
    assert [
        line for line in charged(ruled) + news.poll(ruled) if "bought" not in line and "under way" not in line
    ] == []
    assert charged(ruled) == [] and payments(sandbox) == [(5000, "succeeded")]
    assert balances(books) == {"cash": 6500, "deferred_credits": -6500}
    assert [row["state"] for row in books.rows(tables.credit_purchases)] == ["paid"]


@pytest.mark.parametrize("method", ["pm_card_chargeDeclined", "pm_card_authenticationRequired", None])
def test_a_charge_that_fails_turns_the_rule_off_and_is_told(books, ruled, sandbox, method):
    if method:
        card(sandbox, ruled, method)
    else:
        bare = sandbox.client.v1.customers.create({"email": "olga@acme.example"}).id
        registry.add_customer(books.engine, "test", "acme", stripe_customer_id=bare, now=ruled.now())
    [line] = charged(ruled)
    assert line.startswith("acme: EXCEPTION: 50.00 USD of credits could not be charged, and the rule is off: ")
    assert charged(ruled) == [] and len(payments(sandbox)) == (1 if method else 0)
    assert told(books) == [("top_up_failed", "50.00")]
    [now] = charge_rules.rules(books.engine, "test")
    assert (now.is_on, now.who) == (False, "stripe") and now.why.startswith("a charge failed: ")
    assert balances(books) == {"cash": 1500, "deferred_credits": -1500}


@pytest.mark.parametrize("commits", range(1, 7))
@pytest.mark.parametrize("turned_off", [False, True])
def test_a_declined_charge_is_a_failed_one_whatever_crashes(books, ruled, sandbox, commits, turned_off):
    """The run dies before one of its commits: what is in Stripe is still looked at, for it may be paid there later."""
    card(sandbox, ruled, "pm_card_chargeDeclined")
    left = iter(range(commits - 1, -1, -1))

    def dies(_connection):
        if not next(left, 1):
            raise Crash

    listen(books.engine, "commit", dies)
    with contextlib.suppress(Crash):
        charged(ruled)
    remove(books.engine, "commit", dies)
    if turned_off:
        rule(ruled, amount_minor=0)
    charged(ruled)
    there = sandbox.client.v1.payment_intents.list().data
    rows = [(row["state"], row["payment_intent"]) for row in books.rows(tables.credit_purchases)]
    if there or not turned_off:
        assert rows == [("failed", it.id) for it in there]
        assert told(books) == [("top_up_failed", "50.00")]
    else:
        assert rows in ([], [("expired", None)])
    assert [rule.is_on for rule in charge_rules.rules(books.engine, "test")] == [False]


def test_a_rule_that_is_wrong_is_refused_with_everything_that_is_wrong(books, acme):
    with pytest.raises(BillingError, match="amounts are not negative; it charges 1 to 24 times a day"):
        rule(acme, below_minor=-1, per_day=9, per_month=3)
    with pytest.raises(BillingError, match="pays in USD, not in EUR"):
        rule(acme, currency="EUR")
    moments = {"valid_from": acme.now() - timedelta(days=1), "who": "anna", "now": acme.now()}
    credit_changes.set_top_up(books.engine, "test", "acme", below_minor=0, amount_minor=100, times=1, **moments)
    with pytest.raises(BillingError, match="its rule that buys on invoices holds"):
        rule(acme)


def test_the_commands(books, acme, sandbox, monkeypatch):
    for name, value in sandbox.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("METERHOUSE_NAMESPACE", "test")

    def call(*words, code=0):
        done = CliRunner().invoke(command, [*words, "--data", str(books.settings.data)])
        assert done.exit_code == code, done.output
        return done.output

    asked = ("top-up", "acme", "--amount", "50", "--return-url", BACK)
    params = json.loads(call(*asked, "--dry-run"))["params"]
    assert params["line_items"] == [
        {"price_data": {"currency": "usd", "unit_amount": 5000, "product_data": {"name": "Credits"}}, "quantity": 1}
    ]
    assert books.rows(tables.credit_purchases) == []
    assert "/_sandbox/checkout/cs_test_" in call(*asked)
    assert "20.00 is not offered" in call("top-up", "acme", "--amount", "20", "--return-url", BACK, code=1)
    assert "acme" in call("top-ups") and " open " in call("top-ups")
    set_rule = ("top-up-rule", "acme", "--below", "20", "--amount", "50", "--why", "order 7")
    assert "50.00 USD" in call(*set_rule, "--dry-run") and "No rules" in call("top-up-rule")
    assert "50.00 USD" in call(*set_rule)
    assert "would be charged 50.00 USD" in call("top-up-due", "--dry-run")
    assert "no default payment method" in call("top-up-due", code=3)
    assert "a charge failed" in call("top-up-rule")
