"""What usage cost in a span of time, and of which usage that is not known: for people and machines."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from meterhouse_rating import periods
from meterhouse_rating.layout import counted, number, table
from meterhouse_rating.periods import Period
from meterhouse_rating.queries import nanoseconds
from meterhouse_rating.world import World
from meterhouse_store.numbers import plain

_GROUP: Final = ("cost_reason", "meter", "provider", "model", "modality", "cache_ttl", "service_tier", "tool")
_IN: Final = (
    "namespace = {namespace:String} AND event_time >= fromUnixTimestamp64Nano({start_ns:Int64}, 'UTC') "
    "AND event_time < fromUnixTimestamp64Nano({end_ns:Int64}, 'UTC')"
)
_NAMES: Final = ", ".join(_GROUP)
_STATUS: Final = (
    f"SELECT cost_status, currency, {_NAMES}, count(), sum(quantity), sum(ifNull(cost, 0)) FROM costs "  # noqa: S608
    f"WHERE {_IN} GROUP BY cost_status, currency, {_NAMES} ORDER BY cost_status, currency, {_NAMES}"
)
_SHOWN: Final = 50
_HINTS: Final[Mapping[str, str]] = {
    "no_catalogue": "`meterhouse costs import` pins a price list of providers",
    "no_entry": "`meterhouse costs set METER PRICE --why ...`; 0 where it costs nothing",
    "provider_unknown": "the price list has no such provider: `meterhouse costs set ... --provider P`",
    "model_unknown": "the price list has no such model: `meterhouse costs set ... --provider P --model M`",
    "model_missing": "the agent did not say which model: `meterhouse costs set ... --provider P`",
    "no_price": "the price list has the model and no price for this: `meterhouse costs set ... --model M`",
    "service_tier_unpriced": "the price list has no price for this tier: `meterhouse costs set ... --service-tier T`",
    "ambiguous_price": "several prices of the list apply: `meterhouse costs set ... --model M`",
    "context_unknown": "the price depends on the size of each request, which is not known of these",
    "usage_unknown": "nobody reported what was used (a call that broke off): the provider may have charged for it",
    "not_resolved": "it came after the rates were resolved: again in a moment",
}


@dataclass(frozen=True)
class Unknown:
    """Usage of unknown cost: what it is, why, how many events, how much."""

    what: Mapping[str, str]
    reason: str
    events: int
    quantity: Decimal


@dataclass(frozen=True)
class Status:
    """Per currency what usage of a span cost, how many events that are, how many cost nothing, and what is unknown."""

    period: Period
    costs: Mapping[str, Decimal]
    known: int
    free: int
    unknown: tuple[Unknown, ...]


def span(text: str | None, now: datetime) -> Period:
    """The period as written; without one this month and the last, UTC. Raises PeriodError."""
    if text is not None:
        return periods.parse(text, "UTC")
    month = periods.month_of(now, "UTC")
    return Period(periods.month_of(month.start - timedelta(days=1), "UTC").start, month.end)


def status(world: World, period: Period) -> Status:
    """Ask the warehouse; the rates are those that were resolved last."""
    parameters = {
        "namespace": world.namespace,
        "start_ns": nanoseconds(period.start),
        "end_ns": nanoseconds(period.end),
    }
    costs: dict[str, Decimal] = {}
    events = {"known": 0, "free": 0}
    unknown = []
    for found, currency, *group, count, quantity, cost in world.client.query(
        _STATUS, parameters=parameters
    ).result_rows:
        if found == "unknown":
            what = {name: value for name, value in zip(_GROUP[1:], group[1:], strict=True) if value}
            unknown.append(Unknown(what, group[0], count, quantity))
            continue
        events[found] += count
        costs[currency] = costs.get(currency, Decimal(0)) + cost
    return Status(period, dict(sorted(costs.items())), events["known"], events["free"], tuple(unknown))


def as_json(found: Status) -> dict[str, Any]:
    """One document; money and quantities are text."""
    return {
        "period_start": found.period.start,
        "period_end": found.period.end,
        "costs": {currency: plain(cost) for currency, cost in found.costs.items()},
        "events": {
            "known": found.known,
            "free": found.free,
            "unknown": sum(it.events for it in found.unknown),
        },
        "unknown": [
            {"reason": it.reason, **it.what, "events": it.events, "quantity": plain(it.quantity)}
            for it in found.unknown
        ],
    }


def as_text(found: Status) -> str:
    """For people: the sums, then what is unknown with what to do."""
    sums = ", ".join(f"{number(cost)} {currency}" for currency, cost in found.costs.items()) or "nothing"
    lines = [
        f"{found.period}: usage cost {sums} ({counted(found.known, 'event')}; "
        f"{counted(found.free, 'event')} of what is declared or listed to cost nothing)."
    ]
    if not found.unknown:
        return f"{lines[0]} Of no event the cost is unknown."
    lines.append(f"Of {counted(sum(it.events for it in found.unknown), 'event')} the cost is unknown:")
    rows = [("meter", "of", "events", "quantity", "why")]
    rows += [
        (
            it.what.get("meter", ""),
            ", ".join(value for name, value in it.what.items() if name != "meter"),
            f"{it.events:,}",
            number(it.quantity),
            it.reason,
        )
        for it in sorted(found.unknown, key=lambda it: -it.events)[:_SHOWN]
    ]
    lines.append(table(rows, right={2, 3}))
    if len(found.unknown) > _SHOWN:
        lines.append(f"  and {len(found.unknown) - _SHOWN:,} more kinds (--json has all)")
    lines += [f"{reason}: {_HINTS.get(reason, '')}" for reason in sorted({it.reason for it in found.unknown})]
    return "\n".join(lines)
