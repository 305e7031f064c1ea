"""Tools that Anthropic's SDK runs itself (`beta.messages.tool_runner`): one `tool.calls` event per execution."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

from meterhouse import patches, tools

_PATCHED = ("BetaFunctionTool", "BetaAsyncFunctionTool")


def install(module: ModuleType) -> None:
    """Patch `call` of the function tools; the SDK's built-in tools are known by the results handed back."""
    for kind, wrapper in zip(_PATCHED, (_call, _call_async), strict=True):
        patches.wrap(module, f"{kind}.call", wrapper)


def remove(module: ModuleType) -> None:
    """Undo `install`."""
    for kind in _PATCHED:
        patches.unwrap(module, f"{kind}.call")


def _call(wrapped: Callable[..., Any], tool: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with tools.executing(tool.name):
        return wrapped(*args, **kwargs)


async def _call_async(wrapped: Callable[..., Any], tool: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with tools.executing(tool.name):
        return await wrapped(*args, **kwargs)
