"""Erasing a customer from the journal: nothing names them any more, nothing else changes, and a tombstone says so."""

import base64
import json
import os
from datetime import UTC, datetime

import collector_samples as samples
import pytest
from foreign_samples import sum_of
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from meterhouse import grants
from meterhouse_collector import erasure, sealing, segments
from meterhouse_collector.erasure import CannotErase, erase
from meterhouse_collector.foreign import rows_of
from meterhouse_collector.inbox import Inbox
from meterhouse_collector.records import Granted, Record, decode, encode, frames
from meterhouse_collector.segments import Position

NAME, LAST = "01234567-00000001-11111111.seg", "01234567-00000002-22222222.seg"
AT = datetime(2026, 11, 21, 3, 5, tzinfo=UTC)
NOBODY = {"who": "jane", "why": "ticket 17", "at": AT, "is_taken": lambda _name: False}


def request():
    """Two points of acme-inc around one of globex; what names acme is in all places where it can be."""
    found = samples.request_of(
        samples.event(5, "acme-event-1", extra={"gen_ai.conversation.id": "jane@acme-inc", "meterhouse.once": "true"}),
        samples.event(7, None, extra={"user": 12345}),
        point={"customer.id": "acme-inc", "gen_ai.response.model": "gpt-5-mini", "department": "sales of acme-inc"},
    )
    samples.add_sum(found, [samples.event(11, "globex-event")], point={"customer.id": "globex", "note": "not acme-inc"})
    samples.add_sum(found, [samples.event(13, "acme-event-2")], point={"customer.id": "acme-inc"}, value=14)
    key = str(grants.new_key())
    tokens = [grants.sign(name, key=key) for name in ("acme-inc", "globex")]
    scope = found.resource_metrics[0].scope_metrics[0].scope
    attribute = scope.attributes.add(key="meterhouse.grants")
    for token in tokens:
        attribute.value.array_value.values.add(string_value=token)
    return found


def frame(metrics, number=1, namespace="live"):
    granted = (Granted("acme-inc", "", 2**62), Granted("globex", "", 2**62))
    raw, name = metrics.SerializeToString(), f"{number:032x}"
    return encode(Record("key-1", namespace, ("globex", "acme-inc"), 10**18 + number, name, NAME, raw, granted))


def frame_of_globex(number=1):
    raw = samples.request_of(samples.event(1, "other"), point={"customer.id": "globex"}).SerializeToString()
    return encode(Record("key-2", "live", (), 10**18 + number, f"{number:032x}", NAME, raw))


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "collector_id").write_text("01234567" * 4)
    whole = frame_of_globex(1) + frame(request(), 2) + frame_of_globex(3) + frame(request(), 4, "test")
    (tmp_path / NAME).write_bytes(whole)
    (tmp_path / LAST).write_bytes(frame(request(), 5))
    return tmp_path


def records(directory, name=NAME):
    data = segments.content(directory, name)
    return [decode(data[one.body : one.end]) for one in frames(data, name) if one.intact]


@pytest.mark.parametrize("is_compressed", [False, True])
def test_nothing_names_the_customer_and_all_others_are_as_they_were(directory, is_compressed):
    before = segments.content(directory, NAME)
    if is_compressed:
        sealing.compress(directory, NAME)
    told = records(directory)
    found = erase(directory, "acme-inc", "live", **NOBODY)
    after = segments.content(directory, NAME)
    assert len(after) == len(before)
    assert sealing.is_compressed(directory, NAME) == is_compressed
    now = records(directory)
    assert [(r.record_id, r.received_at_ns) for r in now] == [(r.record_id, r.received_at_ns) for r in told]
    assert [now[0], now[2], now[3]] == [told[0], told[2], told[3]]  # the last one is of another namespace
    assert b"acme-inc" not in encode(now[1]).replace(b"not acme-inc", b"")  # what globex wrote is globex's
    assert now[1].allowed_customers == ("globex", found.pseudonym)
    assert [one.customer_id for one in now[1].grants] == [found.pseudonym, "globex"]
    scope = ExportMetricsServiceRequest.FromString(now[1].metrics).resource_metrics[0].scope_metrics[0].scope
    kept = [value.string_value for value in scope.attributes[0].value.array_value.values]
    customers = [part for token in kept for part in [token.split(".")[1]] if token.startswith("mhg.")]
    assert [json.loads(base64.urlsafe_b64decode(part + "=="))["c"] for part in customers] == ["globex"]
    assert found.records == 2 and found.left == ()


def test_the_points_keep_their_places_quantities_and_what_they_are_priced_by(directory):
    erase(directory, "acme-inc", "live", **NOBODY)
    told = ExportMetricsServiceRequest.FromString(records(directory)[1].metrics)
    points = [scope.metrics[0].sum.data_points[0] for one in told.resource_metrics for scope in one.scope_metrics]
    assert [point.as_int for point in points] == [12, 11, 14]
    assert [[one.as_int for one in point.exemplars] for point in points] == [[5, 7], [11], [13]]
    first = {one.key: one.value.string_value for one in points[0].attributes}
    assert first["gen_ai.response.model"] == "gpt-5-mini"
    assert "sales" not in first["department"] and len(first["department"]) == len("sales of acme-inc")
    event = {one.key: one.value for one in points[0].exemplars[0].filtered_attributes}
    assert event["meterhouse.once"].string_value == "true"
    assert len(event["meterhouse.event.id"].string_value) == len("acme-event-1")
    assert "@" in event["gen_ai.conversation.id"].string_value  # no valid identifier before, nor now
    assert points[0].exemplars[1].filtered_attributes[0].value.int_value not in (0, 12345)
    assert points[1] == request().resource_metrics[1].scope_metrics[0].metrics[0].sum.data_points[0]


def test_a_copy_of_an_event_in_another_record_is_still_its_copy(directory):
    erase(directory, "acme-inc", "live", **NOBODY)
    ids = [
        ExportMetricsServiceRequest.FromString(record.metrics)
        .resource_metrics[2]
        .scope_metrics[0]
        .metrics[0]
        .sum.data_points[0]
        .exemplars[0]
        .filtered_attributes[0]
        .value.string_value
        for record in (records(directory)[1], records(directory, LAST)[0])
    ]
    assert ids[0] == ids[1] != "acme-event-2"


def test_the_tombstone_says_who_when_and_why_is_signed_and_does_not_name_the_customer(directory):
    found = erase(directory, "acme-inc", "live", **NOBODY)
    text = found.tombstone.read_text()
    told = json.loads(text)
    assert (told["who"], told["why"], told["at"]) == ("jane", "ticket 17", "2026-11-21T03:05:00+00:00")
    assert [one["segment"] for one in told["segments"]] == [NAME, LAST]
    assert told["segments"][0]["records"] == [[f"{2:032x}", len(frame_of_globex())]]
    assert "acme-inc" not in text and not list(directory.glob("tombstones/*.open"))
    assert erasure.mistakes(directory) == []
    found.tombstone.write_text(text.replace("ticket 17", "ticket 18"))
    assert "changed after it was signed" in erasure.mistakes(directory)[0]


def test_a_segment_that_is_put_back_after_the_erasure_is_told(directory):
    before = (directory / NAME).read_bytes()
    found = erase(directory, "acme-inc", "live", **NOBODY)
    (directory / NAME).write_bytes(before)
    assert erasure.mistakes(directory) == [
        f"{NAME} is not what the erasure {found.erasure_id} left: an older copy, or changed since"
    ]


@pytest.mark.parametrize("step", range(8))
def test_an_erasure_that_was_interrupted_anywhere_goes_on_with_the_same_pseudonym(directory, monkeypatch, step):
    real, calls = segments.write_durably, []

    def stops(file, data):
        calls.append(file.name)
        if len(calls) == step + 1:
            raise OSError("interrupted")
        real(file, data)

    before = len(segments.content(directory, NAME))
    monkeypatch.setattr(segments, "write_durably", stops)
    try:
        erase(directory, "acme-inc", "live", **NOBODY)
    except OSError:
        pass
    else:
        assert len(calls) <= step
    monkeypatch.undo()
    opened = [json.loads(file.read_text())["pseudonym"] for file in directory.glob("tombstones/*.open")]
    found = erase(directory, "acme-inc", "live", **NOBODY)
    assert opened in ([], [found.pseudonym])
    assert len(segments.content(directory, NAME)) == before
    told = [record for tombstone in erasure.tombstones(directory) for record in tombstone["segments"]]
    assert sorted({one["segment"] for one in told}) == [NAME, LAST]
    assert erasure.mistakes(directory) == []
    assert not list(directory.glob("tombstones/*.open"))


def test_what_cannot_be_read_is_told_and_left(directory):
    data = bytearray(segments.content(directory, NAME))
    data[len(frame_of_globex()) + 60] ^= 1
    (directory / NAME).write_bytes(data)
    (directory / "x.torn").write_bytes(b"... acme-inc ...")
    left = erase(directory, "acme-inc", "live", **NOBODY).left
    assert [text.split(" from ")[0].split(" was ")[0] for text in left] == [NAME, "x.torn"]


def test_a_plain_file_that_a_crash_left_beside_the_compressed_one_does_not_bring_the_customer_back(directory):
    whole = (directory / NAME).read_bytes()
    sealing.compress(directory, NAME)
    (directory / NAME).write_bytes(whole)
    erase(directory, "acme-inc", "live", **NOBODY)
    (directory / NAME).unlink()
    assert not (directory / (NAME + ".zst")).exists()


def test_an_id_that_stands_for_another_in_the_journal_is_refused_and_nothing_is_changed(directory):
    (directory / NAME).write_bytes(frame(samples.request_of(samples.event(1), point={"customer.id": "acme\n"})))
    before = (directory / NAME).read_bytes()
    with pytest.raises(CannotErase, match="U\\+FFFD in an id stands for a character that is not stored as it came"):
        erase(directory, "acme\ufffd", "live", **NOBODY)
    assert (directory / NAME).read_bytes() == before and not (directory / "tombstones").exists()


def test_a_short_id_gets_no_pseudonym_that_is_somebody_elses(directory):
    (directory / NAME).write_bytes(frame(samples.request_of(samples.event(1), point={"customer.id": "a"})))
    free = lambda name: name != "7"  # noqa: E731
    assert erase(directory, "a", "live", **NOBODY | {"is_taken": free}).pseudonym == "7"
    with pytest.raises(CannotErase, match="no free pseudonym of 1 characters"):
        erase(directory, "b", "live", **NOBODY | {"is_taken": lambda name: True})


def test_the_customer_of_a_foreign_source_is_found_where_its_mapping_says(directory):
    traces = ExportTraceServiceRequest()
    resource = traces.resource_spans.add()
    for customer in ("acme-inc", "globex"):
        span = resource.scope_spans.add().spans.add(trace_id=b"t" * 16, span_id=b"s" * 8, name="chat")
        named = {
            "tenant": customer,
            "gen_ai.response.id": f"r-{len(customer)}",
            "thread": customer,
            "gen_ai.usage.input_tokens": 17,
        }
        span.attributes.extend(samples.attributes(named))
    mapping = json.dumps({"spans": {"customer": "tenant"}})
    record = Record(
        "key-1", "live", (), 10**18, "0" * 32, NAME, b"", traces=traces.SerializeToString(), mapping=mapping
    )
    (directory / NAME).write_bytes(encode(record))
    found = erase(directory, "acme-inc", "live", **NOBODY)
    told = ExportTraceServiceRequest.FromString(records(directory)[0].traces)
    spans = [scope.spans[0] for scope in told.resource_spans[0].scope_spans]
    first = {one.key: one.value for one in spans[0].attributes}
    assert first["tenant"].string_value == found.pseudonym
    assert first["gen_ai.response.id"].string_value == "r-8"  # which spans count twice hangs on it
    assert first["thread"].string_value not in ("acme-inc", "")
    assert first["gen_ai.usage.input_tokens"].int_value == 17
    assert (spans[0].trace_id, spans[0].span_id) == (b"t" * 16, b"s" * 8)
    assert spans[1] == traces.resource_spans[0].scope_spans[1].spans[0]


def test_beside_a_running_collector_the_warehouse_has_the_same_totals_without_the_customer(collector, database):
    journal = collector.data / "journal"
    assert collector.post(request(), key=collector.key)[0] == 200
    assert collector.post(request(), key=collector.key)[0] == 200
    samples.wait_projected(database)
    totals = "SELECT reason, count(), sum(quantity) FROM (SELECT '' AS reason, quantity FROM usage UNION ALL \
        SELECT reason, quantity FROM suspense) GROUP BY reason ORDER BY reason"
    before = database.query(totals).result_rows
    suspended = "SELECT event_id FROM suspense WHERE event_id LIKE 'suspended-%' ORDER BY 1"
    names = database.query(suspended).result_rows
    found = erase(journal, "acme-inc", "live", **NOBODY)
    watermark = "SELECT segment, position FROM watermark"
    samples.wait_for(
        lambda: Position(*database.query(watermark).result_rows[0]) >= found.through, what="the projection"
    )
    database.command("DELETE FROM events WHERE namespace = 'live' AND customer_id = 'acme-inc'")
    database.command("DELETE FROM conflicts WHERE namespace = 'live' AND customer_id = 'acme-inc'")
    erasure.replay(journal, found, Inbox(database))
    assert database.query(totals).result_rows == before
    assert database.query(suspended).result_rows == names
    customers = database.query("SELECT DISTINCT customer_id FROM events ORDER BY 1").result_rows
    assert sorted(row[0] for row in customers) == sorted(["globex", found.pseudonym])
    rebuilt = collector.command("warehouse", "rebuild", "--json")
    assert json.loads(rebuilt.stdout)["differences"] == [], rebuilt.stderr
    assert os.listdir(journal / "tombstones") == [f"{found.erasure_id}.json"]


def test_every_position_stays_what_it_was(directory):
    position = segments.end(directory)
    erase(directory, "acme-inc", "live", **NOBODY)
    assert segments.end(directory) == position


def test_a_customer_who_is_a_number_is_the_same_one_as_a_number_and_as_text(directory):
    mapping = json.dumps({"metrics": [{"metric": "pages.*", "customer": "tenant"}]})
    sums = [sum_of((1, 5), name="pages.read", customer=None, tenant=tenant) for tenant in (12345, "12345", 54321)]
    whole = b"".join(
        encode(Record("key-1", "live", (), 10**18, f"{number:032x}", NAME, one.SerializeToString(), mapping=mapping,
                      valid_from_ns=1))
        for number, one in enumerate(sums)
    )  # fmt: skip
    (directory / NAME).write_bytes(whole)
    found = erase(directory, "12345", "live", **NOBODY)
    assert found.pseudonym.isdigit() and found.pseudonym != "12345"
    rows = [event for record in records(directory) for event in rows_of(record).events]
    assert [(row.customer_id, row.quantity) for row in rows] == [
        (found.pseudonym, 5),
        (found.pseudonym, 5),
        ("54321", 5),
    ]


def test_series_that_differ_by_a_number_or_a_short_text_stay_two(directory):
    names = [{"seat": 1}, {"seat": 2}, {"seat": 0.5}, {"seat": 0.25}, {"seat": "a"}, {"seat": "b"}]
    whole = b"".join(
        encode(Record("key-1", "live", (), 10**18, f"{number:032x}", NAME,
                      sum_of((1, 5), customer="acme-inc", **of_series).SerializeToString(), valid_from_ns=1))
        for number, of_series in enumerate(names)
    )  # fmt: skip
    (directory / NAME).write_bytes(whole)
    erase(directory, "acme-inc", "live", **NOBODY)
    rows = [event for record in records(directory) for event in rows_of(record).events]
    assert len({row.event_id for row in rows}) == 6
    # A value takes the place of another of its size, or by chance its own: of six, not all do.
    found = {row.attributes["seat"] for row in rows}
    assert found != {str(one["seat"]) for one in names} and not found & {"0.5", "0.25"}


def test_rows_that_were_decided_about_are_told_by_their_old_names_until_they_are_forgotten(directory):
    (directory / LAST).write_bytes(frame(sum_of((1, 5), customer="acme-inc", seat=3), 5))
    before = rows_of(records(directory, LAST)[0]).events[0].event_id
    decided = {"acme-event-1", "globex-event", before}
    found = erase(directory, "acme-inc", "live", decided=decided, **NOBODY)
    after = rows_of(records(directory, LAST)[0]).events[0].event_id
    point = ExportMetricsServiceRequest.FromString(records(directory)[1].metrics).resource_metrics[0]
    exemplar = point.scope_metrics[0].metrics[0].sum.data_points[0].exemplars[0]
    assert after != before
    assert found.renamed == {
        ("acme-inc", "acme-event-1"): (found.pseudonym, exemplar.filtered_attributes[0].value.string_value),
        ("acme-inc", before): (found.pseudonym, after),
    }
    assert erasure.new_names(directory, found.erasure_id) == found.renamed
    erasure.forget_names(directory, found.erasure_id)
    assert [file.suffix for file in directory.glob("tombstones/*")] == [".json"]
    assert erasure.new_names(directory, found.erasure_id) == {}


def test_a_segment_that_cannot_be_read_is_named_before_anything_is_rewritten(directory):
    before = segments.content(directory, NAME)
    damaged = NAME.replace("00000001", "00000009")
    (directory / f"{damaged}.zst").write_bytes(b"no table of blocks")
    with pytest.raises(CannotErase, match=f"{damaged} is damaged and cannot be read"):
        erasure.count(directory, "acme", "live")
    assert segments.content(directory, NAME) == before
