"""No fork while a thread is in the imports of the first event: the child would wait for that thread for ever."""

import os
import threading

LONGEST_WAIT_S = 5.0

lock = threading.RLock()
"""Held while Meterhouse is imported and started; look it up anew each time."""


def _before() -> None:
    # Bounded: a module that forks while it is imported may be the one that the other thread waits for.
    global _held
    _held = lock.acquire(timeout=LONGEST_WAIT_S)


def _after_in_parent() -> None:
    if _held:
        lock.release()


def _after_in_child() -> None:
    global lock
    lock = threading.RLock()


_held = False
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
