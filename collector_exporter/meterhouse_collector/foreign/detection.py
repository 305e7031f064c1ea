"""Whether a metrics request holds anything but Meterhouse's own events, found out without decoding their points.

Records name it by `valid_from_ns`, but older ones do not, and no row may depend on a mark that was forgotten.
"""

from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from meterhouse.vocabulary import METRIC_PREFIX

DELTA: Final = 1
"""AggregationTemporality of metrics.proto; 2 is cumulative."""
CUMULATIVE: Final = 2


def is_ours(metric: Any) -> bool:
    """Whether ClickHouse explodes the metric: the condition of schema/02_inbox.sql."""
    return bool(
        metric.name.startswith(METRIC_PREFIX)
        and metric.name != METRIC_PREFIX
        and metric.WhichOneof("data") == "sum"
        and metric.sum.aggregation_temporality == DELTA
        and metric.sum.is_monotonic
    )


def holds_foreign_metrics(request: bytes) -> bool:
    """Whether any metric of a serialized ExportMetricsServiceRequest is not ours.

    False for bytes that are none: ClickHouse, which is given every record, refuses them, and they are held.
    """
    try:
        outline = _OUTLINE.FromString(request)
    except DecodeError:
        return False
    return not all(
        is_ours(metric)
        for resource in outline.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    )


def _outline() -> Any:
    """The class of the request without its points: parsing skips over them."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="outline.proto", package="outline", syntax="proto3")

    def lists(name: str, called: str, number: int, of: str) -> None:
        file.message_type.add(name=name).field.add(
            name=called, number=number, type=field.TYPE_MESSAGE, type_name=of, label=field.LABEL_REPEATED
        )

    lists("Request", "resource_metrics", 1, "ResourceMetrics")
    lists("ResourceMetrics", "scope_metrics", 2, "ScopeMetrics")
    lists("ScopeMetrics", "metrics", 2, "Metric")
    metric = file.message_type.add(name="Metric")
    metric.field.add(name="name", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    metric.oneof_decl.add(name="data")
    for name, number in ("gauge", 5), ("sum", 7), ("histogram", 9), ("exponential_histogram", 10), ("summary", 11):
        data = metric.field.add(name=name, number=number, type=field.TYPE_MESSAGE, label=field.LABEL_OPTIONAL)
        data.type_name, data.oneof_index = "Sum", 0
    number_of = file.message_type.add(name="Sum").field
    number_of.add(name="aggregation_temporality", number=2, type=field.TYPE_INT32, label=field.LABEL_OPTIONAL)
    number_of.add(name="is_monotonic", number=3, type=field.TYPE_BOOL, label=field.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("outline.Request"))


_OUTLINE: Final = _outline()
