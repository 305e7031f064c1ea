"""Price lists of providers that are shipped: snapshots of genai-prices (MIT), each named by its version.

`costs_snapshot.of_installed` makes the text of one; it is kept compressed, and its hash is what is pinned.
"""

import gzip
from importlib import resources
from typing import Final

NEWEST: Final = "genai-prices-0.2.3"


def text(name: str = NEWEST) -> str:
    """The text of a shipped catalogue. Raises KeyError for a name that is none."""
    file = resources.files(__name__) / f"{name}.json.gz"
    if not file.is_file():
        raise KeyError(name)
    return gzip.decompress(file.read_bytes()).decode()
