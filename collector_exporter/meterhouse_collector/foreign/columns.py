"""Which attribute of a foreign source fills which column of `events`."""

from collections.abc import Container
from dataclasses import dataclass
from typing import Any, Final

from meterhouse.vocabulary import (
    AGENT_ID,
    AGENT_NAME,
    CACHE_TTL,
    CONVERSATION_ID,
    CUSTOMER_ID,
    MODALITY,
    OPERATION,
    PROCESS_ID,
    PROVIDER,
    REQUEST_MODEL,
    RESPONSE_ID,
    RESPONSE_MODEL,
    SERVICE_TIER,
    STATUS,
    TOOL_NAME,
)
from meterhouse_collector.foreign.attributes import Attributes

_SERVICE_NAME: Final = "service.name"


class Columns:
    """Reads attributes into columns: of the names of a column the first one that is there counts."""

    def __init__(self, names: dict[str, tuple[str, ...]]) -> None:
        self._places = {name: (column, at) for column, of in names.items() for at, name in enumerate(of)}

    def __contains__(self, name: object) -> bool:
        return name in self._places or name == CUSTOMER_ID

    def read(self, attributes: Attributes, renamed: dict[str, str]) -> dict[str, str]:
        """The columns that are filled; `renamed` names the attribute of a column that has another one."""
        found: dict[str, str] = {}
        places: dict[str, int] = {}
        for name in attributes:
            column, at = self._places.get(name, ("", 0))
            if column and at <= places.get(column, at) and (text := attributes.text(name)):
                found[column], places[column] = text, at
        return found | {column: attributes.text(name) for column, name in renamed.items()}

    def holds_bad(self, attributes: Attributes, beside: Container[str] = ()) -> bool:
        """Whether any of these attributes, or the customer, is no identifier."""
        return any(attributes.is_bad(name) for name in attributes if name in self and name not in beside)


_SERVICE_TIERS: Final = (SERVICE_TIER, "openai.response.service_tier", "gen_ai.openai.response.service_tier")
_SHARED: Final = {
    "status": (STATUS,),
    "agent_id": (AGENT_ID,),
    "tool": (TOOL_NAME,),
    "modality": (MODALITY,),
    "cache_ttl": (CACHE_TTL,),
}
OF_POINTS: Final = Columns(
    _SHARED
    | {
        "agent_name": (AGENT_NAME,),
        "provider": (PROVIDER, "gen_ai.system"),
        "model": (RESPONSE_MODEL, REQUEST_MODEL),
        "operation": (OPERATION,),
        "service_tier": _SERVICE_TIERS,
        "conversation_id": (CONVERSATION_ID,),
    }
)
OF_SPANS: Final = Columns(
    _SHARED
    | {
        "agent_name": (AGENT_NAME, "agent.name"),
        "provider": (PROVIDER, "gen_ai.system", "llm.provider", "llm.system"),
        "model": (
            RESPONSE_MODEL,
            "llm.response.model_name",
            REQUEST_MODEL,
            "llm.model_name",
            "llm.request.model_name",
            "embedding.model_name",
        ),
        "operation": (OPERATION, "llm.request.type"),
        "service_tier": _SERVICE_TIERS,
        "conversation_id": (CONVERSATION_ID, "session.id"),
        "response_id": (RESPONSE_ID,),
    }
)


@dataclass(frozen=True, slots=True)
class Origin:
    """The resource of a source."""

    attributes: Attributes
    process_id: str
    service_name: str
    is_bad: bool


def origin_of(resource: Any) -> Origin:
    """What a resource says of where its metrics or spans come from."""
    found = Attributes(resource.attributes)
    is_bad = found.has_duplicates or any(found.is_bad(key) for key in (PROCESS_ID, _SERVICE_NAME, CUSTOMER_ID))
    return Origin(found, found.text(PROCESS_ID), found.text(_SERVICE_NAME), is_bad)
