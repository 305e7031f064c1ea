"""A local model provider to try and to test with: OpenAI's and Anthropic's APIs over HTTP, with made-up answers.

It answers chat completions, responses, embeddings and messages, whole and streaming, with tool calls, cached and
reasoning tokens; now and then it refuses with a 429 or a 500 so that SDKs retry; and it logs every attempt it served
(`provider_log`) before the usage leaves. What it answers depends on the seed and the order of the requests alone.

    GET /                   what this is and which endpoints it has
    GET /healthz            200 when it answers
    GET /sandbox/streams    the streams that are under way: [{"request_id", "model", "words_sent", "words"}]
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from meterhouse_sandbox import provider_anthropic as anthropic
from meterhouse_sandbox import provider_openai as openai
from meterhouse_sandbox import serving
from meterhouse_sandbox.provider_answer import Answer, Asked, BadRequest, Units, answer, fault
from meterhouse_sandbox.provider_log import CUT_OFF, REFUSED, SERVED, Attempt, ServedLog
from meterhouse_sandbox.provider_wire import Wire

BODY_MAX_BYTES = 4 * 1024 * 1024
_RETRY_AFTER_S = 0.2
_SLOW_PAUSE_S = 0.16

WIRES = (
    Wire(
        endpoint="/v1/chat/completions",
        writes_cache=False,
        response_id=lambda answer: f"chatcmpl-{answer.response_id}",
        asked=openai.chat_asked,
        units=lambda units: units,
        usage=openai.chat_usage,
        body=lambda answer, _: openai.chat_body(answer),
        frames=openai.chat_frames,
        error=openai.error,
    ),
    Wire(
        endpoint="/v1/responses",
        writes_cache=False,
        response_id=lambda answer: f"resp_{answer.response_id}",
        asked=openai.responses_asked,
        units=lambda units: units,
        usage=openai.responses_usage,
        body=lambda answer, _: openai.responses_body(answer),
        frames=openai.responses_frames,
        error=openai.error,
    ),
    Wire(
        endpoint="/v1/embeddings",
        writes_cache=False,
        response_id=lambda answer: "",  # the API gives none
        asked=openai.embeddings_asked,
        units=openai.embeddings_units,
        usage=openai.embeddings_usage,
        body=openai.embeddings_body,
        frames=lambda answer, asked: iter(()),
        error=openai.error,
    ),
    Wire(
        endpoint="/v1/messages",
        writes_cache=True,
        response_id=lambda answer: f"msg_{answer.response_id}",
        asked=anthropic.messages_asked,
        units=lambda units: units,
        usage=anthropic.messages_usage,
        body=lambda answer, _: anthropic.messages_body(answer),
        frames=anthropic.messages_frames,
        error=anthropic.error,
    ),
)


def serve(host: str, port: int, log: Path, *, seed: int = 1, fault_rate: float = 0.05, pause_s: float = 0.01) -> None:
    """Serve until SIGTERM or SIGINT; what was under way is cut off and logged as such.

    `log` is appended to. `fault_rate` is the share of attempts that are refused, 0 to 1; a second retry never is.
    `pause_s` lies between two words of a stream. Raises ValueError for a rate outside 0..1; ends the process with
    code 1 when the port is taken.
    """
    app = application(log, seed=seed, fault_rate=fault_rate, pause_s=pause_s)
    url = f"http://{host}:{port}"
    faults = (
        f"As real ones do, it refuses {fault_rate * 100:g} % of the attempts with 429 or 500 (--fault-rate 0: none)."
        if fault_rate
        else "It refuses no attempt (--fault-rate)."
    )
    told = [
        f"A local model provider listens on {url}. For the OpenAI and the Anthropic SDK:",
        f"  export OPENAI_BASE_URL={url}/v1 OPENAI_API_KEY=anything",
        f"  export ANTHROPIC_BASE_URL={url} ANTHROPIC_API_KEY=anything",
        f"{faults} Every attempt is logged to {log}.",
    ]
    serving.run(app, host, port, "\n".join(told))


def application(log: Path, *, seed: int = 1, fault_rate: float = 0.05, pause_s: float = 0.01) -> Starlette:
    """The provider as an ASGI application; see `serve`."""
    if not 0 <= fault_rate <= 1:
        raise ValueError(f"fault_rate is a share between 0 and 1, not {fault_rate}")
    provider = _Provider(ServedLog(log), seed, fault_rate, pause_s)
    return Starlette(
        routes=[
            Route("/", provider.index),
            *(Route(wire.endpoint, provider.endpoint(wire), methods=["POST"]) for wire in WIRES),
            Route("/sandbox/streams", provider.streams),
            Route("/healthz", lambda request: JSONResponse({"status": "ok"})),
        ]
    )


@dataclass
class _Exchange:
    """One attempt under way: what was asked and how its line in the log starts."""

    number: int
    wire: Wire
    request_id: str
    asked: Asked
    answer: Answer
    words_sent: int = 0
    settled: bool = False


@dataclass
class _Provider:
    log: ServedLog
    seed: int
    fault_rate: float
    pause_s: float
    attempts: int = 0
    under_way: dict[int, _Exchange] = field(default_factory=dict)

    def endpoint(self, wire: Wire) -> Any:
        async def handle(request: Request) -> Response:
            return await self._handle(wire, request)

        return handle

    async def index(self, _request: Request) -> Response:
        return JSONResponse(
            {
                "what": "Meterhouse's local model provider: made-up answers, real wire formats",
                "endpoints": [f"POST {wire.endpoint}" for wire in WIRES],
                "attempts": self.attempts,
                "fault_rate": self.fault_rate,
            }
        )

    async def streams(self, request: Request) -> Response:
        return JSONResponse(
            [
                {
                    "request_id": exchange.request_id,
                    "model": exchange.asked.model,
                    "words_sent": exchange.words_sent,
                    "words": len(exchange.answer.words),
                }
                for exchange in self.under_way.values()
            ]
        )

    async def _handle(self, wire: Wire, request: Request) -> Response:
        asked, status, why = None, 0, ""
        try:
            body = await _json_body(request)
            asked = wire.asked(body)
        except BadRequest as mistake:
            status, why = 400, str(mistake)
        except _TooLarge as mistake:
            status, why = 413, str(mistake)
        # From here to the log there is no await, so numbers follow the order in which requests were read.
        self.attempts += 1
        number = self.attempts
        if asked is not None:
            status, why = self._reason_to_refuse(request, number)
        if asked is None or status:
            return self._refuse(wire, request, number, asked, status, why)
        drawn = answer(
            asked,
            seed=self.seed,
            number=number,
            created_at=int(datetime.now(UTC).timestamp()),
            writes_cache=wire.writes_cache,
        )
        said = replace(drawn, units=wire.units(drawn.units))
        exchange = _Exchange(number, wire, _request_id(request), asked, said)
        headers = {"x-request-id": f"req_{said.response_id}", "request-id": f"req_{said.response_id}"}
        if asked.stream:
            return StreamingResponse(self._stream(exchange), media_type="text/event-stream", headers=headers)
        self._settle(exchange, SERVED, said.units)
        return JSONResponse(wire.body(said, body), headers=headers)

    async def _stream(self, exchange: _Exchange) -> AsyncIterator[bytes]:
        """The frames, with a pause after each word; a client that leaves early is logged with what it had caused."""
        said = exchange.answer
        self.under_way[exchange.number] = exchange
        pause_s = _SLOW_PAUSE_S if exchange.asked.slow else self.pause_s
        try:
            for frame in exchange.wire.frames(said, exchange.asked):
                if frame.settles:
                    self._settle(exchange, SERVED, said.units)
                yield frame.data
                if frame.word:
                    exchange.words_sent += 1
                    await asyncio.sleep(pause_s)
        finally:
            del self.under_way[exchange.number]
            if not exchange.settled:
                self._settle(exchange, CUT_OFF, said.units.cut_off(exchange.words_sent, len(said.words)))

    def _settle(self, exchange: _Exchange, outcome: str, units: Units) -> None:
        exchange.settled = True
        said, wire = exchange.answer, exchange.wire
        self.log.append(
            Attempt(
                number=exchange.number,
                logged_at=datetime.now(UTC),
                endpoint=wire.endpoint,
                status=200,
                outcome=outcome,
                stream=exchange.asked.stream,
                model=said.model,
                response_id=wire.response_id(said),
                request_id=exchange.request_id,
                end_user=exchange.asked.end_user,
                usage=wire.usage(units),
                units=units.by_meter(),
                tool_results=exchange.asked.handed_back,
            )
        )

    def _reason_to_refuse(self, request: Request, number: int) -> tuple[int, str]:
        """Status and message, or 0 where the request is served."""
        if not (request.headers.get("authorization") or request.headers.get("x-api-key")):
            return 401, "an API key is needed; any will do here"
        told = request.headers.get("x-stainless-retry-count", "0")
        retry = int(told) if told.isdecimal() else 0
        status = fault(seed=self.seed, number=number, rate=self.fault_rate, retry=retry)
        return (0, "") if status is None else (status, "the sandbox refuses this attempt; try again")

    def _refuse(
        self, wire: Wire, request: Request, number: int, asked: Asked | None, status: int, why: str
    ) -> Response:
        self.log.append(
            Attempt(
                number=number,
                logged_at=datetime.now(UTC),
                endpoint=wire.endpoint,
                status=status,
                outcome=REFUSED,
                stream=asked is not None and asked.stream,
                model=asked.model if asked else "",
                response_id="",
                request_id=_request_id(request),
                end_user=asked.end_user if asked else "",
                usage=None,
                units={},
                tool_results=asked.handed_back if asked else (),
            )
        )
        headers = {"retry-after": str(_RETRY_AFTER_S)} if status == 429 else {}
        return JSONResponse(wire.error(status, why), status_code=status, headers=headers)


class _TooLarge(Exception):
    """The request body is larger than BODY_MAX_BYTES."""


async def _json_body(request: Request) -> Mapping[str, Any]:
    data = bytearray()
    async with aclosing(request.stream()) as pieces:
        async for piece in pieces:
            data += piece
            if len(data) > BODY_MAX_BYTES:
                raise _TooLarge(f"the body is larger than {BODY_MAX_BYTES} bytes")
    try:
        body = json.loads(bytes(data))
    except (ValueError, RecursionError) as mistake:
        raise BadRequest(f"the body is not JSON that can be read: {mistake}") from mistake
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object")
    return body


def _request_id(request: Request) -> str:
    return request.headers.get("x-client-request-id", "")[:256]
