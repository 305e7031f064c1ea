"""What came, what became of it, and how far behind the warehouse is."""

# ruff: noqa: S608 - texts; what is put into the queries stands here, or is a variable that Grafana quotes

from typing import Final

from panels.parts import HOURS, OF, Panel

# By the hour of receipt, as what was received is.
_SUSPENDED: Final = (
    f"SELECT count() FROM (SELECT toStartOfHour(toDateTime(received_at, 'UTC')) AS hour FROM suspense WHERE {OF}) WHERE"
)

_DELAYS: Final = (
    "(\n  SELECT received_hour AS at, delay_ms, events FROM usage_delays_by_hour\n"
    f"  WHERE {OF} AND $__timeFilter(received_hour) AND $__interval_s >= 3600\n  UNION ALL\n"
    "  SELECT toDateTime(received_at, 'UTC') AS at, dateDiff('millisecond', event_time, received_at) AS delay_ms,\n"
    f"    toUInt64(1) AS events FROM usage\n  WHERE {OF} AND $__timeFilter(received_at) AND $__interval_s < 3600\n)"
)

# A graph cannot draw the infinite bound.
_AT_MOST: Final = "least(at_most_s, 60), times"

TITLE: Final = "Meterhouse pipeline"
DESCRIPTION: Final = "What came, what became of it, and how far behind the warehouse is."
PANELS: Final = [
    Panel("Rows received", "Rows that came in the chosen range, whatever became of them.", "stat",
        f"SELECT sum(received) AS received FROM received\nWHERE {OF} AND {HOURS}",
        size=(6, 4)),
    Panel("Rows counted", "Rows that count as usage; received = counted + duplicates + suspended + set aside.",
        "stat", f"SELECT sum(counted) AS counted FROM conservation\nWHERE {OF} AND {HOURS}",
        size=(6, 4)),
    Panel("Share in suspense", "Rows that wait for a decision, of all that were received in the range.", "stat",
        f"SELECT if(sum(received) = 0, 0, ({_SUSPENDED} {HOURS}) / sum(received)) AS share\n"
        f"FROM received\nWHERE {OF} AND {HOURS}", "percentunit", (6, 4)),
    Panel("Suspense burn rate", "How many times faster than one row in a thousand goes to suspense, in the last "
        "hour: 1 uses up the year's allowance in a year, 14 in a month.", "stat",
        f"SELECT if(sum(received) = 0, 0, ({_SUSPENDED} hour >= now() - INTERVAL 1 HOUR)\n"
        f"  / sum(received) / 0.001) AS burn_rate\nFROM received\nWHERE {OF} AND hour >= now() - INTERVAL 1 HOUR",
        size=(6, 4)),
    Panel("What became of the rows", "Rows by the hour in which they were received.", "timeseries",
        "SELECT $__timeInterval(hour) AS time, sum(counted) AS counted, sum(duplicates) AS duplicates,\n"
        "  sum(suspended) AS suspended, sum(set_aside) AS set_aside\nFROM conservation\n"
        f"WHERE {OF} AND {HOURS}\nGROUP BY time ORDER BY time", size=(24, 8)),
    Panel("Refused requests", "Requests that the doors turned away, by what was wrong; of a sender that is not "
        "known the namespace is empty.", "timeseries",
        "SELECT $__timeInterval(hour) AS time, code, sum(requests) AS requests\nFROM refused\n"
        f"WHERE ({OF} OR namespace = '') AND {HOURS}\nGROUP BY time, code ORDER BY time, code"),
    Panel("Time to acknowledge", "Seconds from a request's head to its acknowledgement, and of the journal's fsync "
        "alone: half of them and nearly all took this long at most, on all collectors; 60 stands for more than 10.",
        "timeseries", "SELECT $__timeInterval(minute) AS time,\n"
        f"  quantileExactWeightedIf(0.5)({_AT_MOST}, what = 'acknowledged') AS p50_s,\n"
        f"  quantileExactWeightedIf(0.99)({_AT_MOST}, what = 'acknowledged') AS p99_s,\n"
        f"  quantileExactWeightedIf(0.99)({_AT_MOST}, what = 'synced') AS fsync_p99_s\nFROM collector_durations\n"
        "WHERE $__timeFilter(minute)\nGROUP BY time ORDER BY time", "s"),
    Panel("Waiting for the disk", "Bytes of requests that wait for the journal, the most of each collector in that "
        "time; near 64 MiB further requests are turned away.", "timeseries",
        "SELECT $__timeInterval(minute) AS time, collector_id, max(waiting_bytes) AS waiting_bytes\n"
        "FROM collector_health\nWHERE $__timeFilter(minute)\nGROUP BY time, collector_id ORDER BY time, collector_id",
        "bytes"),
    Panel("Requests", "Requests of all senders: acknowledged; refused for good, where the sender has to change "
        "something; failed, which the sender sends again.", "timeseries",
        "SELECT $__timeInterval(minute) AS time, sum(accepted) AS accepted, sum(refused) AS refused,\n"
        "  sum(failed) AS failed\nFROM collector_health\nWHERE $__timeFilter(minute)\nGROUP BY time ORDER BY time"),
    Panel("Lag over time", "The most seconds by which the warehouse was behind each collector in that time, as "
        "the collector saw it itself.", "timeseries",
        "SELECT $__timeInterval(minute) AS time, collector_id, max(lag_s) AS lag_s\nFROM collector_health\n"
        "WHERE $__timeFilter(minute)\nGROUP BY time, collector_id ORDER BY time, collector_id", "s"),
    Panel("Objectives", "Of the last 30 days: what is promised, what was kept, what is left of what may be bad; and "
        "how many times too fast it was used up of late: 14 for an hour or 6 for six hours is too fast.", "table",
        "SELECT slo, objective, met, budget_left, burn_5m, burn_30m, burn_1h, burn_6h\nFROM slos\nORDER BY slo",
        size=(24, 6), units={"objective": "percentunit", "met": "percentunit", "budget_left": "percentunit"}),
    Panel("Projection lag", "Seconds by which the warehouse is behind each collector's journal.", "table",
        "SELECT collector_id, projected_through,\n"
        "  dateDiff('second', projected_through, now64(9, 'UTC')) AS lag_s\nFROM watermark\n"
        "ORDER BY lag_s DESC, collector_id", "s"),
    Panel("From the event to the warehouse", "How long after it happened usage was received, in seconds: half of "
        "it and nearly all of it; to two digits where a point of the graph is an hour or more.", "timeseries",
        "SELECT $__timeInterval(at) AS time, quantileExactWeighted(0.5)(delay_ms, events) / 1000 AS p50_s,\n"
        f"  quantileExactWeighted(0.99)(delay_ms, events) / 1000 AS p99_s\nFROM {_DELAYS}\n"
        "GROUP BY time ORDER BY time", "s"),
    Panel("Keys", "What each key sent in the range; a negative number of duplicates means that a count is wrong.",
        "table", "SELECT credential_id, sum(received) AS received, sum(counted) AS counted,\n"
        "  sum(duplicates) AS duplicates, sum(suspended) AS suspended, sum(refused_requests) AS refused_requests\n"
        f"FROM conservation\nWHERE {OF} AND {HOURS}\nGROUP BY credential_id\n"
        "ORDER BY received DESC, credential_id LIMIT 100"),
]  # fmt: skip
