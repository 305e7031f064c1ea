"""A bookkeeping agent on the openai SDK (responses API) that uses the tools of an MCP server.

`serve` reads lines `customer: question` from standard input, works on several at once and prints the answers. It knows
nothing of metering; `host.py` runs it for customers.
"""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client
from openai import AsyncOpenAI

MODEL = os.environ.get("OPENAI_MODEL", "gpt-5-mini")
ROUNDS_MAX = 6
AT_ONCE = 3
SERVER = StdioServerParameters(
    command=sys.executable,
    args=[str(Path(__file__).with_name("server.py"))],
    env={"TOOL_LOG": os.environ["TOOL_LOG"]} if "TOOL_LOG" in os.environ else None,
)


class Agent:
    def __init__(self, session: ClientSession, tools: list[dict[str, Any]]) -> None:
        self.client = AsyncOpenAI()
        self.session = session
        self.tools = tools

    async def answer(self, question: str, customer: str) -> str:
        """Turns until the model needs no more tools."""
        history: list[Any] = [{"role": "user", "content": question}]
        for _ in range(ROUNDS_MAX):
            response = await self.client.responses.create(
                model=MODEL, input=history, tools=self.tools, safety_identifier=customer
            )
            calls = [item for item in response.output if item.type == "function_call"]
            if not calls:
                return response.output_text
            for call in calls:
                result = await self.session.call_tool(call.name, json.loads(call.arguments))
                text = "".join(getattr(block, "text", "") for block in result.content)
                history += [call.to_dict(), {"type": "function_call_output", "call_id": call.call_id, "output": text}]
        return "I could not find that out."


async def serve(answer: Callable[[Agent, str, str], Awaitable[str]]) -> None:
    """Answer every line of standard input, three at a time."""
    async with stdio_client(SERVER) as (reading, writing), ClientSession(reading, writing) as session:
        await session.initialize()
        agent = Agent(session, [_schema(tool.model_dump()) for tool in (await session.list_tools()).tools])
        limit = asyncio.Semaphore(AT_ONCE)

        async def work(line: str) -> None:
            customer, _, question = line.partition(": ")
            async with limit:
                print(await answer(agent, customer, question), flush=True)

        lines = [line.strip() for line in sys.stdin if line.strip()]
        await asyncio.gather(*(work(line) for line in lines))


def _schema(tool: dict[str, Any]) -> dict[str, Any]:
    parameters = tool.get("input_schema") or tool.get("inputSchema")
    return {"type": "function", "name": tool["name"], "description": tool["description"], "parameters": parameters}
