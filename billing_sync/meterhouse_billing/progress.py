"""How far a long run is, for whoever watches: a bar on a terminal, else a line every ten seconds."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TextIO

EVERY_S: Final = 10.0


@contextmanager
def counting(
    total: int, what: str, out: TextIO, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[], None]]:
    """Yields what is to be called when one more of `total` is through, by one thread at a time.

    A run that takes less than EVERY_S says nothing where `out` is no terminal.
    """
    if out.isatty() and total > 1:
        with _bar(total, what, out) as further:
            yield further
        return
    begun = told = clock()
    done = 0

    def advance() -> None:
        nonlocal done, told
        done += 1
        now = clock()
        if now - told >= EVERY_S:
            told, rate = now, done / (now - begun)
            left_s = round((total - done) / rate)
            at = f"{done:,} of {total:,} {what}, {rate:.1f} a second"
            print(f"{at}, about {left_s // 60}:{left_s % 60:02} min to go", flush=True, file=out)

    yield advance


@contextmanager
def _bar(total: int, what: str, out: TextIO) -> Iterator[Callable[[], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=out), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)
