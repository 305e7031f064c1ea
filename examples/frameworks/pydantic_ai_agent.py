"""A warehouse clerk on PydanticAI: answers one question with the help of a tool. It knows nothing of metering.

OPENAI_BASE_URL=... python pydantic_ai_agent.py "How many lamps are there?"
"""

import os
import sys

from pydantic_ai import Agent

agent = Agent(f"openai-chat:{os.environ.get('OPENAI_MODEL', 'gpt-5-mini')}", name="warehouse")


@agent.tool_plain
def stock(article: str) -> str:
    """How many pieces of an article there are."""
    return f"There are 12 of {article}."


if __name__ == "__main__":
    print(agent.run_sync(sys.argv[1]).output)
