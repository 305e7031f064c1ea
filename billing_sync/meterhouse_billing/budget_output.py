"""How budgets are shown: to people as a table, to machines as JSON."""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meterhouse_billing.budget_round import Round
    from meterhouse_billing.budget_state import State


def as_json(done: "Round") -> dict[str, Any]:
    """A round, for machines; quantities are text."""
    from meterhouse_billing.budget_notices import facts_of
    from meterhouse_store.numbers import plain

    found = [
        {
            "customer_id": it.budget.customer_id,
            **facts_of(it),
            "reserved": plain(done.reserved(it)),
            "left": plain(max(Decimal(0), it.left - done.reserved(it))),
            "state": word(done, it),
            "trouble": it.trouble or None,
            "not_known_ahead": it.loose,
        }
        for it in done.states
    ]
    return {"budgets": found, "pauses": [vars(one) for one in done.pauses]}


def print_round(done: "Round", zones: Mapping[str, str]) -> None:
    """A round, as a table with what has to be said beside it; `zones`: the customers' time zones."""
    from meterhouse_rating.layout import number, table
    from meterhouse_rating.periods import local, shown

    rows: list[tuple[str, ...]] = [
        ("customer", "budget", "period", "used", "held", "limit", "unit", "", "state"),
    ]
    for it in done.states:
        reserved, budget = done.reserved(it), it.budget
        amounts = [number(amount) for amount in (_shown(it, it.used), _shown(it, reserved), it.limit)]
        unit = it.currency or budget.of
        rows.append(
            (
                budget.customer_id,
                budget.name,
                shown(it.period, it.time_zone),
                *amounts,
                unit,
                f"{it.percent:.0f} %",
                word(done, it),
            )
        )
    print(table(rows, right=(3, 4, 5, 7)) if done.states else "No budgets: `meterhouse budgets set CUSTOMER ...`.")
    for one in done.pauses:
        who = f"{one.customer_id}, agent {one.agent_id}" if one.agent_id else one.customer_id
        print(f"{who} is paused since {local(one.since, zones.get(one.customer_id, 'UTC'))}: "
              f"{one.reason} ({one.why}, by {one.who})")  # fmt: skip
    for it in done.states:
        if it.trouble:
            print(f"! {it.budget.customer_id}, {it.budget.name}: {it.trouble}")
        for how in dict.fromkeys(it.loose.values()) if it.caps else ():
            meters = ", ".join(meter for meter, other in it.loose.items() if other == how)
            print(
                f"! {it.budget.customer_id}, {it.budget.name}: what one more unit of {meters} costs is not known "
                f"before it is used. Agents are granted it at {how}, and may pass the cap by what it costs more. "
                "To hold it, add a budget of units (--units N --of METER)"
            )


def print_changes(found: list[dict[str, Any]], time_zone: str) -> None:
    """The changes of budgets, oldest first, on the clocks of the customer's time zone."""
    from meterhouse_rating.layout import table
    from meterhouse_rating.periods import local

    if found:
        names = ("budget", "change", "limit", "who", "why")
        print("\nChanges")
        rows = [
            (local(datetime.fromisoformat(it["recorded_at"]), time_zone), *(it[name] or "" for name in names))
            for it in found
        ]
        print(table([("at", *names), *rows], right=(3,)))


def word(done: "Round", it: "State") -> str:
    """How a budget is, in a word or two."""
    if it.trouble:
        return "unknown"
    if not it.budget.hard:
        return "over" if it.over else "soft"
    if not it.caps:
        return "acknowledged"
    if it.left <= 0:
        return "paused"
    return "held by agents" if it.left <= done.reserved(it) else "open"


def _shown(it: "State", amount: Decimal) -> Decimal:
    """Money to a ten-thousandth, for people; JSON has all of it."""
    return amount if not it.currency else amount.quantize(Decimal("0.0001"))


def summary(done: "Round") -> str:
    """A round in one line."""
    stopped = sum(word(done, it) == "paused" for it in done.states)
    return f"{len(done.states)} budgets, {stopped} at their caps, {len(done.pauses)} pauses, {done.notices} new notices"
