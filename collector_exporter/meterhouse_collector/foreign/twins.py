"""Which spans are not the call itself: a pure function of what the warehouse has of their traces.

A span is left out as a *twin* where another row stands for the same call:
- a span below it is an LLM call with usage: it repeats what its children say;
- another span of its trace has the same response id, and lies inside of it or, where nobody else has that id, started
  later: the inner one is nearer to the call;
- it has no usage, and an LLM call above or below it says more;
- an event of Meterhouse has the same trace and span id, or the same response id within a day.
It is *ambiguous* where a span of another trace has the same response id within a day.

All of these say "there is a row that ...", so that a verdict never turns back when more rows arrive: whatever the order
of records and the cut of ranges, the end is the same.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

DAY_NS: Final = 86_400_000_000_000
UNIQUE_CHARACTERS: Final = 20
"""A response id of so many is nobody else's. Some servers count (chatcmpl-123): then the provider must agree, too."""


@dataclass(frozen=True, slots=True)
class Call:
    """A span as the warehouse has it; times in ns."""

    namespace: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    is_call: bool
    has_usage: bool
    may_report: bool
    provider: str
    response_id: str

    @property
    def key(self) -> tuple[str, str, str]:
        return self.namespace, self.trace_id, self.span_id


@dataclass(frozen=True, slots=True)
class Metered:
    """An event of Meterhouse that may be of the same call as a span."""

    namespace: str
    trace_id: str
    span_id: str
    provider: str
    response_id: str
    time_ns: int


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Keys of spans: (namespace, trace id, span id)."""

    twins: frozenset[tuple[str, str, str]]
    ambiguous: frozenset[tuple[str, str, str]]


def judge(spans: Iterable[Call], events: Iterable[Metered]) -> Verdicts:
    """Which of the calls among these spans are twins, and which of the others are ambiguous."""
    traces: dict[tuple[str, str], list[Call]] = defaultdict(list)
    responses: dict[tuple[str, str], list[Call]] = defaultdict(list)
    for span in spans:
        traces[span.namespace, span.trace_id].append(span)
        if span.is_call and span.response_id:
            responses[span.namespace, span.response_id].append(span)
    twins = {key for trace in traces.values() for key in _twins_of_trace(trace)}
    metered = list(events)
    seen = {(event.namespace, event.trace_id, event.span_id) for event in metered if event.span_id}
    twins |= {span.key for trace in traces.values() for span in trace if span.is_call and span.key in seen}
    for event in metered:
        for span in responses.get((event.namespace, event.response_id), ()):
            if _near(span.end_ns, event.time_ns) and _same_provider(span.provider, event.provider, span.response_id):
                twins.add(span.key)
    ambiguous = {key for found in responses.values() for key in _ambiguous(found)}
    return Verdicts(frozenset(twins), frozenset(ambiguous - twins))


def _twins_of_trace(trace: list[Call]) -> set[tuple[str, str, str]]:
    parents: dict[str, set[str]] = defaultdict(set)
    children: dict[str, set[str]] = defaultdict(set)
    for span in trace:
        if span.parent_id:
            parents[span.span_id].add(span.parent_id)
            children[span.parent_id].add(span.span_id)
    calls = [span for span in trace if span.is_call]
    with_usage = [span.span_id for span in calls if span.has_usage and span.may_report]
    above_usage = _reached(with_usage, parents)
    above_call = _reached([span.span_id for span in calls if span.may_report], parents)
    below_usage = _reached(with_usage, children)
    twins = {
        span.key
        for span in calls
        if span.span_id in above_usage
        or (not span.has_usage and (span.span_id in above_call or span.span_id in below_usage))
    }
    inner: dict[str, list[Call]] = defaultdict(list)
    for span in calls:
        if span.response_id and span.has_usage:
            inner[span.response_id].append(span)
    return twins.union(*(_outer(same) for same in inner.values()))


def _reached(starts: list[str], steps: dict[str, set[str]]) -> set[str]:
    """What can be reached from these spans, each step taken once."""
    found: set[str] = set()
    waiting = [(start, step) for start in starts for step in steps.get(start, ())]
    while waiting:
        start, span_id = waiting.pop()
        if span_id != start and span_id not in found:
            found.add(span_id)
            waiting += [(start, step) for step in steps.get(span_id, ())]
    return found


def _outer(same: list[Call]) -> set[tuple[str, str, str]]:
    """Of spans with the same response id in one trace those that another one stands for."""
    found: set[tuple[str, str, str]] = set()
    earliest_end_ns: int | None = None
    for span in sorted(same, key=_depth, reverse=True):
        lies_around = earliest_end_ns is not None and earliest_end_ns <= span.end_ns
        if lies_around or (earliest_end_ns is not None and len(span.response_id) >= UNIQUE_CHARACTERS):
            found.add(span.key)
        if span.may_report:
            earliest_end_ns = min(span.end_ns, span.end_ns if earliest_end_ns is None else earliest_end_ns)
    return found


def _depth(span: Call) -> tuple[int, int, str]:
    """Larger for what lies inside: it starts later, and ends earlier."""
    return span.start_ns, -span.end_ns, span.span_id


def _ambiguous(same: list[Call]) -> set[tuple[str, str, str]]:
    """Of spans with the same response id those that a span of another trace says it of as well."""
    told = [span for span in same if span.has_usage and span.may_report]
    if len({span.trace_id for span in told}) < 2 and all(span.may_report for span in same):
        return set()
    every, families = _Times(told), {}
    for family in {_family(span.provider) for span in told}:
        families[family] = _Times([span for span in told if _family(span.provider) == family])
    found: set[tuple[str, str, str]] = set()
    for span in same:
        if not span.has_usage:
            continue
        if len(span.response_id) >= UNIQUE_CHARACTERS or not span.provider:
            others = [every]
        else:
            others = [times for name in ("", _family(span.provider)) if (times := families.get(name))]
        if any(times.has_other(span) for times in others):
            found.add(span.key)
    return found


class _Times:
    """When spans ended, in order, with the next one of another trace at hand."""

    def __init__(self, spans: list[Call]) -> None:
        self._spans = sorted(spans, key=lambda span: (span.end_ns, span.trace_id))
        self._ends = [span.end_ns for span in self._spans]
        self._next = [len(spans)] * len(spans)
        for at in range(len(spans) - 2, -1, -1):
            is_same = self._spans[at].trace_id == self._spans[at + 1].trace_id
            self._next[at] = self._next[at + 1] if is_same else at + 1

    def has_other(self, span: Call) -> bool:
        """A span of another trace ended within a day of this one."""
        at = bisect_left(self._ends, span.end_ns - DAY_NS)
        if at < len(self._spans) and self._spans[at].trace_id == span.trace_id:
            at = self._next[at]
        return at < len(self._spans) and self._ends[at] <= span.end_ns + DAY_NS


def _near(one_ns: int, other_ns: int) -> bool:
    return abs(one_ns - other_ns) <= DAY_NS


def _same_provider(one: str, other: str, response_id: str) -> bool:
    return len(response_id) >= UNIQUE_CHARACTERS or not one or not other or _family(one) == _family(other)


def _family(provider: str) -> str:
    """The name of a provider without what conventions put around it: az.ai.openai and OpenAI are one."""
    name = provider.lower().replace("_", ".")
    for family, marks in _FAMILIES.items():
        if any(mark in name for mark in marks):
            return family
    return name


_FAMILIES: Final = {
    "openai": ("openai", "azure", "az.ai"),
    "google": ("google", "gcp", "vertex", "gemini", "gen.ai"),
    "bedrock": ("bedrock", "aws", "amazon"),
    "anthropic": ("anthropic",),
    "mistral": ("mistral",),
}
