"""From what came over HTTP to a serialized OTLP request: gzip under a cap, OTLP/JSON to Protobuf."""

import base64
import json
import math
import re
import zlib
from collections.abc import Callable
from typing import Any, Final

from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import Message

from meterhouse_collector.refusals import MALFORMED, TOO_LARGE, Refused
from meterhouse_collector.signals import ADDRESSES, METRICS, Signal

try:  # three times as fast; not on every platform
    from isal import isal_zlib
    from isal.igzip_lib import IsalError

    _decompressor: Callable[[int], Any] = isal_zlib.decompressobj
    _NOT_GZIP: tuple[type[BaseException], ...] = (IsalError, zlib.error)  # type: ignore[assignment]
except ImportError:
    _decompressor = zlib.decompressobj
    _NOT_GZIP = (zlib.error,)

_GZIP: Final = 31  # window bits of zlib that mean gzip
_PIECE_BYTES: Final = 64 * 2**10
_MAX_MEMBERS: Final = 1000
"""One is usual; tools that compress in parallel make one of every 64 to 128 kB."""
_IDS: Final = frozenset({"traceId", "spanId", "parentSpanId", "trace_id", "span_id", "parent_span_id"})
_HEX: Final = re.compile(r"(?:[0-9a-fA-F]{2})*", re.ASCII)
_SIGNALS: Final = frozenset(
    {"resourceMetrics", "resource_metrics", "resourceSpans", "resource_spans", "resourceLogs", "resource_logs"}
)
_MAX_DEPTH: Final = 64
"""Nesting of JSON; a request needs about 14 levels, an attribute value may nest a few more."""


def gunzip(data: bytes, limit_bytes: int) -> bytes:
    """The content of a gzip body, never more than the limit in memory, in time linear in it. Raises Refused."""
    too_large = Refused(TOO_LARGE, f"a request has at most {limit_bytes} bytes, decompressed: send smaller batches")
    parts: list[bytes] = []
    size = members = at = begun = 0
    member = None
    while at < len(data):
        if member is None:
            members += 1
            if members > _MAX_MEMBERS:
                raise Refused(MALFORMED, f"a gzip body has at most {_MAX_MEMBERS} members: compress it as one")
            member, begun = _decompressor(_GZIP), at
        # In pieces: what stands behind a member is copied out of the piece, not out of all of the body.
        piece = data[at : at + _PIECE_BYTES]
        try:
            parts.append(member.decompress(piece, limit_bytes - size + 1))
        except _NOT_GZIP as problem:
            raise _no_gzip(f"the body says it is gzip and is not: {problem}", len(data) - begun, members) from None
        size += len(parts[-1])
        if size > limit_bytes:
            raise too_large
        at += len(piece)
        if member.eof:
            at -= len(member.unused_data)
            member = None
    if member is not None:
        raise _no_gzip("the gzip body ends too early", len(data) - begun, members)
    return b"".join(parts)


def _no_gzip(why: str, left: int, members: int) -> Refused:
    if members > 1:
        why = f"behind the gzip body stand {left} bytes that are no gzip: send the body alone"
    return Refused(MALFORMED, why)


def json_to_protobuf(data: bytes, signal: Signal = METRICS) -> bytes:
    """OTLP/JSON as Protobuf (OTLP 1.x: ids in hex, enums as numbers, unknown fields ignored). Raises Refused."""
    try:
        found = json.loads(data, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_unique)
        if not isinstance(found, dict):
            raise ValueError('it is an object: {"resourceMetrics": [...]} or {"resourceSpans": [...]}')
        _check_signal(found, signal)
        _check_depth(found)
        _ids_to_base64(found)
        message: Message = ParseDict(found, signal.message(), ignore_unknown_fields=True)
    except RecursionError:
        raise Refused(MALFORMED, "the JSON is nested too deeply") from None
    except (ValueError, ParseError) as problem:
        raise Refused(MALFORMED, f"this is no OTLP/JSON {signal.message.DESCRIPTOR.name}: {problem}") from None
    return message.SerializeToString()


def _check_signal(found: dict[str, Any], signal: Signal) -> None:
    # Unknown fields are ignored, and so would be all of a request that went to the other signal's address.
    own = signal.message.DESCRIPTOR.fields[0]
    for name in _SIGNALS.intersection(found) - {own.json_name, own.name}:
        raise ValueError(f"it holds {name}: {ADDRESSES}")


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # The last of two would win and the usage in the first be gone. Protobuf's JSON reads both spellings of a name.
    found = {name.replace("_", "").lower() for name, _ in pairs}
    if len(found) < len(pairs):
        raise ValueError(f"an object names a field twice, among {', '.join(name[:40] for name, _ in pairs[:10])}")
    return dict(pairs)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:40]} is out of range")
    return number


def _check_depth(found: Any) -> None:
    level = [found]
    for _ in range(_MAX_DEPTH):
        level = [
            child
            for value in level
            if isinstance(value, dict | list)
            for child in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return
    raise ValueError(f"the JSON is nested more than {_MAX_DEPTH} levels deep")


def _ids_to_base64(value: Any) -> None:
    # Protobuf's own JSON has bytes in base64, OTLP writes trace and span ids in hex.
    if isinstance(value, list):
        for child in value:
            _ids_to_base64(child)
    elif isinstance(value, dict):
        for name, child in value.items():
            if name in _IDS and isinstance(child, str):
                if not _HEX.fullmatch(child):
                    raise ValueError(
                        f"{name} is {child[:40]!r}: OTLP/JSON writes ids in hex, two digits a byte, not base64"
                    )
                value[name] = base64.b64encode(bytes.fromhex(child)).decode()
            else:
                _ids_to_base64(child)
