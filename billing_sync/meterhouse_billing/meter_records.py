"""The meter driver's rows in SQL: subscriptions, meter events with what became of them, months that were compared.

A meter event holds the whole total of its hour, so of an hour the event with the highest version counts, here as in
Stripe. An event is a row before it is sent. One that was never tried is replaced when its total changes; one that was
tried stands, and a new version follows it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Engine, bindparam, delete, func, insert, select, update

from meterhouse_rating.ids import digest
from meterhouse_rating.periods import Period
from meterhouse_store import audit, roles
from meterhouse_store.audit_rules import METER_DIFFERENCE
from meterhouse_store.sql import begin_write
from meterhouse_store.tables import meter_batches, meter_events, meter_periods, meter_subscriptions

PENDING: Final = "pending"
DELIVERED: Final = "delivered"
REJECTED: Final = "rejected"
SUPERSEDED: Final = "superseded"
CHUNK: Final = 1000
REPORTED_WITHIN: Final = timedelta(days=7)

Lane = tuple[str, str]
"""Customer and event name: Stripe takes one call at a time for each."""


@dataclass(frozen=True)
class Metered:
    """What of a customer's usage one Stripe meter gets."""

    event_name: str
    metric: str
    aggregate: str
    meters: tuple[str, ...]
    free_statuses: tuple[str, ...]
    stripe_meter_id: str


@dataclass(frozen=True)
class Subscription:
    """A customer's subscription from a month on; `metered` in the order of the plan."""

    customer_id: str
    valid_from: datetime
    stripe_customer_id: str
    stripe_subscription_id: str
    plan: str
    book_version: int
    metered: tuple[Metered, ...]
    price_ids: tuple[str, ...]


@dataclass(frozen=True)
class Event:
    """A meter event: the total of the hour from `hour` on. `attempts`: runs that tried to send it."""

    identifier: str
    customer_id: str
    event_name: str
    stripe_customer_id: str
    hour: datetime
    version: int
    total: int
    state: str
    attempts: int
    sent_at: datetime | None
    last_error: str | None = None

    @property
    def lane(self) -> Lane:
        return self.customer_id, self.event_name


@dataclass(frozen=True)
class Bucket:
    """What an hour comes to now."""

    customer_id: str
    event_name: str
    stripe_customer_id: str
    hour: datetime
    total: int


@dataclass(frozen=True)
class Frozen:
    """A month as it was compared; `later` is our usage of it as it is known since."""

    customer_id: str
    event_name: str
    period: Period
    ours: Decimal
    stripes: Decimal
    later: Decimal
    frozen_at: datetime
    handled_at: datetime | None = None
    """When somebody said that what differs is seen to; None once it changes."""

    @property
    def differs(self) -> bool:
        """Stripe's total is not our usage, or that came to be another since."""
        return not self.ours == self.stripes == self.later


_COLUMNS: Final = [meter_events.c[name] for name in Event.__dataclass_fields__]


# ---- subscriptions


def subscriptions(engine: Engine, namespace: str) -> list[Subscription]:
    """All subscriptions, by customer and time."""
    table = meter_subscriptions
    query = select(table).where(table.c.namespace == namespace).order_by(table.c.customer_id, table.c.valid_from)
    with engine.connect() as connection:
        return [_subscription(row) for row in connection.execute(query).mappings()]


def keep_subscription(
    engine: Engine, namespace: str, made: Subscription, items: Sequence[Mapping[str, Any]], now: datetime
) -> None:
    """Remember a subscription; repeatable."""
    table = meter_subscriptions
    with begin_write(engine) as connection:
        is_it = (
            (table.c.namespace == namespace)
            & (table.c.customer_id == made.customer_id)
            & (table.c.valid_from == made.valid_from)
        )
        connection.execute(delete(table).where(is_it))
        connection.execute(
            insert(table).values(
                namespace=namespace,
                customer_id=made.customer_id,
                valid_from=made.valid_from,
                stripe_customer_id=made.stripe_customer_id,
                stripe_subscription_id=made.stripe_subscription_id,
                plan=made.plan,
                book_version=made.book_version,
                items=[dict(item) for item in items],
                recorded_at=now,
            )
        )


def _subscription(row: Any) -> Subscription:
    metered = tuple(
        Metered(
            item["event_name"],
            item["metric"],
            item["aggregate"],
            tuple(item["meters"]),
            tuple(item["free_statuses"]),
            item["stripe_meter_id"],
        )
        for item in row["items"]
        if item["event_name"] is not None
    )
    return Subscription(
        row["customer_id"],
        row["valid_from"],
        row["stripe_customer_id"],
        row["stripe_subscription_id"],
        row["plan"],
        row["book_version"],
        metered,
        tuple(item["stripe_price_id"] for item in row["items"]),
    )


# ---- meter events


def record(
    engine: Engine,
    namespace: str,
    period: Period,
    buckets: Iterable[Bucket],
    *,
    of: Mapping[Lane, str],
    since: datetime,
    until: datetime,
    now: datetime,
    force: Set[tuple[str, str, datetime]] = frozenset(),
) -> int:
    """Write an event for each hour in [since, until) whose total is another one than its newest event says.

    `buckets` are all hours with usage of the lanes in `of` (-> Stripe customer); an hour that was told of before and
    is not among them is 0 now. A total that was rejected is written again only for the hours in `force`. Returns how
    many were written.
    """
    wanted = {(it.customer_id, it.event_name, it.hour): it for it in buckets if since <= it.hour < until}
    with begin_write(engine) as connection:
        known = _latest(connection, namespace, period, {customer_id for customer_id, _ in of})
        for key in [*known, *force]:
            customer_id, event_name, hour = key
            if key not in wanted and (customer_id, event_name) in of and since <= hour < until:
                wanted[key] = Bucket(customer_id, event_name, of[customer_id, event_name], hour, 0)
        new, replaced = [], []
        for key, bucket in sorted(wanted.items()):
            before = known.get(key)
            if key not in force and (0 if before is None else before.total) == bucket.total:
                continue
            version = 1 if before is None else before.version + 1
            if before is not None and before.state == PENDING and not before.attempts:
                version = before.version
                replaced.append(before.identifier)
            new.append(_row(namespace, bucket, version, now))
        for some in _chunks(replaced):
            connection.execute(delete(meter_events).where(meter_events.c.identifier.in_(some)))
        for start in range(0, len(new), CHUNK):
            connection.execute(insert(meter_events), new[start : start + CHUNK])
    return len(new)


def supersede(engine: Engine, namespace: str, now: datetime) -> None:
    """Settle what waits although a newer total of its hour is there: it must never be sent again.

    Stripe may have the newer one already, without our knowing. It would count an older one that came after it, and then
    refuse the newer one by its name.
    """
    change = (
        update(meter_events)
        .where(meter_events.c.namespace == namespace, meter_events.c.state == PENDING, _newer())
        .values(state=SUPERSEDED, settled_at=now)
    )
    with begin_write(engine) as connection:
        connection.execute(change)


def pending(engine: Engine, namespace: str) -> dict[Lane, list[Event]]:
    """What is to be sent, by customer and event name, hour by hour."""
    where = (meter_events.c.namespace == namespace) & (meter_events.c.state == PENDING)
    query = select(*_COLUMNS).where(where).order_by(meter_events.c.hour, meter_events.c.version)
    lanes: dict[Lane, list[Event]] = {}
    with engine.connect() as connection:
        for row in connection.execute(query).mappings():
            event = Event(**row)
            lanes.setdefault(event.lane, []).append(event)
    return lanes


def trying(engine: Engine, events: Sequence[Event], now: datetime) -> None:
    """Note that events are about to be sent: from here on their outcome may be unknown."""
    change = (
        update(meter_events)
        .where(meter_events.c.identifier == bindparam("it"))
        .values(attempts=meter_events.c.attempts + 1, sent_at=func.coalesce(meter_events.c.sent_at, bindparam("at")))
    )
    _each(engine, change, [{"it": event.identifier, "at": now} for event in events])


def delivered(engine: Engine, identifiers: Sequence[str], now: datetime) -> None:
    """Note that Stripe has the events."""
    change = (
        update(meter_events)
        .where(meter_events.c.identifier == bindparam("it"), meter_events.c.state == PENDING)
        .values(state=DELIVERED, settled_at=bindparam("at"), last_error=None)
    )
    _each(engine, change, [{"it": identifier, "at": now} for identifier in identifiers])


def failed(engine: Engine, problems: Mapping[str, str]) -> None:
    """Keep what the last attempt came to; the events stay to be sent."""
    change = (
        update(meter_events).where(meter_events.c.identifier == bindparam("it")).values(last_error=bindparam("why"))
    )
    _each(engine, change, [{"it": identifier, "why": why} for identifier, why in problems.items()])


def reject(engine: Engine, namespace: str, identifier: str, why: str, now: datetime) -> Event | None:
    """Note that Stripe does not count an event; None where it is none of ours."""
    is_it = (meter_events.c.namespace == namespace) & (meter_events.c.identifier == identifier)
    with begin_write(engine) as connection:
        row = connection.execute(select(*_COLUMNS).where(is_it)).mappings().one_or_none()
        if row is None:
            return None
        values = {"state": REJECTED, "settled_at": now, "last_error": why[:2000]}
        connection.execute(update(meter_events).where(is_it).values(**values))
    return Event(**row)


def batch(engine: Engine, namespace: str, batch_id: str, events: Sequence[Event], now: datetime) -> None:
    """Note which events go out together, before they do; forget batches of which Stripe tells nothing any more."""
    table = meter_batches
    with begin_write(engine) as connection:
        connection.execute(delete(table).where(table.c.namespace == namespace, table.c.sent_at < now - REPORTED_WITHIN))
        if connection.execute(select(table.c.batch_id).where(table.c.batch_id == batch_id)).first() is None:
            identifiers = [event.identifier for event in events]
            row = {"batch_id": batch_id, "namespace": namespace, "identifiers": identifiers, "sent_at": now}
            connection.execute(insert(table).values(**row))


def of_batch(engine: Engine, namespace: str, batch_id: str) -> list[Event]:
    """The events that went out together; none for a batch that is none of ours."""
    table = meter_batches
    query = select(table.c.identifiers).where(table.c.namespace == namespace, table.c.batch_id == batch_id)
    with engine.connect() as connection:
        names = connection.execute(query).scalar_one_or_none() or []
        found = select(*_COLUMNS).where(meter_events.c.identifier.in_(names))
        return [Event(**row) for row in connection.execute(found).mappings()]


def rejected(engine: Engine, namespace: str) -> list[Event]:
    """The rejected events that nothing newer stands for."""
    where = (meter_events.c.namespace == namespace) & (meter_events.c.state == REJECTED) & ~_newer()
    order = (meter_events.c.customer_id, meter_events.c.event_name, meter_events.c.hour)
    with engine.connect() as connection:
        return [Event(**row) for row in connection.execute(select(*_COLUMNS).where(where).order_by(*order)).mappings()]


def counts(engine: Engine, namespace: str) -> dict[Lane, dict[str, int]]:
    """How many events of a customer and event name are in each state."""
    keys = (meter_events.c.customer_id, meter_events.c.event_name, meter_events.c.state)
    query = select(*keys, func.count()).where(meter_events.c.namespace == namespace).group_by(*keys)
    found: dict[Lane, dict[str, int]] = {}
    with engine.connect() as connection:
        for customer_id, event_name, state, number in connection.execute(query):
            found.setdefault((customer_id, event_name), {})[state] = number
    return found


def _newer() -> ColumnElement[bool]:
    """Whether there is a newer event of the hour."""
    newer = meter_events.alias()
    same = [newer.c[name] == meter_events.c[name] for name in ("namespace", "customer_id", "event_name", "hour")]
    return select(newer.c.identifier).where(*same, newer.c.version > meter_events.c.version).exists()


def _latest(
    connection: Connection, namespace: str, period: Period, customers: set[str]
) -> dict[tuple[str, str, datetime], Event]:
    found: dict[tuple[str, str, datetime], Event] = {}
    for some in _chunks(sorted(customers)):
        query = select(*_COLUMNS).where(
            meter_events.c.namespace == namespace,
            meter_events.c.customer_id.in_(some),
            meter_events.c.hour >= period.start,
            meter_events.c.hour < period.end,
        )
        for row in connection.execute(query.order_by(meter_events.c.version)).mappings():
            event = Event(**row)
            found[event.customer_id, event.event_name, event.hour] = event
    return found


def _row(namespace: str, bucket: Bucket, version: int, now: datetime) -> dict[str, Any]:
    said = [namespace, *vars(bucket).values(), version]
    return {
        "identifier": digest([it.isoformat() if isinstance(it, datetime) else it for it in said]),
        "namespace": namespace,
        **vars(bucket),
        "version": version,
        "state": PENDING,
        "attempts": 0,
        "created_at": now,
    }


# ---- months that were compared


def frozen(engine: Engine, namespace: str) -> list[Frozen]:
    """All months that were compared, by customer and time."""
    with engine.connect() as connection:
        return _frozen(connection, namespace)


def _frozen(connection: Connection, namespace: str) -> list[Frozen]:
    table = meter_periods
    order = (table.c.customer_id, table.c.period_start, table.c.event_name)
    rows = connection.execute(select(table).where(table.c.namespace == namespace).order_by(*order)).mappings()
    return [
        Frozen(
            row["customer_id"],
            row["event_name"],
            Period(row["period_start"], row["period_end"]),
            row["ours"],
            row["stripes"],
            row["later"],
            row["frozen_at"],
            row["handled_at"],
        )
        for row in rows
    ]


def _is(namespace: str, it: Frozen) -> ColumnElement[bool]:
    table = meter_periods
    return (
        (table.c.namespace == namespace)
        & (table.c.customer_id == it.customer_id)
        & (table.c.period_start == it.period.start)
        & (table.c.event_name == it.event_name)
    )


def handle(
    engine: Engine, namespace: str, customer_id: str, start: datetime, *, who: str, why: str, now: datetime
) -> list[Frozen]:
    """Keep, in the audit log as well, that what differs in a customer's month is seen to; what that is.

    Raises roles.NotAllowed where others have the role of invoicing.
    """
    with begin_write(engine) as connection:
        found = [it for it in _frozen(connection, namespace) if it.customer_id == customer_id]
        open_ones = [it for it in found if it.period.start == start and it.differs and it.handled_at is None]
        for it in open_ones:
            connection.execute(update(meter_periods).where(_is(namespace, it)).values(handled_at=now))
            told = {name: str(getattr(it, name)) for name in ("ours", "stripes", "later")}
            audit.note(
                connection,
                namespace,
                METER_DIFFERENCE,
                subject=f"{it.event_name} {it.period.start:%Y-%m}",
                who=who,
                why=why,
                at=now,
                added=told,
                customer_id=customer_id,
                role=roles.INVOICING,
            )
    return open_ones


def freeze(engine: Engine, namespace: str, compared: Sequence[Frozen]) -> None:
    """Keep the comparison of months; one that was compared before keeps when that was."""
    with begin_write(engine) as connection:
        for it in compared:
            values = {
                "ours": it.ours,
                "stripes": it.stripes,
                "later": it.later,
                "frozen_at": it.frozen_at,
                "handled_at": it.handled_at,
            }
            if connection.execute(update(meter_periods).where(_is(namespace, it)).values(**values)).rowcount:
                continue
            connection.execute(
                insert(meter_periods).values(
                    namespace=namespace,
                    customer_id=it.customer_id,
                    event_name=it.event_name,
                    period_start=it.period.start,
                    period_end=it.period.end,
                    **values,
                )
            )


def _each(engine: Engine, statement: Any, rows: list[dict[str, Any]]) -> None:
    if rows:
        with begin_write(engine) as connection:
            connection.execute(statement, rows)


def _chunks(names: list[str]) -> Iterator[list[str]]:
    return (names[start : start + CHUNK] for start in range(0, len(names), CHUNK))
