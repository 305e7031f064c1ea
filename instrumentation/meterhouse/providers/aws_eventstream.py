"""The event stream of AWS, as far as metering needs it: the JSON of each event of a Bedrock answer. Pure.

https://docs.aws.amazon.com/AmazonS3/latest/API/RESTSelectObjectAppendix.html describes the frame: length of all, length
of the headers, CRC of the two, headers, payload, CRC. The payload is JSON, that of a Bedrock chunk {"bytes": base64 of
the model's JSON}.
"""

import base64
import binascii
import json
from collections.abc import Callable

CONTENT_TYPE = "application/vnd.amazon.eventstream"
LONGEST_FRAME_BYTES = 24 * 1024 * 1024
"""The format's limit on a frame; what claims to be longer is no frame, and nothing after it is read."""
_PRELUDE_BYTES = 12
_CRC_BYTES = 4
FAILURE = b'{"type":"error"}'
"""What `take` gets for a frame that says the call failed; the host's SDK raises what it says."""


class Frames:
    """Calls `take(event, data)` with the JSON of each event of the bytes it is fed, in pieces of any size.

    `event` is the type of the event. Of a `chunk` the data is the model's own JSON, without an event; of an event that
    says the call failed it is `FAILURE`.
    """

    def __init__(self, take: Callable[[str, bytes], None]) -> None:
        self._take = take
        self._rest = bytearray()
        self._lost = False

    def feed(self, chunk: bytes) -> None:
        if self._lost:
            return
        self._rest += chunk
        while len(self._rest) >= _PRELUDE_BYTES:
            length = int.from_bytes(self._rest[:4])
            headers = int.from_bytes(self._rest[4:8])
            if not _is_frame(self._rest[:_PRELUDE_BYTES], length, headers):
                self._lost = True
                self._rest.clear()
                return
            if len(self._rest) < length:
                return
            body = bytes(self._rest[_PRELUDE_BYTES : length - _CRC_BYTES])
            del self._rest[:length]
            self._event(body[:headers], body[headers:])

    def _event(self, headers: bytes, payload: bytes) -> None:
        # Names and values of headers are plain bytes between their lengths; these two values say all that is needed.
        if b"exception" in headers or b":error-code" in headers:
            self._take("error", FAILURE)
            return
        event = _event_type(headers)
        document = json.loads(payload) if event in ("", "chunk") and payload else None
        inner = document.get("bytes") if isinstance(document, dict) else None
        if isinstance(inner, str):
            self._take("", base64.b64decode(inner))
        elif payload:
            self._take(event, payload)


def _is_frame(prelude: bytes | bytearray, length: int, headers: int) -> bool:
    fits = _PRELUDE_BYTES + headers + _CRC_BYTES <= length <= LONGEST_FRAME_BYTES
    return fits and binascii.crc32(prelude[:8]) == int.from_bytes(prelude[8:])


def _event_type(headers: bytes) -> str:
    """The value of `:event-type`: after the name a byte for its type, two for its length."""
    _, name, rest = headers.partition(b":event-type")
    return rest[3 : 3 + int.from_bytes(rest[1:3])].decode(errors="replace") if name else ""
