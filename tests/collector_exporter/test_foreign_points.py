"""Metrics of other sources: which row each point becomes, and why it counts or does not, by its record alone."""

from decimal import Decimal

import pytest
from collector_samples import CUMULATIVE, DAY_NS, DELTA, RECEIVED_NS, add_sum, attributes, batch, event, request_of
from foreign_samples import START_NS, metrics_record, sum_of, tokens_of, total_of
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue

from meterhouse_collector.foreign import is_foreign, rows_of
from meterhouse_collector.foreign.mapping import parse
from meterhouse_collector.records import GRANTS, Granted


def told(request, *columns, **more):
    """The named columns of the rows of `events`."""
    found = rows_of(metrics_record(request, **more)).events
    return [tuple(getattr(row, column) for column in columns) for row in found]


def one(request, *columns, **more):
    (found,) = told(request, *columns, **more)
    return found


# ---- delta sums -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("llm.tokens.input", 12.5, "fractional_quantity"),
        ("llm.tokens.input", 12.0, ""),
        ("agent.seconds", 12.5, ""),
        ("pages.read", 12.5, ""),
    ],
)
def test_part_of_a_unit_of_a_meter_of_whole_ones_is_suspended(name, value, reason):
    (row,) = rows_of(metrics_record(sum_of((10, value), name=name))).events
    assert (row.meter, row.quantity, row.reason) == (name, Decimal(str(value)), reason)
    assert row.raw_value == ("12.5" if reason else "")


def test_a_delta_sum_with_a_customer_counts_under_its_own_name():
    request = sum_of((10, 7), **{"gen_ai.agent.name": "support", "region": "eu", "seats": 3})
    (row,) = rows_of(metrics_record(request)).events
    assert (row.customer_id, row.meter, row.quantity, row.reason) == ("acme", "pages.read", Decimal(7), "")
    assert (row.source, row.agent_name, row.attributes) == ("otel.sum", "support", {"region": "eu", "seats": "3"})
    assert row.event_time == START_NS + 10_000_000_000
    assert row.received_at == RECEIVED_NS


@pytest.mark.parametrize(
    "wrong", ["\0", "\n", "\x1b", "\x7f", "\x85", "\x9b", "\u2028", "\u202e", "\u2066"], ids=lambda it: f"{ord(it):04x}"
)
def test_what_breaks_lines_or_steers_terminals_is_kept_as_a_sign_that_does_not_and_counts(wrong):
    texts = {"gen_ai.response.model": f"m{wrong}", "customer.id": f"acme{wrong}", f"k{wrong}": f"v{wrong}"}
    (row,) = rows_of(metrics_record(sum_of((10, 7), name=f"pages{wrong}", **texts))).events
    assert (row.customer_id, row.meter, row.model, row.reason) == ("acme\ufffd", "pages\ufffd", "m\ufffd", "")
    assert row.attributes == {"k\ufffd": "v\ufffd"}


def test_points_sent_again_have_the_same_identity_and_others_have_another_one():
    first = told(sum_of((10, 7), (20, 7), region="eu"), "event_id")
    again = told(sum_of((10, 7), (20, 7), region="eu"), "event_id", number=2, received_ns=RECEIVED_NS + 5)
    other = told(sum_of((10, 7), (20, 7), region="us"), "event_id")
    later = told(sum_of((10, 7), (20, 7), region="eu", start_ns=START_NS + 1), "event_id")
    renamed = told(sum_of((10, 7), (20, 7), region="eu", name="pages.seen"), "event_id")
    assert first == again
    assert len({*first, *other, *later, *renamed}) == 8


def test_the_order_of_attributes_and_renewed_grants_make_no_other_series():
    request = sum_of((10, 7), region="eu", tier="a")
    turned = sum_of((10, 7), tier="a", region="eu")
    turned.resource_metrics[0].scope_metrics[0].scope.attributes.append(
        KeyValue(key="meterhouse.grants", value=AnyValue(array_value=ArrayValue(values=[AnyValue(string_value="g")])))
    )
    assert told(request, "event_id") == told(turned, "event_id")


def test_an_early_copy_ranks_above_a_late_one_and_both_above_a_suspended_one():
    early = one(sum_of((10, 7)), "first")
    late = one(sum_of((10, 7)), "first", received_ns=RECEIVED_NS + 1)
    suspended = one(sum_of((10, 7)), "first", allowed=["globex"])
    assert early > late > suspended


@pytest.mark.parametrize(
    ("value", "quantity", "raw"),
    [
        (0, "0", ""),
        (10**15, "1000000000000000", ""),
        (0.1, "0.1", ""),
        (1e-9, "0.000000001", ""),
        (0.1 + 0.2, "0.3", "0.30000000000000004"),  # the noise of adding doubles
        (1234567.0000000002, "1234567", "1234567.0000000002"),
        (0.0123456789012345678, "0.012345679", "0.012345678901234568"),
        (-0.0, "0", ""),
    ],
)
def test_a_number_counts_exactly_as_far_as_a_double_is_exact(value, quantity, raw):
    assert one(sum_of((10, value)), "quantity", "raw_value", "reason") == (Decimal(quantity), raw, "")


@pytest.mark.parametrize(
    ("value", "raw"),
    [
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (float("-inf"), "-inf"),
        (-1, "-1"),
        (-0.5, "-0.5"),
        (1.5e-10, "1.5e-10"),
        (1.2345678901234568e-10, "1.2345678901234568e-10"),  # would round to nought
        (1.7e308, "1.7e+308"),
        (10**15 + 1, "1000000000000001"),
        (2**63 - 1, "9223372036854775807"),
        (-(2**63), "-9223372036854775808"),
        (None, ""),
    ],
)
@pytest.mark.parametrize("kind", [DELTA, CUMULATIVE])
def test_a_number_that_cannot_count_is_suspended_with_what_it_was(value, raw, kind):
    found = one(sum_of((10, value), kind=kind), "quantity", "raw_value", "reason")
    assert found == (Decimal(0), raw, "bad_quantity")


def test_a_point_without_a_recorded_value_is_suspended_and_not_nought():
    request = sum_of((10, 0))
    request.resource_metrics[0].scope_metrics[0].metrics[0].sum.data_points[0].flags = 1
    assert one(request, "reason") == ("bad_quantity",)


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"customer.id": ""}, "customer_missing"),
        ({"customer.id": 42}, "bad_identifier"),
        ({"customer.id": "c" * 257}, "bad_identifier"),
        ({"customer.id": "acme", "gen_ai.agent.name": True}, "bad_identifier"),
        ({"otel.metric.overflow": True}, "series_overflow"),
        ({"region": "eu"}, "source_unsupported"),
    ],
)
def test_a_point_that_names_no_usable_customer_is_suspended_with_its_quantity(keys, reason):
    assert one(sum_of((10, 5), customer=None, **keys), "reason", "quantity", "meter") == (reason, 5, "pages.read")


def test_an_attribute_given_twice_is_a_bad_identifier():
    request = sum_of((10, 5))
    point = request.resource_metrics[0].scope_metrics[0].metrics[0].sum.data_points[0]
    point.attributes.extend(attributes({"customer.id": "globex"}))
    assert one(request, "reason", "customer_id") == ("bad_identifier", "acme")


def test_a_customer_that_the_key_may_not_report_for_is_suspended():
    assert one(sum_of((10, 5)), "reason", allowed=["globex"]) == ("customer_forbidden",)
    assert one(sum_of((10, 5)), "reason", allowed=["globex", "acme"]) == ("",)


@pytest.mark.parametrize(
    ("grants", "reason"),
    [
        ([], "grant_missing"),
        ([Granted("globex", "", RECEIVED_NS)], "grant_missing"),
        ([Granted("acme", "agent-2", RECEIVED_NS)], "grant_missing"),
        ([Granted("acme", "", START_NS)], "grant_expired"),
        ([Granted("acme", "", START_NS), Granted("acme", "", RECEIVED_NS)], ""),
        ([Granted("acme", "agent-1", START_NS + 10_000_000_000)], ""),
        ([Granted("acme", "agent-1", START_NS + 9_999_999_999)], "grant_expired"),
    ],
)
def test_a_key_bound_to_grants_needs_one_for_the_customer_the_agent_and_the_time(grants, reason):
    request = sum_of((10, 5), **{"gen_ai.agent.id": "agent-1"})
    assert one(request, "reason", grants=tuple(grants), customers_from=GRANTS) == (reason,)


@pytest.mark.parametrize("kind", [DELTA, CUMULATIVE])
@pytest.mark.parametrize("time_ns", [0, RECEIVED_NS - 400 * DAY_NS - 1, RECEIVED_NS + DAY_NS + 1, 2**64 - 1])
def test_a_time_out_of_range_is_suspended_at_the_time_it_was_received(kind, time_ns):
    request = sum_of((10, 5), kind=kind, start_ns=0)
    request.resource_metrics[0].scope_metrics[0].metrics[0].sum.data_points[0].time_unix_nano = time_ns
    reason, event_time, keys = one(request, "reason", "event_time", "attributes")
    assert (reason, event_time) == ("time_out_of_range", RECEIVED_NS)
    assert keys == {"meterhouse.raw_time_unix_nano": str(time_ns)}


# ---- what is ours, and what cannot count ----------------------------------------------------------------------------


def every_kind():
    request = request_of(event(5), kind=CUMULATIVE)
    add_sum(request, [event(6)], monotonic=False)
    add_sum(request, [event(7)], kind=0)
    add_sum(request, [event(8)], name="requests")
    add_sum(request, [event(9)], name="meterhouse.")
    add_sum(request, [event(9.5), event(0.25)], name="meterhouseX")
    metrics = request.resource_metrics.add().scope_metrics.add().metrics
    metrics.add(name="temperature").gauge.data_points.add(as_double=-3.5, time_unix_nano=RECEIVED_NS)
    metrics.add(name="latency").histogram.data_points.add(count=3, sum=12.5, time_unix_nano=RECEIVED_NS)
    metrics.add(name="size").exponential_histogram.data_points.add(count=2, sum=4, time_unix_nano=RECEIVED_NS)
    metrics.add(name="age").summary.data_points.add(count=1, sum=1.5, time_unix_nano=RECEIVED_NS)
    metrics.add(name="meterhouse.llm.requests").histogram.data_points.add(count=0, time_unix_nano=RECEIVED_NS)
    add_sum(request, [event(4)])  # ours
    return request


def test_in_a_record_of_before_there_was_a_mapping_every_point_is_unsupported_as_it_was_then():
    found = told(every_kind(), "source", "meter", "quantity", "raw_value", "reason", valid_from_ns=0)
    assert sorted(found) == [
        ("otel.exponential_histogram", "size", Decimal(4), "4 sum of 2", "source_unsupported"),
        ("otel.gauge", "temperature", Decimal(0), "-3.5", "source_unsupported"),
        ("otel.histogram", "latency", Decimal("12.5"), "12.5 sum of 3", "source_unsupported"),
        ("otel.histogram", "llm.requests", Decimal(0), " sum of 0", "source_unsupported"),
        ("otel.sum", "llm.tokens.input", Decimal(5), "5", "source_unsupported"),
        ("otel.sum", "llm.tokens.input", Decimal(6), "6", "source_unsupported"),
        ("otel.sum", "llm.tokens.input", Decimal(7), "7", "source_unsupported"),
        ("otel.sum", "meterhouse.", Decimal(9), "9", "source_unsupported"),
        ("otel.sum", "meterhouseX", Decimal("9.75"), "9.75", "source_unsupported"),
        ("otel.sum", "requests", Decimal(8), "8", "source_unsupported"),
        ("otel.summary", "age", Decimal("1.5"), "1.5 sum of 1", "source_unsupported"),
    ]


def test_gauges_summaries_and_sums_that_may_fall_never_count():
    found = told(every_kind(), "source", "meter", "reason")
    assert sorted(row for row in found if row[2]) == [
        ("otel.exponential_histogram", "size", "source_unsupported"),
        ("otel.gauge", "temperature", "source_unsupported"),
        ("otel.histogram", "latency", "source_unsupported"),
        ("otel.histogram", "llm.requests", "source_unsupported"),
        ("otel.sum", "llm.tokens.input", "source_unsupported"),
        ("otel.sum", "llm.tokens.input", "source_unsupported"),
        ("otel.summary", "age", "source_unsupported"),
    ]


@pytest.mark.parametrize(
    ("sent", "foreign"),
    [
        pytest.param(batch(["acme"], 2, "x"), False, id="our events"),
        pytest.param(ExportMetricsServiceRequest(), False, id="nothing"),
        pytest.param(sum_of((1, 1), name="meterhouse.llm.requests"), False, id="ours without exemplars"),
        pytest.param(every_kind(), True, id="every kind"),
        pytest.param(sum_of((1, 1)), True, id="another name"),
        pytest.param(sum_of((1, 1), name="meterhouse."), True, id="no name"),
        pytest.param(total_of((1, 1), name="meterhouse.llm.requests"), True, id="cumulative"),
        pytest.param(sum_of((1, 1), name="meterhouse.llm.requests", monotonic=False), True, id="not monotonic"),
    ],
)
def test_a_record_holds_foreign_metrics_whether_or_not_it_is_marked(sent, foreign):
    assert is_foreign(metrics_record(sent, valid_from_ns=0)) is foreign
    assert is_foreign(metrics_record(sent)) is True
    assert bool(len(rows_of(metrics_record(sent)))) is foreign


# ---- tokens ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exponential", [False, True])
@pytest.mark.parametrize(("token_type", "meter"), [("input", "llm.tokens.input"), ("output", "llm.tokens.output")])
def test_the_sum_of_a_token_histogram_counts(token_type, meter, exponential):
    keys = {"gen_ai.system": "openai", "gen_ai.request.model": "gpt-5", "gen_ai.operation.name": "chat"}
    request = tokens_of((10, 120.0), token_type=token_type, exponential=exponential, **keys)
    assert one(request, "meter", "quantity", "reason", "provider", "model", "operation") == (
        meter,
        Decimal(120),
        "",
        "openai",
        "gpt-5",
        "chat",
    )


def test_tokens_of_a_type_that_nobody_named_are_suspended():
    assert one(tokens_of((10, 5.0), token_type="thinking"), "reason") == ("source_unsupported",)


def test_tokens_without_a_customer_are_suspended_as_such_even_where_the_resource_names_one():
    request = tokens_of((10, 5.0), customer=None)
    request.resource_metrics[0].resource.attributes.extend(attributes({"customer.id": "acme"}))
    assert one(request, "reason", "quantity") == ("customer_missing", 5)


def test_cached_and_reasoning_tokens_are_taken_out_of_the_meter_that_contains_them():
    prefix = "gen_ai.client.inference.usage."
    counts = {
        "input_tokens": 100,
        "cache_read.input_tokens": 60,
        "cache_write.input_tokens": 15,
        "output_tokens": 40,
        "reasoning.output_tokens": 25,
    }
    totals = {}
    for name, count in counts.items():
        for meter, quantity, reason in told(sum_of((10, count), name=prefix + name), "meter", "quantity", "reason"):
            assert reason == ""
            totals[meter] = totals.get(meter, 0) + quantity
    assert totals == {
        "llm.tokens.input": 25,
        "llm.tokens.cache_read": 60,
        "llm.tokens.cache_write": 15,
        "llm.tokens.output": 15,
        "llm.tokens.reasoning": 25,
    }


def test_a_meter_of_another_language_counts_cumulatively_under_its_own_name():
    (point,) = rows_of(metrics_record(total_of((10, 7), name="meterhouse.pages.read"))).points
    assert (point.meter, point.value, point.reason, point.from_zero) == ("pages.read", 7, "", True)


def test_totals_that_a_processor_made_of_our_own_events_do_not_count():
    request = total_of((10, 7), name="meterhouse.llm.requests")
    request.resource_metrics[0].resource.attributes.extend(attributes({"meterhouse.process.id": "process-1"}))
    (point,) = rows_of(metrics_record(request)).points
    assert (point.reason, point.value) == ("exemplars_missing", 7)


# ---- the mapping ----------------------------------------------------------------------------------------------------

MAPPING = """
metrics:
  - metric: shop.pages.*
    meter: pages.read
    customer: tenant
    attributes: {model: llm.model, agent_id: bot}
  - metric: http.server.request.duration
    meter: api.calls
    value: count
  - metric: bytes.out
    meter: megabytes
    scale: "0.000001"
"""


def mapped(*names):
    return parse(MAPPING, "mapping.yaml").for_record(names)


def test_a_rule_says_which_meter_customer_and_columns_a_metric_is():
    request = sum_of((10, 5), name="shop.pages.seen", customer=None, tenant="acme", bot="b-1", **{"llm.model": "gpt-5"})
    columns = "meter", "customer_id", "agent_id", "model", "quantity", "reason"
    found = one(request, *columns, mapping=mapped("shop.pages.seen"))
    assert found == ("pages.read", "acme", "b-1", "gpt-5", 5, "")
    assert one(request, "reason", "meter", mapping=mapped("other")) == ("source_unsupported", "shop.pages.seen")


def test_a_mapped_customer_may_be_a_number_and_may_stand_on_the_resource():
    request = sum_of((10, 5), name="shop.pages.seen", customer=None, tenant=42)
    assert one(request, "customer_id", "reason", mapping=mapped("shop.pages.seen")) == ("42", "")
    request = sum_of((10, 5), name="shop.pages.seen", customer=None)
    request.resource_metrics[0].resource.attributes.extend(attributes({"tenant": "acme"}))
    assert one(request, "customer_id", "reason", mapping=mapped("shop.pages.seen")) == ("acme", "")


def test_a_mapped_metric_without_its_customer_is_suspended_as_customer_missing():
    request = sum_of((10, 5), name="shop.pages.seen")  # customer.id is not the attribute of the rule
    assert one(request, "reason", mapping=mapped("shop.pages.seen")) == ("customer_missing",)


def test_a_rule_may_count_the_observations_of_a_histogram():
    request = ExportMetricsServiceRequest()
    metric = request.resource_metrics.add().scope_metrics.add().metrics.add(name="http.server.request.duration")
    metric.histogram.aggregation_temporality = DELTA
    point = metric.histogram.data_points.add(count=12, sum=0.5, time_unix_nano=RECEIVED_NS)
    point.attributes.extend(attributes({"customer.id": "acme"}))
    found = one(request, "meter", "quantity", "reason", mapping=mapped("http.server.request.duration"))
    assert found == ("api.calls", 12, "")


@pytest.mark.parametrize(
    ("value", "quantity", "reason"),
    [(1_500_000, "1.5", ""), (1, "0.000001", ""), (0.0005, "0", "bad_quantity"), (2 * 10**9, "2000", "")],
)
def test_a_rule_may_scale_a_value_and_what_gets_too_many_decimals_is_suspended(value, quantity, reason):
    found = one(sum_of((10, value), name="bytes.out"), "quantity", "reason", mapping=mapped("bytes.out"))
    assert found == (Decimal(quantity), reason)


# ---- whatever is sent -----------------------------------------------------------------------------------------------

values = st.one_of(
    st.builds(lambda v: AnyValue(string_value=v), st.text(max_size=300)),
    st.builds(lambda v: AnyValue(int_value=v), st.integers(-(2**63), 2**63 - 1)),
    st.builds(lambda v: AnyValue(double_value=v), st.floats()),
    st.builds(lambda v: AnyValue(bool_value=v), st.booleans()),
    st.builds(lambda v: AnyValue(bytes_value=v), st.binary(max_size=10)),
    st.just(AnyValue()),
    st.just(AnyValue(array_value=ArrayValue(values=[AnyValue(int_value=1)]))),
)
NAMES = ["customer.id", "gen_ai.token.type", "gen_ai.agent.name", "otel.metric.overflow", "region", "tenant", ""]
METRICS = [
    "pages",
    "meterhouse.pages",
    "meterhouse.",
    "",
    "x" * 300,
    "gen_ai.client.token.usage",
    "gen_ai.client.inference.usage.cache_read.input_tokens",
    "shop.pages.seen",
    "bytes.out",
]
pairs = st.lists(st.builds(lambda k, v: KeyValue(key=k, value=v), st.sampled_from(NAMES), values), max_size=4)
times = st.sampled_from([0, 1, START_NS, START_NS + 1, RECEIVED_NS, RECEIVED_NS + 2 * DAY_NS, 2**63, 2**64 - 1])
KINDS = ["gauge", "sum", "histogram", "exponential_histogram", "summary"]


@st.composite
def requests(draw):
    request = ExportMetricsServiceRequest()
    for _ in range(draw(st.integers(0, 2))):
        resource = request.resource_metrics.add()
        resource.resource.attributes.extend(draw(pairs))
        scope = resource.scope_metrics.add()
        scope.scope.attributes.extend(draw(pairs))
        for _ in range(draw(st.integers(0, 3))):
            metric = scope.metrics.add(name=draw(st.sampled_from(METRICS)))
            kind = draw(st.sampled_from(KINDS))
            data = getattr(metric, kind)
            data.SetInParent()
            if kind not in ("gauge", "summary"):
                data.aggregation_temporality = draw(st.integers(0, 2))
            if kind == "sum":
                data.is_monotonic = draw(st.booleans())
            for _ in range(draw(st.integers(0, 3))):
                point = data.data_points.add(start_time_unix_nano=draw(times), time_unix_nano=draw(times))
                point.attributes.extend(draw(pairs))
                point.flags = draw(st.integers(0, 3))
                if kind in ("sum", "gauge"):
                    if draw(st.booleans()):
                        point.as_int = draw(st.integers(-(2**63), 2**63 - 1))
                    else:
                        point.as_double = draw(st.floats())
                else:
                    point.count = draw(st.integers(0, 2**64 - 1))
                    if draw(st.booleans()):
                        point.sum = draw(st.floats())
    return request


def _points(request):
    """Of each point that is not ours: how many rows it is."""
    for resource in request.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                kind = metric.WhichOneof("data")
                data = getattr(metric, kind) if kind else None
                ours = (
                    kind == "sum"
                    and data.is_monotonic
                    and data.aggregation_temporality == DELTA
                    and metric.name == "meterhouse.pages"
                )
                for _ in data.data_points if data is not None and not ours else ():
                    yield metric.name


@settings(max_examples=300, deadline=None)
@given(requests(), st.sampled_from([0, START_NS]), st.booleans())
def test_whatever_is_sent_each_point_is_a_row_with_the_same_identity_again_and_nothing_is_raised(request, valid, rules):
    mapping = mapped("shop.pages.seen", "bytes.out") if rules else ""
    record = metrics_record(request, valid_from_ns=valid, mapping=mapping)
    found = rows_of(record)
    names = list(_points(request))
    # A part of the tokens counts under two meters.
    primary = [row for row in found.events + found.points if row.meter != "llm.tokens.input" or row.quantity >= 0]
    assert len(names) <= len(found) <= 2 * len(names)
    assert len(found) == len(names) or any("cache_read" in name for name in names)
    assert all(row.reason or row.customer_id for row in primary)
    assert all(abs(row.quantity) <= 10**15 and row.quantity.as_tuple().exponent >= -9 for row in found.events)
    assert rows_of(record) == found
