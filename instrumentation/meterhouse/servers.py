"""uvicorn: it ends by the signal that it was sent, so what is registered with atexit never runs. Its usage is delivered
at the end of its own graceful shutdown instead, when no request is under way any more."""

import asyncio
from types import ModuleType
from typing import Any

from meterhouse import patches
from meterhouse.runtime import flush
from meterhouse.trouble import warn_once


def install(module: ModuleType) -> None:
    """Patch `uvicorn.server`."""
    patches.wrap(module, "Server.shutdown", _shutdown)


def remove(module: ModuleType) -> None:
    """Undo `install`."""
    patches.unwrap(module, "Server.shutdown")


async def _shutdown(wrapped: Any, _server: Any, args: Any, kwargs: Any) -> Any:
    result = await wrapped(*args, **kwargs)
    try:
        await asyncio.to_thread(flush)
    except Exception:  # noqa: BLE001 - the host's shutdown went well; what is left is in the journal
        warn_once("shutdown", "Meterhouse could not deliver its usage at the end of uvicorn.", with_trace=True)
    return result
