"""The dimensions of usage that a price may depend on: columns of the view `usage`, and attributes of one's own."""

import re
from typing import Final

DIMENSIONS: Final = (
    "model",
    "provider",
    "operation",
    "tool",
    "modality",
    "cache_ttl",
    "service_tier",
    "agent_id",
    "agent_name",
    "status",
    "step",
    "conversation_id",
    "task_id",
    "call_id",
    "response_id",
    "request_id",
    "trace_id",
    "process_id",
    "service_name",
    "usage_source",
    "source",
    "credential_id",
    "lease_id",
)

ATTRIBUTE: Final = "attributes."
"""`attributes.region` is the attribute `region` that events carry."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-/]{0,127}")


def is_dimension(name: str) -> bool:
    """Whether usage can be grouped by it."""
    return name in DIMENSIONS or attribute(name) is not None


def attribute(name: str) -> str | None:
    """The attribute that a dimension is, without `attributes.`; None for a column."""
    rest = name.removeprefix(ATTRIBUTE)
    return rest if rest != name and _NAME.fullmatch(rest) else None
