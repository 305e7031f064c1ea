"""A host application that shows its customer the pages of the portal in a frame.

    METERHOUSE_EMBED_KEY=ek_... METERHOUSE_PUBLIC_URL=https://usage.acme.example python host.py

`frame_address` is all that an application needs; `page` stands for it. Whom to show comes from the application's own
session, never from what a browser sent.
"""

import base64
import hmac
import html
import json
import os
import secrets
import time
from typing import TYPE_CHECKING
from wsgiref.simple_server import make_server

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment


def frame_address(portal: str, key: str, customer: str) -> str:
    """Where the frame begins: good once, for a minute."""

    def base64url(raw: bytes) -> bytes:
        return base64.urlsafe_b64encode(raw).rstrip(b"=")

    now = int(time.time())
    header = {"alg": "HS256", "typ": "JWT", "kid": key.partition(".")[0]}
    claims = {"aud": "meterhouse-embed", "sub": customer, "iat": now, "exp": now + 60, "jti": secrets.token_hex(16)}
    signed = b".".join(base64url(json.dumps(it).encode()) for it in (header, claims))
    signature = base64url(hmac.digest(key.encode(), signed, "sha256"))
    return f"{portal}/embed?token={signed.decode()}.{signature.decode()}"


def page(_environment: "WSGIEnvironment", start_response: "StartResponse") -> list[bytes]:
    """A page of the host; it is not kept, as its frame opens once."""
    start_response("200 OK", [("Content-Type", "text/html; charset=utf-8"), ("Cache-Control", "no-store")])
    portal, key = os.environ["METERHOUSE_PUBLIC_URL"], os.environ["METERHOUSE_EMBED_KEY"]
    source = html.escape(frame_address(portal, key, os.environ.get("CUSTOMER", "acme")))
    frame = f'<iframe src="{source}" title="Usage" style="width: 100%; height: 80vh; border: 0"></iframe>'
    return [f"<!doctype html><html lang=en><title>Acme AI</title><h1>Acme AI</h1>{frame}".encode()]


if __name__ == "__main__":
    with make_server("127.0.0.1", 8100, page) as server:
        server.serve_forever()
