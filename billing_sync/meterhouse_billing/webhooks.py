"""The webhook endpoint: verifies, stores, answers; a worker thread does the work afterwards."""

import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from stripe import SignatureVerificationError, WebhookSignature

from meterhouse_billing import news
from meterhouse_billing.gateway import BillingError

MAX_BODY: Final = 1 << 20
TOLERANCE_S: Final = 300
PATH: Final = "/webhooks/stripe"
LOOK_AGAIN_S: Final = 5.0

_log = logging.getLogger(__name__)


class Refused(ValueError):
    """A delivery that does not come from Stripe, or not now."""


def verify(payload: bytes, header: str | None, secret: str, now_s: float) -> str:
    """The payload as text, when its signature is right and not older or newer than five minutes. Raises Refused.

    https://docs.stripe.com/webhooks/signature. The SDK's check lets times in the future pass, so that is checked here.
    """
    try:
        text = payload.decode()
        (header or "").encode("ascii")  # or the SDK's comparison raises TypeError
        WebhookSignature.verify_header(text, header, secret)
    except (UnicodeError, SignatureVerificationError) as problem:
        raise Refused(
            f"the signature does not fit ({problem}): is STRIPE_WEBHOOK_SECRET here what the sender signs with?"
        ) from None
    signed_at = next(int(part[2:]) for part in (header or "").split(",") if part.startswith("t="))
    if abs(signed_at - now_s) > TOLERANCE_S:
        raise Refused(f"signed {signed_at - now_s:+.0f} s from now, more than {TOLERANCE_S} s away")
    return text


def application(
    engine: Engine, namespace: str, secret: str, work: Callable[[], None], clock: Callable[[], float] = time.time
) -> Starlette:
    """POST /webhooks/stripe and GET /healthz; `work` runs in a thread when something came, and every few seconds."""
    worker = Worker(work)

    async def webhook(request: Request) -> Response:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY:
                return JSONResponse({"error": f"an event has at most {MAX_BODY} bytes"}, 413)
        try:
            text = verify(body, request.headers.get("stripe-signature"), secret, clock())
            new = await run_in_threadpool(news.receive, engine, namespace, text, datetime.now(UTC))
        except ValueError as refused:
            # One line, whatever the sender wrote: an operator whose secret is another one has to find it here.
            _log.warning("refused a delivery: %s", " ".join(str(refused).split()))
            return JSONResponse({"error": str(refused)}, 400)
        worker.wake()
        return JSONResponse({"received": True, "new": new})

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        worker.start()
        yield
        await run_in_threadpool(worker.stop)

    return Starlette(
        routes=[
            Route(PATH, webhook, methods=["POST"]),
            Route("/healthz", lambda request: JSONResponse({"status": "ok"})),
        ],
        lifespan=lifespan,
    )


class Worker:
    """A thread that calls `work` when woken and every LOOK_AGAIN_S; what fails is logged and tried again then."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._wake, self._stopping = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="webhook-inbox", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        self._wake.set()

    def stop(self) -> None:
        self._stopping = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping:
            self._wake.clear()
            try:
                self._work()
            except (BillingError, OperationalError) as problem:
                _log.warning("the inbox waits: %s", problem)
            self._wake.wait(LOOK_AGAIN_S)
