"""The journal's record: Rec is written by hand around the request's untouched bytes (docs/contracts.md section 2).

A frame is `varint(len) Rec`. The record's crc32 covers everything before it, so a torn or rotten frame is seen without
decoding the request.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

# Protobuf field tags: number << 3 | wire type (0 varint, 1 fixed64, 2 length-delimited, 5 fixed32).
_CREDENTIAL: Final = b"\x0a"
_NAMESPACE: Final = b"\x12"
_ALLOWED: Final = b"\x1a"
_RECEIVED: Final = b"\x21"
_RECORD_ID: Final = b"\x2a"
_SEGMENT: Final = b"\x32"
_METRICS: Final = b"\x3a"
_TRACES: Final = b"\x42"
_GRANT: Final = b"\x4a"
_CUSTOMERS_FROM: Final = b"\x52"
_MAPPING: Final = b"\x5a"
_VALID_FROM: Final = b"\x61"
_GRANT_CUSTOMER: Final = b"\x0a"
_GRANT_AGENT: Final = b"\x12"
_GRANT_EXPIRES: Final = b"\x19"
_CRC: Final = b"\x7d"
_TRAILER_BYTES: Final = 5
_VARINT_BYTES: Final = 5
_ONE_BYTE: Final = [bytes([number]) for number in range(128)]


class Damaged(ValueError):
    """Bytes that are no record: torn, rotten, or written by something else."""


GRANTS: Final = "grants"
"""Value of `customers_from`: the credential reports only for customers of verified grants."""


@dataclass(frozen=True, slots=True)
class Granted:
    """A grant that the door has verified; agent '': for any agent. Its time is the latest at which it holds, in ns."""

    customer_id: str
    agent_id: str
    expires_at_ns: int


@dataclass(frozen=True, slots=True)
class Record:
    """One accepted request with what the door knew; times in ns since 1970.

    `metrics` is exactly what was received, `traces` what spans_allowed leaves of it; one of them is empty. Where the
    request holds anything but Meterhouse's own events, `valid_from_ns` is the time from which its credential is valid
    and `mapping` the rules of the mapping file that speak of its metrics (JSON, '' for none); of every other request
    they are 0 and ''.
    """

    credential_id: str
    namespace: str
    allowed_customers: tuple[str, ...]
    received_at_ns: int
    record_id: str
    segment: str
    metrics: bytes
    grants: tuple[Granted, ...] = ()
    customers_from: str = ""
    traces: bytes = b""
    mapping: str = ""
    valid_from_ns: int = 0


@dataclass(frozen=True, slots=True)
class Frame:
    """Where a frame lies in its buffer; `intact` is False when its record does not have the checksum it names."""

    start: int
    body: int
    end: int
    intact: bool


def encode(record: Record) -> bytes:
    """The frame of a record."""
    parts = [
        _text(_CREDENTIAL, record.credential_id),
        _text(_NAMESPACE, record.namespace),
        *(_text(_ALLOWED, customer) for customer in record.allowed_customers),
        _RECEIVED,
        struct.pack("<Q", record.received_at_ns),
        _text(_RECORD_ID, record.record_id),
        _text(_SEGMENT, record.segment),
        *((_METRICS, _varint(len(record.metrics)), record.metrics) if not record.traces else ()),
        *((_TRACES, _varint(len(record.traces)), record.traces) if record.traces else ()),
        *(_field(_GRANT, _encode_granted(granted)) for granted in record.grants),
    ]
    if record.customers_from:
        parts.append(_text(_CUSTOMERS_FROM, record.customers_from))
    if record.mapping:
        parts.append(_text(_MAPPING, record.mapping))
    if record.valid_from_ns:
        parts += _VALID_FROM, struct.pack("<Q", record.valid_from_ns)
    body = b"".join(parts)
    checksum = _CRC + struct.pack("<I", zlib.crc32(body))
    return _varint(len(body) + _TRAILER_BYTES) + body + checksum


def decode(body: bytes, *, intact: bool = False) -> Record:
    """The record of a frame's body; `intact`: its checksum was looked at. Raises Damaged."""
    if not intact and not _is_intact(memoryview(body)):
        raise Damaged("the record does not have the checksum that it names")
    fields = _fields(body, len(body) - _TRAILER_BYTES)
    try:
        return Record(
            credential_id=fields[_CREDENTIAL][0].decode(),
            namespace=fields[_NAMESPACE][0].decode(),
            allowed_customers=tuple(customer.decode() for customer in fields.get(_ALLOWED, [])),
            received_at_ns=struct.unpack("<Q", fields[_RECEIVED][0])[0],
            record_id=fields[_RECORD_ID][0].decode(),
            segment=fields[_SEGMENT][0].decode(),
            metrics=fields[_METRICS][0] if _TRACES not in fields else b"",
            grants=tuple(_decode_granted(granted) for granted in fields.get(_GRANT, [])),
            customers_from=fields.get(_CUSTOMERS_FROM, [b""])[0].decode(),
            traces=fields.get(_TRACES, [b""])[0],
            mapping=fields.get(_MAPPING, [b""])[0].decode(),
            valid_from_ns=struct.unpack("<Q", fields.get(_VALID_FROM, [bytes(8)])[0])[0],
        )
    except (KeyError, UnicodeDecodeError) as problem:
        raise Damaged(f"the record lacks a field or its text is not UTF-8: {problem!r}") from None


def resigned(body: bytes) -> bytes:
    """The body of a record whose fields were overwritten, with the checksum that it has now."""
    return body[:-4] + struct.pack("<I", zlib.crc32(body[:-_TRAILER_BYTES]))


def frames(buffer: bytes, segment: str) -> Iterator[Frame]:
    """The frames at the start of a buffer; stops where one does not end inside it (torn, or not yet complete).

    A frame without the checksum it names comes with its bytes, and the reading goes on behind it: by its length where
    an intact frame follows there, else at the next intact frame of this segment, because the length may be what is
    damaged. All in between is then one frame that is not intact.
    """
    view, at = memoryview(buffer), 0
    while at < len(buffer):
        frame = _frame_at(view, at)
        if frame is None or not frame.intact:
            following = frame and _frame_at(view, frame.end)
            if following is None or not following.intact:
                resumed = _next_intact(buffer, at + 1, segment)
                frame = frame if resumed is None else Frame(at, at, resumed, False)
        if frame is None:
            return
        yield frame
        at = frame.end


def _frame_at(view: memoryview, at: int) -> Frame | None:
    try:
        length, body = _read_varint(view, at)
    except Damaged:
        return None
    if length < _TRAILER_BYTES or body + length > len(view):
        return None
    return Frame(at, body, body + length, _is_intact(view[body : body + length]))


def _next_intact(buffer: bytes, at: int, segment: str) -> int | None:
    """Where the next intact frame starts whose record names this segment.

    The name is looked for first, then the start of the record before it: trying every offset would take minutes. It
    also keeps out what a request may carry inside: who sends one cannot know the name.
    """
    view, name = memoryview(buffer), _text(_SEGMENT, segment)
    place = buffer.find(name, at)
    while place >= 0:
        body = buffer.rfind(_CREDENTIAL, at, place)
        while body > at:
            if _begins_record(buffer, body):
                for start in range(max(at, body - _VARINT_BYTES), body):
                    frame = _frame_at(view, start)
                    if frame is not None and frame.body == body and frame.end > place and frame.intact:
                        return start
            body = buffer.rfind(_CREDENTIAL, at, body)
        at = place + 1
        place = buffer.find(name, at)
    return None


def _begins_record(buffer: bytes, body: int) -> bool:
    # A credential's id is shorter than 128 bytes, so its length is one byte; the namespace follows.
    after = body + 2 + buffer[body + 1]
    return buffer[after : after + 1] == _NAMESPACE


def _is_intact(body: memoryview) -> bool:
    if len(body) < _TRAILER_BYTES or body[-_TRAILER_BYTES] != _CRC[0]:
        return False
    return bool(struct.unpack("<I", body[-4:])[0] == zlib.crc32(body[:-_TRAILER_BYTES]))


def _fields(body: bytes, end: int) -> dict[bytes, list[bytes]]:
    """The values of all fields by tag; those of wire type 1 have eight bytes, all others say their length."""
    fields: dict[bytes, list[bytes]] = {}
    at = 0
    while at < end:
        tag, at = body[at : at + 1], at + 1
        if tag[0] & 7 == 1:
            length = 8
        elif at < end and body[at] < 128:  # nearly all
            length, at = body[at], at + 1
        else:
            length, at = _read_varint(memoryview(body), at)
        if at + length > end:
            raise Damaged("a field reaches beyond its record")
        fields.setdefault(tag, []).append(body[at : at + length])
        at += length
    return fields


def _encode_granted(granted: Granted) -> bytes:
    agent = _text(_GRANT_AGENT, granted.agent_id) if granted.agent_id else b""
    expires = _GRANT_EXPIRES + struct.pack("<Q", granted.expires_at_ns)
    return _text(_GRANT_CUSTOMER, granted.customer_id) + agent + expires


def _decode_granted(body: bytes) -> Granted:
    fields = _fields(body, len(body))
    return Granted(
        fields[_GRANT_CUSTOMER][0].decode(),
        fields.get(_GRANT_AGENT, [b""])[0].decode(),
        struct.unpack("<Q", fields[_GRANT_EXPIRES][0])[0],
    )


def _text(tag: bytes, text: str) -> bytes:
    return _field(tag, text.encode())


def _field(tag: bytes, raw: bytes) -> bytes:
    return tag + _varint(len(raw)) + raw


def _varint(number: int) -> bytes:
    if number < 128:
        return _ONE_BYTE[number]
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def _read_varint(view: memoryview, at: int) -> tuple[int, int]:
    number = shift = 0
    while at < len(view) and shift < 7 * _VARINT_BYTES:
        byte = view[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
        shift += 7
    raise Damaged("a length does not end")
