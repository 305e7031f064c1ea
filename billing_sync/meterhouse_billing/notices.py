"""Notices: what people are told, where it goes, and how far it got. Rows only; sending is `notice_sending`'s.

A notice's id is the hash of what it is about, and a delivery's that of the notice and the address: whoever finds the
same cause again writes nothing, and what is sent twice has the id of the first time.
"""

import base64
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from email.utils import parseaddr
from typing import Any, Final
from urllib.parse import urlsplit

from sqlalchemy import Connection, Engine, insert, select, update

from meterhouse_rating.ids import digest
from meterhouse_store import tables
from meterhouse_store.registry import RegistryError
from meterhouse_store.sql import begin_write

EMAIL, WEBHOOK = "email", "webhook"
PENDING, SENT, FAILED = "pending", "sent", "failed"
KINDS: Final = {
    "budget_threshold": "a part of a budget is used",
    "budget_cap": "a hard cap is reached",
    "over_cap": "more than a hard cap is used",
    "paused": "model calls are paused",
    "pre_charge": "what will be charged, with time to look at it",
    "invoice": "an invoice",
    "payment_failed": "a payment failed",
    "payment_due": "an invoice is due soon",
    "overdue": "an invoice is overdue",
    "receipt": "a payment arrived",
    "top_up": "credits were bought",
    "top_up_failed": "credits could not be charged automatically, which ends that",
}
_LOCAL: Final = frozenset({"127.0.0.1", "::1", "localhost"})
_CHUNK: Final = 500


@dataclass(frozen=True)
class Notice:
    """One thing to tell; `cause` makes its id, with kind and customer."""

    namespace: str
    customer_id: str
    kind: str
    cause: tuple[str, ...]
    subject: str
    facts: dict[str, Any]

    @property
    def notice_id(self) -> str:
        return digest(["notice", self.namespace, self.customer_id, self.kind, *self.cause])


@dataclass(frozen=True)
class Channel:
    """Where notices go: of one customer, or ('') of all; `kinds` empty: all of them."""

    channel_id: str
    customer_id: str
    kind: str
    address: str
    secret: str | None
    kinds: tuple[str, ...]

    def wants(self, customer_id: str, kind: str) -> bool:
        return self.customer_id in ("", customer_id) and (not self.kinds or kind in self.kinds)


def keep(connection: Connection, told: Iterable[Notice], now: datetime) -> int:
    """Write the notices that are new, and to whom each goes; how many they are. In a transaction that writes."""
    wanted = {it.notice_id: it for it in told}
    for chunk in _chunks(sorted(wanted)):
        query = select(tables.notices.c.notice_id).where(tables.notices.c.notice_id.in_(chunk))
        for known in connection.execute(query).scalars():
            del wanted[known]
    if not wanted:
        return 0
    rows = [
        {
            "notice_id": name,
            "namespace": it.namespace,
            "customer_id": it.customer_id,
            "kind": it.kind,
            "subject": it.subject[:256],
            "facts": it.facts,
            "created_at": now,
        }
        for name, it in sorted(wanted.items())
    ]
    connection.execute(insert(tables.notices), rows)
    deliveries = [it for row in rows for it in _deliveries(connection, row, now)]
    if deliveries:
        connection.execute(insert(tables.notice_deliveries), deliveries)
    return len(rows)


def channels(connection: Connection, namespace: str) -> list[Channel]:
    """The channels that are in use."""
    table = tables.notice_channels
    query = select(table).where(table.c.namespace == namespace, table.c.removed_at.is_(None))
    return [
        Channel(row["channel_id"], row["customer_id"], row["kind"], row["address"], row["secret"], tuple(row["kinds"]))
        for row in connection.execute(query.order_by(table.c.recorded_at)).mappings()
    ]


def add_channel(
    engine: Engine, namespace: str, customer_id: str, address: str, kinds: Sequence[str], *, who: str, now: datetime
) -> Channel:
    """Send notices there from now on: an e-mail address, or the URL of a webhook, which gets a secret of its own.

    Raises RegistryError.
    """
    kind = WEBHOOK if "://" in address else EMAIL
    unknown = sorted(set(kinds) - set(KINDS))
    mistakes = [f"there are no notices {', '.join(unknown)} (there are {', '.join(KINDS)})"] if unknown else []
    if kind == WEBHOOK:
        url = urlsplit(address)
        if url.scheme not in ("http", "https") or not url.hostname:
            mistakes.append(f"{address} is no URL of a webhook: https://host/path")
        elif url.scheme == "http" and url.hostname not in _LOCAL:
            mistakes.append("a webhook on another machine has an https:// URL: what is sent says who pays what")
    elif "@" not in parseaddr(address)[1]:
        mistakes.append(f"{address} is neither an e-mail address nor a URL")
    if mistakes:
        raise RegistryError("; ".join(mistakes))
    with begin_write(engine) as connection:
        for it in channels(connection, namespace):
            if (it.customer_id, it.address) == (customer_id, address):
                raise RegistryError(f"{address} is a channel already: `meterhouse notices channels` lists them")
        # 32 bytes: as many as the hash that signs (Standard Webhooks asks for 24 to 64).
        secret = f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}" if kind == WEBHOOK else None
        name = digest(["channel", namespace, customer_id, kind, address, now.isoformat()])
        made = Channel(name, customer_id, kind, address, secret, tuple(kinds))
        connection.execute(
            insert(tables.notice_channels).values(
                **{**vars(made), "kinds": list(kinds)}, namespace=namespace, who=who[:128], recorded_at=now
            )
        )
    return made


def remove_channel(engine: Engine, namespace: str, customer_id: str, address: str, now: datetime) -> None:
    """Send nothing new there; what was planned before is still sent. Raises RegistryError."""
    table = tables.notice_channels
    is_it = (table.c.namespace == namespace) & (table.c.customer_id == customer_id) & (table.c.address == address)
    with begin_write(engine) as connection:
        changed = connection.execute(update(table).where(is_it, table.c.removed_at.is_(None)).values(removed_at=now))
        if not changed.rowcount:
            raise RegistryError(f"{address} is no channel: `meterhouse notices channels` lists them")


def retry(engine: Engine, namespace: str, delivery: str, now: datetime) -> list[str]:
    """Begin anew with failed deliveries whose id begins so, or ('') all; their ids. Raises RegistryError."""
    table = tables.notice_deliveries
    query = select(table.c.delivery_id).where(
        table.c.namespace == namespace, table.c.state == FAILED, table.c.delivery_id.startswith(delivery)
    )
    with begin_write(engine) as connection:
        found = list(connection.execute(query).scalars())
        if delivery and not found:
            raise RegistryError(f"no failed delivery begins with {delivery}: `meterhouse notices list` shows them")
        for chunk in _chunks(found):
            again = {"state": PENDING, "attempts": 0, "next_attempt_at": now}
            connection.execute(update(table).where(table.c.delivery_id.in_(chunk)).values(**again))
    return found


def listed(
    engine: Engine, namespace: str, customer_id: str | None = None, state: str | None = None, limit: int = 100
) -> list[dict[str, Any]]:
    """The latest notices, each with its deliveries."""
    table, sent = tables.notices, tables.notice_deliveries
    query = select(table).where(table.c.namespace == namespace)
    if customer_id is not None:
        query = query.where(table.c.customer_id == customer_id)
    if state is not None:
        query = query.where(table.c.notice_id.in_(select(sent.c.notice_id).where(sent.c.state == state)))
    query = query.order_by(table.c.created_at.desc(), table.c.notice_id).limit(limit)
    with engine.connect() as connection:
        found = [dict(row) | {"deliveries": []} for row in connection.execute(query).mappings()]
        by_id = {row["notice_id"]: row["deliveries"] for row in found}
        for chunk in _chunks(list(by_id)):
            for row in connection.execute(select(sent).where(sent.c.notice_id.in_(chunk))).mappings():
                by_id[row["notice_id"]].append(dict(row))
    return found


def _deliveries(connection: Connection, notice: Mapping[str, Any], now: datetime) -> list[dict[str, Any]]:
    """To the customer's own address, where it is known, and to every channel that wants it; each address once."""
    namespace, customer_id = notice["namespace"], notice["customer_id"]
    known = tables.customers
    is_it = (known.c.namespace == namespace) & (known.c.customer_id == customer_id)
    own = connection.execute(select(known.c.email).where(is_it)).scalar()
    addresses = {(EMAIL, own)} if own else set()
    addresses |= {
        (it.kind, it.address) for it in channels(connection, namespace) if it.wants(customer_id, notice["kind"])
    }
    return [
        {
            "delivery_id": digest(["delivery", notice["notice_id"], kind, address]),
            "notice_id": notice["notice_id"],
            "namespace": namespace,
            "customer_id": customer_id,
            "channel": kind,
            "address": address,
            "state": PENDING,
            "attempts": 0,
            "next_attempt_at": now,
        }
        for kind, address in sorted(addresses)
    ]


def _chunks(names: Sequence[str]) -> Iterable[Sequence[str]]:
    return (names[at : at + _CHUNK] for at in range(0, len(names), _CHUNK))
