"""A warehouse clerk on smolagents: answers one question with the help of a tool. It knows nothing of metering.

OPENAI_BASE_URL=... python smolagents_agent.py "How many lamps are there?"
"""

import os
import sys

from smolagents import OpenAIServerModel, ToolCallingAgent, tool


@tool
def stock(article: str) -> str:
    """How many pieces of an article there are.

    Args:
        article: The article's name.
    """
    return f"There are 12 of {article}."


def main(question: str) -> None:
    model = OpenAIServerModel(os.environ.get("OPENAI_MODEL", "gpt-5-mini"), api_base=os.environ.get("OPENAI_BASE_URL"))
    agent = ToolCallingAgent(tools=[stock], model=model, name="warehouse", max_steps=6, verbosity_level=0)
    print(agent.run(question))


if __name__ == "__main__":
    main(sys.argv[1])
