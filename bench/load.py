"""A load generator for the collector: one process, many connections, a request on each, as cheap as Python can.

    python bench/load.py HOST PORT KEY --events 500 --connections 16 --seconds 180 [--rate R]

Prints one line of JSON: {"requests", "events", "seconds", "refused", "ack_ms": {"p50", "p99", "max"}}. The events have
distinct ids and times of the last seconds: a request is a template whose ids are replaced by random ones, and its time
by that of its sending, so that making one costs little beside what the collector does with it.
"""

import argparse
import json
import os
import random
import selectors
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

ID = b"@" * 28
"""Stands in the template for the random part of a call's id, which is also in its event's id."""
TIME = b"~TIME~ns"
"""Stands in the template for its events' time, 8 bytes on the wire."""
LATE_NS = 5_000_000_000
"""An agent exports so long after its events at most."""
OK = b"HTTP/1.1 200"


@dataclass
class Result:
    """What came of a run; latencies in ms, from the first byte sent until the reply."""

    requests: int = 0
    refused: int = 0
    seconds: float = 0.0
    ack_ms: list[float] = field(default_factory=list)

    def quantile(self, share: float) -> float:
        ordered = sorted(self.ack_ms)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def template(events: int, *, seed: int = 0) -> bytes:
    """A request with ID in every event id and call id."""
    calls = [f"{ID.decode()}-{number:04}" for number in range(events)]
    ids = [(f"{call}-i", call) for call in calls]
    return request_of(ids, seed=seed, time_ns=int.from_bytes(TIME, "little"))


def request_of(
    ids: Sequence[tuple[str, str]], *, seed: int, customer: str = "customer-", time_ns: int | None = None
) -> bytes:
    """A request as the instrumentation sends it, of events with these ids and call ids: 20 customers at most."""
    rng, now = random.Random(seed), time.time_ns() if time_ns is None else time_ns
    request = ExportMetricsServiceRequest()
    metric = request.resource_metrics.add().scope_metrics.add().metrics.add(name="meterhouse.llm.tokens.input")
    metric.sum.aggregation_temporality, metric.sum.is_monotonic = 1, True
    points = min(20, len(ids))
    for at in range(points):
        point = metric.sum.data_points.add(time_unix_nano=now)
        point.attributes.extend(
            _texts(
                {
                    "customer.id": f"{customer}{at}",
                    "gen_ai.agent.name": "support",
                    "gen_ai.provider.name": "openai",
                    "gen_ai.response.model": "gpt-5-mini",
                    "meterhouse.status": "ok",
                }
            )
        )
        for event_id, call_id in ids[at::points]:
            quantity = rng.randrange(1, 5000)
            point.as_int += quantity
            exemplar = point.exemplars.add(as_int=quantity, time_unix_nano=now)
            keys = {"meterhouse.event.id": event_id, "meterhouse.call.id": call_id, "usage.source": "reported"}
            exemplar.filtered_attributes.extend(_texts(keys))
    return request.SerializeToString()


def _texts(values: dict[str, str]) -> list[KeyValue]:
    return [KeyValue(key=key, value=AnyValue(string_value=value)) for key, value in values.items()]


def run(
    address: tuple[str, int],
    key: str,
    *,
    events: int,
    connections: int,
    seconds: float,
    rate: float | None = None,
) -> Result:
    """Keep a request under way on each connection for so long; `rate`: at most so many requests a second."""
    bodies = [template(events, seed=seed) for seed in range(8)]
    head = (
        f"POST /v1/metrics HTTP/1.1\r\nHost: {address[0]}\r\nContent-Type: application/x-protobuf\r\n"
        f"Authorization: Bearer {key}\r\nContent-Length: %d\r\n\r\n"
    )
    requests = [((head % len(body)).encode() + body).split(ID) for body in bodies]
    result, begun = Result(), {}
    selector = selectors.DefaultSelector()
    idle: list[socket.socket] = []
    for _ in range(connections):
        one = socket.create_connection(address)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        selector.register(one, selectors.EVENT_READ)
        idle.append(one)
    started = time.perf_counter()
    sent = 0
    while (now := time.perf_counter()) < started + seconds or begun:
        due = len(idle) if rate is None else min(len(idle), int((now - started) * rate) - sent)
        if now >= started + seconds:
            due = 0
        for _ in range(due):
            connection = idle.pop()
            request = _with_ids(requests[sent % len(requests)], events)
            begun[connection] = time.perf_counter()
            connection.sendall(request)
            sent += 1
        for ready, _ in selector.select(0.001 if rate is not None else 0.05):
            connection = ready.fileobj
            answer = connection.recv(65536)
            result.ack_ms.append(1000 * (time.perf_counter() - begun.pop(connection)))
            if answer.startswith(OK):
                result.requests += 1
            else:
                result.refused += 1
                if not answer:
                    raise RuntimeError("the collector closed a connection")
            idle.append(connection)
    result.seconds = time.perf_counter() - started
    return result


def _with_ids(parts: list[bytes], events: int) -> bytes:
    """The request's parts joined by an id for each event, which stands twice in it."""
    made = os.urandom(14 * events).hex().encode()
    ids = [made[at : at + 28] for at in range(0, 28 * events, 28)]
    joined = [b""] * (2 * len(parts) - 1)
    joined[::2] = parts
    joined[1::4] = joined[3::4] = ids
    happened_ns = time.time_ns() - random.randrange(LATE_NS)
    return b"".join(joined).replace(TIME, happened_ns.to_bytes(8, "little"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("key")
    parser.add_argument("--events", type=int, default=500)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rate", type=float)
    told = parser.parse_args()
    result = run(
        (told.host, told.port),
        told.key,
        events=told.events,
        connections=told.connections,
        seconds=told.seconds,
        rate=told.rate,
    )
    told_ms = {"p50": result.quantile(0.5), "p99": result.quantile(0.99), "max": result.quantile(1)}
    print(
        json.dumps(
            {
                "requests": result.requests,
                "events": result.requests * told.events,
                "seconds": result.seconds,
                "refused": result.refused,
                "ack_ms": told_ms,
            }
        )
    )


if __name__ == "__main__":
    main()
