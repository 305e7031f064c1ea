"""Token metrics of OpenTelemetry's GenAI conventions, made into the disjoint meters.

`gen_ai.client.token.usage` is a histogram whose sum counts (semconv 1.36 to 1.43); the counters
`gen_ai.client.inference.usage.*` come with semantic-conventions-genai. In both, input contains what was read from and
written to a cache, and output contains reasoning. A part arrives as a point of its own, maybe in another record: so it
counts once under its own meter, and once negatively under the meter that contains it. Their sum is exact whatever comes
first.
"""

from typing import Final

from meterhouse.vocabulary import (
    TOKENS_CACHE_READ,
    TOKENS_CACHE_WRITE,
    TOKENS_INPUT,
    TOKENS_OUTPUT,
    TOKENS_REASONING,
)

Part = tuple[str, int]
"""A meter, and 1 or -1."""

TOKEN_USAGE: Final = "gen_ai.client.token.usage"
TOKEN_TYPE: Final = "gen_ai.token.type"
_INFERENCE: Final = "gen_ai.client.inference.usage."

_BY_TYPE: Final[dict[str, tuple[Part, ...]]] = {
    "input": ((TOKENS_INPUT, 1),),
    "output": ((TOKENS_OUTPUT, 1),),
    "completion": ((TOKENS_OUTPUT, 1),),  # its name until semconv 1.27
}
_COUNTERS: Final[dict[str, tuple[Part, ...]]] = {
    "input_tokens": ((TOKENS_INPUT, 1),),
    "output_tokens": ((TOKENS_OUTPUT, 1),),
    "cache_read.input_tokens": ((TOKENS_CACHE_READ, 1), (TOKENS_INPUT, -1)),
    "cache_write.input_tokens": ((TOKENS_CACHE_WRITE, 1), (TOKENS_INPUT, -1)),
    "reasoning.output_tokens": ((TOKENS_REASONING, 1), (TOKENS_OUTPUT, -1)),
}


def parts(name: str, kind: str, token_type: str) -> tuple[Part, ...]:
    """What a point of this metric counts as; nothing for other metrics, and for types that nobody has named."""
    if name == TOKEN_USAGE and kind != "sum":
        return _BY_TYPE.get(token_type, ())
    if name.startswith(_INFERENCE) and kind == "sum":
        return _COUNTERS.get(name.removeprefix(_INFERENCE), ())
    return ()
