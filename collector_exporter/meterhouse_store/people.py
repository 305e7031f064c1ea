"""The people of a customer: who signs in for it, who asked, and where notices go. They go with the customer's erasure.

Members, their links and sessions are deleted, and what was made for them to download; what they did stays, without
saying who they are.
"""

from sqlalchemy import ColumnElement, Connection, Table, delete, func, select, update

from meterhouse_store.tables import (
    evidence_blocks,
    evidence_packs,
    line_questions,
    notice_channels,
    notice_deliveries,
    operator_changes,
    portal_embed_sessions,
    portal_keys,
    portal_links,
    portal_members,
    portal_sessions,
)

_OF_CUSTOMER = (
    portal_members,
    portal_sessions,
    portal_embed_sessions,
    portal_keys,
    line_questions,
    notice_channels,
    notice_deliveries,
    operator_changes,
    evidence_packs,
    evidence_blocks,
)


def count(connection: Connection, namespace: str, customer_id: str) -> dict[str, int]:
    """Table -> how many rows `take_out` deletes or changes, where any."""
    found = {}
    for table in _OF_CUSTOMER:
        rows = connection.execute(select(func.count()).where(*_is_of(table, namespace, customer_id))).scalar_one()
        if rows:
            found[table.name] = int(rows)
    return found


def take_out(connection: Connection, namespace: str, customer_id: str, erased: str) -> set[str]:
    """Delete those who sign in, and write `erased` over addresses elsewhere. May be repeated.

    Returns the e-mail addresses of people who act for nobody else: they may stand in other texts.
    """
    members, links, sessions = portal_members, portal_links, portal_sessions
    of_customer = select(members.c.email).where(*_is_of(members, namespace, customer_id))
    emails = set(connection.execute(of_customer.distinct()).scalars())
    connection.execute(delete(members).where(*_is_of(members, namespace, customer_id)))
    elsewhere = set(
        connection.execute(select(members.c.email).where(members.c.namespace == namespace).distinct()).scalars()
    )
    alone = emails - elsewhere
    for email in sorted(alone):  # whoever is another customer's member, too, goes on as that
        for table in (links, sessions):
            connection.execute(delete(table).where(table.c.namespace == namespace, table.c.email == email))
    for table in (sessions, portal_embed_sessions, evidence_packs, evidence_blocks):
        connection.execute(delete(table).where(*_is_of(table, namespace, customer_id)))
    for table in (portal_keys, line_questions):
        connection.execute(update(table).where(*_is_of(table, namespace, customer_id)).values(who=erased))
    changes = update(operator_changes).where(*_is_of(operator_changes, namespace, customer_id))
    connection.execute(changes.values(form={}))  # names and addresses are in it
    channels, deliveries = notice_channels, notice_deliveries
    standing = channels.c.removed_at.is_(None)
    ended = update(channels).where(*_is_of(channels, namespace, customer_id), standing)
    connection.execute(ended.values(removed_at=channels.c.recorded_at))
    over = update(channels).where(*_is_of(channels, namespace, customer_id))
    connection.execute(over.values(address=erased, secret=None, who=erased))
    waiting = update(deliveries).where(*_is_of(deliveries, namespace, customer_id), deliveries.c.state == "pending")
    connection.execute(waiting.values(state="failed", last_error="the customer was erased"))
    connection.execute(update(deliveries).where(*_is_of(deliveries, namespace, customer_id)).values(address=erased))
    return alone


def _is_of(table: Table, namespace: str, customer_id: str) -> tuple[ColumnElement[bool], ...]:
    return table.c.namespace == namespace, table.c.customer_id == customer_id
