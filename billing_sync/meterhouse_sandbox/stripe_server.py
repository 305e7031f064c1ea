"""The sandbox's HTTP face: keys, forms, idempotency, errors and request ids the way Stripe does them.

https://docs.stripe.com/api/{authentication,idempotent_requests,errors}. Beside /v1 there is /_sandbox, for what
customers do: POST /_sandbox/pay/{invoice}, POST /_sandbox/fail/{invoice}, and the page behind hosted_invoice_url.
`/` lists the invoices for people.
"""

import base64
import hashlib
import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from meterhouse_sandbox import serving
from meterhouse_sandbox import stripe_invoices as invoices
from meterhouse_sandbox import stripe_pages as pages
from meterhouse_sandbox.stripe_contract import StripeRefusal, read
from meterhouse_sandbox.stripe_invoices import Context
from meterhouse_sandbox.stripe_routes import Call, match
from meterhouse_sandbox.stripe_state import Reply, State, new_id
from meterhouse_sandbox.stripe_webhooks import Deliverer

MAX_BODY: Final = 1 << 20
MAX_FIELDS: Final = 10_000
MAX_KEY: Final = 255


def serve(
    host: str, port: int, *, data: Path | None = None, webhook_url: str | None = None, webhook_secret: str | None = None
) -> None:
    """Serve until SIGTERM or SIGINT. Without `data` the state is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="meterhouse-sandbox-") as scratch:
        app = application(data or Path(scratch), webhook_url=webhook_url, webhook_secret=webhook_secret)
        url = f"http://{host}:{port}"
        told = [
            f"A local Stripe listens on {url}; open it in a browser to see the invoices. For Meterhouse:",
            f"  export METERHOUSE_STRIPE_URL={url} STRIPE_API_KEY=sk_test_anything",
            f"Its state is kept in {data}." if data else "Its state is gone when it ends; --data DIR keeps it.",
            f"Webhooks go to {webhook_url}." if webhook_url else "No webhooks: `meterhouse bill poll` asks instead.",
        ]
        serving.run(app, host, port, "\n".join(told))


def application(data: Path, *, webhook_url: str | None = None, webhook_secret: str | None = None) -> Starlette:
    """The sandbox as an ASGI application. Raises ValueError when only one of URL and secret is given."""
    if (webhook_url is None) != (webhook_secret is None):
        raise ValueError("--webhook-url and --webhook-secret go together")
    data.mkdir(parents=True, exist_ok=True)
    file = data / "stripe.sqlite3"
    state = State(file, webhooks=webhook_url is not None)
    deliverer = Deliverer(file, webhook_url, webhook_secret) if webhook_url and webhook_secret else None
    face = _Face(state, deliverer)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        if deliverer:
            deliverer.start()
        yield
        if deliverer:
            deliverer.stop()
        state.close()

    return Starlette(
        routes=[
            Route("/", face.index),
            Route("/v1/{path:path}", face.api, methods=["GET", "POST", "DELETE"]),
            Route("/_sandbox/pay/{invoice}", face.pay, methods=["POST"]),
            Route("/_sandbox/fail/{invoice}", face.fail, methods=["POST"]),
            Route("/_sandbox/invoices/{invoice}", face.page),
            Route("/healthz", lambda request: JSONResponse({"status": "ok"})),
        ],
        lifespan=lifespan,
    )


class _Face:
    """Handlers run in the event loop, one after the other: the state has one writer."""

    def __init__(self, state: State, deliverer: Deliverer | None) -> None:
        self._state, self._deliverer = state, deliverer

    async def api(self, request: Request) -> Response:
        request_id = new_id("req")
        headers = {"Request-Id": request_id, "Stripe-Version": request.headers.get("stripe-version", "")}
        try:
            _authenticate(request.headers.get("authorization", ""))
            pairs = await _pairs(request)
            status, body, replayed = self._answer(request, request_id, pairs)
        except StripeRefusal as refusal:
            return JSONResponse({"error": refusal.error}, refusal.status, headers)
        if replayed:
            headers["Idempotent-Replayed"] = "true"
        self._wake()
        return Response(body, status, headers, media_type="application/json")

    def _answer(self, request: Request, request_id: str, pairs: list[tuple[str, str]]) -> tuple[int, str, bool]:
        route, name = match(request.method, request.url.path)
        key = request.headers.get("idempotency-key") if request.method == "POST" else None
        if key is not None and not 0 < len(key) <= MAX_KEY:
            raise StripeRefusal("An idempotency key has 1 to 255 characters.", kind="idempotency_error")
        address = f"{request.method} {request.url.path}"
        params = hashlib.sha256(json.dumps(sorted(pairs)).encode()).hexdigest()
        with self._state.transaction():
            saved = self._state.reply(key) if key else None
            if saved:
                _same_request(saved, address, params)
                return saved.status, saved.body, True
            # Parameters are checked first: what never began to run is not kept under the key.
            given = read(pairs, route.params, route.supported, route.required)
            context = Context(self._state, {"id": request_id, "idempotency_key": key}, _base_url(request))
            status, body = _run(route, context, name, given)
            if key:
                self._state.save_reply(key, Reply(address, params, status, body))
        return status, body, False

    async def pay(self, request: Request) -> Response:
        return self._as_customer(request, {"payment_method": "pm_card_visa"})

    async def fail(self, request: Request) -> Response:
        return self._as_customer(request, {"payment_method": "pm_card_chargeDeclined"})

    def _as_customer(self, request: Request, given: dict[str, Any]) -> Response:
        name = request.path_params["invoice"]
        try:
            with self._state.transaction():
                context = Context(self._state, {"id": None, "idempotency_key": None}, _base_url(request))
                invoice = invoices.pay(context, name, given)
        except StripeRefusal as refusal:
            return JSONResponse({"error": refusal.error}, refusal.status)
        self._wake()
        if "text/html" in request.headers.get("accept", ""):
            return Response(status_code=303, headers={"Location": f"/_sandbox/invoices/{name}"})
        return JSONResponse(invoice)

    async def index(self, _request: Request) -> Response:
        names = {
            customer["id"]: customer["name"] or customer["id"] for customer in self._state.newest_first("customer")
        }
        return HTMLResponse(pages.index(self._state.newest_first("invoice"), names))

    async def page(self, request: Request) -> Response:
        name = request.path_params["invoice"]
        invoice = self._state.get("invoice", name)
        if invoice is None:
            return HTMLResponse(pages.missing(name), 404)
        context = Context(self._state, {}, _base_url(request))
        return HTMLResponse(pages.page(invoice, invoices.lines(context, name)))

    def _wake(self) -> None:
        if self._deliverer:
            self._deliverer.wake()


def _run(route: Call, context: Context, name: str, given: dict[str, Any]) -> tuple[int, str]:
    body = route.handle(context, name, given)
    if route.params == "InvoicePayParams" and invoices.declined(given):
        error = {"type": "card_error", "code": "card_declined", "message": "Your card was declined."}
        return 402, json.dumps({"error": error})
    return 200, json.dumps(body)


def _authenticate(header: str) -> None:
    scheme, _, token = header.partition(" ")
    if scheme.lower() == "basic":
        try:
            token = base64.b64decode(token, validate=True).decode().partition(":")[0]
        except ValueError:
            token = ""
    if not token.startswith(("sk_test_", "rk_test_")):
        shown = token[:8] + "..." if token else "none"
        message = f"The sandbox takes keys that begin with sk_test_ or rk_test_; given: {shown}"
        raise StripeRefusal(message, status=401)


async def _pairs(request: Request) -> list[tuple[str, str]]:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise StripeRefusal(f"A request has at most {MAX_BODY} bytes.", status=413)
    text = body.decode("utf-8", "replace") if request.method == "POST" else request.url.query
    try:
        return parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text), max_num_fields=MAX_FIELDS)
    except ValueError as problem:
        raise StripeRefusal(f"The parameters are not a form: {problem}") from None


def _same_request(saved: Reply, address: str, params: str) -> None:
    if saved.route != address:
        message = (
            f"Keys for idempotent requests can only be used for the endpoint they were first used for ({saved.route})."
        )
        raise StripeRefusal(message, kind="idempotency_error")
    if saved.params != params:
        message = "Keys for idempotent requests can only be used with the same parameters they were first used with."
        raise StripeRefusal(message, kind="idempotency_error")


def _base_url(request: Request) -> str:
    return str(request.base_url).rstrip("/")
