"""The choke point that the OpenAI and Anthropic SDKs share: `request` of their base clients, once per logical call.

`request` is entered once and does the SDK's retries inside; `_process_response` gets the HTTP response that the result
is made from.
"""

import copy
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from meterhouse import patches
from meterhouse.call import new_call_id
from meterhouse.metered import Request, current, outside, start, start_async, start_further
from meterhouse.providers.asking import ASKING
from meterhouse.providers.streamed import Provider, Streamed, Unasked, listen
from meterhouse.trouble import warn_once
from meterhouse.usage import MAPPING

REQUEST_ID_HEADER = "X-Client-Request-Id"
_PATCHED = (
    ("SyncAPIClient", "request"),
    ("SyncAPIClient", "_process_response"),
    ("AsyncAPIClient", "request"),
    ("AsyncAPIClient", "_process_response"),
)


_servers: weakref.WeakKeyDictionary[Any, tuple[object, str, str]] = weakref.WeakKeyDictionary()
"""By client: its base URL, the host in it, the provider's name."""


@dataclass(frozen=True, slots=True)
class Sdk:
    """How calls of one SDK are metered."""

    provider: Provider
    kind: type[Streamed] = Streamed
    follow: Callable[[Provider, Callable[[], Request], str, str], Streamed | None] = lambda *_: None
    """What listens to a request that is not billed itself, or None: of its description, its method and its path."""


def install(module: ModuleType, sdk: Sdk | Provider) -> None:
    """Patch the four methods of an SDK's `_base_client`."""
    sdk = sdk if isinstance(sdk, Sdk) else Sdk(sdk)
    wrappers = (
        partial(_request, sdk),
        partial(_process, sdk),
        partial(_request_async, sdk),
        partial(_process_async, sdk),
    )
    for (owner, method), wrapper in zip(_PATCHED, wrappers, strict=True):
        patches.wrap(module, f"{owner}.{method}", wrapper)


def remove(module: ModuleType) -> None:
    """Undo `install`."""
    for owner, method in _PATCHED:
        patches.unwrap(module, f"{owner}.{method}")


def _request(sdk: Sdk, wrapped: Any, client: Any, args: Any, kwargs: Any) -> Any:
    sending = _Sending(sdk, client, args, kwargs)
    metered = start(sdk.kind, sdk.provider, sending.describe, once=True)
    if metered is None:
        with sending.followed():
            return wrapped(*args, **kwargs)
    with metered.running():
        for a, k in sending.attempts(metered):
            try:
                result = wrapped(*a, **k)
            except BaseException as error:
                if sending.gives_up(error):
                    metered.end(error)
                    raise
            else:
                sending.taken()
                return result
    raise AssertionError("unreachable: the last attempt returns or raises")


async def _request_async(sdk: Sdk, wrapped: Any, client: Any, args: Any, kwargs: Any) -> Any:
    sending = _Sending(sdk, client, args, kwargs)
    metered = await start_async(sdk.kind, sdk.provider, sending.describe, once=True)
    if metered is None:
        with sending.followed():
            return await wrapped(*args, **kwargs)
    with metered.running():
        for a, k in sending.attempts(metered):
            try:
                result = await wrapped(*a, **k)
            except BaseException as error:
                if sending.gives_up(error):
                    metered.end(error)
                    raise
            else:
                sending.taken()
                return result
    raise AssertionError("unreachable: the last attempt returns or raises")


def _process(sdk: Sdk, wrapped: Any, client: Any, args: Any, kwargs: Any) -> Any:
    _answered(sdk, client, kwargs)
    return wrapped(*args, **kwargs)


async def _process_async(sdk: Sdk, wrapped: Any, client: Any, args: Any, kwargs: Any) -> Any:
    _answered(sdk, client, kwargs)
    return await wrapped(*args, **kwargs)


def _answered(sdk: Sdk, client: Any, kwargs: Any) -> None:
    metered, response = current(), kwargs.get("response")
    if metered is None or (isinstance(metered, Streamed) and metered.answered):
        # A middleware of the client's sent one more request, within the host's call or while its stream is read.
        metered = start_further(sdk.kind, sdk.provider, _Sending(sdk, client, (), kwargs).describe)
    if isinstance(metered, Streamed):
        listen(metered, response)


class _Sending:
    """The arguments of one `request`, and the attempts with them: asking for usage, then as the host called it."""

    def __init__(self, sdk: Sdk, client: Any, args: Any, kwargs: Any) -> None:
        self._sdk = sdk
        self._client = client
        self._args = args
        self._kwargs = kwargs
        self._options: Any = None
        self._provider_name = ""
        self._model = ""
        self._asking = False
        self._refusal: BaseException | None = None

    def describe(self) -> Request | None:
        """What `start` wants to know; None for what is not billed."""
        options, path = self._given()
        operation = self._sdk.provider.operation(path) if str(options.method).lower() == "post" else None
        if operation is None:
            return None
        call_id = new_call_id()
        self._options, request_id = _with_request_id(options, self._client, call_id)
        body = _body(options)
        model = body.get("model")
        self._model = model if isinstance(model, str) else ""
        server, self._provider_name = _server(self._sdk.provider, self._client)
        return Request(
            provider=self._provider_name,
            operation=operation,
            model=self._model,
            server=server,
            request_id=request_id,
            call_id=call_id,
            tool_results=partial(self._sdk.provider.tool_results, body),
        )

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Around a request that is not billed itself: what it tells of another call is listened to."""
        following = None if current() is not None else self._following()
        with outside() if following is None else following.running():
            yield

    def _following(self) -> Streamed | None:
        try:
            options, path = self._given()
            name = self._sdk.provider.provider_name
            request = partial(Request, server=host(self._client), operation="chat")
            return self._sdk.follow(self._sdk.provider, lambda: request(name(self._client)), str(options.method), path)
        except Exception:  # noqa: BLE001 - the host's call must go out whatever becomes of its metering
            warn_once("follow", "Meterhouse could not follow a request.", with_trace=True)
            return None

    def _given(self) -> tuple[Any, str]:
        options = self._args[1] if len(self._args) > 1 else self._kwargs["options"]
        return options, urlsplit(str(options.url)).path

    def attempts(self, metered: Streamed) -> Iterator[tuple[Any, Any]]:
        """The arguments to try in turn."""
        metered.requested_model = self._model
        metered.streaming = bool(self._kwargs.get("stream"))
        asking = self._asking_for_usage()
        if asking is not None:
            options, metered.unasked = asking
            self._asking = True
            yield self._with(copy.copy(options))  # a copy: the SDK changes the options that it is given
            metered.unasked, self._asking = None, False
        yield self._with(self._options)

    def taken(self) -> None:
        """The last attempt went well: it tells whether the server takes what we ask for."""
        if self._refusal is not None:
            ASKING.refused(str(self._client.base_url), self._model, self._refusal)
            self._refusal = None
        elif self._asking:
            ASKING.taken(str(self._client.base_url), self._model)

    def gives_up(self, error: BaseException) -> bool:
        """True unless the server may have refused only what we asked for."""
        if not self._asking or not ASKING.may_refuse(str(self._client.base_url), self._model, error):
            self._refusal = None
            return True
        self._refusal = error
        return False

    def _asking_for_usage(self) -> tuple[Any, Unasked] | None:
        try:
            if not self._kwargs.get("stream"):
                return None
            if not ASKING.needed(self._provider_name, str(self._client.base_url), self._model):
                return None
            return self._sdk.provider.ask_for_usage(self._options, urlsplit(str(self._options.url)).path)
        except Exception:  # noqa: BLE001 - the host's call must go out as it is
            warn_once("ask", "Meterhouse could not ask for the usage of a stream.", with_trace=True)
            return None

    def _with(self, options: Any) -> tuple[Any, Any]:
        if len(self._args) > 1:
            return (self._args[0], options, *self._args[2:]), self._kwargs
        return self._args, {**self._kwargs, "options": options}


def host(client: Any) -> str:
    """The host that a client calls."""
    url = client.base_url
    return str(getattr(url, "host", None) or urlsplit(str(url)).hostname or "")


def _server(provider: Provider, client: Any) -> tuple[str, str]:
    """The host that a client calls and the provider there; worked out once per base URL of the client."""
    url = client.base_url
    known = _servers.get(client)
    if known is None or known[0] is not url:
        _servers[client] = known = (url, host(client), provider.provider_name(client))
    return known[1], known[2]


def _body(options: Any) -> dict[str, Any]:
    """The fields of a request's body, as far as they are known before it is sent; the host's extra ones win."""
    parts = (options.json_data, getattr(options, "extra_json", None))
    return {key: value for part in parts if isinstance(part, MAPPING) for key, value in part.items()}


def _with_request_id(options: Any, client: Any, call_id: str) -> tuple[Any, str]:
    """A copy of the options that names the call to the provider; a name that the host gave it stays."""
    headers = options.headers if isinstance(options.headers, MAPPING) else {}
    # What `default_headers` adds of the SDK's own takes longer to gather than all else here.
    for given in (headers, getattr(client, "_custom_headers", None) or {}):
        for name, value in given.items():
            if name.lower() == REQUEST_ID_HEADER.lower() and isinstance(value, str):
                return options, value
    marked = copy.copy(options)
    marked.headers = {**headers, REQUEST_ID_HEADER: call_id}
    return marked, call_id
