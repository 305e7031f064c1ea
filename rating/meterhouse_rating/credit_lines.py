"""Credits on a rating: what a pack grants, what a top-up buys, the line that credits pay; as explanations tell it.

Grants that a rating makes stand in the explanation of their line. From there they are known while the rating is open,
and put into SQL when it is closed.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from meterhouse_rating.credits import BOUGHT, PROMOTIONAL, Grant, Use
from meterhouse_rating.ids import digest
from meterhouse_rating.money import show
from meterhouse_store.currencies import MINOR_DIGITS
from meterhouse_store.numbers import D


def pack_grants(
    identity: Sequence[str],
    price_minor: int,
    credits_minor: int,
    granted_at: datetime,
    *,
    expires_days: int | None = None,
    priority: int = 0,
) -> list[Grant]:
    """What was paid for is bought; what a pack is worth beyond its price is promotional."""
    expires = None if expires_days is None else granted_at + timedelta(days=expires_days)
    bought = min(price_minor, credits_minor)
    parts = ((BOUGHT, bought), (PROMOTIONAL, credits_minor - bought))
    return [
        Grant(digest(["grant", *identity, kind]), kind, amount, granted_at, expires, priority)
        for kind, amount in parts
        if amount > 0
    ]


def grants_told(grants: Iterable[Grant], currency: str) -> list[dict[str, Any]]:
    """The grants, for an explanation."""
    return [
        {
            "grant": it.grant_id,
            "kind": it.kind,
            "amount": show(it.left_minor, currency),
            "granted_at": it.granted_at.isoformat(),
            "expires_at": None if it.expires_at is None else it.expires_at.isoformat(),
            "priority": it.priority,
        }
        for it in grants
    ]


def grants_of(explanation: Mapping[str, Any], currency: str) -> list[Grant]:
    """The grants that a line made, as `grants_told` told them."""
    return [
        Grant(
            it["grant"],
            it["kind"],
            minor(it["amount"], currency),
            datetime.fromisoformat(it["granted_at"]),
            None if it["expires_at"] is None else datetime.fromisoformat(it["expires_at"]),
            it["priority"],
        )
        for it in explanation.get("grants", ())
    ]


def used_told(uses: Iterable[Use], descriptions: Sequence[str], currency: str) -> dict[str, Any]:
    """What paid which line, and how much of each grant was used, for an explanation."""
    steps: list[dict[str, str]] = []
    used: dict[str, int] = {}
    for it in uses:
        steps.append({"pays": descriptions[it.line], "amount": show(it.amount_minor, currency), "grant": it.grant_id})
        used[it.grant_id] = used.get(it.grant_id, 0) + it.amount_minor
    return {"steps": steps, "used": {name: show(amount, currency) for name, amount in used.items()}}


def used_by(explanation: Mapping[str, Any], currency: str) -> dict[str, int]:
    """How much of each grant a line used, in minor units, as `used_told` told it."""
    return {name: minor(amount, currency) for name, amount in explanation.get("used", {}).items()}


def paid_by(explanation: Mapping[str, Any], currency: str) -> list[tuple[str, str, int]]:
    """The lines that a line of credits paid, by which grant, and how much in minor units, as `used_told` told it."""
    steps = [step for step in explanation["steps"] if "grant" in step]
    return [(step["pays"], step["grant"], minor(step["amount"], currency)) for step in steps]


def minor(amount: str, currency: str) -> int:
    """An amount as `show` writes it, in minor units."""
    return int(D(amount).scaleb(MINOR_DIGITS[currency]))
