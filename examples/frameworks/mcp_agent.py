"""A clerk on the plain openai SDK whose tools are an MCP server's, shown to the model under the server's name.

It knows nothing of metering. OPENAI_BASE_URL names a server that speaks OpenAI's API, if it is not OpenAI.

    python mcp_agent.py "How many lamps are there?"
"""

import asyncio
import json
import sys
from typing import Any

from mcp.client import Client
from mcp.server.mcpserver import MCPServer
from openai import AsyncOpenAI

ROUNDS_MAX = 5
warehouse = MCPServer("warehouse")


@warehouse.tool()
def stock(article: str) -> str:
    """How many pieces of an article there are."""
    return f"There are 12 of {article}."


async def main(question: str) -> str:
    history: list[Any] = [{"role": "user", "content": question}]
    async with AsyncOpenAI() as model, Client(warehouse) as session:
        tools: list[Any] = [
            {
                "type": "function",
                "function": {"name": f"warehouse__{tool.name}", "parameters": tool.input_schema},
            }
            for tool in (await session.list_tools()).tools
        ]
        for _ in range(ROUNDS_MAX):
            answer = await model.chat.completions.create(model="gpt-5-mini", messages=history, tools=tools)
            message = answer.choices[0].message
            if not message.tool_calls:
                return str(message.content)
            history.append(message.to_dict())
            for call in message.tool_calls:
                asked: Any = call
                name = asked.function.name.removeprefix("warehouse__")
                result = await session.call_tool(name, json.loads(asked.function.arguments))
                text = "".join(getattr(block, "text", "") for block in result.content)
                history.append({"role": "tool", "tool_call_id": call.id, "content": text})
    return "I could not find that out."


if __name__ == "__main__":
    print(asyncio.run(main(sys.argv[1])))
