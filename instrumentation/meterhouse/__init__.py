"""Meterhouse in an agent: say who the work is for, and count what no SDK reports.

    with meterhouse.customer("acme"), meterhouse.task():
        meterhouse.meter("pages").add(3)

Provider calls and MCP tools are metered by auto-instrumentation (`meterhouse run -- python agent.py`).
"""

from meterhouse.api import (
    Meter,
    Task,
    UsageLimitExceeded,
    agent,
    conversation,
    customer,
    meter,
    step,
    task,
)
from meterhouse.attribution import Scope

__all__ = [
    "Meter",
    "Scope",
    "Task",
    "UsageLimitExceeded",
    "agent",
    "conversation",
    "customer",
    "meter",
    "step",
    "task",
]
