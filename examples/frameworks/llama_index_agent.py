"""A warehouse clerk on LlamaIndex: answers one question with the help of a tool. It knows nothing of metering.

OPENAI_API_BASE=... python llama_index_agent.py "How many lamps are there?"
"""

import asyncio
import os
import sys

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.llms.openai import OpenAI


def stock(article: str) -> str:
    """How many pieces of an article there are."""
    return f"There are 12 of {article}."


async def main(question: str) -> None:
    llm = OpenAI(model=os.environ.get("OPENAI_MODEL", "gpt-5-mini"))
    agent = FunctionAgent(name="warehouse", description="knows the stock", tools=[stock], llm=llm)
    print(await agent.run(question))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
