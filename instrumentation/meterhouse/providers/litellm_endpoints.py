"""Which URLs litellm is about to send model calls to, as it tells its own loggers (`Logging.pre_call`).

litellm uses one HTTP client for model calls, tokens, batches and its own logging; nothing in a request says which it
is. But before each model call it announces the exact URL, the provider and the kind of call to its loggers.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final
from urllib.parse import urlsplit

from meterhouse import limits, patches
from meterhouse.trouble import warn_once

OPERATIONS: Final = {
    "completion": "chat",
    "text_completion": "text_completion",
    "responses": "chat",
    "anthropic_messages": "chat",
    "generate_content": "generate_content",
    "generate_content_stream": "generate_content",
    "embedding": "embeddings",
    "rerank": "rerank",
    "image_generation": "image_generation",
    "image_edit": "image_generation",
    "image_variation": "image_generation",
    "transcription": "transcription",
    "speech": "speech",
}
"""litellm's kinds of call that a provider bills -> operation; the asynchronous ones begin with an `a`."""
PROVIDERS: Final = {
    "azure": "azure.ai.openai",
    "azure_ai": "azure.ai.inference",
    "bedrock": "aws.bedrock",
    "codestral": "mistral_ai",
    "cohere_chat": "cohere",
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "ollama_chat": "ollama",
    "text-completion-codestral": "mistral_ai",
    "text-completion-openai": "openai",
    "vertex_ai": "gcp.vertex_ai",
    "vertex_ai_beta": "gcp.vertex_ai",
    "watsonx": "ibm.watsonx.ai",
    "watsonx_text": "ibm.watsonx.ai",
    "xai": "x_ai",
}
"""litellm's name of a provider -> value of gen_ai.provider.name, where they differ."""
UNANNOUNCED: Final = {
    "/api/embed": ("ollama", "embeddings"),
    "/api/embeddings": ("ollama", "embeddings"),
    "/rerank": ("together_ai", "rerank"),
    "/predictions": ("replicate", "chat"),
}
"""Endings of the paths that litellm calls without a word to its loggers."""
_PATCHED: Final = ("pre_call", "update_environment_variables")
REMEMBERED: Final = 1_000
"""Announced URLs kept in memory; some have the model in them."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where model calls go: `provider` is OpenTelemetry's name; `model` what was asked for there last."""

    provider: str
    operation: str
    model: str


_announced: OrderedDict[str, Endpoint] = OrderedDict()
_lock = threading.Lock()


def find(url: str) -> Endpoint | None:
    """The endpoint at `url`; None where litellm calls no model."""
    place = _place(url)
    with _lock:
        known = _announced.get(place)
    if known is not None:
        return known
    path = urlsplit(place).path
    for ending, (provider, operation) in UNANNOUNCED.items():
        if path.endswith(ending):
            return Endpoint(provider, operation, "")
    return None


def learn(url: str, provider: str, kind: str, model: str) -> None:
    """A call of this kind is about to go to `url`."""
    operation = _operation(kind)
    if operation is None:
        return
    place = _place(url)
    with _lock:
        _announced[place] = Endpoint(PROVIDERS.get(provider, provider), operation, model)
        _announced.move_to_end(place)
        if len(_announced) > REMEMBERED:
            _announced.popitem(last=False)


def install(module: ModuleType) -> None:
    """Listen to what litellm tells its loggers."""
    for name, wrapper in zip(_PATCHED, (_pre_call, _admitted), strict=True):
        patches.wrap(module, f"Logging.{name}", wrapper)


def remove(module: ModuleType) -> None:
    """Undo `install`."""
    for name in _PATCHED:
        patches.unwrap(module, f"Logging.{name}")


def _admitted(wrapped: Callable[..., Any], logging: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Asked here as well as below: raised any deeper, litellm takes the limit for an error of the provider."""
    if _operation(str(getattr(logging, "call_type", ""))) is not None:
        limits.admit()
    return wrapped(*args, **kwargs)


def _pre_call(wrapped: Callable[..., Any], logging: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    result = wrapped(*args, **kwargs)  # it completes the details of the call that are read below
    try:
        told = kwargs.get("additional_args") or (args[3] if len(args) > 3 else {})
        details = logging.model_call_details
        url, provider, model = told.get("api_base"), details.get("custom_llm_provider"), details.get("model")
        if url:
            learn(str(url), str(provider or "unknown"), str(logging.call_type), str(model or ""))
    except Exception:  # noqa: BLE001 - the host's call must go out whatever becomes of its metering
        warn_once("litellm", "Meterhouse could not read what litellm is about to call.", with_trace=True)
    return result


def _operation(kind: str) -> str | None:
    return OPERATIONS.get(kind) or OPERATIONS.get(kind.removeprefix("a"))


def _place(url: str) -> str:
    """`url` without its query, which may hold a key."""
    return url.partition("?")[0].rstrip("/")
