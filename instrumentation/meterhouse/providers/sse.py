"""Server-sent events, as far as metering needs them: the data of each event, and leaving some of it out. Pure.

https://html.spec.whatwg.org/multipage/server-sent-events.html: lines end in LF, CRLF or CR, an empty one ends an event.
"""

from collections.abc import Callable, Iterator

LONGEST_LINE_BYTES = 64 * 1024 * 1024
"""A line, or an event, that does not end within this is not metered, and its memory is given back."""
_ENDS = (b"\n\n", b"\n\r\n", b"\r\r")
_LONGEST_END = 3


class Lines:
    """Calls `take(event, data)` for the events of the bytes that it is fed, in pieces of any size.

    Whole runs of events that `telling` says no to are passed over without a look at the single ones.
    """

    def __init__(self, take: Callable[[str, bytes], None], telling: Callable[[bytes], bool] | None = None) -> None:
        self._take = take
        self._telling = telling
        self._whole = _Whole()

    def feed(self, chunk: bytes) -> None:
        block = self._whole.ended_by(chunk)
        if not block or not (self._telling is None or self._telling(block)):
            if self._whole.size > LONGEST_LINE_BYTES:
                self._whole.rest()
            return
        for lines in _events(block):
            name, data = "", []
            for line in lines:
                if line.startswith(b"data:"):
                    data.append(line[5:].strip())
                elif line.startswith(b"event:"):
                    name = line[6:].strip().decode(errors="replace")
            if data:
                self._take(name, b"\n".join(data))


class Withheld:
    """Passes bytes on in whole events, each as `unasked` gives it back."""

    def __init__(self, unasked: Callable[[bytes], bytes]) -> None:
        self._unasked = unasked
        self._whole = _Whole()

    def send(self, chunk: bytes) -> bytes:
        """What may be passed on now: up to the last end of an event."""
        block = self._whole.ended_by(chunk)
        if not block and self._whole.size > LONGEST_LINE_BYTES:
            return self._whole.rest()
        return b"".join(self._unasked(b"".join(lines)) for lines in _events(block))

    def rest(self) -> bytes:
        """The end of a stream that stops within an event."""
        return self._unasked(self._whole.rest())


class _Whole:
    """Joins pieces to whole events; what waits is kept in pieces, because an event may be megabytes of an image."""

    def __init__(self) -> None:
        self.size = 0
        self._pieces: list[bytes] = []
        self._tail = b""

    def ended_by(self, chunk: bytes) -> bytes:
        """All that waits up to the last end of an event in the chunk."""
        if not self._pieces and chunk.endswith(_ENDS):
            return chunk
        seen = self._tail + chunk
        end = max(at + len(ending) if (at := seen.rfind(ending)) >= 0 else 0 for ending in _ENDS) - len(self._tail)
        self._pieces.append(chunk if end <= 0 else chunk[:end])
        if end <= 0:
            self._tail = seen[-_LONGEST_END:]
            self.size += len(chunk)
            return b""
        block = self.rest()
        if end < len(chunk):
            self._pieces, self.size, self._tail = [chunk[end:]], len(chunk) - end, chunk[end:][-_LONGEST_END:]
        return block

    def rest(self) -> bytes:
        """All that waits."""
        block = b"".join(self._pieces)
        self._pieces, self.size, self._tail = [], 0, b""
        return block


def _events(block: bytes) -> Iterator[list[bytes]]:
    """The lines of each event, with their ends."""
    lines = []
    for line in block.splitlines(keepends=True):
        lines.append(line)
        if line in (b"\n", b"\r\n", b"\r"):
            yield lines
            lines = []
    if lines:
        yield lines
