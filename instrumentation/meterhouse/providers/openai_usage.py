"""OpenAI's usage objects, of every shape they have, as disjoint buckets. Pure.

Shapes as in https://platform.openai.com/docs/api-reference: cached and cache-write tokens are part of the input tokens,
reasoning tokens part of the output tokens, so both are taken out of them here. Compatible servers add variants of their
own, which are read where they cannot be mistaken for anything else.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from meterhouse.events import Row
from meterhouse.usage import Quantity, by_modality, count, is_count, rest, seconds, text, together, told
from meterhouse.vocabulary import (
    LLM_AUDIO_SECONDS,
    LLM_WEB_SEARCHES,
    TOKENS_CACHE_READ,
    TOKENS_CACHE_WRITE,
    TOKENS_INPUT,
    TOKENS_OUTPUT,
    TOKENS_REASONING,
)

_INPUT = ("input_tokens", "input_tokens_details", "input_token_details")
_OUTPUT = ("output_tokens", "output_tokens_details", "output_token_details")
_PROMPT = ("prompt_tokens", "prompt_tokens_details", "prompt_token_details")
_COMPLETION = ("completion_tokens", "completion_tokens_details", "completion_token_details")
"""A total, and where its details are: the last one is of transcriptions."""


def rows(usage: Mapping[str, Any], model: str = "") -> list[Row]:
    """The buckets of a usage object; `model` where it is another one's than the answer's."""
    inputs, outputs = (_INPUT, _OUTPUT) if "input_tokens" in usage else (_PROMPT, _COMPLETION)
    given, made = told(usage, inputs[0]), told(usage, outputs[0])
    of_given, of_made = _details(usage, inputs), _details(usage, outputs)
    cached = _first((of_given, usage), "cached_tokens", "prompt_cache_hit_tokens")
    written = told(of_given, "cache_write_tokens")
    reasoning = _first((of_made, usage), "reasoning_tokens")
    visible = made if _beside(reasoning, given, made, usage) else rest(made, reasoning)
    cached_image = count(usage, "cached_tokens_details", "cached_image_tokens")
    found = by_modality(TOKENS_INPUT, given, rest(given, cached, written), **_media(of_given, cached_image))
    if cached is not None or cached_image is not None:
        found += by_modality(TOKENS_CACHE_READ, cached, cached, image=cached_image)
    found += _cache_writes(of_given, written)
    found += by_modality(TOKENS_OUTPUT, made, visible, **_media(of_made))
    if reasoning is not None:
        found.append(Row(TOKENS_REASONING, reasoning))
    if "seconds" in usage:
        found.append(Row(LLM_AUDIO_SECONDS, seconds(usage, "seconds"), decimal=True))
    if "num_search_queries" in usage:  # Perplexity
        found.append(Row(LLM_WEB_SEARCHES, count(usage, "num_search_queries")))
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


def _details(usage: Mapping[str, Any], names: tuple[str, str, str]) -> object:
    _, plural, singular = names
    return usage[singular] if singular in usage else usage.get(plural)


def _cache_writes(details: object, written: Quantity | None) -> list[Row]:
    if type(details) is dict and "cache_write_tokens_details" not in details:
        return [] if written is None else [Row(TOKENS_CACHE_WRITE, written)]
    half_hour = count(details, "cache_write_tokens_details", "ttl_30m_tokens")
    half_day = count(details, "cache_write_tokens_details", "ttl_12h_tokens")
    if half_hour is None and half_day is None:
        return [] if written is None else [Row(TOKENS_CACHE_WRITE, written)]
    return [
        Row(TOKENS_CACHE_WRITE, half_hour, cache_ttl="30m"),
        Row(TOKENS_CACHE_WRITE, half_day, cache_ttl="12h"),
        Row(TOKENS_CACHE_WRITE, rest(written, half_hour, half_day)),
    ]


def _beside(
    reasoning: Quantity | None, given: Quantity | None, made: Quantity | None, usage: Mapping[str, Any]
) -> bool:
    """Some compatible servers count reasoning beside the output instead of inside; their total shows it."""
    if not reasoning or not made or not is_count(reasoning) or not is_count(made):
        return False
    return reasoning > made or told(usage, "total_tokens") == together(given, made, reasoning)


def _media(details: object, cached_image: Quantity | None = None) -> dict[str, Quantity | None]:
    """Audio and image tokens; what of the images is cached is told apart only by the image tool."""
    image = told(details, "image_tokens")
    if image is not None and cached_image is not None:
        image = rest(image, cached_image)
    return {"audio": told(details, "audio_tokens"), "image": image}


def _first(places: Iterable[object], *names: str) -> Quantity | None:
    """Some servers leave out the details, or have a name of their own (DeepSeek): the first that is told."""
    for name in names:
        for place in places:
            if (reported := told(place, name)) is not None:
                return reported
    return None
