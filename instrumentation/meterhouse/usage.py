"""What one provider call turns out to have used, gathered from the documents of its answer. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from meterhouse.events import Row
from meterhouse.vocabulary import (
    NO_USAGE,
    REPORTED,
    RESPONSE_ID,
    RESPONSE_MODEL,
    SERVICE_TIER,
    USAGE_SOURCE,
)


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

    def attributes(self) -> dict[str, str]:
        """The attributes that only the answer knows."""
        known = {
            RESPONSE_MODEL: self.model,
            RESPONSE_ID: self.response_id,
            SERVICE_TIER: self.service_tier,
            USAGE_SOURCE: REPORTED if self.usage else NO_USAGE,
        }
        return {key: value for key, value in known.items() if value}

    def identify(self, document: Mapping[str, Any]) -> None:
        """Take `model`, `id` and `service_tier` where the document has them."""
        self.model = text(document, "model") or self.model
        self.response_id = text(document, "id") or self.response_id
        self.service_tier = text(document, "service_tier") or self.service_tier


def count(usage: Mapping[str, Any], *path: str) -> int:
    """The count at `path`; 0 where the provider does not report it, or reports something that is no count."""
    value: Any = usage
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def text(document: Mapping[str, Any], key: str) -> str | None:
    """The string at `key`, if there is one."""
    value = document.get(key)
    return value if isinstance(value, str) and value else None


def by_modality(meter: str, total: int, **parts: int) -> list[Row]:
    """`total` split into the modalities that were reported; the rest is text. Without parts, no modality is claimed."""
    rows = []
    rest = total
    for modality, quantity in parts.items():
        taken = min(quantity, rest)
        rest -= taken
        rows.append(Row(meter, taken, modality))
    return [*rows, Row(meter, rest, "text" if any(parts.values()) else "")]
