"""Delivers the sandbox's events to a webhook endpoint: signed, at least once, a bounded number of times.

Signature: https://docs.stripe.com/webhooks/signature (`t=<seconds>,v1=<HMAC-SHA256 of "t.body">`).
"""

import hashlib
import hmac
import json
import logging
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from meterhouse_sandbox.stripe_faults import Faults
from meterhouse_sandbox.stripe_state import State

MAX_ATTEMPTS = 12
FIRST_DELAY_S = 0.2
MAX_DELAY_S = 60.0
TIMEOUT_S = 10.0
SHOWN_OF_A_REPLY = 300

_log = logging.getLogger(__name__)


def signature(payload: bytes, secret: str, at: int) -> str:
    """The value of the header `Stripe-Signature`."""
    signed = hmac.new(secret.encode(), b"%d." % at + payload, hashlib.sha256).hexdigest()
    return f"t={at},v1={signed}"


class Deliverer:
    """A thread that posts due events; `wake` tells it that there are new ones, `stop` ends it."""

    def __init__(self, file: Path, url: str, secret: str, faults: Faults) -> None:
        self._file, self._url, self._secret, self._faults = file, url, secret, faults
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="stripe-webhooks", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        self._wake.set()

    def stop(self) -> None:
        self._stopping.set()
        self._wake.set()
        self._thread.join(TIMEOUT_S + 1)

    def _run(self) -> None:
        state = State(self._file, webhooks=True)
        while not self._stopping.is_set():
            self._wake.clear()
            for event, attempts in self._faults.webhooks(state.due_deliveries(time.time())):
                if self._stopping.is_set():
                    break
                self._deliver(state, event, attempts + 1)
            self._wake.wait(0.2)
        state.close()

    def _deliver(self, state: State, event: dict[str, object], attempt: int) -> None:
        name = str(event["id"])
        problem = self._post(json.dumps(event).encode())
        told = (event["type"], name, self._url, problem)
        if problem is None:
            state.delivered(name)
        elif attempt >= MAX_ATTEMPTS:
            _log.warning("%s %s is given up, %s did not take it: %s", *told)
            state.delivered(name)  # stays in /v1/events for those who poll
        else:
            if attempt == 1:
                _log.warning("%s %s is sent again, %s did not take it: %s", *told)
            delay_s = min(MAX_DELAY_S, FIRST_DELAY_S * 2 ** (attempt - 1))
            state.delivery_failed(name, attempt, time.time() + delay_s)

    def _post(self, payload: bytes) -> str | None:
        """Post once; None when the endpoint answered 2xx, else what went wrong."""
        headers = {
            "Content-Type": "application/json",
            "Stripe-Signature": signature(payload, self._secret, int(time.time())),
        }
        request = urllib.request.Request(self._url, data=payload, headers=headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S):
                return None
        except urllib.error.HTTPError as refusal:
            with refusal:
                said = " ".join(refusal.read(SHOWN_OF_A_REPLY).decode(errors="replace").split())
            return f"HTTP {refusal.code} {said}".rstrip()
        except (urllib.error.URLError, OSError) as problem:
            return str(problem)
