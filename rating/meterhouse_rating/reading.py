"""A period's usage in ranges of customers' names: while the first are settled the warehouse sums up the others."""

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from typing import Final

from meterhouse_rating import known
from meterhouse_rating.beside import beside
from meterhouse_rating.queries import EVERYBODY, Names
from meterhouse_rating.terms import Terms
from meterhouse_rating.usage import Found
from meterhouse_rating.windows import Window
from meterhouse_rating.world import World

FIRST: Final = 500
"""So many customers are in the first range, for whom the rest waits, and twice as many in each of the next. A period of
fewer than two such ranges is read at once."""


def read(
    world: World, terms: Terms, window: Window, as_of: datetime, only: list[str] | None
) -> Generator[tuple[Names, dict[str, Found]]]:
    """Ranges of names, in their order and without a gap, each with the usage of all customers in it.

    Everything is read as it was known at `as_of`, without waiting for whoever takes it. To be closed, where it is not
    gone through. Errors of the client pass through.
    """
    if window.used is not None:
        yield EVERYBODY, window.used
        return
    ranges = [EVERYBODY] if only is not None else ranges_of(sorted(window.members), FIRST)
    if len(ranges) == 1:
        yield EVERYBODY, known.gather(world, terms, window.period, as_of, only)
        return
    later = replace(world, client=beside(world.client))
    with ThreadPoolExecutor(1, thread_name_prefix="usage") as pool:
        asked: deque[tuple[Names, Future[dict[str, Found]]]] = deque(
            (names, pool.submit(known.gather, later if names.first else world, terms, window.period, as_of, names))
            for names in ranges
        )
        try:
            while asked:
                names, found = asked.popleft()
                yield names, found.result()
                del found  # of those who are settled nothing is kept
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def ranges_of(names: Sequence[str], first: int) -> list[Names]:
    """Ranges that have `first` of the sorted names, then twice as many each, and every name that there is between."""
    edges = [""]
    at, size = first, first
    while at + first <= len(names):
        edges.append(names[at])
        size *= 2
        at += size
    return [Names(start, end) for start, end in zip(edges, [*edges[1:], None], strict=True)]
