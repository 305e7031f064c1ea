"""Addresses that come from outside, and where the portal leads people."""

from typing import Final
from urllib.parse import urlsplit

LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
"""Hosts that are this machine: what goes there needs no TLS."""


def payable(url: str | None) -> bool:
    """Whether people are led to a page to pay on: over TLS, or of the sandbox's Stripe on this machine."""
    try:
        parts = urlsplit(url or "")
        host, has_port = parts.hostname, parts.port is not None
    except ValueError:
        return False
    if parts.username is not None or parts.scheme not in ("http", "https") or not host:
        return False
    return parts.scheme == "https" or (host in LOOPBACK and has_port)
