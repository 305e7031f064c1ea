"""Hostile clients: each limit of the doors is met by one that goes beyond it, while an honest one is served."""

import http.client
import resource
import socket
import threading
import time
from contextlib import ExitStack, suppress

import grpc
import pytest
from collector_samples import event, request_of, wait_for
from google.rpc.error_details_pb2 import RetryInfo
from local_doors import KEY, running

from meterhouse_collector.extents import REQUEST_BYTES
from meterhouse_collector.intake import HELD_BYTES
from meterhouse_collector.journal import Journal
from meterhouse_collector.refusals import SERIES, Refused
from meterhouse_collector.series import SeriesLimit

EXPORT = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"
AUTHORIZATION = f"Bearer {KEY}"
GOOD = request_of(event(1)).SerializeToString()
HEAD = (
    f"POST /v1/metrics HTTP/1.1\r\nhost: x\r\nauthorization: {AUTHORIZATION}\r\n"
    "content-type: application/x-protobuf\r\n"
)


def connected(doors):
    return socket.create_connection(doors.http[:2], timeout=30)


def everything(connection):
    """What the server says until it closes; a reset is an end, too."""
    found = b""
    try:
        while part := connection.recv(65536):
            found += part
    except ConnectionError:
        pass
    return found


def is_served(doors):
    connection = http.client.HTTPConnection(*doors.http[:2], timeout=30)
    connection.request(
        "POST", "/v1/metrics", GOOD, {"Authorization": AUTHORIZATION, "Content-Type": "application/x-protobuf"}
    )
    reply = connection.getresponse()
    connection.close()
    return reply.status == 200


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Doors that lose patience within half a second."""
    with running(
        tmp_path_factory.mktemp("quick"), seconds={"head_s": 0.5, "body_s": 0.5}, grpc_options={"body_s": 0.5}
    ) as doors:
        yield doors


@pytest.mark.parametrize("head", [b"", b"POST /v1/met", HEAD.encode()])
def test_a_head_that_does_not_end_is_not_waited_for(quick, head):
    with connected(quick) as slow:
        slow.sendall(head)
        started = time.monotonic()
        answer = everything(slow)
        assert answer.startswith(b"HTTP/1.1 408 ") and b"head took longer than 0.5 s" in answer
        assert time.monotonic() - started < 15
    assert is_served(quick)


@pytest.mark.parametrize(
    ("more", "status"), [(b"POST /v1/met", b"408 "), (b"GET / HTTP/1.1\r\nx: " + b"x" * 200_000, b"431 ")]
)
def test_a_later_head_on_a_connection_is_answered_like_the_first(quick, more, status):
    with connected(quick) as slow:
        slow.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        first = b""
        while not first.endswith(b"}"):
            first += slow.recv(100_000)
        assert first.startswith(b"HTTP/1.1 200 ")
        slow.sendall(more)
        assert everything(slow).startswith(b"HTTP/1.1 " + status)


def test_dripping_bytes_wins_no_time(quick):
    with connected(quick) as slow:
        started = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - started < 20:
                slow.sendall(b"P" if time.monotonic() - started < 0.1 else b"x")
                time.sleep(0.05)
        assert time.monotonic() - started < 15


def test_a_body_that_does_not_come_is_not_waited_for_and_nothing_is_stored(quick):
    before = len(quick.reported)
    with connected(quick) as slow:
        slow.sendall(HEAD.encode() + b"content-length: 1000\r\n\r\n0123")
        assert b"body took longer than 0.5 s" in everything(slow)
    wait_for(lambda: len(quick.reported) > before)
    assert quick.reported[-1][0] == "malformed"


def test_a_body_has_its_own_time_when_that_of_the_head_is_over(tmp_path):
    with running(tmp_path, seconds={"head_s": 0.2, "body_s": 1.5}) as doors, connected(doors) as slow:
        slow.sendall(HEAD.encode() + b"content-length: 1000\r\n\r\n0123")
        assert b"body took longer than 1.5 s" in everything(slow)


def test_a_head_has_its_own_time_also_behind_a_body_that_took_longer(tmp_path):
    with running(tmp_path, seconds={"head_s": 0.2, "body_s": 60.0}) as doors, connected(doors) as slow:
        slow.sendall(HEAD.encode() + b"content-length: %d\r\n\r\n" % len(GOOD) + GOOD[:5])
        time.sleep(0.5)
        slow.sendall(GOOD[5:])
        assert slow.recv(65536).startswith(b"HTTP/1.1 200 ")
        slow.sendall(b"POST /v1/met")
        everything(slow)  # it is closed within half a minute, or this raises


def test_a_body_in_chunks_that_never_end_is_cut_off(quick):
    with connected(quick) as slow:
        slow.sendall(HEAD.encode() + b"transfer-encoding: chunked\r\n\r\n")
        with pytest.raises(OSError):
            for _ in range(200):
                slow.sendall(b"1\r\nx\r\n")
                time.sleep(0.05)


def test_a_head_has_a_size(tmp_path):
    with running(tmp_path) as doors:
        with connected(doors) as greedy:
            greedy.sendall(HEAD.encode() + b"x: ")
            time.sleep(0.2)
            greedy.sendall(b"y" * 65_537)
            assert everything(greedy).startswith(b"HTTP/1.1 431 ")
        with connected(doors) as greedy, pytest.raises(OSError):
            for _ in range(10_000):
                greedy.sendall(b"POST / HTTP/1.1\r\n" if not _ else b"x: y\r\n" * 100)
                time.sleep(0.01)
        assert is_served(doors)


def test_what_stands_beside_a_body_has_a_size(tmp_path):
    # Extensions of chunks and trailers: neither is in the body, nor in the head.
    with running(tmp_path) as doors:
        for beside in (b"1;" + b"e" * 400_000 + b"\r\nx\r\n", b"1\r\nx\r\n0\r\nt: " + b"e" * 400_000):
            with connected(doors) as greedy:
                greedy.sendall(HEAD.encode() + b"transfer-encoding: chunked\r\n\r\n")
                time.sleep(0.2)
                with suppress(ConnectionError):
                    for at in range(0, len(beside), 10_000):
                        greedy.sendall(beside[at : at + 10_000])
                        time.sleep(0.02)
                everything(greedy)  # returns: it was closed
        assert is_served(doors)


def test_connections_have_a_limit_in_all_and_for_each_address(tmp_path):
    with running(tmp_path, connections=(3, 2)) as doors, ExitStack() as open_ones:
        for _ in range(2):
            open_ones.enter_context(connected(doors))
        wait_for(lambda: doors.slots.open.total() == 2)
        with connected(doors) as third:
            answer = everything(third)
        assert answer.startswith(b"HTTP/1.1 503 ") and b"your address has its 2 connections" in answer
        assert b"retry-after: 1" in answer
        assert doors.slots.refused == 1
        open_ones.close()
        wait_for(lambda: doors.slots.open.total() == 0)
        assert is_served(doors)


def test_a_huge_body_with_a_wrong_key_is_answered_before_it_comes_and_is_not_read(tmp_path):
    with running(tmp_path) as doors:
        with connected(doors) as guesser:
            guesser.sendall(HEAD.replace(KEY, "mh_wrong").encode() + b"content-length: 10000000000\r\n\r\n")
            assert guesser.recv(65536).startswith(b"HTTP/1.1 401 ")
            sent = 0
            with pytest.raises(OSError):
                while sent < 10 * REQUEST_BYTES:
                    guesser.sendall(b"\0" * 65536)
                    sent += 65536
        assert doors.reported == [("unauthenticated", False, 0, 0)]
        assert doors.intake.held_bytes == 0
        assert is_served(doors)


def test_who_sends_somewhat_too_much_and_then_listens_sees_why_it_is_refused(tmp_path):
    with running(tmp_path) as doors:
        for key, status in (("mh_wrong", 401), (KEY, 413)):
            connection = http.client.HTTPConnection(*doors.http[:2], timeout=60)
            head = {"Authorization": f"Bearer {key}", "Connection": "close"}
            connection.request("POST", "/v1/metrics", b"\0" * (REQUEST_BYTES + 100_000), head)
            assert connection.getresponse().status == status
            connection.close()
        assert [(code, size) for code, _, _, size in doors.reported] == [("unauthenticated", 0), ("too_large", 0)]


def test_over_grpc_a_message_of_a_wrong_key_is_not_read_either(tmp_path):
    with running(tmp_path) as doors, grpc.insecure_channel(doors.grpc) as channel:
        sent = []

        def endless():
            for _ in range(1000):
                sent.append(1)
                yield b"\0" * 2**20
                time.sleep(0.01)

        with pytest.raises(grpc.RpcError) as refusal:
            channel.stream_unary(EXPORT)(endless(), metadata=[("authorization", "Bearer mh_wrong")])
        assert refusal.value.code() == grpc.StatusCode.UNAUTHENTICATED
        assert len(sent) < 900
        assert doors.reported == [("unauthenticated", False, 0, 0)]


def test_over_grpc_a_call_is_one_message_within_a_time(quick):
    metadata = [("authorization", AUTHORIZATION)]

    def slowly():
        time.sleep(3)
        yield GOOD

    with grpc.insecure_channel(quick.grpc) as channel:
        for messages, code, says in (
            (iter([GOOD, GOOD]), grpc.StatusCode.INVALID_ARGUMENT, "several messages"),
            (iter([]), grpc.StatusCode.INVALID_ARGUMENT, "no message"),
            (slowly(), grpc.StatusCode.UNAVAILABLE, "longer than 0.5 s"),
        ):
            with pytest.raises(grpc.RpcError) as refusal:
                channel.stream_unary(EXPORT)(messages, metadata=metadata)
            assert (refusal.value.code(), says in refusal.value.details()) == (code, True), refusal.value.details()
        assert channel.unary_unary(EXPORT)(GOOD, metadata=metadata) == b""


def test_over_grpc_metadata_has_a_size(quick):
    with grpc.insecure_channel(quick.grpc) as channel:
        with pytest.raises(grpc.RpcError) as refusal:
            channel.unary_unary(EXPORT)(GOOD, metadata=[("authorization", AUTHORIZATION), ("x", "y" * 40_000)])
        assert refusal.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_grpc_connections_have_a_limit(tmp_path):
    def asks(doors, number):
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0), ("test", number)]
        return grpc.insecure_channel(doors.grpc, options)

    metadata = [("authorization", AUTHORIZATION)]
    with running(tmp_path, grpc_options={"connections": 2}) as doors, ExitStack() as open_ones:
        for number in range(2):
            channel = open_ones.enter_context(asks(doors, number))
            channel.unary_unary(EXPORT)(GOOD, metadata=metadata)
        with asks(doors, 2) as third, pytest.raises(grpc.RpcError) as refusal:
            third.unary_unary(EXPORT)(GOOD, metadata=metadata, timeout=5)
        assert refusal.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def test_calls_that_never_end_are_limited_for_each_address_and_then_others_are_served(tmp_path):
    metadata = [("authorization", AUTHORIZATION)]
    with (
        running(tmp_path, grpc_options={"calls_per_address": 2, "body_s": 20}) as doors,
        grpc.insecure_channel(doors.grpc) as channel,
    ):
        silence = threading.Event()

        def never():
            silence.wait(60)
            yield GOOD

        def begin():
            return channel.stream_unary(EXPORT).future(never(), metadata=metadata)

        under_way = [begin(), begin()]

        def is_refused():
            # The call below may have been there first, and one of these have been refused beside it.
            if not silence.is_set():
                under_way[:] = [begin() if call.done() else call for call in under_way]
            try:
                channel.unary_unary(EXPORT)(GOOD, metadata=metadata)
            except grpc.RpcError as refusal:
                return refusal
            return None

        refusal = wait_for(is_refused, what="the limit")
        assert refusal.code() == grpc.StatusCode.UNAVAILABLE  # with RetryInfo: usage is sent again
        assert "your address has its 2 calls" in refusal.details()
        assert "google.rpc.retryinfo-bin" in dict(refusal.trailing_metadata())
        for call in under_way:
            call.cancel()
        silence.set()
        wait_for(lambda: is_refused() is None, what="room for others")


SETTINGS = b"\0\0\0\x04\0\0\0\0\0"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SETTINGS
PING = b"\0\0\x08\x06\0\0\0\0\0" + b"\0" * 8


def opened_and_reset(stream):
    """HEADERS of a POST to an export (HPACK, nothing indexed but what HPACK has), and RST_STREAM at once."""
    block = b"\x83\x86\x04" + bytes([len(EXPORT)]) + EXPORT.encode() + b"\x41\x01x\x5f\x10application/grpc"
    number = stream.to_bytes(4)
    head = len(block).to_bytes(3) + b"\x01\x04" + number + block
    return head + b"\0\0\x04\x03\0" + number + b"\0\0\0\x08"


@pytest.mark.parametrize(
    "flood",
    [
        lambda _number: SETTINGS,
        lambda _number: PING,
        lambda number: opened_and_reset(2 * number + 1),
    ],
    ids=["settings", "pings", "resets"],
)
def test_floods_of_http2_frames_cost_bounded_memory_and_others_are_served(tmp_path, flood):
    metadata = [("authorization", AUTHORIZATION)]
    with running(tmp_path) as doors, grpc.insecure_channel(doors.grpc) as honest:
        honest.unary_unary(EXPORT)(GOOD, metadata=metadata)
        before = resident_bytes()
        host, _, port = doors.grpc.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=5) as raw, suppress(OSError):
            raw.sendall(PREFACE)
            for start in range(0, 50_000, 500):
                raw.sendall(b"".join(flood(number) for number in range(start, start + 500)))
                raw.setblocking(False)
                with suppress(BlockingIOError):
                    while raw.recv(65536):
                        pass
                raw.settimeout(5)
            assert honest.unary_unary(EXPORT)(GOOD, metadata=metadata, timeout=20) == b""
        assert honest.unary_unary(EXPORT)(GOOD, metadata=metadata, timeout=20) == b""
        assert resident_bytes() - before < 100 * 2**20


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def test_all_requests_under_way_share_the_memory_there_is(tmp_path):
    with running(tmp_path) as doors:
        doors.intake.held_bytes = HELD_BYTES - 10
        connection = http.client.HTTPConnection(*doors.http[:2], timeout=30)
        head = {"Authorization": AUTHORIZATION, "Content-Type": "application/x-protobuf"}
        connection.request("POST", "/v1/metrics", GOOD, head)
        reply = connection.getresponse()
        assert (reply.status, reply.headers["retry-after"]) == (503, "1")
        connection.close()
        assert doors.intake.held_bytes == HELD_BYTES - 10
        doors.intake.held_bytes = 0
        assert is_served(doors)
        assert doors.intake.held_bytes == 0


def test_overload_of_a_real_journal_is_503_with_retry_after_and_unavailable_with_both_trailers(tmp_path):
    stuck, free = threading.Event(), threading.Event()

    def sync(_descriptor):
        stuck.set()
        free.wait(30)

    journal = Journal(tmp_path / "j", on_fatal=print, reserve_bytes=0, waiting_bytes=len(GOOD) + 1, sync=sync)
    with running(tmp_path, journal=journal) as doors, ExitStack() as later:
        later.callback(free.set)
        waiting = [threading.Thread(target=is_served, args=(doors,)) for _ in range(2)]
        for sender in waiting:
            sender.start()
            stuck.wait(10)
        wait_for(lambda: journal.waiting_bytes)
        connection = http.client.HTTPConnection(*doors.http[:2], timeout=30)
        head = {"Authorization": AUTHORIZATION, "Content-Type": "application/x-protobuf"}
        connection.request("POST", "/v1/metrics", GOOD, head)
        reply = connection.getresponse()
        assert (reply.status, reply.headers["retry-after"]) == (503, "1")
        connection.close()
        with grpc.insecure_channel(doors.grpc) as channel, pytest.raises(grpc.RpcError) as refusal:
            channel.unary_unary(EXPORT)(GOOD, metadata=[("authorization", AUTHORIZATION)])
        assert refusal.value.code() == grpc.StatusCode.UNAVAILABLE
        trailers = dict(refusal.value.trailing_metadata())
        assert RetryInfo.FromString(trailers["google.rpc.retryinfo-bin"]).retry_delay.seconds == 1
        assert "grpc-status-details-bin" in trailers
        free.set()
        for sender in waiting:
            sender.join()
        assert [code for code, *_ in doors.reported].count("") == 2


def series(*names, metric="http.requests"):
    request = request_of((1, 0, [], {}), name=metric, point={"n": names[0]})
    for name in names[1:]:
        request.MergeFrom(request_of((1, 0, [], {}), name=metric, point={"n": name}))
    return request


def test_distinct_series_of_foreign_metrics_have_a_limit_by_credential_and_hour():
    now = [7200.0]
    limit = SeriesLimit(3, clock_s=lambda: now[0])
    limit.check("a", series("1", "2"))
    limit.check("a", series("1", "2", "3"))
    with pytest.raises(Refused, match="at most 3 distinct series") as refusal:
        limit.check("a", series("3", "4"))
    assert refusal.value.kind is SERIES
    limit.check("a", series("3"))  # those that are known go on
    limit.check("b", series("4", "5", "6"))
    limit.check("a", series(*"456789", metric="meterhouse.llm.requests"))  # our own events have no limit
    now[0] += 3600
    limit.check("a", series("4", "5", "6"))


def test_too_many_series_are_answered_with_words_and_when_to_come_again(tmp_path):
    with running(tmp_path, series=SeriesLimit(1)) as doors:
        with grpc.insecure_channel(doors.grpc) as channel, pytest.raises(grpc.RpcError) as refusal:
            channel.unary_unary(EXPORT)(
                series("1", "2").SerializeToString(), metadata=[("authorization", AUTHORIZATION)]
            )
        assert refusal.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "google.rpc.retryinfo-bin" in dict(refusal.value.trailing_metadata())
        assert doors.reported == [("too_many_series", True, 0, len(series("1", "2").SerializeToString()))]
