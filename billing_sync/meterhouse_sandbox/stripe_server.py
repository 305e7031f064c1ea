"""The sandbox's HTTP face: keys, forms, idempotency, errors and request ids the way Stripe does them.

https://docs.stripe.com/api/{authentication,idempotent_requests,errors}. Beside /v1 there is /_sandbox, for what
customers do: POST /_sandbox/pay/{invoice}, POST /_sandbox/fail/{invoice}, POST /_sandbox/dispute/{payment}, and the
pages behind hosted_invoice_url and Checkout's url; and for tests POST /_sandbox/clock and POST /_sandbox/faults
(stripe_faults.py); GET /_sandbox/refused says how many requests were above the limits.
`/` lists the invoices for people.
"""

import asyncio
import base64
import hashlib
import json
import re
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from meterhouse_sandbox import serving, stripe_faults, stripe_stream, stripe_subscriptions
from meterhouse_sandbox import stripe_invoices as invoices
from meterhouse_sandbox import stripe_pages as pages
from meterhouse_sandbox import stripe_payments as payments
from meterhouse_sandbox.stripe_calls import Call
from meterhouse_sandbox.stripe_contract import StripeRefusal, read
from meterhouse_sandbox.stripe_faults import Faults, Limits
from meterhouse_sandbox.stripe_invoices import Context
from meterhouse_sandbox.stripe_routes import match
from meterhouse_sandbox.stripe_state import Reply, State, new_id
from meterhouse_sandbox.stripe_webhooks import Deliverer

MAX_BODY: Final = 1 << 20
MAX_FIELDS: Final = 10_000
MAX_KEY: Final = 255
_NOBODY: Final[dict[str, str | None]] = {"id": None, "idempotency_key": None}
"""What asks for a change that no request of the API makes."""


def serve(
    host: str,
    port: int,
    *,
    data: Path | None = None,
    webhook_url: str | None = None,
    webhook_secret: str | None = None,
    limits: bool = False,
) -> None:
    """Serve until SIGTERM or SIGINT. Without `data` the state is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="meterhouse-sandbox-") as scratch:
        app = application(data or Path(scratch), webhook_url=webhook_url, webhook_secret=webhook_secret, limits=limits)
        url = f"http://{host}:{port}"
        told = [
            f"A local Stripe listens on {url}; open it in a browser to see the invoices. For Meterhouse:",
            f"  export METERHOUSE_STRIPE_URL={url} STRIPE_API_KEY=sk_test_anything",
            f"Its state is kept in {data}." if data else "Its state is gone when it ends; --data DIR keeps it.",
            f"Webhooks go to {webhook_url}." if webhook_url else "No webhooks: `meterhouse bill poll` asks instead.",
        ]
        serving.run(app, host, port, "\n".join(told))


def application(
    data: Path, *, webhook_url: str | None = None, webhook_secret: str | None = None, limits: bool = False
) -> Starlette:
    """The sandbox as an ASGI application. Raises ValueError when only one of URL and secret is given."""
    if (webhook_url is None) != (webhook_secret is None):
        raise ValueError("--webhook-url and --webhook-secret go together")
    data.mkdir(parents=True, exist_ok=True)
    file = data / "stripe.sqlite3"
    state = State(file, webhooks=webhook_url is not None)
    faults = Faults()
    deliverer = Deliverer(file, webhook_url, webhook_secret, faults) if webhook_url and webhook_secret else None
    face = _Face(state, deliverer, faults, Limits(on=limits))

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
            Route("/v2/{path:path}", face.api, methods=["GET", "POST"]),
            Route("/_sandbox/clock", face.clock, methods=["GET", "POST"]),
            Route("/_sandbox/refused", lambda request: JSONResponse({"refused": face.limits.refused})),
            Route("/_sandbox/faults", face.faults, methods=["POST"]),
            Route("/_sandbox/checkout/{session}", face.checkout, methods=["GET", "POST"]),
            Route("/_sandbox/dispute/{name}", face.dispute, methods=["POST"]),
            Route("/_sandbox/dispute/{name}/{status}", face.dispute, methods=["POST"]),
            Route("/_sandbox/pay/{invoice}", face.pay, methods=["POST"]),
            Route("/_sandbox/fail/{invoice}", face.fail, methods=["POST"]),
            Route("/_sandbox/invoices/{invoice}", face.page),
            Route("/healthz", lambda request: JSONResponse({"status": "ok"})),
        ],
        lifespan=lifespan,
    )


class _Face:
    """Handlers run in the event loop, one after the other: the state has one writer."""

    def __init__(self, state: State, deliverer: Deliverer | None, faults: Faults, limits: Limits) -> None:
        self._state, self._deliverer, self._faults, self.limits = state, deliverer, faults, limits

    async def api(self, request: Request) -> Response:
        fault = self._faults.of(request.method)
        if fault == stripe_faults.DROPPED_BEFORE:
            return _Dropped()
        if fault in (stripe_faults.CONFLICT, stripe_faults.TOO_MANY):
            return _busy(int(fault), {"Retry-After": "1"} if fault == stripe_faults.TOO_MANY else {})
        try:
            pairs = await _pairs(request)
        except StripeRefusal as refusal:
            return JSONResponse({"error": refusal.error}, refusal.status)
        with self.limits.one_at_a_time(_lane(request, pairs)) as alone:
            why = self.limits.refuses(f"{request.method} {_endpoint(request)}") if alone else "endpoint-concurrency"
            if why is not None:
                return _busy(429, {"Stripe-Rate-Limited-Reason": why})
            if fault == stripe_faults.SLOW:
                await asyncio.sleep(self._faults.slow_s)
            response = self._reply(request, pairs, fault)
        return _Dropped() if fault == stripe_faults.DROPPED_AFTER else response

    def _reply(self, request: Request, pairs: list[tuple[str, str]], fault: str | None) -> Response:
        request_id = new_id("req")
        headers = {"Request-Id": request_id, "Stripe-Version": request.headers.get("stripe-version", "")}
        try:
            token = _token(request.headers.get("authorization", ""))
            if request.url.path == stripe_stream.PATH:
                stripe_stream.authenticate(Context(self._state, _NOBODY, ""), token)
            else:
                _authenticate(token)
            status, body, replayed = self._answer(request, request_id, pairs, fault)
        except StripeRefusal as refusal:
            return JSONResponse({"error": refusal.error}, refusal.status, headers)
        if replayed:
            headers["Idempotent-Replayed"] = "true"
        self._wake()
        return Response(body, status, headers, media_type="application/json")

    def _answer(
        self, request: Request, request_id: str, pairs: list[tuple[str, str]], fault: str | None
    ) -> tuple[int, str, bool]:
        route, name = match(request.method, request.url.path)
        key = request.headers.get("idempotency-key") if request.method == "POST" else None
        if key is not None and not 0 < len(key) <= MAX_KEY:
            raise StripeRefusal("An idempotency key has 1 to 255 characters.", kind="idempotency_error")
        address = f"{request.method} {request.url.path}"
        params = hashlib.sha256(json.dumps(sorted(pairs)).encode()).hexdigest()
        with self._speaking_for(request.headers.get("stripe-account", "")), self._state.transaction():
            saved = self._state.reply(key) if key else None
            if saved:
                _same_request(saved, address, params)
                return saved.status, saved.body, True
            # Parameters are checked first: what never began to run is not kept under the key.
            given = read(pairs, route.params, route.supported, route.required)
            context = Context(self._state, {"id": request_id, "idempotency_key": key}, _base_url(request))
            stripe_subscriptions.roll(context)
            if fault == stripe_faults.SAVED_500:
                status, body = 500, _SAVED
            else:
                status, body = _run(route, context, name, given)
            if fault == stripe_faults.SAVED_500_DONE:
                status, body = 500, _SAVED
            if key:
                self._state.save_reply(key, Reply(address, params, status, body))
        return status, body, False

    @contextmanager
    def _speaking_for(self, account: str) -> Iterator[None]:
        """The state as the connected account has it; nothing else runs meanwhile."""
        if account and not re.fullmatch(r"acct_[0-9A-Za-z]{8,60}", account):
            message = f"The provided key does not have access to account '{account}' (or that account does not exist)."
            raise StripeRefusal(message, status=403, kind="invalid_request_error", code="account_invalid")
        self._state.account = account
        try:
            yield
        finally:
            self._state.account = ""

    async def clock(self, request: Request) -> Response:
        """The sandbox's time, in seconds since 1970; POST sets it."""
        if request.method == "POST":
            try:
                now = float((await request.json())["now"])
            except (ValueError, TypeError, KeyError):
                return JSONResponse({"error": 'post {"now": seconds since 1970}'}, 400)
            with self._state.transaction():
                self._state.set_clock(now)
                stripe_subscriptions.roll(Context(self._state, _NOBODY, ""))
            self._wake()
        return JSONResponse({"now": self._state.now()})

    async def faults(self, request: Request) -> Response:
        """Replace the fault schedule."""
        try:
            self._faults.change(await request.json())
        except (ValueError, TypeError, AttributeError) as problem:
            return JSONResponse({"error": str(problem)}, 400)
        return JSONResponse({"changed": True})

    async def checkout(self, request: Request) -> Response:
        """The hosted page of Checkout; POST leaves a test card there, or pays with it, as the customer would."""
        name, account = request.path_params["session"], request.query_params.get("account", "")
        with self._speaking_for(account):
            session = self._state.get("checkout.session", name)
        if session is None:
            return HTMLResponse(pages.missing(name), 404)
        if request.method == "POST":
            with self._speaking_for(account), self._state.transaction():
                payments.complete(Context(self._state, _NOBODY, _base_url(request)), session)
            self._wake()
            return Response(status_code=303, headers={"Location": session["success_url"]})
        return HTMLResponse(pages.checkout(session))

    async def dispute(self, request: Request) -> Response:
        """The bank takes back a payment (pi_...), or decides about that: dp_... and `won` or `lost`."""
        try:
            with self._speaking_for(request.query_params.get("account", "")), self._state.transaction():
                context = Context(self._state, _NOBODY, _base_url(request))
                name, status = request.path_params["name"], request.path_params.get("status")
                made = payments.decide(context, name, status) if status else payments.dispute(context, name)
        except StripeRefusal as refusal:
            return JSONResponse({"error": refusal.error}, refusal.status)
        self._wake()
        return JSONResponse(made)

    async def pay(self, request: Request) -> Response:
        return self._as_customer(request, {"payment_method": "pm_card_visa"})

    async def fail(self, request: Request) -> Response:
        return self._as_customer(request, {"payment_method": "pm_card_chargeDeclined"})

    def _as_customer(self, request: Request, given: dict[str, Any]) -> Response:
        name = request.path_params["invoice"]
        try:
            with self._speaking_for(request.query_params.get("account", "")), self._state.transaction():
                context = Context(self._state, _NOBODY, _base_url(request))
                invoice = invoices.pay(context, name, given)
        except StripeRefusal as refusal:
            return JSONResponse({"error": refusal.error}, refusal.status)
        self._wake()
        if "text/html" in request.headers.get("accept", ""):
            return Response(status_code=303, headers={"Location": f"/_sandbox/invoices/{name}{_query(request)}"})
        return JSONResponse(invoice)

    async def index(self, _request: Request) -> Response:
        names = {
            customer["id"]: customer["name"] or customer["id"] for customer in self._state.newest_first("customer")
        }
        return HTMLResponse(pages.index(self._state.newest_first("invoice"), names))

    async def page(self, request: Request) -> Response:
        name = request.path_params["invoice"]
        with self._speaking_for(request.query_params.get("account", "")):
            invoice = self._state.get("invoice", name)
            if invoice is None:
                return HTMLResponse(pages.missing(name), 404)
            lines = invoices.lines(Context(self._state, {}, _base_url(request)), name)
        return HTMLResponse(pages.page(invoice, lines, _query(request)))

    def _wake(self) -> None:
        if self._deliverer:
            self._deliverer.wake()


class _Dropped(Response):
    """Nothing but a broken connection."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # More is promised than comes, so the server has to close the connection.
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]})


_SAVED: Final = json.dumps({"error": {"type": "api_error", "message": "Something went wrong on Stripe's end."}})


def _busy(status: int, headers: dict[str, str]) -> Response:
    told = {
        409: {"type": "idempotency_error", "message": "Another request with this key is under way."},
        429: {"type": "invalid_request_error", "code": "rate_limit", "message": "Request rate limit exceeded."},
    }
    return JSONResponse({"error": told[status]}, status, {"Request-Id": new_id("req"), **headers})


def _endpoint(request: Request) -> str:
    """The path without the names of objects in it."""
    return "/".join(
        "{id}" if "_" in part and any(map(str.isdigit, part)) else part for part in request.url.path.split("/")
    )


def _lane(request: Request, pairs: list[tuple[str, str]]) -> tuple[str, str] | None:
    """Meter and customer of a meter event: Stripe takes one call at a time for each."""
    if request.method != "POST" or request.url.path != "/v1/billing/meter_events":
        return None
    given = dict(pairs)
    return given.get("event_name", ""), given.get("payload[stripe_customer_id]", "")


def _run(route: Call, context: Context, name: str, given: dict[str, Any]) -> tuple[int, str]:
    body = route.handle(context, name, given)
    if route.params == "PaymentIntentCreateParams" and body["last_payment_error"]:
        return 402, json.dumps({"error": body["last_payment_error"] | {"payment_intent": body}})
    if route.params == "InvoicePayParams" and invoices.declined(given):
        error = {"type": "card_error", "code": "card_declined", "message": "Your card was declined."}
        return 402, json.dumps({"error": error})
    return 200, json.dumps(body)


def _token(header: str) -> str:
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "basic":
        return token
    try:
        return base64.b64decode(token, validate=True).decode().partition(":")[0]
    except ValueError:
        return ""


def _authenticate(token: str) -> None:
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
    if request.method == "POST" and request.url.path.startswith("/v2/"):
        return list(_flat(body))
    text = body.decode("utf-8", "replace") if request.method == "POST" else request.url.query
    try:
        return parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text), max_num_fields=MAX_FIELDS)
    except ValueError as problem:
        raise StripeRefusal(f"The parameters are not a form: {problem}") from None


def _flat(body: bytes) -> Iterator[tuple[str, str]]:
    """JSON, which v2 takes, as the fields of a form."""

    def walk(value: Any, path: str) -> Iterator[tuple[str, str]]:
        if isinstance(value, dict | list):
            for name, each in value.items() if isinstance(value, dict) else enumerate(value):
                yield from walk(each, f"{path}[{name}]" if path else str(name))
        else:
            yield path, value if isinstance(value, str) else json.dumps(value)

    try:
        given = json.loads(body or b"{}")
    except ValueError as problem:
        raise StripeRefusal(f"The body is no JSON: {problem}") from None
    if not isinstance(given, dict):
        raise StripeRefusal("The body is no JSON object.")
    yield from walk(given, "")


def _same_request(saved: Reply, address: str, params: str) -> None:
    if saved.route != address:
        message = (
            f"Keys for idempotent requests can only be used for the endpoint they were first used for ({saved.route})."
        )
        raise StripeRefusal(message, kind="idempotency_error")
    if saved.params != params:
        message = "Keys for idempotent requests can only be used with the same parameters they were first used with."
        raise StripeRefusal(message, kind="idempotency_error")


def _query(request: Request) -> str:
    return f"?{request.url.query}" if request.url.query else ""


def _base_url(request: Request) -> str:
    return str(request.base_url).rstrip("/")
