"""Customers' credits in SQL: grants, refunds, revocations, what has expired, top-up rules. Every write is a posting.

A grant's row says what it is and never changes; what is left of it is the fold of its entries in `deferred_credits`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, RowMapping, insert, select

from meterhouse_rating import ledger
from meterhouse_rating.credit_lines import grants_of, used_by
from meterhouse_rating.credits import BEFORE_GRANTS, BOUGHT, Grant, TopUp, carried_over, endings
from meterhouse_rating.ids import digest
from meterhouse_rating.ledger import CreditsLeft, Entry, Posting
from meterhouse_store.registry import ALWAYS
from meterhouse_store.tables import credit_grants, credit_top_ups

PACK, OPERATOR, ROLLOVER = "pack", "operator", "rollover"
"""Where a grant comes from: a line of a rating, a command, another grant that expired."""

GRANTED, EXPIRED, REFUNDED, REVOKED = "credit_granted", ledger.CREDIT_EXPIRED, "credit_refunded", "credit_revoked"
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


@dataclass(frozen=True)
class Credits:
    """A customer's credits in SQL: its grants, per currency and grant what is left, its top-up rules."""

    grants: Sequence[Mapping[Any, Any]] = ()
    left: Mapping[str, Mapping[str, CreditsLeft]] = field(default_factory=dict)
    top_ups: Sequence[Mapping[Any, Any]] = ()

    def standing(self, currency: str, open_lines: Iterable[Any] = ()) -> list[Grant]:
        """The grants of a currency with what is left; `open_lines` count as if they were posted."""
        return _with_lines(self.grants, self.left.get(currency, {}), currency, open_lines)

    def top_up(self, currency: str, until: datetime) -> TopUp | None:
        """The rule that holds at the end of a period; see `top_up_in_force`."""
        known = [row for row in self.top_ups if row["valid_from"] < until]
        return _rule(max(known, key=lambda row: row["valid_from"], default=None), currency)


def credits_of(connection: Connection, namespace: str, customers: Sequence[str]) -> dict[str, Credits]:
    """The credits of each of the customers, read at once."""
    grants, rules = _by_customer(rows_of(connection, namespace, customers)), credit_top_ups
    query = select(rules).where(rules.c.namespace == namespace, rules.c.customer_id.in_(customers))
    top_ups = _by_customer(connection.execute(query).mappings().all())
    left: dict[str, dict[str, dict[str, CreditsLeft]]] = {}
    for customer, currency, grant, rest in ledger.all_credits_left(connection, namespace, customers):
        left.setdefault(customer, {}).setdefault(currency, {})[grant] = rest
    return {name: Credits(grants.get(name, ()), left.get(name, {}), top_ups.get(name, ())) for name in customers}


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
    return _with_lines(rows_of(connection, namespace, [customer_id]), left, currency, open_lines)


def _with_lines(
    rows: Iterable[Mapping[Any, Any]], left: Mapping[str, CreditsLeft], currency: str, lines: Iterable[Any]
) -> list[Grant]:
    grants, none = {}, CreditsLeft(0, 0)
    for row in rows:
        if row["currency"] == currency:
            rest = left.get(row["grant_id"], none)
            grants[row["grant_id"]] = replace(_grant(row), left_minor=rest.minor, expired=rest.expired)
    if left.get(BEFORE_GRANTS, none).minor:
        grants[BEFORE_GRANTS] = Grant(BEFORE_GRANTS, BOUGHT, left[BEFORE_GRANTS].minor, ALWAYS)
    for line in lines:
        for grant in grants_of(line["explanation"], currency):
            grants.setdefault(grant.grant_id, grant)
        for name, amount in used_by(line["explanation"], currency).items():
            if name in grants:
                grants[name] = replace(grants[name], left_minor=grants[name].left_minor - amount)
    return list(grants.values())


def at_start(grants: Iterable[Grant], moment: datetime) -> tuple[Grant, ...]:
    """The grants that a period which starts then can use: expired ones gone or carried over, none empty."""
    return tuple(it for it in carried_over(grants, moment) if it.left_minor > 0)


def line_grants(
    namespace: str, customer_id: str, lines: Iterable[Mapping[str, Any]], recorded_at: datetime
) -> list[dict[str, Any]]:
    """The grants that closed lines made, as rows of `credit_grants`; their posting is that of the line."""
    return [
        row_of(
            namespace,
            customer_id,
            line["currency"],
            grant,
            Origin(PACK, line["line_id"], "", line["description"]),
            recorded_at,
        )
        for line in lines
        for grant in grants_of(line["explanation"], line["currency"])
    ]


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
    row = row_of(namespace, customer_id, currency, grant, origin, recorded_at)
    connection.execute(insert(credit_grants).values(**row))


def row_of(
    namespace: str, customer_id: str, currency: str, grant: Grant, origin: Origin, recorded_at: datetime
) -> dict[str, Any]:
    """A grant as it begins, as a row of `credit_grants`."""
    return {
        "grant_id": grant.grant_id,
        "namespace": namespace,
        "customer_id": customer_id,
        "kind": grant.kind,
        "amount_minor": grant.left_minor,
        "currency": currency,
        "priority": grant.priority,
        "granted_at": grant.granted_at,
        "expires_at": grant.expires_at,
        "rollover_minor": grant.rollover_minor,
        "source": origin.source,
        "source_id": origin.source_id,
        "who": origin.who,
        "why": origin.why,
        "recorded_at": recorded_at,
    }


@dataclass(frozen=True)
class Expiry:
    """What becomes of a grant that has expired: its posting, when that is effective, what is lost and what goes on."""

    posting: Posting
    effective_at: datetime
    lost_minor: int
    carried: tuple[Grant, Origin] | None


def expiries(grants: Sequence[Grant], currency: str, through: datetime) -> list[Expiry]:
    """What has expired up to a moment, and what is carried over, which may have expired as well."""
    found: list[Expiry] = []
    left = list(grants)
    while ended := endings(left, through):
        for it in ended:
            grant, carried = it.grant, None
            sides = [Entry(ledger.DEFERRED_CREDITS, grant.left_minor, currency, grant.grant_id)]
            if it.lost_minor:
                sides.append(Entry(AGAINST[EXPIRED][grant.kind], -it.lost_minor, currency))
            if it.carried is not None:
                sides.append(Entry(ledger.DEFERRED_CREDITS, -it.carried.left_minor, currency, it.carried.grant_id))
                carried = (it.carried, Origin(ROLLOVER, grant.grant_id, "", "carried over"))
            memo = f"credits of {grant.granted_at:%Y-%m-%d} expired"
            # What came back after that expires again, by another name.
            name = digest([EXPIRED, grant.grant_id, grant.expired]) if grant.expired else grant.grant_id
            posting = Posting(EXPIRED, name, memo, tuple(sides))
            found.append(Expiry(posting, grant.expires_at or through, it.lost_minor, carried))
        gone = {it.grant.grant_id for it in ended}
        left = [it for it in left if it.grant_id not in gone]
        left += [it.carried for it in ended if it.carried is not None]
    return found


def rows_of(connection: Connection, namespace: str, customers: Sequence[str] | None) -> Sequence[RowMapping]:
    """The grants' rows, of some customers or of all, by customer and time."""
    query = select(credit_grants).where(credit_grants.c.namespace == namespace)
    if customers is not None:
        query = query.where(credit_grants.c.customer_id.in_(customers))
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
    return _rule(
        connection.execute(query.order_by(table.c.valid_from.desc()).limit(1)).mappings().one_or_none(), currency
    )


def _rule(row: Mapping[Any, Any] | None, currency: str) -> TopUp | None:
    if row is None or not row["amount_minor"] or row["currency"] != currency:
        return None
    return TopUp(row["below_minor"], row["amount_minor"], row["times"])


def _by_customer(rows: Iterable[RowMapping]) -> dict[str, list[RowMapping]]:
    found: dict[str, list[RowMapping]] = {}
    for row in rows:
        found.setdefault(row["customer_id"], []).append(row)
    return found


def grant_name(namespace: str, customer_id: str, *said: Any) -> str:
    """The one name of a grant that somebody made."""
    return digest(["grant", OPERATOR, namespace, customer_id, *said])


def _grant(row: Mapping[Any, Any]) -> Grant:
    return Grant(
        row["grant_id"],
        row["kind"],
        row["amount_minor"],
        row["granted_at"],
        row["expires_at"],
        row["priority"],
        row["rollover_minor"],
    )
