"""A help desk on the OpenAI Agents SDK: one agent hands over to another, which has a tool.

It knows nothing of metering. OPENAI_BASE_URL names a server that speaks OpenAI's API, if it is not OpenAI.

    python openai_agents_agent.py "How many lamps are there?" conversation-1
"""

import asyncio
import sys

from agents import Agent, RunConfig, Runner, SQLiteSession, function_tool

MODEL = "gpt-5-mini"


@function_tool
def stock(article: str) -> str:
    """How many pieces of an article there are."""
    return f"There are 12 of {article}."


async def main(question: str, conversation: str) -> None:
    clerk = Agent(name="clerk", instructions="You know the stock.", model=MODEL, tools=[stock])
    desk = Agent(name="desk", instructions="You pass questions on.", model=MODEL, handoffs=[clerk])
    # The SDK would send its traces to OpenAI otherwise.
    config = RunConfig(tracing_disabled=True)
    result = await Runner.run(desk, question, session=SQLiteSession(conversation), run_config=config)
    print(result.final_output)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
