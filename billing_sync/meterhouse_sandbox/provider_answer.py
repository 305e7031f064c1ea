"""What the model provider is asked and what it answers, before either is put into a wire format. Pure.

An answer is drawn from the provider's seed and the number of the request alone, so the same sequence of requests gets
the same token counts again. The counts are disjoint: their sum is what a provider would bill.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

SLOW_SUFFIX = "-slow"
"""A model named `<model>-slow` answers like `<model>`, but its stream takes about ten seconds."""
AT_LENGTH = "in full detail"
"""A question with these words gets such a long answer from any model, and no tool calls."""

_WORDS = ("every", "call", "is", "listed", "once", "and", "the", "sum", "agrees", "with", "what", "was", "measured")
_SLOW_WORDS = 60


class BadRequest(Exception):
    """The request body is not what the API takes; the message says what is wrong and goes into the 400."""


@dataclass(frozen=True)
class Tool:
    """A tool that the request offers: its name and the JSON schema of its arguments."""

    name: str
    schema: Mapping[str, Any]


@dataclass(frozen=True)
class Asked:
    """One request, in terms that the three chat-like APIs share."""

    model: str
    stream: bool = False
    usage_in_stream: bool = True  # OpenAI chat: only with stream_options.include_usage
    reasons: bool = False
    end_user: str = ""  # what the caller says about who it works for: `user` or `metadata.user_id`
    tools: tuple[Tool, ...] = ()
    tool_results: int = 0  # results since the last message of the user
    handed_back: tuple[str, ...] = ()  # the ids of all tool calls whose results the request has
    question: str = ""  # the last text of the user

    @property
    def slow(self) -> bool:
        return self.model.endswith(SLOW_SUFFIX) or AT_LENGTH in self.question


@dataclass(frozen=True)
class Units:
    """Tokens in disjoint buckets. `output` is the visible part, `reasoning` the hidden one."""

    input: int = 0
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    output: int = 0
    reasoning: int = 0

    def by_meter(self) -> dict[str, int]:
        """The buckets under the names that usage is metered by; an empty bucket is left out."""
        units = {
            "llm.tokens.input": self.input,
            "llm.tokens.cache_read": self.cache_read,
            "llm.tokens.cache_write": self.cache_write_5m + self.cache_write_1h,
            "llm.tokens.output": self.output,
            "llm.tokens.reasoning": self.reasoning,
        }
        return {meter: count for meter, count in units.items() if count}

    def cut_off(self, sent: int, of: int) -> "Units":
        """What was generated when a stream broke off after `sent` of `of` pieces: all input, part of the output."""
        return replace(self, output=self.output * sent // max(of, 1))


@dataclass(frozen=True)
class ToolUse:
    """The model asks for one call of a tool."""

    call_id: str
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """What the provider says: some words or one tool call, and what it counts for them."""

    response_id: str
    model: str
    created_at: int  # seconds since the epoch, as the APIs give it
    words: tuple[str, ...]
    tool_use: ToolUse | None
    units: Units

    @property
    def text(self) -> str:
        return "".join(self.words)


def answer(asked: Asked, *, seed: int, number: int, created_at: int, writes_cache: bool) -> Answer:
    """The answer to request `number` (1, 2, 3, ...) of a provider with this seed.

    `writes_cache`: the API reports cache writes (Anthropic's does). A request that offers tools gets one or two tool
    calls, one after the other, before it gets words.
    """
    dice = random.Random(f"answer/{seed}/{number}")
    drawn = Units(
        input=dice.randint(40, 2400),
        cache_read=128 * dice.choice((0, 0, 1, 4, 9)),
        output=dice.randint(12, 420),
        reasoning=64 * dice.randint(1, 6),
        cache_write_5m=dice.choice((0, 0, 256, 700)),
        cache_write_1h=dice.choice((0, 0, 0, 512)),
    )
    # All of it is drawn for every API, so that request n has the same input everywhere.
    units = replace(
        drawn,
        reasoning=drawn.reasoning if asked.reasons else 0,
        cache_write_5m=drawn.cache_write_5m if writes_cache else 0,
        cache_write_1h=drawn.cache_write_1h if writes_cache else 0,
    )
    token = f"{dice.getrandbits(96):024x}"
    wanted_calls = 1 + dice.randrange(2)
    tool_use = None
    if asked.tools and not asked.slow and asked.tool_results < wanted_calls:
        tool = dice.choice(asked.tools)
        tool_use = ToolUse(f"call_{token}", tool.name, {k: _sample(v, dice) for k, v in _arguments(tool.schema)})
    length = _SLOW_WORDS if asked.slow else 8
    words = tuple(f"{_WORDS[i % len(_WORDS)]} " for i in range(length)) if tool_use is None else ()
    return Answer(token, asked.model.removesuffix(SLOW_SUFFIX), created_at, words, tool_use, units)


def fault(*, seed: int, number: int, rate: float, retry: int) -> int | None:
    """The status that request `number` fails with, 429 or 500, or None.

    `retry` counts the attempts that the caller's SDK made before this one: a second retry always gets through, so that
    a client with the usual two retries sees faults and no failures.
    """
    dice = random.Random(f"fault/{seed}/{number}")
    if retry >= 2 or dice.random() >= rate:
        return None
    return dice.choice((429, 500))


def _arguments(schema: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return []
    return [(str(name), kind if isinstance(kind, dict) else {}) for name, kind in properties.items()]


def _sample(kind: Mapping[str, Any], dice: random.Random) -> Any:
    """A value that a JSON schema of one argument allows, for the simple schemas that tools have."""
    values = kind.get("enum")
    if isinstance(values, list) and values:
        return dice.choice(values)
    samples: dict[str, Any] = {
        "integer": dice.randint(1, 9),
        "number": dice.randint(1, 9) + 0.5,
        "boolean": True,
        "array": [],
        "object": {},
        "null": None,
    }
    return samples.get(str(kind.get("type")), f"sample {dice.randint(1, 9)}")
