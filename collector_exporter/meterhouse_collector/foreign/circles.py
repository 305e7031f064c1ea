"""Where the steps of a graph lead back to where they began: its strongly connected components (Tarjan 1972)."""

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TypeVar

Node = TypeVar("Node", bound=Hashable)


def components(starts: Iterable[Node], steps: Callable[[Node], Iterable[Node]]) -> Iterator[list[Node]]:
    """What can be reached from `starts`, in groups of which each member reaches every other.

    A group comes after all groups that it leads to. Takes time in proportion to the steps, and no recursion.
    """
    numbers: dict[Node, int] = {}
    lowest: dict[Node, int] = {}
    open_: list[Node] = []
    is_open: set[Node] = set()
    for start in starts:
        if start in numbers:
            continue
        numbers[start] = lowest[start] = len(numbers)
        open_.append(start)
        is_open.add(start)
        path = [(start, iter(steps(start)))]
        while path:
            node, left = path[-1]
            for following in left:
                if following not in numbers:
                    numbers[following] = lowest[following] = len(numbers)
                    open_.append(following)
                    is_open.add(following)
                    path.append((following, iter(steps(following))))
                    break
                if following in is_open:
                    lowest[node] = min(lowest[node], numbers[following])
            else:
                path.pop()
                if path:
                    before = path[-1][0]
                    lowest[before] = min(lowest[before], lowest[node])
                if lowest[node] == numbers[node]:
                    group = [open_.pop()]
                    while group[-1] != node:
                        group.append(open_.pop())
                    is_open.difference_update(group)
                    yield group
