"""The steps of a run as lines, and on a terminal a bar below them that shows how far the run is."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from meterhouse_rating.run import Step


def watched(steps: "Iterable[Step]", out: TextIO) -> "Iterator[Step]":
    """Print each step to `out` when it is done, and hand it on.

    The bar counts the customers of each period. It is drawn only where `out` is a terminal, and leaves nothing behind.
    """
    if not out.isatty():
        for step in steps:
            # Flushed line by line: whoever watches, or stops the run, knows what is committed.
            print(step, flush=True, file=out)
            yield step
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(file=out, highlight=False, markup=False, emoji=False, soft_wrap=True)
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("reading usage", total=None)
        for step in steps:
            console.print(str(step))
            if step.customers:
                bar.reset(task, total=step.customers, description=step.text.partition(": ")[0])
            elif step.outcome is not None:
                bar.advance(task)
            yield step
