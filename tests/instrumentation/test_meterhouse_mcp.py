"""MCP tool calls through the real SDK, 1.x and 2.x: in memory, over standard input and output, over HTTP."""

import asyncio
import socket
import subprocess
import sys
import time

import pytest

import meterhouse
from meterhouse import tools

pytest.importorskip("mcp", reason="mcp is not installed")

from mcp.client.session import ClientSession
from mcp.client.stdio import StdioServerParameters, stdio_client

try:
    from mcp.server.mcpserver import MCPServer
except ImportError:  # 1.x
    from mcp.server.fastmcp import FastMCP as MCPServer

SOURCE = """
import sys
try:
    from mcp.server.mcpserver import MCPServer
except ImportError:
    from mcp.server.fastmcp import FastMCP as MCPServer
server = MCPServer("tools")

@server.tool()
def add(a: int, b: int) -> int:
    return a + b

@server.tool()
def broken() -> int:
    raise RuntimeError("secret argument")

if sys.argv[1] == "stdio":
    server.run("stdio")
else:
    import uvicorn
    uvicorn.run(server.streamable_http_app(), port=int(sys.argv[1]), log_level="error")
"""


def connected(server):
    """A session with a server in this process, in whichever way the installed version has."""
    try:
        from mcp.client import Client
    except ImportError:
        from mcp.shared.memory import create_connected_server_and_client_session

        return create_connected_server_and_client_session(server._mcp_server)
    return Client(server)


def failed(result):
    return getattr(result, "is_error", None) or getattr(result, "isError", None) or False


def executions(events):
    return sorted(
        (e.point["gen_ai.tool.name"], e.point["meterhouse.status"]) for e in events if e.meter == "tool.calls"
    )


def a_server():
    server = MCPServer("tools")

    @server.tool()
    def add(a: int, b: int) -> int:
        return a + b

    @server.tool()
    def broken() -> int:
        raise RuntimeError("secret argument")

    @server.tool()
    async def slow() -> str:
        await asyncio.sleep(30)
        return ""

    return server


async def both(session):
    good = await session.call_tool("add", {"a": 1, "b": 2})
    bad = await session.call_tool("broken", {})
    return failed(good), failed(bad)


TWO = [("add", "ok"), ("broken", "failed")]


@pytest.mark.cell("mcp", "tool, async")
@pytest.mark.cell("mcp", "tool failed")
@pytest.mark.cell("mcp", "over MCP once")
def test_tool_calls_are_counted_once_with_their_outcome_client_and_server_in_one_process(metering):
    async def work():
        async with connected(a_server()) as client:
            with meterhouse.customer("acme"):
                return await both(client)

    assert asyncio.run(work()) == (False, True)
    found = metering.flush()
    assert executions(found) == TWO
    assert {(e.value, e.point["customer.id"], e.own["usage.source"]) for e in found} == {(1, "acme", "reported")}


def test_calls_over_standard_input_and_output_are_counted_by_the_client_alone(metering, tmp_path):
    (tmp_path / "server.py").write_text(SOURCE)

    async def work():
        parameters = StdioServerParameters(command=sys.executable, args=[str(tmp_path / "server.py"), "stdio"])
        async with stdio_client(parameters) as (reading, writing), ClientSession(reading, writing) as session:
            await session.initialize()
            return await both(session)

    assert asyncio.run(work()) == (False, True)
    assert executions(metering.flush()) == TWO


@pytest.fixture
def http_server(tmp_path):
    (tmp_path / "server.py").write_text(SOURCE)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, str(tmp_path / "server.py"), str(port)])
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}/mcp"
    process.kill()
    process.wait()


def test_calls_over_http_are_counted_once(metering, http_server):
    from mcp.client import streamable_http

    connect = getattr(streamable_http, "streamable_http_client", None) or streamable_http.streamablehttp_client

    async def work():
        async with connect(http_server) as streams, ClientSession(streams[0], streams[1]) as session:
            await session.initialize()
            return await both(session)

    assert asyncio.run(work()) == (False, True)
    assert executions(metering.flush()) == TWO


def test_a_call_that_takes_too_long_has_failed_and_a_cancelled_one_is_aborted(metering):
    from datetime import timedelta

    async def work():
        async with connected(a_server()) as client:
            timeout = 0.2 if MCPServer.__name__ == "MCPServer" else timedelta(seconds=0.2)
            with pytest.raises(Exception, match=r"[Tt]imed out|timeout"):
                await client.call_tool("slow", {}, read_timeout_seconds=timeout)
            task = asyncio.create_task(client.call_tool("slow", {}))
            await asyncio.sleep(0.2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(work())
    assert executions(metering.flush()) == [("slow", "aborted"), ("slow", "failed")]


def test_a_tool_call_that_raises_is_failed_and_the_host_gets_its_error(metering):
    class Broken(ClientSession):
        def __init__(self):
            self._call_tool_adapter = None

        async def send_request(self, *_, **__):
            raise ConnectionError("gone")

    with pytest.raises(ConnectionError, match="gone"):
        asyncio.run(Broken().call_tool("add", {}))
    assert executions(metering.flush()) == [("add", "failed")]


def test_a_group_of_sessions_counts_a_call_once_under_the_server_s_name_for_it(metering, tmp_path):
    group_of = pytest.importorskip("mcp.client.session_group").ClientSessionGroup

    (tmp_path / "server.py").write_text(SOURCE)

    async def work():
        parameters = StdioServerParameters(command=sys.executable, args=[str(tmp_path / "server.py"), "stdio"])
        group = group_of(component_name_hook=lambda name, server: f"{server.name}_{name}")
        async with group:
            await group.connect_to_server(parameters)
            await group.call_tool("tools_add", {"a": 1, "b": 2})

    asyncio.run(work())
    assert executions(metering.flush()) == [("add", "ok")]


def test_a_tool_that_the_model_was_shown_under_a_prefix_is_not_counted_again_when_handed_back(metering):
    async def work():
        async with connected(a_server()) as client:
            tools.learn("", {"call_mS81kq02LdW7": "tools__add"})
            await client.call_tool("add", {"a": 1, "b": 2})
        tools.handed_back("openai", lambda: [tools.ToolResult("call_mS81kq02LdW7")])

    asyncio.run(work())
    assert executions(metering.flush()) == [("add", "ok")]


def test_a_server_that_passes_its_calls_on_to_another_is_one_call_for_its_client(metering):
    """In one process, where the client's context reaches the server's handler: mcp 2's in-memory transport."""
    if MCPServer.__name__ != "MCPServer":
        pytest.skip("mcp 1 runs its handlers in a context of their own")

    async def work():
        async with connected(a_server()) as behind:
            front = MCPServer("front")

            @front.tool()
            async def add(a: int, b: int) -> str:
                return str((await behind.call_tool("add", {"a": a, "b": b})).content[0].text)

            async with connected(front) as client:
                return (await client.call_tool("add", {"a": 1, "b": 2})).content[0].text

    assert asyncio.run(work()) == "3"
    assert executions(metering.flush()) == [("add", "ok")]


def test_the_client_of_fastmcp_counts_once_too(metering, library):
    fastmcp = library("fastmcp")
    server = fastmcp.FastMCP("tools")

    @server.tool
    def add(a: int, b: int) -> int:
        return a + b

    @server.tool
    def broken() -> int:
        raise RuntimeError("secret argument")

    async def work():
        async with fastmcp.Client(server) as client:
            await client.call_tool("add", {"a": 1, "b": 2})
            with pytest.raises(Exception, match="broken"):
                await client.call_tool("broken", {})

    asyncio.run(work())
    assert executions(metering.flush()) == TWO


def test_rounds_in_which_the_server_asks_back_are_one_call(metering):
    types = pytest.importorskip("mcp_types")
    if not hasattr(types, "InputRequiredResult"):
        pytest.skip("this version has no input rounds")

    class Asking(ClientSession):
        def __init__(self):
            self._call_tool_adapter = None
            self.rounds = 0

        async def send_request(self, *_, **__):
            self.rounds += 1
            if self.rounds < 3:
                return types.InputRequiredResult(request_state="more")
            return types.CallToolResult(content=[])

        async def validate_tool_result(self, *_):
            pass

    async def work():
        session = Asking()
        for _ in range(3):
            result = await session.call_tool("book", {}, allow_input_required=True)
        return result

    assert type(asyncio.run(work())).__name__ == "CallToolResult"
    with pytest.raises(RuntimeError):  # a host that does not expect to be asked back
        asyncio.run(Asking().call_tool("book", {}))
    assert executions(metering.flush()) == [("book", "failed"), ("book", "ok")]
