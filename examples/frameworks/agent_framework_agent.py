"""A warehouse clerk on Microsoft Agent Framework: answers one question with the help of a tool.

It knows nothing of metering.

    OPENAI_BASE_URL=... python agent_framework_agent.py "How many lamps are there?"
"""

import asyncio
import os
import sys

from agent_framework import Agent
from agent_framework.openai import OpenAIChatCompletionClient


def stock(article: str) -> str:
    """How many pieces of an article there are."""
    return f"There are 12 of {article}."


async def main(question: str) -> None:
    client = OpenAIChatCompletionClient(model=os.environ.get("OPENAI_MODEL", "gpt-5-mini"))
    agent = Agent(client=client, name="warehouse", tools=[stock])
    print((await agent.run(question)).text)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
