"""ClickHouse's HTTP interface over the embedded engine, as an ASGI application.

What the real interface does and clients rely on: authentication, queries in the URL and the body, settings and
`param_*` in the URL, sessions, compressed requests, streamed results, error codes in X-ClickHouse-Exception-Code.
Refused with a clear code: external data, `role`, and ClickHouse's own block compression (`compress=1`), which neither
Grafana's datasource nor the JavaScript and Python clients use over HTTP: they ask with Accept-Encoding, and take an
answer that is not compressed, as all are here: the client is on the same host. A client that hangs up has its
statement killed.
"""

import asyncio
import hmac
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from meterhouse_store import access_log, statements
from meterhouse_store import embedded_requests as requests
from meterhouse_store import engine as chdb_engine
from meterhouse_store.access_log import Entry
from meterhouse_store.embedded_requests import (
    AUTHENTICATION_FAILED,
    NOT_IMPLEMENTED,
    QUERY_IS_TOO_LARGE,
    SESSION_IS_LOCKED,
    TOO_MANY_SIMULTANEOUS_QUERIES,
    UNKNOWN_FORMAT,
    Failure,
    Headers,
    Receive,
)
from meterhouse_store.engine import Call, Engine, EngineError, Summary
from meterhouse_store.statements import Refused, User

log = logging.getLogger(__name__)

QUERY_WAS_CANCELLED = 394
MAX_CONCURRENT: Mapping[User, int] = {"admin": 16, "reader": 4}
MAX_WAITING = 200
SEND_S = 60  # for a client to take a block of its answer
MAX_SESSIONS = 100
MAX_SESSION_S = 3600

# exceptionCodeToHTTPStatus of ClickHouse's HTTPHandler, for the codes that occur here; all others are 500.
_HTTP_STATUS = (
    dict.fromkeys((192, 193, 497, AUTHENTICATION_FAILED), 403)
    | dict.fromkeys((6, 26, 27, 36, 38, 41, 43, 53, 62, 69, 70, 72, 117, 130, 131, 164, 271, 321, 452, 456, 457), 400)
    | dict.fromkeys((16, 46, 47, 50, 56, 60, UNKNOWN_FORMAT, 81, 115), 404)
    | {QUERY_IS_TOO_LARGE: 413, NOT_IMPLEMENTED: 501, TOO_MANY_SIMULTANEOUS_QUERIES: 503}
)
_CONTENT_TYPES = {
    "TabSeparated": "text/tab-separated-values; charset=UTF-8",
    "TSV": "text/tab-separated-values; charset=UTF-8",
    "CSV": "text/csv; charset=UTF-8; header=absent",
    "JSON": "application/json; charset=UTF-8",
    "JSONCompact": "application/json; charset=UTF-8",
    "JSONEachRow": "application/x-ndjson; charset=UTF-8",
    "Native": "application/octet-stream",
}

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass
class _Session:
    handle: Any
    expires_at: float
    busy: bool = field(default=False)


class _ClientGone(Exception):
    """The client takes nothing of its answer any more."""


class _Lane:
    """The threads of one user, which no other can take: the projector never waits for a reader's questions."""

    def __init__(self, user: User) -> None:
        self._size = MAX_CONCURRENT[user]
        self._threads = ThreadPoolExecutor(self._size, thread_name_prefix=f"query-{user}")
        self._slots = asyncio.Semaphore(self._size)
        self._waiting = 0

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        if self._waiting >= MAX_WAITING:
            raise Failure(
                TOO_MANY_SIMULTANEOUS_QUERIES,
                f"Too many simultaneous queries: {self._size} run and {MAX_WAITING} wait. Try again in a second",
            )
        self._waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._slots.release()

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    def close(self) -> None:
        self._threads.shutdown(wait=True)


class Front:
    """The application; `users` maps `admin` and `reader` to their passwords, `log_access` is told of each request."""

    def __init__(
        self, engine: Engine, users: Mapping[str, str], log_access: Callable[[Entry], None] = lambda _entry: None
    ) -> None:
        unknown = set(users) - {"admin", "reader"}
        if unknown or not users or not all(users.values()):
            raise ValueError("the users of the embedded warehouse are admin and reader, each with a password")
        self._engine, self._log = engine, log_access
        self._users = dict(users)
        self._lanes: dict[User, _Lane] = {"admin": _Lane("admin"), "reader": _Lane("reader")}
        self._sessions: dict[tuple[str, str], _Session] = {}

    def close(self) -> None:
        """Wait for what runs, then close the sessions."""
        for lane in self._lanes.values():
            lane.close()
        for session in self._sessions.values():
            chdb_engine.close_handle(session.handle)
        self._sessions.clear()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise ValueError(f"only HTTP is served here, not {scope['type']}")
        path, method = scope["path"], scope["method"]
        if path in ("/ping", "/replicas_status") and method in ("GET", "HEAD"):
            await _reply(send, 200, {"content-type": "text/plain"}, b"Ok.\n")
        elif path == "/healthz" and method == "GET":
            await _reply(send, 200, {"content-type": "application/json"}, b'{"status": "ok"}\n')
        elif path == "/" and method in ("GET", "POST"):
            await self._query(scope, receive, send)
        else:
            body = b"There is no handle here: POST a query to /, with user and password. GET /ping to look.\n"
            await _reply(send, 404, {"content-type": "text/plain"}, body)

    async def _query(self, scope: Scope, receive: Receive, send: Send) -> None:
        entry = access_log.Entry(address=_address(scope))
        try:
            await self._answered(scope, receive, send, entry)
        finally:
            self._log(entry)

    async def _answered(self, scope: Scope, receive: Receive, send: Send, entry: Entry) -> None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        answer: Headers = {"x-clickhouse-server-display-name": "meterhouse", "x-clickhouse-timezone": "UTC"}
        try:
            url = requests.url_fields(scope["query_string"])
            answer["x-clickhouse-query-id"] = entry.query_id = requests.query_id(url)
            entry.client = headers.get("user-agent", "")
            entry.user = requests.credentials(headers, url)[0]
            user = self._authenticate(headers, url)
            requests.refuse_unsupported(headers, url)
            body = await requests.read_body(receive, headers, requests.body_limit(user))
            entry.received_bytes = len(body)
            async with self._lanes[user].slot():
                # In a thread: a large body takes long to decompress and to read.
                call = await self._lanes[user].run(self._call, user, url, headers, body, scope["method"] == "GET")
                del body
                entry.statement, entry.kind = call.statement.sql, call.statement.kind
                await self._answer(receive, send, call, url, answer, entry)
        except _ClientGone:
            entry.code = QUERY_WAS_CANCELLED
        except (Failure, Refused, EngineError) as problem:
            message, entry.code = str(problem), problem.code
            if isinstance(problem, Refused):
                message = f"Code: {problem.code}. DB::Exception: {message}"
            answer |= {"content-type": "text/plain; charset=UTF-8", "x-clickhouse-exception-code": str(problem.code)}
            if problem.code == TOO_MANY_SIMULTANEOUS_QUERIES:
                answer["retry-after"] = "1"
            await _reply(send, _HTTP_STATUS.get(problem.code, 500), answer, message.encode() + b"\n")

    def _authenticate(self, headers: Headers, url: Mapping[str, str]) -> User:
        name, password = requests.credentials(headers, url)
        expected = self._users.get(name, "")
        # Compared even where there is no such user, so that the time tells nothing.
        if not hmac.compare_digest(password.encode(), expected.encode()) or not expected:
            raise Failure(
                AUTHENTICATION_FAILED,
                f"{name[:64]}: Authentication failed: password is incorrect, or there is no user with such name. "
                "(AUTHENTICATION_FAILED)",
            )
        return cast(User, name)

    def _call(self, user: User, url: Mapping[str, str], headers: Headers, body: bytes, read_only: bool) -> Call:
        body = requests.decompressed(body, headers.get("content-encoding", ""), requests.body_limit(user))
        if requests.is_form(headers):
            url, body = {**url, **requests.form_fields(body, headers)}, b""
        query = url.get("query", "").encode()
        text = query if query else body
        if query and body:
            outline = statements.inspect(query, user, self._engine.unsafe_functions)
            if outline.insert_format and not query[outline.data_offset :].strip():
                return self._described(user, url, headers, outline, memoryview(body), read_only)
            text = query + b"\n" + body
        outline = statements.inspect(text, user, self._engine.unsafe_functions)
        data = memoryview(text)[outline.data_offset :] if outline.insert_format else memoryview(b"")
        return self._described(user, url, headers, outline, data, read_only)

    def _described(
        self,
        user: User,
        url: Mapping[str, str],
        headers: Headers,
        statement: statements.Statement,
        data: memoryview,
        read_only: bool,
    ) -> Call:
        database = url.get("database") or headers.get("x-clickhouse-database")
        if user == "reader" and database and database.lower() == "system":
            raise Failure(statements.ACCESS_DENIED, "reader: Not enough privileges: write system.NAME in the statement")
        if read_only and statement.kind == "INSERT":
            raise Failure(statements.READONLY, "Cannot execute query in readonly mode: use POST to change data")
        return Call(
            user=user,
            statement=statement,
            data=data,
            database=database,
            settings=requests.settings(url),
            parameters=requests.parameters(url),
            default_format=requests.default_format(url, headers),
            read_only=read_only,
            tag=secrets.token_hex(16),
        )

    async def _answer(
        self, receive: Receive, send: Send, call: Call, url: Mapping[str, str], answer: Headers, entry: Entry
    ) -> None:
        output = call.statement.output_format or call.default_format
        if call.statement.kind not in ("INSERT", "CREATE", "ALTER", "DROP", "SET", "USE", "SYSTEM"):
            answer |= {"x-clickhouse-format": output, "content-type": _CONTENT_TYPES.get(output, "text/plain")}
        streamed = (
            call.statement.kind in ("SELECT", "WITH", "(")
            and output in chdb_engine.STREAMED
            and url.get("wait_end_of_query", "0") != "1"
        )
        async with self._handle(call, url) as handle, self._killed_with_its_client(receive, call):
            if streamed:
                end = await self._stream(send, call, handle, answer, entry)
            else:
                body, summary = await self._lanes[call.user].run(self._engine.run, handle, call)
                entry.count(summary, len(body))
        # Only now, or a client's next request would find its session busy.
        if streamed:
            await send({"type": "http.response.body", "body": end})
        else:
            await _reply(send, 200, answer | {"x-clickhouse-summary": _summary(summary)}, body)

    @asynccontextmanager
    async def _killed_with_its_client(self, receive: Receive, call: Call) -> AsyncIterator[None]:
        """Stop the statement when its client hangs up: nobody would read the answer."""

        async def watch() -> None:
            if (await receive())["type"] != "http.disconnect":
                return
            try:
                await asyncio.to_thread(self._engine.kill, call.tag)
            except EngineError as problem:
                log.warning("a statement whose client is gone runs on: %s", problem)

        watcher = asyncio.create_task(watch())
        try:
            yield
        finally:
            watcher.cancel()
            await asyncio.wait([watcher])

    async def _stream(self, send: Send, call: Call, handle: Any, answer: Headers, entry: Entry) -> bytes:
        """Send the result block by block; returns what the body ends with."""
        blocks, lane = self._engine.stream(handle, call), self._lanes[call.user]
        tag = secrets.token_hex(8)
        try:
            # What fails before the first block is still an ordinary error.
            block = await lane.run(_next, blocks)
            started = {**answer, "x-clickhouse-exception-tag": tag, "x-clickhouse-summary": _summary(Summary())}
            await _start(send, 200, started)
            while block is not None:
                data, rows = block
                entry.result_bytes += len(data)
                entry.result_rows += rows
                await _send_in_time(send, {"type": "http.response.body", "body": data, "more_body": True})
                try:
                    block = await lane.run(_next, blocks)
                except EngineError as problem:
                    entry.code = problem.code
                    return _exception_block(str(problem), tag)
            return b""
        finally:
            await lane.run(_close, blocks)

    @asynccontextmanager
    async def _handle(self, call: Call, url: Mapping[str, str]) -> AsyncIterator[Any]:
        """A fresh handle, or the session's: state is kept for sessions of the admin that POST, nobody else has any."""
        lane, name = self._lanes[call.user], url.get("session_id")
        if not name or call.user != "admin" or call.read_only:
            handle = await lane.run(self._engine.handle)
            try:
                yield handle
            finally:
                await lane.run(chdb_engine.close_handle, handle)
            return
        session = await self._session((call.user, name))
        session.busy = True
        try:
            yield session.handle
        finally:
            await lane.run(self._engine.restore, session.handle, call)
            session.busy = False
            session.expires_at = time.monotonic() + min(_seconds(url.get("session_timeout")), MAX_SESSION_S)

    async def _session(self, key: tuple[str, str]) -> _Session:
        now = time.monotonic()
        idle = sorted(
            ((session.expires_at, name) for name, session in self._sessions.items() if not session.busy and name != key)
        )
        surplus = len(self._sessions) - MAX_SESSIONS + 1
        for position, (expires_at, name) in enumerate(idle):
            if expires_at < now or position < surplus:
                await self._lanes["admin"].run(chdb_engine.close_handle, self._sessions.pop(name).handle)
        if key not in self._sessions:
            handle = await self._lanes["admin"].run(self._engine.handle)
            self._sessions[key] = _Session(handle, now + 60)
        session = self._sessions[key]
        if session.busy:
            raise Failure(SESSION_IS_LOCKED, "Session is locked by a concurrent client. (SESSION_IS_LOCKED)")
        return session


async def _send_in_time(send: Send, message: MutableMapping[str, Any]) -> None:
    # A client that reads nothing would keep its slot for ever.
    try:
        async with asyncio.timeout(SEND_S):
            await send(message)
    except TimeoutError:
        raise _ClientGone from None


def _address(scope: Scope) -> str:
    return str(scope["client"][0]) if scope.get("client") else ""


def _seconds(text: str | None) -> int:
    return int(text) if text and text.isdigit() else 60


def _summary(summary: Summary) -> str:
    values = {name: str(value) for name, value in vars(summary).items()}
    return json.dumps(values | {"total_rows_to_read": "0", "result_bytes": "0", "elapsed_ns": "0"})


def _next(blocks: Iterator[tuple[bytes, int]]) -> tuple[bytes, int] | None:
    return next(blocks, None)


def _close(blocks: Any) -> None:
    blocks.close()


def _exception_block(message: str, tag: str) -> bytes:
    """How ClickHouse ends a stream that failed: the text and its length between two marks that carry the tag."""
    text = message.encode() + b"\n"
    mark = tag.encode()
    return b"\r\n__exception__\r\n%b\r\n%b%d %b\r\n__exception__\r\n" % (mark, text, len(text), mark)


async def _start(send: Send, status: int, headers: Headers) -> None:
    encoded = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})


async def _reply(send: Send, status: int, headers: Headers, body: bytes) -> None:
    await _start(send, status, headers | {"content-length": str(len(body))})
    await send({"type": "http.response.body", "body": body})
