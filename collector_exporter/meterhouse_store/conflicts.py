"""Which of several quantities of one event stands: a function of its rows in `events`, written into `conflicts`."""

from typing import Any, Final

from clickhouse_connect.driver.client import Client

IDENTITY: Final = "namespace, customer_id, meter, event_time, event_id"

# The quantity that a decision put into usage stands, the latest of them; else the earliest received of those that came
# as usage, whatever was decided about it since; within one record the smaller. Read by FINAL, so it does not depend on
# which superseded versions are merged away. `first` grows with what can change the answer: earlier copies, decisions.
# Nearly all have one quantity: they are sorted out first, without FINAL.
_MARK: Final = f"""
    INSERT INTO %s ({IDENTITY}, standing_quantity, first)
    SELECT {IDENTITY},
        if(countIf(by_decision) > 0,
            argMaxIf(quantity, first, by_decision),
            argMinIf(quantity, (received_at, record_id, quantity), came_as_usage)),
        if(max(first) >= 17293822569102704896,
            max(first), bitNot(toUInt64(toUnixTimestamp64Nano(minIf(received_at, came_as_usage)))))
    FROM (
        SELECT {IDENTITY}, quantity, received_at, record_id, first,
            reason = '' AND decision_id != '' AS by_decision,
            if(first >= 17293822569102704639, original_reason, reason) = '' AS came_as_usage
        FROM events FINAL
        WHERE ({IDENTITY}) IN (
            SELECT {IDENTITY} FROM events WHERE ({IDENTITY}) IN (%s)
            GROUP BY {IDENTITY} HAVING min(quantity) != max(quantity)
        )
    )
    GROUP BY {IDENTITY}
    HAVING uniqExactIf(quantity, came_as_usage OR by_decision) > 1
        OR max(first) >= 17293822569102704896 AND uniqExact(quantity) > 1
    SETTINGS do_not_merge_across_partitions_select_final = 1
"""  # noqa: S608 - fixed parts

# As the view `identify` has it (schema/01_events.sql).
_HASHED: Final = "event_time, cityHash64(namespace, customer_id, meter, event_id)"
_SEVERAL: Final = f"""
    SELECT event_time, identity FROM identities WHERE (event_time, identity) IN (SELECT {_HASHED} FROM %(rows)s)
    GROUP BY event_time, identity HAVING min(quantity) != max(quantity)
"""  # noqa: S608 - fixed parts
_TOUCHED: Final = f"SELECT {IDENTITY} FROM %(rows)s AND ({_HASHED}) IN ({_SEVERAL})"  # noqa: S608
_RECEIVED: Final = (
    "events WHERE reason = '' AND received_at BETWEEN fromUnixTimestamp64Nano({from_ns:Int64}, 'UTC') "
    "AND fromUnixTimestamp64Nano({through_ns:Int64}, 'UTC')"
)


def mark(client: Client, touched: str, *, parameters: dict[str, Any], settings: dict[str, Any]) -> None:
    """Decide about the identities that the query `touched` gives (its columns are IDENTITY). Repeatable."""
    client.command(_MARK % ("conflicts", touched), parameters=parameters, settings=settings)


def mark_received(client: Client, from_ns: int, through_ns: int, settings: dict[str, Any]) -> None:
    """Decide about what was received in this time (both ends included). Repeatable.

    Where nothing came with two quantities, as nearly always, that is one query for it, whose cost follows from how much
    was received and not from how much is stored.
    """
    _mark_several(client, _RECEIVED, {"from_ns": from_ns, "through_ns": through_ns}, settings, "conflicts")


def mark_again(client: Client, scratch: str, settings: dict[str, Any]) -> bool:
    """Decide about the events of the database `scratch`, by what this one has, into the `conflicts` of `scratch`.

    Tells whether any of them came with two quantities; the cost is that of `mark_received`.
    """
    return _mark_several(client, f"{scratch}.events WHERE true", {}, settings, f"{scratch}.conflicts")


def _mark_several(client: Client, rows: str, parameters: dict[str, Any], settings: dict[str, Any], into: str) -> bool:
    """`rows` goes after FROM and ends with a condition."""
    several = _SEVERAL % {"rows": rows}
    found = client.query(f"{several} LIMIT 1", parameters=parameters, settings={"max_threads": 1}).result_rows
    if found:
        client.command(_MARK % (into, _TOUCHED % {"rows": rows}), parameters=parameters, settings=settings)
    return bool(found)
