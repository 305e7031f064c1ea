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


Take = Callable[[Any], None]
"""Is shown each piece."""


def stepped(inside: Inside, pieces: Iterator[Any], take: Take | None = None) -> Generator[Any, None, Any]:
    """The same pieces, each of them made `inside`. What their consumer throws in reaches `pieces`."""
    throw: Any = getattr(pieces, "throw", None)
    thrown: BaseException | None = None
    try:
        while True:
            with inside():
                try:
                    piece = next(pieces) if thrown is None else throw(thrown)
                except StopIteration as end:
                    return end.value
            thrown = None
            if take is not None:
                take(piece)
            try:
                yield piece
            except GeneratorExit:
                raise
            except BaseException as error:
                if throw is None:
                    raise
                thrown = error
    finally:
        if (close := getattr(pieces, "close", None)) is not None:
            with inside():
                close()


async def stepped_async(
    inside: Inside, pieces: AsyncIterator[Any], take: Take | None = None
) -> AsyncGenerator[Any, None]:
    """`stepped` for async generators."""
    throw: Any = getattr(pieces, "athrow", None)
    thrown: BaseException | None = None
    try:
        while True:
            with inside():
                try:
                    piece = await (anext(pieces) if thrown is None else throw(thrown))
                except StopAsyncIteration:
                    return
            thrown = None
            if take is not None:
                take(piece)
            try:
                yield piece
            except GeneratorExit:
                raise
            except BaseException as error:
                if throw is None:
                    raise
                thrown = error
    finally:
        if (close := getattr(pieces, "aclose", None)) is not None:
            with inside():
                await close()


def watched(call: ModelCall, pieces: Iterator[Any], tally: Tally, *, counts_tools: bool) -> Generator[Any, None, None]:
    """The same pieces; ends the call when they end, break off, or are left early. See `ModelCall.running`."""
    steps = stepped(lambda: call.running(counts_tools=counts_tools), pieces, tally.take)
    try:
        yield from steps
    except BaseException as error:
        call.broken(error, tally.told)
        raise
    call.end(tally.told)


async def watched_async(
    call: ModelCall, pieces: AsyncIterator[Any], tally: Tally, *, counts_tools: bool
) -> AsyncGenerator[Any, None]:
    """`watched` for async generators."""
    steps = stepped_async(lambda: call.running(counts_tools=counts_tools), pieces, tally.take)
    try:
        step = anext(steps)
        while True:
            try:
                piece = await step
            except StopAsyncIteration:
                break
            try:
                yield piece
            except GeneratorExit:
                raise
            except BaseException as error:  # noqa: BLE001 - thrown in by its consumer, for the inner one to handle
                step = steps.athrow(error)
            else:
                step = anext(steps)
    except BaseException as error:
        await steps.aclose()
        call.broken(error, tally.told)
        raise
    call.end(tally.told)
