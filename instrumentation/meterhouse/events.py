"""The usage event as the agent knows it, and its names. Pure: no I/O, no clock."""

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from meterhouse.attribution import MAX_BYTES
from meterhouse.vocabulary import (
    CACHE_TTL,
    EVENT_ID,
    LLM_REQUESTS,
    MODALITY,
    NO_USAGE,
    POINT_ATTRIBUTES,
    STATUS,
    UNFINISHED,
    USAGE_SOURCE,
)

MOST = 10**15
"""The largest quantity that counts; the contract's limit."""
REPORTED_QUANTITY = "usage.quantity"
"""Attribute of an event whose quantity is NaN: the number that was reported instead of a count."""
_HALF_A_PAIR = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class UsageEvent:
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


def event_name(call_id: str, meter: str, modality: str = "", cache_ttl: str = "") -> str:
    """The event id of one row of a call: the same arguments always give the same 32 characters."""
    return hashlib.sha256("\0".join((call_id, meter, modality, cache_ttl)).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Row:
    """A quantity that a provider reported, before it has a call: the disjoint bucket `meter`, split where reported.

    None: not reported. NaN: something was reported that is no number. `usage_source`, where given, is this row's own.
    """

    meter: str
    quantity: int | float | None
    modality: str = ""
    cache_ttl: str = ""
    usage_source: str = ""


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
        if math.isfinite(quantity) and quantity != int(quantity):
            quantity, own[REPORTED_QUANTITY] = math.nan, repr(quantity)
        name = event_name(call_id, row.meter, row.modality, row.cache_ttl)
        events.append(UsageEvent(row.meter, quantity, name, event_time_ns, {**attributes, **own}, trace_id, span_id))
    return events


def counts(quantity: int | float) -> bool:
    """True for a quantity that an OTLP counter can carry and the collector counts: from 0 to 10^15."""
    return 0 <= quantity <= MOST


def unfinished(call_id: str, started_at_ns: int, attributes: Mapping[str, str]) -> UsageEvent:
    """The event of a call whose process died: one request, and nothing guessed about its tokens.

    It has the name that the call's own `llm.requests` would have had, so that a call counts once whoever tells of it.
    """
    known = {**attributes, STATUS: UNFINISHED, USAGE_SOURCE: NO_USAGE}
    return UsageEvent(LLM_REQUESTS, 1, event_name(call_id, LLM_REQUESTS), started_at_ns, known)


def measurement(event: UsageEvent) -> dict[str, str]:
    """The attributes of the event's measurement, cut to the contract's limits."""
    kept = {key: cut(value) for key, value in event.attributes.items()}
    kept[EVENT_ID] = event.event_id
    return kept


def series(event: UsageEvent) -> dict[str, str]:
    """The attributes of the data point that the event belongs to."""
    return {key: cut(value) for key, value in event.attributes.items() if key in POINT_ATTRIBUTES}


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
    return split
