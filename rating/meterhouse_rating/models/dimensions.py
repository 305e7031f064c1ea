"""The dimensions of usage that a price may depend on: columns of the view `usage`."""

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
)
