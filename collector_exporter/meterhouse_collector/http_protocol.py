"""uvicorn's HTTP/1.1 protocol without Upgrade, which a server may ignore (RFC 9110, section 7.8).

`curl --http2` and Java's HttpClient offer h2c with their first request. The parser takes what follows such a head for
another protocol: uvicorn would answer the request as if it had no body, and usage would be acknowledged unread.
"""

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class PlainHttpProtocol(HttpToolsProtocol):
    """Serves a request that offers an upgrade like one that does not: its head is parsed again without the offer."""

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        self._unset_keepalive_if_required()
        rest: memoryview | None = memoryview(data)
        try:
            while rest is not None:
                rest = self._feed(rest)
        except httptools.HttpParserError:
            self.logger.warning("Invalid HTTP request received.")
            self.send_400_response("Invalid HTTP request received.")

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

    def on_headers_complete(self) -> None:
        """A head is whole."""
        if not self.parser.should_upgrade():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """A request is whole."""
        if not self.parser.should_upgrade():
            super().on_message_complete()
