"""A model provider and an OTLP receiver on free ports of this machine, for the measurements and proofs of the agent."""

import gzip
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMPLETION = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-5-mini",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "y" * 400}, "finish_reason": "stop"}],
    "usage": {
        "prompt_tokens": 100,
        "completion_tokens": 40,
        "total_tokens": 140,
        "prompt_tokens_details": {"cached_tokens": 60},
        "completion_tokens_details": {"reasoning_tokens": 25},
    },
}
CHUNK = {
    "id": "c",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": "gpt-5-mini",
    "choices": [{"index": 0, "delta": {"content": "y"}, "finish_reason": None}],
}


class Served:
    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads, self._http.block_on_close = True, False
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()


class Provider(Served):
    """Answers chats of both kinds and logs the id of every request that it read."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.agents: set[str] = set()
        """The names of the agents that have called, as their header `x-agent` gives them."""
        log, agents = self.log, self.agents

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_POST(self) -> None:
                size = int(self.headers["content-length"])
                sent = self.rfile.read(size)
                if len(sent) < size:
                    return  # killed while it sent
                body = json.loads(sent)
                log.append(self.headers["x-client-request-id"])
                agents.add(self.headers["x-agent"])
                self.send_response(200)
                self.send_header("content-type", "text/event-stream" if body.get("stream") else "application/json")
                self.end_headers()
                try:
                    if body.get("stream"):
                        self._stream()
                    else:
                        self.wfile.write(json.dumps(COMPLETION).encode())
                except OSError:
                    pass  # killed

            def _stream(self) -> None:
                last = {**CHUNK, "choices": [], "usage": COMPLETION["usage"]}
                for document in [CHUNK] * 5 + [last]:
                    self.wfile.write(b"data: " + json.dumps(document).encode() + b"\n\n")
                    time.sleep(0.01)
                self.wfile.write(b"data: [DONE]\n\n")

        super().__init__(Handler)


class Sink(Served):
    """Keeps the OTLP requests that it acknowledged."""

    def __init__(self) -> None:
        self._bodies: list[bytes] = []
        bodies = self._bodies

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                usage = self.path == "/v1/metrics"
                if usage:
                    bodies.append(gzip.decompress(body))
                self.send_response(200 if usage else 404)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", "0")
                self.end_headers()

        super().__init__(Handler)

    def events(self) -> list[tuple[str, str, str, float]]:
        from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

        found = []
        for body in self._bodies:
            for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                for metric in resource.scope_metrics[0].metrics:
                    for point in metric.sum.data_points:
                        status = {pair.key: pair.value.string_value for pair in point.attributes}["meterhouse.status"]
                        for exemplar in point.exemplars:
                            own = {pair.key: pair.value.string_value for pair in exemplar.filtered_attributes}
                            what = f"{metric.name.removeprefix('meterhouse.')} {status}"
                            ids = own["meterhouse.event.id"], own["meterhouse.request.id"]
                            found.append((*ids, what, float(exemplar.as_int)))
        return found
