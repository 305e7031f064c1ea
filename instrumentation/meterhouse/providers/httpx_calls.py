"""The choke point of SDKs that make one logical call in one function, which answers with a response of httpx.

Mistral's and Cohere's are such. How the host then reads the response is the matter of `streamed.listen`.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from meterhouse.call import new_call_id
from meterhouse.metered import Request, start, start_async
from meterhouse.providers.streamed import Provider, Streamed, listen

REQUEST_ID_HEADER = "X-Client-Request-Id"


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One call about to go out. `body`: as much of the request's body as is needed to know model and tool results."""

    provider: Provider
    url: str
    body: Callable[[], Mapping[str, Any]]
    request_id: str = ""
    """What the host named the call; empty: `call_id` is its name."""
    kind: type[Streamed] = Streamed
    call_id: str = field(default_factory=new_call_id)

    def describe(self) -> Request | None:
        """What `metered.start` wants to know; None for what is not billed."""
        parts = urlsplit(self.url)
        operation = self.provider.operation(parts.path)
        if operation is None:
            return None
        body = self.body()
        return Request(
            provider=self.provider.name,
            operation=operation,
            model=model_of(body),
            server=parts.hostname or "",
            request_id=self.request_id or self.call_id,
            call_id=self.call_id,
            tool_results=partial(self.provider.tool_results, body),
        )


def model_of(body: Mapping[str, Any]) -> str:
    """The model that a request asks for; empty where it leaves that to the server."""
    model = body.get("model")
    return model if isinstance(model, str) else ""


def answered(call: Outgoing, send: Callable[[], Any]) -> Any:
    """The response that `send` gives, metered; what it raises passes."""
    metered = start(call.kind, call.provider, call.describe)
    if metered is None:
        return send()
    with metered.requesting():
        response = send()
    _listen(metered, call, response)
    return response


async def answered_async(call: Outgoing, send: Callable[[], Awaitable[Any]]) -> Any:
    """`answered` for a coroutine function."""
    metered = await start_async(call.kind, call.provider, call.describe)
    if metered is None:
        return await send()
    with metered.requesting():
        response = await send()
    _listen(metered, call, response)
    return response


@contextmanager
def opened(call: Outgoing, manager: AbstractContextManager[Any]) -> Iterator[Any]:
    """`manager`, which hands out a response while it is open, metered."""
    metered = start(call.kind, call.provider, call.describe)
    if metered is None:
        with manager as response:
            yield response
        return
    try:
        with ExitStack() as stack:
            with metered.running():  # only while the request goes out: what the host does with the answer is its own
                response = stack.enter_context(manager)
            _listen(metered, call, response)
            yield response
    except BaseException as error:
        metered.end(error)
        raise
    metered.end()


@asynccontextmanager
async def opened_async(call: Outgoing, manager: AbstractAsyncContextManager[Any]) -> AsyncIterator[Any]:
    """`opened` for an asynchronous manager."""
    metered = await start_async(call.kind, call.provider, call.describe)
    if metered is None:
        async with manager as response:
            yield response
        return
    try:
        async with AsyncExitStack() as stack:
            with metered.running():
                response = await stack.enter_async_context(manager)
            _listen(metered, call, response)
            yield response
    except BaseException as error:
        metered.end(error)
        raise
    metered.end()


def _listen(metered: Streamed, call: Outgoing, response: Any) -> None:
    if getattr(response, "status_code", 0) >= 400:  # the SDK raises when it has read why
        metered.answer.failed = True
        metered.end()
        return
    metered.requested_model = model_of(call.body())
    listen(metered, response)
