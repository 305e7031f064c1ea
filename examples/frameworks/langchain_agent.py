"""A clerk on LangChain: answers one question with the help of a tool, in a loop of its own.

It knows nothing of metering. OPENAI_BASE_URL names a server that speaks OpenAI's API, if it is not OpenAI.

    python langchain_agent.py "How many lamps are there?"
"""

import sys

from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

ROUNDS_MAX = 5


@tool
def stock(article: str) -> str:
    """How many pieces of an article there are."""
    return f"There are 12 of {article}."


def main(question: str) -> str:
    model = ChatOpenAI(model="gpt-5-mini").bind_tools([stock])
    history: list[BaseMessage] = [HumanMessage(question)]
    for _ in range(ROUNDS_MAX):
        answer = model.invoke(history)
        if not answer.tool_calls:
            return str(answer.text)
        history += [answer, *(stock.invoke(call) for call in answer.tool_calls)]
    return "I could not find that out."


if __name__ == "__main__":
    print(main(sys.argv[1]))
