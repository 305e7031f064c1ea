"""Meterhouse in an agent: say who the work is for, and count what no SDK reports.

    with meterhouse.customer("acme"), meterhouse.task():
        meterhouse.meter("pages").add(3)

Provider calls and tools are metered by auto-instrumentation (`meterhouse run -- python agent.py`).
"""

from typing import TYPE_CHECKING, Any

from meterhouse.api import (
    Meter,
    Task,
    Timed,
    agent,
    conversation,
    customer,
    grant,
    meter,
    step,
    task,
)
from meterhouse.attribution import Scope
from meterhouse.carrying import carried, carrier, carry
from meterhouse.pauses import UsageLimitExceeded, waiting

if TYPE_CHECKING:
    from meterhouse import grants, middleware

__all__ = [
    "Meter",
    "Scope",
    "Task",
    "Timed",
    "UsageLimitExceeded",
    "agent",
    "carried",
    "carrier",
    "carry",
    "conversation",
    "customer",
    "grant",
    "grants",
    "meter",
    "middleware",
    "step",
    "task",
    "waiting",
]


def __getattr__(name: str) -> Any:
    if name in ("grants", "middleware"):  # imported when they are used: not every agent has a front end, or is one
        from importlib import import_module

        from meterhouse import forks

        with forks.lock:
            return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
