"""What people are to be told about budgets and pauses."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from meterhouse_billing.budget_state import State
from meterhouse_billing.notices import Notice
from meterhouse_rating.periods import shown
from meterhouse_store.budgets import PREPAID, UNITS, Pause
from meterhouse_store.numbers import plain

THRESHOLD, CAP, OVER_CAP, PAUSED = "budget_threshold", "budget_cap", "over_cap", "paused"


def of_states(namespace: str, found: Sequence[State], now: datetime) -> Iterator[Notice]:
    """Of each budget the thresholds that are reached, its hard cap, and what is above it: one each in a period."""
    for state in found:
        if state.trouble:
            continue
        it, percent = state.budget, state.percent
        cause = it.name, state.period.start.isoformat()
        facts = facts_of(state)
        for threshold in it.thresholds:
            if percent >= threshold:
                subject = f"{it.customer_id} has used {threshold} % of its budget {it.name} ({amount_of(state)})"
                more = facts | {"threshold_percent": threshold}
                yield Notice(namespace, it.customer_id, THRESHOLD, (*cause, str(threshold)), subject[:256], more)
        if state.caps and percent >= 100:
            subject = f"{it.customer_id} is at its cap {it.name} ({amount_of(state)}): model calls are paused"
            yield Notice(namespace, it.customer_id, CAP, cause, subject[:256], facts)
        if state.caps and state.over > 0:
            billed = "is not billed, unless the cap is raised or acknowledged"
            if it.bill_over or it.measure == PREPAID:
                billed = "is billed"
            subject = f"{it.customer_id} has used more than its cap {it.name} ({amount_of(state)}): that {billed}"
            yield Notice(namespace, it.customer_id, OVER_CAP, cause, subject[:256], facts)


def of_pauses(namespace: str, found: Iterable[Pause], zones: Mapping[str, str]) -> Iterator[Notice]:
    """One for each time that somebody is paused; `zones`: the customers' time zones."""
    for it in found:
        who = f"{it.customer_id}, agent {it.agent_id}" if it.agent_id else it.customer_id
        zone = zones.get(it.customer_id, "UTC")
        facts = {"agent_id": it.agent_id, "reason": it.reason, "since": it.since.isoformat(), "why": it.why}
        facts |= {"time_zone": zone}
        cause = it.agent_id, it.reason, it.since.isoformat()
        subject = f"{who} is paused ({it.reason}): model calls stop"
        yield Notice(namespace, it.customer_id, PAUSED, cause, subject[:256], facts)


def facts_of(state: State) -> dict[str, Any]:
    """The budget as it stands, for templates and machines."""
    it = state.budget
    return {
        "budget": it.name,
        "measure": it.measure,
        "of": it.of,
        "agent_id": it.agent_id,
        "unit": it.of if it.measure == UNITS else state.currency,
        "limit": plain(state.limit),
        "used": plain(state.used),
        "over": plain(state.over),
        "hard": it.hard,
        "period_start": state.period.start.isoformat(),
        "period_end": state.period.end.isoformat(),
        "time_zone": state.time_zone,
    }


def amount_of(state: State) -> str:
    """`81.20 of 100 USD, 2026-11-01..2026-12-01`."""
    unit = state.budget.of if state.budget.measure == UNITS else state.currency
    what = "credits" if state.budget.measure == PREPAID else ""
    return (
        " ".join(f"{plain(state.used)} of {plain(state.limit)} {unit} {what}".split())
        + f", {shown(state.period, state.time_zone)}"
    )
