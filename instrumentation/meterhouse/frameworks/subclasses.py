"""Patches methods of a framework's abstract class where they are defined: in each subclass, those to come as well."""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import wrapt

Wrappers = Mapping[str, Callable[..., Any]]
"""Method -> a wrapper in the style of wrapt: (wrapped, instance, args, kwargs)."""


def wrap(base: Any, wrappers: Wrappers) -> None:
    """Patch the subclasses there are, and have those to come patched when they are made."""
    own = vars(base).get("__init_subclass__")

    def announced(kind: Any, /, **kwargs: Any) -> None:
        if own is None:
            super(base, kind).__init_subclass__(**kwargs)
        else:
            own.__func__(kind, **kwargs)
        _wrap(kind, wrappers)

    announced._instead_of = own  # type: ignore[attr-defined]

    for kind in _below(base):
        _wrap(kind, wrappers)
    base.__init_subclass__ = classmethod(announced)


def unwrap(base: Any, wrappers: Wrappers) -> None:
    """Undo `wrap`."""
    announced: Any = getattr(vars(base).get("__init_subclass__"), "__func__", None)
    if hasattr(announced, "_instead_of"):
        if announced._instead_of is None:
            del base.__init_subclass__
        else:
            base.__init_subclass__ = announced._instead_of
    for kind in _below(base):
        for name, wrapper in wrappers.items():
            if _is(vars(kind).get(name), wrapper):
                unwrap_one(kind, name)


def unwrap_one(owner: type | ModuleType, name: str) -> None:
    """Undo the patch of one attribute of a class or module, where there is one."""
    own = vars(owner).get(name)
    if isinstance(own, wrapt.FunctionWrapper):
        setattr(owner, name, own.__wrapped__)


def _wrap(kind: type, wrappers: Wrappers) -> None:
    for name, wrapper in wrappers.items():
        own = vars(kind).get(name)
        if own is not None and not _is(own, wrapper):
            setattr(kind, name, wrapt.FunctionWrapper(own, wrapper))


def _is(own: object, wrapper: Callable[..., Any]) -> bool:
    """True for a patch of ours: frameworks wrap their methods with wrapt as well."""
    return isinstance(own, wrapt.FunctionWrapper) and own._self_wrapper is wrapper


def _below(base: Any) -> list[Any]:
    return [kind for direct in base.__subclasses__() for kind in (direct, *_below(direct))]
