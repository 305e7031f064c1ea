"""What the messages of a Claude Agent SDK session tell: the usage of each turn, tool executions, subagents. Pure.

Messages are the CLI's lines, see https://code.claude.com/docs/en/agent-sdk/cost-tracking. The usage of assistant
messages is not read: it repeats, and stands at what was known when the message began. A result's `usage` is that of its
turn and of the main model; its `modelUsage` holds every model, subagents' too, and grows over the turns of a process.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from meterhouse.events import Row
from meterhouse.providers import anthropic
from meterhouse.usage import Quantity, count, is_count, text
from meterhouse.vocabulary import (
    LLM_REQUESTS,
    LLM_WEB_SEARCHES,
    NO_USAGE,
    TOKENS_CACHE_READ,
    TOKENS_CACHE_WRITE,
    TOKENS_INPUT,
    TOKENS_OUTPUT,
)

LIMITS = frozenset({"error_max_turns", "error_max_budget_usd", "error_max_structured_output_retries"})
"""Results of runs that a limit ended: the calls went well, the task did not reach its goal."""
PROVIDERS = {"bedrock": "aws.bedrock", "vertex": "gcp.vertex_ai", "anthropicGoogleCloud": "gcp.vertex_ai"}
_OPEN_MAX = 10_000
_COUNTERS = {
    TOKENS_INPUT: "inputTokens",
    TOKENS_CACHE_READ: "cacheReadInputTokens",
    TOKENS_CACHE_WRITE: "cacheCreationInputTokens",
    TOKENS_OUTPUT: "outputTokens",
    LLM_WEB_SEARCHES: "webSearchRequests",
}
_SAME_IN_USAGE = {
    TOKENS_INPUT: "input_tokens",
    TOKENS_CACHE_READ: "cache_read_input_tokens",
    TOKENS_CACHE_WRITE: "cache_creation_input_tokens",
    TOKENS_OUTPUT: "output_tokens",
}


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The model asked for a tool. `agent`: the subagent that did, empty for the main one."""

    tool_use_id: str
    name: str
    agent: str = ""


@dataclass(frozen=True, slots=True)
class ToolEnd:
    """A tool's result. `ran`: None where only the result of the turn tells whether it was denied."""

    tool_use_id: str
    failed: bool
    ran: bool | None = True


@dataclass
class Session:
    """What is known of one CLI process: `take` its messages in order."""

    session_id: str = ""
    calls: dict[str, str] = field(default_factory=dict)
    """Message id -> model of the answers in the current turn: the CLI sends an answer in several messages."""
    _agents: dict[str, str] = field(default_factory=dict)
    _counted: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def take(self, message: Mapping[str, Any]) -> Iterator[ToolUse | ToolEnd]:
        """The tools that a message tells of; results of turns are for `usage`."""
        self.session_id = text(message, "session_id") or self.session_id
        inner = message.get("message")
        content = inner.get("content") if isinstance(inner, Mapping) else None
        if message.get("type") == "assistant" and isinstance(inner, Mapping):
            message_id, model = text(inner, "id"), text(inner, "model")
            if message_id and model and model != "<synthetic>" and len(self.calls) < _OPEN_MAX:
                self.calls[message_id] = model
        for block in content if isinstance(content, list) else ():
            if isinstance(block, Mapping):
                yield from self._block(block, text(message, "parent_tool_use_id") or "")

    def _block(self, block: Mapping[str, Any], parent: str) -> Iterator[ToolUse | ToolEnd]:
        if block.get("type") == "tool_use" and (tool_use_id := text(block, "id")):
            asked = block.get("input")
            subagent = text(asked, "subagent_type") if isinstance(asked, Mapping) else None
            if subagent and len(self._agents) < _OPEN_MAX:
                self._agents[tool_use_id] = subagent
            yield ToolUse(tool_use_id, text(block, "name") or "", self._agents.get(parent, ""))
        elif block.get("type") == "tool_result" and (tool_use_id := text(block, "tool_use_id")):
            failed = bool(block.get("is_error"))
            yield ToolEnd(tool_use_id, failed, _ran(block) if failed else True)

    def usage(self, result: Mapping[str, Any]) -> list[Row]:
        """The rows of a turn that a result ended, each with its model; the next turn begins."""
        models = result.get("modelUsage")
        used = result.get("usage")
        used = used if isinstance(used, Mapping) else {}
        rows: list[Row] = []
        if isinstance(models, Mapping) and models:
            for model, counters in models.items():
                if isinstance(counters, Mapping):
                    rows += self._increase(str(model), counters, used)
        elif self.calls or used:
            model = next(iter(self.calls.values()), "")
            rows = self._requests(model, reported=bool(used)) + _of_model(anthropic.rows(used), model)
        self.calls = {}
        return rows

    def unknown(self) -> list[Row]:
        """The rows of a turn that ended without a result: its requests as far as they were seen, and no tokens."""
        rows = [row for model in dict.fromkeys(self.calls.values()) for row in self._requests(model, reported=False)]
        self.calls = {}
        return rows or [Row(LLM_REQUESTS, 1, usage_source=NO_USAGE)]

    def _increase(self, model: str, counters: Mapping[str, Any], used: Mapping[str, Any]) -> list[Row]:
        before = self._counted.get(model, {})
        self._counted[model] = dict(counters)
        grown = {meter: _grown(count(before, key), count(counters, key)) for meter, key in _COUNTERS.items()}
        if _shrank(before, counters):
            grown = {meter: count(counters, key) for meter, key in _COUNTERS.items()}  # the CLI began anew
        if not any(grown.values()):
            return []
        rows = [Row(meter, quantity) for meter, quantity in grown.items()]
        if all(grown[meter] == (count(used, key) or 0) for meter, key in _SAME_IN_USAGE.items()):
            rows = anthropic.rows(used)  # the same tokens, with the times to live of what was cached
        return self._requests(model, reported=True) + _of_model(rows, model)

    def _requests(self, model: str, *, reported: bool) -> list[Row]:
        seen = sum(1 for one in self.calls.values() if one == model)
        return [Row(LLM_REQUESTS, max(seen, 1), usage_source="" if reported else NO_USAGE, model=model)]


def denied(result: Mapping[str, Any]) -> set[str]:
    """The ids of the tool uses of a turn that nobody was allowed to run."""
    listed = result.get("permission_denials")
    found = (one.get("tool_use_id") for one in listed if isinstance(one, Mapping)) if isinstance(listed, list) else ()
    return {tool_use_id for tool_use_id in found if isinstance(tool_use_id, str)}


def provider(result: Mapping[str, Any]) -> str:
    """Who served the turn's models, under its name in the semantic conventions."""
    models = result.get("modelUsage")
    for counters in models.values() if isinstance(models, Mapping) else ():
        if isinstance(counters, Mapping) and (served := text(counters, "provider")):
            return PROVIDERS.get(served, "anthropic")
    return "anthropic"


def _ran(block: Mapping[str, Any]) -> bool | None:
    """False where the CLI refused the arguments or knows no such tool; it marks its own words so."""
    content = block.get("content")
    if isinstance(content, list):
        content = next((part.get("text") for part in content if isinstance(part, Mapping)), None)
    return False if isinstance(content, str) and content.startswith("<tool_use_error>") else None


def _grown(before: Quantity | None, now: Quantity | None) -> Quantity | None:
    if now is None or not is_count(now) or before is None or not is_count(before):
        return now
    return now - before


def _shrank(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    pairs = [(count(before, key), count(now, key)) for key in _COUNTERS.values()]
    return any(a is not None and b is not None and is_count(a) and is_count(b) and b < a for a, b in pairs)


def _of_model(rows: list[Row], model: str) -> list[Row]:
    return [
        Row(row.meter, row.quantity, row.modality, row.cache_ttl, row.usage_source, model=model)
        for row in rows
        if row.quantity is not None
    ]
