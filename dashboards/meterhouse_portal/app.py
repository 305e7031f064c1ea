"""The portal's web application: who may see the page, what it is made of, and what happens when a part is missing."""

import hashlib
import hmac
import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from importlib.resources import files
from typing import Final

from sqlalchemy import Engine
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from meterhouse_portal import health, overview, page
from meterhouse_portal.customer_api import CustomerApi
from meterhouse_portal.customer_pages import CustomerPages
from meterhouse_portal.embed_pages import CONTENT_POLICY
from meterhouse_portal.embedding import EmbedSettings
from meterhouse_portal.openid import OpenIdSettings
from meterhouse_portal.operator_visit import BillingWorld, billing_world
from meterhouse_portal.overview import Month
from meterhouse_portal.page import Address
from meterhouse_portal.rendering import Rendering
from meterhouse_portal.stores import UNREADABLE, NoWarehouse, Stores
from meterhouse_rating.price_api.app import Problem, refused
from meterhouse_store import endpoints, last_runs, meters
from meterhouse_store.brand import Brand
from meterhouse_store.mail import MailSettings
from meterhouse_store.settings import Settings

COOKIE: Final = "meterhouse_portal"
COOKIE_LIFE_S: Final = 12 * 3600
CACHED: Final = "max-age=300"

HEADERS: Final = {
    "Content-Security-Policy": CONTENT_POLICY.format("'none'"),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # the address of the first visit carries the token
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
}

_log = logging.getLogger(__name__)


def now_utc() -> datetime:
    """The clock of the page."""
    return datetime.now(UTC)


def build(
    settings: Settings,
    token: str,
    *,
    public_url: str = "",
    now: Callable[[], datetime] = now_utc,
    billing: BillingWorld = billing_world,
) -> ASGIApp:
    """The application: `/` for the operator, `/account` for customers who signed in, and `/healthz`, `/metrics`, style
    and logo for everybody.

    The operator's token comes once as `/?token=...` and is exchanged for an HttpOnly cookie that does not contain it.
    `public_url`: the portal's address as customers reach it; links in e-mails begin with it. `billing`: how operators'
    decisions reach Stripe. Raises ValueError for a brand, an OpenID provider or origins of frames that cannot be
    used, OSError for their files.
    """
    stores, rendering = Stores(settings), Rendering(Brand())
    openid, origins = OpenIdSettings().checked(), EmbedSettings().checked(public_url)
    customers = CustomerPages(settings, stores, rendering, MailSettings(), public_url, now, billing, openid, origins)
    portal = _Portal(settings, stores, token, now, customers.is_operator)
    routes = [
        Route("/", portal.index),
        Route("/healthz", portal.healthz),
        Route("/metrics", portal.metrics),
        Route("/style.css", portal.style),
        Route("/account.css", _file(rendering.style().encode(), "text/css")),
        *customers.routes(),
        *CustomerApi(settings, stores, now).routes(),
    ]
    if rendering.logo is not None:
        routes.append(Route("/logo", _file(*rendering.logo)))
    return _with_headers(Starlette(routes=routes, exception_handlers=_refusals(customers)))


def _file(content: bytes, media_type: str) -> Callable[[Request], Response]:
    return lambda _: Response(content, media_type=media_type, headers={"Cache-Control": CACHED})


def _with_headers(inner: ASGIApp) -> ASGIApp:
    """Every answer leaves with HEADERS, where it does not say otherwise itself."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await inner(scope, receive, sending)

    return app


class _Portal:
    # Starlette runs these (they are not coroutines) in its pool of threads, so that a slow read holds up nobody else.

    def __init__(
        self,
        settings: Settings,
        stores: Stores,
        token: str,
        now: Callable[[], datetime],
        is_operator: Callable[[Request], bool],
    ) -> None:
        self._settings = settings
        self._is_operator = is_operator
        self._stores = stores
        self._token = token.encode()
        self._now = now
        self._pass = hmac.new(self._token, b"meterhouse portal cookie", hashlib.sha256).hexdigest()
        self._style = (files("meterhouse_portal") / "style.css").read_text(encoding="utf-8")

    def index(self, request: Request) -> Response:
        given = request.query_params.get("token")
        if given is not None and hmac.compare_digest(given.encode(), self._token):
            answer = RedirectResponse("/", status_code=303)
            secure = request.url.scheme == "https"
            answer.set_cookie(
                COOKIE, self._pass, max_age=COOKIE_LIFE_S, httponly=True, samesite="lax", secure=secure, path="/"
            )
            return answer
        if given is not None or not self._may_look(request):
            return _html(
                page.message_page(
                    "This page needs its link",
                    "It shows the figures of every customer. Open the link that `meterhouse up` printed; "
                    "it ends in `/?token=` and the portal's token. Or sign in as an operator, at `/operator`.",
                ),
                401,
            )
        if unknown := sorted(set(request.query_params) - {"period"}):
            text = f"The page takes `?period=2026-11`, not {unknown[0][:20]!r}."
            return _html(page.message_page("No such parameter", text), 400)
        try:
            month = Month.parse(request.query_params["period"]) if "period" in request.query_params else None
        except ValueError as problem:
            return _html(page.message_page("No such period", f"{problem}."), 400)
        return self._overview(month)

    def _may_look(self, request: Request) -> bool:
        """Whether the browser has the cookie of the token, or somebody is signed in as an operator."""
        cookie = request.cookies.get(COOKIE, "")
        if hmac.compare_digest(cookie.encode(), self._pass.encode()):
            return True
        try:
            return self._is_operator(request)
        except UNREADABLE as problem:
            _log.warning("who is signed in could not be read: %s", problem)
            return False

    def _overview(self, month: Month | None) -> Response:
        now = self._now()
        month = month or Month.of(now)
        namespace = self._settings.namespace
        try:
            engine = self._stores.engine()
            found = self._ask_warehouse(engine, month, now)
            content = overview.read(engine, namespace, month, found, now)
            declared = meters.declared(self._settings)
        except UNREADABLE as problem:
            _log.warning("the overview could not be read: %s", problem)
            return _html(
                page.message_page(
                    "The figures cannot be read",
                    "The SQL database does not answer, or not as expected. Nothing is lost; the log of "
                    "`meterhouse portal serve` says why. Reload when it is back.",
                ),
                503,
            )
        return _html(page.overview_page(content, declared, self._addresses()))

    def _ask_warehouse(self, engine: Engine, month: Month, now: datetime) -> overview.FromWarehouse | None:
        namespace = self._settings.namespace
        zones = overview.zones(engine, namespace)
        try:
            with self._stores.warehouse() as client:
                found = overview.read_warehouse(client, namespace, month, zones)
                return replace(found, late=overview.read_late(engine, client, namespace, month, zones, now))
        except NoWarehouse as problem:
            _log.warning("the warehouse could not be read: %s", problem)
            return None

    def _addresses(self) -> list[Address]:
        found = endpoints.read(self._settings.data)
        if found is None:
            return []
        return [
            Address("OTLP over HTTP", found.collector.http),
            Address("OTLP over gRPC", found.collector.grpc),
            Address("ClickHouse over HTTP", found.warehouse.url.rpartition("@")[2] or found.warehouse.url),
            Address("Stripe webhooks", found.webhooks.url),
            Address("Health", found.health.url, is_page=True),
        ]

    def healthz(self, _request: Request) -> Response:
        states = health.check(self._settings)
        return JSONResponse(states, 200 if states["status"] == health.OK else 503)

    def metrics(self, _request: Request) -> Response:
        """When scheduled commands ran last; nothing of anybody's usage."""
        try:
            text = last_runs.prometheus(last_runs.last_runs(self._stores.engine()))
        except UNREADABLE as problem:
            _log.warning("the metrics could not be read: %s", problem)
            return PlainTextResponse("the SQL database does not answer\n", 503)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    def style(self, _request: Request) -> Response:
        return Response(self._style, media_type="text/css", headers={"Cache-Control": CACHED})


def _html(text: str, status: int = 200) -> HTMLResponse:
    return HTMLResponse(text, status)


def _refusals(customers: CustomerPages) -> dict[int, Callable[[Request, Exception], Response]]:
    """What is answered where there is no route: a problem of the API's, or a page in the visitor's language."""

    def not_found(request: Request, _problem: Exception) -> Response:
        if _is_api(request):
            return refused(Problem(404, "not_found", "there is nothing here: /api/v1/openapi.json says what there is"))
        return customers.no_such_page(request)

    def not_allowed(request: Request, problem: Exception) -> Response:
        allowed = problem.headers if isinstance(problem, HTTPException) and problem.headers else {}
        if _is_api(request):
            return refused(Problem(405, "method_not_allowed", "this API is read only: GET", allowed))
        answer = customers.no_such_method(request)
        answer.headers.update(allowed)
        return answer

    return {404: not_found, 405: not_allowed}


def _is_api(request: Request) -> bool:
    return request.url.path.startswith("/api/")
