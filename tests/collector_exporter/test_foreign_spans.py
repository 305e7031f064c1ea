"""Spans of GenAI instrumentations: each call of a model counts once, whoever else tells of it and in whatever order."""

import itertools
import random
from decimal import Decimal

import pytest
from collector_samples import DAY_NS, RECEIVED_NS, attributes, event, record, request_of
from foreign_samples import SECOND_NS, START_NS, call, span, traces_record
from hypothesis import given, settings
from hypothesis import strategies as st

from meterhouse_collector.foreign import rows_of
from meterhouse_collector.foreign.mapping import parse
from meterhouse_collector.foreign.twins import Call, Metered, judge
from meterhouse_collector.inbox import Inbox
from meterhouse_collector.journal import Horizon
from meterhouse_collector.projector import Projector
from meterhouse_collector.records import encode
from meterhouse_collector.segments import Position

LONG_ID = "chatcmpl-B7k2mQx9LpT4vZ1nR8sW"


def tokens(request, **more):
    found = rows_of(traces_record(request, **more)).events
    return {row.meter: (row.quantity, row.reason) for row in found}


# ---- what a span says -----------------------------------------------------------------------------------------------

OPENTELEMETRY = call(100, 40) | {
    "gen_ai.usage.cache_read.input_tokens": 60,
    "gen_ai.usage.cache_creation.input_tokens": 15,
    "gen_ai.usage.reasoning.output_tokens": 25,
}
OPENLLMETRY = {
    "llm.request.type": "chat",
    "gen_ai.system": "OpenAI",
    "gen_ai.usage.prompt_tokens": 100,
    "gen_ai.usage.completion_tokens": 40,
    "gen_ai.usage.cache_read_input_tokens": 60,
    "gen_ai.usage.cache_creation_input_tokens": 15,
    "gen_ai.usage.reasoning_tokens": 25,
    "llm.usage.total_tokens": 140,
}
OPENINFERENCE = {
    "openinference.span.kind": "LLM",
    "llm.provider": "openai",
    "llm.token_count.prompt": 100,
    "llm.token_count.completion": 40,
    "llm.token_count.total": 140,
    "llm.token_count.prompt_details.cache_read": 60,
    "llm.token_count.prompt_details.cache_write": 15,
    "llm.token_count.completion_details.reasoning": 25,
}


@pytest.mark.parametrize(
    "said", [OPENTELEMETRY, OPENLLMETRY, OPENINFERENCE], ids=["otel", "openllmetry", "openinference"]
)
def test_the_tokens_of_each_convention_become_the_disjoint_meters(said):
    assert tokens(span(1, more=said)) == {
        "llm.requests": (1, ""),
        "llm.tokens.input": (25, ""),
        "llm.tokens.cache_read": (60, ""),
        "llm.tokens.cache_write": (15, ""),
        "llm.tokens.output": (15, ""),
        "llm.tokens.reasoning": (25, ""),
    }


def test_a_row_of_a_span_says_which_call_it_was():
    said = call(3, 5, response_id="resp-1") | {"gen_ai.response.model": "gpt-5", "gen_ai.request.model": "gpt-5-latest"}
    row = rows_of(traces_record(span(7, trace=9, more=said, status=2))).events[0]
    assert (row.trace_id, row.span_id) == ("0" * 31 + "9", "0" * 15 + "7")
    assert row.event_id == f"{row.trace_id}-{row.span_id}"
    assert (row.provider, row.model, row.operation, row.response_id) == ("openai", "gpt-5", "chat", "resp-1")
    assert (row.source, row.status, row.usage_source) == ("otel.span", "failed", "reported")
    assert row.event_time == START_NS + 2 * SECOND_NS


@pytest.mark.parametrize(
    "said",
    [
        {"http.request.method": "POST"},
        call() | {"gen_ai.operation.name": "invoke_agent"},
        {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "search"},
        OPENINFERENCE | {"openinference.span.kind": "AGENT"},
        {"traceloop.span.kind": "workflow", "gen_ai.usage.prompt_tokens": 5},
    ],
)
def test_a_span_that_is_no_call_is_a_link_of_its_trace_and_no_row(said):
    found = rows_of(traces_record(span(1, parent=2, more=said)))
    assert found.events == []
    (link,) = found.spans
    assert (link.span_id, link.parent_id, link.is_call) == ("0" * 15 + "1", "0" * 15 + "2", False)


def test_a_call_without_usage_is_one_request_of_which_nothing_was_reported():
    (row,) = rows_of(traces_record(span(1, more={"gen_ai.operation.name": "chat"}, status=2))).events
    assert (row.meter, row.quantity, row.usage_source, row.status) == ("llm.requests", 1, "none", "failed")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (call(-5, 3), {"llm.tokens.input": (0, "bad_quantity"), "llm.tokens.output": (3, "")}),
        (call(float("nan"), 3), {"llm.tokens.input": (0, "bad_quantity"), "llm.tokens.output": (3, "")}),
        (call("12", 3), {"llm.tokens.input": (12, ""), "llm.tokens.output": (3, "")}),
        (call("many", 3), {"llm.tokens.input": (0, "bad_quantity"), "llm.tokens.output": (3, "")}),
        (call(12.0, 2**63 - 1), {"llm.tokens.input": (12, ""), "llm.tokens.output": (0, "bad_quantity")}),
        (call(0, 3), {"llm.tokens.output": (3, "")}),
        (
            call(12.5, 3),
            {"llm.tokens.input": (Decimal("12.5"), "fractional_quantity"), "llm.tokens.output": (3, "")},
        ),
        (
            call(30, 3) | {"gen_ai.usage.cache_read.input_tokens": 60},  # more than the whole
            {"llm.tokens.cache_read": (60, ""), "llm.tokens.input": (30, "bad_quantity"), "llm.tokens.output": (3, "")},
        ),
        (
            {"llm.request.type": "chat", "llm.usage.total_tokens": 140},
            {"llm.tokens.total": (140, "source_unsupported")},
        ),
    ],
)
def test_numbers_that_cannot_be_are_suspended(said, expected):
    assert tokens(span(1, more=said)) == {"llm.requests": (1, "")} | expected


def test_the_customer_is_that_of_the_span_else_of_the_resource():
    request = span(1, customer=None, more=call())
    assert {reason for _, reason in tokens(request).values()} == {"customer_missing"}
    request.resource_spans[0].resource.attributes.extend(attributes({"customer.id": "globex"}))
    assert {row.customer_id for row in rows_of(traces_record(request)).events} == {"globex"}
    assert {reason for _, reason in tokens(request, allowed=["acme"]).values()} == {"customer_forbidden"}


def test_the_mapping_may_name_the_attribute_of_a_spans_customer():
    mapping = parse("spans: {customer: traceloop.association.properties.customer_id}", "m").for_record(())
    request = span(1, customer=None, more=call() | {"traceloop.association.properties.customer_id": "acme"})
    assert {row.customer_id for row in rows_of(traces_record(request, mapping=mapping)).events} == {"acme"}


def test_a_span_without_ids_is_suspended():
    request = span(1, more=call())
    request.resource_spans[0].scope_spans[0].spans[0].span_id = b""
    assert {reason for _, reason in tokens(request).values()} == {"bad_identifier"}


scalars = st.one_of(st.text(max_size=300), st.integers(-(2**63), 2**63 - 1), st.floats(), st.booleans())
KEYS = [*OPENTELEMETRY, *OPENLLMETRY, *OPENINFERENCE, "customer.id", "gen_ai.response.id", "x"]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(KEYS), scalars), max_size=8),
    st.binary(max_size=20),
    st.binary(max_size=10),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
)
def test_whatever_a_span_says_it_is_a_link_and_nothing_is_raised(said, trace_id, span_id, start, end):
    request = span(1, customer=None, name="x" * 500)
    found = request.resource_spans[0].scope_spans[0].spans[0]
    found.attributes.extend(attributes(said))
    found.trace_id, found.span_id = trace_id, span_id
    found.start_time_unix_nano, found.end_time_unix_nano = start, end
    rows = rows_of(traces_record(request))
    assert len(rows.spans) == 1
    assert all(0 <= row.quantity <= 10**15 for row in rows.events)
    assert all(row.reason or row.customer_id for row in rows.events)
    assert rows_of(traces_record(request)) == rows


# ---- which span is the call -----------------------------------------------------------------------------------------


def link(
    number, parent=0, trace=1, usage=True, is_call=True, response_id="", start=0, end=10, provider="openai", may=True
):
    return Call(
        "live", str(trace), str(number), str(parent or ""), start, end, is_call, usage, may, provider, response_id
    )


def metered(trace=0, number=0, response_id="", provider="openai", time_ns=0):
    return Metered("live", str(trace or ""), str(number or ""), provider, response_id, time_ns)


def verdicts(spans, events=()):
    """The numbers of the spans that are left out, and of those that wait in suspense."""
    found = judge(spans, events)
    aside, waiting = found.twins | found.metered, found.ambiguous | found.in_circles
    return {key[2] for key in aside}, {key[2] for key in waiting}


def test_of_calls_inside_each_other_the_innermost_counts_also_through_spans_that_are_none():
    assert verdicts([link(1), link(2, 1), link(3, 2, is_call=False), link(4, 3)]) == ({"1", "2"}, set())


def test_a_call_whose_child_says_no_usage_keeps_its_own_and_the_child_is_left_out():
    assert verdicts([link(1), link(2, 1, usage=False)]) == ({"2"}, set())


def test_of_calls_without_usage_inside_each_other_one_counts():
    assert verdicts([link(1, usage=False), link(2, 1, usage=False)]) == ({"1"}, set())


def test_calls_side_by_side_all_count():
    assert verdicts([link(1, is_call=False), link(2, 1), link(3, 1), link(4, 1, usage=False)]) == (set(), set())


def test_a_span_that_may_not_report_leaves_nobody_out():
    assert verdicts([link(1), link(2, 1, may=False)]) == (set(), set())
    assert verdicts([link(1, response_id=LONG_ID), link(2, response_id=LONG_ID, start=1, may=False)]) == (set(), set())


def test_two_spans_of_a_trace_with_one_response_are_one_call():
    spans = link(1, response_id=LONG_ID), link(2, response_id=LONG_ID, start=20, end=30)
    assert verdicts(spans) == ({"1"}, set())


def test_servers_that_count_their_responses_do_not_make_two_calls_one():
    apart = link(1, response_id="chatcmpl-1"), link(2, response_id="chatcmpl-1", start=20, end=30)
    inside = link(1, response_id="chatcmpl-1"), link(2, response_id="chatcmpl-1", start=2, end=9)
    assert verdicts(apart) == (set(), set())
    assert verdicts(inside) == ({"1"}, set())


def test_one_response_under_two_traces_is_ambiguous_within_a_day():
    assert verdicts([link(1, response_id=LONG_ID), link(2, trace=2, response_id=LONG_ID)]) == (set(), {"1", "2"})
    later = link(2, trace=2, response_id=LONG_ID, end=DAY_NS + 11)
    assert verdicts([link(1, response_id=LONG_ID), later]) == (set(), set())
    other = link(2, trace=2, response_id="chatcmpl-1", provider="mistral")
    assert verdicts([link(1, response_id="chatcmpl-1"), other]) == (set(), set())


@pytest.mark.parametrize(
    ("event_", "twin"),
    [
        (metered(trace=1, number=1), True),
        (metered(trace=1, number=2), False),
        (metered(trace=2, number=1), False),
        (metered(response_id="r-1"), True),
        (metered(response_id="r-1", provider="az.ai.openai"), True),
        (metered(response_id="r-1", provider=""), True),
        (metered(response_id="r-1", provider="anthropic"), False),
        (metered(response_id="r-1", time_ns=DAY_NS + 10), True),
        (metered(response_id="r-1", time_ns=DAY_NS + 11), False),
        (metered(response_id="r-2"), False),
    ],
)
def test_a_call_that_meterhouse_metered_is_a_twin(event_, twin):
    assert verdicts([link(1, response_id="r-1")], [event_]) == ({"1"} if twin else set(), set())


def test_an_event_settles_what_was_ambiguous():
    spans = link(1, response_id=LONG_ID), link(2, trace=2, response_id=LONG_ID)
    assert verdicts(spans, [metered(response_id=LONG_ID)]) == ({"1", "2"}, set())


def test_a_trace_of_fifty_thousand_spans_is_judged_in_a_moment():
    chain = [link(n, n - 1, response_id="chatcmpl-1", start=n, end=100_000 - n) for n in range(1, 50_001)]
    twins, ambiguous = verdicts(chain)
    assert (len(twins), ambiguous) == (49_999, set())


def test_spans_that_are_each_others_parents_are_ambiguous():
    assert verdicts([link(1, 2), link(2, 1)]) == (set(), {"1", "2"})
    assert verdicts([link(1, 3), link(2, 1), link(3, 2)]) == (set(), {"1", "2", "3"})
    assert verdicts([link(1, 2, usage=False), link(2, 1, usage=False)]) == (set(), {"1", "2"})
    by_way_of_others = [link(1, 12), link(12, 2, is_call=False), link(2, 11), link(11, 1, is_call=False)]
    assert verdicts(by_way_of_others) == (set(), {"1", "2"})


def test_a_call_that_is_its_own_parent_is_one_call():
    assert verdicts([link(1, 1)]) == (set(), set())
    assert verdicts([link(1, 12), link(12, 1, is_call=False), link(2)]) == (set(), set())
    assert verdicts([link(1, 1), link(2, 1)]) == ({"1"}, set())


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_in_any_order_a_call_around_another_is_left_out_though_it_is_its_own_ancestor(order):
    spans = [link(1, 12), link(12, 1, is_call=False), link(2, 12)]
    assert verdicts([spans[at] for at in order]) == ({"1"}, set())


def test_what_repeats_a_circle_is_left_out_and_what_a_circle_repeats_counts():
    circle = [link(1, 2), link(2, 1)]
    assert verdicts([*circle, link(3, 1)]) == (set(), {"1", "2"})
    assert verdicts([*circle, link(1, 4), link(4)]) == ({"4"}, {"1", "2"})


def test_a_span_that_may_not_report_brings_nobody_into_a_circle():
    assert verdicts([link(1, 2), link(2, 1, may=False)]) == ({"2"}, set())


def test_an_event_of_meterhouse_settles_a_circle():
    circle = [link(1, 2), link(2, 1), link(3, 1)]
    assert verdicts(circle, [metered(trace=1, number=1)]) == ({"1", "2"}, set())


def test_a_gateway_whose_clock_is_behind_and_its_client_are_one_call():
    client, hop = link(1, response_id=LONG_ID, start=5, end=20), link(2, 1, is_call=False, start=4, end=19)
    gateway = link(3, 2, response_id=LONG_ID, start=4, end=19)
    assert verdicts([client, hop, gateway]) == ({"3"}, set())
    assert verdicts([client, hop, gateway, link(4, 3, response_id=LONG_ID, start=4, end=18)]) == ({"3", "4"}, set())


def test_where_clocks_and_parents_contradict_each_other_nothing_is_lost():
    outer, middle = link(1, response_id=LONG_ID, start=5, end=20), link(2, 1, start=4, end=19)
    inner = link(3, 2, response_id=LONG_ID, start=4, end=18)
    assert verdicts([outer, middle, inner]) == (set(), {"1", "2", "3"})
    # Servers that count: begun in the same millisecond, and the child ends later.
    assert verdicts([link(1, response_id="chatcmpl-1"), link(2, 1, response_id="chatcmpl-1", end=11)]) == (
        set(),
        {"1", "2"},
    )


def test_a_span_that_came_twice_does_not_stand_for_itself():
    assert verdicts([link(1, response_id=LONG_ID), link(1, response_id=LONG_ID, provider="")]) == (set(), set())
    with_and_without = [link(1), link(2, 1, usage=False), link(2, 1, response_id=LONG_ID)]
    assert verdicts(with_and_without) == (set(), {"1", "2"})


spans_ = st.builds(
    link,
    st.integers(1, 6),
    st.integers(0, 6),
    st.integers(1, 2),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["", "chatcmpl-1", LONG_ID, LONG_ID + "2"]),
    st.integers(0, 5),
    st.integers(6, 9),
    st.sampled_from(["", "openai", "mistral"]),
    st.booleans(),
)
events_ = st.builds(metered, st.integers(0, 2), st.integers(0, 6), st.sampled_from(["", "chatcmpl-1", LONG_ID]))


def ranks(found):
    kinds = ("ambiguous", "twins", "in_circles", "metered")
    return {key: rank for rank, kind in enumerate(kinds, 1) for key in getattr(found, kind)}


@settings(max_examples=500, deadline=None)
@given(st.lists(spans_, max_size=8), st.lists(events_, max_size=2), st.integers(0, 8), st.integers(0, 2))
def test_a_verdict_never_turns_back_when_more_is_known(spans, events, some, few):
    before, after = ranks(judge(spans[:some], events[:few])), ranks(judge(spans, events))
    assert all(rank <= after.get(key, 0) for key, rank in before.items())


@settings(max_examples=500, deadline=None)
@given(st.lists(spans_, max_size=8), st.randoms())
def test_of_the_calls_of_a_trace_some_count_or_wait(spans, chance):
    found = judge(spans, [])
    for trace in {one.trace_id for one in spans if one.is_call and one.may_report}:
        calls = {one.key for one in spans if one.is_call and one.trace_id == trace}
        assert calls - found.twins, "all calls of a trace are left out"
    mixed = list(spans)
    chance.shuffle(mixed)
    assert judge(mixed, []) == found


# ---- in the warehouse -----------------------------------------------------------------------------------------------


def project(database, records, cuts=()):
    """Through the projector, in ranges that end at these records."""
    ends = list(itertools.accumulate(len(one) for one in records))
    data = b"".join(records)
    goal = 0
    projector = Projector(
        "collector-1",
        Inbox(database),
        horizon=lambda: Horizon(Position("a-1.seg", goal), RECEIVED_NS),
        read=lambda position, until, _limit: (data[position.offset : until.offset], until),
    )
    for cut in [*cuts, len(records)]:
        goal = ends[cut - 1] if cut else 0
        projector.step()


def used(database):
    query = "SELECT source, span_id, toInt64(quantity) FROM usage WHERE meter = 'llm.tokens.input' ORDER BY ALL"
    return [
        (source, int(span_id or "0", 16), quantity) for source, span_id, quantity in database.query(query).result_rows
    ]


def reasons(database, view):
    query = f"SELECT span_id, reason FROM {view} WHERE meter = 'llm.tokens.input' ORDER BY ALL"
    return [(int(span_id, 16), reason) for span_id, reason in database.query(query).result_rows]


def story():
    """Two traces: what an agent, LangChain and the OpenAI client say of one call; a metered call; one seen twice."""
    return [
        encode(traces_record(span(1, more=call(150) | {"gen_ai.operation.name": "invoke_agent"}), 1)),
        encode(traces_record(span(2, parent=1, more=call(100)), 2)),
        encode(traces_record(span(3, parent=2, more={"http.request.method": "POST"}), 3)),
        encode(traces_record(span(4, parent=3, more=call(101)), 4)),
        encode(traces_record(span(5, parent=1, more=call(50, response_id="resp-metered")), 5)),
        record(
            request_of(
                event(50, "metered", extra={"gen_ai.response.id": "resp-metered"}),
                point={"customer.id": "acme", "gen_ai.provider.name": "openai"},
            ),
            6,
        ),
        encode(traces_record(span(6, trace=2, more=call(70, response_id=LONG_ID)), 7)),
        encode(traces_record(span(7, trace=3, more=call(70, response_id=LONG_ID)), 8)),
        encode(traces_record(span(8, trace=2, more=call(7)), 9)),
        record(request_of(event(7, "by-span", span_id=(8).to_bytes(8), trace_id=(2).to_bytes(16))), 10),
    ]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("seed", range(5))
def test_each_call_counts_once_whatever_the_order_and_the_ranges(database, seed):
    chance = random.Random(seed)
    records = story()
    if seed:
        chance.shuffle(records)
    cuts = sorted(chance.sample(range(1, len(records)), 3))
    project(database, records, cuts)
    assert used(database) == [("meterhouse", 0, 50), ("meterhouse", 8, 7), ("otel.span", 4, 101)]
    assert reasons(database, "suspense") == [(6, "span_ambiguous"), (7, "span_ambiguous")]
    assert reasons(database, "set_aside") == [(2, "twin"), (5, "twin"), (8, "twin")]
    database.command("OPTIMIZE TABLE events FINAL")
    project(database, records)  # again from the last checkpoint: nothing is left to do
    assert used(database) == [("meterhouse", 0, 50), ("meterhouse", 8, 7), ("otel.span", 4, 101)]


def parts_of_circles():
    """Each of some calls is above the other one, by way of other spans, and one more repeats one of them."""
    return [
        encode(traces_record(span(1, parent=2, more=call(100)), 1)),
        encode(traces_record(span(2, parent=3, more=call(101)), 2)),
        encode(traces_record(span(3, parent=1, more={"http.request.method": "POST"}), 3)),
        encode(traces_record(span(4, trace=2, parent=4, more=call(7)), 4)),
        encode(traces_record(span(5, trace=3, parent=6, more=call(8), customer=None), 5)),
        encode(traces_record(span(6, trace=3, parent=5, more=call(9), customer=None), 6)),
    ]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("seed", range(5))
def test_calls_in_a_circle_wait_in_suspense_once_whatever_the_order_and_the_ranges(database, seed):
    chance = random.Random(seed)
    records = parts_of_circles()
    if seed:
        chance.shuffle(records)
    project(database, records, sorted(chance.sample(range(1, len(records)), 3)))
    columns = "span_id, reason, original_reason, toString(first)"
    query = f"SELECT {columns} FROM events FINAL WHERE meter = 'llm.tokens.input' ORDER BY ALL"
    found = [(int(span_id, 16), *rest) for span_id, *rest in database.query(query).result_rows]
    version, suspended = str(2**64 - 2**60 + 1), str(2**63 - 2**59 + 2)
    assert [row for row in found if row[0] != 4] == [
        (1, "span_ambiguous", "", version),
        (2, "span_ambiguous", "", version),
        (5, "span_ambiguous", "customer_missing", suspended),
        (6, "span_ambiguous", "customer_missing", suspended),
    ]
    assert used(database) == [("otel.span", 4, 7)]
    assert reasons(database, "suspense") == [(number, "span_ambiguous") for number in (1, 2, 5, 6)]
    assert reasons(database, "set_aside") == []


def test_a_row_that_changes_its_verdict_keeps_how_it_came(database):
    records = [
        encode(traces_record(span(1, more=call(70, response_id=LONG_ID)), 1)),
        encode(traces_record(span(2, trace=2, more=call(70, response_id=LONG_ID)), 2)),
        encode(traces_record(span(3, parent=1, more=call(70)), 3)),
    ]
    query = "SELECT DISTINCT reason, original_reason FROM set_aside"
    project(database, records, [1, 2])
    one_by_one = database.query(query).result_rows
    for table in ("events", "spans", "checkpoints"):
        database.command(f"TRUNCATE TABLE {table}")
    project(database, records)
    assert one_by_one == database.query(query).result_rows == [("twin", "")]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("cuts", [[], [1], [2], [3], [1, 2], [1, 3], [2, 3], [1, 2, 3]])
def test_a_twin_is_made_of_the_first_copy_that_counts_wherever_the_ranges_are_cut(database, cuts):
    told, beside = span(1, more=call(150)), span(3, trace=2, more=call(5))
    beside.MergeFrom(told)
    records = [
        encode(traces_record(beside, 1, allowed=["globex"])),
        encode(traces_record(span(2, parent=1, more=call(100)), 2, received_ns=RECEIVED_NS + 1000)),
        encode(traces_record(told, 3, received_ns=RECEIVED_NS + 2000)),
        encode(traces_record(told, 4, received_ns=RECEIVED_NS + 3000, allowed=["globex"])),
    ]
    project(database, records, cuts)
    columns = "reason, original_reason, record_id, toUnixTimestamp64Nano(received_at)"
    query = f"SELECT {columns} FROM set_aside WHERE meter = 'llm.tokens.input'"
    assert database.query(query).result_rows == [("twin", "", f"{3:032x}", RECEIVED_NS + 2000)]
    assert used(database) == [("otel.span", 2, 100)]
    counts = ("received", "counted", "suspended", "set_aside", "duplicates")
    found = database.query(f"SELECT {', '.join(f'toInt64(sum({one}))' for one in counts)} FROM conservation")
    # A call is three rows: input, output, request. The first record has two, the others one.
    assert found.result_rows == [(15, 3, 3, 3, 6)]


def test_a_forbidden_event_leaves_no_span_out(database):
    forbidden = record(
        request_of(event(50, extra={"gen_ai.response.id": LONG_ID}), point={"customer.id": "acme"}),
        1,
        allowed=["globex"],
    )
    project(database, [forbidden, encode(traces_record(span(1, more=call(50, response_id=LONG_ID)), 2))])
    assert used(database) == [("otel.span", 1, 50)]


def test_a_span_that_waits_for_its_customer_is_left_out_where_the_call_is_metered(database):
    waiting = encode(traces_record(span(1, customer=None, more=call(50, response_id=LONG_ID)), 1))
    counts = record(request_of(event(50, extra={"gen_ai.response.id": LONG_ID}), point={"customer.id": "acme"}), 2)
    project(database, [waiting])
    assert reasons(database, "suspense") == [(1, "customer_missing")]
    database.command("TRUNCATE TABLE checkpoints")
    project(database, [waiting, counts], [1])
    assert reasons(database, "suspense") == []
    assert database.query("SELECT reason, original_reason FROM set_aside LIMIT 1").first_row == (
        "twin",
        "customer_missing",
    )


def test_without_spans_settling_asks_once_and_reads_nothing(database):
    class Asked:
        def __init__(self):
            self.queries = []

        def query(self, text, **_more):
            self.queries.append(text)
            return database.query(text)

    from meterhouse_collector.foreign.storing import settle_spans

    client = Asked()
    settle_spans(client, 0, RECEIVED_NS, {})
    assert client.queries == ["SELECT 1 FROM spans LIMIT 1"]


def test_spans_sent_again_count_once_and_another_number_is_a_conflict(database):
    first = encode(traces_record(span(1, more=call(50)), 1))
    again = encode(traces_record(span(1, more=call(50)), 2, received_ns=RECEIVED_NS + 1))
    other = encode(traces_record(span(1, more=call(60)), 3, received_ns=RECEIVED_NS + 2))
    project(database, [first, again, other], [1, 2])
    assert used(database) == [("otel.span", 1, 50)]
    assert reasons(database, "suspense") == [(1, "conflict")]
    assert database.query("SELECT toInt64(sum(quantity)) FROM usage WHERE meter = 'llm.requests'").first_row == (1,)
    assert Decimal(40) == database.query("SELECT quantity FROM usage WHERE meter = 'llm.tokens.output'").first_row[0]
