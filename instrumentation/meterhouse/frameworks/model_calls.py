"""Model calls as frameworks see them: whom they are for, and their usage where no choke point below saw it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from meterhouse import limits, tools
from meterhouse.attribution import Hint
from meterhouse.events import Row
from meterhouse.metered import Request, witnessed
from meterhouse.pauses import UsageLimitExceeded
from meterhouse.trouble import warn_once
from meterhouse.usage import Answer, by_modality, count, rest
from meterhouse.vocabulary import (
    ABORTED,
    FAILED,
    FRAMEWORK,
    OK,
    TOKENS_CACHE_READ,
    TOKENS_CACHE_WRITE,
    TOKENS_INPUT,
    TOKENS_OUTPUT,
    TOKENS_REASONING,
)
from meterhouse.witness import Witness, tokens_of

Told = Mapping[str, Any]
"""`model`, `id` and `usage` of an answer. The usage has `input` and `output`, totals, and their parts: `cache_read`,
`cache_write` (of it `cache_write_1h`) and `audio_input` of the input, `reasoning` and `audio_output` of the output."""


class Totals:
    """Reads what a framework tells, a `Told`; see metered.Reader."""

    name = "a framework"

    def read(self, document: Mapping[str, Any], event: str, answer: Answer) -> None:
        answer.identify(document)
        usage = document.get("usage")
        # Frameworks initialise counters with 0: where all of them are, nothing was reported.
        if isinstance(usage, Mapping) and any(usage.values()):
            answer.usage = dict(usage)

    def rows(self, answer: Answer) -> list[Row]:
        usage = answer.usage
        given, made = count(usage, "input"), count(usage, "output")
        cached, written = count(usage, "cache_read"), count(usage, "cache_write")
        hour, thought = count(usage, "cache_write_1h"), count(usage, "reasoning")
        return [
            *by_modality(TOKENS_INPUT, given, rest(given, cached, written), audio=count(usage, "audio_input")),
            Row(TOKENS_CACHE_READ, cached),
            # Only one provider has two times to live: what is not of the longer one is of the shorter.
            Row(TOKENS_CACHE_WRITE, rest(written, hour), cache_ttl="5m" if hour else ""),
            Row(TOKENS_CACHE_WRITE, hour, cache_ttl="1h"),
            *by_modality(TOKENS_OUTPUT, made, rest(made, thought), audio=count(usage, "audio_output")),
            Row(TOKENS_REASONING, thought),
        ]


class ModelCall:
    """A model call that a framework makes: counted at its `end` unless a choke point metered it inside `running`.

    `provider` and `model` are the framework's names for them; `hint` is what it knows of agent, conversation and step.
    """

    def __init__(self, provider: object, model: object, hint: Hint | None = None) -> None:
        self._hint = Hint() if hint is None else hint
        self._request = Request(str(provider or "unknown"), "chat", model=model if isinstance(model, str) else "")
        self._witness = Witness()
        self._ended = False

    def admit(self) -> None:
        """Raises UsageLimitExceeded when the customer is paused."""
        with self._hint.fresh():
            limits.admit()

    async def admit_async(self) -> None:
        """`admit` for code in an event loop."""
        with self._hint.fresh():
            await limits.admit_async()

    @contextmanager
    def running(self, *, counts_tools: bool = True) -> Iterator[None]:
        """Around the framework's call; `counts_tools`: an agent of the framework makes it, which runs the tools."""
        with self._hint.fresh(), self._witness.watching():
            if not counts_tools:
                yield
                return
            with tools.counted_by_framework():
                yield

    @contextmanager
    def making(self, *, counts_tools: bool = True, tell: Callable[[], Told] = dict) -> Iterator[None]:
        """`running` for a call that is made as a whole: where it raises, the call has ended with that, see `broken`."""
        try:
            with self.running(counts_tools=counts_tools):
                yield
        except BaseException as error:
            self.broken(error, tell)
            raise

    def broken(self, error: BaseException, tell: Callable[[], Told] = dict) -> None:
        """The call raised `error`, or was left early."""
        if not isinstance(error, UsageLimitExceeded):
            self.end(tell, FAILED if isinstance(error, Exception) else ABORTED)

    def end(self, tell: Callable[[], Told], status: str = OK) -> None:
        """The call is over; `tell` is asked what it used only where nobody else saw it. Never raises."""
        if self._ended or self._witness.seen:
            return
        self._ended = True
        try:
            told = tell()
        except Exception:  # noqa: BLE001 - the host's call went well; that its usage cannot be read is said
            warn_once("tell", "Meterhouse could not read what a framework's model call used.", with_trace=True)
            told = {}
        if self._witness.recognises(_tokens(told)):
            return
        with self._hint.fresh():
            witnessed(Totals(), self._request, told, source=FRAMEWORK, status=status)


def _tokens(told: Told) -> int:
    reader, answer = Totals(), Answer()
    reader.read(told, "", answer)
    return tokens_of(reader.rows(answer))
