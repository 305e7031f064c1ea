"""How long rating takes: a month of many customers, ten times as many, another book, and what is new each minute.

    make bench ONLY=rating                              1/50 of the full size: a million events a month, 200 customers
    METERHOUSE_BENCH_SCALE=1 make bench ONLY=rating     50 million events a month, 10,000 customers: an hour or more

The unit of each row says what was measured. Events are made by the engine from numbers(), the same in every run; five
meters, graduated prices. The rating process is this one; the warehouse is another, as it is in use: months that are
over are merged into one part each before they are closed or simulated, as the engine does by itself six hours after
their last event, and their days are summed, as `meterhouse jobs` does a quarter of an hour after it. Each row has a
baseline of the same run, because machines differ. Nothing is extrapolated but baselines, which say so.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from clickhouse_connect.driver.client import Client
from sqlalchemy import func, insert, select

from meterhouse_rating import versions
from meterhouse_rating.run import Request, close, run
from meterhouse_rating.simulate import simulate
from meterhouse_rating.world import World
from meterhouse_store import registry, rollups, schema, tables, warehouse
from meterhouse_store.meters import declared
from meterhouse_store.settings import Settings
from meterhouse_store.sql import begin_write, open_engine

SCALE = float(os.environ.get("METERHOUSE_BENCH_SCALE", "0.02"))
EVENTS, CUSTOMERS = int(50_000_000 * SCALE), int(10_000 * SCALE)
MINUTE = max(1, EVENTS // (30 * 24 * 60))
ALONE = 10
"""So many customers the baselines do one by one; what that takes is multiplied to all."""

PROOF_CASES = 10_000
_BOTH = ("-m", "long or not long")
"""On both databases, that take turns in `make test`."""
METERS = ("llm.tokens.input", "llm.tokens.cache_read", "llm.tokens.output", "llm.tokens.reasoning", "tool.calls")
RATED, EARLIER = "2026-10", ("2026-08", "2026-09")
START, NOW = datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 11, 5, tzinfo=UTC)
INSERTED_AT_A_TIME = 2_000_000
MERGED_WITHIN_S = 3600

BOOK = """
book: bench
currency: USD
metrics:
  input: {unit: token, meters: [llm.tokens.input, llm.tokens.cache_read]}
  output: {unit: token, meters: [llm.tokens.output, llm.tokens.reasoning]}
  tools: {unit: call, meters: [tool.calls]}
plans:
  pay:
    components:
      input:
        model: graduated
        metric: input
        per: 1000
        tiers: [{up_to: 100000, price: 0.03}, {up_to: 1000000, price: 0.02}, {price: 0.01}]
      output:
        model: graduated
        metric: output
        per: 1000
        tiers: [{up_to: 100000, price: 0.30}, {up_to: 1000000, price: 0.20}, {price: 0.10}]
      tools: {model: graduated, metric: tools, tiers: [{up_to: 500, price: 0.05}, {price: 0.04}]}
"""
OTHER_BOOK = BOOK.replace("price: 0.02}", "price: 0.025}")

FILL = """
INSERT INTO events (namespace, customer_id, meter, event_id, event_time, quantity, status, model, received_at, first,
    credential_id, service_name, process_id, usage_source, record_id, segment)
SELECT {namespace:String}, concat('customer-', leftPad(toString(cityHash64(number) % {customers:UInt64}), 5, '0')),
    {meters:Array(String)}[1 + cityHash64(number, 1) % 5], lower(hex(sipHash128(number, {start:String}))),
    toDateTime64({start:String}, 9, 'UTC')
        + toIntervalMillisecond(intDiv(number * {length_ms:UInt64}, {events:UInt64})) AS happened,
    toDecimal128(1 + number % 997, 9), 'ok', concat('model-', toString(cityHash64(number, 2) % 4)),
    happened + toIntervalSecond(60) AS received, bitNot(toUInt64(toUnixTimestamp64Nano(received))),
    concat('key-', toString(cityHash64(number) % 50)), 'agent', concat('process-', toString(number % 1000)), 'reported',
    toString(intDiv(number, 1000)), 'segment-1'
FROM numbers({first:UInt64}, {count:UInt64})
"""

SERVE = """
import sys
from pathlib import Path
from meterhouse_store.embedded import serve
serve(Path(sys.argv[1]), "127.0.0.1", int(sys.argv[2]), {"admin": "secret", "reader": "read"})
"""

Row = dict[str, Any]


def bench() -> list[Row]:
    """The five measurements; at METERHOUSE_BENCH_SCALE=1 those that the goals are about."""
    size = f"{EVENTS:,} events, {CUSTOMERS:,} customers"
    with tempfile.TemporaryDirectory() as scratch, _warehouse(Path(scratch)) as url:
        small = _Bench.made(Path(scratch), url, "small", EVENTS // 10, CUSTOMERS // 10)
        small.fill(RATED)
        small.next_minute()  # so that both sizes have ratings that closing replaces
        small.at(NOW)
        few_s = small.closed()
        large = _Bench.made(Path(scratch), url, "large", EVENTS, CUSTOMERS)
        large.fill(RATED)
        anew_s, new_s = large.next_minute()
        large.at(NOW)
        alone_s = large.closed_alone()
        before_mb = _memory_mb("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
        all_s = large.closed()
        peak_mb = _memory_mb("VmHWM")
        for month in EARLIER:
            large.fill(month)
        large.at(NOW)
        months_s, months_alone_s = large.simulated()
    one_by_one = f"{ALONE} customers, each by itself, times {CUSTOMERS // ALONE}"
    return [
        _row("seconds_50m_events", all_s, f"s ({size})", alone_s, one_by_one),
        _row("rss_mb", peak_mb, f"MB ({size})", before_mb, "the process before it rates"),
        _row("growth_10x_customers", all_s / few_s, f"times (to {size})", 10, "ten times the customers"),
        _row("simulate_quarter_s", months_s, f"s (3 months of {size})", months_alone_s, one_by_one),
        _row("incremental_s", new_s, f"s ({MINUTE:,} new of {size})", anew_s, "rate run --due"),
    ]


def prove() -> list[Row]:
    """Random books and months in parts, with many more cases than the tests; and crashes at every step."""
    return [_random_books(), _random_months(), _crashes()]


def _random_books() -> Row:
    """What tests/rating/random_books.py checks."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "rating"))
    import random_books
    from hypothesis import HealthCheck, Phase, given, settings

    violations: list[str] = []
    count = 0

    @settings(
        max_examples=PROOF_CASES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(random_books.cases())
    def check(case: Any) -> None:
        nonlocal count
        count += 1
        try:
            random_books.check(case)
        except AssertionError as broken:
            violations.append(str(broken))

    check()
    for text in violations[:5]:
        print(text)
    return {"name": "rating.random_books", "cases": count, "violations": len(violations)}


def _random_months() -> Row:
    """tests/rating/test_random_months.py with more worlds, each of many months."""
    import suite

    return suite.tests("rating.random_months", *_BOTH, "tests/rating/test_random_months.py")


def _crashes() -> Row:
    """tests/rating/test_rating_crash.py at every step, statement and line instead of some of them."""
    import suite

    return suite.tests("rating.crashes", *_BOTH, "tests/rating/test_rating_crash.py")


@dataclass
class _Bench:
    """A namespace; how many events it has in a month, and of how many customers."""

    world: World
    events: int
    customers: int

    @classmethod
    def made(cls, scratch: Path, url: str, namespace: str, events: int, customers: int) -> "_Bench":
        """The namespace with its book and its customers."""
        sql_url = f"sqlite:///{scratch / namespace}.db"
        settings = Settings(data=scratch, namespace=namespace, warehouse_url=url, sql_url=sql_url)
        engine, client, meters = open_engine(settings), warehouse.connect(settings), declared(settings)
        registry.ensure_namespace(engine, namespace)
        versions.publish(engine, namespace, BOOK, {name: it.unit for name, it in meters.items()}, author="bench")
        registry.add_customer(engine, namespace, _name(0), plan="pay", now=START)
        with begin_write(engine) as connection:  # the others are like the first; one by one they take minutes
            for table in (tables.customers, tables.contracts):
                first = dict(connection.execute(select(table)).mappings().one())
                rows = [first | {"customer_id": _name(number)} for number in range(1, customers)]
                if "contract_id" in first:
                    rows = [row | {"contract_id": f"{number:064x}"} for number, row in enumerate(rows)]
                if rows:
                    connection.execute(insert(table), rows)
        return cls(World(engine, client, namespace, meters), events, customers)

    def fill(self, month: str) -> None:
        """A month of events, up to the end of its thirtieth day."""
        self._fill(_start(month), self.events, timedelta(days=30))

    def at(self, now: datetime) -> None:
        """Let it be that moment, with all that was sent before it in the warehouse."""
        self.world = replace(self.world, now=lambda: now)
        if now == NOW:
            _merge(self.world.client)
            rollups.roll_up(self.world.client, settled_s=0)
        row = ["collector-1", "segment-1", 1000, now, int(now.timestamp())]
        columns = ["collector_id", "segment", "position", "projected_through", "step"]
        self.world.client.insert("checkpoints", [row], column_names=columns)

    def closed(self) -> float:
        """Seconds until the lines of all customers are in the ledger."""
        began = time.perf_counter()
        for _ in close(self.world, Request(RATED), grace=timedelta(hours=1), wait_s=0):
            pass
        took = time.perf_counter() - began
        posted = select(func.count()).select_from(tables.ledger_transactions)
        with self.world.engine.connect() as connection:
            lines = connection.execute(posted).scalar_one()
        if lines != 3 * self.customers:
            raise AssertionError(f"{lines} lines of {self.customers} customers are in the ledger")
        return took

    def closed_alone(self) -> float:
        """What it would take to close each customer by a run of its own, from some of them."""
        began = time.perf_counter()
        for name in self._some:
            for _ in close(self.world, Request(RATED, name), grace=timedelta(hours=1), wait_s=0):
                pass
        return (time.perf_counter() - began) * self.customers / ALONE

    def next_minute(self) -> tuple[float, float]:
        """Seconds of `rate run --due` when the month is nearly over, and of `rate run --new` a minute later."""
        evening = _start(RATED) + timedelta(days=30)
        self.at(evening + timedelta(minutes=1))
        first, rated = self._ran(Request(None))
        self._ran(Request(None, new=True))  # from here on it knows what came before
        self._fill(evening, MINUTE, timedelta(minutes=1))
        self.at(evening + timedelta(minutes=2))
        again, rated_again = self._ran(Request(None, new=True))
        if rated != self.customers or not 0 < rated_again <= MINUTE:
            raise AssertionError(f"{rated} customers were rated, and {rated_again} of {MINUTE} new events")
        return first, again

    def simulated(self) -> tuple[float, float]:
        """Seconds to price all months under another book; and one customer by one, from some of them."""
        began = time.perf_counter()
        made = simulate(self.world, OTHER_BOOK, (*EARLIER, RATED))
        took = time.perf_counter() - began
        if len(made.changes) != self.customers or made.totals["USD"].minor <= 0:
            raise AssertionError(f"{len(made.changes)} customers were simulated: {made.totals}")
        began = time.perf_counter()
        for name in self._some:
            simulate(self.world, OTHER_BOOK, (*EARLIER, RATED), name)
        return took, (time.perf_counter() - began) * self.customers / ALONE

    @property
    def _some(self) -> list[str]:
        return [_name(number * self.customers // ALONE) for number in range(ALONE)]

    def _ran(self, request: Request) -> tuple[float, int]:
        began = time.perf_counter()
        rated = sum(step.name == "rated" for step in run(self.world, request))
        return time.perf_counter() - began, rated

    def _fill(self, start: datetime, events: int, length: timedelta) -> None:
        """That many events, evenly over a time."""
        for first in range(0, events, INSERTED_AT_A_TIME):
            parameters = {
                "namespace": self.world.namespace,
                "customers": self.customers,
                "meters": list(METERS),
                "start": f"{start:%Y-%m-%d %H:%M:%S}",
                "length_ms": length // timedelta(milliseconds=1),
                "events": events,
                "first": first,
                "count": min(INSERTED_AT_A_TIME, events - first),
            }
            self.world.client.command(FILL, parameters=parameters)


def _merge(client: Client) -> None:
    """Wait until each month is one part, as the engine makes it when nothing has come for six hours (01_events.sql)."""
    _after_s(client, 1)
    for _ in range(MERGED_WITHIN_S):
        parts = client.query(
            "SELECT max(n) FROM (SELECT count() AS n FROM system.parts WHERE active AND table = 'events' "
            "AND database = currentDatabase() GROUP BY partition)"
        )
        if parts.result_rows[0][0] == 1:
            break
        time.sleep(1)
    else:
        raise TimeoutError(f"the warehouse has not merged its months within {MERGED_WITHIN_S} s")
    _after_s(client, 6 * 3600)


def _after_s(client: Client, age_s: int) -> None:
    client.command(f"ALTER TABLE events MODIFY SETTING min_age_to_force_merge_seconds = {age_s}")


def _start(month: str) -> datetime:
    return datetime.fromisoformat(f"{month}-01T00:00:00+00:00")


def _name(number: int) -> str:
    return f"customer-{number:05}"


def _row(name: str, value: float, unit: str, baseline: float, baseline_is: str) -> Row:
    told = {"unit": unit, "baseline": round(baseline, 3), "baseline_is": baseline_is, "better": "lower"}
    return {"name": f"rating.{name}", "value": round(value, 3), **told}


def _memory_mb(name: str) -> float:
    """Resident memory of this process: VmRSS now, VmHWM at most."""
    (line,) = (it for it in Path("/proc/self/status").read_text().splitlines() if it.startswith(name))
    return int(line.split()[1]) / 1024


@contextmanager
def _warehouse(scratch: Path) -> Iterator[str]:
    """The URL of an embedded warehouse with the schema in it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://admin:secret@127.0.0.1:{port}"
    served = subprocess.Popen([sys.executable, "-c", SERVE, str(scratch), str(port)], cwd=scratch)
    try:
        settings = Settings(data=scratch, warehouse_url=url)
        schema.migrate(warehouse.connect(settings, database="default"), settings.warehouse_database)
        yield url
    finally:
        served.terminate()
        served.wait(60)


if __name__ == "__main__":
    for row in bench():
        print(row)
