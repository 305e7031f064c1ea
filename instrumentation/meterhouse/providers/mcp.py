"""MCP tool calls: `ClientSession.call_tool` of mcp 1.x and 2.x, one `tool.calls` event each."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import wrapt

from meterhouse import tools


def install(module: ModuleType) -> None:
    """Patch the client session."""
    wrapt.wrap_function_wrapper(module, "ClientSession.call_tool", _call_tool)


def remove(module: ModuleType) -> None:
    """Undo `install`."""
    wrapped = module.ClientSession.call_tool
    module.ClientSession.call_tool = getattr(wrapped, "__wrapped__", wrapped)


async def _call_tool(wrapped: Callable[..., Any], _session: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with tools.executing(args[0] if args else kwargs.get("name")) as execution:
        result = await wrapped(*args, **kwargs)
        if type(result).__name__ == "InputRequiredResult":
            execution.discard()  # the server wants to know more first: the call that brings it is the one that counts
        # 2.x says is_error, 1.x isError; a result of another kind (of an extension, a begun task) has none.
        elif getattr(result, "is_error" if hasattr(result, "is_error") else "isError", None):
            execution.failed()
    return result
