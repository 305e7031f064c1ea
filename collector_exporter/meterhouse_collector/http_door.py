"""OTLP over HTTP, the allowance and the collector's own health, as one ASGI application."""

import json
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from google.protobuf.json_format import MessageToJson
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]

from meterhouse_collector.allowance import Allowances
from meterhouse_collector.encodings import gunzip, json_to_protobuf
from meterhouse_collector.extents import REQUEST_BYTES
from meterhouse_collector.intake import Intake, Room
from meterhouse_collector.refusals import (
    MALFORMED,
    METHOD,
    NOT_FOUND,
    TOO_LARGE,
    UNAUTHENTICATED,
    UNSUPPORTED,
    Refused,
)
from meterhouse_collector.signals import ADDRESSES, LOGS_PATH, METRICS, NO_LOGS, TRACES, Signal

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Response = tuple[int, str, bytes]

PROTOBUF: Final = "application/x-protobuf"
JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"
_ACCEPTED: Final = {PROTOBUF: b"", JSON: b"{}"}
_ALLOWANCE_BYTES: Final = 16 * 2**10


@dataclass(frozen=True, slots=True)
class Health:
    """`accepting`: requests are taken; `trouble`: what keeps them from the warehouse; `metrics()`: Prometheus text."""

    accepting: bool
    trouble: str | None
    metrics: Callable[[], str]


class HttpDoor:
    """The application; `health` says how the collector is."""

    def __init__(self, intake: Intake, allowances: Allowances, health: Callable[[], Health]) -> None:
        self._intake, self._allowances, self._health = intake, allowances, health
        self._routes: dict[str, tuple[str, Callable[[Scope, Receive], Coroutine[Any, Any, Response]]]] = {
            METRICS.path: ("POST", partial(self._export, METRICS)),
            TRACES.path: ("POST", partial(self._export, TRACES)),
            "/v1/allowance": ("POST", self._allowance),
            "/healthz": ("GET", self._healthz),
            "/readyz": ("GET", self._readyz),
            "/metrics": ("GET", self._own_metrics),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request (ASGI 3, http only: the server runs without lifespan)."""
        incoming = _Incoming(receive)
        try:
            status, media_type, body = await self._answer(scope, incoming.receive)
            headers = [(b"content-type", media_type.encode())]
        except Refused as refused:
            status, media_type, body = refused.kind.http_status, PROBLEM, _problem(refused)
            headers = [(b"content-type", media_type.encode())]
            if refused.kind.retry:
                headers.append((b"retry-after", b"1"))
            if refused.kind is UNAUTHENTICATED:
                headers.append((b"www-authenticate", b"Bearer"))
        await incoming.pass_over(scope)
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Scope, receive: Receive) -> Response:
        route = self._routes.get(scope["path"])
        if route is not None and scope["method"] == route[0]:
            return await route[1](scope, receive)
        with self._intake.refusals_counted():
            if route is None:
                raise Refused(NOT_FOUND, NO_LOGS if scope["path"] == LOGS_PATH else ADDRESSES)
            raise Refused(METHOD, f"{scope['path']} takes {route[0]}")

    async def _export(self, signal: Signal, scope: Scope, receive: Receive) -> Response:
        headers = _headers(scope)
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        try:
            with self._intake.counted() as outcome, self._intake.room() as room:
                credential = outcome.credential = await self._intake.authenticate(headers.get("authorization"))
                sent = await _sent(headers, receive, REQUEST_BYTES, room)
                outcome.bytes = len(sent)
                body = await self._decompressed(headers, sent, REQUEST_BYTES)
                room.take(len(body) - len(sent))
                if media_type not in _ACCEPTED:
                    raise Refused(UNSUPPORTED, f"Content-Type must be {PROTOBUF} or {JSON}, not {media_type!r}")
                if media_type == JSON:
                    body = await self._intake.decoded(len(body), partial(json_to_protobuf, body, signal))
                outcome.items = await self._intake.accept(credential, signal, body)
        except Refused as refused:
            if refused.kind is not MALFORMED:
                raise
            return 400, media_type, _status(refused, media_type)
        return 200, media_type, _ACCEPTED[media_type]

    async def _allowance(self, scope: Scope, receive: Receive) -> Response:
        headers = _headers(scope)
        with self._intake.refusals_counted() as outcome:
            credential = outcome.credential = await self._intake.authenticate(headers.get("authorization"))
            with self._intake.room() as room:
                sent = await _sent(headers, receive, _ALLOWANCE_BYTES, room)
            outcome.bytes = len(sent)
            body = await self._decompressed(headers, sent, _ALLOWANCE_BYTES)
            reply = await self._allowances.answer(credential, body)
        return 200, JSON, json.dumps(reply).encode()

    async def _decompressed(self, headers: dict[str, str], body: bytes, limit_bytes: int) -> bytes:
        """What a body says when it is decompressed."""
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding == "gzip":
            # What comes out is usually about ten times as much.
            return await self._intake.decoded(10 * len(body), lambda: gunzip(body, limit_bytes))
        if encoding != "identity":
            raise Refused(UNSUPPORTED, f"Content-Encoding must be gzip or absent, not {encoding!r}")
        return body

    async def _healthz(self, _scope: Scope, _receive: Receive) -> Response:
        """200 while the process answers: what takes requests goes on also when the warehouse is behind."""
        return 200, JSON, self._states("ok")

    async def _readyz(self, _scope: Scope, _receive: Receive) -> Response:
        """200 while requests are taken and reach the warehouse within a minute."""
        health = self._health()
        ready = health.accepting and health.trouble is None
        return (200, JSON, self._states("ready")) if ready else (503, JSON, self._states("not ready"))

    def _states(self, status: str) -> bytes:
        health = self._health()
        return json.dumps(
            {"status": status, "accepting": health.accepting, "projection": health.trouble or "ok"}
        ).encode()

    async def _own_metrics(self, _scope: Scope, _receive: Receive) -> Response:
        return 200, "text/plain; version=0.0.4", self._health().metrics().encode()


class _Incoming:
    """A request's body as it comes."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self._ended = receive, False

    async def receive(self) -> dict[str, Any]:
        """ASGI's receive."""
        message = await self._receive()
        self._ended = message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message

    async def pass_over(self, scope: Scope) -> None:
        """Take in what is left of a body and forget it: who still sends when the connection ends may miss the answer.

        Not of one that is far too large, whose sender has to look up, nor where the sender waits for a 100 Continue.
        """
        if self._ended:
            return
        headers = _headers(scope)
        stated = headers.get("content-length", "")
        if not stated.isdecimal() or int(stated) > 2 * REQUEST_BYTES or "expect" in headers:
            return
        while int(stated) and not self._ended:
            await self.receive()


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


async def _sent(headers: dict[str, str], receive: Receive, limit_bytes: int, room: Room) -> bytes:
    """The request's body as it was sent."""
    # None would be a valid request without usage: what is not said to be empty must not be taken for it.
    stated, chunked = headers.get("content-length"), "transfer-encoding" in headers
    if stated is None and not chunked:
        raise Refused(MALFORMED, "the request does not say how long its body is: send Content-Length")
    too_large = Refused(TOO_LARGE, f"a request has at most {limit_bytes} bytes, decompressed: send smaller batches")
    if int(stated or "0") > limit_bytes:
        raise too_large
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(MALFORMED, "the connection ended before the request did")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        room.take(len(parts[-1]))
        if size > limit_bytes:
            raise too_large
        more = message.get("more_body", False)
    if stated is not None and not chunked and size != int(stated):
        raise Refused(MALFORMED, f"the body has {size} bytes and not the {stated} of its Content-Length")
    return b"".join(parts)


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
