"""One attempt to hand a batch to the collector by OTLP/HTTP, and what came of it.

The stock exporter tells success from failure and no more. Read in its source (1.39 to 1.45): it takes a redirect for a
success, never reads `partial_success`, puts the host's OTEL_EXPORTER_OTLP_HEADERS on the request, logs an error for
every failure and waits seconds before it tries again, where our loop goes on from the journal. So the request goes out
through a session of our own, which MeterhouseMetricExporter gives to the stock exporter as well.
"""

import enum
import gzip
import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import requests
from google.protobuf.message import DecodeError
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from requests.structures import CaseInsensitiveDict
from urllib3.exceptions import MaxRetryError, NewConnectionError

from meterhouse.events import UsageEvent
from meterhouse.pipeline import export_request
from meterhouse.settings import Destination, tls_options
from meterhouse.vocabulary import ENV_API_KEY, ENV_ENDPOINT

TIMEOUT_S = 10.0
"""To connect, and between two bytes of the answer."""
GZIP_LEVEL = 1
"""A tenth more bytes than at 6, for two fifths of the CPU: most of what differs between events is random ids."""
PROTOBUF = "application/x-protobuf"
REFUSED_FOR_GOOD = frozenset({400, 422})
"""The server read the batch and says that it is bad: the same bytes will be refused again."""


class Outcome(enum.Enum):
    """What came of an attempt, as far as it differs in what to do next."""

    ACKNOWLEDGED = "acknowledged"
    RETRY = "retry"
    """The collector did not take this batch now."""
    UNREACHABLE = "unreachable"
    """Nobody answers, or the key is not known: no other batch would fare better."""
    DIVIDE = "divide"
    """The batch cannot go as one: it cannot be encoded, or is too large."""
    REFUSED = "refused"

    @property
    def again(self) -> bool:
        """True when the same batch has to be sent again later."""
        return self in (Outcome.RETRY, Outcome.UNREACHABLE)


class Session(requests.Session):
    """Sends our headers only."""

    def __init__(self, destination: Destination) -> None:
        super().__init__()
        self._destination = destination
        # An auth callable of our own, or requests would prefer an entry of ~/.netrc for this host.
        self.auth = self._authorize

    def request(self, method: Any, url: Any, *args: Any, **kwargs: Any) -> requests.Response:
        self.headers = CaseInsensitiveDict()
        kwargs["headers"] = {"Content-Type": PROTOBUF, "Content-Encoding": "gzip"}
        kwargs["allow_redirects"] = False
        kwargs |= tls_options()
        return super().request(method, url, *args, **kwargs)

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._destination.api_key:
            request.headers["Authorization"] = f"Bearer {self._destination.api_key}"
        return request


class Delivery:
    """The way to one destination. Not safe for threads: one exporter thread owns it."""

    def __init__(self, destination: Destination) -> None:
        self.destination = destination
        self.why = ""
        """After an attempt that was not acknowledged: why, in a few words."""
        self._session = Session(destination)
        _silence_own_thread()

    def attempt(self, resource: Mapping[str, str], events: Sequence[UsageEvent]) -> Outcome:
        """Send these events of one process; ACKNOWLEDGED only when the collector said that all of them are on disk."""
        try:
            body = export_request(resource, events).SerializeToString()
        except (ValueError, TypeError, OverflowError) as error:
            self.why = f"it cannot be encoded as OTLP: {error!s:.200}"
            return Outcome.DIVIDE
        _own.sending = True
        try:
            with suppress_instrumentation():
                answer = self._posted(gzip.compress(body, GZIP_LEVEL))
        except Exception as error:  # noqa: BLE001 - what requests, urllib3, http.client and ssl raise is no short list
            self.why = _unanswered(error)
            return Outcome.UNREACHABLE
        finally:
            _own.sending = False
        return self._judge(answer)

    def _posted(self, body: bytes) -> requests.Response:
        try:
            return self._session.post(self.destination.metrics_url, data=body, timeout=TIMEOUT_S)
        except requests.ConnectionError as error:
            if not _gone_stale(error):
                raise
            return self._session.post(self.destination.metrics_url, data=body, timeout=TIMEOUT_S)

    def _judge(self, answer: requests.Response) -> Outcome:
        if answer.status_code == requests.codes.unauthorized:
            key = "it does not know the key" if self.destination.api_key else "no key is set"
            self.why = f"HTTP 401, {key}: see {ENV_API_KEY}"
            return Outcome.UNREACHABLE
        if answer.status_code == requests.codes.request_entity_too_large:
            self.why = "HTTP 413: it is too large"
            return Outcome.DIVIDE
        if answer.status_code in REFUSED_FOR_GOOD:
            self.why = f"HTTP {answer.status_code}: {answer.text:.200}"
            return Outcome.REFUSED
        if answer.status_code == requests.codes.not_found:
            self.why = f"HTTP 404: {ENV_ENDPOINT} is the collector's address, without a path"
            return Outcome.RETRY
        if answer.status_code != requests.codes.ok:
            self.why = f"HTTP {answer.status_code}"
            return Outcome.RETRY
        try:
            rejected = _rejected(answer)
        except DecodeError:  # a proxy's or another program's 200: nobody has stored anything
            self.why = "HTTP 200, but the answer is not OTLP: is that the collector?"
            return Outcome.RETRY
        if rejected:
            self.why = rejected
            return Outcome.REFUSED
        return Outcome.ACKNOWLEDGED


def _gone_stale(error: requests.ConnectionError) -> bool:
    """True for a connection that broke, as one that was kept open does: made again at once."""
    if isinstance(error, requests.exceptions.SSLError | requests.Timeout):
        return False
    cause = error.args[0] if error.args else None
    return not (isinstance(cause, MaxRetryError) and isinstance(cause.reason, NewConnectionError))


def _unanswered(failure: Exception) -> str:
    """Why no answer came. Never in the words of an error about headers: they show the key."""
    if isinstance(failure, requests.exceptions.SSLError):
        cause = failure.args[0] if failure.args else failure
        return f"no TLS connection: {getattr(cause, 'reason', cause)!s:.200}"
    if isinstance(failure, requests.RequestException):
        return "nobody answers there"
    if isinstance(failure, ValueError):  # http.client's
        return f"the key cannot be sent as a header: see {ENV_API_KEY}"
    return f"{failure!s:.200}"  # a file of the TLS settings is not there, for one


def _rejected(answer: requests.Response) -> str:
    """What the collector did not take, in words; raises DecodeError when it was no collector that answered."""
    # An empty body is a full acknowledgement in OTLP, and in nothing else: the type is what tells.
    if answer.headers.get("Content-Type", "").partition(";")[0].strip().lower() != PROTOBUF:
        raise DecodeError("not protobuf")
    partial = ExportMetricsServiceResponse.FromString(answer.content).partial_success
    points = partial.rejected_data_points
    return f"{points} points rejected: {partial.error_message:.200}" if points else ""


_own = threading.local()


def _of_others(_record: logging.LogRecord) -> bool:
    return not getattr(_own, "sending", False)


def _silence_own_thread() -> None:
    # What goes wrong is ours to report, once per outage; the host's own requests keep their log.
    logger = logging.getLogger("urllib3.connectionpool")
    if _of_others not in logger.filters:
        logger.addFilter(_of_others)
