"""MCP tool calls: `ClientSession.call_tool` of mcp 1.x and 2.x, one `tool.calls` event each."""

import asyncio
from collections.abc import Callable
from types import ModuleType
from typing import Any

import wrapt

from meterhouse.call import Call, new_call_id
from meterhouse.events import Row, cut
from meterhouse.runtime import warn_once
from meterhouse.vocabulary import ABORTED, FAILED, OK, OPERATION, TOOL_CALLS, TOOL_NAME


def install(module: ModuleType) -> None:
    """Patch the client session."""
    wrapt.wrap_function_wrapper(module, "ClientSession.call_tool", _call_tool)


def remove(module: ModuleType) -> None:
    """Undo `install`."""
    wrapped = module.ClientSession.call_tool
    module.ClientSession.call_tool = getattr(wrapped, "__wrapped__", wrapped)


async def _call_tool(wrapped: Callable[..., Any], _session: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    finish = _begin(args[0] if args else kwargs.get("name"))
    try:
        result = await wrapped(*args, **kwargs)
    except (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt):
        finish(ABORTED)
        raise
    except BaseException:
        finish(FAILED)
        raise
    if type(result).__name__ == "InputRequiredResult":
        return result  # the server wants to know more first: the call that brings it is the one that counts
    # 2.x says is_error, 1.x isError; a result of another kind (the server asks for input) has neither.
    failed = getattr(result, "is_error", None) or getattr(result, "isError", None)
    finish(FAILED if failed else OK)
    return result


def _begin(tool: object) -> Callable[[str], None]:
    try:
        call = Call(new_call_id(), {OPERATION: "execute_tool", TOOL_NAME: cut(str(tool))}, intent=False)
    except Exception:  # noqa: BLE001 - the tool must run whatever becomes of its metering
        warn_once("tool", "Meterhouse could not meter a tool call.", with_trace=True)
        return lambda _status: None
    return lambda status: call.finish(status, [Row(TOOL_CALLS, 1)], {})
