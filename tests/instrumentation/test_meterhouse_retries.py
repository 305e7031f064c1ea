"""A pause is not retried by the frameworks that retry exceptions, unless their policy names it."""

import asyncio
from types import SimpleNamespace

import pytest

import meterhouse

pytest.importorskip("langchain_core", reason="langchain-core is not installed")

from langchain_core.runnables import RunnableLambda

QUICK = {"wait_exponential_jitter": False, "stop_after_attempt": 3}


class Step:
    """A step that fails: it counts how often it is tried."""

    def __init__(self, error=None):
        self.error = meterhouse.UsageLimitExceeded("paused", "acme") if error is None else error
        self.tries = 0

    def __call__(self, _):
        self.tries += 1
        raise self.error

    async def later(self, given):
        return self(given)


def tried(step, runnable):
    """How often the step was tried by each way of running it: sync, batched, async."""
    tries = []
    for way in (
        runnable.invoke,
        lambda given: runnable.batch([given]),
        lambda given: asyncio.run(runnable.ainvoke(given)),
    ):
        step.tries = 0
        with pytest.raises(type(step.error)):
            way("?")
        tries.append(step.tries)
    return tries


@pytest.mark.parametrize(
    ("types", "error", "tries"),
    [
        ((Exception,), None, 1),
        ((ValueError, meterhouse.UsageLimitExceeded), None, 3),
        ((Exception,), TimeoutError("slow"), 3),
        ((ValueError,), TimeoutError("slow"), 1),
    ],
)
def test_with_retry_of_langchain_retries_a_pause_only_where_it_is_named(metering, types, error, tries):
    step = Step(error)
    runnable = RunnableLambda(step, afunc=step.later).with_retry(retry_if_exception_type=types, **QUICK)
    assert tried(step, runnable) == [tries] * 3


def paused_graph(step, **policy):
    graph = pytest.importorskip("langgraph.graph", reason="langgraph is not installed")
    types = pytest.importorskip("langgraph.types")
    built = graph.StateGraph(dict)
    retry = types.RetryPolicy(initial_interval=0.001, max_interval=0.001, jitter=False, max_attempts=3, **policy)
    node = RunnableLambda(step, afunc=step.later)
    try:
        built.add_node("ask", node, retry_policy=retry)
    except TypeError:  # before 0.5
        built.add_node("ask", node, retry=retry)
    built.add_edge(graph.START, "ask")
    return built.compile()


@pytest.mark.parametrize(
    ("policy", "error", "tries"),
    [
        ({}, None, 1),
        ({"retry_on": Exception}, None, 1),
        ({"retry_on": [meterhouse.UsageLimitExceeded]}, None, 3),
        ({}, ConnectionError("slow"), 3),
    ],
)
def test_a_retry_policy_of_langgraph_retries_a_pause_only_where_it_is_named(metering, policy, error, tries):
    step = Step(error)
    graph = paused_graph(step, **policy)
    for way in (graph.invoke, lambda given: asyncio.run(graph.ainvoke(given))):
        step.tries = 0
        with pytest.raises(type(step.error)):
            way({"question": "?"})
        assert step.tries == tries


@pytest.mark.parametrize(("error", "tries"), [(None, 1), (TimeoutError("slow"), 3)])
def test_the_retry_middleware_of_langchain_does_not_retry_a_pause(metering, error, tries):
    middleware = pytest.importorskip("langchain.agents.middleware", reason="langchain 1 is not installed")
    step = Step(error)
    retrying = middleware.ModelRetryMiddleware(
        max_retries=2, initial_delay=0.0, backoff_factor=0.0, jitter=False, on_failure="error"
    )
    with pytest.raises(type(step.error)):
        retrying.wrap_model_call(None, step)
    assert step.tries == tries


@pytest.mark.parametrize(("error", "tries"), [(None, 1), (TimeoutError("slow"), 3)])
def test_the_retry_middleware_of_tools_does_not_retry_a_pause(metering, error, tries):
    middleware = pytest.importorskip("langchain.agents.middleware", reason="langchain 1 is not installed")
    step = Step(error)
    retrying = middleware.ToolRetryMiddleware(
        max_retries=2, initial_delay=0.0, backoff_factor=0.0, jitter=False, on_failure="error"
    )
    asked = SimpleNamespace(tool=SimpleNamespace(name="look"), tool_call={"id": "1", "name": "look", "args": {}})
    with pytest.raises(type(step.error)):
        retrying.wrap_tool_call(asked, step)
    with pytest.raises(type(step.error)):
        asyncio.run(retrying.awrap_tool_call(asked, step.later))
    assert step.tries == 2 * tries
