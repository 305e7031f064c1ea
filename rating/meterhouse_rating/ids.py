"""Deterministic names: what is written twice has the same id twice."""

import hashlib
import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from meterhouse_store.numbers import plain


def _told(value: Any) -> Any:
    if isinstance(value, Decimal):
        return plain(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no one spelling")


# Made once: to make it takes longer than to spell most of what is named.
_SPELLING: Final = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_told
)


def canonical(value: Any) -> str:
    """The value as JSON with one spelling: sorted keys, no spaces, Decimals as text. Raises TypeError for others."""
    return _SPELLING.encode(value)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON, in hex."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()
