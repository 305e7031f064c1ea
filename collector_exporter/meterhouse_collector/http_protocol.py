"""uvicorn's HTTP/1.1 protocol with what a port that faces strangers needs: no Upgrade, and a limit on everything.

**Upgrade** may be ignored by a server (RFC 9110, section 7.8). `curl --http2` and Java's HttpClient offer h2c with
their first request. The parser takes what follows such a head for another protocol: uvicorn would answer the request as
if it had no body, and usage would be acknowledged unread.

**Limits**: connections, all and per client address; bytes and time of a head; time of a body, and what its chunks may
cost beside it; what is still read of a body whose request has been answered.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from meterhouse_collector.extents import REQUEST_BYTES
from meterhouse_collector.refusals import MALFORMED, TIMEOUT, TOO_LARGE, Kind

HEAD_BYTES: Final = 64 * 2**10
HEAD_S: Final = 10.0
"""From the connection, or the first byte of a later request, to the end of the head."""
BODY_S: Final = 60.0
"""From the end of the head to the end of the body."""
IDLE_S: Final = 75
"""A connection without a request is kept so long: exporters send every 5 to 60 seconds."""
CHUNK_COST: Final = 9
"""A body may come in chunks of one byte; more beside it than this many times its size is no body."""


class Connections:
    """Counts the open ones; `limit` in all, `per_address` of one client address; `what` they are called."""

    def __init__(self, limit: int, per_address: int, what: str = "connections") -> None:
        self.limit, self.per_address, self._what = limit, per_address, what
        self.open: Counter[str] = Counter()
        self.total = self.refused = 0

    def enter(self, address: str) -> str | None:
        """Why one more is not taken; None where it is, and then `leave` has to follow."""
        if self.total >= self.limit:  # a number of its own: gRPC asks with each call, for thousands of addresses
            self.refused += 1
            return f"the collector has its {self.limit} {self._what}: come again in a second"
        if self.open[address] >= self.per_address:
            self.refused += 1
            return f"your address has its {self.per_address} {self._what}: use fewer"
        self.open[address] += 1
        self.total += 1
        return None

    def leave(self, address: str) -> None:
        """One has ended."""
        self.total -= 1
        self.open[address] -= 1
        if not self.open[address]:
            del self.open[address]


class PlainHttpProtocol(HttpToolsProtocol):
    """One connection; `limited` makes the class for a server."""

    slots: Connections
    turned_away: Callable[[Kind], None]
    head_s, body_s = HEAD_S, BODY_S

    @classmethod
    def limited(
        cls, slots: Connections, turned_away: Callable[[Kind], None] = lambda _kind: None, **seconds: float
    ) -> type["PlainHttpProtocol"]:
        """A class whose connections share the slots; `turned_away` is told of requests that no application sees."""
        own = {"slots": slots, "turned_away": staticmethod(turned_away), **seconds}
        return type("LimitedHttpProtocol", (cls,), own)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._address: str | None = None  # set while it holds a slot
        # One timer for all deadlines of a connection: a later one is only noted, or each request would make two timers.
        self._timer: asyncio.TimerHandle | None = None
        self._due: tuple[float, str] | None = None
        self._in_head, self._heard = True, False
        self._fed = self._body = self._discarded = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        address = self.client[0] if self.client else ""
        if why := self.slots.enter(address):
            self._end(HTTPStatus.SERVICE_UNAVAILABLE, why)
            return
        self._address = address
        self._within(self.head_s, "the request's head took")

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._disarm()
        if self._timer is not None:
            self._timer.cancel()
        if self._address is not None:
            self.slots.leave(self._address)
            self._address = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        if self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        self._heard = True
        self._fed += len(data)
        rest: memoryview | None = memoryview(data)
        try:
            while rest is not None:
                rest = self._feed(rest)
        except httptools.HttpParserError:
            self.logger.warning("Invalid HTTP request received.")
            self._tell(MALFORMED)
            self.send_400_response("Invalid HTTP request received.")
            return
        if self._in_head and self._fed > HEAD_BYTES:
            self._tell(TOO_LARGE)
            self._end(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"a head has at most {HEAD_BYTES} bytes")
        elif self._fed > HEAD_BYTES + CHUNK_COST * self._body:
            self._end(HTTPStatus.BAD_REQUEST, "what stands between the body's chunks is far larger than the body")
        elif self._discarded > REQUEST_BYTES:
            self.transport.close()  # it was answered long ago and goes on sending

    def _feed(self, data: memoryview) -> memoryview | None:
        """Parse; what is left to parse, when a head with an offer stood before it. Raises HttpParserError."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offered:
            method, version = self.parser.get_method(), self.parser.get_http_version().encode()
            if method == b"CONNECT":
                raise httptools.HttpParserError("this is no proxy") from None
            kept = [b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade"]
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
            self.parser.feed_data(b"%b %b HTTP/%b\r\n%b\r\n" % (method, self.url, version, b"".join(kept)))
            return data[offered.args[0] :]
        return None

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._in_head, self._fed, self._body = True, 0, 0
        self._within(self.head_s, "the request's head took")

    def on_headers_complete(self) -> None:
        """A head is whole."""
        if not self.parser.should_upgrade():
            self._in_head, self._fed = False, 0
            self._within(self.body_s, "the request's body took")
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Some of a body."""
        self._body += len(body)
        if self.cycle.response_complete:
            # Read on, unseen, or the client might never see its answer. Only so much of it.
            self._discarded += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is whole."""
        if not self.parser.should_upgrade():
            self._disarm()
            super().on_message_complete()

    def _within(self, seconds: float, what: str) -> None:
        due = self.loop.time() + seconds
        self._due = due, f"{what} longer than {seconds:g} s"
        if self._timer is None or self._timer.when() > due:
            self._set_timer(due)

    def _set_timer(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_at(due, self._look)

    def _look(self) -> None:
        """The timer has run out: maybe too late, maybe for a deadline that was met."""
        self._timer = None
        if self._due is None:
            return
        due, why = self._due
        if due > self.loop.time():
            self._set_timer(due)
            return
        self._tell(TIMEOUT)
        self._end(HTTPStatus.REQUEST_TIMEOUT, why)

    def _tell(self, kind: Kind) -> None:
        """Say that a request that has begun is refused, where the application, which says so itself, never sees it."""
        if self._in_head and self._heard:
            self.turned_away(kind)

    def _disarm(self) -> None:
        self._due = None

    def _end(self, status: HTTPStatus, why: str) -> None:
        """Answer where no answer has begun, and close."""
        self._disarm()
        of_earlier = self.cycle is not None and self._in_head and self.cycle.response_complete
        answering = self.cycle is not None and self.cycle.response_started and not of_earlier
        if not self.transport.is_closing() and not answering:
            self.transport.write(
                f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: text/plain; charset=utf-8\r\n"
                f"content-length: {len(why)}\r\nretry-after: 1\r\nconnection: close\r\n\r\n{why}".encode()
            )
        self.transport.close()
