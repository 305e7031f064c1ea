"""How spans of GenAI instrumentations are read: OpenTelemetry's conventions, OpenLLMetry and OpenInference.

Names are those of semconv 1.27 to 1.43, opentelemetry-semantic-conventions-ai 0.4 and 0.5, and
openinference-semantic-conventions 0.1. All three put what a cache served into the input, and reasoning into the output.
"""

from typing import Final

from meterhouse.vocabulary import OPERATION
from meterhouse_collector.foreign.attributes import Attributes

INPUT: Final = (
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.prompt_tokens",
    "llm.usage.prompt_tokens",
    "llm.token_count.prompt",
)
CACHE_READ: Final = (
    "gen_ai.usage.cache_read.input_tokens",
    "gen_ai.usage.cache_read_input_tokens",
    "gen_ai.usage.input_tokens.cached",
    "llm.usage.cache_read_input_tokens",
    "llm.token_count.prompt_details.cache_read",
)
CACHE_WRITE: Final = (
    "gen_ai.usage.cache_creation.input_tokens",
    "gen_ai.usage.cache_creation_input_tokens",
    "gen_ai.usage.cache_write.input_tokens",
    "llm.usage.cache_creation_input_tokens",
    "llm.token_count.prompt_details.cache_write",
)
OUTPUT: Final = (
    "gen_ai.usage.output_tokens",
    "gen_ai.usage.completion_tokens",
    "llm.usage.completion_tokens",
    "llm.token_count.completion",
)
REASONING: Final = (
    "gen_ai.usage.reasoning.output_tokens",
    "gen_ai.usage.output_tokens.reasoning",
    "gen_ai.usage.reasoning_tokens",
    "llm.usage.reasoning_tokens",
    "llm.token_count.completion_details.reasoning",
)
TOTAL: Final = ("gen_ai.usage.total_tokens", "llm.usage.total_tokens", "llm.token_count.total")
ALL: Final = (INPUT, CACHE_READ, CACHE_WRITE, OUTPUT, REASONING, TOTAL)

_INFERENCE_KIND: Final = "openinference.span.kind"
_TRACELOOP_KIND: Final = "traceloop.span.kind"
_TRACELOOP_TYPE: Final = "llm.request.type"
_NO_CALLS: Final = frozenset(
    {"create_agent", "invoke_agent", "invoke_workflow", "execute_tool", "execute_task", "plan", "retrieval"}
)
"""Operations that repeat the usage of the calls below them, or have none."""


def has_usage(attributes: Attributes) -> bool:
    """Whether a span says how many tokens were used."""
    return any(name in attributes for names in ALL for name in names)


def is_call(attributes: Attributes) -> bool:
    """Whether a span stands for one call of a model, by what its convention calls it."""
    if kind := attributes.text(_INFERENCE_KIND):
        return kind.upper() in ("LLM", "EMBEDDING")
    if operation := attributes.text(OPERATION):
        # Others than these are calls of a kind that got its name later, where they have usage.
        return operation in ("chat", "text_completion", "generate_content", "embeddings") or (
            operation not in _NO_CALLS and has_usage(attributes)
        )
    if request_type := attributes.text(_TRACELOOP_TYPE):
        return request_type != "rerank"
    return _TRACELOOP_KIND not in attributes and has_usage(attributes)
