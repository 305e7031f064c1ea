"""What models asked for, layers executed and hosts handed back: so that whoever tells of a tool second counts nothing.

Kept in this process only, the oldest forgotten first. Safe for threads; no I/O.
"""

import itertools
import re
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import TypeVar

REMEMBERED = 100_000
"""Ids and names kept of each kind."""
OUTSTANDING = 100
"""Calls of one tool for one customer that may wait for their execution at once."""
_RANDOM = re.compile(r"(?=.*\d)[A-Za-z0-9_-]{9,}\Z|(?=.*[a-z])(?=.*[A-Z])[A-Za-z]{9}\Z")
"""Mistral draws nine letters and digits, which are all letters at times; a tool's name passes for nobody's id."""
_NUMBERED = re.compile(r"[A-Za-z]+([_-][A-Za-z]+)*[_-]\d{1,6}\Z")
_BETWEEN_WORDS = re.compile(r"[^a-z0-9]+")

K = TypeVar("K")
V = TypeVar("V")


def unique(tool_call_id: str) -> bool:
    """True for ids drawn at random; some servers only number an answer's calls (`f.search:0`, `tool_call_1`)."""
    return _RANDOM.match(tool_call_id) is not None and _NUMBERED.match(tool_call_id) is None


def shown_as(name: str, shown: str) -> bool:
    """True where `shown` may be this tool under a prefix, or just its name."""
    return _words(name) in _names_behind(shown)


class ToolMemory:
    """One process's memory. `payer`: whom the work is for; the tools of one customer never hide those of another.

    Layers that know no tool call id are matched with calls of that name by guess: with the newest that waits. Where
    several agents of one customer work at once the guess may be another agent's call. It is corrected when the result
    of a call comes that nothing was guessed for: of the executions since it was asked for whose results are yet to
    come, the oldest is its own, and the call that was guessed waits again.
    """

    def __init__(self) -> None:
        self.after_fork()
        self._told: OrderedDict[str, bool] = OrderedDict()
        self._names: OrderedDict[str, str] = OrderedDict()
        self._asked: OrderedDict[tuple[str, str], deque[_Asked]] = OrderedDict()
        self._credits: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._ticks = itertools.count(1)

    def after_fork(self) -> None:
        """A lock of its own for this process: a thread of the parent's may have held the old one."""
        # Re-entrant: the garbage collector may end a model call, which is learnt from, while this thread is in here.
        self._lock = threading.RLock()

    def first_time(self, tool_call_id: str) -> bool:
        """True when this tool call is told of for the first time."""
        with self._lock:
            first = tool_call_id not in self._told
            _remember(self._told, tool_call_id, True)
            return first

    def first_result(self, payer: str, name: str, tool_call_id: str) -> bool:
        """`first_time` for the result of a call with a unique id: from here on no other call's execution is its own."""
        with self._lock:
            asked = self._called(payer, name, tool_call_id)
            if asked is not None and asked.ran:
                asked.returned = True
            return self.first_time(tool_call_id)

    def learn(self, payer: str, names: Mapping[str, str]) -> None:
        """A model asked for these tools: tool call id -> the name that it was shown."""
        with self._lock:
            for tool_call_id, name in names.items():
                _remember(self._names, tool_call_id, name)
                asked = _Asked(tool_call_id, _words(name), next(self._ticks))
                for words in _names_behind(name):
                    waiting = self._asked.get((payer, words)) or deque(maxlen=OUTSTANDING)
                    waiting.append(asked)
                    _remember(self._asked, (payer, words), waiting)

    def name(self, tool_call_id: str) -> str:
        """The tool that was asked for under this id; empty where it is not known."""
        with self._lock:
            return self._names.get(tool_call_id, "")

    def executed(self, payer: str, name: str, *, credited: bool = True) -> Callable[[], None]:
        """A layer that does not know the tool call id executes this tool; returns what takes that back.

        It is the newest call asked for under this name, or under one that ends in it (hosts may show MCP tools under a
        prefix); where none is known, the next result that is handed back under its name is its, unless not `credited`.
        """
        with self._lock:
            words = _words(name)
            asked = self._waiting(payer, words)
            if asked is not None:
                asked.ran, asked.ran_as = next(self._ticks), words
                words = asked.words
                if unique(asked.tool_call_id):
                    _remember(self._told, asked.tool_call_id, True)
                if asked.tool_call_id:
                    asked.returned = not credited
                    return partial(self._not_executed, asked, None)
            credit = (payer, words) if credited else None
            if credit is not None:
                _remember(self._credits, credit, self._credits.get(credit, 0) + 1)
            return partial(self._not_executed, asked, credit)

    def _not_executed(self, asked: "_Asked | None", credit: tuple[str, str] | None) -> None:
        with self._lock:
            if credit is not None:
                self._claim(credit)
            if asked is not None:
                self._wait_again(asked)

    def claim(self, payer: str, name: str, tool_call_id: str = "", *, prefixed: bool = False) -> bool:
        """True when an execution was counted whose result this may be, once for each; or when it came before.

        `prefixed`: under this name or a part of it. Not for calls known to have been asked for: their executions were
        recognised when they happened, and a shorter name that is left over is another tool's.
        """
        with self._lock:
            if not prefixed:
                asked = self._called(payer, name, tool_call_id) if tool_call_id else None
                return (asked is not None and self._claim_of(payer, asked)) or self._claim((payer, _words(name)))
            if _words(self._names.get(tool_call_id, "")) == _words(name):
                return False
            return any(self._claim((payer, words)) for words in _names_behind(name))

    def _claim_of(self, payer: str, asked: "_Asked") -> bool:
        """`claim` for the result of a call that a model is known to have asked for."""
        if asked.returned or asked.ran:  # a model asks once under an id that is numbered: the same history again
            asked.returned = True
            return True
        guessed = [
            other
            for words in _names_behind(asked.words)
            for other in self._asked.get((payer, words), ())
            if other.ran > asked.at and not other.returned and other.ran_as == words
        ]
        asked.returned = True
        if not guessed:
            return False
        other = min(guessed, key=attrgetter("ran"))
        asked.ran, asked.ran_as = other.ran, other.ran_as
        self._wait_again(other)
        return True

    def _wait_again(self, asked: "_Asked") -> None:
        asked.ran, asked.returned = 0, False
        self._told.pop(asked.tool_call_id, None)

    def _claim(self, key: tuple[str, str]) -> bool:
        left = self._credits.pop(key, 0)
        if left > 1:
            _remember(self._credits, key, left - 1)
        return left > 0

    def _called(self, payer: str, name: str, tool_call_id: str) -> "_Asked | None":
        """The call that this is the result of: of those under one number, one whose result is yet to come."""
        words = _words(name)
        under_id = [
            one
            for one in self._asked.get((payer, words), ())
            if one.tool_call_id == tool_call_id and one.words == words
        ]
        return max(under_id, key=lambda one: (not one.returned, one.ran > 0, one.at), default=None)

    def _waiting(self, payer: str, words: str) -> "_Asked | None":
        """The newest call that waits for this tool; one that named it in full goes first."""
        newest = None
        for asked in reversed(self._asked.get((payer, words), ())):
            if asked.ran or asked.returned or asked.tool_call_id in self._told:
                continue
            if asked.words == words:
                return asked
            newest = newest or asked
        return newest


@dataclass(slots=True)
class _Asked:
    """A call that a model asked for; `at`, `ran`: when it did and when a layer executed it, in ticks (0: not yet)."""

    tool_call_id: str
    words: str
    at: int
    ran: int = 0
    ran_as: str = ""
    """Under which name, in words: a part of its own."""
    returned: bool = False
    """Its result was handed back; or will be by a framework, which counts it itself."""


def _words(name: str) -> str:
    return _BETWEEN_WORDS.sub("_", name.lower()).strip("_")


def _names_behind(name: str) -> Iterator[str]:
    """The tool's name, and what it may be a prefixed form of: `files_read` may be `read`."""
    words = _words(name)
    while words:
        yield words
        words = words.partition("_")[2]


def _remember(memory: OrderedDict[K, V], key: K, value: V) -> None:
    memory[key] = value
    memory.move_to_end(key)
    if len(memory) > REMEMBERED:
        memory.popitem(last=False)
