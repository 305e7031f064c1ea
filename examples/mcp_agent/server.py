"""An MCP server with two tools over standard input and output. With TOOL_LOG set it keeps a log of what it executed."""

import json
import os
from datetime import UTC, datetime

from mcp.server.mcpserver import MCPServer

server = MCPServer("bookkeeping")


def executed(tool: str) -> None:
    path = os.environ.get("TOOL_LOG")
    if path:
        line = json.dumps({"executed_at": datetime.now(UTC).isoformat(), "tool": tool}) + "\n"
        with open(path, "a", encoding="utf-8") as log:
            log.write(line)


@server.tool()
def balance(account: str) -> str:
    """The balance of an account."""
    executed("balance")
    return f"Account {account} holds 120.00."


@server.tool()
def open_items(account: str, limit: int) -> str:
    """What an account still owes."""
    executed("open_items")
    return f"Account {account} has {limit} open items."


if __name__ == "__main__":
    server.run("stdio")
