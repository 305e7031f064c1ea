"""The customers' pages in a frame of the operator's own application: read only, for the origins that were set alone.

The pages are those of `/account` under `/embed`, with a cookie of their own: a session of one is worth nothing in the
other. There is no way to change anything there, so there is nothing a click or a form from elsewhere could do.
"""

import re
from collections.abc import Awaitable, Callable
from typing import Final

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from meterhouse_portal import embedding

PREFIX: Final = "/embed"
COOKIE: Final = "__Host-meterhouse_embed"
CONTENT_POLICY: Final = (
    "default-src 'none'; style-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'; "
    "frame-ancestors {}"
)
# Values are escaped, quotes with them: what looks like an attribute is one.
_LINK: Final = re.compile(r'((?:href|action)=")(?=/account[/?"])')

Endpoint = Callable[[Request], Awaitable[Response]]


def framed(origins: tuple[str, ...], endpoint: Endpoint) -> Endpoint:
    """The endpoint, whose answers these origins may show in a frame, and nobody else."""
    policy = CONTENT_POLICY.format(" ".join(origins))

    async def answer(request: Request) -> Response:
        made = await endpoint(request)
        made.headers["Content-Security-Policy"] = policy
        return made

    return answer


def inside(answer: Response) -> Response:
    """A page whose links stay in the frame."""
    if not isinstance(answer, HTMLResponse):
        return answer
    text = bytes(answer.body).decode()
    return HTMLResponse(_LINK.sub(rf"\g<1>{PREFIX}", text), answer.status_code)


def opened(session: str) -> Response:
    """On to the first page, with the session's cookie: of this frame in this application only (CHIPS)."""
    answer = RedirectResponse(f"{PREFIX}/account", 303)
    life = int(embedding.SESSION_LIFE.total_seconds())
    _set_cookie(answer, session, life)
    return answer


def closed(answer: Response) -> Response:
    """The answer, after which nothing is open any more."""
    _set_cookie(answer, "", 0)
    return answer


def _set_cookie(answer: Response, value: str, life_s: int) -> None:
    # Starlette writes `Partitioned` from Python 3.14 on only.
    cookie = f"{COOKIE}={value}; Max-Age={life_s}; Path=/; Secure; HttpOnly; SameSite=None; Partitioned"
    answer.headers.append("Set-Cookie", cookie)
