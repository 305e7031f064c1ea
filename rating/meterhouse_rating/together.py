"""Two questions that do not wait for each other, asked of the stores at once."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Final, TypeVar

_ONE = TypeVar("_ONE")
_OTHER = TypeVar("_OTHER")

_POOL: Final = ThreadPoolExecutor(max_workers=16, thread_name_prefix="asked-together")


def together(one: Callable[[], _ONE], other: Callable[[], _OTHER]) -> tuple[_ONE, _OTHER]:
    """What both answer; raises what they raise, once both have ended.

    `one` runs in this thread, and may ask together itself. `other` must not: where every thread of the pool waited for
    another one, none would go on.
    """
    later = _POOL.submit(other)
    try:
        answer = one()
    finally:
        wait([later])
    return answer, later.result()
