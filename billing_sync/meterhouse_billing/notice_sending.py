"""Sends what is due of notices, at least once, each with its id: e-mail by SMTP, webhooks signed as Standard Webhooks.

An attempt is written before it is made: what dies on the way is sent again, under the same id. After ATTEMPTS it has
failed, and waits for `meterhouse notices retry`.
"""

import base64
import hashlib
import hmac
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, Engine, func, select, update

from meterhouse_billing import notice_texts
from meterhouse_billing.notice_templates import BUILT_IN, TemplateBroken, Templates
from meterhouse_billing.notices import EMAIL, FAILED, PENDING, SENT
from meterhouse_store import mail, tables
from meterhouse_store.brand import Brand
from meterhouse_store.mail import MailRefused, MailSettings, MailUnavailable
from meterhouse_store.sql import begin_write

WAITS: Final = tuple(timedelta(minutes=it) for it in (1, 5, 30, 120, 360, 720, 1440))
"""After each failed attempt; there is one attempt more than waits, over two days."""
ATTEMPTS: Final = len(WAITS) + 1
TIMEOUT_S: Final = 10
AT_ONCE: Final = 500
"""So many deliveries one run makes at most."""
_TOLD: Final = 300


@dataclass(frozen=True)
class Sender:
    """What sending needs beside the rows."""

    engine: Engine
    namespace: str
    mail: MailSettings
    brand: Brand
    templates: Templates = BUILT_IN


@dataclass(frozen=True)
class Sent:
    """What became of one delivery: sent, pending (again later) or failed, and why."""

    delivery_id: str
    address: str
    subject: str
    state: str
    problem: str = ""

    def __str__(self) -> str:
        what = {SENT: "sent to", PENDING: "not taken yet by", FAILED: "failed for"}[self.state]
        return f"{what} {self.address}: {self.subject}{f' ({self.problem})' if self.problem else ''}"


class _NotTaken(RuntimeError):
    """The other side did not take it now."""


def due(sender: Sender, now: datetime) -> list[dict[str, Any]]:
    """The deliveries that are to be made now, with their notices; e-mail only where it can be sent."""
    table, notices = tables.notice_deliveries, tables.notices
    query = (
        select(table, notices.c.kind, notices.c.subject, notices.c.facts, notices.c.created_at)
        .join(notices, notices.c.notice_id == table.c.notice_id)
        .where(*_is_due(sender, now))
    )
    if not sender.mail.usable:
        query = query.where(table.c.channel != EMAIL)
    with sender.engine.connect() as connection:
        found = connection.execute(query.order_by(table.c.next_attempt_at, table.c.delivery_id).limit(AT_ONCE))
        return [dict(row) for row in found.mappings()]


def without_mail(sender: Sender, now: datetime) -> int:
    """How many e-mails are due and wait because no mail server is named."""
    if sender.mail.usable:
        return 0
    channel = tables.notice_deliveries.c.channel
    query = select(func.count()).where(*_is_due(sender, now), channel == EMAIL)
    with sender.engine.connect() as connection:
        return int(connection.execute(query).scalar_one())


def _is_due(sender: Sender, now: datetime) -> tuple[ColumnElement[bool], ...]:
    of = tables.notice_deliveries.c
    return of.namespace == sender.namespace, of.state == PENDING, of.next_attempt_at <= now


def send(sender: Sender, now: datetime) -> Iterator[Sent]:
    """Make the deliveries that are due, one after the other."""
    for row in due(sender, now):
        if _claimed(sender.engine, row, now):
            yield _finished(sender.engine, row, now, *_attempt(sender, row, now))


def signature(secret: str, delivery_id: str, timestamp: int, body: bytes) -> str:
    """`v1,` and the base64 of the HMAC-SHA256 over id, time and raw body, with dots between (standardwebhooks.com)."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = b".".join((delivery_id.encode(), str(timestamp).encode(), body))
    return f"v1,{base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()}"


def _claimed(engine: Engine, row: Mapping[str, Any], now: datetime) -> bool:
    """Write the attempt before it is made; False where somebody else makes it."""
    table, attempts = tables.notice_deliveries, row["attempts"]
    wait = WAITS[min(attempts, len(WAITS) - 1)]
    mine = (table.c.delivery_id == row["delivery_id"]) & (table.c.attempts == attempts) & (table.c.state == PENDING)
    with begin_write(engine) as connection:
        values = {"attempts": attempts + 1, "next_attempt_at": now + wait}
        return bool(connection.execute(update(table).where(mine).values(**values)).rowcount)


def _attempt(sender: Sender, row: Mapping[str, Any], now: datetime) -> tuple[str, str]:
    """The state afterwards, and what was wrong."""
    try:
        if row["channel"] == EMAIL:
            return SENT, _mail(sender, row)
        _post(sender, row, now)
    except MailRefused as problem:
        return FAILED, str(problem)
    except (MailUnavailable, _NotTaken) as problem:
        return (FAILED if row["attempts"] + 1 >= ATTEMPTS else PENDING), str(problem)
    return SENT, ""


def _finished(engine: Engine, row: Mapping[str, Any], now: datetime, state: str, problem: str) -> Sent:
    table = tables.notice_deliveries
    values: dict[str, Any] = {"state": state, "last_error": problem[:2000] or None}
    if state == SENT:
        values["sent_at"] = now
    with begin_write(engine) as connection:
        connection.execute(update(table).where(table.c.delivery_id == row["delivery_id"]).values(**values))
    return Sent(row["delivery_id"], row["address"], row["subject"], state, problem)


def _mail(sender: Sender, row: Mapping[str, Any]) -> str:
    """Send it; what was wrong with the operator's own text of it, for which the built-in one went out."""
    brand, problem = sender.brand, ""
    about = (row["kind"], row["customer_id"], row["subject"], row["facts"], brand)
    try:
        told = sender.templates.of(*about)
    except TemplateBroken as broken:  # nobody goes without a notice because of a text
        told, problem = notice_texts.of(*about), f"the built-in text was sent: {broken}"
    made = mail.message(
        sender.mail,
        row["address"],
        told.subject,
        told.text,
        html=told.html,
        message_id=row["delivery_id"],
        name=brand.name,
    )
    image = brand.logo_image()
    if image is not None:
        content, media_type = image
        html = made.get_body(("html",))
        assert html is not None  # it was just put there
        maintype, _, subtype = media_type.partition("/")
        html.add_related(content, maintype, subtype, cid=f"<{notice_texts.LOGO}>")
    mail.send(sender.mail, made)
    return problem


def _post(sender: Sender, row: Mapping[str, Any], now: datetime) -> None:
    secret = _secret(sender, row)
    body = json.dumps(
        {
            "id": row["notice_id"],
            "type": row["kind"],
            "created_at": row["created_at"].isoformat(),
            "namespace": row["namespace"],
            "customer_id": row["customer_id"],
            "subject": row["subject"],
            "data": row["facts"],
        },
        ensure_ascii=False,
    ).encode()
    timestamp = int(now.timestamp())
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "Meterhouse",
        "webhook-id": row["delivery_id"],
        "webhook-timestamp": str(timestamp),
        "webhook-signature": signature(secret, row["delivery_id"], timestamp, body),
    }
    request = urllib.request.Request(row["address"], body, headers, method="POST")
    try:
        with _opener.open(request, timeout=TIMEOUT_S) as reply:
            status = reply.status
    except urllib.error.HTTPError as refused:
        with refused:
            said = refused.read(_TOLD).decode(errors="replace")
        raise _NotTaken(f"HTTP {refused.code}: {said}".rstrip(": ")) from None
    except (OSError, http.client.HTTPException, ValueError) as problem:
        raise _NotTaken(f"{type(problem).__name__}: {problem}") from None
    if not 200 <= status < 300:
        raise _NotTaken(f"HTTP {status}")


def _secret(sender: Sender, row: Mapping[str, Any]) -> str:
    """The newest secret of the address: of a removed channel the last one."""
    table = tables.notice_channels
    query = select(table.c.secret).where(table.c.namespace == sender.namespace, table.c.address == row["address"])
    query = query.where(table.c.customer_id.in_(["", row["customer_id"]])).order_by(table.c.recorded_at.desc())
    with sender.engine.connect() as connection:
        return str(connection.execute(query.limit(1)).scalar_one())


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """What is signed for one address goes to no other."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_opener = urllib.request.build_opener(_NoRedirect)
