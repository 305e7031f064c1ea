"""`meterhouse bill` from outside: output, exit codes, and kill -9 upon every printed line."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime

import pytest
from test_billing_pool import control
from typer.testing import CliRunner

from meterhouse_billing import records
from meterhouse_billing import run as bill_run
from meterhouse_billing.commands import bill
from meterhouse_store import switches, tables

USAGE = [("flat", "", "1", 4900), ("usage", "input", "1500000", 225)]


@pytest.fixture
def environment(books, sandbox):
    return {"METERHOUSE_DATA": str(books.settings.data), "METERHOUSE_NAMESPACE": "test", **sandbox.environment}


@pytest.fixture
def call(environment, monkeypatch):
    for name in ("STRIPE_SECRET_KEY", "STRIPE_WEBHOOK_SECRET", "METERHOUSE_WAREHOUSE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return lambda *arguments: CliRunner().invoke(bill, list(arguments))


def test_killed_upon_every_printed_line_it_ends_with_one_invoice(books, sandbox, environment):
    books.rating("acme", USAGE)
    code = "import sys; from meterhouse.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "bill", "run", "--due", "--approve"]
    printed = []
    for _ in range(20):
        with subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True) as process:
            # A comparison only reads, so every run repeats it; the note is about the warehouse, which is not there.
            line = next((line for line in process.stdout if "compared" not in line and "note:" not in line), "")
            process.kill()
        printed.append(line.strip())
        if "Nothing to invoice" in line:
            break
    assert "Nothing to invoice" in printed[-1]
    assert len(printed) >= 5
    [invoice] = sandbox.client.v1.invoices.list().data
    assert (invoice.status, invoice.total, invoice.lines.total_count) == ("open", 5125, 2)
    assert len(sandbox.client.v1.customers.list().data) == 1
    [row] = books.rows(tables.invoices)
    assert (row["state"], row["stripe_total_minor"]) == ("finalised", 5125)
    assert {row["state"] for row in books.rows(tables.outbox)} == {"done"}


def test_run_prints_steps_and_says_that_the_warehouse_waits(books, call):
    books.rating("acme", USAGE)
    result = call("run", "--period", "2026-10", "--approve")
    assert result.exit_code == 0
    assert "acme: approved" in result.output
    assert "note: the warehouse's copy of the invoices waits" in result.output


def test_what_was_recorded_is_brought_to_the_warehouse_also_where_stripe_is_away(books, sandbox, call):
    """The warehouse is not there either: the note says that it was asked."""
    books.rating("acme", USAGE)
    control(sandbox, "faults", {"down": True})
    result = call("run", "--due")
    assert result.exit_code == 1
    assert "Stripe gave no answer" in result.output
    assert "note: the warehouse's copy of the invoices waits" in result.output


def test_json_goes_to_stdout_and_steps_beside_it(books, call):
    books.rating("acme", USAGE)
    result = call("run", "--due", "--json")
    document = json.loads(result.stdout)
    assert document["exceptions"] == []
    assert [(row["state"], row["total"], row["currency"]) for row in document["invoices"]] == [
        ("draft", "51.25", "USD")
    ]


def test_a_dry_run_shows_the_lines_and_asks_nobody(books, sandbox, call):
    books.rating("acme", USAGE)
    result = call("run", "--due", "--dry-run")
    assert result.output.splitlines() == [
        "acme, 2026-10-01..2026-11-01, USD",
        "  flat                           49.00",
        "  usage input: 1,500,000 tokens   2.25",
        "  total                          51.25",
        "  Complete as far as can be known.",
    ]
    assert books.rows(tables.invoices) == []
    assert sandbox.faults.posts == 0


def test_a_dry_run_shows_who_sells_and_what_the_platform_keeps(books, call):
    books.rating("acme", USAGE)
    wanted = ("--stripe-account", "acct_1SHOP0000000000", "--application-fee", "2.5%")
    assert call("settings", *wanted, "--why", "contract").exit_code == 0
    said = call("run", "--due", "--dry-run").output.splitlines()
    assert said[3:6] == [
        "  total                          51.25",
        "  sold by acct_1SHOP0000000000, the platform keeps 1.28",  # 1.28125
        "  Complete as far as can be known.",
    ]
    [draft] = json.loads(call("run", "--due", "--dry-run", "--json").stdout)["drafts"]
    assert (draft["stripe_account"], draft["application_fee_minor"]) == ("acct_1SHOP0000000000", 128)


def test_an_exception_is_exit_code_3(books, sandbox, call):
    books.rating("acme", USAGE)
    assert call("run", "--due").exit_code == 0
    [invoice] = sandbox.client.v1.invoices.list().data
    sandbox.client.v1.invoice_items.create({"customer": invoice.customer, "invoice": invoice.id, "amount": 1})
    result = call("run", "--due", "--approve")
    assert result.exit_code == 3
    assert "EXCEPTION" in result.output


@pytest.mark.parametrize(("arguments", "code"), [(("--due",), 0), (("--period", "2026-10"), 1)])
def test_without_a_key_the_schedule_goes_on_and_a_person_is_told(books, call, monkeypatch, arguments, code):
    books.rating("acme", USAGE)
    monkeypatch.delenv("STRIPE_API_KEY")
    result = call("run", *arguments)
    assert result.exit_code == code
    assert "set STRIPE_API_KEY" in result.output


def test_a_live_key_is_never_used_in_a_test_namespace(books, call, monkeypatch):
    monkeypatch.setenv("STRIPE_API_KEY", "sk_live_1")
    monkeypatch.delenv("METERHOUSE_STRIPE_URL")
    result = call("run", "--due")
    assert result.exit_code == 1
    assert "a live key and the namespace is a test one, which never uses it" in result.output


@pytest.mark.parametrize(("arguments", "code"), [(("--due",), 0), (("--period", "2026-10"), 1)])
def test_with_sync_turned_off_nothing_is_sent_to_stripe(books, sandbox, call, arguments, code):
    books.rating("acme", USAGE)
    turn(books, "off")
    result = call("run", *arguments)
    assert result.exit_code == code
    assert "is off since" in result.output and "restored from a backup" in result.output
    assert sandbox.client.v1.invoices.list().data == []
    turn(books, "on")
    assert call("run", "--period", "2026-10").exit_code == 0
    assert len(sandbox.client.v1.invoices.list().data) == 1


def test_sync_that_is_turned_off_while_a_run_is_under_way_stops_it_before_the_next_call(books, sandbox, world):
    books.rating("acme", USAGE)
    steps = bill_run.bill(world, records.drafts(books.engine, "test", period="2026-10"), approve=True)
    assert "draft recorded" in str(next(steps))
    turn(books, "off")
    assert [step.failed for step in steps] == [True]
    assert sandbox.client.v1.customers.list().data == []


def turn(books, state):
    now = datetime.now(UTC)
    switches.turn(books.engine, "test", {"sync": state}, who="ann", why="restored from a backup", now=now)


@pytest.mark.parametrize("arguments", [(), ("--period", "2026-13"), ("--period", "2026-10", "--due")])
def test_called_wrongly_is_exit_code_2(books, call, arguments):
    assert call("run", *arguments).exit_code == 2


def test_reconcile_compares_rating_ledger_and_stripe_with_units(books, call):
    books.rating("acme", USAGE)
    assert call("reconcile", "--period", "2026-10").exit_code == 3  # not invoiced yet
    call("run", "--due", "--approve")
    result = call("reconcile", "--period", "2026-10", "--json")
    document = json.loads(result.stdout)
    assert (result.exit_code, document["equal"]) == (0, True)
    [row] = document["invoices"]
    assert (row["rated_minor"], row["ledger_minor"], row["stripe_minor"], row["state"]) == (
        5125,
        5125,
        5125,
        "finalised",
    )
    assert row["rated_units"] == row["stripe_units"] == {"input": "1500000"}
    assert "equal" in call("reconcile", "--period", "2026-10").output


def test_reconcile_names_what_differs(books, sandbox, call):
    from sqlalchemy import update

    from meterhouse_store.sql import begin_write

    books.rating("acme", USAGE)
    call("run", "--due")
    entries = tables.ledger_entries
    with begin_write(books.engine) as connection:
        connection.exec_driver_sql("DROP TRIGGER ledger_entries_kept")
        is_it = (entries.c.account == "receivable") & (entries.c.amount_minor == 225)
        connection.execute(update(entries).where(is_it).values(amount_minor=224))
    result = call("reconcile", "--period", "2026-10")
    assert result.exit_code == 3
    assert "acme: the ledger's receivable is 51.24, rated 51.25" in result.output


def test_status_and_poll(books, call):
    assert "No invoices yet" in call("status").output
    books.rating("acme", USAGE)
    call("run", "--due", "--approve")
    assert "SANDBOX-0001" in call("status").output
    assert json.loads(call("status", "--json").stdout)["invoices"][0]["total_minor"] == 5125
    assert "0 changes." in call("poll").output


def test_status_shows_the_page_of_each_invoice_beside_a_table(books, sandbox, call):
    books.rating("acme", [("usage", "input", "10", 123_456_789)], stated=False)
    call("run", "--due", "--approve")
    [invoice] = sandbox.client.v1.invoices.list().data
    assert call("status").output.splitlines() == [
        f"customer  period                  state             total  currency  number        {'Stripe invoice'}",
        f"acme      2026-10-01..2026-11-01  finalised  1,234,567.89  USD       SANDBOX-0001  {invoice.id}",
        "",
        "The customers' pages",
        f"SANDBOX-0001  {invoice.hosted_invoice_url}",
    ]


def test_one_is_no_plural(books, sandbox, call, monkeypatch):
    books.rating("acme", USAGE)
    call("run", "--due", "--approve")
    [invoice] = sandbox.client.v1.invoices.list().data
    sandbox.client.v1.invoices.pay(invoice.id, {"payment_method": "pm_card_visa"})
    assert "1 change." in call("poll").output
    books.rating("globex", USAGE)
    monkeypatch.delenv("STRIPE_API_KEY")
    assert "1 closed rating waits" in call("run", "--due", "--customer", "globex").output


def test_reconcile_of_a_period_that_is_not_closed_says_how_to_see_and_how_to_close_it(call):
    result = call("reconcile", "--period", "2026-10")
    assert result.exit_code == 0
    assert result.output == (
        "Nothing to compare: no rating of 2026-10 is closed. `meterhouse rate status --period 2026-10` shows what is "
        "rated, `meterhouse rate close --period 2026-10` closes it.\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [("run", "--due"), ("status",), ("reconcile", "--period", "2026-10"), ("poll",), ("webhooks", "--port", "1")],
    ids=lambda arguments: arguments[0],
)
def test_in_a_wrong_directory_it_says_so_and_makes_nothing(call, tmp_path, monkeypatch, arguments):
    wrong = tmp_path / "wrong"
    monkeypatch.setenv("METERHOUSE_DATA", str(wrong))
    result = call(*arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"there is no Meterhouse in {wrong}")
    assert not wrong.exists()


def test_webhooks_needs_a_signing_secret(books, call):
    result = call("webhooks", "--port", "1")
    assert result.exit_code == 1
    assert "STRIPE_WEBHOOK_SECRET" in result.output
