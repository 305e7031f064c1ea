"""`bill run` against the sandbox: one invoice per closed rating, whatever happens on the way."""

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import stripe
from sqlalchemy import event, insert, update

from meterhouse_billing import approvals, records
from meterhouse_billing.gateway import StripeUnavailable
from meterhouse_billing.run import bill
from meterhouse_store import registry, tables
from meterhouse_store.sql import begin_write

USAGE = [
    ("flat", "", "1", 4900),
    ("usage", "input", "1500000", 225),
    ("usage", "output", "20000.5", 12),
    ("usage", "tools", "3", 0),
    ("credit_applied", "", "1", -137),
]  # 50.00 in all


def run(world, approve=True, **chosen):
    drafts = records.drafts(world.engine, world.namespace, **chosen)
    return [str(step) for step in bill(world, drafts, approve=approve)]


def everything(books, sandbox):
    """All that is recorded here and in Stripe, to compare before and after."""
    ours = [
        books.rows(table)
        for table in (
            tables.invoices,
            tables.invoice_lines,
            tables.invoice_transitions,
            tables.outbox,
            tables.ledger_entries,
            tables.payments,
        )
    ]
    stripes = [invoice.to_dict() for invoice in sandbox.client.v1.invoices.list({"limit": 100}).auto_paging_iter()]
    return ours, stripes, len(sandbox.client.v1.customers.list().data)


def the_invoice(sandbox):
    """The only invoice in Stripe, with all its lines."""
    [invoice] = sandbox.client.v1.invoices.list({"limit": 100}).data
    lines = sandbox.client.v1.invoices.line_items.list(invoice.id, {"limit": 100}).data
    return invoice, sorted(lines, key=lambda line: line.metadata.to_dict().get("meterhouse_line_id", ""))


def test_a_closed_rating_becomes_one_finalised_invoice_line_by_line(books, sandbox, world):
    books.rating("acme", USAGE)
    steps = run(world)
    invoice, lines = the_invoice(sandbox)
    assert (invoice.status, invoice.total, invoice.currency, invoice.auto_advance) == ("open", 5000, "usd", False)
    assert [(line.amount, line.description, line.metadata["quantity"]) for line in lines] == [
        (4900, "flat", "1"),
        (225, "usage input: 1,500,000 tokens", "1500000"),
        (12, "usage output: 20,000.5 tokens", "20000.5"),
        (0, "usage tools: 3 tokens", "3"),
        (-137, "credit_applied", "1"),
    ]
    # 2026-10-01T00:00:00Z to 2026-10-31T23:59:59Z: Stripe's periods include both ends.
    assert {(line.period.start, line.period.end) for line in lines} == {(1790812800, 1793491199)}
    [row] = books.rows(tables.invoices)
    assert (row["state"], row["total_minor"], row["stripe_total_minor"]) == ("finalised", 5000, 5000)
    assert (row["stripe_invoice_id"], row["number"]) == (invoice.id, "SANDBOX-0001")
    assert {line["stripe_item_id"] for line in books.rows(tables.invoice_lines)} == {line.id for line in lines}
    found = invoice.metadata.to_dict()
    assert (found["meterhouse_rating_id"], found["meterhouse_result_sha256"]) == ("rating-acme", "r")
    moves = [(move["from_state"], move["to_state"], move["who"]) for move in books.rows(tables.invoice_transitions)]
    assert sorted(moves) == [
        ("approved", "finalised", "anna"),
        ("draft", "approved", "anna"),
        ("open", "draft", "anna"),
    ]
    assert len(steps) == 7
    assert steps[0] == "acme: draft recorded for 2026-10-01..2026-11-01: 5 lines, 50.00 USD"


def test_stripes_invoice_says_what_the_completeness_of_its_usage_was(books, sandbox, world):
    rating_id = books.rating("acme", USAGE, stated=False)
    books.rating("globex", USAGE, stated=False)  # closed before there were statements
    verdict = "Not certain to be complete: 32 events of 1 stream, 2 to look at."
    with begin_write(books.engine) as connection:
        row = {
            "rating_id": rating_id,
            "verdict": verdict,
            "statement": {"verdict": verdict},
            "stated_at": datetime(2026, 11, 1, tzinfo=UTC),
        }
        connection.execute(insert(tables.rating_statements).values(**row))
    run(world)
    run(world)
    found = [invoice.metadata.to_dict() for invoice in sandbox.client.v1.invoices.list({"limit": 100}).data]
    told = {one["meterhouse_customer_id"]: one.get("meterhouse_completeness") for one in found}
    assert len(found) == 2 and told == {"acme": verdict, "globex": None}


def test_without_approval_it_stays_a_draft_and_approval_comes_later(books, sandbox, world):
    books.rating("acme", USAGE)
    run(world, approve=False)
    assert the_invoice(sandbox)[0].status == "draft"
    assert run(world, approve=False)[0] == "acme: compared: 5 lines, 50.00 USD in Stripe as rated"
    run(world)
    assert the_invoice(sandbox)[0].status == "open"


def test_running_again_changes_nothing(books, sandbox, world):
    books.rating("acme", USAGE)
    run(world)
    before = everything(books, sandbox)
    assert run(world) == []
    assert run(world, period="2026-10") == []
    assert everything(books, sandbox) == before


def test_stopped_after_any_step_it_ends_with_the_same_single_invoice(books, sandbox, world):
    """One customer per step to stop after, and one that is never stopped to compare with."""
    steps = 7
    names = [f"customer-{stop}" for stop in range(steps + 1)]
    for name in names:
        books.rating(name, USAGE)
    for stop, name in enumerate(names[:steps]):
        generator = bill(world, records.drafts(books.engine, "test", customer_id=name), approve=True)
        for _ in range(stop + 1):
            next(generator)
        generator.close()
    run(world)
    assert run(world) == []
    invoices = sandbox.client.v1.invoices.list({"limit": 100}).data
    assert sorted(invoice.metadata["meterhouse_customer_id"] for invoice in invoices) == names
    assert {(invoice.status, invoice.total, invoice.lines.total_count) for invoice in invoices} == {("open", 5000, 5)}
    assert len(sandbox.client.v1.customers.list({"limit": 100}).data) == len(names)
    assert {row["state"] for row in books.rows(tables.invoices)} == {"finalised"}


@pytest.mark.parametrize("lost", [1, 2, 3, 4])  # customer, draft, lines, finalise
def test_a_reply_that_is_lost_is_asked_for_again_with_the_same_key(books, sandbox, world, lost):
    books.rating("acme", USAGE)
    sandbox.faults.lose_reply_of = {lost}
    run(world)
    invoice, lines = the_invoice(sandbox)
    assert (invoice.status, invoice.total, len(lines)) == ("open", 5000, 5)
    assert len(sandbox.client.v1.customers.list().data) == 1
    assert len(sandbox.sleeps) == 1


@pytest.mark.parametrize("lost", [1, 2, 3, 4])
def test_after_days_without_a_reply_stripe_is_searched_before_anything_is_sent_again(
    books, sandbox, world, later, lost
):
    from meterhouse_sandbox import stripe_state

    books.rating("acme", USAGE)
    sandbox.faults.lose_reply_of = set(range(lost, lost + 5))  # all attempts of one run
    with pytest.raises(StripeUnavailable):
        run(world)
    sandbox.faults.lose_reply_of = set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stripe_state, "KEY_LIFETIME_S", -1)  # Stripe has forgotten every key
        run(later)
    invoice, lines = the_invoice(sandbox)
    assert (invoice.status, invoice.total, len(lines)) == ("open", 5000, 5)
    assert len(sandbox.client.v1.customers.list().data) == 1


@pytest.mark.parametrize("status", [409, 429, 500, 503])
def test_what_may_pass_is_tried_again_a_bounded_number_of_times(books, sandbox, world, status):
    books.rating("acme", USAGE)
    sandbox.faults.refuse_with = [status] * 5
    with pytest.raises(StripeUnavailable):
        run(world)
    assert len(sandbox.sleeps) == 4
    assert sandbox.faults.refuse_with == []
    run(world)
    assert the_invoice(sandbox)[0].status == "open"


def test_a_refused_call_is_an_exception_and_succeeds_when_its_cause_is_mended(books, sandbox, world):
    books.rating("acme", USAGE)
    registry.add_customer(books.engine, "test", "acme", stripe_customer_id="cus_gone")
    books.rating("globex", USAGE)
    steps = run(world)
    [problem] = [step for step in steps if "EXCEPTION" in step]
    assert "acme" in problem
    assert "No such customer: 'cus_gone'" in problem
    assert the_invoice(sandbox)[0].metadata["meterhouse_customer_id"] == "globex"
    real = sandbox.client.v1.customers.create({"name": "Acme"})
    registry.add_customer(books.engine, "test", "acme", stripe_customer_id=real.id)
    run(world)
    assert len(sandbox.client.v1.invoices.list({"status": "open"}).data) == 2


def test_a_draft_that_was_changed_in_stripe_is_not_finalised_until_it_is_as_rated(books, sandbox, world):
    books.rating("acme", USAGE)
    run(world, approve=False)
    invoice, _ = the_invoice(sandbox)
    sandbox.client.v1.invoice_items.create({"customer": invoice.customer, "invoice": invoice.id, "amount": 1})
    [problem] = run(world)
    assert "stays a draft" in problem
    assert "Stripe's total is 5001, rated 5000" in problem
    assert "Stripe has 6 lines, rated 5" in problem
    assert the_invoice(sandbox)[0].status == "draft"
    assert books.rows(tables.invoices)[0]["state"] == "in review"


def test_a_change_that_leaves_the_total_as_it_was_is_seen_too(books, sandbox, world):
    books.rating("acme", USAGE)
    run(world, approve=False)
    invoice, _ = the_invoice(sandbox)
    for amount in (100, -100):
        item = {"customer": invoice.customer, "invoice": invoice.id, "amount": amount}
        sandbox.client.v1.invoice_items.create(item)
    [problem] = run(world)
    assert "is none of the rated lines" in problem


def test_a_draft_that_was_changed_after_approval_is_not_finalised_by_the_next_run(books, sandbox, world):
    books.rating("acme", USAGE)
    for step in bill(world, records.drafts(books.engine, "test"), approve=True):
        if step.text == "approved":
            break
    invoice, _ = the_invoice(sandbox)
    sandbox.client.v1.invoice_items.create({"customer": invoice.customer, "invoice": invoice.id, "amount": 1})
    assert "EXCEPTION" in run(world)[-1]
    assert the_invoice(sandbox)[0].status == "draft"


def test_a_draft_that_was_finalised_by_hand_is_taken_over(books, sandbox, world):
    books.rating("acme", USAGE)
    run(world, approve=False)
    sandbox.client.v1.invoices.finalize_invoice(the_invoice(sandbox)[0].id)
    assert run(world)[-1] == "acme: found finalised in Stripe: in review -> finalised"
    moves = books.rows(tables.invoice_transitions)
    assert {move["who"] for move in moves if move["to_state"] in ("approved", "finalised")} == {"stripe"}


def test_yen_have_no_minor_unit(books, sandbox, world):
    books.rating("kaisha", [("usage", "input", "1000", 120), ("usage", "output", "10", 30)], currency="JPY")
    steps = run(world)
    assert steps[0].endswith("2 lines, 150 JPY")
    invoice, _ = the_invoice(sandbox)
    assert (invoice.currency, invoice.total) == ("jpy", 150)


def test_an_amount_that_stripe_cannot_express_stops_before_anything_is_written(books, sandbox, world):
    books.rating("dinar", [("usage", "input", "1", 1235)], currency="KWD")
    [problem] = run(world)
    assert "tens of minor units" in problem
    assert books.rows(tables.invoices) == []
    assert sandbox.faults.posts == 0


def test_more_lines_than_one_request_holds(books, sandbox, world):
    books.rating("many", [("usage", f"metric-{n}", str(n), n) for n in range(200)])
    steps = run(world)
    assert "many: lines 101 to 200 in Stripe" in steps
    [invoice] = sandbox.client.v1.invoices.list().data
    assert (invoice.status, invoice.total, invoice.lines.total_count) == ("open", 19900, 200)


def test_more_than_200_lines_are_put_together_by_metric_and_each_knows_its_place(books, sandbox, world):
    tokens = [("usage", f"tokens-{n % 3}", "1.5", n) for n in range(300)]  # 3 metrics of 100 lines
    books.rating("more", [("flat", "", "1", 4900), *tokens])
    run(world)
    invoice, lines = the_invoice(sandbox)
    # 0 + 3 + ... + 297 = 14850, one and two more per line for the others; 100 times 1.5
    assert sorted((line.amount, line.description) for line in lines) == [
        (4900, "flat"),
        (14850, "usage tokens-0: 150 tokens (100 lines, see the statement)"),
        (14950, "usage tokens-1: 150 tokens (100 lines, see the statement)"),
        (15050, "usage tokens-2: 150 tokens (100 lines, see the statement)"),
    ]
    assert (invoice.status, invoice.total) == ("open", 49750)
    in_stripe = {line.id: int(line.metadata["meterhouse_lines"]) for line in lines}
    kept = Counter(row["stripe_item_id"] for row in books.rows(tables.invoice_lines))
    assert kept == in_stripe
    assert run(world) == []


def test_a_total_of_zero_is_finalised_and_counts_as_paid_without_a_payment(books, sandbox, world):
    books.rating("free", [("usage", "input", "5", 40), ("credit_applied", "", "1", -40)])
    run(world)
    assert the_invoice(sandbox)[0].status == "paid"
    assert books.rows(tables.invoices)[0]["state"] == "paid"
    assert books.rows(tables.payments) == []


def test_a_credit_is_left_to_a_person(books, sandbox, world):
    books.rating("refund", [("usage", "input", "5", 40), ("credit_applied", "", "1", -90)])
    problem = run(world)[-1]
    assert "no run approves" in problem
    assert the_invoice(sandbox)[0].status == "draft"


def test_open_ratings_and_ratings_without_lines_are_not_invoiced(books, sandbox, world):
    books.rating("open", USAGE, state="open")
    books.rating("nothing", [])
    assert run(world) == []
    assert sandbox.faults.posts == 0


def test_a_period_is_read_in_the_customers_time_zone(books):
    registry.add_customer(books.engine, "test", "tokyo", time_zone="Asia/Tokyo")
    books.rating("tokyo", USAGE)
    books.rating("acme", USAGE)
    # The seeded rating is October in UTC, which in Tokyo reaches nine hours into November.
    assert [draft.customer_id for draft in records.drafts(books.engine, "test", period="2026-10")] == ["acme"]


def test_two_runs_at_once_make_one_invoice(books, sandbox, world):
    import threading

    books.rating("acme", USAGE)
    drafts = records.drafts(books.engine, "test")
    found = []

    def one():
        own = replace(world, gateway=sandbox.gateway())
        found.append([step.failed for step in bill(own, drafts, approve=True)])

    threads = [threading.Thread(target=one) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run(world)
    invoice, lines = the_invoice(sandbox)
    assert (invoice.status, invoice.total, len(lines)) == ("open", 5000, 5)
    assert len(found) == 3


def test_customers_with_an_address_get_an_invoice_that_is_due(books, sandbox, world):
    books.rating("acme", USAGE)
    registry.add_customer(books.engine, "test", "acme", email="a@acme.example")
    run(world)
    invoice, _ = the_invoice(sandbox)
    assert invoice.collection_method == "send_invoice"
    due = datetime.fromtimestamp(invoice.due_date, UTC) - datetime.fromtimestamp(invoice.created, UTC)
    assert due.days == 30


def test_the_sdk_reports_no_telemetry(world):
    assert stripe.enable_telemetry is False


@pytest.mark.parametrize("crash", [1, 2, 3, 4])
def test_a_crash_between_the_answer_and_storing_it_repeats_the_call_and_gets_the_same_object(
    books, sandbox, world, monkeypatch, crash
):
    from meterhouse_billing.outbox import Outbox

    books.rating("acme", USAGE)
    store, calls = Outbox._done, []

    def crashing(self, row, answer, then):
        calls.append(row["idempotency_key"])
        if len(calls) == crash:
            raise KeyboardInterrupt
        return store(self, row, answer, then)

    monkeypatch.setattr(Outbox, "_done", crashing)
    with pytest.raises(KeyboardInterrupt):
        run(world)
    run(world)
    assert calls[crash - 1] == calls[crash]
    invoice, lines = the_invoice(sandbox)
    assert (invoice.status, invoice.total, len(lines)) == ("open", 5000, 5)
    assert len(sandbox.client.v1.customers.list().data) == 1


def test_an_answer_that_was_stored_without_what_follows_from_it_is_made_good(books, sandbox, world):
    # As an earlier version left it that was killed between the two.
    books.rating("acme", USAGE)
    run(world, approve=False)
    [made] = books.rows(tables.invoices)
    with begin_write(books.engine) as connection:
        connection.execute(update(tables.invoices).values(stripe_invoice_id=None, stripe_total_minor=None))
        connection.execute(update(tables.invoice_issues).values(stripe_invoice_id=None))
        connection.execute(update(tables.customers).values(stripe_customer_id=None))
    run(world)
    invoice, _ = the_invoice(sandbox)
    assert (invoice.id, invoice.status) == (made["stripe_invoice_id"], "open")
    [row], [issue] = books.rows(tables.invoices), books.rows(tables.invoice_issues)
    assert (row["stripe_invoice_id"], issue["stripe_invoice_id"]) == (invoice.id, invoice.id)
    assert [one.id for one in sandbox.client.v1.customers.list().data] == [invoice.customer]
    assert [one["stripe_customer_id"] for one in books.rows(tables.customers)] == [invoice.customer]


def test_what_a_person_holds_just_after_its_approval_is_not_finalised(books, sandbox, world):
    books.rating("acme", USAGE)
    drafts = records.drafts(books.engine, "test")
    steps = []
    for step in bill(world, drafts, approve=True):
        steps.append(step.text)
        if step.text == "approved":
            list(approvals.hold(world, drafts[0], "ticket 41"))
    assert steps[-1] == "approved"
    invoice, _ = the_invoice(sandbox)
    assert (invoice.status, books.rows(tables.invoices)[0]["state"]) == ("draft", "in review")


def test_an_invoice_takes_a_bounded_number_of_statements_however_many_lines_it_has(books, sandbox, world):
    counted, found = [], []
    event.listen(books.engine, "before_cursor_execute", lambda *about: counted.append(about[2]))
    for name, lines in (("few", 3), ("many", 90)):
        books.rating(name, [("usage", f"metric-{number}", "1", 100) for number in range(lines)])
        drafts = records.drafts(books.engine, "test", customer_id=name)
        counted.clear()
        assert not [step for step in bill(world, drafts, approve=True) if step.failed]
        found.append(len(counted))
    assert found[0] == found[1] <= 94, Counter(counted).most_common(5)


def test_the_idempotency_key_of_a_call_never_changes(books, world):
    """It also holds for a database that was restored from before the call; hence a literal."""
    books.rating("acme", USAGE)
    run(world, approve=False)
    keys = {row["operation"]: row["idempotency_key"] for row in books.rows(tables.outbox)}
    # sha256 of ["test","invoice.create",sha256 of ["invoice","rating-acme"],0] as canonical JSON
    assert keys["invoice.create"] == "meterhouse-b41d08c8b9d5c80974ccbdc693b3e75dc01c3b28e10a7c91f86abdfa4e0f736d"
