"""The `agent.conversations` event: one per customer and conversation, told by every process that takes part in it.

Each process tells it once. Their events have one id and no time in their identity: the warehouse counts the first.
"""

import hashlib
from collections import OrderedDict

from meterhouse.events import Recorded, UsageEvent
from meterhouse.vocabulary import (
    AGENT_CONVERSATIONS,
    AGENT_ID,
    AGENT_NAME,
    CONVERSATION_ID,
    CUSTOMER_ID,
    GRANT,
    OK,
    ONCE,
    REPORTED,
    STATUS,
    USAGE_SOURCE,
)

REMEMBERED = 100_000
"""Conversations that a process remembers having told of; a forgotten one is told again, which changes no count."""
_KEPT = (CUSTOMER_ID, AGENT_ID, AGENT_NAME, CONVERSATION_ID, GRANT)


class Conversations:
    """The conversations that this process has told of. Not safe for threads: two may both tell, which counts once."""

    def __init__(self) -> None:
        self._told: OrderedDict[tuple[str, str], None] = OrderedDict()

    def opened_by(self, recorded: Recorded) -> UsageEvent | None:
        """The event of the conversation that this is the first of."""
        conversation = recorded.attributes.get(CONVERSATION_ID)
        if not conversation:
            return None
        key = (recorded.attributes.get(CUSTOMER_ID, ""), conversation)
        if key in self._told or not recorded.size:
            return None
        self._told[key] = None
        if len(self._told) > REMEMBERED:
            self._told.popitem(last=False)
        return _opening(recorded.events()[0], *key)


def _opening(event: UsageEvent, customer: str, conversation: str) -> UsageEvent:
    known = {key: event.attributes[key] for key in _KEPT if key in event.attributes}
    known |= {STATUS: OK, USAGE_SOURCE: REPORTED, ONCE: "true"}
    name = hashlib.sha256(f"conversation\0{customer}\0{conversation}".encode(errors="replace")).hexdigest()[:32]
    return UsageEvent(AGENT_CONVERSATIONS, 1, name, event.event_time_ns, known, event.trace_id, event.span_id)
