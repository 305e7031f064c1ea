"""A shop's help desk on the openai SDK: looks articles up, calls its tools, streams the answer.

Reads questions, one per line, from standard input and prints one answer per line. It knows nothing of metering.

    echo "Where is order 4711?" | python agent.py
"""

import json
import os
import sys
from collections.abc import Callable

from openai import OpenAI

MODEL = os.environ.get("OPENAI_MODEL", "gpt-5-mini")
EMBEDDING_MODEL = "text-embedding-3-small"
ROUNDS_MAX = 6


def order_status(order: str) -> str:
    return f"Order {order} left the warehouse yesterday."


def opening_hours(day: str) -> str:
    return f"On {day} the shop is open from 9 to 17."


TOOLS: dict[str, Callable[[str], str]] = {"order_status": order_status, "opening_hours": opening_hours}
TOOL_SCHEMAS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {"type": "object", "properties": {argument: {"type": "string"}}, "required": [argument]},
        },
    }
    for name, description, argument in [
        ("order_status", "Where an order is", "order"),
        ("opening_hours", "When the shop is open", "day"),
    ]
]


def answer(client: OpenAI, question: str, user: str) -> str:
    """One question: an embedding to look articles up with, then chat turns until the model needs no more tools."""
    client.embeddings.create(model=EMBEDDING_MODEL, input=question, user=user)
    messages: list[dict[str, object]] = [{"role": "user", "content": question}]
    for _ in range(ROUNDS_MAX):
        text, calls = chat(client, messages, user)
        if not calls:
            return text
        messages.append({"role": "assistant", "content": text or None, "tool_calls": calls})
        for call in calls:
            function = call["function"]
            result = TOOLS[function["name"]](**json.loads(function["arguments"]))
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
    return "I could not find that out."


def chat(client: OpenAI, messages: list[dict[str, object]], user: str) -> tuple[str, list[dict]]:
    """One streamed turn: what the model said and the tool calls it asks for."""
    text, calls = "", {}
    for chunk in client.chat.completions.create(
        model=MODEL, messages=messages, tools=TOOL_SCHEMAS, stream=True, user=user
    ):
        for choice in chunk.choices:
            text += choice.delta.content or ""
            for part in choice.delta.tool_calls or []:
                call = calls.setdefault(
                    part.index, {"id": part.id, "type": "function", "function": {"name": "", "arguments": ""}}
                )
                call["function"]["name"] += part.function.name or ""
                call["function"]["arguments"] += part.function.arguments or ""
    return text, list(calls.values())


def main() -> None:
    client = OpenAI()
    user = os.environ.get("AGENT_USER", "anonymous")
    for line in sys.stdin:
        if line.strip():
            print(answer(client, line.strip(), user), flush=True)


if __name__ == "__main__":
    main()
