"""Runs that are stopped, killed, made to fail, or run beside each other end in the totals of an undisturbed one.

With METERHOUSE_PROVE=1, as `make prove ONLY=rating` does it, at every step, statement and line on both databases;
otherwise at some of them.
"""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import commands
import pytest
from rating_samples import at
from sqlalchemy import event, select

from meterhouse_rating import credit_changes, ledger_books
from meterhouse_rating import run as running
from meterhouse_rating.credits import Grant
from meterhouse_rating.ledger_proof import prove
from meterhouse_rating.run import Request, close, run
from meterhouse_store import registry, tables
from meterhouse_store.sql import begin_write

EVERY = os.environ.get("METERHOUSE_PROVE") == "1"
METERHOUSE = str(Path(sys.executable).with_name("meterhouse"))

BOOK = """
book: crash
currency: USD
metrics:
  input: {unit: token, meters: [llm.tokens.input]}
plans:
  pay:
    components:
      pack: {model: credit_pack, price: 1.00, credits: 1.00}
      in: {model: per_unit, metric: input, per: 1000, price: 2.00}
"""

# a: pack 1.00 + 2.00 - 1.00; b: pack 1.00 + 4.00 - 1.00; c: pack 1.00 + 6.00 - 1.00 (c is registered by the run itself)
TOTALS = {"a": 200, "b": 400, "c": 600}
RECEIVABLE = {"a": 200, "b": 400, "c": 600}


@pytest.fixture(autouse=True)
def _batches(monkeypatch):
    """Customers are settled two in a transaction: a and b together, then c. So runs stop within batches and between."""
    monkeypatch.setattr(running, "BATCH", 2)


def furnished(house, number, customers="abc"):
    """A namespace of its own with the customers' usage in October 2025, and the house's view of it."""
    name = f"test-{number}"
    there = replace(house, world=replace(house.world, namespace=name))
    registry.ensure_namespace(there.world.engine, name, default_plan="pay")
    there.publish(BOOK)
    for customer in set(customers) - {"c"}:
        there.customer(customer)
    there.collected("2025-11-05T00:00:00")
    there.events(
        [
            {"customer_id": customer, "meter": "llm.tokens.input", "quantity": quantity, "when": "2025-10-05T00:00:00"}
            for customer, quantity in (("a", "1000"), ("b", "2000"), ("c", "3000"))
            if customer in customers
        ]
    )
    return there


def result(house):
    """What the namespace's money looks like: totals, receivable per customer, and the mirror's totals."""
    namespace = house.world.namespace
    entries, transactions = tables.ledger_entries, tables.ledger_transactions
    query = (
        select(transactions.c.customer_id, entries.c.account, entries.c.amount_minor)
        .join(transactions, transactions.c.transaction_id == entries.c.transaction_id)
        .where(transactions.c.namespace == namespace)
    )
    owed: dict[str, int] = {}
    with house.world.engine.connect() as connection:
        posted = connection.execute(query).all()
    assert sum(amount for _, _, amount in posted) == 0
    for customer, account, amount in posted:
        if account == "receivable":
            owed[customer] = owed.get(customer, 0) + amount
    rows = [row for row in house.rows(tables.ratings) if row["namespace"] == namespace]
    mirrored = house.world.client.query(
        "SELECT customer_id, toInt64(sum(amount_minor)) FROM rated_lines "
        "WHERE namespace = {namespace:String} GROUP BY customer_id",
        parameters={"namespace": namespace},
    )
    return (
        {row["customer_id"]: row["total_minor"] for row in rows},
        {row["state"] for row in rows},
        owed,
        dict(mirrored.result_rows),
    )


def taken(house, step):
    """Whether to take a step: all where it is asked for; else every second on SQLite, and every third elsewhere."""
    return EVERY or (step % 2 == 0 if house.world.engine.dialect.name == "sqlite" else step % 3 == 2)


def closing(house):
    return close(house.world, Request("2025-10"), grace=timedelta(hours=1), wait_s=0)


def test_a_run_stopped_after_any_step_and_started_again_ends_in_the_same_totals(house):
    for steps in itertools.count():
        if not taken(house, steps):
            continue
        there = furnished(house, steps)
        going = run(there.world, Request("2025-10"))
        done = list(itertools.islice(going, steps))
        going.close()
        list(run(there.world, Request("2025-10")))
        assert result(there) == (TOTALS, {"open"}, {}, TOTALS), f"stopped after {[str(step) for step in done]}"
        if len(done) < steps:
            break
    assert steps == 8  # watermark, usage, a, b, c registered, c, mirrored: each was stopped after


def test_a_close_stopped_after_any_step_and_started_again_ends_in_the_same_totals(house):
    for steps in itertools.count():
        if not taken(house, steps):
            continue
        there = furnished(house, steps)
        going = closing(there)
        done = list(itertools.islice(going, steps))
        going.close()
        list(closing(there))
        assert result(there) == (TOTALS, {"closed"}, RECEIVABLE, TOTALS), f"stopped after {[str(s) for s in done]}"
        if len(done) < steps:
            break
    assert steps == 8


@contextmanager
def failing_at(engine, number, *, writes=False) -> Iterator[list[str]]:
    """The SQL statement of that number (from 0; None: none), of those that write if asked for, fails."""
    seen: list[str] = []

    def look(_connection, _cursor, statement, *_more):
        if writes and not statement.startswith(("INSERT", "UPDATE", "DELETE")):
            return
        seen.append(statement)
        if number is not None and len(seen) == number + 1:
            raise OSError("No space left on device")

    event.listen(engine, "before_cursor_execute", look)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", look)


def test_a_close_that_fails_at_any_sql_statement_and_is_started_again_ends_in_the_same_totals(sqlite_house):
    house = sqlite_house
    there = furnished(house, "undisturbed")
    with failing_at(house.world.engine, None) as seen:
        list(closing(there))
    statements = len(seen)
    assert statements > 20
    for number in range(0, statements, 1 if EVERY else 25):
        there = furnished(house, number)
        with failing_at(there.world.engine, number) as seen, pytest.raises(OSError, match="No space left"):
            list(closing(there))
        list(closing(there))
        assert result(there) == (TOTALS, {"closed"}, RECEIVABLE, TOTALS), f"failed at {seen[-1]}"


def owing(house, number):
    """A customer whose October is closed, with late usage of it, a gift that ends in November, and November's usage."""
    there = furnished(house, number, "a")
    list(closing(there))  # pack 1.00, 2.00 of usage, of which the pack pays 1.00
    world = there.world
    gift = Grant("", "promotional", 500, at("2025-11-01"), expires_at=at("2025-11-30"))
    told = {"reference": "gift", "who": "ann", "why": "sorry", "now": at("2025-11-01")}
    credit_changes.grant(world.engine, world.namespace, "a", gift, None, **told)
    there.event("a", "llm.tokens.input", "1000", "2025-11-10T00:00:00")
    there.event("a", "llm.tokens.input", "500", "2025-10-20T00:00:00", received="2025-11-20T00:00:00")
    there.collected("2025-12-05T00:00:00", position=2000)
    return there


def test_a_close_with_a_correction_and_ending_credits_that_fails_at_any_write_ends_as_an_undisturbed_one(sqlite_house):
    for number in itertools.count(0, 1 if EVERY else 12):  # what is written is one transaction
        there = owing(sqlite_house, number)
        world = there.world

        def november(world=world):
            return close(world, Request("2025-11"), grace=timedelta(hours=1), wait_s=0)

        with failing_at(world.engine, number, writes=True) as seen:
            try:
                list(november())
                finished = True
            except OSError:
                finished = False
        list(november())
        list(november())
        # 2.00 of November and 1.00 of October come from the gift; 2.00 of it end. The 2.00 of October stay owed.
        balances = ledger_books.balances(world.engine, world.namespace, "a", None)
        assert {it.account: it.amount_minor for it in balances if it.amount_minor} == {
            "receivable": 200,
            "promotions": 300,
            "revenue": -500,
        }, f"failed at {seen[-1]}"
        assert prove(world.engine, world.namespace).problems == []
        kinds = [row["kind"] for row in there.rows(tables.ledger_transactions) if row["namespace"] == world.namespace]
        assert (kinds.count("correction"), kinds.count("credit_expired")) == (1, 1)
        if finished:
            break
    assert number > 5


def test_a_process_killed_upon_any_printed_line_and_started_again_ends_in_the_same_totals(house, command_environment):
    for lines in range(1, 8):
        if not taken(house, lines):
            continue
        there = furnished(house, lines)
        environment = command_environment(house) | {"METERHOUSE_NAMESPACE": there.world.namespace}
        command = [METERHOUSE, "rate", "close", "--period", "2025-10"]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as killed:
            assert killed.stdout is not None
            printed = [killed.stdout.readline() for _ in range(lines)]
            killed.send_signal(signal.SIGKILL)
        assert all(printed), printed
        list(closing(there))
        assert result(there) == (TOTALS, {"closed"}, RECEIVABLE, TOTALS), f"killed upon {printed[-1]!r}"


@pytest.mark.parametrize("final", [False, True], ids=["run", "close"])
def test_two_at_once_end_in_the_totals_of_one(house, final):
    there = furnished(house, 1)
    failures: list[Exception] = []
    start = threading.Barrier(2)

    def go():
        start.wait()
        try:
            list(closing(there) if final else run(there.world, Request("2025-10")))
        except Exception as failure:  # noqa: BLE001 (the assertion below shows it, whatever it is)
            failures.append(failure)

    threads = [threading.Thread(target=go) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == [] and not any(thread.is_alive() for thread in threads)
    owed = RECEIVABLE if final else {}
    assert result(there) == (TOTALS, {"closed" if final else "open"}, owed, TOTALS)


@pytest.mark.parametrize("final", [False, True], ids=["run", "close"])
def test_a_run_that_begins_while_another_one_registers_a_customer_knows_its_contract(house, final, monkeypatch):
    """The other one runs between what this one reads of the registry: c was a customer without a contract. Closing
    reads it twice, and rates by what it read last.
    """
    there = furnished(house, 1)
    waiting = [lambda: list(run(there.world, Request("2025-10")))] + [lambda: None] * (2 if final else 0)

    def then_the_other(read):
        def reading(*arguments):
            found = read(*arguments)
            if waiting:
                waiting.pop()()
            return found

        return reading

    for name in ("customers", "contracts"):
        monkeypatch.setattr(registry, name, then_the_other(getattr(registry, name)))
    list(closing(there) if final else run(there.world, Request("2025-10")))
    assert waiting == []
    owed = RECEIVABLE if final else {}
    assert result(there) == (TOTALS, {"closed" if final else "open"}, owed, TOTALS)


def test_a_run_waits_for_another_one_that_settles_one_of_the_customers_of_its_batch(house):
    there = furnished(house, 1)
    with begin_write(there.world.engine) as other:
        is_it = (tables.customers.c.namespace == "test-1") & (tables.customers.c.customer_id == "b")
        other.execute(select(tables.customers).where(is_it).with_for_update())
        waiting = threading.Thread(target=lambda: list(closing(there)))
        waiting.start()
        waiting.join(1.5)
        assert waiting.is_alive()
        assert [row for row in there.rows(tables.ratings) if row["namespace"] == "test-1"] == []
    waiting.join(60)
    assert result(there) == (TOTALS, {"closed"}, RECEIVABLE, TOTALS)


def test_a_run_that_another_one_overtook_rates_on_what_is_known_now(house):
    there = furnished(house, 1)
    slow = run(there.world, Request("2025-10"))
    next(slow), next(slow)  # it has read the watermark and the usage
    there.collected("2025-11-06T00:00:00", position=5000)
    there.event("a", "llm.tokens.input", "1000", "2025-10-06T00:00:00", received="2025-11-05T12:00:00")
    list(run(there.world, Request("2025-10")))
    list(slow)
    assert result(there)[0] == {**TOTALS, "a": 400}


# ---- the commands ---------------------------------------------------------------------------------------------------


def meterhouse(environment, *arguments):
    done = commands.run(arguments, env=environment)
    return done.returncode, done.stdout, done.stderr


def test_the_commands_from_price_book_to_closed_month(sqlite_house, command_environment, tmp_path):
    house = sqlite_house
    environment = command_environment(house) | {"METERHOUSE_NAMESPACE": "test"}
    bad = tmp_path / "bad.yaml"
    bad.write_text("book: x\ncurrency: USDD\nmetrics: {}\nplans: {}\n")
    code, out, err = meterhouse(environment, "prices", "check", str(bad))
    assert (code, out) == (1, "")
    assert err.splitlines()[0].startswith("line 2: currency: `USDD` is not known.")
    assert err.splitlines()[-1] == "3 mistakes."

    code, out, err = meterhouse(environment, "rate", "run", "--period", "2025-10")
    assert code == 1 and "meterhouse prices publish" in err

    book = tmp_path / "book.yaml"
    book.write_text(BOOK)
    code, out, _ = meterhouse(environment, "prices", "publish", str(book), "--author", "ann")
    assert (code, out) == (0, "Price book crash, version 1, published: valid from the beginning.\n")
    code, out, _ = meterhouse(environment, "prices", "publish", str(book))
    assert "was published already, nothing changed" in out

    house.customer("a")
    house.collected("2025-11-05T00:00:00")
    house.event("a", "llm.tokens.input", "1000", "2025-10-05T00:00:00")
    house.event("z", "llm.tokens.input", "1000", "2025-10-05T00:00:00")
    code, out, err = meterhouse(environment, "rate", "run", "--period", "2025-10", "--json")
    assert code == 3, err
    document = json.loads(out)
    assert [(rating["customer_id"], rating["total"]) for rating in document["ratings"]] == [("a", "2.00")]
    assert [(row["customer_id"], row["reason"]) for row in document["unrated"]] == [("z", "customer_not_registered")]

    code, out, _ = meterhouse(environment, "rate", "close", "--period", "2025-10", "--customer", "a")
    assert (code, "closed a 2.00 USD 2025-10-01..2025-11-01" in out) == (0, True)
    code, out, _ = meterhouse(environment, "rate", "status", "--period", "2025-10")
    # 3: the usage of z still has no price.
    assert code == 3 and "a  2025-10-01..2025-11-01  plan pay, price book version 1, closed" in out

    line = document["ratings"][0]["lines"][1]["line_id"]
    code, out, _ = meterhouse(environment, "rate", "explain", line[:12], "--json")
    assert json.loads(out)["steps"] == [
        {"quantity": "1000", "price": "2", "per": "1000", "amount": "2", "book_line": 10}
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["rate", "run"], "Name a --period, or --due"),
        (["rate", "run", "--period", "soon"], "is no period"),
        (["rate", "status", "--period", "soon"], "is no period"),
        (["rate", "close", "--period", "2025-10", "--grace", "long"], "is no duration"),
        (["prices", "publish"], "Name a FILE, or --starter"),
    ],
)
def test_a_command_called_wrongly_says_so_with_exit_code_2(sqlite_house, command_environment, arguments, says):
    sqlite_house.publish(BOOK)
    code, _, err = meterhouse(command_environment(sqlite_house), *arguments)
    assert (code, says in err) == (2, True), err


def test_publishing_again_changes_nothing_and_versions_follow_each_other(house):
    from meterhouse_rating import versions

    engine, units = house.world.engine, {name: meter.unit for name, meter in house.world.meters.items()}

    def publish(text, author="ann", **more):
        version, new = versions.publish(engine, "test", text, units, author=author, **more)
        return version.version, version.valid_from.year, new

    other = BOOK.replace("2.00", "3.00")
    assert publish(versions.starter(), versions.STARTER_AUTHOR) == (1, 1970, True)
    assert publish(BOOK) == (2, 1970, True)
    assert publish(BOOK) == (2, 1970, False)
    assert publish(other, now=at("2026-05-01")) == (3, 2026, True)
    assert publish(other, now=at("2027-05-01")) == (3, 2026, False)
    assert publish(BOOK, valid_from=at("2027-01-01")) == (4, 2027, True)
    assert publish(BOOK, valid_from=at("2027-01-01")) == (4, 2027, False)
    assert [version.source for version in versions.versions(engine, "test")][1:] == [BOOK, other, BOOK]
