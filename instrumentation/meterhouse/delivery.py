"""One attempt to hand a batch to the collector, through the stock OTLP/HTTP exporter, and what came of it.

The stock exporter tells success from failure and no more. Read in its source (1.39 to 1.45): it takes a redirect for a
success, never reads `partial_success`, puts the host's OTEL_EXPORTER_OTLP_HEADERS on the request, and logs an error for
every failure. So it is given a `requests` session of ours, which sees the real answer and sets the real headers.
"""

import enum
import logging
import threading
from typing import Any

import requests
from google.protobuf.message import DecodeError
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.sdk.metrics.export import MetricExportResult, MetricsData
from requests.structures import CaseInsensitiveDict
from urllib3.exceptions import MaxRetryError, NewConnectionError

from meterhouse.settings import Destination, tls_options
from meterhouse.vocabulary import ENV_API_KEY, ENV_ENDPOINT

TIMEOUT_S = 10.0
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
    """Sends our headers only, and remembers the last answer."""

    def __init__(self, destination: Destination) -> None:
        super().__init__()
        self._destination = destination
        self.answer: requests.Response | None = None
        self.failure: Exception | None = None
        """Why there is no answer."""
        # An auth callable of our own, or requests would prefer an entry of ~/.netrc for this host.
        self.auth = self._authorize

    def request(self, method: Any, url: Any, *args: Any, **kwargs: Any) -> requests.Response:
        self.answer = self.failure = None
        self.headers = CaseInsensitiveDict()
        kwargs["headers"] = {"Content-Type": PROTOBUF, "Content-Encoding": "gzip"}
        kwargs["allow_redirects"] = False
        kwargs |= tls_options()
        try:
            self.answer = super().request(method, url, *args, **kwargs)
        except Exception as error:
            self.failure = error
            raise
        return self.answer

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._destination.api_key:
            request.headers["Authorization"] = f"Bearer {self._destination.api_key}"
        return request


class Unreachable(requests.RequestException):
    """No connection could be made: refused, or no such host."""


class _ImpatientSession(Session):
    """Fails at once where nobody listens, or nobody that speaks TLS.

    The stock exporter would wait and try again for seconds, and a process that ends would wait with it. Ours is tried
    again by the loop that owns it, from the journal.
    """

    def request(self, method: Any, url: Any, *args: Any, **kwargs: Any) -> requests.Response:
        try:
            return super().request(method, url, *args, **kwargs)
        except requests.exceptions.ConnectionError as error:
            if isinstance(error, requests.exceptions.SSLError):  # a wrong address or certificate stays one for seconds
                raise Unreachable(str(error)) from error
            # Only this one: a connection that was kept open and has gone stale is rightly made again at once.
            cause = error.args[0] if error.args else None
            if isinstance(cause, MaxRetryError) and isinstance(cause.reason, NewConnectionError):
                raise Unreachable(str(cause.reason)) from error
            raise


class Delivery:
    """The way to one destination. Not safe for threads: one exporter thread owns it."""

    def __init__(self, destination: Destination) -> None:
        self.destination = destination
        self.why = ""
        """After an attempt that was not acknowledged: why, in a few words."""
        self._session = _ImpatientSession(destination)
        self._exporter = OTLPMetricExporter(
            endpoint=destination.metrics_url,
            timeout=TIMEOUT_S,
            compression=Compression.Gzip,
            session=self._session,
        )
        _silence_own_thread()

    def attempt(self, batch: MetricsData) -> Outcome:
        """Send the batch; ACKNOWLEDGED only when the collector said that all of it is on disk."""
        self._session.answer = None
        _own.sending = True
        try:
            with suppress_instrumentation():
                result = self._exporter.export(batch)
        except Exception:  # noqa: BLE001 - until 1.41 it raises what it logs later; `_judge` finds out what it was
            result = MetricExportResult.FAILURE
        finally:
            _own.sending = False
        return self._judge(batch, result)

    def stop(self) -> None:
        """End a retry that is being waited for; later attempts fail."""
        self._exporter.shutdown()

    def _judge(self, batch: MetricsData, result: MetricExportResult) -> Outcome:
        answer = self._session.answer
        if answer is None:
            # The stock exporter fails in the same words for a batch that it could not even encode.
            unencodable = _unencodable(batch)
            self.why = unencodable or _unanswered(self._session.failure)
            return Outcome.DIVIDE if unencodable else Outcome.UNREACHABLE
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
        if result is not MetricExportResult.SUCCESS or answer.status_code != requests.codes.ok:
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


def _unanswered(failure: Exception | None) -> str:
    """Why no answer came. Never in the words of an error about headers: they show the key."""
    if isinstance(failure, requests.exceptions.SSLError):
        cause = failure.args[0] if failure.args else failure
        return f"no TLS connection: {getattr(cause, 'reason', cause)!s:.200}"
    if isinstance(failure, ValueError) and not isinstance(failure, requests.RequestException):  # http.client's
        return f"the key cannot be sent as a header: see {ENV_API_KEY}"
    if isinstance(failure, OSError) and not isinstance(failure, requests.RequestException):
        return f"{failure!s:.200}"  # a file of the TLS settings is not there
    return "nobody answers there"


def _unencodable(batch: MetricsData) -> str:
    """Why OTLP has no room for the batch; empty where it has."""
    try:
        encode_metrics(batch)
    except Exception as error:  # noqa: BLE001 - what the encoder raises depends on what is wrong, and on its version
        return f"it cannot be encoded as OTLP: {error!s:.200}"
    return ""


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
    # The exporter's errors are ours to report, once per outage; the host's own exporter keeps its log.
    for name in ("opentelemetry.exporter.otlp.proto.http.metric_exporter", "urllib3.connectionpool"):
        logger = logging.getLogger(name)
        if _of_others not in logger.filters:
            logger.addFilter(_of_others)
