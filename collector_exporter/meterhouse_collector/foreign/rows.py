"""What a foreign record becomes: rows of `events`, `cumulative_points` and `spans`. Times are in ns since 1970."""

from dataclasses import dataclass, field, fields
from decimal import Decimal
from typing import Any, Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A row of `events`: the fields are its columns (docs/contracts.md section 3); what is not set is empty."""

    namespace: str
    customer_id: str
    meter: str
    event_id: str
    event_time: int
    quantity: Decimal
    raw_value: str
    reason: str
    source: str
    credential_id: str
    received_at: int
    segment: str
    record_id: str
    first: int
    status: str = ""
    agent_id: str = ""
    agent_name: str = ""
    provider: str = ""
    model: str = ""
    operation: str = ""
    tool: str = ""
    modality: str = ""
    cache_ttl: str = ""
    service_tier: str = ""
    conversation_id: str = ""
    response_id: str = ""
    trace_id: str = ""
    span_id: str = ""
    usage_source: str = ""
    process_id: str = ""
    service_name: str = ""
    attributes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CumulativePoint(Event):
    """A row of `cumulative_points`: an event whose quantity is worked out from those before it (increases.py).

    `value` is the running total, of which each unit is `factor` of the meter. Points of one `series`, `start_time` and
    `part` are a sequence; `part` tells the meters apart that one point counts under. `from_zero`: the sequence began at
    `start_time` with nought, and the credential was valid then, so that its first point counts in full.
    """

    series: str
    part: int
    start_time: int
    value: Decimal
    factor: Decimal
    from_zero: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A row of `spans`: what tells which span of a trace is the call, and whether it is metered elsewhere.

    `is_call`: an LLM call; `has_usage`: it says how many tokens; `may_report`: its credential may report for its
    customer, so that others may be left out in its favour.
    """

    namespace: str
    trace_id: str
    span_id: str
    parent_id: str
    start_time: int
    end_time: int
    is_call: bool
    has_usage: bool
    may_report: bool
    provider: str
    response_id: str
    customer_id: str
    event_time: int
    received_at: int


@dataclass(slots=True)
class Rows:
    """The rows of a record."""

    events: list[Event] = field(default_factory=list)
    points: list[CumulativePoint] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.events) + len(self.points) + len(self.spans)

    def extend(self, other: "Rows") -> None:
        """Take in the rows of another record."""
        self.events += other.events
        self.points += other.points
        self.spans += other.spans


_TYPES: Final = {
    "event_time": "DateTime64(9, 'UTC')",
    "received_at": "DateTime64(9, 'UTC')",
    "start_time": "DateTime64(9, 'UTC')",
    "end_time": "DateTime64(9, 'UTC')",
    "quantity": "Decimal(38, 9)",
    "value": "Decimal(38, 9)",
    "attributes": "Map(String, String)",
    "first": "UInt64",
    "part": "UInt8",
    "factor": "Decimal(38, 9)",
    "from_zero": "UInt8",
    "is_call": "UInt8",
    "has_usage": "UInt8",
    "may_report": "UInt8",
    "is_row": "UInt8",
    "version": "UInt128",
}


def columns(of: type) -> dict[str, str]:
    """The columns of a kind of rows, in the order of `values`, with their ClickHouse types."""
    return {one.name: _TYPES.get(one.name, "String") for one in fields(of)}


def values(row: Any) -> list[Any]:
    """The values of a row's columns."""
    return [getattr(row, one.name) for one in fields(row)]
