"""What a panel and an alert are, and the pieces that the queries of several dashboards have in common."""

from dataclasses import dataclass, field
from typing import Final

OF: Final = "namespace = ${namespace:singlequote}"
CUSTOMER: Final = "$__conditionalAll(customer_id IN (${customer:singlequote}), $customer)"
BILLED: Final = "$__conditionalAll(billed_customer_id IN (${customer:singlequote}), $customer)"
AGENT: Final = "$__conditionalAll(agent_name IN (${agent:singlequote}), $agent)"
MODEL: Final = "$__conditionalAll(model IN (${model:singlequote}), $model)"
USED: Final = f"{OF}\n  AND {BILLED}\n  AND {AGENT}\n  AND {MODEL}\n  AND $__timeFilter(event_time)"

# Sums of days and hours where the range is long, single events where it is short: both come to the same for whole days.
LONG: Final = "dateDiff('hour', $__fromTime, $__toTime) >= 72"
DAYS: Final = (
    f"{OF}\n    AND {BILLED}\n    AND {AGENT}\n    AND {MODEL}\n"
    f"    AND day >= toDate($__fromTime) AND day <= toDate($__toTime) AND {LONG}"
)
# What is counted by the hour: that in which a range begins is in it, or a quarter of an hour would have none.
HOURS: Final = "hour >= toStartOfHour($__fromTime) AND hour <= $__toTime"
WHOLE_DAYS: Final = "Ranges of three days and more are shown in whole days (UTC)."
EVENTS_OF: Final = (
    "/d/meterhouse-usage?var-namespace=${namespace}&var-customer=${__value.raw}&from=${__from}&to=${__to}"
)


@dataclass(frozen=True)
class Panel:
    """`kind`: stat, timeseries or table; `size` in columns (of 24) and rows; `links`: column -> address.

    `units`: columns of a table whose unit is another than the panel's.
    """

    title: str
    description: str
    kind: str
    sql: str
    unit: str = "short"
    size: tuple[int, int] = (12, 8)
    links: dict[str, str] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Alert:
    """It fires where the query's number is above `above` for `minutes`."""

    uid: str
    title: str
    summary: str
    sql: str
    above: float
    minutes: int
    severity: str
