"""A stock keeper on CrewAI: answers one question with the help of a tool.

It knows nothing of metering. OPENAI_BASE_URL names a server that speaks OpenAI's API, if it is not OpenAI's.

    python crewai_agent.py "How many lamps are there?"
"""

import os
import sys

from crewai import LLM, Agent, Crew, Task
from crewai.tools import tool


@tool("stock")
def stock(article: str) -> str:
    """How many pieces of an article there are."""
    return f"There are 12 of {article}."


def main(question: str) -> None:
    llm = LLM(model=os.environ.get("OPENAI_MODEL", "gpt-5-mini"), base_url=os.environ.get("OPENAI_BASE_URL"))
    keeper = Agent(role="stock keeper", goal="Know the stock", backstory="Counts things.", llm=llm, tools=[stock])
    asked = Task(name="answer", description=question, expected_output="A sentence.", agent=keeper)
    print(Crew(agents=[keeper], tasks=[asked]).kickoff().raw)


if __name__ == "__main__":
    main(sys.argv[1])
