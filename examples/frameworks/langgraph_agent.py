"""A clerk on LangChain's create_agent, which is a LangGraph graph: it remembers a conversation, and streams.

It knows nothing of metering. OPENAI_BASE_URL names a server that speaks OpenAI's API, if it is not OpenAI.

    python langgraph_agent.py "How many lamps are there?" conversation-1
"""

import asyncio
import sys

from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver


@tool
async def stock(article: str) -> str:
    """How many pieces of an article there are."""
    return f"There are 12 of {article}."


async def main(question: str, conversation: str) -> None:
    model = ChatOpenAI(model="gpt-5-mini")
    clerk = create_agent(model, [stock], name="clerk", checkpointer=InMemorySaver())
    asked = {"messages": [("user", question)]}
    async for update in clerk.astream(asked, {"configurable": {"thread_id": conversation}}, stream_mode="updates"):
        for node, written in update.items():
            print(f"{node}: {written['messages'][-1].text}", flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
