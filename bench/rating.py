"""How long it takes to rate a million events: aggregated by the warehouse, priced in Decimal, written to SQL.

The baseline fetches the same million events through the same port and prices each by itself in Python, as a rating loop
without an aggregate would; it writes nothing, so the comparison is in its favour. Both must arrive at the same total.
"""

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from meterhouse_rating import versions
from meterhouse_rating.run import Request, run
from meterhouse_rating.world import World
from meterhouse_store import registry, schema, warehouse
from meterhouse_store.meters import declared
from meterhouse_store.settings import Settings
from meterhouse_store.sql import open_engine

EVENTS = 1_000_000
CUSTOMERS = 200
PROOF_CASES = 10_000
METERS = ("llm.tokens.input", "llm.tokens.cache_read", "llm.tokens.output", "llm.tokens.reasoning", "tool.calls")
NAMESPACE = "test"
NOW = datetime(2026, 11, 5, tzinfo=UTC)

# Prices chosen so that no line has to be rounded: then event by event and sum by sum must agree to the last digit.
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
      input: {model: per_unit, metric: input, price: 0.01}
      output: {model: per_unit, metric: output, by: [model], prices: [{model: m1, price: 0.02}], default: 0.03}
      tools: {model: per_unit, metric: tools, price: 0.05}
"""
PRICES = {
    "llm.tokens.input": Decimal("0.01"),
    "llm.tokens.cache_read": Decimal("0.01"),
    "tool.calls": Decimal("0.05"),
}

FILL = f"""
INSERT INTO events (namespace, customer_id, meter, event_id, event_time, quantity, status, model, received_at, first)
SELECT '{NAMESPACE}', concat('customer-', toString(number % {CUSTOMERS})), {list(METERS)}[1 + intDiv(number, 7) % 5],
    toString(number), toDateTime64('2026-10-01', 9, 'UTC') + toIntervalSecond(number % 2600000),
    toDecimal128(1 + number % 997, 9), 'ok', concat('m', toString(intDiv(number, 3) % 4)),
    toDateTime64('2026-11-01 12:00:00', 9, 'UTC'), 1
FROM numbers({EVENTS})
"""  # noqa: S608 (constants of this file)

SERVE = """
import sys
from pathlib import Path
from meterhouse_store.embedded import serve
serve(Path(sys.argv[1]), "127.0.0.1", int(sys.argv[2]), {"admin": "secret", "reader": "read"})
"""


def bench() -> list[dict[str, Any]]:
    """Seconds to rate a million events, against pricing them one by one."""
    with _world() as world:
        world.client.command(FILL)
        began = time.perf_counter()
        total = sum(
            step.outcome.rated.total_minor
            for step in run(world, Request("2026-10"))
            if step.outcome is not None and step.outcome.rated is not None
        )
        took = time.perf_counter() - began
        began = time.perf_counter()
        baseline_total = _one_by_one(world)
        baseline = time.perf_counter() - began
    if total != baseline_total:
        raise AssertionError(f"rated {total}, one by one {baseline_total}")
    return [
        {
            "name": "rating.seconds_1m_events",
            "value": round(took, 3),
            "unit": "s",
            "baseline": round(baseline, 3),
            "baseline_is": "each event priced by itself in Python",
            "better": "lower",
        }
    ]


def prove() -> list[dict[str, Any]]:
    """Random books x usages x currencies: what tests/rating/random_books.py checks, with many more cases."""
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
    def run(case: Any) -> None:
        nonlocal count
        count += 1
        try:
            random_books.check(case)
        except AssertionError as broken:
            violations.append(str(broken))

    run()
    for text in violations[:5]:
        print(text)
    return [{"name": "rating.random_books", "cases": count, "violations": len(violations)}]


def _one_by_one(world: World) -> int:
    amounts: dict[tuple[str, str, str], Decimal] = {}
    query = "SELECT billed_customer_id, meter, model, quantity FROM usage WHERE namespace = 'test'"
    with world.client.query_rows_stream(query) as rows:
        for customer, meter, model, quantity in rows:
            price = PRICES.get(meter) or (Decimal("0.02") if model == "m1" else Decimal("0.03"))
            key = (customer, meter, model)
            amounts[key] = amounts.get(key, Decimal(0)) + quantity * price
    return int(sum(amounts.values()) * 100)


@contextmanager
def _world() -> Iterator[World]:
    with tempfile.TemporaryDirectory() as scratch, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        served = subprocess.Popen([sys.executable, "-c", SERVE, scratch, str(port)], cwd=scratch)
        try:
            settings = Settings(
                data=Path(scratch),
                namespace=NAMESPACE,
                warehouse_url=f"http://admin:secret@127.0.0.1:{port}",
                sql_url="",
            )
            schema.migrate(warehouse.connect(settings, database="default"), settings.warehouse_database)
            engine, client = open_engine(settings), warehouse.connect(settings)
            meters = declared(settings)
            registry.ensure_namespace(engine, NAMESPACE)
            units = {name: meter.unit for name, meter in meters.items()}
            versions.publish(engine, NAMESPACE, BOOK, units, author="bench")
            for number in range(CUSTOMERS):
                registry.add_customer(engine, NAMESPACE, f"customer-{number}", plan="pay")
            yield World(engine, client, NAMESPACE, meters, lambda: NOW)
            client.close()
            engine.dispose()
        finally:
            served.terminate()
            served.wait(30)


if __name__ == "__main__":
    for row in bench():
        print(row)
