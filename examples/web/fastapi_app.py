"""Chats over HTTP, metered for the customer that the front end names in the header x-customer-id.

meterhouse run -- uvicorn --app-dir examples/web fastapi_app:app --workers 2
"""

import os
from collections.abc import AsyncIterator

from fastapi import Body, FastAPI
from fastapi.responses import StreamingResponse
from openai import AsyncOpenAI

from meterhouse.middleware import CustomerFromHeader

MODEL = os.environ.get("MODEL", "gpt-5-mini")
api = FastAPI()
client = AsyncOpenAI()


@api.post("/chat")
async def chat(question: str = Body()) -> str:
    answer = await client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": question}])
    return answer.choices[0].message.content or ""


@api.post("/stream")
async def stream(question: str = Body()) -> StreamingResponse:
    return StreamingResponse(_words(question), media_type="text/plain")


async def _words(question: str) -> AsyncIterator[str]:
    messages = [{"role": "user", "content": question}]
    async for chunk in await client.chat.completions.create(model=MODEL, messages=messages, stream=True):
        yield chunk.choices[0].delta.content or ""


app = CustomerFromHeader(api)
