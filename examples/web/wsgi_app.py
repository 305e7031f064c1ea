"""The same without a framework: a WSGI app that streams, metered for the customer in the header x-customer-id.

meterhouse run -- gunicorn --chdir examples/web wsgi_app:app --preload --workers 2
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

from openai import OpenAI

from meterhouse.middleware import WSGICustomerFromHeader

MODEL = os.environ.get("MODEL", "gpt-5-mini")
client = OpenAI()


def chat(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
    question = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)).decode()
    messages = [{"role": "user", "content": question}]
    chunks = client.chat.completions.create(model=MODEL, messages=messages, stream=True)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return ((chunk.choices[0].delta.content or "").encode() for chunk in chunks)


app = WSGICustomerFromHeader(chat)
