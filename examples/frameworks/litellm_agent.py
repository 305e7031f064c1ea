"""A help desk on litellm: answers one question with the help of a tool, whatever provider the model is of.

It knows nothing of metering. MODEL_BASE_URL names a server that speaks the provider's API, if it is not the provider's.

    MODEL=anthropic/claude-sonnet-4-5 python litellm_agent.py "When are you open on Monday?"
"""

import json
import os
import sys
from typing import Any

import litellm

MODEL = os.environ.get("MODEL", "anthropic/claude-sonnet-4-5")
ROUNDS_MAX = 6
PARAMETERS = {"type": "object", "properties": {"day": {"type": "string"}}, "required": ["day"]}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "opening_hours", "description": "When the shop is open", "parameters": PARAMETERS},
    }
]


def opening_hours(day: str) -> str:
    return f"On {day} the shop is open from 9 to 17."


def main(question: str) -> None:
    messages: list[Any] = [{"role": "user", "content": question}]
    for _ in range(ROUNDS_MAX):
        answer = litellm.completion(
            model=MODEL, messages=messages, tools=TOOLS, api_base=os.environ.get("MODEL_BASE_URL")
        )
        message = answer.choices[0].message
        if not message.tool_calls:
            print(message.content)
            return
        messages.append(message)
        for call in message.tool_calls:
            result = opening_hours(**json.loads(call.function.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "name": "opening_hours", "content": result})


if __name__ == "__main__":
    main(sys.argv[1])
