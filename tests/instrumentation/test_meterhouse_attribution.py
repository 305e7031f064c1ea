"""Who a call is for: scopes, decorators, middleware, the environment, and meters of the host's own."""

import asyncio
import subprocess
import sys
import threading
from decimal import Decimal

import pytest

import meterhouse
from meterhouse.attribution import current
from meterhouse.middleware import CustomerFromHeader, WSGICustomerFromHeader


def customer():
    return current().customer


def test_scopes_nest_and_end():
    with meterhouse.customer("acme"), meterhouse.agent("a", agent_id="7"):
        with meterhouse.customer("globex"):
            assert (customer(), current().agent_id) == ("globex", "7")
        assert customer() == "acme"
    assert customer() is None


def test_every_kind_of_function_can_be_decorated():
    scope = meterhouse.customer("acme")

    @scope
    def plain():
        return customer()

    @scope
    async def coroutine():
        await asyncio.sleep(0)
        return customer()

    @scope
    def generator():
        received = yield customer()
        yield received, customer()

    @scope
    async def async_generator():
        yield customer()
        yield customer()

    assert plain() == "acme" and plain.__name__ == "plain"
    assert asyncio.run(coroutine()) == "acme"
    steps = generator()
    assert next(steps) == "acme" and customer() is None
    assert steps.send("x") == ("x", "acme")

    async def consume():
        seen = []
        async for value in async_generator():
            seen.append((value, customer()))
        return seen

    assert asyncio.run(consume()) == [("acme", None), ("acme", None)]


def test_tasks_and_to_thread_inherit_the_customer_and_a_plain_thread_does_not():
    async def work():
        async with meterhouse.customer("acme"):
            task = asyncio.create_task(asyncio.to_thread(customer))
        assert customer() is None
        return await task

    assert asyncio.run(work()) == "acme"
    seen = []
    with meterhouse.customer("acme"):
        thread = threading.Thread(target=lambda: seen.append(customer()))
        thread.start()
        thread.join()
    assert seen == [None]


@pytest.mark.parametrize("bad", ["", "x" * 257, "é" * 129, None, 7])
def test_a_customer_id_that_the_collector_would_suspend_is_refused_at_once(bad):
    with pytest.raises(ValueError, match="a customer id must be a string of 1 to 256 bytes"):
        meterhouse.customer(bad)


def test_the_environment_says_for_whom_where_nothing_else_does(metering, monkeypatch):
    monkeypatch.setenv("METERHOUSE_CUSTOMER", "from-environment")
    monkeypatch.setenv("METERHOUSE_AGENT", "batch")
    meterhouse.meter("pages").add(1)
    with meterhouse.customer("acme"):
        meterhouse.meter("pages").add(2)
    found = {event.value: event.point for event in metering.flush()}
    assert (found[1]["customer.id"], found[2]["customer.id"]) == ("from-environment", "acme")
    assert found[1]["gen_ai.agent.name"] == found[1]["gen_ai.agent.id"] == "batch"


def test_without_a_customer_the_event_is_sent_without_one(metering):
    meterhouse.meter("pages").add(1)
    assert "customer.id" not in metering.flush()[0].everything


def test_a_task_ends_in_one_event_and_marks_what_is_inside(metering):
    with meterhouse.task() as done:
        meterhouse.meter("pages").add(1)
    with pytest.raises(KeyError), meterhouse.task("t-2"):
        raise KeyError
    with meterhouse.task("t-3") as given_up:
        given_up.fail()
    found = metering.flush()
    tasks = {e.own["meterhouse.task.id"]: e.point["meterhouse.status"] for e in found if e.meter == "agent.tasks"}
    assert tasks == {done.task_id: "ok", "t-2": "failed", "t-3": "failed"}
    assert [e.own["meterhouse.task.id"] for e in found if e.meter == "pages"] == [done.task_id]


def test_quantities_are_exact_and_an_event_id_given_twice_has_one_name(metering):
    pages = meterhouse.meter("pages")
    assert pages.add(3, event_id="job-1", status="failed") == pages.add(3, event_id="job-1", status="failed") == "job-1"
    meterhouse.meter("agent.seconds").add(Decimal("1.25"))
    found = metering.flush()
    assert [(e.id, e.value, e.point["meterhouse.status"]) for e in found if e.meter == "pages"] == [
        ("job-1", 3, "failed"),
        ("job-1", 3, "failed"),
    ]
    assert [e.value for e in found if e.meter == "agent.seconds"] == [1.25]


@pytest.mark.parametrize("bad", [-1, float("nan"), float("inf"), Decimal("0.0000000001"), True, "3", 10**16])
def test_a_quantity_that_cannot_be_billed_is_refused(bad):
    with pytest.raises(ValueError, match="a quantity"):
        meterhouse.meter("pages").add(bad)


def test_names_that_no_meter_event_or_status_can_have_are_refused():
    with pytest.raises(ValueError, match="a meter's name"):
        meterhouse.meter("Pages!")
    with pytest.raises(ValueError, match="an event id"):
        meterhouse.meter("pages").add(1, event_id="no spaces")
    with pytest.raises(ValueError, match="a status"):
        meterhouse.meter("pages").add(1, status="paid")


def test_the_asgi_middleware_takes_the_customer_from_the_header():
    seen = []

    async def app(scope, receive, send):
        seen.append(customer())

    async def request(*headers, kind="http"):
        await CustomerFromHeader(app)({"type": kind, "headers": list(headers)}, None, None)

    asyncio.run(request((b"X-Customer-Id", b"acme")))
    asyncio.run(request())
    asyncio.run(request((b"x-customer-id", b"acme"), (b"x-customer-id", b"globex")))
    asyncio.run(request((b"x-customer-id", b"x" * 300)))
    asyncio.run(CustomerFromHeader(app)({"type": "lifespan"}, None, None))
    assert seen == ["acme", None, None, None, None]


def test_the_wsgi_middleware_holds_while_the_response_is_iterated():
    def app(environ, start_response):
        start_response("200 OK", [])
        yield str(customer()).encode()
        yield str(customer()).encode()

    body = WSGICustomerFromHeader(app)({"HTTP_X_CUSTOMER_ID": "acme"}, lambda *_: None)
    assert list(body) == [b"acme", b"acme"] and customer() is None
    assert list(WSGICustomerFromHeader(app)({}, lambda *_: None)) == [b"None", b"None"]


def test_importing_meterhouse_imports_neither_opentelemetry_nor_a_provider():
    code = (
        "import sys, meterhouse, meterhouse.middleware; "
        "print([n for n in ('opentelemetry', 'openai', 'anthropic', 'mcp', 'wrapt', 'requests') if n in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
