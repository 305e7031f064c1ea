"""Customers' credits in SQL: grants, refunds, revocations, what has expired, top-up rules. Every write is a posting.

A grant's row says what it is and never changes; what is left of it is the fold of its entries in `deferred_credits`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, RowMapping, insert, select

from meterhouse_rating import ledger
from meterhouse_rating.credit_lines import grants_of, used_by
from meterhouse_rating.credits import BEFORE_GRANTS, BOUGHT, Grant, TopUp, carried_over, endings
from meterhouse_rating.ids import digest
from meterhouse_rating.ledger import Entry, Posting
from meterhouse_store.registry import ALWAYS
from meterhouse_store.tables import credit_grants, credit_top_ups

PACK, OPERATOR, ROLLOVER = "pack", "operator", "rollover"
"""Where a grant comes from: a line of a rating, a command, another grant that expired."""

GRANTED, EXPIRED, REFUNDED, REVOKED = "credit_granted", "credit_expired", "credit_refunded", "credit_revoked"
"""Kinds of transactions."""

AGAINST: Final[Mapping[str, Mapping[str, str]]] = {
    GRANTED: {BOUGHT: ledger.CASH, "promotional": ledger.PROMOTIONS},
    EXPIRED: {BOUGHT: ledger.REVENUE, "promotional": ledger.PROMOTIONS},
    REFUNDED: {BOUGHT: ledger.CASH},
    REVOKED: {"promotional": ledger.PROMOTIONS},
}
"""Per kind of transaction and of grant the account on the other side of `deferred_credits`."""


@dataclass(frozen=True)
class Origin:
    """What a grant's row says beside its rules."""

    source: str
    source_id: str
    who: str
    why: str


def standing(
    connection: Connection,
    namespace: str,
    customer_id: str,
    currency: str,
    open_lines: Iterable[Any] = (),
    at: datetime | None = None,
    upto: ledger.Upto | None = None,
) -> list[Grant]:
    """The customer's grants with what is left, or was at a moment; `open_lines` count as if they were closed."""
    left = ledger.credits_left(connection, namespace, customer_id, currency, at, upto)
    grants = {
        row["grant_id"]: replace(_grant(row), left_minor=left.get(row["grant_id"], 0))
        for row in rows_of(connection, namespace, customer_id)
        if row["currency"] == currency
    }
    if left.get(BEFORE_GRANTS):
        grants[BEFORE_GRANTS] = Grant(BEFORE_GRANTS, BOUGHT, left[BEFORE_GRANTS], ALWAYS)
    for line in open_lines:
        for grant in grants_of(line["explanation"], currency):
            grants.setdefault(grant.grant_id, grant)
        for name, amount in used_by(line["explanation"], currency).items():
            if name in grants:
                grants[name] = replace(grants[name], left_minor=grants[name].left_minor - amount)
    return list(grants.values())


def at_start(grants: Iterable[Grant], moment: datetime) -> tuple[Grant, ...]:
    """The grants that a period which starts then can use: expired ones gone or carried over, none empty."""
    return tuple(it for it in carried_over(grants, moment) if it.left_minor > 0)


def keep_line_grants(
    connection: Connection, namespace: str, customer_id: str, lines: Iterable[Mapping[str, Any]], recorded_at: datetime
) -> None:
    """Put the grants that closed lines made into SQL; their posting is that of the line."""
    for line in lines:
        for grant in grants_of(line["explanation"], line["currency"]):
            origin = Origin(PACK, line["line_id"], "", line["description"])
            add_row(connection, namespace, customer_id, line["currency"], grant, origin, recorded_at)


def add_row(
    connection: Connection,
    namespace: str,
    customer_id: str,
    currency: str,
    grant: Grant,
    origin: Origin,
    recorded_at: datetime,
) -> None:
    """A grant as it begins, with all of it left."""
    connection.execute(
        insert(credit_grants).values(
            grant_id=grant.grant_id,
            namespace=namespace,
            customer_id=customer_id,
            kind=grant.kind,
            amount_minor=grant.left_minor,
            currency=currency,
            priority=grant.priority,
            granted_at=grant.granted_at,
            expires_at=grant.expires_at,
            rollover_minor=grant.rollover_minor,
            source=origin.source,
            source_id=origin.source_id,
            who=origin.who,
            why=origin.why,
            recorded_at=recorded_at,
        )
    )


def expire(
    connection: Connection, namespace: str, customer_id: str, currency: str, through: datetime, recorded_at: datetime
) -> int:
    """Post what has expired up to a moment, and what is carried over; returns how many grants that were."""
    grants = standing(connection, namespace, customer_id, currency)
    done = 0
    while ended := endings(grants, through):
        for it in ended:
            grant, old = it.grant, Entry(ledger.DEFERRED_CREDITS, it.grant.left_minor, currency, it.grant.grant_id)
            sides = [old]
            if it.lost_minor:
                sides.append(Entry(AGAINST[EXPIRED][grant.kind], -it.lost_minor, currency))
            if it.carried is not None:
                sides.append(Entry(ledger.DEFERRED_CREDITS, -it.carried.left_minor, currency, it.carried.grant_id))
                origin = Origin(ROLLOVER, grant.grant_id, "", "carried over")
                add_row(connection, namespace, customer_id, currency, it.carried, origin, recorded_at)
            expired_at = grant.expires_at or through
            memo = f"credits of {grant.granted_at:%Y-%m-%d} expired"
            posting = Posting(EXPIRED, grant.grant_id, memo, tuple(sides))
            ledger.post(connection, namespace, customer_id, [posting], effective_at=expired_at, recorded_at=recorded_at)
            done += 1
        gone = {it.grant.grant_id for it in ended}
        grants = [it for it in grants if it.grant_id not in gone]
        grants += [it.carried for it in ended if it.carried is not None]
    return done


def rows_of(connection: Connection, namespace: str, customer_id: str | None) -> Sequence[RowMapping]:
    """The grants' rows, of a customer or of all, by customer and time."""
    query = select(credit_grants).where(credit_grants.c.namespace == namespace)
    if customer_id is not None:
        query = query.where(credit_grants.c.customer_id == customer_id)
    ordered = query.order_by(credit_grants.c.customer_id, credit_grants.c.granted_at, credit_grants.c.grant_id)
    return connection.execute(ordered).mappings().all()


def top_up_in_force(
    connection: Connection,
    namespace: str,
    customer_id: str,
    currency: str,
    until: datetime,
    known_at: datetime | None = None,
) -> TopUp | None:
    """The rule that holds at the end of a period: the last one that begins before it; None, or one that was ended."""
    table = credit_top_ups
    query = select(table).where(
        table.c.namespace == namespace, table.c.customer_id == customer_id, table.c.valid_from < until
    )
    if known_at is not None:
        query = query.where(table.c.recorded_at <= known_at)
    row = connection.execute(query.order_by(table.c.valid_from.desc()).limit(1)).mappings().one_or_none()
    if row is None or not row["amount_minor"] or row["currency"] != currency:
        return None
    return TopUp(row["below_minor"], row["amount_minor"], row["times"])


def grant_name(namespace: str, customer_id: str, *said: Any) -> str:
    """The one name of a grant that somebody made."""
    return digest(["grant", OPERATOR, namespace, customer_id, *said])


def _grant(row: RowMapping) -> Grant:
    return Grant(
        row["grant_id"],
        row["kind"],
        row["amount_minor"],
        row["granted_at"],
        row["expires_at"],
        row["priority"],
        row["rollover_minor"],
    )
