"""Addresses that come from outside, and where the portal leads people."""

from typing import Final
from urllib.parse import urlsplit

_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
"""Hosts that are this machine: what goes there needs no TLS."""


def is_safe(url: str | None) -> bool:
    """Whether people, and secrets, may go there: over TLS, or on this machine, where the sandbox's Stripe is."""
    try:
        parts = urlsplit(url or "")
    except ValueError:
        return False
    return bool(parts.hostname) and (
        parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)
    )
