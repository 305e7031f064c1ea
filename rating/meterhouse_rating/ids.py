"""Deterministic names: what is written twice has the same id twice."""

import hashlib
import json
from typing import Any


def canonical(value: Any) -> str:
    """The value as JSON with one spelling: sorted keys, no spaces. Numbers that matter are passed as text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON, in hex."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()
