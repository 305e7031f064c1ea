"""When a contract that is cancelled really ends, and what would be lost if it ended then."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Engine

from meterhouse_rating.layout import money
from meterhouse_rating.periods import instant, month_of, next_month
from meterhouse_rating.settled import CLOSED, lines_of, standings
from meterhouse_rating.versions import Version, in_force, versions
from meterhouse_store import registry
from meterhouse_store.registry import RegistryError


def takes_effect(known: Sequence[Version], zone: str, at: datetime) -> datetime:
    """When a contract that begins at that moment, or ends, takes effect: then, or with the next month, by the price
    book of then.
    """
    version = in_force(known, month_of(at, zone))
    at_once = version is not None and version.book.plan_changes.at_once
    return at if at_once else next_month(at, zone)


def end_of(engine: Engine, namespace: str, customer_id: str, at: datetime) -> datetime:
    """The end of a contract that is cancelled for that moment, by the price book of then.

    Raises RegistryError where the customer is not registered, inside of what is closed, and where what was billed in
    advance for the time after it would stay with us, because no rating comes that could give it back.
    """
    customer = registry.customer(engine, namespace, customer_id)
    if customer is None:
        raise RegistryError(f"{customer_id} is not registered: `meterhouse customers list` shows who is")
    end = takes_effect(versions(engine, namespace), customer.time_zone, at)
    with engine.connect() as connection:
        closed = [it for it in standings(connection, namespace, customer_id) if it.state == CLOSED]
        lines = lines_of(connection, [it.rating_id for it in closed])
    through = max((it.period.end for it in closed), default=None)
    if through is not None and at < through:
        raise RegistryError(f"a period of {customer_id} up to {through.isoformat()} is closed: end it then or later")
    beyond: dict[str, int] = {}
    for line in lines:
        service = line["explanation"].get("service")
        if service is not None and instant(service.partition("..")[0]) >= end:
            beyond[line["currency"]] = beyond.get(line["currency"], 0) + line["amount_minor"]
    kept = [f"{money(amount, currency)} {currency}" for currency, amount in beyond.items() if amount > 0]
    if kept:
        raise RegistryError(
            f"{', '.join(kept)} of fees was billed in advance for the time from {end.isoformat()} on, and no later "
            "rating would give it back: end it at a later moment, or give it back by hand first "
            "(`meterhouse ledger adjust`)"
        )
    return end
