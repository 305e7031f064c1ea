"""The price API: who may read what, limits on what is asked, and answers that say when they are still so.

Only GET (and HEAD). Every answer has an ETag; every refusal is a problem (RFC 9457) with a code for programs.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from meterhouse_rating.periods import PeriodError, instant
from meterhouse_rating.price_api import books, reading
from meterhouse_rating.price_api.operations import (
    MAX_PAGE,
    MAX_VERSION,
    OPERATIONS,
    PROBLEM,
    USUAL_PAGE,
    YAML,
    Operation,
    document,
)
from meterhouse_rating.price_api.price_list import NotPriced
from meterhouse_rating.versions import Version
from meterhouse_store import access, key_uses
from meterhouse_store.access import PRICING, Credential
from meterhouse_store.sql import SchemaMismatch

MAX_ADDRESS: Final = 4096
"""Bytes of path and query together."""
MAX_KEY: Final = 256
NOTE_S: Final = 60.0
"""How often at most it is noted that a key was used."""
_FIRST_YEAR, _LAST_YEAR = 1970, 2200
_KEPT: Final = "private, max-age=86400, immutable"
_ASKED_AGAIN: Final = "private, no-cache"

_log = logging.getLogger(__name__)


class Problem(Exception):
    """A refusal; `detail` says what is wrong and what to do, `code` is for programs."""

    def __init__(self, status: int, code: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail, self.headers = status, code, detail, dict(headers or {})


def now_utc() -> datetime:
    """The clock of the API."""
    return datetime.now(UTC)


def build(open_engine: Callable[[], Engine], *, now: Callable[[], datetime] = now_utc) -> ASGIApp:
    """The application. The database is opened at the first request: the API can be up before it is."""
    prices = _Prices(open_engine, now)
    app = Starlette(
        routes=[Route(it.route, _answers(prices, it), methods=["GET"], name=it.name) for it in OPERATIONS],
        exception_handlers={
            Problem: lambda _request, problem: refused(problem),
            HTTPException: lambda _request, problem: refused(_of_http(problem)),
            SQLAlchemyError: lambda _request, problem: refused(_unavailable(problem)),
            SchemaMismatch: lambda _request, problem: refused(_unavailable(problem)),
        },
    )
    app.router.redirect_slashes = False
    return _Bounded(app)


@dataclass(frozen=True)
class _Asked:
    """A request whose key and parameters are checked."""

    key: Credential | None
    path: Mapping[str, Any]
    query: Mapping[str, str]

    @property
    def namespace(self) -> str:
        assert self.key is not None
        return self.key.namespace


class _Prices:
    # Starlette runs these (they are not coroutines) in its pool of threads, so that a slow read holds up nobody else.

    def __init__(self, open_engine: Callable[[], Engine], now: Callable[[], datetime]) -> None:
        self._open, self._now = open_engine, now
        self._opened: Engine | None = None
        self._noted: dict[str, datetime] = {}
        self._document = document()

    @property
    def engine(self) -> Engine:
        if self._opened is None:
            self._opened = self._open()
        return self._opened

    def key(self, authorization: str | None) -> Credential:
        """The key of a request. Raises Problem where it may not read prices."""
        scheme, _, text = (authorization or "").partition(" ")
        text = text.strip()
        asks = {"WWW-Authenticate": 'Bearer realm="meterhouse prices"'}
        if scheme.lower() != "bearer" or not text:
            raise Problem(401, "unauthenticated", "send the header `Authorization: Bearer mh_...`", asks)
        now = self._now()
        found = access.credential_of(self.engine, text, now) if len(text) <= MAX_KEY else None
        if found is None:
            raise Problem(401, "unauthenticated", "this key is unknown or was revoked", asks)
        if found.role != PRICING:
            what = f"this key is for {found.role}: `meterhouse keys create NAME --role pricing` makes one for prices"
            raise Problem(403, "wrong_role", what)
        last = self._noted.get(found.credential_id)
        if last is None or (now - last).total_seconds() >= NOTE_S:
            self._noted[found.credential_id] = now
            key_uses.note(self.engine, {found.credential_id: now})
        return found

    def list_price_books(self, asked: _Asked) -> Any:
        self._for_all(asked)
        after = asked.query.get("after", "0")
        if not after.isdecimal() or int(after) > MAX_VERSION:
            raise _bad("after", "the number of a version")
        limit = _limit(asked)
        items, last = reading.page(self.engine, asked.namespace, int(after), limit)
        return {"items": items, "next": None if last is None else f"/v1/price-books?after={last}&limit={limit}"}

    def get_price_book(self, asked: _Asked) -> Any:
        version = self._version(asked)
        return books.whole(version, reading.approver(self.engine, asked.namespace, version))

    def get_price_book_source(self, asked: _Asked) -> Any:
        return self._version(asked).source

    def list_plans(self, asked: _Asked) -> Any:
        return self._offers(asked, books.PLANS)

    def list_addons(self, asked: _Asked) -> Any:
        return self._offers(asked, books.ADDONS)

    def get_plan(self, asked: _Asked) -> Any:
        return self._offer(asked, books.PLANS, asked.path["plan"])

    def get_addon(self, asked: _Asked) -> Any:
        return self._offer(asked, books.ADDONS, asked.path["addon"])

    def get_customer_prices(self, asked: _Asked) -> Any:
        customer_id = asked.path["customer_id"]
        assert asked.key is not None
        if asked.key.customers is not None and customer_id not in asked.key.customers:
            # The same for customers that there are and that there are not.
            raise Problem(403, "customer_forbidden", "this key is for other customers")
        try:
            at = instant(asked.query["at"]) if "at" in asked.query else self._now()
        except PeriodError as wrong:
            raise Problem(400, "bad_parameter", str(wrong)) from None
        if not _FIRST_YEAR < at.year < _LAST_YEAR:
            raise _bad("at", f"a moment after {_FIRST_YEAR} and before {_LAST_YEAR}")
        try:
            found = reading.prices_of(self.engine, asked.namespace, customer_id, at)
        except NotPriced as without:
            raise Problem(409, "not_priced", str(without)) from None
        if found is None:
            raise Problem(404, "not_found", "no customer of that id is registered")
        return found.told

    def get_openapi(self, _asked: _Asked) -> Any:
        return self._document

    def get_health(self, _asked: _Asked) -> Any:
        return {"status": "ok"}

    def _for_all(self, asked: _Asked) -> None:
        """Price books have everybody's plans in them, also those that were made for one customer."""
        if asked.key is not None and asked.key.customers is not None:
            raise Problem(
                403, "customer_forbidden", "this key is for single customers: it reads /v1/customers/ID/prices"
            )

    def _version(self, asked: _Asked) -> Version:
        self._for_all(asked)
        number = asked.path["version"]
        found = reading.one(self.engine, asked.namespace, number) if number <= MAX_VERSION else None
        if found is None or found.version != number:
            raise Problem(404, "not_found", "no such version is published: /v1/price-books lists them")
        return found

    def _offers(self, asked: _Asked, kind: str) -> Any:
        version, after, limit = self._version(asked), asked.query.get("after"), _limit(asked)
        found = list(books.offers(version, kind).values())
        names = [it.name for it in found]
        if after is not None and after not in names:
            raise _bad("after", "the name of the last one of the page before")
        start = 0 if after is None else names.index(after) + 1
        shown = found[start : start + limit]
        more = start + limit < len(found)
        following = f"/v1/price-books/{version.version}/{kind}?after={shown[-1].name}&limit={limit}" if more else None
        return {"items": [books.summary(it) for it in shown], "next": following}

    def _offer(self, asked: _Asked, kind: str, name: str) -> Any:
        version = self._version(asked)
        found = books.offers(version, kind).get(name)
        if found is None:
            where = f"/v1/price-books/{version.version}/{kind}"
            raise Problem(404, "not_found", f"version {version.version} has none of that name: {where} lists them")
        return books.offer(version, kind, found)


def _answers(prices: _Prices, operation: Operation) -> Callable[[Request], Response]:
    answer: Callable[[_Asked], Any] = getattr(prices, operation.name)
    cache = _KEPT if operation.immutable else _ASKED_AGAIN

    def endpoint(request: Request) -> Response:
        key = None if operation.open else prices.key(request.headers.get("authorization"))
        found = answer(_Asked(key, request.path_params, _query(request, operation)))
        body = found if operation.media == YAML else json.dumps(found, ensure_ascii=False, separators=(",", ":"))
        return _conditional(request, body.encode(), operation.media, cache)

    return endpoint


def _query(request: Request, operation: Operation) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in operation.parameters:
            known = ", ".join(operation.parameters) or "none"
            raise Problem(400, "unknown_parameter", f"there is no parameter {name[:64]!r} here (there is {known})")
        if name in found:
            raise Problem(400, "bad_parameter", f"{name} is given twice")
        longest = operation.parameters[name].get("maxLength", 20)
        if len(value) > longest:
            raise Problem(400, "bad_parameter", f"{name} has at most {longest} characters")
        found[name] = value
    return found


def _limit(asked: _Asked) -> int:
    text = asked.query.get("limit", str(USUAL_PAGE))
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text) <= MAX_PAGE:
        raise _bad("limit", f"1 to {MAX_PAGE}")
    return int(text)


def _conditional(request: Request, body: bytes, media: str, cache: str) -> Response:
    """The body, or 304 where the caller has it already."""
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {
        "ETag": tag,
        "Cache-Control": cache,
        "Vary": "Authorization",
        "X-Content-Type-Options": "nosniff",
    }
    known = [it.strip().removeprefix("W/") for it in request.headers.get("if-none-match", "").split(",")]
    if "*" in known or tag in known:
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers | {"Content-Type": media})


def refused(problem: Exception) -> Response:
    """The answer to a Problem: RFC 9457."""
    assert isinstance(problem, Problem)
    told = {
        "type": f"urn:meterhouse:problem:{problem.code}",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
        "code": problem.code,
    }
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Content-Type": PROBLEM}
    return Response(json.dumps(told, ensure_ascii=False), problem.status, headers=headers | problem.headers)


def _of_http(problem: Exception) -> Problem:
    assert isinstance(problem, HTTPException)
    if problem.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return Problem(405, "method_not_allowed", "prices are read only: GET", {"Allow": "GET, HEAD"})
    return Problem(404, "not_found", "there is nothing here: /v1/openapi.json says what there is")


def _unavailable(problem: Exception) -> Problem:
    _log.warning("prices could not be read: %s", type(problem).__name__)
    return Problem(503, "unavailable", "the SQL database does not answer: ask again", {"Retry-After": "1"})


def _bad(name: str, what: str) -> Problem:
    return Problem(400, "bad_parameter", f"{name} takes {what}")


class _Bounded:
    """Refuses addresses that are too long, and bodies, before anything else looks at them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = dict(scope["headers"])
            if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > MAX_ADDRESS:
                problem = Problem(414, "address_too_long", f"an address has at most {MAX_ADDRESS} bytes")
                return await refused(problem)(scope, receive, send)
            if headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers:
                problem = Problem(400, "unexpected_body", "a GET has no body", {"Connection": "close"})
                return await refused(problem)(scope, receive, send)
        return await self._app(scope, receive, send)
