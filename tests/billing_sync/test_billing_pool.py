"""Many customers at once: within Stripe's limits, each once, told in a stable order, whatever happens on the way."""

import io
import json
import threading
import urllib.request
from base64 import b64encode
from collections import Counter
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from meterhouse_billing import pace, pool, records
from meterhouse_billing.gateway import LiveKeyRefused, StripeRefused, StripeUnavailable, WrongSetting, connect
from meterhouse_billing.pace import TEST, Limits, Pacer, endpoint_of
from meterhouse_billing.world import World
from meterhouse_store import audit_book, roles, tables
from meterhouse_store.progress import counting
from meterhouse_store.roles import NotAllowed
from meterhouse_store.sql import begin_write


class Clock:
    """Time that only passes while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def took(limits: Limits, calls: list[tuple[str, str]]) -> float:
    """Seconds until the last of the calls began."""
    clock = Clock()
    pacer = Pacer(limits, clock, clock.sleep)
    for method, path in calls:
        pacer.wait(method, path)
    return clock.now


def test_of_an_endpoint_25_calls_a_second_begin_whatever_they_are_about():
    assert took(Limits(), [("GET", f"/v1/invoices/in_1MtHbELkdIwHu7ix4OzzP{n:03}") for n in range(25)]) == 0
    assert took(Limits(), [("GET", f"/v1/invoices/in_1MtHbELkdIwHu7ix4OzzP{n:03}") for n in range(26)]) == 1.05
    assert took(Limits(), [("get", "/v1/customers/search")] * 21) == 1.05
    assert endpoint_of("post", "/v1/invoices/in_1MtHbELkdIwHu7ix/add_lines") == "POST /v1/invoices/{id}/add_lines"


def test_of_an_account_100_calls_a_second_begin_and_meter_events_are_not_among_them():
    four = [("POST", f"/v1/{name}") for name in ("customers", "invoices", "products", "prices")]
    assert took(Limits(), four * 25) == 0
    assert took(Limits(), [*four * 25, ("GET", "/v1/events")]) == 1.05
    events = [("POST", "/v1/billing/meter_events")] * 1000
    assert took(Limits(), [*four * 25, *events]) == 0
    assert took(Limits(), [*events, events[0]]) == 1.05
    # In test mode there are 25 for all, meter events included.
    assert took(TEST, [*four * 6, events[0]]) == 0
    assert took(TEST, [*four * 6, *events[:2]]) == 1.05


def test_what_stripe_asks_to_wait_is_waited_for_and_no_longer_than_a_minute(sandbox):
    gateway = sandbox.gateway()
    control(sandbox, "faults", {"script": ["429"]})  # its answer says Retry-After: 1
    gateway.send("customer.create", {"params": {"name": "Acme"}}, "key")
    assert sandbox.sleeps[-1] == 1.0
    gateway.pause(1, 3600.0)
    assert sandbox.sleeps[-1] == 60.0


def test_a_run_keeps_to_the_limits_and_every_invoice_is_what_was_rated(books, tmp_path, serve, monkeypatch):
    from meterhouse_sandbox.stripe_server import application

    # A call may be on its way a second longer than the 26th after it, on a machine with more to do than two cores can:
    # that every call is paced is asked here; how closely, above.
    monkeypatch.setattr(pace, "WINDOW_S", 2.05)
    for number in range(27):
        books.rating(f"c{number:02}", [("usage", "tokens", "10", 100 + number)])
    with serve(application(tmp_path / "limited", limits=True)) as server:
        environment = {"STRIPE_API_KEY": "sk_test_1", "METERHOUSE_STRIPE_URL": server.url}
        # 27 customers one endpoint after the other, of which each takes 25 a second
        gateway = connect(environment | {"METERHOUSE_STRIPE_PER_S": "100"}, live=False)
        world = World(books.engine, gateway, "test", "anna")
        drafts = records.drafts(books.engine, "test", period="2026-10")
        steps = list(pool.work(pool.jobs(world, drafts, [], approve=True), 16))
        assert not [step for step in steps if step.failed]
        refused = json.load(urllib.request.urlopen(f"{server.url}/_sandbox/refused"))
        totals = [row["stripe_total_minor"] for row in records.all_invoices(books.engine, "test")]
        assert totals == list(range(100, 127))
        assert refused == {"refused": 0}


def test_no_two_threads_work_for_one_customer_and_the_order_is_that_of_the_customers(books, world):
    for month in (8, 9, 10):
        for name in ("acme", "globex", "umbrella", "zenith"):
            books.rating(name, [("usage", "tokens", "10", 100 + month)], month=month)
    at_work: Counter[str] = Counter()
    together, most = [], []
    send, lock = world.gateway.send, threading.Lock()

    def watched(operation: str, request: Any, key: str) -> dict[str, Any]:
        name = threading.current_thread().name
        with lock:
            at_work[name] += 1
            together.append(name)
            most.append(sum(at_work.values()))
        try:
            return send(operation, request, key)
        finally:
            with lock:
                at_work[name] -= 1

    world.gateway.send = watched
    drafts = records.drafts(books.engine, "test")
    steps = list(pool.work(pool.jobs(world, drafts, [], approve=True), 4))
    assert [step.customer_id for step in steps] == sorted(step.customer_id for step in steps)
    finalised = [step.text.split(",")[1] for step in steps if "finalised" in step.text]
    assert finalised == [" 1.08 USD", " 1.09 USD", " 1.10 USD"] * 4  # the earliest first
    assert max(most) > 1, "they were one after the other"
    of_customer = [len(list(job())) for job in pool.jobs(world, drafts, [], approve=True)]
    assert len(of_customer) == 4  # a job is all of a customer's, and done once


@pytest.mark.parametrize("dies_at", [2, 7, 11])
def test_a_run_that_dies_in_the_middle_of_several_customers_is_continued_with_the_same_invoices(
    books, world, sandbox, dies_at
):
    class Killed(BaseException):
        pass

    for number in range(5):
        books.rating(f"c{number}", [("usage", "tokens", "10", 1000 + number)])
    drafts = records.drafts(books.engine, "test")
    send, sent, lock = world.gateway.send, [], threading.Lock()

    def dying(operation: str, request: Any, key: str) -> dict[str, Any]:
        with lock:
            sent.append(operation)
            now = len(sent)
        answer = send(operation, request, key)
        if now >= dies_at:
            raise Killed
        return answer

    world.gateway.send = dying
    with pytest.raises(Killed):
        list(pool.work(pool.jobs(world, drafts, [], approve=True), 3))
    world.gateway.send = send
    list(pool.work(pool.jobs(world, drafts, [], approve=True), 3))
    found = sandbox.client.v1.invoices.list({"limit": 100}).data
    assert sorted((it.status, it.total) for it in found) == [("open", 1000 + number) for number in range(5)]
    assert len(sandbox.client.v1.customers.list({"limit": 100}).data) == 5


def test_when_stripe_is_away_the_run_ends_and_says_what_was_done_before(books, world, sandbox):
    for number in range(6):
        books.rating(f"c{number}", [("usage", "tokens", "10", 1000)])
    control(sandbox, "faults", {"down": True})
    steps = []
    with pytest.raises(StripeUnavailable):
        for step in pool.work(pool.jobs(world, records.drafts(books.engine, "test"), [], approve=True), 2):
            steps.append(step)
    assert all("draft recorded" in step.text for step in steps) and 1 <= len(steps) <= 2


def test_how_far_a_long_run_is_is_told_every_ten_seconds():
    out, clock = io.StringIO(), Clock()
    with counting(10_000, "customers", out, clock) as advance:
        for _ in range(500):
            clock.sleep(0.05)
            advance()
    assert out.getvalue().splitlines() == [
        "200 of 10,000 customers, 20.0 a second, about 8:10 min to go",
        "400 of 10,000 customers, 20.0 a second, about 8:00 min to go",
    ]


@pytest.mark.parametrize("books", ["sqlite", "postgres"], indirect=True)
def test_invoices_are_of_who_has_the_role_and_every_state_is_in_the_audit_log(books, world):
    books.rating("acme", [("usage", "tokens", "10", 100)])
    drafts = records.drafts(books.engine, "test", period="2026-10")

    def give(person):
        with begin_write(books.engine) as connection:
            said = {"granted": True, "who": "root", "why": "agreed", "now": world.now()}
            roles.change(connection, "test", "invoicing", person, **said)

    give("olga")
    with pytest.raises(NotAllowed, match="anna may not change this: invoicing of test"):
        list(pool.work(pool.jobs(world, drafts, [], approve=True)))
    assert books.rows(tables.invoices) == []
    give("anna")
    list(pool.work(pool.jobs(world, drafts, [], approve=True)))
    found = audit_book.entries(books.engine, "test", what="invoice")
    assert [(it.customer_id, it.who, it.why, audit_book.told(it.details)) for it in reversed(found)] == [
        ("acme", "anna", "the period was closed", "open -> draft"),
        ("acme", "anna", "bill run --approve", "draft -> approved"),
        ("acme", "anna", "bill run", "approved -> finalised"),
    ]
    assert audit_book.verify(books.engine, "test").problems == []


def test_a_key_of_its_own_comes_before_the_one_of_all():
    keys = {"STRIPE_METERS_API_KEY": "rk_test_1", "STRIPE_API_KEY": "sk_live_1"}
    connect(keys, live=False, own_key="STRIPE_METERS_API_KEY")
    connect({"STRIPE_API_KEY": "sk_test_1"}, live=False, own_key="STRIPE_METERS_API_KEY")
    with pytest.raises(LiveKeyRefused):
        connect(keys, live=False)


def test_stripe_is_reached_through_the_proxy_that_the_environment_names(sandbox, monkeypatch):
    asked = []

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers["Proxy-Authorization"], self.headers["Authorization"]))
            self.send_response(404)
            self.end_headers()
            self.wfile.write(b'{"error": {"message": "a proxy"}}')

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Proxy) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("http_proxy", f"http://me:p%40ss@127.0.0.1:{server.server_port}")
        monkeypatch.delenv("no_proxy", raising=False)
        try:
            gateway = connect(sandbox.environment | {"METERHOUSE_STRIPE_URL": "http://stripe.invalid"}, live=False)
            with pytest.raises(StripeRefused, match="a proxy"):
                gateway.invoice("in/../1")
            monkeypatch.setenv("no_proxy", "127.0.0.1")
            with pytest.raises(StripeRefused, match="No such invoice"):
                connect(sandbox.environment, live=False).invoice("in_1")
        finally:
            server.shutdown()
            thread.join()
    signed_in = f"Basic {b64encode(b'me:p@ss').decode()}"
    assert asked == [("http://stripe.invalid/v1/invoices/in%2F..%2F1", signed_in, "Bearer sk_test_123")]


def test_a_number_of_calls_that_is_none_is_refused():
    with pytest.raises(WrongSetting, match="METERHOUSE_STRIPE_PER_S is a number of calls a second"):
        connect({"STRIPE_API_KEY": "sk_test_1", "METERHOUSE_STRIPE_PER_S": "many"}, live=False)


def control(sandbox: Any, what: str, said: dict[str, Any]) -> None:
    body = json.dumps(said).encode()
    urllib.request.urlopen(urllib.request.Request(f"{sandbox.url}/_sandbox/{what}", body, method="POST")).close()
