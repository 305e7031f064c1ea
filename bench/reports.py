"""How long Grafana's panels take for 30 days, and finance's reports for a month, with ten thousand customers.

`bench` asks of 10 million events, or as many as METERHOUSE_BENCH_MILLIONS says; `prove` of 100 million, and counts what
is slower than its goal. The rows are made by the engine itself, a tenth of the events twice, and merged as the engine
merges a month at rest (warehouse_reads.py); its days are summed (`meterhouse warehouse rollup`). The queries are those
of the dashboards' files and of `meterhouse report`, asked as the reading user. The baseline is the month's totals per
customer and meter without dedup, conflicts or decisions: what is between them is the price of exactness, and of the
question.
"""

import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import warehouse_reads
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from meterhouse_reports.definitions import REPORTS
from meterhouse_reports.journal import codes_from, journal
from meterhouse_reports.made import Span, make
from meterhouse_store import rollups, schema, warehouse
from meterhouse_store.settings import Settings

GRAFANA: Final = Path(__file__).resolve().parents[1] / "dashboards" / "grafana"
FROM: Final = datetime(2026, 11, 1, tzinfo=UTC)
UNTIL: Final = datetime(2026, 12, 1, tzinfo=UTC)
INTERVAL_S: Final = 3600
"""What Grafana asks for where 30 days are about as wide as a screen."""

GOAL_MS: Final = {"grafana": 2_000, "reports": 10_000}
BENCH_MILLIONS: Final = 10
PROVE_MILLIONS: Final = 100
PASSWORDS: Final = {"admin": "secret", "reader": "read"}
SERVE: Final = f"""
import sys
from pathlib import Path
from meterhouse_store.embedded import serve
serve(Path(sys.argv[1]), "127.0.0.1", int(sys.argv[2]), {PASSWORDS!r})
"""

# Each customer has a closed rating of the month with five lines, and an invoice; every second one is paid, every tenth
# in euros. Columns and what they are of a customer's `number` and of a `line`; what is not said is empty.
_CUSTOMER: Final = {
    "namespace": "'live'",
    "customer_id": "concat('customer-', toString(number))",
    "currency": "if(number % 10 = 0, 'EUR', 'USD')",
}
_PERIOD: Final = {
    "rating_id": "concat('rating-', toString(number))",
    "period_start": "toDateTime64('2026-11-01', 6, 'UTC')",
    "period_end": "toDateTime64('2026-12-01', 6, 'UTC')",
}
_LINE: Final = "concat('line-', toString(number), '-', toString({}))"
_INVOICE: Final = "concat('invoice-', toString(number))"
_TOTAL: Final = "5 * (number + 100)"
_AFTER: Final = "toDateTime64('2026-12-01 06:00:00', 6, 'UTC')"
_MONEY: Final[dict[str, dict[str, str]]] = {
    "mirror_ratings": _CUSTOMER
    | _PERIOD
    | {"state": "'closed'", "plan": "'pro'", "total_minor": _TOTAL, "rated_at": _AFTER, "result_sha256": "'h'"},
    "mirror_rated_lines": _CUSTOMER
    | {
        "rating_id": _PERIOD["rating_id"],
        "result_sha256": "'h'",
        "line_id": _LINE.format("line"),
        "kind": "'usage'",
        "component": "'input'",
        "amount_minor": "number + 100",
    },
    "mirror_ledger_entries": _CUSTOMER
    | {
        "transaction_id": "concat('t-', toString(number), '-', toString(intDiv(line, 2)))",
        "position": "line % 2",
        "kind": "'usage'",
        "source_id": _LINE.format("intDiv(line, 2)"),
        "account": "if(line % 2 = 0, 'receivable', 'revenue')",
        "amount_minor": "if(line % 2 = 0, 1, -1) * toInt64(number + 100)",
        "effective_at": _PERIOD["period_end"],
        "recorded_at": _AFTER,
    },
    "mirror_invoices": _CUSTOMER
    | _PERIOD
    | {
        "invoice_id": _INVOICE,
        "state": "if(number % 2 = 0, 'paid', 'finalised')",
        "total_minor": _TOTAL,
        "stripe_total_minor": _TOTAL,
        "created_at": _AFTER,
        "finalised_at": _AFTER,
    },
    "mirror_payments": _CUSTOMER
    | {
        "payment_id": _INVOICE,
        "invoice_id": _INVOICE,
        "amount_minor": f"if(number % 2 = 0, {_TOTAL}, 0)",
        "paid_at": _AFTER,
    },
}
_LINES_OF: Final = {"mirror_rated_lines": 5, "mirror_ledger_entries": 10}
_COSTS: Final = f"""
    INSERT INTO cost_rates
        (namespace, meter, provider, model, valid_from, status, price, per, currency, entry_id, version)
    SELECT 'live', arrayJoin({list(warehouse_reads.METERS)}), 'openai', 'gpt-5-mini',
        toDateTime64('2026-01-01', 6, 'UTC'), 'known', toDecimal128(2, 18), 1000000, 'USD', 'e', 1
"""


def bench() -> list[dict[str, Any]]:
    """The slowest panel and the slowest report, in milliseconds."""
    millions = int(os.environ.get("METERHOUSE_BENCH_MILLIONS") or BENCH_MILLIONS)
    taken, baseline = _measured(millions)
    return [
        {
            "name": f"{group}.{name}",
            "value": round(max(taken[group].values())),
            "unit": f"ms, {millions} million events",
            "baseline": round(baseline),
            "baseline_is": "totals without dedup",
            "better": "lower",
        }
        for group, name in (("grafana", "slowest_panel_ms"), ("reports", "slowest_ms"))
    ]


def prove() -> list[dict[str, Any]]:
    """Of 100 million events: every panel within 2 s, every report within 10 s. It enumerates all of them."""
    taken, _ = _measured(PROVE_MILLIONS)
    return [
        {
            "name": f"{group}.within_{GOAL_MS[group] // 1000}_s",
            "cases": len(of),
            "violations": sum(ms > GOAL_MS[group] for ms in of.values()),
        }
        for group, of in taken.items()
    ]


def queries() -> dict[str, str]:
    """What the dashboards ask, macros and variables as Grafana fills them: panels of all customers and the whole month,
    and what the variables' values are."""
    found = {}
    for file in sorted(GRAFANA.glob("*.json")):
        dashboard = json.loads(file.read_text())
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                found[f"{file.stem}: variable {variable['name']}"] = expanded(variable["query"])
        for panel in dashboard["panels"]:
            for target in panel.get("targets", []):
                found[f"{file.stem}: {panel['title']}"] = expanded(target["rawSql"])
    return found


def expanded(sql: str) -> str:
    """A panel's SQL as the plugin sends it."""
    since, until = (f"toDateTime({int(at.timestamp())})" for at in (FROM, UNTIL))
    sql = re.sub(r"\$__conditionalAll\((.*), \$\w+\)", "1=1", sql)
    sql = re.sub(r"\$__timeFilter\((\w+)\)", rf"\1 >= {since} AND \1 <= {until}", sql)
    sql = re.sub(r"\$__timeInterval\((\w+)\)", rf"toStartOfInterval(toDateTime(\1), INTERVAL {INTERVAL_S} second)", sql)
    for told, value in (("$__interval_s", str(INTERVAL_S)), ("$__fromTime", since), ("$__toTime", until)):
        sql = sql.replace(told, value)
    return sql.replace("${namespace:singlequote}", "'live'")


def _measured(millions: int) -> tuple[dict[str, dict[str, float]], float]:
    """Milliseconds of each panel and report, and of the baseline."""
    with _warehouse() as (admin, reader):
        fill(admin, millions)
        return ask(admin, reader)


def fill(admin: Client, millions: int) -> None:
    """Events, their money and their sums."""
    began = time.perf_counter()
    warehouse_reads.fill(admin, millions)
    for table, columns in _MONEY.items():
        admin.command(
            f"INSERT INTO {table} ({', '.join(columns)}) SELECT {', '.join(columns.values())} "  # noqa: S608
            f"FROM numbers({warehouse_reads.CUSTOMERS}) ARRAY JOIN range({_LINES_OF.get(table, 1)}) AS line"
        )
    admin.command(_COSTS)
    admin.command("OPTIMIZE TABLE events FINAL")
    print(f"{millions} million events made in {time.perf_counter() - began:.0f} s", flush=True)
    began = time.perf_counter()
    rollups.roll_up(admin, settled_s=0)
    print(f"days summed in {time.perf_counter() - began:.0f} s", flush=True)


def ask(admin: Client, reader: Client) -> tuple[dict[str, dict[str, float]], float]:
    """What `_measured` gives, of a warehouse that is filled."""
    taken: dict[str, dict[str, float]] = {"grafana": {}, "reports": {}}
    baseline = _milliseconds(lambda: admin.query(warehouse_reads.TOTALS_RAW))
    for title, sql in queries().items():
        taken["grafana"][title] = _milliseconds(lambda sql=sql: reader.query(sql))
    span = Span(FROM, UNTIL)
    _check(make(reader, "live", REPORTS["revenue"], span, ("month",)).rows)
    for report in (*REPORTS.values(), journal(codes_from(None))):
        taken["reports"][report.name] = _milliseconds(
            lambda report=report: make(reader, "live", report, span, report.by)
        )
    for group, of in taken.items():
        print(f"\n{group}, the slowest first:")
        for name, ms in sorted(of.items(), key=lambda it: -it[1])[:12]:
            print(f"  {ms:9,.0f} ms  {name}")
    print(f"  {baseline:9,.0f} ms  totals without dedup", flush=True)
    return taken, baseline


def _check(revenue: tuple[tuple[Any, ...], ...]) -> None:
    """What was made is what is reported: of customer n five lines of n + 100 cents."""
    numbers = range(warehouse_reads.CUSTOMERS)
    of = {"EUR": [n for n in numbers if n % 10 == 0], "USD": [n for n in numbers if n % 10]}
    made = {currency: Decimal(sum(5 * (n + 100) for n in found)) / 100 for currency, found in of.items()}
    if {row[1]: row[2] for row in revenue} != made:
        raise RuntimeError(f"{made} was posted and {revenue} is reported")


def _milliseconds(ask: Callable[[], object]) -> float:
    """The median of three runs; of one, where that takes long or is refused by the reader's limits."""
    runs: list[float] = []
    for _ in range(3):
        began = time.perf_counter()
        try:
            ask()
        except ClickHouseError as problem:
            print(f"refused: {str(problem)[:300]}", flush=True)
            return 60_000.0  # the reader's limit of time: it is at least no answer
        runs.append(1000 * (time.perf_counter() - began))
        if runs[0] > 5_000:
            break
    return statistics.median(runs)


@contextmanager
def _warehouse() -> Iterator[tuple[Client, Client]]:
    """An embedded warehouse behind its port, as its administrator and as its reader."""
    with tempfile.TemporaryDirectory() as scratch, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        served = subprocess.Popen([sys.executable, "-c", SERVE, scratch, str(port)], cwd=scratch)
        try:
            of = {
                user: Settings(data=Path(scratch), warehouse_url=f"http://{user}:{password}@127.0.0.1:{port}")
                for user, password in PASSWORDS.items()
            }
            schema.migrate(warehouse.connect(of["admin"], database="default", timeout_s=60), "meterhouse")
            admin, reader = (warehouse.connect(of[user]) for user in ("admin", "reader"))
            yield admin, reader
            reader.close()
            admin.close()
        finally:
            served.terminate()
            served.wait(60)


if __name__ == "__main__":
    for row in bench():
        print(row)
