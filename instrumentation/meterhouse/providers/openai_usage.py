"""OpenAI's usage objects, of every shape they have, as disjoint buckets. Pure.

Shapes as in https://platform.openai.com/docs/api-reference: cached and cache-write tokens are part of the input tokens,
reasoning tokens part of the output tokens, so both are taken out of them here. Compatible servers add variants of their
own, which are read where they cannot be mistaken for anything else.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from meterhouse.events import Row
from meterhouse.usage import Quantity, by_modality, count, is_count, rest, seconds, text, together
from meterhouse.vocabulary import (
    LLM_AUDIO_SECONDS,
    LLM_WEB_SEARCHES,
    TOKENS_CACHE_READ,
    TOKENS_CACHE_WRITE,
    TOKENS_INPUT,
    TOKENS_OUTPUT,
    TOKENS_REASONING,
)


def rows(usage: Mapping[str, Any], model: str = "") -> list[Row]:
    """The buckets of a usage object; `model` where it is another one's than the answer's."""
    shape = ("input_tokens", "output_tokens") if "input_tokens" in usage else ("prompt_tokens", "completion_tokens")
    given, made = count(usage, shape[0]), count(usage, shape[1])
    given_details, made_details = _details(usage, shape[0]), _details(usage, shape[1])
    cached = _cached(usage, given_details)
    written = count(usage, given_details, "cache_write_tokens")
    reasoning = _first(usage, (made_details, "reasoning_tokens"), ("reasoning_tokens",))
    visible = made if _beside(reasoning, given, made, count(usage, "total_tokens")) else rest(made, reasoning)
    found = [
        *by_modality(TOKENS_INPUT, given, rest(given, cached, written), **_media(usage, given_details)),
        *_cache_reads(usage, cached),
        *_cache_writes(usage, given_details, written),
        *by_modality(TOKENS_OUTPUT, made, visible, **_media(usage, made_details)),
        Row(TOKENS_REASONING, reasoning),
        Row(LLM_AUDIO_SECONDS, seconds(usage, "seconds"), decimal=True),
        Row(LLM_WEB_SEARCHES, count(usage, "num_search_queries")),  # Perplexity
    ]
    return [Row(one.meter, one.quantity, one.modality, one.cache_ttl, model=model) for one in found] if model else found


def breakdown(usages: Iterable[object], total: Mapping[str, Any]) -> list[Row] | None:
    """The buckets of a usage that is also told per model ({"model", "usage"}); None unless those add up to it."""
    parts = [
        (text(one, "model"), one["usage"])
        for one in usages
        if isinstance(one, Mapping) and isinstance(one.get("usage"), Mapping)
    ]
    for side in ("prompt_tokens", "completion_tokens"):
        if together(*(count(usage, side) for _, usage in parts)) != count(total, side):
            return None
    return merged(row for model, usage in parts for row in rows(usage, model or "")) if parts else None


def merged(found: Iterable[Row]) -> list[Row]:
    """Rows of one name as one row: a call tells a name once."""
    sums: dict[tuple[str, str, str, str], Row] = {}
    for row in found:
        if row.quantity is not None:
            key = (row.meter, row.modality, row.cache_ttl, row.model)
            before = sums.get(key)
            sums[key] = row if before is None else row._replace(quantity=_plus(before, row))
    return list(sums.values())


def _plus(one: Row, other: Row) -> Quantity | None:
    if one.decimal and one.quantity is not None and other.quantity is not None:
        return round(one.quantity + other.quantity, 9)
    return together(one.quantity, other.quantity)


def _details(usage: Mapping[str, Any], total: str) -> str:
    """The details of `input_tokens` are named input_tokens_details, or input_token_details (transcription)."""
    singular = f"{total.removesuffix('s')}_details"
    return singular if singular in usage else f"{total}_details"


def _cached(usage: Mapping[str, Any], details: str) -> Quantity | None:
    """OpenAI's own place for it, then that of its image tool and of Moonshot, then DeepSeek's."""
    return _first(usage, (details, "cached_tokens"), ("cached_tokens",), ("prompt_cache_hit_tokens",))


def _cache_reads(usage: Mapping[str, Any], cached: Quantity | None) -> list[Row]:
    image = count(usage, "cached_tokens_details", "cached_image_tokens")
    return by_modality(TOKENS_CACHE_READ, cached, cached, image=image)


def _cache_writes(usage: Mapping[str, Any], details: str, written: Quantity | None) -> list[Row]:
    half_hour = count(usage, details, "cache_write_tokens_details", "ttl_30m_tokens")
    half_day = count(usage, details, "cache_write_tokens_details", "ttl_12h_tokens")
    if half_hour is None and half_day is None:
        return [Row(TOKENS_CACHE_WRITE, written)]
    return [
        Row(TOKENS_CACHE_WRITE, half_hour, cache_ttl="30m"),
        Row(TOKENS_CACHE_WRITE, half_day, cache_ttl="12h"),
        Row(TOKENS_CACHE_WRITE, rest(written, half_hour, half_day)),
    ]


def _beside(reasoning: Quantity | None, given: Quantity | None, made: Quantity | None, total: Quantity | None) -> bool:
    """Some compatible servers count reasoning beside the output instead of inside; their total shows it."""
    if not reasoning or not made or not is_count(reasoning) or not is_count(made):
        return False
    return reasoning > made or total == together(given, made, reasoning)


def _media(usage: Mapping[str, Any], details: str) -> dict[str, Quantity | None]:
    image = count(usage, details, "image_tokens")
    if image is not None and details.startswith("input"):  # what of it is cached is told apart only by the image tool
        image = rest(image, count(usage, "cached_tokens_details", "cached_image_tokens"))
    return {"audio": count(usage, details, "audio_tokens"), "image": image}


def _first(usage: Mapping[str, Any], *paths: tuple[str, ...]) -> Quantity | None:
    for path in paths:
        if (reported := count(usage, *path)) is not None:
            return reported
    return None
