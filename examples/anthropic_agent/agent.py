"""A travel desk on the anthropic SDK, as a small web application that serves many customers at once.

    python agent.py --port 8000
    curl -H 'x-customer-id: acme' -d '{"question": "When does the train leave?"}' http://127.0.0.1:8000/ask

It knows its customers by a header, as web applications do, and nothing of metering. Operators can put ASGI middleware
around it by naming it in ASGI_MIDDLEWARE (`package.module:Class`, comma separated).
"""

import argparse
import os
from typing import Any

import uvicorn
from anthropic import AsyncAnthropic
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from uvicorn.importer import import_from_string

MODEL = os.environ.get("ANTHROPIC_MODEL", "claude-sonnet-5")
ROUNDS_MAX = 6
TOOLS = [
    {
        "name": "departures",
        "description": "The next departures from a station",
        "input_schema": {"type": "object", "properties": {"station": {"type": "string"}}, "required": ["station"]},
    }
]

client = AsyncAnthropic()


async def answer(question: str, customer: str) -> str:
    """Turns until the model needs no more tools: the first with thinking, the last one streamed to its end."""
    messages: list[Any] = [{"role": "user", "content": question}]
    for _ in range(ROUNDS_MAX):
        async with client.messages.stream(
            model=MODEL,
            max_tokens=4000,
            messages=messages,
            tools=TOOLS,
            thinking={"type": "adaptive"},
            metadata={"user_id": customer},
        ) as stream:
            message = await stream.get_final_message()
        if message.stop_reason != "tool_use":
            return "".join(block.text for block in message.content if block.type == "text")
        results = [
            {"type": "tool_result", "tool_use_id": block.id, "content": f"{block.input.get('station')}: 9:04, 9:34"}
            for block in message.content
            if block.type == "tool_use"
        ]
        messages += [
            {"role": "assistant", "content": [block.to_dict() for block in message.content]},
            {"role": "user", "content": results},
        ]
    return "I could not find that out."


async def headline(text: str, customer: str) -> str:
    """A title for the answer, in one plain request."""
    message = await client.messages.create(
        model=MODEL,
        max_tokens=100,
        messages=[{"role": "user", "content": f"Title: {text}"}],
        metadata={"user_id": customer},
    )
    return "".join(block.text for block in message.content if block.type == "text")


async def ask(request: Request) -> JSONResponse:
    customer = request.headers.get("x-customer-id", "anonymous")
    text = await answer((await request.json())["question"], customer)
    return JSONResponse({"title": await headline(text, customer), "answer": text})


async def health(request: Request) -> JSONResponse:
    return JSONResponse({"status": "ok"})


app: Any = Starlette(routes=[Route("/ask", ask, methods=["POST"]), Route("/healthz", health)])
for name in filter(None, os.environ.get("ASGI_MIDDLEWARE", "").split(",")):
    app = import_from_string(name)(app)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8000)
    uvicorn.run(app, host="127.0.0.1", port=parser.parse_args().port, log_level="warning")
