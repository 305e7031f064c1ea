"""Server-sent events, as far as metering needs them: the data of each event, and leaving one event out. Pure.

https://html.spec.whatwg.org/multipage/server-sent-events.html; the providers send one `data:` line per event.
"""

from collections.abc import Callable

LONGEST_LINE_BYTES = 16 * 1024 * 1024
"""A line that does not end within this is not metered further, and its memory is given back."""


class Lines:
    """Calls `take(event, data)` for each data line of the bytes it is fed, in pieces of any size."""

    def __init__(self, take: Callable[[str, bytes], None]) -> None:
        self._take = take
        self._rest = b""
        self._event = ""

    def feed(self, chunk: bytes) -> None:
        lines = (self._rest + chunk).split(b"\n")
        self._rest = lines.pop() if len(lines[-1]) <= LONGEST_LINE_BYTES else b""
        for line in lines:
            if line.startswith(b"data:"):
                self._take(self._event, line[5:].strip())
            elif line.startswith(b"event:"):
                self._event = line[6:].strip().decode(errors="replace")
            elif not line.strip():
                self._event = ""


class Withheld:
    """Passes bytes on in whole events and leaves out those whose data `ours` claims."""

    def __init__(self, ours: Callable[[bytes], bool]) -> None:
        self._ours = ours
        self._lines: list[bytes] = []
        self._rest = b""

    def send(self, chunk: bytes) -> bytes:
        """What may be passed on now: up to the last empty line, which ends an event."""
        lines = (self._rest + chunk).split(b"\n")
        self._rest = lines.pop()
        shown = []
        for line in lines:
            self._lines.append(line + b"\n")
            if not line.strip():
                shown.append(self._event())
        return b"".join(shown)

    def rest(self) -> bytes:
        """The end of a stream that stops within an event."""
        self._lines.append(self._rest)
        self._rest = b""
        return self._event()

    def _event(self) -> bytes:
        lines, self._lines = self._lines, []
        ours = any(line.startswith(b"data:") and self._ours(line[5:].strip()) for line in lines)
        return b"" if ours else b"".join(lines)
