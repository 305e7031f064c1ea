"""The sandbox's state in one SQLite file: objects, saved replies, events, webhook deliveries.

A request is one transaction: what it changed, the events about it and the reply kept for its idempotency key become
durable together, before the reply is sent.
"""

import json
import secrets
import sqlite3
import string
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SCHEMA = """
CREATE TABLE IF NOT EXISTS objects (seq INTEGER PRIMARY KEY, id TEXT NOT NULL, kind TEXT NOT NULL,
  owner TEXT NOT NULL, body TEXT NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS objects_by_name ON objects (id, kind);
CREATE INDEX IF NOT EXISTS objects_by_kind ON objects (kind, owner, seq);
CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, route TEXT NOT NULL, params TEXT NOT NULL,
  status INTEGER NOT NULL, body TEXT NOT NULL, created REAL NOT NULL);
CREATE INDEX IF NOT EXISTS replies_by_time ON replies (created);
CREATE TABLE IF NOT EXISTS deliveries (event_id TEXT PRIMARY KEY, attempts INTEGER NOT NULL, next_at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS numbers (account TEXT PRIMARY KEY, latest INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS clock (one INTEGER PRIMARY KEY CHECK (one = 1), ahead_s REAL NOT NULL);
CREATE TABLE IF NOT EXISTS meter_events (seq INTEGER PRIMARY KEY, identifier TEXT NOT NULL, event_name TEXT NOT NULL,
  customer TEXT NOT NULL, at INTEGER NOT NULL, value TEXT NOT NULL, received REAL NOT NULL, counts INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS meter_events_by_name ON meter_events (identifier);
CREATE INDEX IF NOT EXISTS meter_events_by_time ON meter_events (event_name, customer, at);
"""
KEY_LIFETIME_S = 24 * 3600
_ALPHABET = string.ascii_letters + string.digits


@dataclass(frozen=True)
class Reply:
    """What was answered to the first request with an idempotency key."""

    route: str
    params: str
    status: int
    body: str


class State:
    """Reads and changes objects inside `transaction()`; one instance per thread."""

    def __init__(self, file: Path, *, webhooks: bool) -> None:
        self._webhooks = webhooks
        self.account = ""  # the connected account that is spoken for: its objects are its own
        self._sql = sqlite3.connect(file, timeout=30, isolation_level=None, check_same_thread=False)
        self._sql.execute("PRAGMA journal_mode = WAL")
        self._sql.execute("PRAGMA synchronous = NORMAL")  # outlives the process; a power cut may take the last replies
        self._sql.executescript(_SCHEMA)
        row = self._sql.execute("SELECT ahead_s FROM clock").fetchone()
        self._ahead_s: float = row[0] if row else 0.0
        self.next_period_end: float = 0  # of all subscriptions; 0 where it has to be looked up

    def now(self) -> float:
        """Seconds since 1970 by the sandbox's clock, which can be set."""
        return time.time() + self._ahead_s

    def set_clock(self, now: float) -> None:
        self._ahead_s = now - time.time()
        self._sql.execute("INSERT OR REPLACE INTO clock VALUES (1, ?)", (self._ahead_s,))

    def close(self) -> None:
        self._sql.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self._sql.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._sql.execute("ROLLBACK")
            raise
        self._sql.execute("COMMIT")

    @contextmanager
    def platform(self) -> Iterator[None]:
        """Speak for the platform for a while, whose a part of what belongs to a connected account is."""
        account, self.account = self.account, ""
        try:
            yield
        finally:
            self.account = account

    # ---- objects

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        query = "SELECT body FROM objects WHERE id = ? AND kind = ?"
        row = self._sql.execute(query, (name, self._of_account(kind))).fetchone()
        return None if row is None else json.loads(row[0])

    def put(self, kind: str, body: dict[str, Any], *, owner: str = "") -> None:
        self._sql.execute(
            "INSERT INTO objects (id, kind, owner, body) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (id, kind) DO UPDATE SET body = excluded.body",
            (body["id"], self._of_account(kind), owner, json.dumps(body)),
        )

    def _of_account(self, kind: str) -> str:
        return f"{self.account}/{kind}" if self.account else kind

    def delete(self, name: str) -> None:
        self._sql.execute("DELETE FROM objects WHERE id = ?", (name,))

    def newest_first(
        self, kind: str, fits: Callable[[dict[str, Any]], bool] = lambda body: True, *, owner: str = ""
    ) -> list[dict[str, Any]]:
        rows = self._sql.execute(
            "SELECT body FROM objects WHERE kind = ? AND owner = ? ORDER BY seq DESC", (self._of_account(kind), owner)
        )
        return [body for body in (json.loads(row[0]) for row in rows) if fits(body)]

    def count(self, kind: str, owner: str) -> int:
        query = "SELECT count(*) FROM objects WHERE kind = ? AND owner = ?"
        return int(self._sql.execute(query, (self._of_account(kind), owner)).fetchone()[0])

    def next_invoice_number(self) -> int:
        """1, 2, 3 … of the account's finalised invoices; to count them anew each time would take ever longer."""
        row = self._sql.execute("SELECT latest FROM numbers WHERE account = ?", (self.account,)).fetchone()
        if row is None:  # also of a file from before there were numbers
            there = len(self.newest_first("invoice", lambda one: one["number"] is not None))
        else:
            there = row[0]
        self._sql.execute("INSERT OR REPLACE INTO numbers VALUES (?, ?)", (self.account, there + 1))
        return int(there) + 1

    # ---- idempotency

    def reply(self, key: str) -> Reply | None:
        self._sql.execute("DELETE FROM replies WHERE created < ?", (self.now() - KEY_LIFETIME_S,))
        query = "SELECT route, params, status, body FROM replies WHERE key = ?"
        row = self._sql.execute(query, (self._of_account(key),)).fetchone()
        return None if row is None else Reply(*row)

    def save_reply(self, key: str, reply: Reply) -> None:
        self._sql.execute(
            "INSERT INTO replies VALUES (?, ?, ?, ?, ?, ?)",
            (self._of_account(key), reply.route, reply.params, reply.status, reply.body, self.now()),
        )

    # ---- meter events

    def meter_event_since(self, identifier: str, since: float) -> bool:
        query = "SELECT 1 FROM meter_events WHERE identifier = ? AND received >= ?"
        return self._sql.execute(query, (identifier, since)).fetchone() is not None

    def add_meter_event(
        self, identifier: str, event_name: str, customer: str, at: int, value: str, *, counts: bool
    ) -> None:
        self._sql.execute(
            "INSERT INTO meter_events (identifier, event_name, customer, at, value, received, counts)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (identifier, event_name, customer, at, value, self.now(), counts),
        )

    def cancel_meter_event(self, identifier: str, event_name: str, since: float) -> bool:
        """Whether there was such an event, received since then."""
        done = self._sql.execute(
            "UPDATE meter_events SET counts = 0 WHERE identifier = ? AND event_name = ? AND received >= ?",
            (identifier, event_name, since),
        )
        return done.rowcount > 0

    def meter_events(self, event_name: str, customer: str, start: int, end: int) -> list[tuple[int, str]]:
        """Time and value of the events in [start, end) that count, in the order they were received."""
        query = (
            "SELECT at, value FROM meter_events WHERE event_name = ? AND customer = ? AND at >= ? AND at < ? AND counts"
            " ORDER BY seq"
        )
        return self._sql.execute(query, (event_name, customer, start, end)).fetchall()

    # ---- events and their delivery

    def emit(self, kind: str, body: dict[str, Any], request: dict[str, str | None]) -> None:
        """Record an event with a copy of the object as it is now, and have it delivered."""
        event = {
            "id": new_id("evt"),
            "object": "event",
            "api_version": None,
            "created": int(self.now()),
            "data": {"object": body},
            "livemode": False,
            "pending_webhooks": int(self._webhooks),
            "request": request,
            "type": kind,
        }
        if self.account:
            event["account"] = self.account
        self.put("event", event)
        self.deliver(str(event["id"]))

    def deliver(self, event_id: str) -> None:
        """Have an event delivered, where there is somebody to deliver it to."""
        if self._webhooks:
            self._sql.execute("INSERT INTO deliveries VALUES (?, 0, 0)", (event_id,))

    def due_deliveries(self, now: float) -> list[tuple[dict[str, Any], int]]:
        """Events to deliver now, each with the attempts made so far; of thin events without their data."""
        rows = self._sql.execute(
            "SELECT body, attempts FROM deliveries JOIN objects ON id = event_id WHERE next_at <= ? ORDER BY seq",
            (now,),
        )
        return [(_as_sent(json.loads(body)), attempts) for body, attempts in rows]

    def delivered(self, event_id: str) -> None:
        self._sql.execute("DELETE FROM deliveries WHERE event_id = ?", (event_id,))

    def delivery_failed(self, event_id: str, attempts: int, next_at: float) -> None:
        self._sql.execute(
            "UPDATE deliveries SET attempts = ?, next_at = ? WHERE event_id = ?", (attempts, next_at, event_id)
        )


def _as_sent(event: dict[str, Any]) -> dict[str, Any]:
    thin = event["object"] == "v2.core.event"
    return {name: value for name, value in event.items() if not thin or name not in ("data", "changes")}


def new_id(prefix: str) -> str:
    """A name in Stripe's style: `in_` and 24 letters or digits."""
    return prefix + "_" + "".join(secrets.choice(_ALPHABET) for _ in range(24))
