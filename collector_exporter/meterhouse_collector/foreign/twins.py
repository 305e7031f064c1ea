"""Which spans are not the call itself: a pure function of what the warehouse has of their traces.

A span is left out as a *twin* where another row stands for the same call:
- a span below it is an LLM call with usage: it repeats what its children say;
- another span of its trace has the same response id, and lies inside of it or, where nobody else has that id, started
  later: the inner one is nearer to the call;
- it has no usage, and an LLM call above or below it says more;
- an event of Meterhouse has the same trace and span id, or the same response id within a day.
It is *ambiguous* where a span of another trace has the same response id within a day, or where it is in a *circle* of
spans that stand for each other: each is above the other, or clocks and parents contradict. As twins none would count.

All of these say "there is a row that ...", so that more rows only bring a span to a higher verdict, of these in turn:
ambiguous, twin, in a circle, metered. Whatever the order of records and the cut of ranges, the end is the same.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from meterhouse_collector.foreign.circles import components

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


Keys = frozenset[tuple[str, str, str]]
"""Of spans: (namespace, trace id, span id)."""


@dataclass(frozen=True, slots=True)
class Verdicts:
    """The calls that do not count as they are, each under its highest verdict, the last one being the highest.

    `metered`: an event of Meterhouse stands for them, or for what stands for them.
    """

    ambiguous: Keys
    twins: Keys
    in_circles: Keys
    metered: Keys


def judge(spans: Iterable[Call], events: Iterable[Metered]) -> Verdicts:
    """Which of the calls among these spans do not count as they are."""
    traces: dict[tuple[str, str], list[Call]] = defaultdict(list)
    responses: dict[tuple[str, str], list[Call]] = defaultdict(list)
    for span in spans:
        traces[span.namespace, span.trace_id].append(span)
        if span.is_call and span.response_id:
            responses[span.namespace, span.response_id].append(span)
    known = list(events)
    seen = {(event.namespace, event.trace_id, event.span_id) for event in known if event.span_id}
    metered = {span.key for trace in traces.values() for span in trace if span.is_call and span.key in seen}
    for event in known:
        for span in responses.get((event.namespace, event.response_id), ()):
            if _near(span.end_ns, event.time_ns) and _same_provider(span.provider, event.provider, span.response_id):
                metered.add(span.key)
    metered_of: dict[tuple[str, str], set[str]] = defaultdict(set)
    for namespace, trace_id, span_id in metered:
        metered_of[namespace, trace_id].add(span_id)
    twins: set[tuple[str, str, str]] = set()
    in_circles: set[tuple[str, str, str]] = set()
    for (namespace, trace_id), trace in traces.items():
        verdicts = _of_trace(trace, metered_of[namespace, trace_id])
        for keys, span_ids in zip((twins, in_circles, metered), verdicts, strict=True):
            keys.update((namespace, trace_id, span_id) for span_id in span_ids)
    ambiguous = {key for found in responses.values() for key in _ambiguous(found)}
    return Verdicts(
        frozenset(ambiguous - twins - in_circles - metered),
        frozenset(twins - in_circles - metered),
        frozenset(in_circles - metered),
        frozenset(metered),
    )


_Node = tuple[str, str, int]
"""A span, or what stands for one: all that lies below or above it, or inside of it by time."""
_SPAN: Final = "span"


def _of_trace(trace: list[Call], metered: set[str]) -> tuple[set[str], set[str], set[str]]:
    """The twins of a trace, those in circles, and those of which an event of Meterhouse speaks; a span may be all."""
    calls = {span.span_id for span in trace if span.is_call}
    twins: set[str] = set()
    in_circles: set[str] = set()
    reached: set[str] = set()
    if len(calls) < 2:
        return twins, in_circles, reached
    graph = _Graph(trace)
    leads_to_span: dict[_Node, bool] = {}
    leads_to_event: dict[_Node, bool] = {}
    for group in components([(_SPAN, span_id, 0) for span_id in calls], graph.steps):
        spans = {span_id for kind, span_id, _ in group if kind == _SPAN}
        # What is in the group has no entry yet: only what lies beyond it counts here.
        beyond = [node for member in group for node in graph.steps(member) if node in leads_to_span]
        has_stand_in = any(leads_to_span[node] for node in beyond)
        has_event = any(leads_to_event[node] for node in beyond) or not spans.isdisjoint(metered)
        if len(spans) > 1:
            in_circles |= spans
        if has_stand_in or len(spans) > 1:
            twins |= spans
        if has_event:
            reached |= spans
        for member in group:
            leads_to_span[member] = has_stand_in or bool(spans)
            leads_to_event[member] = has_event
    return twins, in_circles, reached


class _Graph:
    """A trace: from a call its steps lead to the calls that stand for it, by way of what is below, above and inside."""

    def __init__(self, trace: list[Call]) -> None:
        parents: dict[str, set[str]] = defaultdict(set)
        children: dict[str, set[str]] = defaultdict(set)
        for span in trace:
            if span.parent_id:
                parents[span.span_id].add(span.parent_id)
                children[span.parent_id].add(span.span_id)
        calls = [span for span in trace if span.is_call]
        usage: dict[str, set[str]] = defaultdict(set)
        every: dict[str, set[str]] = defaultdict(set)
        for span in calls:
            if span.may_report:
                every[span.span_id].add(span.span_id)
                if span.has_usage:
                    usage[span.span_id].add(_call_of(span))
        self._ways: dict[str, tuple[dict[str, set[str]], dict[str, set[str]]]] = {
            "usage below": (children, usage),
            "calls below": (children, every),
            "usage above": (parents, {span_id: {span_id} for span_id in usage}),
        }
        told = {name: _told(steps, own, calls) for name, (steps, own) in self._ways.items()}
        self._steps: dict[str, set[_Node]] = defaultdict(set)
        self._groups: dict[str, list[Call]] = defaultdict(list)
        for span in calls:
            if span.has_usage and span.response_id:
                self._groups[span.response_id].append(span)
            # What tells of the same response alone is no other call, whichever of them is the parent.
            ways = [("usage below", _call_of(span))]
            if not span.has_usage:
                ways = [("calls below", span.span_id), ("usage above", span.span_id)]
            for name, own in ways:
                for following in self._ways[name][0].get(span.span_id, ()):
                    if told[name].get(following, frozenset()) - {own}:
                        self._steps[span.span_id].add((name, following, 0))
        for response_id, same in self._groups.items():
            same.sort(key=_depth, reverse=True)
            for at in _outer(same):
                self._steps[same[at].span_id].add((_INSIDE, response_id, at - 1))

    def steps(self, node: _Node) -> Iterator[_Node]:
        """Where it leads to."""
        kind, name, at = node
        if kind == _SPAN:
            yield from self._steps.get(name, ())
        elif kind == _INSIDE:
            span = self._groups[name][at]
            if span.may_report:
                yield _SPAN, span.span_id, 0
            if at:
                yield _INSIDE, name, at - 1
        else:
            following, own = self._ways[kind]
            if name in own:
                yield _SPAN, name, 0
            for one in following.get(name, ()):
                yield kind, one, 0


_INSIDE: Final = "inside"


def _call_of(span: Call) -> str:
    """What tells calls apart: spans with the same long response id are one."""
    return span.response_id if len(span.response_id) >= UNIQUE_CHARACTERS else span.span_id


def _told(steps: dict[str, set[str]], own: dict[str, set[str]], of: list[Call]) -> dict[str, frozenset[str]]:
    """Of the spans beside calls in one direction what they and all beyond tell of: two calls, or one, or none."""
    found: dict[str, frozenset[str]] = {}
    nowhere: set[str] = set()
    starts = {following for span in of for following in steps.get(span.span_id, nowhere)}
    for group in components(starts, lambda span_id: steps.get(span_id, nowhere)):
        calls: set[str] = set()
        for span_id in group:
            calls.update(own.get(span_id, nowhere))
            for following in steps.get(span_id, nowhere):
                calls.update(found.get(following, ()))
        two = frozenset(sorted(calls)[:2])
        for span_id in group:
            found[span_id] = two
    return found


def _outer(same: list[Call]) -> Iterator[int]:
    """Of the spans with one response id, the innermost first, the places of those that an inner one stands for."""
    earliest_end_ns: int | None = None
    for at, span in enumerate(same):
        if earliest_end_ns is not None and (
            earliest_end_ns <= span.end_ns or len(span.response_id) >= UNIQUE_CHARACTERS
        ):
            yield at
        if span.may_report:
            earliest_end_ns = min(span.end_ns, span.end_ns if earliest_end_ns is None else earliest_end_ns)


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
