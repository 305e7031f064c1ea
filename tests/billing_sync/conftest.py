"""The sandbox as a real HTTP server, and ratings seeded straight into SQLite."""

import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import stripe
import uvicorn
from sqlalchemy import Engine, insert, select, update
from starlette.types import ASGIApp, Receive, Scope, Send

from meterhouse_billing.gateway import Gateway, connect
from meterhouse_billing.world import World
from meterhouse_rating import ledger
from meterhouse_sandbox.stripe_server import application
from meterhouse_store import registry, tables
from meterhouse_store.settings import Settings
from meterhouse_store.sql import begin_write, open_engine

sys.path.insert(0, str(Path(__file__).parent))  # for metered

OCTOBER = datetime(2026, 10, 1, tzinfo=UTC)
NOVEMBER = datetime(2026, 11, 1, tzinfo=UTC)
NOW = datetime(2026, 11, 2, 8, tzinfo=UTC)
COMPLETE = "Complete as far as can be known."


@dataclass
class Faults:
    """Stands before the sandbox: refuses the next requests, or handles one and loses its reply."""

    app: ASGIApp
    refuse_with: list[int] = field(default_factory=list)
    lose_reply_of: set[int] = field(default_factory=set)
    posts: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self.app(scope, receive, send)
            return
        if self.refuse_with:
            await _answer(send, self.refuse_with.pop(0))
            return
        self.posts += scope["method"] == "POST"
        if scope["method"] == "POST" and self.posts in self.lose_reply_of:
            await self.app(scope, receive, _nowhere)
            await _answer(send, 503)
            return
        await self.app(scope, receive, send)


async def _answer(send: Send, status: int) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b'{"error": {"type": "api_error", "message": "planted"}}'})


async def _nowhere(_message: Any) -> None:
    pass


@dataclass
class Server:
    """An ASGI application on a free port of 127.0.0.1, in a thread."""

    app: ASGIApp

    def __post_init__(self) -> None:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(self.app, log_level="warning"))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]})

    def __enter__(self) -> "Server":
        self._thread.start()
        wait_until(lambda: self._server.started)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(15)
        self._socket.close()
        assert not self._thread.is_alive()


@dataclass
class Sandbox:
    """A running sandbox Stripe; `client` is the real SDK pointed at it."""

    url: str
    faults: Faults
    sleeps: list[float] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        return {"STRIPE_API_KEY": "sk_test_123", "METERHOUSE_STRIPE_URL": self.url}

    @property
    def client(self) -> stripe.StripeClient:
        stripe.enable_telemetry = False
        return stripe.StripeClient("sk_test_123", base_addresses={"api": self.url})

    def gateway(self) -> Gateway:
        gateway = connect(self.environment, live=False)
        gateway._sleep = self.sleeps.append
        return gateway


@dataclass
class Books:
    """A namespace with customers and closed ratings in SQLite."""

    settings: Settings
    engine: Engine

    def rating(
        self,
        customer_id: str,
        lines: list[tuple[Any, ...]],
        *,
        currency: str = "USD",
        state: str = "closed",
        month: int = 10,
        stated: bool = True,
        posted: bool = True,
    ) -> str:
        """A rating of a month of 2026; lines are (kind, metric, quantity, amount in minor units[, explanation]).

        `stated`: its usage was complete when it was closed. `posted`: it is in the ledger.
        """
        start, end = datetime(2026, month, 1, tzinfo=UTC), datetime(2026, month + 1, 1, tzinfo=UTC)
        rating_id = f"rating-{customer_id}" + ("" if month == 10 else f"-{month}")
        rows = [_line(rating_id, position, line, currency) for position, line in enumerate(lines)]
        registry.add_customer(self.engine, "test", customer_id, currency=currency, now=OCTOBER)
        with begin_write(self.engine) as connection:
            connection.execute(
                insert(tables.ratings).values(
                    rating_id=rating_id,
                    namespace="test",
                    customer_id=customer_id,
                    period_start=start,
                    period_end=end,
                    state=state,
                    currency=currency,
                    plan="pay-as-you-go",
                    book_version=1,
                    watermark={},
                    as_of=NOVEMBER,
                    inputs_sha256="i",
                    result_sha256="r",
                    total_minor=sum(line[3] for line in lines),
                    rated_at=NOVEMBER,
                    closed_at=NOVEMBER if state == "closed" else None,
                )
            )
            if rows:
                connection.execute(insert(tables.rated_lines), rows)
            if stated:
                said = {"rating_id": rating_id, "verdict": COMPLETE, "statement": {"verdict": COMPLETE}}
                connection.execute(insert(tables.rating_statements).values(**said, stated_at=NOVEMBER))
        if posted and rows:
            self.post(rating_id)
        return rating_id

    def rated_anew(self, rating_id: str, lines: list[tuple[Any, ...]]) -> None:
        """Usage came after all: the lines of a rating that was not posted yet are others now, or more.

        No command rates a closed period anew; whoever restores or mends a database by hand comes to the same.
        """
        table, ratings = tables.rated_lines, tables.ratings
        is_it = ratings.c.rating_id == rating_id
        with begin_write(self.engine) as connection:
            rating = connection.execute(select(ratings).where(is_it)).mappings().one()
            query = select(table.c.line_id).where(table.c.rating_id == rating_id)
            known = set(connection.execute(query).scalars())
            for position, line in enumerate(lines):
                row = _line(rating_id, position, line, rating["currency"])
                here = table.c.line_id == row["line_id"]
                change = update(table).where(here) if row["line_id"] in known else insert(table)
                connection.execute(change.values(**row))
            said = {"total_minor": sum(line[3] for line in lines), "result_sha256": f"{rating['result_sha256']}-anew"}
            connection.execute(update(ratings).where(is_it).values(**said))

    def post(self, rating_id: str) -> None:
        """The lines of a rating, as they are now, to the ledger."""
        table = tables.rated_lines
        query = select(table, tables.ratings.c.customer_id).join(tables.ratings)
        with begin_write(self.engine) as connection:
            rows = connection.execute(query.where(table.c.rating_id == rating_id)).mappings().all()
            moments = {"effective_at": NOVEMBER, "recorded_at": NOVEMBER}
            ledger.post(connection, "test", rows[0]["customer_id"], ledger.of_lines(rows, "test"), **moments)

    def correction(self, rating_id: str, lines: list[tuple[int | None, int]], note_id: str = "note") -> str:
        """A credit note that a later close made; lines are (position of what is corrected, signed minor units)."""
        rows: list[dict[str, Any]] = [
            {
                "line_id": f"{note_id}-{number}",
                "kind": "correction",
                "description": "usage (correction)",
                "amount_minor": amount,
                "explanation": {"corrects": {"line": "" if at is None else f"{rating_id}-{at}", "kind": "usage"}},
            }
            for number, (at, amount) in enumerate(lines)
        ]
        with begin_write(self.engine) as connection:
            rating = connection.execute(select(tables.ratings).where(tables.ratings.c.rating_id == rating_id)).one()
            named = {"credit_note_id": note_id, "namespace": "test", "customer_id": rating.customer_id}
            connection.execute(
                insert(tables.credit_notes).values(
                    **named,
                    rating_id=rating_id,
                    currency=rating.currency,
                    total_minor=sum(amount for _, amount in lines),
                    lines=rows,
                    as_of=NOW,
                    recorded_at=NOW,
                )
            )
            rows = [{**row, "currency": rating.currency} for row in rows]
            moments = {"effective_at": NOW, "recorded_at": NOW}
            ledger.post(connection, "test", rating.customer_id, ledger.of_lines(rows, "test"), **moments)
        return note_id

    def rows(self, table: Any) -> list[dict[str, Any]]:
        with self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(table.select()).mappings()]


def _line(rating_id: str, position: int, line: tuple[Any, ...], currency: str) -> dict[str, Any]:
    """A row of `rated_lines`."""
    kind, metric, quantity, amount, *explanation = line
    return {
        "line_id": f"{rating_id}-{position}",
        "rating_id": rating_id,
        "position": position,
        "kind": kind,
        "component": f"component-{position}",
        "metric": metric or None,
        "description": f"{kind} {metric}".strip(),
        "quantity": Decimal(quantity),
        "unit": "{token}",
        "dimensions": {},
        "amount_exact": Decimal(amount),
        "amount_minor": amount,
        "currency": currency,
        "explanation": explanation[0] if explanation else {},
    }


def wait_until(condition: Callable[[], object], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def wait() -> Callable[..., None]:
    return wait_until


@pytest.fixture
def serve() -> type[Server]:
    return Server


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    faults = Faults(application(tmp_path / "sandbox"))
    with Server(faults) as server:
        yield Sandbox(server.url, faults)


@pytest.fixture
def books(request: pytest.FixtureRequest, sqlite_copy: Callable[[Path], str], tmp_path: Path) -> Iterator[Books]:
    """On SQLite; `@pytest.mark.parametrize("books", ["sqlite", "postgres"], indirect=True)`: on both."""
    if getattr(request, "param", "") == "postgres":
        url = request.getfixturevalue("postgres_schema_url")
    else:
        url = sqlite_copy(tmp_path / "data" / "meterhouse.db")
    settings = Settings(data=tmp_path / "data", namespace="test", sql_url=url)
    engine = open_engine(settings)
    registry.ensure_namespace(engine, "test", now=OCTOBER)
    yield Books(settings, engine)
    engine.dispose()


@pytest.fixture
def world(books: Books, sandbox: Sandbox) -> World:
    return World(books.engine, sandbox.gateway(), "test", "anna", lambda: NOW)


@pytest.fixture
def later(books: Books, sandbox: Sandbox) -> World:
    """The same world two days on, when Stripe has forgotten the idempotency keys."""
    return World(books.engine, sandbox.gateway(), "test", "anna", lambda: NOW + timedelta(days=2))
