"""Which chat streams are asked for their usage, and what a refusal of that question looks like. No I/O.

OpenAI's chat streams tell their usage only where `stream_options.include_usage` asks for it. A server that does not
know the field refuses the whole request; the same request then goes out without it, and a model of a server that took
it that way is not asked for a while: at once where the refusal names the field, else when it happened repeatedly,
because one refusal that names nothing may have had any other reason.
"""

import re
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

TELLING: Final = frozenset({"groq", "mistral_ai", "openrouter"})
"""Providers whose streams tell their usage unasked: nothing is asked, and nothing has to be taken out again."""
TAKING: Final = ("api.openai.com", ".api.openai.com")
"""Hosts, and ends of them, that take the question always: what they refuse without naming it has another reason."""
REFUSALS: Final = (400, 422)
"""What servers answer to a field that they do not know."""
REPEATED: Final = 3
"""Refusals in a row that name nothing, after which a model is not asked."""
FORGOTTEN_AFTER_S: Final = 3600.0
REMEMBERED: Final = 1_000
_NAMED = re.compile(
    r"stream_?options|include_?usage|(unknown|unsupported|unrecogni[sz]ed|unexpected|extra|additional|invalid)\W+"
    r"(\w+\W+){0,2}(field|input|argument|parameter|propert|key|option)",
    re.IGNORECASE,
)


@dataclass(slots=True)
class _Refused:
    times: int
    at: float


class Asking:
    """What is known of the servers, by base URL and model. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._refused: OrderedDict[tuple[str, str], _Refused] = OrderedDict()
        self._takes: OrderedDict[tuple[str, str], None] = OrderedDict()

    def needed(self, provider: str, server: str, model: str) -> bool:
        """True where a stream is to be asked for its usage."""
        if provider in TELLING:
            return False
        known = self._refused.get((server, model)) if self._refused else None
        return known is None or known.times < REPEATED or time.monotonic() - known.at > FORGOTTEN_AFTER_S

    def refused(self, server: str, model: str, error: BaseException) -> None:
        """It refused with this error, and took the same request without the question."""
        times = REPEATED if _NAMED.search(_said(error)) else 1
        with self._lock:
            self._takes.pop((server, model), None)
            before = self._refused.pop((server, model), None)
            self._refused[server, model] = _Refused(times + (before.times if before else 0), time.monotonic())
            if len(self._refused) > REMEMBERED:
                self._refused.popitem(last=False)

    def taken(self, server: str, model: str) -> None:
        """It took the question: what it refuses without naming the field has another reason."""
        if (server, model) in self._takes:
            return
        with self._lock:
            self._refused.pop((server, model), None)
            self._takes[server, model] = None
            if len(self._takes) > REMEMBERED:
                self._takes.popitem(last=False)

    def may_refuse(self, server: str, model: str, error: BaseException) -> bool:
        """True where this error may refuse the question, so that the request goes out once more without it."""
        if getattr(error, "status_code", None) not in REFUSALS:
            return False
        if _NAMED.search(_said(error)) is not None:
            return True
        body = getattr(error, "body", None)
        names_another = isinstance(body, dict) and isinstance(body.get("param"), str) and bool(body["param"])
        host = urlsplit(server).hostname or ""
        takes = (server, model) in self._takes or host == TAKING[0] or host.endswith(TAKING[1])
        return not names_another and not takes


def _said(error: BaseException) -> str:
    """What the server said, as far as the error has it."""
    return f"{error} {getattr(error, 'body', '')} {getattr(error, 'text', '')}"


ASKING: Final = Asking()
"""The knowledge of this process."""
