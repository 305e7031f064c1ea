"""Takes a customer out of a journal record: what names the customer, or a thing of the customer's, is overwritten.

Every overwritten value keeps its length and its kind of characters, so nothing else in the record moves: the request
has the same points at the same places, and whether an identifier is valid does not change. Equal values get equal
pseudonyms and different ones different ones, so re-sent copies still are copies of one event, and no two events or
series become one. Quantities, times, meters, models and what else rating needs stay: the totals are those of before, of
nobody. So do trace, span and response ids: which spans count twice hangs on them, and other records have them as well.
"""

import json
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from meterhouse import grants, vocabulary
from meterhouse_collector.pseudonyms import Pseudonyms, encoded, varint
from meterhouse_collector.records import Frame, Record, decode, resigned

NAMES: Final = frozenset(
    {
        vocabulary.AGENT_ID,
        vocabulary.AGENT_NAME,
        vocabulary.TOOL_NAME,
        vocabulary.SERVER_ADDRESS,
        vocabulary.PROCESS_ID,
        vocabulary.RESPONSE_ID,
        "agent.name",
        "service.instance.id",
        "service.name",
    }
)
"""Attributes that stay, but for the customer's id where it is a word of them."""
KEPT: Final = (
    (vocabulary.POINT_ATTRIBUTES - {vocabulary.CUSTOMER_ID})
    | NAMES
    | {
        vocabulary.REQUEST_MODEL,
        vocabulary.USAGE_SOURCE,
        vocabulary.ONCE,
        "embedding.model_name",
        "gen_ai.openai.response.service_tier",
        "gen_ai.system",
        "gen_ai.token.type",
        "llm.model_name",
        "llm.provider",
        "llm.request.model_name",
        "llm.request.type",
        "llm.response.model_name",
        "llm.system",
        "openai.response.service_tier",
        "openinference.span.kind",
        "otel.metric.overflow",
        "traceloop.span.kind",
        "usage.quantity",
    }
)
"""Attributes whose values say what was used, not by whom: they decide whether and at which price a row counts."""
KEPT_PREFIXES: Final = ("gen_ai.usage.", "llm.usage.", "llm.token_count.")
# Field numbers of the OTLP messages (opentelemetry-proto 1.x): where the attributes of each kind of point are, and its
# exemplars.
_POINTS: Final = {5: (7, 5), 7: (7, 5), 9: (9, 8), 10: (1, 11), 11: (7, None)}


class _Field(NamedTuple):
    number: int
    wire: int
    start: int
    end: int


def may_speak_of(body: memoryview, customer_id: str) -> bool:
    """Whether it is worth while to look into a record: quick, and never False where it does."""
    raw = bytes(body)
    return customer_id.encode() in raw or vocabulary.GRANTS.encode() in raw or customer_id.lstrip("-").isdigit()


def without_customer(data: bytes, frame: Frame, customer_id: str, namespace: str, names: Pseudonyms) -> bytes | None:
    """The frame, as long as it was, without the customer; None where it does not speak of the customer."""
    body = data[frame.body : frame.end]
    record = decode(body)
    if record.namespace != namespace:
        return None
    scrubber = _Scrubber(bytearray(body), customer_id, names, record)
    scrubber.record()
    if scrubber.buffer == body:
        return None
    return data[frame.start : frame.body] + resigned(bytes(scrubber.buffer))


class _Scrubber:
    """Walks the bytes of one record and overwrites in place."""

    def __init__(self, buffer: bytearray, customer_id: str, names: Pseudonyms, record: Record) -> None:
        self.buffer, self._customer, self._names = buffer, customer_id, names
        rules = json.loads(record.mapping) if record.mapping else {}
        mapped = [*rules.get("metrics", ()), rules.get("spans", {})]
        self._customer_keys = {vocabulary.CUSTOMER_ID} | {rule["customer"] for rule in mapped if rule.get("customer")}
        self._kept = KEPT | {name for rule in mapped for name in rule.get("attributes", {}).values()}
        self._kept -= self._customer_keys
        self._word = re.compile(rf"(?<![\w@.-]){re.escape(customer_id)}(?![\w@-])")

    def record(self) -> None:
        for field in self._fields(0, len(self.buffer)):
            if field.number == 3:
                self._text_if_customer(field)
            elif field.number == 9:
                for of_grant in self._fields(field.start, field.end):
                    if of_grant.number == 1:
                        self._text_if_customer(of_grant)
            elif field.number in (7, 8):
                for resource in self._fields(field.start, field.end, 1):
                    self._resource(resource, is_trace=field.number == 8)

    def _resource(self, resource: _Field, *, is_trace: bool) -> None:
        own = [
            attribute
            for field in self._fields(resource.start, resource.end, 1)
            for attribute in self._fields(field.start, field.end, 1)
        ]
        is_theirs = self._names_customer(own)
        for scope in self._fields(resource.start, resource.end, 2):
            for field in self._fields(scope.start, scope.end, 1):
                self._grants(self._fields(field.start, field.end, 3))
            for item in self._fields(scope.start, scope.end, 2):
                if is_trace:
                    self._holder(item, 9, None, is_theirs)
                else:
                    self._metric(item, is_theirs)
        if is_theirs:
            self._scrub(own)

    def _metric(self, metric: _Field, is_theirs: bool) -> None:
        for data in self._fields(metric.start, metric.end):
            if data.number in _POINTS:
                attributes, exemplars = _POINTS[data.number]
                for point in self._fields(data.start, data.end, 1):
                    self._holder(point, attributes, exemplars, is_theirs)

    def _holder(self, holder: _Field, attributes: int, exemplars: int | None, is_theirs: bool) -> None:
        """A point or a span. Its own customer counts, else that of its resource."""
        own = list(self._fields(holder.start, holder.end, attributes))
        if not (self._names_customer(own) or (is_theirs and not self._names_any_customer(own))):
            return
        self._scrub(own)
        if exemplars is not None:
            for exemplar in self._fields(holder.start, holder.end, exemplars):
                self._scrub(self._fields(exemplar.start, exemplar.end, 7))
            return
        for numbers in ((11, 3), (13, 4)):  # of a span: events and links
            for part in self._fields(holder.start, holder.end, numbers[0]):
                self._scrub(self._fields(part.start, part.end, numbers[1]))

    def _names_any_customer(self, attributes: list[_Field]) -> bool:
        return any(self._key(attribute) in self._customer_keys for attribute in attributes)

    def _names_customer(self, attributes: list[_Field]) -> bool:
        return any(
            self._key(attribute) in self._customer_keys and self._as_text(value) == self._customer
            for attribute in attributes
            for value in self._values(attribute)
        )

    def _scrub(self, attributes: "list[_Field] | Iterator[_Field]") -> None:
        for attribute in attributes:
            key = self._key(attribute)
            if key in NAMES and key in self._kept:
                self._rename(attribute)
            elif key not in self._kept and not key.startswith(KEPT_PREFIXES):
                for field in self._fields(attribute.start, attribute.end, 2):
                    self._any_value(field, key)

    def _rename(self, attribute: _Field) -> None:
        """Of a value that stays overwrite the customer's id, where that is a word of it."""
        own = self._names.customer(self._customer).replace("\\", r"\\")  # in what takes its place, re.sub knows escapes
        for value in self._values(attribute):
            if value.number == 1:
                self._write(value, self._word.sub(own, self._text(value)).encode())

    def _any_value(self, field: _Field, key: str) -> None:
        for value in self._fields(field.start, field.end):
            raw = bytes(self.buffer[value.start : value.end])
            if key in self._customer_keys and self._as_text(value) == self._customer:
                own = self._names.customer(self._customer)
                is_text = value.number == 1
                self._write(value, own.encode() if is_text else encoded(int(own) % 2**64, len(raw)))
            elif value.number == 1:
                self._write(value, self._names.text(self._text(value)).encode())
            elif value.number == 3:
                self._write(value, self._names.varint(raw))
            elif value.number == 4 and key != vocabulary.EVENT_ID:  # how that reads as an id only ClickHouse knows
                self._write(value, self._names.double(raw))
            elif value.number == 7:
                self._write(value, self._names.octets(raw))
            elif value.number == 5:
                for element in self._fields(value.start, value.end, 1):
                    self._any_value(element, key)
            elif value.number == 6:
                self._scrub(self._fields(value.start, value.end, 1))

    def _grants(self, attributes: Iterator[_Field]) -> None:
        for attribute in attributes:
            if self._key(attribute) != vocabulary.GRANTS:
                continue
            for field in self._fields(attribute.start, attribute.end, 2):
                for array in self._fields(field.start, field.end, 5):
                    for element in self._fields(array.start, array.end, 1):
                        for token in self._fields(element.start, element.end, 1):
                            if _customer_of(self._text(token)) == self._customer:
                                self._write(token, self._names.text(self._text(token)).encode())

    def _text_if_customer(self, field: _Field) -> None:
        if self._text(field) == self._customer:
            self._write(field, self._names.customer(self._customer).encode())

    def _write(self, field: _Field, value: bytes) -> None:
        assert len(value) == field.end - field.start
        self.buffer[field.start : field.end] = value

    def _key(self, attribute: _Field) -> str:
        return "".join(self._text(key) for key in self._fields(attribute.start, attribute.end, 1))

    def _values(self, attribute: _Field) -> Iterator[_Field]:
        for field in self._fields(attribute.start, attribute.end, 2):
            yield from self._fields(field.start, field.end)

    def _as_text(self, value: _Field) -> str:
        if value.number == 1:
            return self._text(value)
        if value.number == 3:
            number = varint(self.buffer, value.start)[0]
            return str(number - 2**64 if number >= 2**63 else number)
        return ""

    def _text(self, field: _Field) -> str:
        return self.buffer[field.start : field.end].decode(errors="replace")

    def _fields(self, start: int, end: int, number: int | None = None) -> Iterator[_Field]:
        """The fields of a message, those of one number where it is given. The door has parsed it before."""
        at, depth = start, 0
        while at < end:
            tag, at = varint(self.buffer, at)
            wire, first = tag & 7, at
            if wire == 0:
                at = varint(self.buffer, at)[1]
            elif wire == 2:
                length, first = varint(self.buffer, at)
                at = first + length
            elif wire in (1, 5):
                at += 8 if wire == 1 else 4
            else:  # the start or the end of a group, which OTLP does not have: what is in it is unknown
                depth += 1 if wire == 3 else -1
                continue
            if not depth and number in (None, tag >> 3):
                yield _Field(tag >> 3, wire, first, at)


def _customer_of(token: str) -> str | None:
    try:
        return grants.read(token).customer
    except ValueError:
        return None
