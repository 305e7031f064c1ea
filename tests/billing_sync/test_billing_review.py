"""What waits for a person and why, who may do what, and drafts that have to be made again."""

import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from sqlalchemy import insert, update
from typer.testing import CliRunner

from meterhouse_billing import approvals, history, news, policies, records, reviews
from meterhouse_billing.commands import bill as commands
from meterhouse_billing.documents import Draft
from meterhouse_billing.findings import Evidence, assess
from meterhouse_billing.gateway import BillingError
from meterhouse_billing.lines import Line
from meterhouse_billing.policies import Policy
from meterhouse_billing.run import bill
from meterhouse_billing.states import NotNow
from meterhouse_store import tables
from meterhouse_store.sql import begin_write

CLEAN = [("flat", "", "1", 4900), ("usage", "input", "1500000", 100)]  # 50.00


def run(world, approve=False, **chosen):
    drafts = records.drafts(world.engine, world.namespace, **chosen)
    return [str(step) for step in bill(world, drafts, approve=approve)]


def draft_of(world, customer="acme"):
    [draft] = records.drafts(world.engine, "test", period="2026-10", customer_id=customer)
    return draft


def do(steps):
    return [str(step) for step in steps]


def setting(world, **wanted):
    named = {name.replace("_", "-"): value for name, value in wanted.items()}
    policies.change(world.engine, "test", "", named, who="carol", why="agreed", now=world.now())


def state(books):
    return {row["customer_id"]: row["state"] for row in books.rows(tables.invoices)}


def moves(world, customer="acme"):
    return [
        (row["from_state"], row["to_state"], row["who"], row["why"])
        for row in history.of(world.engine, draft_of(world, customer).invoice_id)
    ]


def receivable(books):
    query = tables.ledger_entries
    return sum(row["amount_minor"] for row in books.rows(query) if row["account"] == "receivable")


# ---- what is found (pure)


def line(kind="usage", quantity="10", minor=100, exact="1", included=False):
    return Line("l-1", 0, kind, "tokens", "input", "Input tokens", Decimal(quantity), "{token}", minor, Decimal(exact),
                included)  # fmt: skip


def evidence(*lines, posted=None, earlier=(), statement=(), unrated=(), in_stripe=(), **policy):
    october, november = datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC)
    total = sum(one.amount_minor for one in lines)
    draft = Draft("r-1", "test", "acme", october, november, "USD", total, "hash", lines)
    return Evidence(
        draft=draft,
        policy=Policy(**policy),
        statement=None if statement is None else dict(statement),
        unrated=unrated,
        posted_minor=total if posted is None else posted,
        earlier_minor=earlier,
        in_stripe=in_stripe,
    )


HELD = {"held": [{"reason": "no_customer", "claimed": False, "rows": 4}], "exceptions": ["4 rows are in suspense as x"]}


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (evidence(line()), None),
        (evidence(line(), statement=HELD), "suspense"),
        (evidence(line(), statement={"exceptions": ["web sent nothing after 5 October"]}), "completeness"),
        (evidence(line(), statement=None), "completeness"),
        (
            evidence(line(), unrated=[{"meter": "m", "quantity": Decimal(3), "reason": "no_price", "hint": "add"}]),
            "unrated",
        ),
        (evidence(line(minor=1000), earlier=[400, 450, 9000]), "unusual_change"),  # usual 4.50, twice is 9.00
        (evidence(line(minor=900), earlier=[400, 450, 9000]), None),
        (evidence(line(minor=224), earlier=[450]), "unusual_change"),  # half of 4.50 is 2.25
        (evidence(line(minor=225), earlier=[450]), None),
        (evidence(line(minor=2000), earlier=[450], unusual_change=Decimal(5)), None),
        (evidence(line(minor=500), line(kind="correction", minor=-50)), "negative_line"),
        (evidence(line(minor=500), line(kind="credit_applied", minor=-50), line(kind="discount", minor=-50)), None),
        (evidence(line(minor=0, exact="0")), "zero_price"),
        (evidence(line(minor=0, exact="0.001")), None),  # a price, rounded
        (evidence(line(minor=0, exact="0", included=True)), None),
        (evidence(line(minor=50), line(kind="credit_applied", minor=-90)), "negative_total"),
        (evidence(line(), posted=99), "ledger_differs"),
        (evidence(line(), in_stripe=["Stripe's total is 101, rated 100"]), "stripe_differs"),
        (evidence(line(minor=1001), limits_minor={"USD": 1000}), "above_limit"),
        (evidence(line(minor=1000), limits_minor={"USD": 1000}), None),
        (evidence(line(minor=1), limits_minor={"EUR": 1000}), "above_limit"),  # no limit for USD: always two
    ],
)
def test_what_demands_a_review(given, code):
    assert [one.code for one in assess(given)] == ([] if code is None else [code])


# ---- who approves


@pytest.mark.parametrize("books", ["sqlite", "postgres"], indirect=True)
def test_an_exception_waits_in_review_and_a_persons_approval_is_kept_with_it(books, sandbox, world):
    books.rating("acme", [*CLEAN, ("usage", "tools", "3", 0)])
    setting(world, approval="automatic")
    assert run(world)[-1] == "acme: EXCEPTION: in review: usage tools: 3 tokens costs nothing"
    assert "EXCEPTION: in review" in run(world)[-1]
    assert state(books) == {"acme": "in review"}
    [waiting] = reviews.waiting(world.engine, "test")
    assert ([one.code for one in waiting.findings], waiting.on_hold) == (["zero_price"], False)
    do(approvals.approve(world, draft_of(world), "tools are free in October"))
    assert run(world)[-1].startswith("acme: finalised: SANDBOX-0001, 50.00 USD, open")
    assert moves(world) == [
        ("open", "draft", "anna", "the period was closed"),
        ("draft", "in review", "rule", "usage tools: 3 tokens costs nothing"),
        (
            "in review",
            "approved",
            "anna",
            "tools are free in October (in spite of: usage tools: 3 tokens costs nothing)",
        ),
        ("approved", "finalised", "anna", "bill run"),
    ]
    assert history.of(world.engine, draft_of(world).invoice_id)[0]["changed_at"] == world.now()


def test_without_the_setting_nothing_is_approved_by_itself_and_with_it_what_is_clean_is(books, sandbox, world):
    books.rating("acme", CLEAN)
    run(world)
    assert state(books) == {"acme": "draft"}
    setting(world, approval="automatic")
    run(world)
    assert state(books) == {"acme": "finalised"}
    assert moves(world)[1][1:3] == ("approved", "rule")


def test_a_rating_that_the_ledger_does_not_bear_out_is_never_approved_by_rule(books, sandbox, world):
    books.rating("acme", CLEAN)
    setting(world, approval="automatic")
    with begin_write(books.engine) as connection:
        change = update(tables.rated_lines).where(tables.rated_lines.c.position == 0)
        connection.execute(change.values(amount_minor=5900))
        connection.execute(update(tables.ratings).values(total_minor=6000))
    assert "the ledger's receivable is 50.00, rated 60.00 USD" in run(world)[-1]
    assert state(books) == {"acme": "in review"}


def test_above_the_limit_the_one_who_approved_does_not_finalise(books, sandbox, world):
    books.rating("acme", CLEAN)
    setting(world, two_persons="USD=49.99", approval="automatic")
    assert "is above 49.99 USD: one approves, another finalises" in run(world)[-1]
    do(approvals.approve(world, draft_of(world), "fine"))
    refusal = (
        "anna approved it, and above 49.99 USD another person finalises: `meterhouse bill finalise` by somebody else"
    )
    with pytest.raises(BillingError, match="^" + refusal.replace(".", r"\.") + "$"):
        do(approvals.finalise_approved(world, draft_of(world), "due"))
    assert run(world)[-1] == f"acme: approved, and waits: {refusal}"
    assert run(world, approve=True)[-1] == f"acme: approved, and waits: {refusal}"
    assert state(books) == {"acme": "approved"}
    assert "finalised" in do(approvals.finalise_approved(replace(world, who="ben"), draft_of(world), "due"))[-1]
    assert moves(world)[-1][1:3] == ("finalised", "ben")


def test_what_the_rule_approved_before_there_was_a_limit_is_approved_by_a_person(books, sandbox, world):
    books.rating("acme", CLEAN)
    setting(world, approval="automatic")
    steps = bill(world, records.drafts(world.engine, "test"), approve=False)
    assert any(str(step) == "acme: approved by rule" for step in steps)
    steps.close()  # the process ends before it is finalised
    setting(world, two_persons="USD=49.99")
    assert run(world)[-1].endswith("above 49.99 USD a person approves, not the rule: `meterhouse bill approve`")
    do(approvals.approve(world, draft_of(world), "fine"))
    with pytest.raises(BillingError, match="anna approved it"):
        do(approvals.finalise_approved(world, draft_of(world), "due"))
    assert "finalised" in do(approvals.finalise_approved(replace(world, who="ben"), draft_of(world), "due"))[-1]


def test_without_a_reason_only_what_nothing_was_found_about_and_nobody_holds_is_approved(books, sandbox, world):
    books.rating("acme", [*CLEAN, ("usage", "tools", "3", 0)])
    books.rating("initech", CLEAN)
    run(world)
    with pytest.raises(BillingError, match=r"tools: 3 tokens costs nothing\): say --why it goes out all the same"):
        do(approvals.approve(world, draft_of(world), ""))
    assert state(books)["acme"] == "in review"
    do(approvals.hold(world, draft_of(world, "initech"), "disputed"))
    with pytest.raises(BillingError, match=r"on hold \(disputed\): say --why"):
        do(approvals.approve(world, draft_of(world, "initech"), ""))
    do(approvals.approve(world, draft_of(world, "initech"), "settled"))
    books.rating("umbrella", CLEAN)
    run(world)
    do(approvals.approve(world, draft_of(world, "umbrella"), ""))
    assert moves(world, "umbrella")[-1][3] == "looked at"


def test_a_month_of_tokyo_is_called_so_and_can_be_named_so(books, sandbox, world):
    books.rating("acme", [*CLEAN, ("usage", "tools", "3", 0)])
    with begin_write(world.engine) as connection:
        connection.execute(update(tables.customers).values(time_zone="Asia/Tokyo"))
        start, end = datetime(2026, 9, 30, 15, tzinfo=UTC), datetime(2026, 10, 31, 15, tzinfo=UTC)
        connection.execute(update(tables.ratings).values(period_start=start, period_end=end))
    said = run(world)
    assert said[0] == "acme: draft recorded for 2026-10-01..2026-11-01 Asia/Tokyo: 3 lines, 50.00 USD"
    [shown] = sandbox.client.v1.invoices.list().data
    assert shown.description == "Usage 2026-10-01 to 2026-11-01 Asia/Tokyo (end not included)"
    assert draft_of(world).asked == "2026-10"  # draft_of() names it so
    [row] = records.all_invoices(world.engine, "test")
    assert row["time_zone"] == "Asia/Tokyo"
    do(approvals.approve(world, draft_of(world), "free"))
    [*_, last] = run(world)
    assert re.fullmatch(
        r"acme: finalised: SANDBOX-0001, 50\.00 USD, open; the customer's page: http://127\.0\.0\.1:\d+/\S+", last
    )


def test_a_hold_outlasts_approvals_of_runs_and_the_draft_itself(books, sandbox, world):
    books.rating("acme", CLEAN)
    run(world)
    do(approvals.hold(replace(world, who="ben"), draft_of(world), "customer disputes October"))
    assert run(world, approve=True)[-1] == "acme: on hold since 2026-11-02 by ben: customer disputes October"
    [invoice] = sandbox.client.v1.invoices.list().data
    sandbox.client.v1.invoices.delete(invoice.id)
    assert "on hold" in run(world, approve=True)[-1]
    assert state(books) == {"acme": "in review"}
    do(approvals.approve(world, draft_of(world), "settled"))
    run(world)
    assert state(books) == {"acme": "finalised"}


def test_what_an_invoices_state_does_not_allow_is_refused_in_a_sentence(books, sandbox, world):
    books.rating("acme", CLEAN)
    with pytest.raises(BillingError, match="there is no draft yet"):
        do(approvals.approve(world, draft_of(world), "x"))
    run(world)
    with pytest.raises(NotNow, match="nothing to finalise: the invoice is draft since 2026-11-02 08:00 UTC"):
        do(approvals.finalise_approved(world, draft_of(world), "x"))
    run(world, approve=True)
    with pytest.raises(NotNow, match="nothing to hold: the invoice is finalised"):
        do(approvals.hold(world, draft_of(world), "x"))


def test_settings_that_make_no_sense_are_refused_together(world):
    with pytest.raises(BillingError) as refused:
        setting(
            world, approval="yes", two_persons="USD=x", days_until_due="400", unusual_change="1", paid_credit="cash"
        )
    assert len(str(refused.value).split("; ")) == 5
    with pytest.raises(BillingError, match="two-persons is for a whole namespace"):
        policies.change(world.engine, "test", "acme", {"two-persons": "USD=1"}, who="c", why="w", now=world.now())
    assert policies.load(world.engine, "test") == Policy()


def test_payment_terms_are_the_customers_else_the_namespaces(books, sandbox, world):
    from meterhouse_store import registry

    for name in ("acme", "globex"):
        books.rating(name, CLEAN)
        registry.add_customer(books.engine, "test", name, email=f"a@{name}.example")
    setting(world, days_until_due="14")
    policies.change(world.engine, "test", "acme", {"days-until-due": "60"}, who="c", why="deal", now=world.now())
    run(world)
    days = {
        one.metadata["meterhouse_customer_id"]: round((one.due_date - one.created) / 86400)
        for one in sandbox.client.v1.invoices.list().data
    }
    assert days == {"acme": 60, "globex": 14}


# ---- drafts that are made again


def test_a_draft_that_was_deleted_in_stripe_is_made_again(books, sandbox, world):
    books.rating("acme", CLEAN)
    run(world)
    [first] = sandbox.client.v1.invoices.list().data
    sandbox.client.v1.invoices.delete(first.id)
    assert news.poll(world) == [f"acme {first.id}: is not in Stripe (any more)"]
    assert run(world, approve=True)[0] == f"acme: the draft {first.id} was deleted in Stripe, it is made again"
    [second] = sandbox.client.v1.invoices.list().data
    assert (second.status, second.total, second.metadata["meterhouse_issue"]) == ("open", 5000, "2")
    assert [(row["issue"], row["ended"]) for row in books.rows(tables.invoice_issues)] == [(1, "deleted"), (2, None)]


@pytest.mark.parametrize("approved", [False, True])
def test_a_period_that_is_rated_anew_before_finalising_is_never_finalised_with_the_old_lines(
    books, sandbox, world, approved
):
    books.rating("acme", CLEAN)
    run(world)
    if approved:
        do(approvals.approve(world, draft_of(world), "fine"))
    [first] = sandbox.client.v1.invoices.list().data
    with begin_write(books.engine) as connection:
        change = update(tables.rated_lines).where(tables.rated_lines.c.position == 1)
        connection.execute(change.values(amount_minor=150, quantity=Decimal(2250000)))
        connection.execute(update(tables.ratings).values(total_minor=5050, result_sha256="r2"))
    steps = run(world)
    assert any(f"{first.id} is deleted in Stripe and made again" in step for step in steps)
    [second] = sandbox.client.v1.invoices.list().data
    assert (second.status, second.total, second.metadata["meterhouse_result_sha256"]) == ("draft", 5050, "r2")
    assert state(books) == {"acme": "in review"}  # the ledger has the old amount: what was approved was another draft
    run(world, approve=True)
    assert [one.status for one in sandbox.client.v1.invoices.list().data] == ["open"]
    assert [row["amount_minor"] for row in books.rows(tables.invoice_lines)] == [4900, 150]


# ---- void and issue again


@pytest.mark.parametrize("books", ["sqlite", "postgres"], indirect=True)
def test_a_void_invoice_is_owed_no_more_and_is_owed_again_when_it_is_issued_again(books, sandbox, world):
    books.rating("acme", CLEAN)
    run(world, approve=True)
    assert receivable(books) == 5000
    do(approvals.void(world, draft_of(world), "wrong address", reissue=False))
    assert (state(books), receivable(books)) == ({"acme": "void"}, 0)
    assert run(world) == run(world, approve=True) == []
    do(approvals.void(world, draft_of(world), "new address", reissue=True))
    assert (state(books), receivable(books)) == ({"acme": "draft"}, 5000)
    run(world, approve=True)
    found = sandbox.client.v1.invoices.list().data
    assert [(one.status, one.total, one.number) for one in found] == [
        ("open", 5000, "SANDBOX-0002"),
        ("void", 5000, "SANDBOX-0001"),
    ]
    # News about the old one changes nothing any more.
    event = {"id": "evt_1", "type": "invoice.voided", "created": 1, "data": {"object": {"id": found[1].id}}}
    news.receive(books.engine, "test", json.dumps(event), world.now())
    assert news.process(world) == [f"invoice.voided {found[1].id}: an invoice that no longer counts"]
    assert (state(books), receivable(books)) == ({"acme": "finalised"}, 5000)
    with pytest.raises(NotNow):
        sandbox.client.v1.invoices.pay(found[0].id, {"payment_method": "pm_card_visa"})
        news.poll(world)
        do(approvals.void(world, draft_of(world), "too late", reissue=False))


def test_an_invoice_that_was_voided_in_stripe_is_owed_no_more_either(books, sandbox, world):
    books.rating("acme", CLEAN)
    run(world, approve=True)
    sandbox.client.v1.invoices.void_invoice(sandbox.client.v1.invoices.list().data[0].id)
    news.poll(world)
    news.poll(world)
    assert (state(books), receivable(books)) == ({"acme": "void"}, 0)


# ---- the commands


def test_two_persons_review_approve_and_finalise_from_the_command_line(books, sandbox, monkeypatch):
    environment = {"METERHOUSE_DATA": str(books.settings.data), "METERHOUSE_NAMESPACE": "test", **sandbox.environment}
    for name in ("STRIPE_SECRET_KEY", "METERHOUSE_WAREHOUSE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def call(who, *arguments):
        monkeypatch.setenv("LOGNAME", who)
        done = CliRunner().invoke(commands, list(arguments))
        return done.exit_code, done.output

    october = ("acme", "--period", "2026-10")
    books.rating("acme", [*CLEAN, ("usage", "tools", "3", 0)])
    with begin_write(books.engine) as connection:
        connection.execute(insert(tables.unrated_usage).values(
            unrated_id="u", namespace="test", customer_id="acme", period_start=datetime(2026, 10, 1, tzinfo=UTC),
            period_end=datetime(2026, 11, 1, tzinfo=UTC), meter="llm.images", dimensions={}, events=2,
            quantity=Decimal(7), reason="no_price", hint="add a price",
        ))  # fmt: skip
    assert call("carol", "settings", "--two-persons", "USD=10")[0] == 1  # why?
    code, output = call("carol", "settings", "--two-persons", "USD=10,JPY=1000", "--why", "policy 7")
    assert (code, "two persons above" in output, "1000 JPY, 10.00 USD" in output) == (0, True, True)
    assert call("ann", "review")[:2] == (0, "Nothing waits: `meterhouse bill status` lists the invoices.\n")
    assert call("ann", "run", "--due")[0] == 3
    code, output = call("ann", "review")
    assert code == 3
    assert "! acme: unrated: 7 of llm.images have no price (no_price): add a price" in output
    assert "! acme: zero_price: usage tools: 3 tokens costs nothing" in output
    assert call("ann", "hold", *october, "--why", "asks the customer")[0] == 0
    assert "on hold, asks the customer" in call("ann", "review")[1]
    assert call("ann", "approve", *october, "--dry-run")[0] == 0
    assert state(books) == {"acme": "in review"}
    code, output = call("ann", "approve", *october)
    assert (code, "it is on hold (asks the customer): say --why" in output) == (1, True)
    assert call("ann", "approve", *october, "--why", "looked at")[0] == 0
    code, output = call("ann", "finalise", *october)
    assert (code, "ann approved it, and above 10.00 USD another person finalises" in output) == (1, True)
    code, output = call("ben", "finalise", *october)
    assert (code, "acme: finalised: SANDBOX-0001" in output) == (0, True)
    assert call("ben", "void", *october, "--why", "wrong", "--reissue")[0] == 0
    assert state(books) == {"acme": "draft"}
    code, output = call("ben", "void", *october, "--why", "wrong")
    assert (code, "nothing to void: the invoice is draft" in output) == (1, True)
