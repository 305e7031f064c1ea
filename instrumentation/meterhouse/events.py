"""The usage event as the agent knows it, and its names. Pure: no I/O, no clock."""

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

from meterhouse import json_text
from meterhouse.attribution import MAX_BYTES
from meterhouse.vocabulary import (
    CACHE_TTL,
    LLM_REQUESTS,
    MODALITY,
    NO_USAGE,
    RESPONSE_MODEL,
    STATUS,
    UNFINISHED,
    USAGE_SOURCE,
)

MOST = 10**15
"""The largest quantity that counts; the contract's limit."""
REPORTED_QUANTITY = "usage.quantity"
"""Attribute of an event whose quantity is NaN: the number that was reported instead of a count."""
_HALF_A_PAIR = re.compile("[\ud800-\udfff]")


class UsageEvent(NamedTuple):
    """One usage event: `quantity` units of `meter` at `event_time_ns` (since the epoch), under its one name.

    `attributes` are those of the point and of the exemplar together, without the event id. `trace_id` and `span_id` are
    the caller's span, 0 where there is none.
    """

    meter: str
    quantity: int | float
    event_id: str
    event_time_ns: int
    attributes: Mapping[str, str]
    trace_id: int = 0
    span_id: int = 0

    def as_json(self) -> list[Any]:
        """A compact form for the journal; `from_json` is its inverse."""
        return [
            self.meter,
            self.quantity,
            self.event_id,
            self.event_time_ns,
            dict(self.attributes),
            f"{self.trace_id:x}",
            f"{self.span_id:x}",
        ]

    @classmethod
    def from_json(cls, row: list[Any]) -> "UsageEvent":
        """Raises ValueError or TypeError when `row` is not what `as_json` wrote."""
        meter, quantity, event_id, event_time_ns, attributes, trace_id, span_id = row
        texts = (meter, event_id, *attributes, *dict(attributes).values())
        numbers = isinstance(quantity, int | float) and isinstance(event_time_ns, int)
        if not numbers or not all(isinstance(text, str) for text in texts):
            raise TypeError("no usage event")
        return cls(meter, quantity, event_id, event_time_ns, attributes, int(trace_id, 16), int(span_id, 16))


def event_name(call_id: str, meter: str, modality: str = "", cache_ttl: str = "", model: str = "") -> str:
    """The event id of one row of a call: the same arguments always give the same 32 characters, whatever is in them."""
    parts = (call_id, meter, modality, cache_ttl, model) if model else (call_id, meter, modality, cache_ttl)
    return name_from(*parts)


def name_from(*parts: str) -> str:
    """An event id: the same parts always give the same 32 characters, whatever is in them."""
    return hashlib.sha256("\0".join(parts).encode(errors="surrogatepass")).hexdigest()[:32]


class Row(NamedTuple):
    """A quantity that a provider reported, before it has a call: the disjoint bucket `meter`, split where reported.

    None: not reported. NaN: something was reported that is no number. `usage_source` and `model`, where given, are the
    row's own, beside those of the answer. `decimal`: parts of the meter's unit count (seconds; there is no half token).
    """

    meter: str
    quantity: int | float | None
    modality: str = ""
    cache_ttl: str = ""
    usage_source: str = ""
    model: str = ""
    decimal: bool = False


_UNSPLIT = Row("", None)[2:]


def of_call(
    call_id: str,
    event_time_ns: int,
    rows: Iterable[Row],
    attributes: Mapping[str, str],
    *,
    trace_id: int = 0,
    span_id: int = 0,
) -> list[UsageEvent]:
    """The events of one call, one per row; rows of quantity 0 or None are no events.

    A quantity that cannot count is an event as well: the collector holds it in suspense, where somebody sees it. A part
    of a unit would count there, so it goes as NaN, with what was reported beside it.
    """
    events = []
    for row in rows:
        if not row.quantity:
            continue
        quantity, own = row.quantity, _split(row)
        if not row.decimal and isinstance(quantity, float) and math.isfinite(quantity) and quantity != int(quantity):
            quantity, own[REPORTED_QUANTITY] = math.nan, repr(quantity)
        name = event_name(call_id, row.meter, row.modality, row.cache_ttl, row.model)
        known = {**attributes, **own} if own else attributes  # most of a call's events share theirs
        events.append(UsageEvent(row.meter, quantity, name, event_time_ns, known, trace_id, span_id))
    return events


class Recorded(Protocol):
    """What a thread leaves of its usage; cheap to make, spelled out into events by the exporter's thread."""

    attributes: Mapping[str, str]
    """Those that all of its events have."""

    @property
    def call_id(self) -> str | None:
        """The call that is finished by it."""

    @property
    def size(self) -> int:
        """How many events it has at most."""

    def events(self) -> list[UsageEvent]:
        """Its events; the same objects each time."""

    def as_line(self) -> str:
        """A line of the journal, without its end; `from_line` is the inverse, of what JSON makes of it."""


class Finished:
    """A finished call: what its events share, and a row for each. Their ids come from `name`, else the call's id."""

    def __init__(
        self,
        call_id: str,
        event_time_ns: int,
        rows: Iterable[Row],
        attributes: Mapping[str, str],
        trace_id: int = 0,
        span_id: int = 0,
        name: str | None = None,
    ) -> None:
        self.call_id = call_id
        self._name = name
        self.attributes = attributes
        self._event_time_ns = event_time_ns
        # Cut now, because the journal holds only what UTF-8 can: ids made before and after it was read are the same.
        self._rows = [_cut(row) if row.model or row.modality else row for row in rows if row.quantity]
        self._span = (trace_id, span_id)
        self._events: list[UsageEvent] | None = None

    @property
    def size(self) -> int:
        return len(self._rows)

    def events(self) -> list[UsageEvent]:
        if self._events is None:
            at, (trace_id, span_id) = self._event_time_ns, self._span
            name = self._name or self.call_id
            self._events = of_call(name, at, self._rows, self.attributes, trace_id=trace_id, span_id=span_id)
        return self._events

    def as_line(self) -> str:
        trace_id, span_id = self._span
        # A named tuple is a list of its values in JSON; most rows have none but the first two.
        rows = ",".join(map(_text, self._rows))
        name = f',"name":{json_text.quoted(self._name)}' if self._name else ""
        return (
            f'{{"call":{json_text.quoted(self.call_id)},"at":{self._event_time_ns}'
            f',"attributes":{json_text.of_texts(self.attributes)},"rows":[{rows}]'
            f',"span":["{trace_id:x}","{span_id:x}"]{name}}}'
        )


class Loose:
    """Events that belong to no call; they share the attributes of the first."""

    call_id = None

    def __init__(self, events: list[UsageEvent]) -> None:
        self.attributes = events[0].attributes
        self._events = events

    @property
    def size(self) -> int:
        return len(self._events)

    def events(self) -> list[UsageEvent]:
        return self._events

    def as_line(self) -> str:
        return json_text.compact({"call": None, "events": [event.as_json() for event in self._events]})


def from_line(record: Mapping[str, Any]) -> Recorded:
    """What `as_line` of either wrote; raises KeyError, TypeError or ValueError for anything else."""
    if "events" in record:
        return Loose([UsageEvent.from_json(row) for row in record["events"]])
    call_id, at, attributes, (trace_id, span_id) = record["call"], record["at"], record["attributes"], record["span"]
    rows = [Row(*row) for row in record["rows"]]
    name = record.get("name")
    texts = [call_id, *attributes, *attributes.values(), name or ""]
    texts += [text for row in rows for text in (row.meter, row.modality, row.cache_ttl, row.usage_source, row.model)]
    numbers = [at, *(row.quantity for row in rows)]
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(one, int | float) for one in numbers):
        raise TypeError("no finished call")
    return Finished(call_id, at, rows, attributes, int(trace_id, 16), int(span_id, 16), name)


def counts(quantity: int | float) -> bool:
    """True for a quantity that an OTLP counter can carry and the collector counts: from 0 to 10^15."""
    return 0 <= quantity <= MOST


def unfinished(call_id: str, started_at_ns: int, attributes: Mapping[str, str]) -> UsageEvent:
    """The event of a call whose process died: one request, and nothing guessed about its tokens.

    It has the name that the call's own `llm.requests` would have had, so that a call counts once whoever tells of it.
    """
    known = {**attributes, STATUS: UNFINISHED, USAGE_SOURCE: NO_USAGE}
    return UsageEvent(LLM_REQUESTS, 1, event_name(call_id, LLM_REQUESTS), started_at_ns, known)


def cut(value: str) -> str:
    """`value` within the limit of an identifier, whole characters only; half a surrogate pair, which UTF-8 cannot have,
    becomes U+FFFD."""
    if value.isascii():
        return value[:MAX_BYTES]
    return _HALF_A_PAIR.sub("\ufffd", value).encode()[:MAX_BYTES].decode(errors="ignore")


def _split(row: Row) -> dict[str, str]:
    split = {}
    if row.modality:
        split[MODALITY] = row.modality
    if row.cache_ttl:
        split[CACHE_TTL] = row.cache_ttl
    if row.usage_source:
        split[USAGE_SOURCE] = row.usage_source
    if row.model:
        split[RESPONSE_MODEL] = row.model
    return split


def _text(row: Row) -> str:
    quantity = row.quantity
    if row[2:] == _UNSPLIT:
        return json_text.pair(row.meter, quantity) if type(quantity) is int else json_text.compact(row[:2])
    return json_text.compact(row)


def _cut(row: Row) -> Row:
    return row._replace(modality=cut(row.modality), model=cut(row.model))
