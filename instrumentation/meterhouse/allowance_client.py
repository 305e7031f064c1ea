"""Asks the collector what customers may use, and keeps the answers: a few threads, no matter how many customers.

Nothing here blocks whoever calls it but `release`. An answer that does not come leaves the last one standing as long
as it holds; after that the customer's `on_unreachable` decides, and is tried again in the background.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from meterhouse import interrupts, leases
from meterhouse.leases import Lease
from meterhouse.trouble import warn_once

if TYPE_CHECKING:  # imported where they are used: all hosts import this module, and few ask at once
    from concurrent.futures import Future

    from meterhouse.settings import Destination

ENV_LIMITS: Final = "METERHOUSE_LIMITS"
ENV_TIMEOUT_S: Final = "METERHOUSE_ALLOWANCE_TIMEOUT"
ENV_ON_UNREACHABLE: Final = "METERHOUSE_ON_UNREACHABLE"
SWITCH: Final = {"on": ("1", "true", "yes"), "off": ("0", "false", "no")}
POLICIES: Final[dict[str, tuple[str, ...]]] = {leases.ALLOW: (), leases.PAUSE: ()}
TIMEOUT_S: Final = 1.0
THREADS: Final = 32
"""Questions under way at once. They only wait, and end when idle; with few, many customers' first calls at the same
moment would wait for each other until their time is over, and be let."""
IDLE_S: Final = 30.0
LEASES: Final = 10_000
TASKS: Final = 10_000
RELEASE_S: Final = 1.0
RELEASED: Final = 100
LONGEST_ANSWER_BYTES: Final = 1024 * 1024

Key = tuple[str, str]
"""Customer and agent; an agent that is not known is the empty string."""


Reply = tuple[int, Any, str | None]
"""Status, parsed body and Date of an answer."""


class _Asking:
    """A question under way, and what was used meanwhile, by meter, which its answer cannot know of."""

    def __init__(self, known: Lease | None) -> None:
        from concurrent.futures import Future

        self.answer: Future[Lease] = Future()
        self.spent: dict[str, Decimal] = {}
        self.lease_id = known.lease_id if known else ""
        self.used = {meter: str(quantity) for meter, quantity in known.used.items()} if known else {}
        """What the lease's usage was when it was asked for: taken together with the beginning of `spent`."""


class Client:
    """The leases of one process; safe for threads. `leases` and `tasks` may be read without a lock."""

    def __init__(self) -> None:
        self.leases: dict[Key, Lease] = {}
        self.tasks: dict[str, None] = {}
        """Tasks whose model calls were let."""
        self.counting = False
        """Some lease has a number of units."""
        self._policies: dict[str, str] = {}
        self._asking: dict[Key, _Asking] = {}
        # Reentrant: a finaliser may end a call, and count its usage, while this thread is in here.
        self._lock = threading.RLock()
        self._workers = _Workers()

    @property
    def timeout_s(self) -> float:
        """How long an answer may take."""
        from meterhouse.settings import number_of

        return number_of(ENV_TIMEOUT_S, TIMEOUT_S)

    def ask(self, key: Key) -> "Future[Lease]":
        """Ask in the background; whoever asks for the same meanwhile gets the same answer. The answer never raises."""
        with self._lock:
            asking = self._asking.get(key)
            if asking is not None:
                return asking.answer
            asking = _Asking(self.leases.get(key))
            _policy()  # now, not when nobody answers: what is spelled wrongly is told before it matters
            if not _limiting():
                lease = leases.unlimited(time.monotonic(), leases.UNSUPPORTED_AGAIN_S)
                self._keep(key, lease)
                asking.answer.set_result(lease)
                return asking.answer
            self._asking[key] = asking
        # Here, because the waiting call starts the runtime anyway: its imports are no part of the time to answer.
        process_id = _process_id()
        self._workers.run(lambda: self._ask(key, asking, process_id))
        return asking.answer

    def unanswered(self, key: Key) -> Lease:
        """What holds while an answer does not come: the last lease, else what is to be done then."""
        with self._lock:
            now = time.monotonic()
            lease = self.leases.get(key)
            if lease is None or lease.over(now):
                policy = self._policies.get(key[0]) or _policy()
                before, lease = lease, leases.unreachable(now, policy)
                if before is not None:
                    lease.go_on(before)
                self._keep(key, lease)
            else:
                lease.renew_at = now + leases.RETRY_S
            return lease

    def spend(self, key: Key, used: Iterable[tuple[str, int | float]], lease_id: str) -> None:
        """Count usage, whose events name `lease_id`, against the key's lease, and ask for the next one in good time."""
        with self._lock:
            lease, asking = self.leases.get(key), self._asking.get(key)
            for meter, quantity in used:
                if lease is not None:
                    lease.spend(meter, quantity)
                    if lease.lease_id == lease_id:
                        lease.count(meter, quantity)
                if asking is not None and 0 <= quantity <= 10**15:
                    before = asking.spent.get(meter, Decimal(0))
                    asking.spent[meter] = leases.total(before, Decimal(str(quantity)))
            low = lease is not None and lease.left is not None and lease.low is not None and lease.left <= lease.low
            if low and lease is not None:
                lease.low = None
        if low:
            self.ask(key)

    def remember(self, task: str) -> None:
        """A model call of this task was let."""
        with self._lock:
            self.tasks[task] = None
            if len(self.tasks) > TASKS:
                del self.tasks[next(iter(self.tasks))]

    def release(self) -> None:
        """Give back the leases that hold units, for at most a second; what is not released expires."""
        from meterhouse.settings import destination

        bounded = [
            (key, one.lease_id, {meter: str(quantity) for meter, quantity in one.used.items()})
            for key, one in self.leases.items()
            if one.lease_id and (one.left is not None or one.used)
        ]
        goal = destination() if bounded else None
        deadline = time.monotonic() + RELEASE_S
        for key, lease_id, used in bounded[:RELEASED]:
            left_s = deadline - time.monotonic()
            if goal is None or left_s <= 0:
                return
            try:
                _post(goal, _request(key, lease_id, used, release=True), left_s)
            except Exception as error:  # noqa: BLE001 - nobody answers there: the leases expire by themselves
                interrupts.hand_on(error)
                return

    def _ask(self, key: Key, asking: _Asking, process_id: str | None) -> None:
        lease = None
        try:
            reply = self._reply(key, asking, process_id)
            # Under one lock: usage counts against the old lease, and is taken off the new one, or against the new one.
            with self._lock:
                lease = None if reply is None else _lease(*reply, asking.spent)
                if lease is not None:
                    if (before := self.leases.get(key)) is not None:
                        lease.follow(before)
                    self._remember_policy(key[0], lease.on_unreachable)
                    self._keep(key, lease)
                self._asking.pop(key, None)
        except Exception:  # noqa: BLE001 - no network, no such answer, or no JSON: all of it is no answer
            with self._lock:
                self._asking.pop(key, None)
        asking.answer.set_result(self.unanswered(key) if lease is None else lease)

    def _reply(self, key: Key, asking: _Asking, process_id: str | None) -> Reply | None:
        from meterhouse.settings import destination

        goal = destination()
        if goal is None:
            return None
        return _post(goal, _request(key, asking.lease_id, asking.used, process_id), self.timeout_s)

    def _remember_policy(self, customer: str, policy: str) -> None:
        self._policies.pop(customer, None)
        self._policies[customer] = policy
        if len(self._policies) > LEASES:
            del self._policies[next(iter(self._policies))]

    def _keep(self, key: Key, lease: Lease) -> None:
        self.leases.pop(key, None)  # to the end: the one that was renewed longest ago is forgotten first
        self.leases[key] = lease
        if len(self.leases) > LEASES:
            del self.leases[next(iter(self.leases))]
        self.counting = self.counting or lease.left is not None


class _Workers:
    """A few daemon threads that end when there is nothing to do."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.RLock()
        self._threads = 0
        self._free = 0
        """Threads that wait for a job, less the jobs that wait for a thread."""

    def run(self, job: Callable[[], None]) -> None:
        with self._lock:
            self._jobs.put(job)
            self._free -= 1
            if self._free >= 0 or self._threads >= THREADS:
                return
            self._threads += 1
        try:
            threading.Thread(target=self._work, name="meterhouse-allowance", daemon=True).start()
        except RuntimeError:  # the interpreter ends: no thread starts any more, and whoever waits has a bound
            with self._lock:
                self._threads -= 1

    def _work(self) -> None:
        while True:
            with self._lock:
                self._free += 1
            try:
                self._jobs.get(timeout=IDLE_S)()
            except queue.Empty:
                with self._lock:
                    self._free -= 1
                    if self._free >= 0 or self._jobs.empty():
                        self._threads -= 1
                        return


def _limiting() -> bool:
    from meterhouse.settings import choice_of

    return choice_of(ENV_LIMITS, SWITCH, "on") == "on"


def _policy() -> str:
    """What to do with a customer of whom nothing is known while nobody answers."""
    from meterhouse.settings import choice_of

    return choice_of(ENV_ON_UNREACHABLE, POLICIES, leases.ALLOW)


_sessions = threading.local()


def _lease(status: int, reply: Any, date: str | None, spent: dict[str, Decimal]) -> Lease | None:
    """The lease of an answer, None where it says nothing. Raises ValueError for a body that is no answer."""
    now = time.monotonic()
    if status in (404, 405):  # a collector of before allowances, or another program
        return leases.unlimited(now, leases.UNSUPPORTED_AGAIN_S)
    if status != 200:
        _tell(status)
        return None
    return leases.granted(reply, date, now, spent)


def _post(goal: "Destination", request: dict[str, Any], timeout_s: float) -> Reply:
    """The answer to one request. Raises what requests and urllib3 raise, or ValueError."""
    import json

    import requests
    from opentelemetry.instrumentation.utils import suppress_instrumentation

    from meterhouse.settings import tls_options

    session = getattr(_sessions, "session", None)
    if session is None:
        session = _sessions.session = requests.Session()

    def authorize(prepared: requests.PreparedRequest) -> requests.PreparedRequest:
        if goal.api_key:
            prepared.headers["Authorization"] = f"Bearer {goal.api_key}"
        return prepared

    url = goal.endpoint.rstrip("/") + "/v1/allowance"
    # An auth callable, or requests would prefer an entry of ~/.netrc for this host.
    with (
        suppress_instrumentation(),
        session.post(
            url,
            json=request,
            auth=authorize,
            timeout=timeout_s,
            allow_redirects=False,
            stream=True,
            **tls_options(),
        ) as answer,
    ):
        body = answer.raw.read(LONGEST_ANSWER_BYTES + 1, decode_content=True)
    if len(body) > LONGEST_ANSWER_BYTES:
        raise ValueError(f"the answer has more than {LONGEST_ANSWER_BYTES} bytes")
    return answer.status_code, json.loads(body) if answer.status_code == 200 else None, answer.headers.get("Date")


def _request(
    key: Key, lease_id: str, used: dict[str, str], process_id: str | None = None, *, release: bool = False
) -> dict[str, Any]:
    return {
        "customer_id": key[0],
        "agent_id": key[1] or None,
        "process_id": process_id,
        "lease_id": lease_id or None,
        "used": used,
        "release": release,
    }


def _process_id() -> str | None:
    from meterhouse.runtime import runtime

    running = runtime()
    return None if running is None else running.process_id


def _tell(status: int) -> None:
    warn_once(
        "allowance", "Meterhouse was refused the allowance of a customer (HTTP %d): see METERHOUSE_API_KEY.", status
    )
