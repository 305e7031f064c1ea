"""Which rows of a record have another name after a customer was taken out of it: decisions speak of rows by name."""

from collections.abc import Container, Iterator
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from meterhouse.vocabulary import CUSTOMER_ID, EVENT_ID
from meterhouse_collector.foreign import is_foreign, rows_of
from meterhouse_collector.foreign.attributes import Attributes
from meterhouse_collector.foreign.detection import is_ours
from meterhouse_collector.records import Record

Name = tuple[str, str]
"""A row as (customer as claimed, event id): what of its key an erasure changes."""


def renamed(before: Record, after: Record, event_ids: Container[str]) -> Iterator[tuple[Name, Name]]:
    """Of the rows with one of these event ids those that are called otherwise now: (old name, new name).

    A row keeps its place in the record, so the two records are gone through side by side. Event ids that follow from
    the place, `suspended-...`, stay.
    """
    for old, new in zip(_names(before), _names(after), strict=True):
        if old != new and old[1] in event_ids:
            yield old, new


def _names(record: Record) -> Iterator[Name]:
    if is_foreign(record):
        rows = rows_of(record)
        for row in (*rows.events, *rows.points):
            yield row.customer_id, row.event_id
    for resource in ExportMetricsServiceRequest.FromString(record.metrics).resource_metrics:
        for scope in resource.scope_metrics:
            for metric in filter(is_ours, scope.metrics):
                for point in metric.sum.data_points:
                    yield from _events(point)


def _events(point: Any) -> Iterator[Name]:
    customer_id = Attributes(point.attributes).text(CUSTOMER_ID)
    for exemplar in point.exemplars:
        yield customer_id, Attributes(exemplar.filtered_attributes).text(EVENT_ID)
