"""The answers of any provider, recognised by their shape: litellm speaks each provider's own wire format.

litellm makes one kind of usage of all of them, and counts tokens itself where a provider reported none. So its figures
are not used: what the provider sent is read here, by the reader of the provider's own module.
"""

import importlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from meterhouse.events import Row
from meterhouse.providers.bedrock_families import METRICS
from meterhouse.providers.litellm_outcomes import read_from
from meterhouse.providers.sse import LONGEST_LINE_BYTES
from meterhouse.providers.streamed import Streamed
from meterhouse.tools import ToolResult
from meterhouse.usage import Answer

Document = Mapping[str, Any]
_INPUT_ONLY: Final = ("embeddings", "rerank")
_ENDINGS: Final = (b'"error"', b"[DONE]")
BEDROCK: Final = "aws.bedrock"


@dataclass(frozen=True)
class Shape:
    """A wire format: `speaks` recognises its documents, one of `telling` is in each line of a stream that matters."""

    speaks: Callable[[Document, str], bool]
    telling: tuple[bytes, ...]
    module: str
    reader: str

    def make(self) -> Any:
        """The reader, from the module of the provider; that imports no SDK."""
        return _reader(self.module, self.reader)


@cache
def _reader(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"meterhouse.providers.{module}"), name)()


def _has(*keys: str) -> Callable[[Document, str], bool]:
    return lambda document, _: any(key in document for key in keys)


def _anthropic(document: Document, event: str) -> bool:
    return str(document.get("type") or event).startswith(("message", "content_block")) and "delta" not in document


def _cohere(document: Document, event: str) -> bool:
    usage = document.get("usage")
    return (
        "event_type" in document
        or str(document.get("type") or event) in ("message-start", "message-end")
        or any("billed_units" in told or "tokens" in told for told in (usage, document.get("meta")) if told)
    )


SHAPES: Final = (
    Shape(_cohere, (b"billed_units", b'"tokens"', b"-end"), "cohere", "Cohere"),
    Shape(_anthropic, (b'"usage"', b'"message_stop"'), "anthropic", "Anthropic"),
    Shape(_has("usageMetadata", "candidates", "predictions"), (b"usageMetadata",), "google_usage", "Gemini"),
    Shape(_has("eval_count", "prompt_eval_count", "done"), (b"eval_count", b'"done":true'), "ollama", "Ollama"),
    Shape(lambda *_: True, (b'"usage"', b'"error"'), "openai", "OpenAI"),
)
"""In the order in which they are tried; what is of no other shape is of OpenAI's, which most servers speak."""
_BEDROCK: Final = Shape(lambda *_: True, (b'"usage"', b'"toolUse"', METRICS.encode()), "bedrock_families", "Bedrock")
"""Bedrock answers in the shapes of its models' makers and in its own; its reader knows them all."""


class AnyShape:
    """Reads the answer to one call, see sdk_client.Provider: its first document decides whose format it is."""

    def __init__(self, name: str, operation: str) -> None:
        self.name = name
        self._operation = operation
        self._shape = _BEDROCK if name == BEDROCK else None

    def provider_name(self, client: object) -> str:
        return self.name

    def operation(self, path: str) -> str | None:
        return None  # litellm says it: see litellm_endpoints

    def telling(self, data: bytes) -> bool:
        return self._shape is None or any(told in data for told in (*_ENDINGS, *self._shape.telling))

    def ends(self, data: bytes) -> bool:
        return data.startswith(b"[DONE]")

    def read(self, document: Document, event: str, answer: Answer) -> None:
        if document.get("error") or event == "error" or document.get("type") == "error":
            answer.complete = answer.failed = True
            return
        if self._shape is None:
            self._shape = next(shape for shape in SHAPES if shape.speaks(document, event))
        if self._operation in _INPUT_ONLY:
            document = _with_input(document)
        for told, kind in _bedrock_parts(document, event) if self._shape is _BEDROCK else ((document, event),):
            self._shape.make().read(told, kind, answer)

    def rows(self, answer: Answer) -> list[Row]:
        return self._shape.make().rows(answer) if self._shape is not None else []

    def tool_results(self, body: Document) -> Iterable[ToolResult]:
        for shape in (_BEDROCK,) if self._shape is _BEDROCK else SHAPES:
            found = list(shape.make().tool_results(body))
            if found:
                return found
        return ()

    def ask_for_usage(self, options: Any, path: str) -> None:
        return None  # options are the OpenAI SDK's


def _with_input(document: Document) -> Document:
    """Some servers tell only the total of what they embed or rank, which is all input."""
    usage = document.get("usage")
    if not isinstance(usage, Mapping) or "total_tokens" not in usage or "prompt_tokens" in usage:
        return document
    return {**document, "usage": {"prompt_tokens": usage["total_tokens"], **usage}}


def _bedrock_parts(document: Document, event: str) -> Iterable[tuple[Document, str]]:
    """A chunk of a stream tells the model's usage, in one of two ways, and at the end Bedrock's own count."""
    yield document, event
    for part in ("metadata", "contentBlockStart", METRICS):
        if isinstance(document.get(part), Mapping):
            yield document[part], part


class Wire(Streamed):
    """A call whose answer comes through litellm's own HTTP client, in whichever framing."""

    def framed(self, content_type: str) -> bool:
        if "ndjson" in content_type or "stream+json" in content_type:
            self.lines = JSONLines(self._take)
            return True
        return super().framed(content_type)

    def feed(self, chunk: bytes) -> None:
        read_from(self)
        super().feed(chunk)

    def body(self, content: bytes) -> None:
        try:
            document = json.loads(content)
        except (ValueError, RecursionError):
            # A stream whose server does not say so, or says that it is something else.
            self.feed(content + b"\n\n")
            return
        for one in document if isinstance(document, list) else (document,):
            self.take(one)


class JSONLines:
    """Calls `take("", line)` for each line of the bytes that it is fed, in pieces of any size."""

    def __init__(self, take: Callable[[str, bytes], None]) -> None:
        self._take = take
        self._rest = b""

    def feed(self, chunk: bytes) -> None:
        *lines, rest = (self._rest + chunk).split(b"\n")
        self._rest = rest if len(rest) <= LONGEST_LINE_BYTES else b""
        for line in lines:
            if line.strip():
                self._take("", line)
