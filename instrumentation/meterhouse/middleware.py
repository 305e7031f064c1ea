"""For whom a web request is: from a header that a trusted front end sets, a callable, or a signed grant. ASGI and WSGI.

    app = CustomerFromHeader(app, header="x-customer-id")           # ASGI; WSGICustomerFromHeader for WSGI
    app = CustomerFrom(app, lambda scope: scope["user"].tenant)     # may be async; WSGICustomerFrom for WSGI
    app = GrantFromHeader(app, header="x-usage-grant")              # the customer is the one that the grant names

Whoever can set the customer's header decides who pays: strip it from requests that come from outside. A grant needs no
such trust. A request for which no customer is found, or whose callable fails, runs without one.
"""

import inspect
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from contextvars import Context, copy_context
from typing import Any

from meterhouse.api import customer, grant
from meterhouse.attribution import Scope
from meterhouse.grants import LONGEST_BYTES
from meterhouse.trouble import warn_once

ASGIMessage = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[ASGIMessage]]
Send = Callable[[ASGIMessage], Awaitable[None]]
ASGIApp = Callable[[ASGIMessage, Receive, Send], Awaitable[None]]
WSGIApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
ReadScope = Callable[[ASGIMessage], Awaitable[str | None] | str | None]
ReadEnviron = Callable[[dict[str, Any]], str | None]

CUSTOMER_HEADER = "x-customer-id"
GRANT_HEADER = "x-usage-grant"


class CustomerFrom:
    """ASGI middleware: HTTP and WebSocket requests run for the customer that `read(scope)` gives; for none at None.

    `read` may be a coroutine function. Streamed bodies and the whole life of a WebSocket are covered.
    """

    _scope: Callable[[str], Scope] = staticmethod(customer)

    def __init__(self, app: ASGIApp, read: ReadScope) -> None:
        self.app = app
        self._read = read

    async def __call__(self, scope: ASGIMessage, receive: Receive, send: Send) -> None:
        attribution = await self._attribution(scope) if scope["type"] in ("http", "websocket") else None
        if attribution is None:
            await self.app(scope, receive, send)
            return
        with attribution:
            await self.app(scope, receive, send)

    async def _attribution(self, scope: ASGIMessage) -> Scope | None:
        try:
            found = self._read(scope)
            named = _usable(await found if inspect.isawaitable(found) else found)
            return None if named is None else self._scope(named)
        except Exception:  # noqa: BLE001 - the request is served whatever becomes of its metering
            _failed()
            return None


class CustomerFromHeader(CustomerFrom):
    """ASGI middleware: the customer is the value of `header`; a header that is given twice names nobody."""

    def __init__(self, app: ASGIApp, header: str = CUSTOMER_HEADER) -> None:
        self._header = header.lower().encode("latin-1")
        super().__init__(app, self._value)

    def _value(self, scope: ASGIMessage) -> str | None:
        values = [value for name, value in scope["headers"] if name.lower() == self._header]
        # Given twice, the front end and the client disagree: nobody is charged on a guess.
        return _text(values[0]) if len(values) == 1 else None


class GrantFromHeader(CustomerFromHeader):
    """ASGI middleware: the request runs under the signed grant in `header` (meterhouse.grants)."""

    _scope: Callable[[str], Scope] = staticmethod(grant)

    def __init__(self, app: ASGIApp, header: str = GRANT_HEADER) -> None:
        super().__init__(app, header)


class WSGICustomerFrom:
    """WSGI middleware: the request runs for the customer that `read(environ)` gives, while it is answered too."""

    _scope: Callable[[str], Scope] = staticmethod(customer)

    def __init__(self, app: WSGIApp, read: ReadEnviron) -> None:
        self.app = app
        self._read = read

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        attribution = self._attribution(environ)
        if attribution is None:
            return self.app(environ, start_response)
        context = copy_context()
        context.run(attribution.__enter__)
        body = context.run(self.app, environ, start_response)
        # What is there already is handed on as it is: servers ask it for its length, or send it as a file.
        as_it_is = isinstance(body, list | tuple) or _is_file(body, environ)
        return body if as_it_is else _Body(context, body)

    def _attribution(self, environ: dict[str, Any]) -> Scope | None:
        try:
            named = _usable(self._read(environ))
            return None if named is None else self._scope(named)
        except Exception:  # noqa: BLE001 - the request is served whatever becomes of its metering
            _failed()
            return None


class WSGICustomerFromHeader(WSGICustomerFrom):
    """WSGI middleware: the customer is the value of `header`; one with a comma, or given twice, names nobody."""

    def __init__(self, app: WSGIApp, header: str = CUSTOMER_HEADER) -> None:
        key = "HTTP_" + header.upper().replace("-", "_")
        super().__init__(app, lambda environ: _of_environ(environ.get(key)))


class WSGIGrantFromHeader(WSGICustomerFromHeader):
    """WSGI middleware: the request runs under the signed grant in `header`."""

    _scope: Callable[[str], Scope] = staticmethod(grant)

    def __init__(self, app: WSGIApp, header: str = GRANT_HEADER) -> None:
        super().__init__(app, header)


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


def _text(value: bytes) -> str:
    """A header's text: UTF-8, or else Latin-1, as which some clients send it. Never with characters replaced: two
    customers would become one."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _of_environ(value: object) -> str | None:
    """The same of what WSGI hands on, which is the bytes as Latin-1 (PEP 3333)."""
    # A header that was given twice comes joined by a comma: front end and client disagree.
    if not isinstance(value, str) or "," in value:
        return None
    try:
        return _text(value.encode("latin-1"))
    except UnicodeEncodeError:  # a server that has decoded it already
        return value


def _is_file(body: object, environ: dict[str, Any]) -> bool:
    wrapper = environ.get("wsgi.file_wrapper")
    return isinstance(wrapper, type) and isinstance(body, wrapper)


def _usable(named: object) -> str | None:
    """What a request names, if a customer id or a grant can be made of it."""
    if not isinstance(named, str):
        return None
    named = named.strip()
    return named if named and len(named.encode()) <= LONGEST_BYTES else None


def _failed() -> None:
    warn_once(
        "middleware",
        "Meterhouse could not find out for whom a request is: it runs without a customer.",
        with_trace=True,
    )
