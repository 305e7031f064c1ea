"""Python functions that google-genai runs itself (automatic function calling): one `tool.calls` event per execution."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

from meterhouse import patches, tools

_PATCHED = ("invoke_function_from_dict_args", "invoke_function_from_dict_args_async")


def install(module: ModuleType) -> None:
    """Patch the two functions through which the SDK calls a host's; MCP tools are counted by their session."""
    for function, wrapper in zip(_PATCHED, (_invoke, _invoke_async), strict=True):
        if hasattr(module, function):  # the oldest versions run functions in one way only
            patches.wrap(module, function, wrapper)


def remove(module: ModuleType) -> None:
    """Undo `install`."""
    for function in _PATCHED:
        patches.unwrap(module, function)


def _invoke(wrapped: Callable[..., Any], _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with tools.executing(_name(args, kwargs)):
        return wrapped(*args, **kwargs)


async def _invoke_async(
    wrapped: Callable[..., Any], _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    with tools.executing(_name(args, kwargs)):
        return await wrapped(*args, **kwargs)


def _name(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    function = args[1] if len(args) > 1 else kwargs.get("function_to_invoke")
    return str(getattr(function, "__name__", ""))
