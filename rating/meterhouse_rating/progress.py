"""The steps of a run as lines, and on a terminal a bar below them."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TextIO

from meterhouse_store.progress import bar

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
    with bar(out) as drawn:
        drawn.begin(None, "reading usage")
        for step in steps:
            drawn.say(str(step))
            if step.customers:
                drawn.begin(step.customers, step.text.partition(": ")[0])
            elif step.outcome is not None:
                drawn.advance()
            yield step
