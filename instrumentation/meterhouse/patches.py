"""Patching the functions of libraries, and leaving them again, beside others that patch the same functions.

A patch that somebody has wrapped since stays where it is, switched off, because what lies on top of it is not ours to
take away. Where that function is to be patched once more, it is switched on again.
"""

import importlib
from collections.abc import Callable
from copy import deepcopy
from operator import attrgetter
from threading import Event
from typing import Any

import wrapt

Wrapper = Callable[..., Any]
"""In the style of wrapt: (wrapped, instance, args, kwargs)."""
_DEEPEST = 100

_on = Event()
_made: dict[tuple[Any, str], "Patch"] = {}
"""By class or module of a library, and attribute."""


class _Bound(wrapt.BoundFunctionWrapper):  # type: ignore[misc,type-arg,unused-ignore]
    """A patched method of an object: copied and pickled like the method, by its name."""

    def __reduce_ex__(self, _protocol: Any) -> Any:
        if self._self_instance is None:
            return _named, (self.__module__, self.__qualname__)
        return getattr, (self._self_instance, self.__name__)

    def __reduce__(self) -> Any:
        return self.__reduce_ex__(2)

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self if self._self_instance is None else getattr(deepcopy(self._self_instance, memo), self.__name__)


class Patch(wrapt.FunctionWrapper):  # type: ignore[misc,type-arg,unused-ignore]
    """A function with our wrapper around it, which is passed over while patches are switched off."""

    __bound_function_wrapper__ = _Bound

    def __init__(self, wrapped: Any, wrapper: Wrapper) -> None:
        super().__init__(wrapped, wrapper, _on.is_set)

    def __reduce_ex__(self, _protocol: Any) -> Any:
        return self.__qualname__

    def __reduce__(self) -> Any:
        return self.__qualname__

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, _memo: dict[int, Any]) -> Any:
        return self


def _named(module: str, qualified: str) -> Any:
    return attrgetter(qualified)(importlib.import_module(module))


def switch_off() -> None:
    """From now on, all patches there are only pass on what they are called with; `wrap` switches them on again."""
    _on.clear()


def switch_on() -> None:
    """Undo `switch_off`."""
    _on.set()


def wrap(target: Any, path: str, wrapper: Wrapper) -> None:
    """Patch what is at `path` (`Class.method`) of a module or class; raises AttributeError where nothing is."""
    owner, attribute, found = wrapt.resolve_path(target, path)
    switch_on()
    before = _made.get((owner, attribute))
    if before is not None and found is not before.__wrapped__:
        return  # it is in place, under another's perhaps
    _made[owner, attribute] = patch = Patch(found, wrapper)
    setattr(owner, attribute, patch)


def unwrap(target: Any, path: str) -> None:
    """Undo `wrap`, where nobody has wrapped the patch since."""
    *above, attribute = path.split(".")
    owner = target
    for name in above:
        owner = getattr(owner, name, None)
    found = vars(owner).get(attribute) if owner is not None else None
    if isinstance(found, Patch):
        _made.pop((owner, attribute), None)
        setattr(owner, attribute, found.__wrapped__)


def patched(found: object, wrapper: Wrapper) -> bool:
    """True for a function that is patched with this wrapper, on top or further down."""
    for _ in range(_DEEPEST):
        if found is None or (isinstance(found, Patch) and found._self_wrapper is wrapper):
            break
        found = getattr(found, "__wrapped__", None)
    return found is not None
