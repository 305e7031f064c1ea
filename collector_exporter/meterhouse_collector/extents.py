"""How much a request may hold: parsed once, and refused when it is no OTLP or more than the warehouse can unfold."""

from collections.abc import Iterable
from typing import Any, Final

from google.protobuf.message import DecodeError

from meterhouse_collector.refusals import MALFORMED, TOO_LARGE, Refused
from meterhouse_collector.signals import ADDRESSES, METRICS, TRACES, Signal

REQUEST_BYTES: Final = 16 * 2**20
"""The largest request, after decompression. Exporters send 500 events in about 100 kB."""
REQUEST_ITEMS: Final = 50_000
"""Of one request, the resources, scopes, metrics, points and exemplars together, or spans, events and links: an empty
one takes two bytes to send and a row to store."""
REQUEST_ATTRIBUTES: Final = 500_000
"""Of one request, all together."""
ATTRIBUTES: Final = 1000
"""Of one resource, point, exemplar or span."""
UNFOLDED_BYTES: Final = 4 * 2**20
UNFOLDED_TIMES: Final = 32
"""The warehouse makes each exemplar's row with the attributes of its point and resource. A request may grow by that to
the one plus the other times its size; without a limit one of 1.5 MB took 15 GB of memory there."""


def parse(signal: Signal, request: bytes) -> Any:
    """The parsed request. Raises Refused for what is none, or too many bytes."""
    if len(request) > REQUEST_BYTES:
        raise Refused(TOO_LARGE, f"a request has at most {REQUEST_BYTES} bytes, decompressed: send smaller batches")
    try:
        # ClickHouse decodes it later and would take garbage in silence: what it cannot take must not get in.
        return signal.message.FromString(request)
    except DecodeError as problem:
        name = signal.message.DESCRIPTOR.name
        if signal is METRICS and _holds_spans(request):
            raise Refused(MALFORMED, f"this is no {name}, these are traces: {ADDRESSES}") from None
        raise Refused(MALFORMED, f"this is no {name}: {problem}") from None


def _holds_spans(request: bytes) -> bool:
    """Whether it is traces: as metrics those cannot be read, for a trace id is no name in UTF-8."""
    try:
        message = TRACES.message.FromString(request)
    except DecodeError:
        return False
    spans = [span for resource in message.resource_spans for scope in resource.scope_spans for span in scope.spans]
    return bool(spans) and all(len(span.trace_id) == 16 and span.start_time_unix_nano for span in spans)


def check_metrics(request: bytes) -> tuple[Any, "Extent"]:
    """The parsed request and how much it holds. Raises Refused."""
    message = parse(METRICS, request)
    extent = Extent()
    for resource in extent.items(message.resource_metrics):
        extent.number_of(resource.resource.attributes)
        for scope in extent.items(resource.scope_metrics):
            for metric in extent.items(scope.metrics):
                extent.count(points(metric))
    # No attributes are larger than the request: most need no look at each.
    if extent.events * len(request) > _unfolded_limit(len(request)):
        check_unfolded(_unfolded(message), len(request))
    return message, extent


def check_traces(request: bytes) -> tuple[Any, "Extent"]:
    """The parsed request and how much it holds. Raises Refused."""
    message = parse(TRACES, request)
    extent = Extent()
    timeless = False
    for resource in extent.items(message.resource_spans):
        extent.number_of(resource.resource.attributes)
        shared = _bytes(resource.resource.attributes)
        for scope in extent.items(resource.scope_spans):
            for span in extent.items(scope.spans):
                extent.rows += 1
                extent.events += 1
                extent.items(span.events)
                extent.items(span.links)
                extent.number_of(span.attributes)
                extent.unfolded += shared
                timeless = timeless or not span.start_time_unix_nano
    if timeless and _holds_points(request):
        raise Refused(MALFORMED, f"these are metrics: {ADDRESSES}")
    check_unfolded(extent.unfolded, len(request))
    return message, extent


def _holds_points(request: bytes) -> bool:
    """Whether it is metrics, too.

    On the wire a metric is a span whose trace id is its name, without times: what went to the wrong address would be
    acknowledged, and nothing of it kept.
    """
    try:
        message = METRICS.message.FromString(request)
    except DecodeError:
        return False
    return any(
        points(metric)
        for resource in message.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    )


def points(metric: Any) -> Any:
    """The data points of a metric, of whichever kind."""
    kind = metric.WhichOneof("data")
    return getattr(metric, kind).data_points if kind else ()


def check_unfolded(unfolded: int, size: int) -> None:
    """Raises Refused where so many bytes would become of a request of that size in the warehouse."""
    limit = _unfolded_limit(size)
    if unfolded > limit:
        raise Refused(
            TOO_LARGE,
            f"the attributes of resources and points, repeated for each exemplar, or the grants for each point, are "
            f"{unfolded} bytes and may be {limit}: send smaller batches, or smaller attributes",
        )


def _unfolded_limit(size: int) -> int:
    return UNFOLDED_BYTES + UNFOLDED_TIMES * size


def _unfolded(message: Any) -> int:
    """The bytes of all attributes of resources and points, as often as the warehouse repeats them."""
    total = 0
    for resource in message.resource_metrics:
        shared = _bytes(resource.resource.attributes)
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in points(metric):
                    total += (shared + _bytes(point.attributes)) * max(len(getattr(point, "exemplars", ())), 1)
    return total


def _bytes(attributes: Iterable[Any]) -> int:
    return sum(attribute.ByteSize() for attribute in attributes)


class Extent:
    """Counts before anything is looked at: that is what takes time.

    `rows` are points or spans, `events` exemplars, points without exemplars, or spans.
    """

    def __init__(self) -> None:
        self.rows = self.events = self.unfolded = self._items = self._attributes = 0

    def items(self, found: Any) -> Any:
        self._items += len(found)
        if self._items > REQUEST_ITEMS:
            raise Refused(
                TOO_LARGE,
                f"a request has at most {REQUEST_ITEMS} resources, scopes, metrics, points and exemplars together, or "
                "spans, events and links: send smaller batches",
            )
        return found

    def number_of(self, attributes: Any) -> None:
        self._take(len(attributes), len(attributes))

    def count(self, points: Any) -> None:
        """The points of one metric with their exemplars: most of the work of a request, so in few calls."""
        self.rows += len(self.items(points))
        for point in points:
            most = taken = len(point.attributes)
            exemplars = getattr(point, "exemplars", ())  # a summary's points have none
            if exemplars:
                self.events += len(self.items(exemplars))
                numbers = [len(exemplar.filtered_attributes) for exemplar in exemplars]
                most, taken = max(most, *numbers), taken + sum(numbers)
            else:
                self.events += 1
            self._take(most, taken)

    def _take(self, most: int, all_of_them: int) -> None:
        """Attributes: `most` of any one, `all_of_them` together."""
        self._attributes += all_of_them
        if most > ATTRIBUTES:
            raise Refused(TOO_LARGE, f"a resource, a point, an exemplar or a span has at most {ATTRIBUTES} attributes")
        if self._attributes > REQUEST_ATTRIBUTES:
            raise Refused(TOO_LARGE, f"a request has at most {REQUEST_ATTRIBUTES} attributes: send smaller batches")
