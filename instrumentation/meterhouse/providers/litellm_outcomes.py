"""How litellm's calls end, where that is decided above its HTTP client.

litellm stops reading a stream when it has seen the reason why the model stopped, before the last bytes have come: such
a stream has ended, it was not left. And a usage limit is no provider's error, which litellm would make another of and
try again.
"""

from collections.abc import Callable
from contextvars import ContextVar
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from meterhouse import patches
from meterhouse.metered import Metered
from meterhouse.pauses import UsageLimitExceeded

_STEPS = ("__next__", "__anext__")
_streams: "WeakKeyDictionary[Any, list[Metered]]" = WeakKeyDictionary()
"""litellm's stream -> the calls that it is read from."""
_stepping: ContextVar["list[Metered] | None"] = ContextVar("meterhouse_litellm", default=None)


def read_from(metered: Metered) -> None:
    """A piece of this call was read: by the stream that makes its next step."""
    calls = _stepping.get()
    if calls is not None and metered not in calls:
        calls.append(metered)


def install(module: ModuleType) -> None:
    """Patch the stream, or add the limit to the errors that litellm passes on as they are."""
    if hasattr(module, "CustomStreamWrapper"):
        for name, wrapper in zip(_STEPS, (_next, _anext), strict=True):
            patches.wrap(module, f"CustomStreamWrapper.{name}", wrapper)
    elif UsageLimitExceeded not in module.LITELLM_EXCEPTION_TYPES:
        module.LITELLM_EXCEPTION_TYPES.append(UsageLimitExceeded)


def remove(module: ModuleType) -> None:
    """Undo `install`."""
    if hasattr(module, "CustomStreamWrapper"):
        for name in _STEPS:
            patches.unwrap(module, f"CustomStreamWrapper.{name}")
    elif UsageLimitExceeded in module.LITELLM_EXCEPTION_TYPES:
        module.LITELLM_EXCEPTION_TYPES.remove(UsageLimitExceeded)


def _next(wrapped: Callable[..., Any], stream: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    calls = _streams.setdefault(stream, [])
    token = _stepping.set(calls)
    try:
        return wrapped(*args, **kwargs)
    except BaseException as error:
        _end(calls, error)
        raise
    finally:
        _stepping.reset(token)


async def _anext(wrapped: Callable[..., Any], stream: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    calls = _streams.setdefault(stream, [])
    token = _stepping.set(calls)
    try:
        return await wrapped(*args, **kwargs)
    except BaseException as error:
        _end(calls, error)
        raise
    finally:
        _stepping.reset(token)


def _end(calls: list[Metered], error: BaseException) -> None:
    over = isinstance(error, StopIteration | StopAsyncIteration)
    for metered in calls:
        metered.end(None if over else error, exhausted=over)
