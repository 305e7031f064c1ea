"""Stripe's request contract, read from the installed SDK: which parameters a route takes, and of which type.

The SDK's parameter classes are generated from Stripe's own OpenAPI description, so what they refuse Stripe refuses. A
parameter that Stripe knows and the sandbox does not act upon is refused too, never ignored.
"""

import functools
import importlib
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, Literal, NotRequired, Required, Union, get_args, get_origin, get_type_hints

from stripe import RequestOptions
from typing_extensions import is_typeddict  # the SDK's classes are of this TypedDict, not of typing's

MAX_DEPTH = 6
MAX_METADATA_KEYS = 50
MAX_METADATA_KEY = 40
MAX_METADATA_VALUE = 500


class StripeRefusal(Exception):
    """A request that Stripe answers with an error; becomes the `error` object of the reply."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.error = {
            key: value
            for key, value in {"type": kind, "code": code, "message": message, "param": param}.items()
            if value is not None
        }


def read(
    pairs: Iterable[tuple[str, str]], params: str, supported: frozenset[str], required: frozenset[str]
) -> dict[str, Any]:
    """The typed parameters of a form or a query string.

    `params` names the SDK's class (`InvoiceCreateParams`), `supported` what the sandbox acts upon (`lines.amount` for a
    nested one), `required` what Stripe demands although the class does not say so. Raises StripeRefusal.
    """
    given = _nested(pairs)
    values: dict[str, Any] = _typed_dict(given, _fields(params), "")
    for path in _paths(values):
        if not any(path == known or path.startswith(known + ".") for known in supported):
            raise StripeRefusal(f"The sandbox does not act upon {path!r}; Stripe does.", param=path)
    for name in sorted(required - values.keys()):
        raise StripeRefusal(f"Missing required param: {name}.", code="parameter_missing", param=name)
    return values


def _nested(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """`a[b][0]=c` becomes {"a": {"b": {"0": "c"}}}; whether a level is a list is for the contract to say."""
    tree: dict[str, Any] = {}
    for name, value in pairs:
        if not re.fullmatch(r"[^\[\]]+(\[[^\[\]]*\])*", name) or name.count("[") > MAX_DEPTH:
            raise StripeRefusal(f"Invalid parameter name: {name}", param=name)
        head, *rest = [part.rstrip("]") for part in name.split("[")]
        level = tree
        for step, following in zip([head, *rest], rest, strict=False):
            level = level.setdefault(step, {})
            if not isinstance(level, dict):
                raise StripeRefusal(f"{name} is given both as a value and as an object", param=following)
        level[[head, *rest][-1]] = value
    return tree


@functools.cache
def _fields(params: str) -> dict[str, Any]:
    folder, _, name = f".{params}".rpartition(".")
    module = importlib.import_module(f"stripe.params{folder}._" + re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower())
    names = {"StripeContext": str, "Mapping": Mapping}  # imported by the SDK for type checkers only
    hints = get_type_hints(getattr(module, name), localns=names, include_extras=True)
    return {name: hint for name, hint in hints.items() if name not in RequestOptions.__annotations__}


def _typed_dict(given: Any, fields: dict[str, Any], path: str) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise StripeRefusal(f"Invalid object: {path}", param=path)
    for name in given:
        if name not in fields:
            full = _join(path, name)
            raise StripeRefusal(f"Received unknown parameter: {full}", code="parameter_unknown", param=full)
    for name, hint in fields.items():
        if name not in given and get_origin(hint) is not NotRequired:
            full = _join(path, name)
            raise StripeRefusal(f"Missing required param: {full}.", code="parameter_missing", param=full)
    return {name: _value(value, fields[name], _join(path, name)) for name, value in given.items()}


def _value(given: Any, hint: Any, path: str) -> Any:
    origin = get_origin(hint)
    if origin in (NotRequired, Required):
        return _value(given, get_args(hint)[0], path)
    if origin in (Union, types.UnionType):
        return _first_fitting(given, get_args(hint), path)
    if origin is Literal:
        if given not in get_args(hint):
            allowed = ", ".join(str(choice) for choice in get_args(hint))
            raise StripeRefusal(f"Invalid {path}: must be one of {allowed}", param=path)
        return given
    if is_typeddict(hint):
        return _typed_dict(given, get_type_hints(hint, include_extras=True), path)
    if origin is list:
        return _list(given, get_args(hint)[0], path)
    if origin is not None:  # Dict[str, str], or the SDK's own class of untyped objects
        return _metadata(given, path)
    return _scalar(given, hint, path)


def _first_fitting(given: Any, choices: tuple[Any, ...], path: str) -> Any:
    problem: StripeRefusal | None = None
    for choice in choices:
        try:
            return _value(given, choice, path)
        except StripeRefusal as refusal:
            problem = refusal
    assert problem is not None
    raise problem


def _list(given: Any, element: Any, path: str) -> list[Any]:
    if not isinstance(given, dict) or sorted(given) != sorted(str(index) for index in range(len(given))):
        raise StripeRefusal(f"Invalid array: {path}", param=path)
    return [_value(given[str(index)], element, f"{path}[{index}]") for index in range(len(given))]


def _metadata(given: Any, path: str) -> dict[str, str]:
    if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
        raise StripeRefusal(f"Invalid hash: {path}", param=path)
    if len(given) > MAX_METADATA_KEYS:
        raise StripeRefusal(f"{path} may have up to {MAX_METADATA_KEYS} keys", param=path)
    for key, value in given.items():
        if len(key) > MAX_METADATA_KEY or len(value) > MAX_METADATA_VALUE:
            raise StripeRefusal(f"{path}[{key}] is too long (key 40, value 500 characters)", param=f"{path}[{key}]")
    return given


def _scalar(given: Any, hint: Any, path: str) -> Any:
    if not isinstance(given, str):
        raise StripeRefusal(f"Invalid {path}: expected a value, not an object", param=path)
    if hint is bool:
        if given not in ("true", "false"):
            raise StripeRefusal(f"Invalid boolean: {given}", code="parameter_invalid_boolean", param=path)
        return given == "true"
    if hint is int:
        if not re.fullmatch(r"-?\d{1,18}", given):
            raise StripeRefusal(f"Invalid integer: {given}", code="parameter_invalid_integer", param=path)
        return int(given)
    if hint in (float, Decimal):
        try:
            return Decimal(given)
        except InvalidOperation:
            raise StripeRefusal(f"Invalid decimal: {given}", param=path) from None
    if given == "":
        message = f"You passed an empty string for '{path}'. {path} cannot be unset."
        raise StripeRefusal(message, code="parameter_invalid_empty", param=path)
    return given


def _paths(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        path = f"{prefix}{name}"
        objects = [element for element in (value if isinstance(value, list) else [value]) if isinstance(element, dict)]
        if objects and name not in ("metadata", "invoice_metadata"):
            for element in objects:
                yield from _paths(element, f"{path}.")
        else:
            yield path


def _join(path: str, name: str) -> str:
    return f"{path}[{name}]" if path else name
