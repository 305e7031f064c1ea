"""Background responses of OpenAI: created by one call, answered by others (polls, streams that are resumed).

The call that creates one stays open until a response of its id is seen to have ended, whoever retrieves it. Its events
are named after the response and dated by the provider's clock, so that another process that retrieves the same response
tells the same events. https://platform.openai.com/docs/guides/background
"""

import atexit
import hashlib
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping

from meterhouse.call import Call
from meterhouse.events import Row
from meterhouse.metered import Request
from meterhouse.providers.streamed import Provider, Streamed
from meterhouse.vocabulary import LLM_REQUESTS

REMEMBERED = 10_000
"""Responses that are waited for, and responses that were counted; the oldest goes first, counted without tokens."""
_RESPONSE = re.compile(r"/responses/[^/]+(/cancel)?\Z")

# Without a lock, because the garbage collector may end a call at any time: each step is one operation of a dict.
_waiting: OrderedDict[str, "Created"] = OrderedDict()
_counted: OrderedDict[str, object] = OrderedDict()


class Created(Streamed):
    """A call whose answer may come with a later one."""

    def end(self, error: BaseException | None = None, *, exhausted: bool = False) -> None:
        response_id = self.answer.response_id
        if not self.answer.pending or response_id is None:
            super().end(error, exhausted=exhausted)
        elif not self.call.finished:
            _waiting[response_id] = self
            if len(_waiting) > REMEMBERED:
                _give_up(_waiting.popitem(last=False)[1])

    def _finish(self, status: str, rows: list[Row], known: Mapping[str, str]) -> None:
        if not self.answer.noted.get("background"):
            super()._finish(status, rows, known)
            return
        response_id = self.answer.response_id or ""
        _first_time(response_id)
        self.call.finish(status, rows, known, event_time_ns=self.answer.created_at_ns, name=_name(response_id))


class Retrieved(Streamed):
    """A request that may show the end of a background response; it is no call itself."""

    def end(self, error: BaseException | None = None, *, exhausted: bool = False) -> None:
        answer = self.answer
        ended = answer.noted.get("background") and not answer.pending and answer.noted.get("status")
        if self.call.finished or not ended or not answer.response_id:
            return
        created = _waiting.pop(answer.response_id, None)
        if created is not None:
            created.answer = answer
            created.end(exhausted=answer.complete)
        elif _first_time(answer.response_id):
            super().end(exhausted=answer.complete)

    def _finish(self, status: str, rows: list[Row], known: Mapping[str, str]) -> None:
        tokens = [row for row in rows if row.meter != LLM_REQUESTS]  # the request is told by whoever made it
        if tokens:
            self.call.finish(status, tokens, known, event_time_ns=self.answer.created_at_ns)


def follow(provider: Provider, describe: Callable[[], Request], method: str, path: str) -> Retrieved | None:
    """What listens to a request for a response that exists already; None for any other request."""
    found = _RESPONSE.search(path)
    if found is None or method.lower() != ("post" if found[1] else "get"):
        return None
    request = describe()
    response_id = path.removesuffix("/cancel").rpartition("/")[2]
    return Retrieved(provider, Call(_name(response_id), request.attributes(), intent=False), None)


def _name(response_id: str) -> str:
    return hashlib.sha256(f"response\0{response_id}".encode(errors="replace")).hexdigest()[:32]


def _first_time(response_id: str) -> bool:
    mark = object()
    first = _counted.setdefault(response_id, mark) is mark
    if len(_counted) > REMEMBERED:
        _counted.popitem(last=False)
    return first


def _give_up(created: Created) -> None:
    """Nobody retrieved it here: the request counts, its usage is unknown."""
    created.answer.pending = False
    created.end()


def _at_exit() -> None:
    while _waiting:
        _give_up(_waiting.popitem()[1])


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_waiting.clear)  # they are the parent's calls
