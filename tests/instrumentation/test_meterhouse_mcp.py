"""MCP tool calls through the real SDK, client and server in one process."""

import asyncio

import pytest

import meterhouse

mcp = pytest.importorskip("mcp")


def test_tool_calls_are_counted_once_with_their_outcome(metering):
    from mcp.client import Client
    from mcp.server.mcpserver import MCPServer

    server = MCPServer("tools")

    @server.tool()
    def add(a: int, b: int) -> int:
        return a + b

    @server.tool()
    def broken() -> int:
        raise RuntimeError("secret argument")

    async def work():
        async with Client(server) as client:
            with meterhouse.customer("acme"):
                good = await client.call_tool("add", {"a": 1, "b": 2})
                bad = await client.call_tool("broken", {})
        return good, bad

    good, bad = asyncio.run(work())
    assert not good.is_error and bad.is_error
    found = metering.flush()
    assert sorted((e.meter, e.value, e.point["gen_ai.tool.name"], e.point["meterhouse.status"]) for e in found) == [
        ("tool.calls", 1, "add", "ok"),
        ("tool.calls", 1, "broken", "failed"),
    ]
    assert {e.point["customer.id"] for e in found} == {"acme"}


def test_a_tool_call_that_raises_is_failed_and_the_host_gets_its_error(metering):
    from mcp.client.session import ClientSession

    class Broken(ClientSession):
        def __init__(self):
            self._call_tool_adapter = None

        async def send_request(self, *_, **__):
            raise ConnectionError("gone")

    with pytest.raises(ConnectionError, match="gone"):
        asyncio.run(Broken().call_tool("add", {}))
    assert [(e.meter, e.point["meterhouse.status"]) for e in metering.flush()] == [("tool.calls", "failed")]
