"""OTLP over HTTP, the allowance and the collector's own health, as one ASGI application."""

import json
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from google.protobuf.json_format import MessageToJson
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse

from meterhouse_collector.allowance import Allowances
from meterhouse_collector.encodings import gunzip, json_to_protobuf
from meterhouse_collector.intake import REQUEST_BYTES, Intake
from meterhouse_collector.refusals import (
    MALFORMED,
    METHOD,
    NOT_FOUND,
    TOO_LARGE,
    UNAUTHENTICATED,
    UNSUPPORTED,
    Refused,
)

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Response = tuple[int, str, bytes]

PROTOBUF: Final = "application/x-protobuf"
JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"
_ACCEPTED: Final = {PROTOBUF: ExportMetricsServiceResponse().SerializeToString(), JSON: b"{}"}
_ALLOWANCE_BYTES: Final = 16 * 2**10


class HttpDoor:
    """The application; `health` gives (ready, own metrics as Prometheus text)."""

    def __init__(self, intake: Intake, allowances: Allowances, health: Callable[[], tuple[bool, str]]) -> None:
        self._intake, self._allowances, self._health = intake, allowances, health
        self._routes: dict[str, tuple[str, Callable[[Scope, Receive], Coroutine[Any, Any, Response]]]] = {
            "/v1/metrics": ("POST", self._metrics),
            "/v1/allowance": ("POST", self._allowance),
            "/healthz": ("GET", self._healthz),
            "/readyz": ("GET", self._readyz),
            "/metrics": ("GET", self._own_metrics),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request (ASGI 3, http only: the server runs without lifespan)."""
        try:
            status, media_type, body = await self._answer(scope, receive)
            headers = [(b"content-type", media_type.encode())]
        except Refused as refused:
            status, media_type, body = refused.kind.http_status, PROBLEM, _problem(refused)
            headers = [(b"content-type", media_type.encode())]
            if refused.kind.retry:
                headers.append((b"retry-after", b"1"))
            if refused.kind is UNAUTHENTICATED:
                headers.append((b"www-authenticate", b"Bearer"))
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Scope, receive: Receive) -> Response:
        route = self._routes.get(scope["path"])
        if route is None:
            raise Refused(NOT_FOUND, "metrics go to POST /v1/metrics; traces and logs are not taken")
        method, handler = route
        if scope["method"] != method:
            raise Refused(METHOD, f"{scope['path']} takes {method}")
        return await handler(scope, receive)

    async def _metrics(self, scope: Scope, receive: Receive) -> Response:
        headers = _headers(scope)
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        try:
            credential = await self._intake.authenticate(headers.get("authorization"))
            body = await _body(headers, receive, REQUEST_BYTES)
            if media_type not in _ACCEPTED:
                raise Refused(UNSUPPORTED, f"Content-Type must be {PROTOBUF} or {JSON}, not {media_type!r}")
            await self._intake.accept(credential, json_to_protobuf(body) if media_type == JSON else body)
        except Refused as refused:
            self._intake.count(refused)
            if refused.kind is not MALFORMED:
                raise
            return 400, media_type, _status(refused, media_type)
        self._intake.count(None)
        return 200, media_type, _ACCEPTED[media_type]

    async def _allowance(self, scope: Scope, receive: Receive) -> Response:
        headers = _headers(scope)
        credential = await self._intake.authenticate(headers.get("authorization"))
        reply = await self._allowances.answer(credential, await _body(headers, receive, _ALLOWANCE_BYTES))
        return 200, JSON, json.dumps(reply).encode()

    async def _healthz(self, _scope: Scope, _receive: Receive) -> Response:
        return 200, JSON, b'{"status": "ok"}'

    async def _readyz(self, _scope: Scope, _receive: Receive) -> Response:
        ready, _ = self._health()
        return (200, JSON, b'{"status": "ready"}') if ready else (503, JSON, b'{"status": "not ready"}')

    async def _own_metrics(self, _scope: Scope, _receive: Receive) -> Response:
        return 200, "text/plain; version=0.0.4", self._health()[1].encode()


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


async def _body(headers: dict[str, str], receive: Receive, limit_bytes: int) -> bytes:
    """The request's body, decompressed."""
    too_large = Refused(TOO_LARGE, f"a request has at most {limit_bytes} bytes, decompressed: send smaller batches")
    if int(headers.get("content-length") or "0") > limit_bytes:
        raise too_large
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(MALFORMED, "the connection ended before the request did")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit_bytes:
            raise too_large
        more = message.get("more_body", False)
    body = b"".join(parts)
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding == "gzip":
        return gunzip(body, limit_bytes)
    if encoding != "identity":
        raise Refused(UNSUPPORTED, f"Content-Encoding must be gzip or absent, not {encoding!r}")
    return body


def _status(refused: Refused, media_type: str) -> bytes:
    # OTLP/HTTP: the body of a 400 is a google.rpc.Status in the request's encoding.
    status = Status(code=refused.kind.grpc_status, message=str(refused))
    return MessageToJson(status).encode() if media_type == JSON else status.SerializeToString()


def _problem(refused: Refused) -> bytes:
    # RFC 9457.
    kind = refused.kind
    return json.dumps(
        {"title": kind.title, "status": kind.http_status, "detail": refused.detail, "code": kind.code}
    ).encode()
