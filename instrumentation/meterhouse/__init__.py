"""Meterhouse in an agent: say who the work is for, and count what no SDK reports.

    with meterhouse.customer("acme"), meterhouse.task():
        meterhouse.meter("pages").add(3)

Provider calls and tools are metered by auto-instrumentation (`meterhouse run -- python agent.py`).
"""

from meterhouse import grants, middleware
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
from meterhouse.limits import UsageLimitExceeded, waiting

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
