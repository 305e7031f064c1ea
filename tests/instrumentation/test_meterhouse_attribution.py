"""Who a call is for: scopes, decorators, middleware, the environment, and meters of the host's own."""

import asyncio
import concurrent.futures
import contextvars
import functools
import gc
import json
import subprocess
import sys
import threading
from decimal import Decimal

import pytest

import meterhouse
from meterhouse.attribution import Hint, current
from meterhouse.middleware import CustomerFrom, CustomerFromHeader, WSGICustomerFrom, WSGICustomerFromHeader


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
    # What a WSGI server makes of a header that the front end and the client both sent.
    twice = {"HTTP_X_CUSTOMER_ID": "acme,globex"}
    assert list(WSGICustomerFromHeader(app)(twice, lambda *_: None)) == [b"None", b"None"]


def test_one_scope_may_be_entered_in_several_threads_and_tasks_at_once():
    acme, inside, left = meterhouse.customer("acme"), threading.Event(), threading.Event()
    seen = []

    def other():
        with meterhouse.customer("globex"), acme:
            inside.set()
            left.wait(5)
        seen.append(customer())

    thread = threading.Thread(target=other)
    with acme:
        thread.start()
        inside.wait(5)
    seen.append(customer())
    left.set()
    thread.join()

    async def task(name, pause):
        with meterhouse.customer(name), acme:
            await asyncio.sleep(pause)
        return customer()

    async def both():
        return await asyncio.gather(task("a", 0.02), task("b", 0.01))

    assert seen == [None, None] and asyncio.run(both()) == [None, None]


def undecorated():
    with meterhouse.customer("leaked"):
        yield 1


def test_a_generator_that_the_garbage_collector_closes_changes_nothing_for_whoever_runs_then():
    def in_another_request():
        with meterhouse.customer("acme"):
            left.clear()
            gc.collect()
            return customer()

    left = [undecorated()]
    contextvars.copy_context().run(next, left[0])
    assert in_another_request() == "acme" and customer() is None

    def in_the_same_context():
        left.append(undecorated())
        next(left[0])
        with meterhouse.customer("acme"):
            left.clear()
            gc.collect()
            inside = customer()
        return inside, customer()

    assert contextvars.copy_context().run(in_the_same_context) == ("acme", None)


def test_an_async_generator_closed_in_another_context_leaves_that_one_alone():
    async def leaking():
        with meterhouse.customer("leaked"):
            yield 1

    @meterhouse.customer("inside")
    async def decorated():
        yield customer()
        yield customer()

    async def close_elsewhere(generator):
        with meterhouse.customer("acme"):
            await generator.aclose()
            return customer()

    async def work():
        generator, other = leaking(), decorated()
        first = await asyncio.create_task(anext(other)), await asyncio.create_task(anext(generator))
        found = [await asyncio.create_task(close_elsewhere(one)) for one in (generator, other)]
        return first, found, customer()

    assert asyncio.run(work()) == (("inside", 1), ["acme", "acme"], None)


def test_an_async_generator_that_is_abandoned_or_cancelled_leaks_nothing():
    @meterhouse.customer("inside")
    async def numbers():
        for number in range(3):
            await asyncio.sleep(0)
            yield number, customer()

    async def work():
        seen = []
        async for number, inside in numbers():
            seen.append((number, inside, customer()))
            break
        gc.collect()
        await asyncio.sleep(0)
        seen.append(customer())
        task = asyncio.create_task(anext(numbers()))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return [*seen, customer()]

    assert asyncio.run(work()) == [(0, "inside", None), None, None]


def test_task_groups_of_asyncio_and_anyio_inherit_and_do_not_leak_into_each_other():
    anyio = pytest.importorskip("anyio")
    seen = []

    async def one(name):
        with meterhouse.step(name):
            await asyncio.sleep(0.01)
            seen.append((customer(), current().step))

    async def work():
        with meterhouse.customer("acme"):
            async with asyncio.TaskGroup() as group:
                group.create_task(one("a"))
                group.create_task(one("b"))
            async with anyio.create_task_group() as group:
                group.start_soon(one, "c")
                group.start_soon(one, "d")
            seen.append((await anyio.to_thread.run_sync(customer), current().step))

    asyncio.run(work())
    assert sorted(seen, key=str) == [("acme", "a"), ("acme", "b"), ("acme", "c"), ("acme", "d"), ("acme", None)]


def everything():
    now = current()
    return now.customer, now.agent_id, now.conversation, now.step, now.task


def test_carry_takes_the_attribution_into_threads_and_executors():
    found = []
    with meterhouse.customer("acme"), meterhouse.task("t-1"), Hint(agent_name="planner", conversation="c-1"):
        carried = meterhouse.carry(everything)
        thread = threading.Thread(target=meterhouse.carry(lambda: found.append(everything())))
        method = meterhouse.carry(functools.partial(everything))
    expected = ("acme", None, "c-1", None, "t-1")
    thread.start()
    thread.join()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found += [pool.submit(carried).result(), *pool.map(lambda _: carried(), range(8)), pool.submit(method).result()]
        assert pool.submit(everything).result() == (None,) * 5

        async def work():
            return await asyncio.get_running_loop().run_in_executor(pool, carried)

        found.append(asyncio.run(work()))
    assert found == [expected] * 12 and everything() == (None,) * 5
    with meterhouse.customer("globex"):
        assert carried() == expected and customer() == "globex"


def test_what_is_carried_gives_each_of_the_threads_that_run_it_at_once_its_own_back():
    both, left, found = threading.Barrier(2), threading.Event(), {}

    def work(name):
        both.wait(5)
        if name == "a":  # entered first, left last
            left.wait(5)
        return customer()

    with meterhouse.customer("acme"):
        carried = meterhouse.carry(work)

    def run(name):
        with meterhouse.customer(name):
            found[name] = carried(name), customer()
        left.set()

    threads = [threading.Thread(target=run, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {"a": ("acme", "a"), "b": ("acme", "b")}


def test_what_is_carried_may_be_async_or_a_generator_and_a_framework_inside_may_still_say_more():
    @meterhouse.customer("acme")
    def made():
        async def coroutine():
            await asyncio.sleep(0)
            return customer()

        def generator():
            yield customer()
            yield customer()

        class Callable:
            async def __call__(self):
                await asyncio.sleep(0)
                return customer()

        return [meterhouse.carry(one) for one in (coroutine, generator, Callable())]

    coroutine, generator, instance = made()
    assert asyncio.run(coroutine()) == asyncio.run(instance()) == "acme"
    steps = generator()
    assert (next(steps), customer(), next(steps)) == ("acme", None, "acme")
    with Hint(agent_name="outer"):
        run = meterhouse.carry(lambda: current().agent_name)

        def nested():
            with Hint(agent_name="inner"):
                return current().agent_name

        nested = meterhouse.carry(nested)
    assert (run(), nested()) == ("outer", "inner")


def test_a_carrier_is_a_message_that_another_process_continues_from():
    with meterhouse.customer("acmé"), meterhouse.agent("a", agent_id="7"), meterhouse.task("t"), Hint(step="plan"):
        message = json.loads(json.dumps(meterhouse.carrier()))
    assert message == {
        "customer.id": "acmé",
        "gen_ai.agent.id": "7",
        "gen_ai.agent.name": "a",
        "meterhouse.task.id": "t",
        "meterhouse.step": "plan",
    }
    with meterhouse.conversation("kept"), meterhouse.carried({**message, "content-type": "x", "retries": 3}):
        assert everything() == ("acmé", "7", "kept", "plan", "t")

    @meterhouse.carried(message)
    def job():
        return everything()

    assert job()[0] == "acmé" and meterhouse.carrier() == {}
    with pytest.raises(ValueError, match=r"customer\.id must be a string"):
        meterhouse.carried({"customer.id": 7})


def test_a_task_that_decorates_a_generator_ends_once_when_the_generator_ends(metering):
    @meterhouse.task()
    def steps(count):
        for number in range(count):
            yield number, current().task

    @meterhouse.task()
    async def async_steps():
        yield current().task
        raise KeyError

    seen = list(steps(3))
    left_early = steps(2)
    next(left_early)
    left_early.close()

    async def consume():
        with pytest.raises(KeyError):
            async for _ in async_steps():
                pass

    asyncio.run(consume())
    found = [(e.point["meterhouse.status"], e.own["meterhouse.task.id"]) for e in metering.flush()]
    assert [status for status, _ in found] == ["ok", "ok", "failed"]
    assert {task for _, task in seen} == {found[0][1]} and len({task for _, task in found}) == 3


def test_nested_tasks_have_outcomes_of_their_own_and_a_framework_fails_the_inner_one(metering):
    from meterhouse.attribution import fail_task

    with meterhouse.task("outer"), meterhouse.conversation("c-1"), meterhouse.customer("acme"):
        with meterhouse.task("inner"):
            thread = threading.Thread(target=meterhouse.carry(fail_task))
            thread.start()
            thread.join()
        meterhouse.meter("pages").add(1)
    fail_task()  # outside of any: nothing
    found = {(e.meter, e.own.get("meterhouse.task.id")): e for e in metering.flush()}
    assert found["agent.tasks", "inner"].point["meterhouse.status"] == "failed"
    assert found["agent.tasks", "outer"].point["meterhouse.status"] == "ok"
    assert ("pages", "outer") in found and ("agent.conversations", None) in found


def test_the_asgi_middleware_takes_the_customer_from_a_callable_and_survives_its_failure(caplog):
    seen = []

    async def app(scope, receive, send):
        for _ in range(2):  # a streamed body, the messages of a WebSocket
            seen.append(customer())
            await asyncio.sleep(0)

    async def later(scope):
        await asyncio.sleep(0)
        return scope["tenant"]

    async def request(read, **scope):
        await CustomerFrom(app, read)({"headers": [], **scope}, None, None)

    asyncio.run(request(lambda scope: scope["tenant"], type="http", tenant="acme"))
    asyncio.run(request(later, type="websocket", tenant="globex"))
    asyncio.run(request(lambda scope: None, type="http"))
    asyncio.run(request(later, type="http"))  # KeyError
    asyncio.run(request(lambda scope: 7, type="http"))
    asyncio.run(request(lambda scope: pytest.fail("not asked"), type="lifespan"))
    assert seen == ["acme"] * 2 + ["globex"] * 2 + [None] * 8
    assert [record.getMessage() for record in caplog.records].count(
        "Meterhouse could not find out for whom a request is: it runs without a customer."
    ) <= 1
    with pytest.raises(ZeroDivisionError):  # what the application itself raises is its own

        async def failing(*_):
            raise ZeroDivisionError

        asyncio.run(CustomerFrom(failing, lambda _: "acme")({"type": "http"}, None, None))


def test_the_wsgi_middleware_hands_on_what_a_server_looks_at():
    class File:
        pass

    def answer(body, **environ):
        app = WSGICustomerFrom(lambda *_: body, lambda environ: environ.get("tenant"))
        return app({"tenant": "acme", "wsgi.file_wrapper": File, **environ}, None)

    pieces, file = [b"a", b"b"], File()
    assert answer(pieces) is pieces and answer(file) is file
    streamed = (str(customer()).encode() for _ in range(2))
    assert list(answer(streamed)) == [b"acme", b"acme"] and customer() is None


def test_importing_meterhouse_imports_neither_opentelemetry_nor_a_provider():
    code = (
        "import sys, meterhouse, meterhouse.middleware; "
        "print([n for n in ('opentelemetry', 'openai', 'anthropic', 'mcp', 'wrapt', 'requests') if n in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


def test_importing_meterhouse_is_light_and_the_rest_comes_when_it_is_used():
    """What takes most of an import; none of it is needed before something is counted."""
    code = (
        "import sys; heavy = {'dataclasses', 'decimal', 'hashlib', 'inspect', 'json', 'logging', 'signal'}; "
        "before = set(sys.modules); import meterhouse; print(sorted(heavy & (set(sys.modules) - before))); "
        "print(meterhouse.middleware.CUSTOMER_HEADER, meterhouse.grants.LONGEST_BYTES)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\nx-customer-id 1024\n"
    with pytest.raises(AttributeError, match="no attribute 'grant_s'"):
        _ = meterhouse.grant_s


@pytest.mark.parametrize("value", ["x" * 257, "é" * 129, "\udcff"])
def test_a_customer_of_the_environment_that_is_none_is_nobody_and_told(metering, monkeypatch, caplog, value):
    meterhouse.trouble._warned.clear()
    monkeypatch.setenv("METERHOUSE_CUSTOMER", value)
    meterhouse.meter("pages").add(1)
    (event,) = metering.flush()
    assert "customer.id" not in event.point
    assert "cannot use METERHOUSE_CUSTOMER" in caplog.text


@pytest.mark.parametrize(("value", "customer"), [("acme\n", "acme"), (" Acme Inc \r\n", "Acme Inc"), (" \n", None)])
def test_a_customer_of_the_environment_is_taken_without_the_space_around_it(metering, monkeypatch, value, customer):
    monkeypatch.setenv("METERHOUSE_CUSTOMER", value)
    meterhouse.meter("pages").add(1)
    (event,) = metering.flush()
    assert event.point.get("customer.id") == customer
