"""MCP tool calls: `ClientSession.call_tool` of mcp 1.x and 2.x, one `tool.calls` event each."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

from meterhouse import patches, tools


def install(module: ModuleType) -> None:
    """Patch the client session."""
    patches.wrap(module, "ClientSession.call_tool", _call_tool)


def remove(module: ModuleType) -> None:
    """Undo `install`."""
    patches.unwrap(module, "ClientSession.call_tool")


async def _call_tool(wrapped: Callable[..., Any], _session: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with tools.executing(args[0] if args else kwargs.get("name")) as execution:
        result = await wrapped(*args, **kwargs)
        if type(result).__name__ == "InputRequiredResult":
            execution.discard()  # the server wants to know more first: the call that brings it is the one that counts
        # 2.x says is_error, 1.x isError; a result of another kind (of an extension, a begun task) has none.
        elif getattr(result, "is_error" if hasattr(result, "is_error") else "isError", None):
            execution.failed()
    return result
