"""A warehouse clerk on the Claude Agent SDK: answers one question with the help of a tool of its own.

It knows nothing of metering. CLAUDE_CLI names the `claude` program where the SDK's own is not to be used.

    python claude_agent_sdk_agent.py "How many lamps are there?"
"""

import asyncio
import os
import sys
from typing import Any

from claude_agent_sdk import ClaudeAgentOptions, ResultMessage, create_sdk_mcp_server, query, tool


@tool("stock", "How many pieces of an article there are", {"article": str})
async def stock(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": f"There are 12 of {arguments['article']}."}]}


async def main(question: str) -> None:
    options = ClaudeAgentOptions(
        mcp_servers={"warehouse": create_sdk_mcp_server("warehouse", tools=[stock])},
        allowed_tools=["mcp__warehouse__stock"],
        cli_path=os.environ.get("CLAUDE_CLI"),
        max_turns=6,
    )
    async for message in query(prompt=question, options=options):
        if isinstance(message, ResultMessage):
            print(message.result)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
