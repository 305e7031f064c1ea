"""The projector's store in ClickHouse: raw bytes into `inbox`, checkpoints and conflicts beside the events."""

import base64
import hashlib
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError, OperationalError

from meterhouse.vocabulary import REASON_UNREADABLE
from meterhouse_collector.foreign import Rows, storing
from meterhouse_collector.projector import Checkpoint, Rejected, Unavailable, Unreadable
from meterhouse_collector.segments import Position
from meterhouse_store import conflicts, decided, warehouse
from meterhouse_store.schema import RECORD_PROTO

T = TypeVar("T")

_DURABLE: Final[dict[str, Any]] = {
    "async_insert": 0,  # since 26.x the server would queue small inserts and acknowledge them first
    "distributed_foreground_insert": 1,  # on a cluster: checkpoints must not precede storage
}
_POST: Final[dict[str, Any]] = _DURABLE | {
    "format_schema_source": "string",
    # It travels in the URL: without comments and line breaks it is a third shorter.
    "format_schema": re.sub(r"\s+", " ", re.sub(r"//[^\n]*", "", RECORD_PROTO)).strip(),
    "format_schema_message_name": "Rec",
    "optimize_on_insert": 0,  # merges and FINAL deduplicate; doing it here as well costs half the speed
    # A range is one block from end to end, whatever it holds: control totals are replaced record by record, so no
    # record may be counted in two parts.
    "max_block_size": 2**24,
    "max_insert_block_size": 2**24,
    "max_insert_block_size_bytes": 0,
    "max_partitions_per_insert_block": 0,  # a range may hold more months than the default 100
    # The exploding view is analysed at every insert; these two made that three times as long and improve nothing in it:
    # the one compares whole subqueries for every AND, the other copies the expressions of its steps into one another.
    "optimize_and_compare_chain": 0,
    "query_plan_merge_expressions": 0,
}

_CHECKPOINT: Final = """
    SELECT segment, position, toUnixTimestamp64Nano(projected_through), step
    FROM checkpoints FINAL WHERE collector_id = {collector_id:String}
"""


class Inbox:
    """A `projector.Store` in the database of a client."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def checkpoint(self, collector_id: str) -> Checkpoint | None:
        """The last checkpoint of a collector."""
        rows = _ask(lambda: self._client.query(_CHECKPOINT, parameters={"collector_id": collector_id}).result_rows)
        if not rows:
            return None
        segment, position, through_ns, step = rows[0]
        return Checkpoint(Position(segment, position), through_ns, step)

    def post(self, data: bytes) -> None:
        """Insert whole frames as they are."""
        _ask(lambda: self._client.raw_insert("inbox", insert_block=data, fmt="Protobuf", settings=_POST))

    def add(self, rows: Rows) -> None:
        """Insert rows that were decoded here."""
        _ask(lambda: storing.insert(self._client, rows, _DURABLE))

    def hold(self, records: list[Unreadable]) -> None:
        """Put frames that cannot be decoded into suspense, with their bytes in base64."""
        rows = [_held(record) for record in records]
        names = list(rows[0])
        _ask(
            lambda: self._client.insert(
                "events", [list(row.values()) for row in rows], column_names=names, settings=_DURABLE
            )
        )

    def mark_conflicts(self, from_ns: int, through_ns: int) -> None:
        """Find identities with several quantities among what was received in this time (both ends included).

        Decisions that waited for rows of it are applied, too: nobody may rely on a watermark without them.
        """
        _ask(lambda: conflicts.mark_received(self._client, from_ns, through_ns, _DURABLE))
        _ask(lambda: decided.apply_mirrored(self._client))

    def settle_spans(self, from_ns: int, through_ns: int) -> None:
        """Find spans of calls that other rows stand for, by what was received in this time (both ends included)."""
        _ask(lambda: storing.settle_spans(self._client, from_ns, through_ns, _DURABLE))

    def write_checkpoint(self, collector_id: str, checkpoint: Checkpoint) -> None:
        """Say how far the collector's journal is projected."""
        row = [collector_id, *checkpoint.position, _time(checkpoint.through_ns), checkpoint.step]
        names = ["collector_id", "segment", "position", "projected_through", "step"]
        types = ["String", "String", "UInt64", "DateTime64(9, 'UTC')", "UInt64"]
        _ask(
            lambda: self._client.insert(
                "checkpoints", [row], column_names=names, column_type_names=types, settings=_DURABLE
            )
        )


def _held(unreadable: Unreadable) -> dict[str, Any]:
    record = unreadable.record
    place = f"{unreadable.position.segment}:{unreadable.position.offset}"
    name = hashlib.sha256(place.encode() + unreadable.data).hexdigest()[:32]
    return {
        "namespace": record.namespace if record else "",
        "event_id": f"suspended-{name}",
        "event_time": _time(unreadable.received_at_ns),
        "raw_value": base64.b64encode(unreadable.data).decode(),
        "reason": REASON_UNREADABLE,
        "attributes": {"meterhouse.position": place, "meterhouse.error": unreadable.why},
        "credential_id": record.credential_id if record else "",
        "received_at": _time(unreadable.received_at_ns),
        "segment": unreadable.position.segment,
        "record_id": record.record_id if record else name,  # control totals are kept by it
        # As in schema/02_inbox.sql: suspended rows rank in the lower half, the earliest first.
        "first": (~unreadable.received_at_ns & 2**64 - 1) >> 1,
    }


def _time(ns: int) -> datetime:
    # Whole microseconds, rounded down: projected_through may claim less than is so, never more.
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=ns // 1000)


def _ask(call: Callable[[], T]) -> T:
    try:
        return call()
    except OperationalError as problem:
        raise Unavailable(warehouse.said(problem)) from problem
    except DatabaseError as problem:
        raise Rejected(warehouse.said(problem)) from problem
