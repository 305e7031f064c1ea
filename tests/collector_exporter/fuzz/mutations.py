"""Changes requests as what they are: a field of a message is set, added, doubled or taken away, not a byte of it."""

import base64
import gzip
import json
import math

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError
from target import KINDS

from meterhouse_collector.encodings import gunzip, json_to_protobuf
from meterhouse_collector.extents import REQUEST_BYTES
from meterhouse_collector.refusals import Refused
from meterhouse_collector.signals import METRICS, TRACES
from meterhouse_collector.spans_allowed import COUNTS, RESOURCE_ATTRIBUTES, SPAN_ATTRIBUTES

TEXTS = [
    *sorted(SPAN_ATTRIBUTES | RESOURCE_ATTRIBUTES),
    *(prefix + "x" for prefix in COUNTS),
    "meterhouse.event.id",
    "meterhouse.once",
    "meterhouse.grants",
    "meterhouse.llm.requests",
    "gen_ai.client.token.usage",
    "otel.metric.overflow",
    "true",
    "12",
    "1e999",
    "NaN",
    "",
    "\0",
    "é" * 200,
    "x" * 300,
    "\U0001f600" * 65,
]
NUMBERS = [0, 1, 2, 3, 7, 255, 2**31 - 1, 2**31, 2**53 + 1, 2**63 - 1, 1_793_491_200_000_000_000]
DOUBLES = [0.0, -0.0, 0.1, 1e-9, 1e-10, -1.0, 1e15, 1e29, 1.7e308, math.nan, math.inf, -math.inf]


def mutated(data, rng):
    """The input with a few changes; None where it cannot be read as a request."""
    if not data or (kind := KINDS[data[0] % len(KINDS)]) == "journal":
        return None
    signal, body = TRACES if kind.startswith("traces") else METRICS, bytes(data[1:])
    try:
        if kind.endswith("gzip"):
            body = gunzip(body, REQUEST_BYTES)
        elif kind.endswith("json"):
            body = json_to_protobuf(body, signal)
        message = signal.message.FromString(body)
    except (Refused, DecodeError):
        return None
    for _ in range(rng.randrange(1, 5)):
        change(message, rng)
    body = message.SerializeToString()
    if kind.endswith("gzip"):
        body = gzip.compress(body, 1)
    elif kind.endswith("json"):
        found = MessageToDict(message)
        ids_to_hex(found)
        body = json.dumps(found).encode("utf-8", "surrogatepass")
    return bytes([data[0]]) + body


def change(message, rng):
    """One change somewhere in a message."""
    field = rng.choice(message.DESCRIPTOR.fields)
    if field.is_repeated:
        change_list(message, field, getattr(message, field.name), rng)
    elif field.message_type is not None:
        inner = getattr(message, field.name)
        if rng.random() < 0.1:
            message.ClearField(field.name)
        elif message.HasField(field.name) or rng.random() < 0.5:
            inner.SetInParent()
            change(inner, rng)
    else:
        setattr(message, field.name, scalar(field, rng))


def change_list(message, field, found, rng):
    what = rng.random()
    if found and what < 0.1:
        del found[rng.randrange(len(found))]
    elif found and what < 0.2:
        found.append(found[rng.randrange(len(found))])
    elif field.message_type is None:
        found.append(scalar(field, rng))
    elif found and what < 0.85:
        change(found[rng.randrange(len(found))], rng)
    else:
        change(found.add(), rng)


def scalar(field, rng):
    """A value that the field can have."""
    types = type(field)
    match field.cpp_type:
        case types.CPPTYPE_STRING:
            text = rng.choice(TEXTS)
            return text.encode() if field.type == types.TYPE_BYTES else text
        case types.CPPTYPE_DOUBLE | types.CPPTYPE_FLOAT:
            return rng.choice(DOUBLES)
        case types.CPPTYPE_BOOL:
            return rng.random() < 0.5
        case types.CPPTYPE_ENUM:
            return rng.randrange(4)
        case types.CPPTYPE_INT32 | types.CPPTYPE_UINT32:
            return rng.choice(NUMBERS) % 2**31
        case _:
            number = rng.choice(NUMBERS)
            return -number if field.cpp_type == types.CPPTYPE_INT64 and rng.random() < 0.3 else number


def ids_to_hex(value):
    """OTLP's JSON has ids in hex, Protobuf's in base64."""
    if isinstance(value, list):
        for child in value:
            ids_to_hex(child)
    elif isinstance(value, dict):
        for name, child in value.items():
            if name in ("traceId", "spanId", "parentSpanId"):
                value[name] = base64.b64decode(child).hex()
            else:
                ids_to_hex(child)
