"""The text of a price book as JSON: the keys that stand there, with every number as exact text."""

from functools import lru_cache
from typing import Any

from meterhouse_rating.document import Mapping, Node, Scalar, number_of, read


@lru_cache(maxsize=64)
def tree(source: str) -> dict[str, Any]:
    """The whole of a text that was published or recorded, which never changes; not to be changed by the caller.

    Numbers are text as written but without separators (`1_000_000` is "1000000"), an empty value is null.
    """
    root = read(source, [])
    assert root is not None, "it was checked before it was kept"
    found = _json(root)
    assert isinstance(found, dict)
    return found


def _json(node: Node) -> Any:
    if isinstance(node, Scalar):
        number = None if node.quoted else number_of(node.text)
        return number if number is not None else None if node.is_empty else node.text
    if isinstance(node, Mapping):
        return {name: _json(inner) for name, inner in node.entries.items()}
    return [_json(item) for item in node.items]
