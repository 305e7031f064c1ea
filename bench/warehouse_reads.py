"""How long questions of money take on a warehouse of 10 and of 100 million rows, of which a tenth were sent twice.

The rows are made by the engine itself and inserted as the projector would: in the order of time, all customers in each
block, and the copies in blocks of their own, so that merges and FINAL have the work they have in life. All rows are in
one month. It is asked twice: as it stands when the last row has come, and merged into one part, as the engine does
with a month that has been at rest for some hours (01_events.sql). The baselines ask the same of `events` as it is,
without dedup, conflicts or decisions: what is between them is the price of exactness.
"""

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from clickhouse_connect.driver.client import Client
from collector import peak_mb, row

MILLION: Final = 1_000_000
SMALL, LARGE = 10, 100
"""Millions of rows."""
CUSTOMERS: Final = 10_000
METERS: Final = ("llm.tokens.input", "llm.tokens.output", "llm.tokens.cache_read", "llm.requests", "tool.calls")
BLOCK: Final = 1_000_000
COPY_EVERY: Final = 9
"""Of 9 events one has a second copy: a tenth of all rows."""
ONE: Final = "customer-4711"

# Event n is of call n / 5: five meters of one call at one time. Calls come every 100 us or so, spread over the month.
_ROWS: Final = """
    INSERT INTO events (namespace, customer_id, meter, event_id, event_time, quantity, status, agent_name, provider,
        model, operation, call_id, conversation_id, response_id, usage_source, source, credential_id, process_id,
        service_name, received_at, segment, record_id, first)
    WITH intDiv(n, 5) AS call, lower(hex(sipHash128(call))) AS call_hex,
        fromUnixTimestamp64Nano(toInt64({begin:Int64} + toInt64(call * {step:Int64})), 'UTC') AS at,
        at + toIntervalSecond({later:UInt32}) AS received
    SELECT 'live', concat('customer-', toString(cityHash64(call) % {customers:UInt32})),
        {meters:Array(String)}[n % 5 + 1],
        concat(call_hex, '-', toString(n % 5)), at, toDecimal128(cityHash64(n, 'q') % 5000 + 1, 9), 'ok', 'support',
        'openai', 'gpt-5-mini', 'chat', call_hex, concat('conversation-', toString(intDiv(call, 10))),
        concat('resp_', call_hex), 'reported', 'meterhouse', 'key-1', 'process-1', 'agent', received, 'a-1.seg',
        lower(hex(sipHash128(intDiv(n, 500)))),
        bitNot(toUInt64(toUnixTimestamp64Nano(received)))
    FROM (SELECT number * {every:UInt32} AS n FROM numbers({start:UInt64}, {count:UInt64}))
"""
_AS_THE_PROJECTOR: Final = {"optimize_on_insert": 0}
_BEGIN_NS: Final = 1_793_491_200_000_000_000
"""2026-11-01 00:00 UTC."""
_MONTH_NS: Final = 29 * 86_400 * 1_000_000_000

_MONTH: Final = "namespace = 'live' AND event_time >= '2026-11-01 00:00:00' AND event_time < '2026-12-01 00:00:00'"
TOTALS: Final = f"""
    SELECT billed_customer_id, meter, sum(quantity) FROM usage WHERE {_MONTH} GROUP BY billed_customer_id, meter
"""  # noqa: S608
TOTALS_RAW: Final = f"""
    SELECT customer_id, meter, sum(quantity) FROM events WHERE {_MONTH} GROUP BY customer_id, meter
"""  # noqa: S608
CUSTOMER: Final = f"""
    SELECT meter, sum(quantity) FROM usage WHERE {_MONTH} AND billed_customer_id = '{ONE}' GROUP BY meter
"""  # noqa: S608
CUSTOMER_RAW: Final = f"""
    SELECT meter, sum(quantity) FROM events WHERE {_MONTH} AND customer_id = '{ONE}' GROUP BY meter
"""  # noqa: S608


def bench(client: Client, pid: int) -> list[dict[str, Any]]:
    """The rows `warehouse.*`; `pid`: of the warehouse's process, whose memory is looked at."""
    small, large = (_measure(client, pid, millions) for millions in (SMALL, LARGE))
    growth = large.totals_s / small.totals_s * SMALL / LARGE
    return [
        row("warehouse.month_totals_100m_s", large.totals_s, "s, a month at rest", large.raw_s, "without dedup"),
        row(
            "warehouse.moving_month_totals_100m_s", large.moving_s, "s, a month under way", large.raw_s, "without dedup"
        ),
        row("warehouse.one_customer_ms", large.customer_ms, "ms", large.raw_customer_ms, "without dedup"),
        row("warehouse.growth_10m_to_100m", growth, "x per row", 1.0, "the time grows as the rows do"),
        row("warehouse.rss_mb", large.peak_mb, "MB at most", 2000, "goal"),
    ]


def fill(client: Client, millions: int) -> None:
    """So many million rows in an emptied `events`, a tenth of them second copies, and the merges at rest."""
    client.command("TRUNCATE TABLE events")
    events = millions * MILLION * COPY_EVERY // (COPY_EVERY + 1)
    calls = events // 5
    common = {"begin": _BEGIN_NS, "step": _MONTH_NS // calls, "customers": CUSTOMERS, "meters": list(METERS)}
    for start in range(0, events, BLOCK):
        own = {"start": start, "count": min(BLOCK, events - start), "every": 1, "later": 2}
        client.command(_ROWS, parameters=common | own, settings=_AS_THE_PROJECTOR)
        copies = {"start": start // COPY_EVERY, "count": min(BLOCK, events - start) // COPY_EVERY, "every": COPY_EVERY}
        client.command(_ROWS, parameters=common | copies | {"later": 600}, settings=_AS_THE_PROJECTOR)
    while client.query("SELECT count() FROM system.merges WHERE table = 'events'").result_rows[0][0]:
        time.sleep(1)


@dataclass(frozen=True)
class _Found:
    moving_s: float
    totals_s: float
    raw_s: float
    customer_ms: float
    raw_customer_ms: float
    peak_mb: float


def _measure(client: Client, pid: int, millions: int) -> _Found:
    started = time.perf_counter()
    fill(client, millions)
    print(f"{millions} million rows: made in {time.perf_counter() - started:.0f} s, {_parts(client)}", flush=True)
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak begins anew
    moving = _seconds(client, TOTALS, 3)
    # Under way, the harder case for one customer too.
    customer, raw_customer = (1000 * _seconds(client, query, 20) for query in (CUSTOMER, CUSTOMER_RAW))
    peak = peak_mb(pid)
    started = time.perf_counter()
    client.command("OPTIMIZE TABLE events FINAL")
    print(f"merged in {time.perf_counter() - started:.0f} s, {_parts(client)}", flush=True)
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    found = _Found(
        moving,
        _seconds(client, TOTALS, 3),
        _seconds(client, TOTALS_RAW, 3),
        customer,
        raw_customer,
        max(peak, peak_mb(pid)),
    )
    _check(client, millions)
    return found


def _parts(client: Client) -> str:
    query = "SELECT count(), formatReadableSize(sum(bytes_on_disk)) FROM system.parts WHERE table = 'events' AND active"
    return "{} parts, {}".format(*client.query(query).result_rows[0])


def _check(client: Client, millions: int) -> None:
    """Every event counted once: the number and the sum of the quantities are what was made."""
    events = millions * MILLION * COPY_EVERY // (COPY_EVERY + 1)
    quantities = f"SELECT count(), sum(cityHash64(number, 'q') % 5000 + 1) FROM numbers({events})"  # noqa: S608
    made = client.query(quantities).result_rows[0]
    found = client.query("SELECT count(), sum(quantity) FROM usage WHERE namespace = 'live'").result_rows[0]
    if (found[0], int(found[1])) != made:
        raise RuntimeError(f"{made} were made and {found} are in usage")


def _seconds(client: Client, query: str, times: int) -> float:
    """The median of some runs."""
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        client.query(query)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)
