"""A warehouse clerk on AutoGen: answers one question with the help of a tool. It knows nothing of metering.

OPENAI_BASE_URL=... python autogen_agent.py "How many lamps are there?"
"""

import asyncio
import os
import sys

from autogen_agentchat.agents import AssistantAgent
from autogen_ext.models.openai import OpenAIChatCompletionClient


def stock(article: str) -> str:
    """How many pieces of an article there are."""
    return f"There are 12 of {article}."


async def main(question: str) -> None:
    model = os.environ.get("OPENAI_MODEL", "gpt-5-mini")
    can = {"vision": False, "function_calling": True, "json_output": True, "structured_output": True}
    client = OpenAIChatCompletionClient(model=model, model_info={**can, "family": "unknown"})
    agent = AssistantAgent("warehouse", client, tools=[stock], max_tool_iterations=5)
    print((await agent.run(task=question)).messages[-1].content)
    await client.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
