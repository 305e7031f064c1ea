"""How far a long run is, for whoever watches: a bar on a terminal, else a line every ten seconds."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress

EVERY_S: Final = 10.0


@contextmanager
def counting(
    total: int, what: str, out: TextIO, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[], None]]:
    """Yields what is to be called when one more of `total` is through, by one thread at a time.

    A run that takes less than EVERY_S says nothing where `out` is no terminal.
    """
    if out.isatty() and total > 1:
        with bar(out) as drawn:
            drawn.begin(total, what)
            yield drawn.advance
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
def bar(out: TextIO) -> Iterator["Bar"]:
    """A bar on a terminal, below the lines that are printed meanwhile; it leaves nothing behind."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(file=out, highlight=False, markup=False, emoji=False, soft_wrap=True)
    with Progress(*columns, console=console, transient=True) as drawn:
        yield Bar(drawn)


class Bar:
    """What `bar` yields."""

    def __init__(self, drawn: "Progress") -> None:
        self._drawn = drawn
        self._task = drawn.add_task("", total=None)

    def begin(self, total: int | None, what: str) -> None:
        """Count anew, up to `total`; None: it is not known yet."""
        self._drawn.reset(self._task, total=total, description=what)

    def advance(self) -> None:
        """One more is through."""
        self._drawn.advance(self._task)

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self._drawn.console.print(line)
