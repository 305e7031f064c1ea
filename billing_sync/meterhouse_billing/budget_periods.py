"""The periods of budgets: days, weeks (from Monday) and months of the customer's time zone, half-open, in UTC."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from meterhouse_rating.periods import Period, month_of


def period_of(moment: datetime, per: str, time_zone: str) -> Period:
    """The day, week or month of the time zone that the moment falls in."""
    if per == "month":
        return month_of(moment, time_zone)
    zone = ZoneInfo(time_zone)
    local = moment.astimezone(zone)
    midnight = local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    first = midnight if per == "day" else midnight - timedelta(days=local.weekday())
    # Days are counted on the wall clock: one of them has 23 hours, another 25.
    following = (first.replace(tzinfo=None) + timedelta(days=1 if per == "day" else 7)).replace(tzinfo=zone)
    return Period(first.astimezone(UTC), following.astimezone(UTC))
