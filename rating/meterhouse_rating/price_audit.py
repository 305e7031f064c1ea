"""The record of who did what about price-book proposals, and the rule that it tells: one person publishes, or two."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, func, insert, select

from meterhouse_store.tables import price_audit

PROPOSED: Final = "proposed"
APPROVED: Final = "approved"
REJECTED: Final = "rejected"
PUBLISHED: Final = "published"
REFUSED: Final = "refused"
TWO_PERSONS: Final = "two_persons"
ONE_PERSON: Final = "one_person"


@dataclass(frozen=True)
class Entry:
    """One act: `who` is the name that was given, `account` that of the system; `why` of a refusal is what was said."""

    position: int
    recorded_at: datetime
    what: str
    proposal_id: str | None
    version: int | None
    who: str
    account: str
    why: str


def record(
    connection: Connection,
    namespace: str,
    what: str,
    *,
    who: str,
    account: str,
    why: str = "",
    proposal_id: str | None = None,
    version: int | None = None,
    now: datetime,
) -> None:
    """Append an act, in a transaction that holds the namespace."""
    table = price_audit
    last = connection.execute(select(func.max(table.c.position)).where(table.c.namespace == namespace)).scalar_one()
    entry = Entry((last or 0) + 1, now, what, proposal_id, version, who, account, why[:500])
    connection.execute(insert(table).values(namespace=namespace, **vars(entry)))


def entries(connection: Connection, namespace: str) -> list[Entry]:
    """All acts of a namespace, oldest first."""
    table = price_audit
    columns = [column for column in table.columns if column.name != "namespace"]
    query = select(*columns).where(table.c.namespace == namespace).order_by(table.c.position)
    return [Entry(**row) for row in connection.execute(query).mappings()]


def two_persons(connection: Connection, namespace: str) -> bool:
    """Whether a price book takes two persons; where nobody ever said so, one is enough."""
    table = price_audit
    rules = table.c.what.in_((TWO_PERSONS, ONE_PERSON))
    query = select(table.c.what).where(table.c.namespace == namespace, rules).order_by(table.c.position.desc()).limit(1)
    return connection.execute(query).scalar_one_or_none() == TWO_PERSONS
