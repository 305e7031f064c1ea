"""Patches methods of a framework's abstract class where they are defined: in each subclass, those to come as well."""

from collections.abc import Callable, Mapping
from typing import Any

from meterhouse.patches import Patch, patched, switch_on

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

    switch_on()
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
            own = vars(kind).get(name)
            if isinstance(own, Patch) and own._self_wrapper is wrapper:
                setattr(kind, name, own.__wrapped__)


def _wrap(kind: type, wrappers: Wrappers) -> None:
    for name, wrapper in wrappers.items():
        own = vars(kind).get(name)
        if own is not None and not patched(own, wrapper):
            setattr(kind, name, Patch(own, wrapper))


def _below(base: Any) -> list[Any]:
    return [kind for direct in base.__subclasses__() for kind in (direct, *_below(direct))]
