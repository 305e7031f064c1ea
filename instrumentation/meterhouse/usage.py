"""What one provider call turns out to have used, gathered from the documents of its answer. Pure.

Nothing that is reported becomes a silent 0. What is a number but no count (negative, 12.5, beyond 10^15) stays that
number: the event is sent and held in suspense. What is no number is unknown, and the call says so. Buckets that are
computed keep to three rules: they add up to the total as it was reported; a part that is no count is not taken out of
its total; parts that exceed their total leave a negative rest, which is held while the parts count.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, TypeGuard

from meterhouse.events import MOST, Row
from meterhouse.vocabulary import (
    ESTIMATED,
    LLM_REQUESTS,
    NO_USAGE,
    REPORTED,
    RESPONSE_ID,
    RESPONSE_MODEL,
    SERVICE_TIER,
    TOKENS,
    TOKENS_OUTPUT,
    USAGE_SOURCE,
)

Quantity = int | float
"""An int from -10^15 to 10^15; a float is what does not count: beyond that, not integral, or NaN for no number."""
MAPPING = (dict, Mapping)
"""For isinstance: the abstract class alone takes its time, and JSON has nothing but dicts."""
_DECIMAL = re.compile(r"[+-]?[0-9]{1,400}(\.[0-9]{1,400})?")


@dataclass
class Answer:
    """Filled by a provider's reader, document by document (a body, or the events of a stream)."""

    model: str | None = None
    response_id: str | None = None
    service_tier: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    """The provider's usage as it stands; later documents replace what earlier ones said."""
    complete: bool = False
    """The provider said that this was all."""
    failed: bool = False
    """The provider said that the call failed, in the stream or body."""
    tool_calls: dict[str, str] = field(default_factory=dict)
    """Tool call id -> name of the tools that the model asks for, as far as the documents read tell."""
    noted: dict[str, Any] = field(default_factory=dict)
    """What a reader keeps for itself of the documents, besides the usage."""
    characters: int = 0
    """Characters of the visible text read since a usage was reported: all where an estimate is wanted, else some."""
    pending: bool = False
    """The provider still works on it, and another call will bring the answer."""
    created_at_ns: int | None = None
    """When the provider began to work on an answer that another call brings (epoch)."""

    def attributes(self) -> dict[str, str]:
        """The attributes that only the answer knows."""
        known = {
            RESPONSE_MODEL: self.model,
            RESPONSE_ID: self.response_id,
            SERVICE_TIER: self.service_tier,
            USAGE_SOURCE: REPORTED,
        }
        return {key: value for key, value in known.items() if value}

    def identify(self, document: Mapping[str, Any]) -> None:
        """Take `model`, `id` and `service_tier` where the document has them."""
        self.model = text(document, "model") or self.model
        self.response_id = text(document, "id") or self.response_id
        self.service_tier = text(document, "service_tier") or self.service_tier


def call_rows(buckets: Sequence[Row], *, ended: bool = True) -> list[Row]:
    """The request and the buckets that were reported; its usage.source is `none` unless all of them could be read.

    A call that has not `ended` may have reported what the provider's tools did before it could report its tokens.
    """
    reported = [row for row in buckets if row.quantity is not None]
    read = [row for row in reported if not unreadable(row)]
    known = bool(read) and len(read) == len(reported) and (ended or has_tokens(read))
    return [Row(LLM_REQUESTS, 1, usage_source="" if known else NO_USAGE), *read]


def has_tokens(rows: Iterable[Row]) -> bool:
    """True where some of the rows are of tokens."""
    return any(row.meter.startswith(TOKENS) for row in rows)


def with_estimate(rows: Sequence[Row], characters: int) -> list[Row]:
    """`rows` with an output of a token per four characters, rounded up, beyond what was reported; the call says so."""
    told = [row for row in rows if (row.meter, row.modality, row.model) == (TOKENS_OUTPUT, "", "")]
    if not all(is_count(row.quantity) for row in told):
        return list(rows)
    output = sum(int(row.quantity or 0) for row in told) + math.ceil(characters / 4)
    known = [row._replace(usage_source=ESTIMATED) if row.meter == LLM_REQUESTS else row for row in rows]
    return [*(row for row in known if row not in told), Row(TOKENS_OUTPUT, output, usage_source=ESTIMATED)]


def unreadable(row: Row) -> bool:
    """True where the provider reported something that is no number."""
    return row.quantity != row.quantity  # only NaN differs from itself


def is_mapping(value: object) -> TypeGuard[Mapping[str, Any]]:
    """`isinstance(value, MAPPING)`, quick also for what is not there."""
    return value is not None and isinstance(value, MAPPING)


def count(usage: object, *path: str) -> Quantity | None:
    """What the provider reports at `path`, as the number it is; None where it reports nothing, NaN for no number.

    `usage` is an object of its answer, or what stands in its place.
    """
    value: Any = usage
    for key in path:
        if type(value) is not dict and not is_mapping(value):
            return math.nan if value else None
        value = value.get(key)
    if value is None:
        return None
    if type(value) is int and -MOST <= value <= MOST:
        return value
    return _number(value)


def told(document: object, key: str) -> Quantity | None:
    """`count` of what stands at `key`, quick for the integers of plain JSON."""
    if type(document) is not dict:
        return count(document, key)
    value = document.get(key)
    if value is None or (type(value) is int and -MOST <= value <= MOST):
        return value
    return _number(value)


def seconds(usage: Mapping[str, Any], *path: str) -> Quantity | None:
    """`count` for a duration in seconds, of which parts count: to the nanosecond."""
    number = count(usage, *path)
    return round(number, 9) if isinstance(number, float) and math.isfinite(number) else number


def is_count(quantity: Quantity | None) -> bool:
    """True for a number of things; a `Quantity` that is a float never is."""
    return isinstance(quantity, int) and quantity >= 0


def rest(total: Quantity | None, *parts: Quantity | None) -> Quantity | None:
    """What `total` has beyond its parts: negative where they exceed it, and the total itself where it is no count."""
    return total - _sum(parts) if total is not None and is_count(total) else total


def together(*addends: Quantity | None) -> Quantity | None:
    """The sum of what was reported; the first that is no count, so that a sum with it does not pass for a count."""
    total: Quantity | None = None
    for addend in addends:
        if addend is not None:
            if not is_count(addend):
                return addend
            total = addend if total is None else total + addend
    return total


def text(document: Mapping[str, Any], key: str) -> str | None:
    """The string at `key`, if there is one."""
    value = document.get(key)
    return value if isinstance(value, str) and value else None


def by_modality(meter: str, total: Quantity | None, bucket: Quantity | None, **parts: Quantity | None) -> list[Row]:
    """`bucket`, a part of the reported `total`, split into the modalities of the total; what is left of it is text.

    The parts are those of the total, so some may lie outside the bucket (cached audio): each is taken as far as the
    bucket goes. Parts that not even the total holds are taken as reported. Without parts, no modality is claimed.
    """
    if not any(parts.values()):
        return [Row(meter, bucket)]
    told = {modality: quantity for modality, quantity in parts.items() if quantity}
    fits = total is not None and is_count(total) and _sum(told.values()) <= total
    rows, left = [], bucket
    for modality, quantity in told.items():
        taken = quantity
        if left is not None and is_count(total) and is_count(quantity):
            taken = min(quantity, max(left, 0)) if fits else quantity
            left -= taken
        rows.append(Row(meter, taken, modality))
    return [*rows, Row(meter, left, "text")]


def _sum(parts: Iterable[Quantity | None]) -> int:
    return sum([part for part in parts if isinstance(part, int) and part >= 0])


def _number(value: object) -> Quantity:
    """JSON's integers and floats, and decimals in a string, which the providers' own SDKs take for numbers as well."""
    if isinstance(value, str) and _DECIMAL.fullmatch(value.strip()):
        value = Decimal(value.strip())
    if not isinstance(value, int | float | Decimal) or isinstance(value, bool):
        return math.nan
    if -MOST <= value <= MOST and value == int(value):
        return int(value)
    try:
        return float(value)
    except OverflowError:  # an integer of more than 308 digits
        return math.inf if value > 0 else -math.inf
