"""litellm, where it calls a provider over its own HTTP client: Anthropic, Gemini, Vertex AI, Bedrock, Cohere and so on.

What it calls through the OpenAI SDK is metered there, once. What it answers itself (its cache, `mock_response`) calls
no provider and is not metered. Each request to a provider is a call: one that litellm repeats after a failure, or makes
to another model instead, is another call.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from inspect import signature
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

from meterhouse import patches
from meterhouse.call import new_call_id
from meterhouse.metered import Request, start, start_async
from meterhouse.providers import openai
from meterhouse.providers.asking import ASKING
from meterhouse.providers.bedrock_families import METRICS, counted, model_id
from meterhouse.providers.litellm_endpoints import Endpoint, find
from meterhouse.providers.litellm_wire import BEDROCK, AnyShape, Wire
from meterhouse.providers.sdk_client import REQUEST_ID_HEADER
from meterhouse.providers.streamed import listen

_CLIENTS = ("HTTPHandler", "AsyncHTTPHandler")
_MODEL_IN_PATH = re.compile(r"/model/(.+)/(?:converse|invoke)[a-z-]*\Z|/models/([^/]+):[A-Za-z]+\Z")


def install(module: ModuleType) -> None:
    """Patch litellm's HTTP clients."""
    patches.wrap(module, "HTTPHandler.post", _post)
    patches.wrap(module, "AsyncHTTPHandler.post", _post_async)


def remove(module: ModuleType) -> None:
    """Undo `install`."""
    for name in _CLIENTS:
        patches.unwrap(module, f"{name}.post")


def _post(wrapped: Callable[..., Any], _client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    sending = _Sending.of(wrapped, args, kwargs)
    metered = start(Wire, sending.reader, sending.describe) if sending else None
    if sending is None or metered is None:
        return wrapped(*args, **kwargs)
    with metered.running():
        for arguments in sending.attempts(metered):
            try:
                response = wrapped(**arguments)
            except BaseException as error:
                if sending.gives_up(error):
                    metered.end(error)
                    raise
            else:
                sending.taken(metered, response)
                return response
    raise AssertionError("unreachable: the last attempt returns or raises")


async def _post_async(wrapped: Callable[..., Any], _client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    sending = _Sending.of(wrapped, args, kwargs)
    metered = await start_async(Wire, sending.reader, sending.describe) if sending else None
    if sending is None or metered is None:
        return await wrapped(*args, **kwargs)
    with metered.running():
        for arguments in sending.attempts(metered):
            try:
                response = await wrapped(**arguments)
            except BaseException as error:
                if sending.gives_up(error):
                    metered.end(error)
                    raise
            else:
                sending.taken(metered, response)
                return response
    raise AssertionError("unreachable: the last attempt returns or raises")


class _Sending:
    """One request to a model: its arguments by name, and the attempts with them: asking for usage, then without."""

    def __init__(self, endpoint: Endpoint, arguments: dict[str, Any]) -> None:
        self.endpoint = endpoint
        self.reader = AnyShape(endpoint.provider, endpoint.operation)
        self._arguments = arguments
        self._place = str(arguments["url"]).partition("?")[0]
        self._body = _parsed(arguments)
        self._asking = False
        self._refusal: BaseException | None = None

    @classmethod
    def of(cls, post: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> "_Sending | None":
        """None for what calls no model."""
        url = args[0] if args else kwargs.get("url")
        endpoint = find(url) if isinstance(url, str) else None
        return None if endpoint is None else cls(endpoint, signature(post).bind(*args, **kwargs).arguments)

    def describe(self) -> Request:
        """What `start` wants to know."""
        call_id, address = new_call_id(), urlsplit(self._place)
        return Request(
            provider=self.endpoint.provider,
            operation=self.endpoint.operation,
            model=self._model(),
            server=address.hostname or "",
            request_id=self._marked(call_id),
            call_id=call_id,
            tool_results=partial(self.reader.tool_results, self._body),
        )

    def attempts(self, metered: Wire) -> Iterator[dict[str, Any]]:
        """The arguments to try in turn."""
        metered.streaming = bool(self._body.get("stream"))
        asking = self._asking_for_usage()
        if asking is not None:
            metered.unasked, self._asking = openai.unasked, True
            yield asking
            metered.unasked, self._asking = None, False
        yield self._arguments

    def gives_up(self, error: BaseException) -> bool:
        """True unless the server may have refused only what we asked for."""
        if not self._asking or not ASKING.may_refuse(self._place, self._model(), error):
            self._refusal = None
            return True
        self._refusal = error
        return False

    def taken(self, metered: Wire, response: Any) -> None:
        """The last attempt went well."""
        metered.requested_model = model = self._model()
        if self._refusal is not None:
            ASKING.refused(self._place, model, self._refusal)
            self._refusal = None
        elif self._asking:
            ASKING.taken(self._place, model)
        if self.endpoint.provider == BEDROCK and (told := counted(response.headers)):
            metered.take(told, METRICS)
        listen(metered, response)

    def _asking_for_usage(self) -> dict[str, Any] | None:
        """Chat streams in OpenAI's shape tell usage only if asked: arguments that ask; None if there is no need."""
        body, asked = self._body, self._body.get("stream_options")
        asks = isinstance(asked, Mapping) and asked.get("include_usage")
        if not body.get("stream") or asks or not urlsplit(self._place).path.endswith("/completions"):
            return None
        if self._signed() or not ASKING.needed(self.endpoint.provider, self._place, self._model()):
            return None
        options = asked if isinstance(asked, Mapping) else {}
        asking = {**body, "stream_options": {**options, "include_usage": True}}
        place = "json" if self._arguments.get("json") else "data"
        return {**self._arguments, place: asking if place == "json" else json.dumps(asking)}

    def _model(self) -> str:
        return _model(urlsplit(self._place).path, self._body) or self.endpoint.model

    def _signed(self) -> bool:
        return isinstance(self._arguments.get("data"), bytes)

    def _marked(self, call_id: str) -> str:
        """Name the call to the provider; a name that the host gave it stays. Returns the name."""
        headers = self._arguments.get("headers")
        if headers is not None and not isinstance(headers, Mapping):
            return ""
        given = [value for name, value in (headers or {}).items() if str(name).lower() == REQUEST_ID_HEADER.lower()]
        if given:
            return str(given[0])
        self._arguments["headers"] = {**(headers or {}), REQUEST_ID_HEADER: call_id}
        return call_id


def _parsed(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    body = arguments.get("json") or arguments.get("data")
    if isinstance(body, str | bytes):
        try:
            body = json.loads(body)
        except (ValueError, RecursionError):  # audio, or another form: it has no messages
            return {}
    return body if isinstance(body, Mapping) else {}


def _model(path: str, body: Mapping[str, Any]) -> str:
    """The model of a request: most have it in the body, Bedrock and Google in the path."""
    named = _MODEL_IN_PATH.search(unquote(path))
    model = model_id(named[1]) or named[2] if named else body.get("model")
    return model if isinstance(model, str) else ""
