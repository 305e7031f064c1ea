"""What Meterhouse says of its own trouble, in the host's log and never in its way."""

import sys

from meterhouse import interrupts

_warned: set[str] = set()


def warn_once(topic: str, message: str, *arguments: object, with_trace: bool = False) -> None:
    """One warning per process and topic; `with_trace`: for an exception that was caught.

    It is raised again if it is no affair of ours: if a signal handler of the host raised it.
    """
    if with_trace:
        interrupts.hand_on(sys.exc_info()[1])
    if topic not in _warned:
        _warned.add(topic)
        warn(message, *arguments, with_trace=with_trace)


def warn(message: str, *arguments: object, with_trace: bool = False) -> None:
    """A warning in the host's log; on stderr where the interpreter ends, and nothing can be imported any more."""
    try:
        import logging  # here: nearly every host has it, and to the others it is a third of importing Meterhouse
    except ImportError:
        print(message % arguments, file=sys.stderr)
        return
    logging.getLogger("meterhouse").warning(message, *arguments, exc_info=with_trace)
