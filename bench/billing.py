"""Billing: how fast invoices and usage get to Stripe, and random months that have to end exact, for both drivers.

The baseline of a measurement is what Stripe's published limits allow, not another program. Stripe is the sandbox, on
the same machine and with the same limits, so part of the time is its own.
"""

import logging
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

EVENTS_PER_S = 1000
"""Meter events of v1: https://docs.stripe.com/billing/subscriptions/usage-based/recording-usage-api"""
CUSTOMERS, HOURS = 20, 500
STREAMED_CUSTOMERS = 200
READ_BACK_S = 0.06
"""Between two of them: one endpoint takes 25 requests a second."""
CALLS_PER_S = 100
"""Of an account in live mode; of each endpoint a quarter of it: https://docs.stripe.com/rate-limits"""
INVOICES = int(os.environ.get("METERHOUSE_BENCH_INVOICES", "10000"))
CALLS = ("customer.create", "invoice.create", "invoice.add_lines", "invoice, read back", "invoice.finalise")
"""What an invoice of a customer new to Stripe takes. No endpoint twice: the account's limit is the narrow one."""
SEEDS = int(os.environ.get("METERHOUSE_PROOF_SEEDS", "1000"))
FIRST = int(os.environ.get("METERHOUSE_PROOF_FIRST", "0"))
DRIVERS = os.environ.get("METERHOUSE_PROOF_DRIVERS", "meter invoice").split()
"""A proof may be run in parts: so many seeds, from this one on, of one driver or both."""
_ended_s: list[float] = []
"""Processor time of each sandbox that has ended."""

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "billing_sync"))


def bench() -> list[dict[str, Any]]:
    """Seconds from closed ratings to finalised invoices, and hourly totals per second from usage to meter events."""
    return [
        {
            "name": "billing.meter_events_per_s",
            "value": _meter_events(CUSTOMERS, HOURS, "off"),
            "unit": "events/s",
            "baseline": EVENTS_PER_S,
            "baseline_is": "Stripe's limit for meter events of v1",
            "better": "higher",
        },
        {
            "name": "billing.meter_events_streamed_per_s",
            "value": _meter_events(STREAMED_CUSTOMERS, HOURS, "auto"),
            "unit": f"events/s, {STREAMED_CUSTOMERS * HOURS:,} that wait",
            "baseline": EVENTS_PER_S,
            "baseline_is": "Stripe's limit for meter events of v1",
            "better": "higher",
        },
        _invoices(),
    ]


def prove() -> list[dict[str, Any]]:
    """Random months (tests/billing_sync/*_months.py) per driver: a sample, each of which follows from its seed."""
    rows = []
    for driver in DRIVERS:
        name, month = f"billing.{driver}_months", {"meter": _month, "invoice": _invoice_month}[driver]
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            seeds = range(FIRST, FIRST + SEEDS)
            found = [text for texts in pool.imap_unordered(month, seeds, chunksize=5) for text in texts]
        for text in found[:5]:
            print(text)
        rows.append({"name": name, "cases": SEEDS, "violations": len(found)})
    return rows


def _invoices() -> dict[str, Any]:
    from meterhouse_billing import pool, records
    from meterhouse_billing.gateway import connect
    from meterhouse_billing.world import World
    from meterhouse_store.settings import Settings
    from meterhouse_store.sql import open_engine

    with tempfile.TemporaryDirectory() as scratch, _stripe(Path(scratch) / "stripe") as url:
        engine = open_engine(Settings(data=Path(scratch) / "data", namespace="test"))
        total_minor = _rated(engine)
        environment = {"STRIPE_API_KEY": "sk_test_1", "METERHOUSE_STRIPE_URL": url}
        world = World(
            engine, connect(environment | {"METERHOUSE_STRIPE_PER_S": str(CALLS_PER_S)}, live=False), "test", "a"
        )
        began, used = time.perf_counter(), time.process_time()
        drafts = records.drafts(engine, "test", period="2026-10")
        steps = list(pool.work(pool.jobs(world, drafts, [], approve=True)))
        took, used = time.perf_counter() - began, time.process_time() - used
        wrong = [str(step) for step in steps if step.failed]
        found = records.all_invoices(engine, "test")
        sums = (len(found), sum(row["stripe_total_minor"] for row in found), {row["state"] for row in found})
        if wrong or sums != (INVOICES, total_minor, {"finalised"}):
            raise AssertionError(f"{wrong[:1]}: {sums}, rated {INVOICES} of {total_minor}")
        with urllib.request.urlopen(f"{url}/_sandbox/refused") as answer:
            print(f"{INVOICES} invoices in {took:.1f} s; above the limits: {answer.read().decode()}")
        engine.dispose()
    _told("invoice", used, INVOICES)
    at_least = INVOICES * len(CALLS) / CALLS_PER_S
    return {
        "name": "billing.invoices_10k_s",
        "value": round(took * 10_000 / INVOICES, 1),
        "unit": "s" if INVOICES == 10_000 else f"s, from {INVOICES:,} invoices",
        "baseline": round(at_least * 10_000 / INVOICES, 1),
        "baseline_is": f"{len(CALLS)} calls each at Stripe's {CALLS_PER_S} a second",
        "better": "lower",
    }


def _rated(engine: Any) -> int:
    """INVOICES customers with a closed rating of October of three lines each; the sum of them in minor units."""
    from decimal import Decimal

    from metered import NOVEMBER, OCTOBER
    from sqlalchemy import insert

    from meterhouse_rating import ledger
    from meterhouse_rating.ledger import Due
    from meterhouse_store import registry, tables
    from meterhouse_store.sql import begin_write

    registry.ensure_namespace(engine, "test", now=OCTOBER)
    customers, ratings, lines, stated = [], [], [], []
    for number in range(INVOICES):
        name, rating_id, amounts = f"customer-{number:05}", f"rating-{number:05}", (120 + number, 55, 1000)
        customers.append({"customer_id": name, "name": name, "currency": "USD", "time_zone": "UTC"})
        ratings.append({"rating_id": rating_id, "customer_id": name, "total_minor": sum(amounts)})
        stated.append({"rating_id": rating_id})
        for position, amount in enumerate(amounts):
            named = {"line_id": f"{rating_id}-{position}", "rating_id": rating_id, "position": position}
            about = {"component": f"part-{position}", "metric": "tokens", "description": f"Part {position}"}
            lines.append(named | about | {"amount_exact": Decimal(amount), "amount_minor": amount})
    of_ratings = {
        "namespace": "test", "period_start": OCTOBER, "period_end": NOVEMBER, "state": "closed", "currency": "USD",
        "plan": "pay", "book_version": 1, "watermark": {}, "as_of": NOVEMBER, "inputs_sha256": "i",
        "result_sha256": "r", "rated_at": NOVEMBER, "closed_at": NOVEMBER,
    }  # fmt: skip
    of_lines = {"kind": "usage", "quantity": Decimal(10), "unit": "{token}", "dimensions": {}, "currency": "USD"}
    of_stated = {"verdict": "Complete.", "statement": {"verdict": "Complete."}, "stated_at": NOVEMBER}
    lines = [row | of_lines | {"explanation": {}} for row in lines]
    whose = {row["rating_id"]: row["customer_id"] for row in ratings}
    postings = zip(ledger.of_lines(lines, "test"), lines, strict=True)
    with begin_write(engine) as connection:
        connection.execute(
            insert(tables.customers),
            [row | {"namespace": "test", "registered_at": OCTOBER, "origin": "operator"} for row in customers],
        )
        connection.execute(insert(tables.ratings), [row | of_ratings for row in ratings])
        connection.execute(insert(tables.rated_lines), lines)
        connection.execute(insert(tables.rating_statements), [row | of_stated for row in stated])
        due = [Due(whose[line["rating_id"]], posting, NOVEMBER, NOVEMBER) for posting, line in postings]
        ledger.post_all(connection, "test", due)
    return sum(int(row["total_minor"]) for row in ratings)


def _meter_events(customers: int, hours: int, stream: str) -> float:
    """Hourly totals per second from usage to Stripe's meters, each of which is looked at afterwards."""
    from metered import DECLARED, NOVEMBER, OCTOBER, Metered

    from meterhouse_billing import meter_sync
    from meterhouse_billing.meter_gateway import MeterGateway
    from meterhouse_billing.meter_setup import Choice, setup
    from meterhouse_store import registry
    from meterhouse_store.settings import Settings
    from meterhouse_store.sql import open_engine

    with tempfile.TemporaryDirectory() as scratch, _stripe(Path(scratch) / "stripe") as url:
        engine = open_engine(Settings(data=Path(scratch) / "data", namespace="test"))
        registry.ensure_namespace(engine, "test", now=OCTOBER)
        metered = Metered(engine, url)
        names = [f"customer-{number}" for number in range(customers)]
        for name in names:
            metered.customer(name)
        metered.gateway._sleep = time.sleep
        failed = [str(step) for step in setup(metered.world, DECLARED, Choice({})) if step.failed]
        if failed:
            raise AssertionError(failed[0])
        metered.at(NOVEMBER - timedelta(hours=1))
        for name in names:
            for hour in range(hours):
                metered.truth.use(name, "documents", OCTOBER + timedelta(hours=hour), 1 + hour % 7)
        run = meter_sync.Sync(metered.world, metered.truth, MeterGateway(metered.gateway), stream=stream)
        began, used = time.perf_counter(), time.process_time()
        for _ in meter_sync.plan(run):
            pass
        for _ in meter_sync.deliver(run):
            pass
        took, used = time.perf_counter() - began, time.process_time() - used
        wrong = []
        for name in names:
            time.sleep(READ_BACK_S)
            if metered.in_stripe(name, "documents") != metered.truth.total(name, "documents"):
                wrong.append(name)
        engine.dispose()
    _told("streamed meter event" if stream == "auto" else "meter event", used, customers * hours)
    if wrong:
        raise AssertionError(f"{wrong[0]} has another total in Stripe")
    return round(customers * hours / took, 1)


def _told(what: str, used_s: float, number: int) -> None:
    """Whose processor time it was, when the sandbox has ended."""
    ours, its = (f"{seconds * 1000 / number:.2f} ms" for seconds in (used_s, _ended_s[-1]))
    print(f"processor time of each of {number} {what}s: {ours} this process's, {its} the sandbox's, start included")


def _month(seed: int) -> list[str]:
    """One random month with a sandbox of its own."""
    from conftest import Server
    from meter_months import check

    from meterhouse_sandbox.stripe_server import application

    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # broken connections are what is wanted here
    with (
        tempfile.TemporaryDirectory(dir=_fast()) as scratch,
        Server(application(Path(scratch) / "stripe")) as server,
    ):
        try:
            return check(seed, Path(scratch) / "data", server.url)
        except Exception as problem:  # noqa: BLE001 (a run that ends otherwise is a violation, too)
            return [f"seed {seed}: {type(problem).__name__}: {problem}"]


def _invoice_month(seed: int) -> list[str]:
    """Two random months of invoices with a sandbox of their own."""
    from conftest import OCTOBER, Books, Server
    from invoice_months import check

    from meterhouse_sandbox.stripe_server import application
    from meterhouse_store import registry
    from meterhouse_store.settings import Settings
    from meterhouse_store.sql import open_engine

    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    with (
        tempfile.TemporaryDirectory(dir=_fast()) as scratch,
        Server(application(Path(scratch) / "stripe")) as server,
    ):
        settings = Settings(data=Path(scratch) / "data", namespace="test")
        engine = open_engine(settings)
        try:
            registry.ensure_namespace(engine, "test", now=OCTOBER)
            return [f"seed {seed}: {text}" for text in check(seed, Books(settings, engine), server.url)]
        except Exception as problem:  # noqa: BLE001 (a run that ends otherwise is a violation, too)
            return [f"seed {seed}: {type(problem).__name__}: {problem}"]
        finally:
            engine.dispose()


def _fast() -> str | None:
    """A directory in memory, where there is one: nothing here is about power cuts."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


@contextmanager
def _stripe(folder: Path) -> Iterator[str]:
    """The sandbox in a process of its own, with Stripe's limits."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "import sys; from meterhouse.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["sandbox", "stripe", "--port", str(port), "--data", str(folder), "--limits"]
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{url}/healthz").close()
                break
            except urllib.error.URLError:
                time.sleep(0.1)
        yield url
    finally:
        before = os.times()
        process.terminate()
        process.wait(30)
        after = os.times()
        _ended_s.append(after.children_user + after.children_system - before.children_user - before.children_system)


if __name__ == "__main__":
    for row in bench():
        print(row)
