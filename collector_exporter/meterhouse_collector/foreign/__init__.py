"""Sources that are not Meterhouse's own instrumentation: what a record of theirs becomes in the warehouse.

ClickHouse explodes monotonic delta Sums named `meterhouse.<meter>` (schema/02_inbox.sql); everything else in a record
is decoded here, so that together each point is a row. `rows_of` is a pure function of the record: what it decides, a
replay decides again. It never raises for a request that parses: what cannot count is a row with a reason.
"""

from functools import lru_cache

from meterhouse_collector.foreign.detection import holds_foreign_metrics
from meterhouse_collector.foreign.mapping import NONE, Mapping, from_record
from meterhouse_collector.foreign.points import metric_rows
from meterhouse_collector.foreign.rows import CumulativePoint, Event, Rows, Span
from meterhouse_collector.foreign.spans import span_rows
from meterhouse_collector.records import Record

__all__ = ["CumulativePoint", "Event", "Rows", "Span", "is_foreign", "rows_of"]


def is_foreign(record: Record) -> bool:
    """Whether `rows_of` finds anything in the record: of Meterhouse's own events this costs some microseconds."""
    return bool(record.traces) or record.valid_from_ns != 0 or holds_foreign_metrics(record.metrics)


def rows_of(record: Record) -> Rows:
    """The rows of everything in a record that is not a Meterhouse event."""
    found = Rows()
    mapping = _mapping(record.mapping)
    if record.traces:
        span_rows(record, mapping, found)
    else:
        metric_rows(record, mapping, found)
    return found


@lru_cache(maxsize=1000)
def _mapping(text: str) -> Mapping:
    return from_record(text) if text else NONE
