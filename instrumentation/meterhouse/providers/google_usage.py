"""What Google's answers tell of their usage, put into the disjoint buckets. Pure.

Usage as in https://ai.google.dev/api/generate-content#UsageMetadata: the prompt contains the cached tokens; thoughts,
and what tools put into the prompt, are beside the other counts. A later chunk of a stream repeats the counts so far.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from meterhouse.events import Row
from meterhouse.tools import ToolResult
from meterhouse.usage import Answer, Quantity, by_modality, count, is_count, rest, text, together
from meterhouse.vocabulary import (
    LLM_IMAGES,
    LLM_WEB_SEARCHES,
    TOKENS_CACHE_READ,
    TOKENS_INPUT,
    TOKENS_OUTPUT,
    TOKENS_REASONING,
)

_IMAGES = "images"
_QUERIES = "queries"
_SEARCH_QUERIES = ("webSearchQueries", "imageSearchQueries")
_TEXT = ("", "text", "modality_unspecified")


class Gemini:
    """Reads generateContent (bodies and the chunks of streams), embeddings and images; see metered.Reader."""

    name = "google-genai"

    def read(self, document: Mapping[str, Any], event: str, answer: Answer) -> None:
        answer.model = text(document, "modelVersion") or answer.model
        answer.response_id = text(document, "responseId") or answer.response_id
        usage = document.get("usageMetadata")
        if isinstance(usage, Mapping):
            answer.usage.update({key: value for key, value in usage.items() if value is not None})
            tier = text(usage, "serviceTier") or text(usage, "trafficType")
            answer.service_tier = tier.lower() if tier else answer.service_tier
        for candidate in _mappings(document.get("candidates")):
            self._read_candidate(candidate, answer)
        predictions = _mappings(document.get("predictions"))
        if predictions:
            answer.usage.update(_predicted(predictions))
        if isinstance(document.get("error"), Mapping):
            answer.failed = True

    def rows(self, answer: Answer) -> list[Row]:
        searches = len(answer.noted[_QUERIES]) if _QUERIES in answer.noted else None
        return [*rows(answer.usage), Row(LLM_WEB_SEARCHES, searches)]

    def tool_results(self, body: Mapping[str, Any]) -> Iterable[ToolResult]:
        return tool_results(body.get("contents"))

    def _read_candidate(self, candidate: Mapping[str, Any], answer: Answer) -> None:
        if candidate.get("finishReason"):
            answer.complete = True
        grounding = candidate.get("groundingMetadata")
        if isinstance(grounding, Mapping):
            answer.noted[_QUERIES] = answer.noted.get(_QUERIES, frozenset()) | _queries(grounding)
        for part in _parts(candidate.get("content")):
            if not part.get("thought"):
                answer.characters += len(text(part, "text") or "")
            call = part.get("functionCall")
            if isinstance(call, Mapping) and text(call, "id") and text(call, "name"):
                answer.tool_calls[call["id"]] = call["name"]


def rows(usage: Mapping[str, Any]) -> list[Row]:
    """The disjoint buckets of a usageMetadata, or of what a `predict` made."""
    cached = count(usage, "cachedContentTokenCount")
    given = together(count(usage, "promptTokenCount"), count(usage, "toolUsePromptTokenCount"))
    made = count(usage, "candidatesTokenCount")
    return [
        *by_modality(TOKENS_INPUT, given, rest(given, cached), **_uncached(usage)),
        *by_modality(TOKENS_CACHE_READ, cached, cached, **_modalities(usage, "cacheTokensDetails")),
        *by_modality(TOKENS_OUTPUT, made, made, **_modalities(usage, "candidatesTokensDetails")),
        Row(TOKENS_REASONING, count(usage, "thoughtsTokenCount")),
        Row(LLM_IMAGES, count(usage, _IMAGES)),
    ]


def tool_results(contents: object) -> Iterator[ToolResult]:
    """The function responses after the model's last content; the API has no ids for most of them."""
    responses: list[Mapping[str, Any]] = []
    for content in _mappings(contents):
        if content.get("role") == "model":
            responses = []
        responses += [part["functionResponse"] for part in _parts(content) if _is_response(part)]
    for response in responses:
        given = response.get("response")
        failed = isinstance(given, Mapping) and bool(given.get("error"))
        yield ToolResult(text(response, "id") or "", text(response, "name") or "", failed=failed)


def _uncached(usage: Mapping[str, Any]) -> dict[str, Quantity | None]:
    """The modalities of what was given, without the part of each that came from the cache."""
    prompt, cached = _modalities(usage, "promptTokensDetails"), _modalities(usage, "cacheTokensDetails")
    tools = _modalities(usage, "toolUsePromptTokensDetails")
    own = {modality: _beyond(tokens, cached.get(modality)) for modality, tokens in prompt.items()}
    return {modality: together(own.get(modality), tools.get(modality)) for modality in {**own, **tools}}


def _beyond(total: Quantity | None, part: Quantity | None) -> Quantity | None:
    left = rest(total, part)
    return max(left, 0) if left is not None and is_count(total) else left


def _modalities(usage: Mapping[str, Any], details: str) -> dict[str, Quantity | None]:
    """Modality -> tokens, text left out: it is what remains."""
    found: dict[str, Quantity | None] = {}
    for one in _mappings(usage.get(details)):
        modality = (text(one, "modality") or "").lower()
        if modality not in _TEXT:
            found[modality] = together(found.get(modality), count(one, "tokenCount"))
    return found


def _predicted(predictions: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Vertex AI's `predict`: the tokens that the embeddings were made of, or the images (not those filtered)."""
    embeddings = [one["embeddings"] for one in predictions if isinstance(one.get("embeddings"), Mapping)]
    if embeddings:
        return {"promptTokenCount": together(*(count(one, "statistics", "token_count") for one in embeddings))}
    return {_IMAGES: sum(1 for one in predictions if one.get("bytesBase64Encoded") or one.get("gcsUri"))}


def _queries(grounding: Mapping[str, Any]) -> frozenset[str]:
    lists = [grounding.get(key) for key in _SEARCH_QUERIES]
    return frozenset(one for found in lists if isinstance(found, list) for one in found if isinstance(one, str) and one)


def _parts(content: object) -> list[Mapping[str, Any]]:
    return _mappings(content.get("parts")) if isinstance(content, Mapping) else []


def _is_response(part: Mapping[str, Any]) -> bool:
    return isinstance(part.get("functionResponse"), Mapping)


def _mappings(items: object) -> list[Mapping[str, Any]]:
    return [one for one in items if isinstance(one, Mapping)] if isinstance(items, list) else []
