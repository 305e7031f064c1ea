"""Who did what about price-book proposals, and the rule that it tells: one person publishes, or two.

It stands in the audit log and nowhere else, as "price decision".
"""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, select

from meterhouse_store import audit
from meterhouse_store.audit_rules import PRICE_DECISION
from meterhouse_store.tables import audit_log

PROPOSED: Final = "proposed"
APPROVED: Final = "approved"
REJECTED: Final = "rejected"
PUBLISHED: Final = "published"
REFUSED: Final = "refused"
TWO_PERSONS: Final = "two_persons"
ONE_PERSON: Final = "one_person"


@dataclass(frozen=True)
class Entry:
    """One act: `who` is the name that was given, `account` that of the system; `why` of a refusal is what was said.

    `position` counts the acts of a namespace from 1.
    """

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
    """Put an act in the audit log, where it can be read at once, in a transaction that holds the namespace.

    Raises roles.NotAllowed where others have the role of pricing; a refused attempt is noted of everybody.
    """
    before = entries(connection, namespace)
    position = before[-1].position + 1 if before else 1
    audit.note(
        connection,
        namespace,
        PRICE_DECISION,
        subject=what,
        who=who,
        why=why[:500],
        at=now,
        added={
            "position": position,
            "what": what,
            "proposal_id": proposal_id,
            "version": version,
            "account": account,
        },
        role="" if what == REFUSED else "pricing",
    )
    audit.seal(connection)


def entries(connection: Connection, namespace: str) -> list[Entry]:
    """All acts of a namespace, oldest first."""
    table = audit_log
    query = select(table.c.changed_at, table.c.who, table.c.why, table.c.details)
    query = query.where(table.c.namespace == namespace, table.c.what == PRICE_DECISION)
    found = [
        Entry(recorded_at=row.changed_at, who=row.who, why=row.why, **json.loads(row.details)[audit.ADDED])
        for row in connection.execute(query)
    ]
    # What was decided before there was the log came into it after what was decided since.
    return sorted(found, key=lambda it: it.position)


def two_persons(connection: Connection, namespace: str) -> bool:
    """Whether a price book takes two persons; where nobody ever said so, one is enough."""
    rules = [it.what for it in entries(connection, namespace) if it.what in (TWO_PERSONS, ONE_PERSON)]
    return rules[-1:] == [TWO_PERSONS]
