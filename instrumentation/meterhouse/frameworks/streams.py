"""What a framework does as an (async) generator: watched while that runs, never while its consumer does."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from contextlib import AbstractContextManager
from typing import Any

from meterhouse.frameworks.model_calls import ModelCall, Told

Inside = Callable[[], AbstractContextManager[Any]]
"""Makes the context manager that each step runs in."""


class Tally:
    """What the pieces of a model call's stream told; `take` is asked for each piece, `told` at the end."""

    def take(self, piece: Any) -> None:
        """Look at a piece."""

    def told(self) -> Told:
        """What they tell together."""
        return {}


def stepped(inside: Inside, pieces: Iterator[Any]) -> Generator[Any, None, Any]:
    """The same pieces, each of them made `inside`."""
    try:
        while True:
            with inside():
                try:
                    piece = next(pieces)
                except StopIteration as end:
                    return end.value
            yield piece
    finally:
        if (close := getattr(pieces, "close", None)) is not None:
            with inside():
                close()


async def stepped_async(inside: Inside, pieces: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
    """`stepped` for async generators."""
    try:
        while True:
            with inside():
                try:
                    piece = await anext(pieces)
                except StopAsyncIteration:
                    return
            yield piece
    finally:
        if (close := getattr(pieces, "aclose", None)) is not None:
            with inside():
                await close()


def watched(call: ModelCall, pieces: Iterator[Any], tally: Tally, *, counts_tools: bool) -> Generator[Any, None, None]:
    """The same pieces; ends the call when they end, break off, or are left early. See `ModelCall.running`."""
    steps = stepped(lambda: call.running(counts_tools=counts_tools), pieces)
    try:
        for piece in steps:
            tally.take(piece)
            yield piece
    except BaseException as error:
        steps.close()
        call.broken(error, tally.told)
        raise
    call.end(tally.told)


async def watched_async(
    call: ModelCall, pieces: AsyncIterator[Any], tally: Tally, *, counts_tools: bool
) -> AsyncGenerator[Any, None]:
    """`watched` for async generators."""
    steps = stepped_async(lambda: call.running(counts_tools=counts_tools), pieces)
    try:
        async for piece in steps:
            tally.take(piece)
            yield piece
    except BaseException as error:
        await steps.aclose()
        call.broken(error, tally.told)
        raise
    call.end(tally.told)
