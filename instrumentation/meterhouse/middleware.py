"""The customer of a web request, taken from a header that a trusted front end sets. Pure ASGI and WSGI.

Whoever can set the header decides who pays: strip it from requests that come from outside.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from contextvars import Context, copy_context
from typing import Any

from meterhouse.api import customer
from meterhouse.attribution import MAX_BYTES

ASGIMessage = MutableMapping[str, Any]
ASGIApp = Callable[
    [ASGIMessage, Callable[[], Awaitable[ASGIMessage]], Callable[[ASGIMessage], Awaitable[None]]], Awaitable[None]
]
WSGIApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class CustomerFromHeader:
    """ASGI middleware: HTTP and WebSocket requests run for the customer that `header` names; without it, for none."""

    def __init__(self, app: ASGIApp, header: str = "x-customer-id") -> None:
        self.app = app
        self._header = header.lower().encode("latin-1")

    async def __call__(
        self,
        scope: ASGIMessage,
        receive: Callable[[], Awaitable[ASGIMessage]],
        send: Callable[[ASGIMessage], Awaitable[None]],
    ) -> None:
        named = _usable(self._named(scope))
        if named is None:
            await self.app(scope, receive, send)
            return
        with customer(named):
            await self.app(scope, receive, send)

    def _named(self, scope: ASGIMessage) -> str | None:
        if scope["type"] not in ("http", "websocket"):
            return None
        values = [value for name, value in scope["headers"] if name.lower() == self._header]
        # Given twice, the front end and the client disagree: nobody is charged on a guess.
        return values[0].decode("utf-8", errors="replace") if len(values) == 1 else None


class WSGICustomerFromHeader:
    """The same for WSGI; the customer holds while the response is iterated too."""

    def __init__(self, app: WSGIApp, header: str = "x-customer-id") -> None:
        self.app = app
        self._key = "HTTP_" + header.upper().replace("-", "_")

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        named = _usable(environ.get(self._key))
        if named is None:
            return self.app(environ, start_response)
        context = copy_context()
        context.run(customer(named).__enter__)
        return _Body(context, context.run(self.app, environ, start_response))


class _Body:
    """A response body whose pieces are made in the request's context."""

    def __init__(self, context: Context, body: Iterable[bytes]) -> None:
        self._context = context
        self._body = body
        self._pieces: Iterator[bytes] | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._pieces is None:
            self._pieces = self._context.run(iter, self._body)
        return self._context.run(next, self._pieces)

    def close(self) -> None:
        close = getattr(self._body, "close", None)
        if close is not None:
            self._context.run(close)


def _usable(named: object) -> str | None:
    """The customer id, if the header's value can be one."""
    if not isinstance(named, str):
        return None
    named = named.strip()
    return named if named and len(named.encode()) <= MAX_BYTES else None
