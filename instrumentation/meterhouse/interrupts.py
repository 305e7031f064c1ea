"""Exceptions that are not ours: those that a signal handler of the host raised while our code was running.

Timeouts work that way (`signal.alarm`, Celery's soft time limit, RQ's job timeout): the handler raises in the main
thread, wherever that is at the moment. Where Meterhouse catches whatever went wrong inside it, those are handed on
(`trouble.warn_once` does it).
"""

import sys
from collections.abc import Iterator
from types import CodeType, FrameType


def hand_on(error: BaseException | None) -> None:
    """Raises `error` again if it is the host's."""
    if error is not None and from_host(error):
        raise error


def from_host(error: BaseException) -> bool:
    """True when a signal handler raised it, or something that a signal handler called."""
    traceback = error.__traceback__
    while traceback is not None:
        if _is_handler(traceback.tb_frame):
            return True
        traceback = traceback.tb_next
    return False


def _is_handler(frame: FrameType) -> bool:
    signal = sys.modules.get("signal")
    if signal is None:  # nobody can have set a handler
        return False
    signals = signal.valid_signals()
    # By its arguments, because a handler may take itself out before it raises; by its code, because it may delete them.
    given = list(_arguments(frame))
    called = any(isinstance(one, FrameType) for one in given) and any(
        isinstance(one, int) and one in signals for one in given
    )
    return called or any(_code(signal.getsignal(number)) is frame.f_code for number in signals)


def _arguments(frame: FrameType) -> Iterator[object]:
    code = frame.f_code
    for name in code.co_varnames[: code.co_argcount]:
        yield frame.f_locals.get(name)
    if code.co_flags & 0x04:  # CO_VARARGS
        yield from frame.f_locals.get(code.co_varnames[code.co_argcount + code.co_kwonlyargcount], ())


def _code(handler: object) -> CodeType | None:
    function = getattr(handler, "__func__", handler)
    if not hasattr(function, "__code__"):  # an object that can be called, or none of Python's
        function = getattr(type(handler), "__call__", None)  # noqa: B004 - not whether it can be called: what is called
    code = getattr(function, "__code__", None)
    return code if isinstance(code, CodeType) else None
