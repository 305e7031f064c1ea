"""The `agent.conversations` event: one per customer and conversation, told by every process that takes part in it.

Each process tells it once. Their events have one id, and the warehouse counts the earliest of them.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable

from meterhouse.events import UsageEvent
from meterhouse.vocabulary import (
    AGENT_CONVERSATIONS,
    AGENT_ID,
    AGENT_NAME,
    CONVERSATION_ID,
    CUSTOMER_ID,
    OK,
    REPORTED,
    STATUS,
    USAGE_SOURCE,
)

REMEMBERED = 100_000
"""Conversations that a process remembers having told of; a forgotten one is told again, which changes no count."""
_KEPT = (CUSTOMER_ID, AGENT_ID, AGENT_NAME, CONVERSATION_ID)


class Conversations:
    """The conversations that this process has told of. Not safe for threads: two may both tell, which counts once."""

    def __init__(self) -> None:
        self._told: OrderedDict[tuple[str, str], None] = OrderedDict()

    def opened_by(self, events: Iterable[UsageEvent]) -> list[UsageEvent]:
        """The events of the conversations that these events are the first of."""
        opened = []
        for event in events:
            conversation = event.attributes.get(CONVERSATION_ID)
            if not conversation:
                continue
            key = (event.attributes.get(CUSTOMER_ID, ""), conversation)
            if key in self._told:
                continue
            self._told[key] = None
            if len(self._told) > REMEMBERED:
                self._told.popitem(last=False)
            opened.append(_opening(event, *key))
        return opened


def _opening(event: UsageEvent, customer: str, conversation: str) -> UsageEvent:
    known = {key: event.attributes[key] for key in _KEPT if key in event.attributes}
    known |= {STATUS: OK, USAGE_SOURCE: REPORTED}
    name = hashlib.sha256(f"conversation\0{customer}\0{conversation}".encode(errors="replace")).hexdigest()[:32]
    return UsageEvent(AGENT_CONVERSATIONS, 1, name, event.event_time_ns, known, event.trace_id, event.span_id)
