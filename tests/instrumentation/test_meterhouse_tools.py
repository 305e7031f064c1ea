"""Tool executions count once, whichever layers tell of them: the rules one by one, then all at once against a truth."""

import asyncio
import contextvars
import gc
import itertools
import threading
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import meterhouse
from meterhouse import tools
from meterhouse.tool_memory import OUTSTANDING, ToolMemory
from meterhouse.tools import ToolResult

ID = "call_Ab3kd92KsLw81mZq"


class Counted:
    """Stands in for `call.Call`: what was counted, as (customer, tool, status)."""

    log: ClassVar[list] = []

    def __init__(self, _call_id, attributes, *, intent):
        assert intent is False
        self.told = (tools.payer(), attributes.get("gen_ai.tool.name", ""))

    def finish(self, status, rows, attributes):
        assert [(row.meter, row.quantity) for row in rows] == [("tool.calls", 1)]
        self.log.append((*self.told, status, attributes["usage.source"]))


@pytest.fixture
def counted(monkeypatch):
    """The executions counted so far, as (tool, status, source), in a memory of the test's own."""
    monkeypatch.setattr(tools, "Call", Counted)
    monkeypatch.setattr(tools, "_memory", ToolMemory())
    monkeypatch.setattr(Counted, "log", [])
    return lambda: [(name, status, source) for _, name, status, source in Counted.log]


def hand_back(*results):
    found = tools.handed_back("openai", lambda: results)
    if found is not None:
        found.accepted()


def test_an_execution_is_ok_failed_or_aborted_and_the_host_s_error_goes_on(counted):
    with tools.executing("a"):
        pass
    with pytest.raises(KeyError), tools.executing("b"):
        raise KeyError
    for left in (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt):
        with pytest.raises(left), tools.executing("c"):
            raise left
    with tools.executing("d") as execution:
        execution.failed()
    with tools.executing("e") as execution:
        execution.discard()
    assert counted() == [
        ("a", "ok", "reported"),
        ("b", "failed", "reported"),
        *[("c", "aborted", "reported")] * 3,
        ("d", "failed", "reported"),
    ]


def test_what_a_tool_calls_is_part_of_it_until_a_model_is_called_inside(counted):
    with tools.executing("outer", tool_call_id=ID):
        with tools.executing("inner"), tools.executing("innermost"):
            pass
        tools.model_called()
        with tools.executing("asked", tool_call_id=ID[::-1]), tools.executing("inner"):
            pass
        with tools.executing("outer"):  # the same tool at the next layer, after it asked a model something
            pass
        with tools.executing("outer", tool_call_id="call_9XkQ02mmZs81"):  # asked for by the model: it calls itself
            pass
    assert Counter(name for name, *_ in counted()) == {"outer": 2, "asked": 1}


def test_an_inner_layer_of_the_same_execution_tells_that_it_failed_another_tool_inside_does_not(counted):
    for inner in ("read", "other"):
        with tools.executing("files_read"), tools.executing(inner) as execution:
            execution.failed()
    assert [status for _, status, _ in counted()] == ["failed", "ok"]


def test_a_model_that_a_nested_tool_calls_is_seen_by_every_tool_around_it(counted):
    with tools.executing("outer"):
        with tools.executing("part"):
            tools.model_called()
        with tools.executing("asked"):
            pass
    assert [name for name, *_ in counted()] == ["asked", "outer"]


def test_parallel_executions_of_one_tool_are_two_in_tasks_and_in_threads(counted):
    async def work():
        async def one():
            with tools.executing("search"):
                await asyncio.sleep(0)

        await asyncio.gather(one(), one())

    def in_thread():
        with tools.executing("search"):
            return tools.current().name

    asyncio.run(work())
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda _: in_thread(), range(2))) == ["search"] * 2
    assert [name for name, *_ in counted()] == ["search"] * 4
    assert tools.current() is None


def test_a_thread_that_is_given_the_context_is_inside_the_tool(counted):
    with tools.executing("outer"):
        inside = contextvars.copy_context()

        def work():
            with tools.executing("inner"):
                pass

        thread = threading.Thread(target=inside.run, args=[work])
        thread.start()
        thread.join()
    assert [name for name, *_ in counted()] == ["outer"]


def test_a_task_that_a_tool_left_behind_counts_for_itself(counted):
    async def work():
        go = asyncio.Event()

        async def worker():
            await go.wait()
            with tools.executing("later"):
                pass

        with tools.executing("starter"):
            task = asyncio.create_task(worker())
            await asyncio.sleep(0)
        go.set()
        await task

    asyncio.run(work())
    assert [name for name, *_ in counted()] == ["starter", "later"]


def test_a_tool_that_is_a_generator_does_not_hold_for_its_consumer(counted):
    def tool():
        execution = tools.begin("pages")
        for _ in range(2):
            with execution.running(), tools.executing("fetch"):
                pass
            yield
        execution.finish("ok")

    for _ in tool():
        with tools.executing("consumer"):
            pass
    assert [name for name, *_ in counted()] == ["consumer", "consumer", "pages"]


def test_a_generator_closed_from_elsewhere_leaves_nothing_behind(counted):
    def tool():
        with tools.executing("pages"):
            yield

    left = contextvars.copy_context().run(lambda: (running := tool(), next(running))[0])
    left.close()
    with tools.executing("next"):
        pass
    assert counted() == [("pages", "aborted", "reported"), ("next", "ok", "reported")]


def test_a_framework_that_tries_again_executes_again_and_its_result_adds_nothing(counted):
    with pytest.raises(TimeoutError), tools.executing("flaky", tool_call_id=ID):
        raise TimeoutError
    with tools.executing("flaky", tool_call_id=ID):
        pass
    hand_back(ToolResult(ID, "flaky"))
    assert counted() == [("flaky", "failed", "reported"), ("flaky", "ok", "reported")]


def test_results_count_once_per_id_and_those_without_when_the_request_was_taken(counted):
    tools.learn("", {ID: "sum"})
    first = tools.handed_back("openai", lambda: [ToolResult(ID), ToolResult("call_1", "other", failed=True)])
    assert counted() == [("sum", "ok", "sdk_loop")]  # and the request fails; the host tries again
    hand_back(ToolResult(ID), ToolResult("call_1", "other", failed=True))
    assert counted() == [("sum", "ok", "sdk_loop"), ("other", "failed", "sdk_loop")]
    first.accepted()
    first.accepted()
    assert len(counted()) == 3  # the first was taken in the end, too: they are two requests


def test_a_result_without_an_id_is_for_whom_its_request_was(counted):
    with meterhouse.customer("acme"):
        waiting = tools.handed_back("google", lambda: [ToolResult("", "sum")])
    with meterhouse.customer("globex"):
        waiting.accepted()
    assert Counted.log == [("acme", "sum", "ok", "sdk_loop")]


@pytest.mark.parametrize("shown", ["read", "files_read", "mcp__files__read", "files.read", "Files-Read"])
@pytest.mark.parametrize("tool_call_id", [ID, "call_1", ""])
def test_a_call_over_mcp_is_the_one_that_the_model_asked_for_under_a_prefix(counted, shown, tool_call_id):
    tools.learn("", {tool_call_id: shown})
    with tools.executing("read"):
        pass
    hand_back(ToolResult(tool_call_id, shown))
    assert counted() == [("read", "ok", "reported")]


@pytest.mark.parametrize("shown", ["read", "files_read"])
def test_it_is_recognised_too_where_the_provider_did_not_tell_what_was_asked_for(counted, shown):
    with tools.executing("read"):
        pass
    hand_back(ToolResult(ID, shown))
    assert counted() == [("read", "ok", "reported")]


def test_calls_that_the_host_makes_by_itself_hide_no_tool_of_a_longer_name(counted):
    for _ in range(3):
        with tools.executing("search"):
            pass
    tools.learn("", {ID: "web_search"})
    hand_back(ToolResult(ID))
    assert counted()[3:] == [("web_search", "ok", "sdk_loop")]


def test_where_a_tool_and_one_with_a_longer_name_ran_each_keeps_its_own(counted):
    with tools.executing("search"):
        pass
    hand_back(ToolResult(ID, "web_search"), ToolResult(ID[::-1], "search"))
    assert counted() == [("search", "ok", "reported"), ("web_search", "ok", "sdk_loop")]


def test_a_call_asked_for_under_the_very_name_goes_before_one_with_a_prefix(counted):
    tools.learn("", {ID: "read", ID[::-1]: "files_read"})
    with tools.executing("read"):
        pass
    hand_back(ToolResult(ID), ToolResult(ID[::-1]))
    assert counted() == [("read", "ok", "reported"), ("files_read", "ok", "sdk_loop")]


def test_an_execution_that_was_none_leaves_the_call_to_the_one_that_is(counted):
    tools.learn("", {ID: "book", "call_1": "pay"})
    for name in ("book", "pay"):
        for asked_back in (True, True, False):
            with tools.executing(name) as execution:
                if asked_back:
                    execution.discard()
    hand_back(ToolResult(ID), ToolResult("call_1", "pay"))
    tools.learn("", {"call_1": "pay"})
    hand_back(ToolResult("call_1", "pay"))  # of another answer, executed by no layer
    assert counted() == [("book", "ok", "reported"), ("pay", "ok", "reported"), ("pay", "ok", "sdk_loop")]


@pytest.mark.parametrize("first", ["call_q7Zk1000xW", "call_0"])
@pytest.mark.parametrize("second", ["call_q7Zk2000xW", "call_0"])
@pytest.mark.parametrize("shown", ["read", "files_read"])
@pytest.mark.parametrize("order", list(itertools.permutations(["run 1", "run 2", "back 1", "back 2"])))
def test_two_agents_of_one_customer_at_once_count_each_execution_once(counted, first, second, shown, order):
    if order.index("run 1") > order.index("back 1") or order.index("run 2") > order.index("back 2"):
        return
    agents = {"1": (first, shown), "2": (second, "read")}
    for tool_call_id, name in agents.values():
        tools.learn("", {tool_call_id: name})
    for step, agent in (one.split() for one in order):
        if step == "run":
            with tools.executing("read"):  # over MCP: the layer knows no tool call id
                pass
        else:
            hand_back(ToolResult(*agents[agent]))
    assert counted() == [("read", "ok", "reported")] * 2


@pytest.mark.parametrize("layer", [True, False])
def test_the_same_history_sent_again_counts_nothing_where_ids_are_only_numbered(counted, layer):
    tools.learn("", {"call_0": "sum", "call_1": "sum"})
    for _ in range(2 * layer):
        with tools.executing("sum"):
            pass
    for _ in range(3):
        hand_back(ToolResult("call_0", "sum"), ToolResult("call_1", "sum"))
    assert [name for name, *_ in counted()] == ["sum"] * 2
    tools.learn("", {"call_0": "sum"})  # the next answer numbers from the start
    hand_back(ToolResult("call_0", "sum"))
    assert [name for name, *_ in counted()] == ["sum"] * 3


def test_an_execution_before_a_call_was_asked_for_is_not_the_call_s(counted):
    tools.learn("", {ID: "sum"})
    with tools.executing("sum"):  # and its result is never handed back
        pass
    tools.learn("", {ID[::-1]: "sum"})
    hand_back(ToolResult(ID[::-1], "sum"))
    assert counted() == [("sum", "ok", "reported"), ("sum", "ok", "sdk_loop")]


def test_what_was_refused_or_a_framework_counts_itself_is_not_counted_when_handed_back(counted):
    tools.refused([ID, "call_1", ""])
    hand_back(ToolResult(ID, "sum"))
    with tools.counted_by_framework():
        assert tools.in_framework()
        hand_back(ToolResult(ID[::-1], "sum"), ToolResult("call_1", "sum"))
    hand_back(ToolResult(ID[::-1], "sum"))
    assert counted() == [] and not tools.in_framework()


def test_what_an_agent_of_a_framework_executed_hides_no_result_that_the_host_hands_back_later(counted):
    with tools.executing("sum", tool_call_id="call_1", in_agent=True):
        pass
    with tools.counted_by_framework(), tools.executing("sum"):
        pass
    hand_back(ToolResult("call_1", "sum"), ToolResult("", "sum"))
    assert counted() == [("sum", "ok", "reported")] * 2 + [("sum", "ok", "sdk_loop")] * 2


def test_one_customer_s_executions_hide_none_of_another_s(counted):
    with meterhouse.customer("acme"), tools.executing("sum"):
        pass
    with meterhouse.customer("globex"):
        hand_back(ToolResult(ID, "sum"))
    assert Counted.log == [("acme", "sum", "ok", "reported"), ("globex", "sum", "ok", "sdk_loop")]


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr("meterhouse.tool_memory.REMEMBERED", 10)
    memory = ToolMemory()
    for number in range(2 * OUTSTANDING):
        memory.first_time(f"id{number}")
        memory.learn("acme", {f"id{number}": f"tool{number}", f"same{number}": "same"})
        memory.executed("acme", f"direct{number}")
    kept = [len(part) for part in vars(memory).values() if hasattr(part, "__len__")]
    assert kept == [10, 10, 10, 10]
    assert len(memory._asked[("acme", "same")]) == OUTSTANDING
    assert memory.first_time("id0") and not memory.first_time(f"id{2 * OUTSTANDING - 1}")


def test_the_garbage_collector_may_end_a_call_while_the_memory_is_in_use():
    memory = ToolMemory()

    class Answer:
        pass

    class Named(dict):
        def items(self):
            weakref.finalize(Answer(), lambda: memory.learn("", {ID: "sum"}))  # ends at once, inside the lock
            gc.collect()
            return super().items()

    memory.learn("", Named(other="other"))
    assert memory.name(ID) == "sum"


def test_what_goes_wrong_inside_is_logged_once_and_the_tool_runs(counted, monkeypatch, caplog):
    monkeypatch.setattr(tools, "current", lambda: 1 / 0)
    monkeypatch.setattr("meterhouse.trouble._warned", set())
    for _ in range(2):
        with tools.executing("a") as execution:
            execution.failed()
    assert tools.handed_back("openai", lambda: 1 / 0) is None
    assert [record.message for record in caplog.records] == [
        "Meterhouse could not meter a tool call.",
        "Meterhouse could not meter tool results.",
    ]


# Random programs of agents: what is executed is written down where it happens, by the tools themselves.

WAYS = {"lookup": "framework", "files_read": "mcp", "sum": "plain", "wait": "framework", "ask": "plain"}
turns = st.recursive(
    st.just([]),
    lambda inner: st.lists(
        st.fixed_dictionaries(
            {
                "tools": st.lists(
                    st.fixed_dictionaries(
                        {
                            "name": st.sampled_from(sorted(WAYS)),
                            "agent": inner,  # the tool is an agent: turns of its own
                            "calls": st.booleans(),  # it calls another tool directly
                            "fails": st.integers(0, 2),  # how often its framework has to try again
                            "pause": st.integers(0, 3),
                        }
                    ),
                    max_size=3,
                ),
                "ids": st.sampled_from(["unique", "numbered"]),
                "repeated": st.booleans(),  # the request with the results is tried twice
            }
        ),
        max_size=2,
    ),
    max_leaves=5,
)


class Program:
    """Runs agents as plain loops and as frameworks do; `truth` has what was executed: customer and shown name."""

    def __init__(self, *, tells):
        self.tells = tells  # the provider's reader tells which tools the model asked for
        self.truth = Counter()
        self.ids = itertools.count(10_000)

    async def agent(self, turns):
        for turn in turns:
            await self.turn(turn)

    async def turn(self, turn):
        tools.model_called()
        asked = []
        for number, tool in enumerate(turn["tools"]):
            numbered = turn["ids"] == "numbered" and WAYS[tool["name"]] != "framework"
            asked.append((f"call_{number}" if numbered else f"call_q7Zk{next(self.ids)}xW", tool))
        if self.tells:
            tools.learn(tools.payer(), {tool_call_id: tool["name"] for tool_call_id, tool in asked})
        await asyncio.gather(*(self.execute(tool_call_id, tool) for tool_call_id, tool in asked))
        results = [ToolResult(tool_call_id, tool["name"]) for tool_call_id, tool in asked]
        if turn["repeated"]:
            tools.handed_back("openai", lambda: results)  # refused by the server: never accepted
            await asyncio.sleep(0)
        tools.model_called()
        hand_back(*results)

    async def execute(self, tool_call_id, tool):
        way = WAYS[tool["name"]]
        for attempt in range(1 + (tool["fails"] if way == "framework" else 0)):
            for _ in range(tool["pause"]):
                await asyncio.sleep(0)
            self.truth[tools.payer(), tool["name"]] += 1
            if way == "plain":
                await self.agent(tool["agent"])
                continue
            name = "read" if way == "mcp" else tool["name"]
            with tools.executing(name, tool_call_id=tool_call_id if way == "framework" else None):
                if tool["calls"]:
                    with tools.executing("helper"):
                        await asyncio.sleep(0)
                if attempt == 0:
                    await self.agent(tool["agent"])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["acme", "globex"]), turns), min_size=1, max_size=3), st.booleans())
def test_whatever_is_nested_and_interleaved_every_execution_counts_exactly_once(conversations, tells):
    program = Program(tells=tells)

    async def conversation(customer, turns):
        with meterhouse.customer(customer):
            await program.agent(turns)

    async def work():
        await asyncio.gather(*(conversation(*one) for one in conversations))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tools, "Call", Counted)
        patch.setattr(tools, "_memory", ToolMemory())
        patch.setattr(Counted, "log", [])
        asyncio.run(work())
        told = Counter((customer, "files_read" if name == "read" else name) for customer, name, *_ in Counted.log)
    assert told == program.truth
