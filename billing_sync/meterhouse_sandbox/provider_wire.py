"""What the wire formats of the model provider have in common: a frame of a stream, and reading a request body. Pure."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from meterhouse_sandbox.provider_answer import Answer, Asked, BadRequest, Units

_ITEMS_MAX = 2048


@dataclass(frozen=True)
class Frame:
    """A piece of a server-sent stream."""

    data: bytes
    word: bool = False  # it carries visible output
    settles: bool = False  # the answer's usage is final from here on: the provider's log has it before this leaves


@dataclass(frozen=True)
class Wire:
    """One endpoint's format: how to read its request and to write its answer."""

    endpoint: str
    writes_cache: bool
    response_id: Callable[[Answer], str]
    asked: Callable[[Mapping[str, Any]], Asked]
    units: Callable[[Units], Units]
    usage: Callable[[Units], dict[str, Any]]
    body: Callable[[Answer, Mapping[str, Any]], dict[str, Any]]
    frames: Callable[[Answer, Asked], Iterator[Frame]]
    error: Callable[[int, str], dict[str, Any]]


def items(body: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """The list of objects under `name`, empty where it is absent; raises BadRequest for anything else."""
    given = body.get(name)
    if given is None:
        return []
    if not isinstance(given, list) or not all(isinstance(item, dict) for item in given):
        raise BadRequest(f"'{name}' must be a list of objects")
    if len(given) > _ITEMS_MAX:
        raise BadRequest(f"'{name}' has {len(given)} entries, at most {_ITEMS_MAX} are taken")
    return given


def model_of(body: Mapping[str, Any]) -> str:
    model = body.get("model")
    if not isinstance(model, str) or not 0 < len(model) <= 128:
        raise BadRequest("'model' must be a name of 1 to 128 characters")
    return model


def text_of(body: Mapping[str, Any], name: str) -> str:
    """The text under `name`, cut to 256 characters; empty where it is absent."""
    value = body.get(name)
    return value[:256] if isinstance(value, str) else ""


def question_of(messages: list[dict[str, Any]]) -> str:
    """The text of the user's last message; empty where it has none, as with images or tool results only."""
    for message in reversed(messages):
        content = message.get("content")
        if message.get("role") == "user" and isinstance(content, str):
            return content
        if message.get("role") == "user" and isinstance(content, list):
            return " ".join(str(part["text"]) for part in content if isinstance(part, dict) and "text" in part)
    return ""
