"""What Meterhouse says of its own trouble, in the host's log and never in its way."""

import logging
import sys

from meterhouse import interrupts

_log = logging.getLogger("meterhouse")
_warned: set[str] = set()


def warn_once(topic: str, message: str, *arguments: object, with_trace: bool = False) -> None:
    """One warning per process and topic; `with_trace`: for an exception that was caught.

    It is raised again if it is no affair of ours: if a signal handler of the host raised it.
    """
    if with_trace:
        interrupts.hand_on(sys.exc_info()[1])
    if topic not in _warned:
        _warned.add(topic)
        _log.warning(message, *arguments, exc_info=with_trace)
