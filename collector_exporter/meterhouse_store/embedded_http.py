"""ClickHouse's HTTP interface over the embedded engine, as an ASGI application.

What the real interface does and clients rely on: authentication, queries in the URL and the body, settings and
`param_*` in the URL, sessions, compressed requests, streamed results, error codes in X-ClickHouse-Exception-Code.
Refused with a clear code: external data (multipart), `role`, and ClickHouse's own block compression (`compress=1`).
Answers are not compressed: the client is on the same host.
"""

import asyncio
import base64
import binascii
import hmac
import json
import secrets
import time
import uuid
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import parse_qsl

from meterhouse_store import engine as chdb_engine
from meterhouse_store import statements
from meterhouse_store.engine import Call, Engine, EngineError, Summary
from meterhouse_store.statements import Refused, User

MAX_BODY = 256 * 1024 * 1024
MAX_CONCURRENT = 16
MAX_WAITING = 200
MAX_SESSIONS = 100
MAX_SESSION_S = 3600
MAX_URL_FIELDS = 1000

BAD_ARGUMENTS = 36
NOT_IMPLEMENTED = 48
CANNOT_DECOMPRESS = 271
TOO_MANY_SIMULTANEOUS_QUERIES = 202
SESSION_IS_LOCKED = 373
QUERY_IS_TOO_LARGE = 223
AUTHENTICATION_FAILED = 516

# exceptionCodeToHTTPStatus of ClickHouse's HTTPHandler, for the codes that occur here; all others are 500.
_HTTP_STATUS = (
    dict.fromkeys((192, 193, 497, AUTHENTICATION_FAILED), 403)
    | dict.fromkeys((6, 26, 27, 36, 38, 41, 43, 53, 62, 69, 70, 72, 117, 130, 131, 164, 271, 321, 452, 456, 457), 400)
    | dict.fromkeys((16, 46, 47, 50, 56, 60, 81, 115), 404)
    | {QUERY_IS_TOO_LARGE: 413, NOT_IMPLEMENTED: 501, TOO_MANY_SIMULTANEOUS_QUERIES: 503}
)
# Of the transport, not settings of the engine; send_progress and the like have no meaning here.
_TRANSPORT = frozenset(
    {"query", "database", "default_format", "session_id", "session_timeout", "session_check", "query_id", "user"}
    | {"password", "quota_key", "wait_end_of_query", "buffer_size", "client_protocol_version", "stacktrace"}
    | {"send_progress_in_http_headers", "http_headers_progress_interval_ms", "enable_http_compression"}
    | {"cancel_http_readonly_queries_on_client_close", "add_http_cors_header", "compress", "decompress", "role"}
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
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = dict[str, str]


class _Failure(Exception):
    """A request that is answered with a ClickHouse error code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"Code: {code}. DB::Exception: {message}")
        self.code = code


@dataclass
class _Session:
    handle: Any
    expires_at: float
    busy: bool = field(default=False)


class Front:
    """The application; `users` maps `admin` and `reader` to their passwords."""

    def __init__(self, engine: Engine, users: Mapping[str, str]) -> None:
        unknown = set(users) - {"admin", "reader"}
        if unknown or not users or not all(users.values()):
            raise ValueError("the users of the embedded warehouse are admin and reader, each with a password")
        self._engine = engine
        self._users = dict(users)
        self._threads = ThreadPoolExecutor(MAX_CONCURRENT, thread_name_prefix="query")
        self._slots = asyncio.Semaphore(MAX_CONCURRENT)
        self._waiting = 0
        self._sessions: dict[tuple[str, str], _Session] = {}

    def close(self) -> None:
        """Wait for what runs, then close the sessions."""
        self._threads.shutdown(wait=True)
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
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        answer: Headers = {"x-clickhouse-server-display-name": "meterhouse", "x-clickhouse-timezone": "UTC"}
        try:
            url = _url_fields(scope["query_string"])
            answer["x-clickhouse-query-id"] = url.get("query_id") or str(uuid.uuid4())
            user = self._authenticate(headers, url)
            _refuse_unsupported(headers, url)
            body = _decompressed(await _read(receive, headers), headers.get("content-encoding", ""))
            call = self._call(user, url, headers, body, read_only=scope["method"] == "GET")
            async with self._slot():
                await self._answer(send, call, url, answer)
        except (_Failure, Refused, EngineError) as problem:
            message = str(problem)
            if isinstance(problem, Refused):
                message = f"Code: {problem.code}. DB::Exception: {message}"
            answer |= {"content-type": "text/plain; charset=UTF-8", "x-clickhouse-exception-code": str(problem.code)}
            if problem.code == TOO_MANY_SIMULTANEOUS_QUERIES:
                answer["retry-after"] = "1"
            await _reply(send, _HTTP_STATUS.get(problem.code, 500), answer, message.encode() + b"\n")

    def _authenticate(self, headers: Headers, url: Mapping[str, str]) -> User:
        name, password = _credentials(headers, url)
        expected = self._users.get(name, "")
        # Compared even where there is no such user, so that the time tells nothing.
        if not hmac.compare_digest(password.encode(), expected.encode()) or not expected:
            raise _Failure(
                AUTHENTICATION_FAILED,
                f"{name[:64]}: Authentication failed: password is incorrect, or there is no user with such name. "
                "(AUTHENTICATION_FAILED)",
            )
        return cast(User, name)

    def _call(self, user: User, url: Mapping[str, str], headers: Headers, body: bytes, *, read_only: bool) -> Call:
        query = url.get("query", "").encode()
        text = query if query else body
        if query and body:
            outline = statements.inspect(query, user, self._engine.unsafe_functions)
            if outline.insert_format and not query[outline.data_offset :].strip():
                return self._described(user, url, headers, outline, b"", memoryview(body), read_only)
            text = query + b"\n" + body
        outline = statements.inspect(text, user, self._engine.unsafe_functions)
        data = memoryview(text)[outline.data_offset :] if outline.insert_format else memoryview(b"")
        return self._described(user, url, headers, outline, text, data, read_only)

    def _described(
        self,
        user: User,
        url: Mapping[str, str],
        headers: Headers,
        statement: statements.Statement,
        text: bytes,
        data: memoryview,
        read_only: bool,
    ) -> Call:
        try:
            decoded = "" if statement.insert_format else text.decode()
        except UnicodeDecodeError:
            raise _Failure(statements.SYNTAX_ERROR, "the statement is not UTF-8") from None
        if read_only and statement.kind == "INSERT":
            raise _Failure(statements.READONLY, "Cannot execute query in readonly mode: use POST to change data")
        return Call(
            user=user,
            statement=statement,
            text=decoded,
            data=data,
            database=url.get("database") or headers.get("x-clickhouse-database"),
            settings={
                name: value for name, value in url.items() if name not in _TRANSPORT and not name.startswith("param_")
            },
            parameters={name[6:]: value for name, value in url.items() if name.startswith("param_")},
            default_format=url.get("default_format") or headers.get("x-clickhouse-format") or "TabSeparated",
            read_only=read_only,
        )

    async def _answer(self, send: Send, call: Call, url: Mapping[str, str], answer: Headers) -> None:
        output = call.statement.output_format or call.default_format
        if call.statement.kind not in ("INSERT", "CREATE", "ALTER", "DROP", "SET", "USE", "SYSTEM"):
            answer |= {"x-clickhouse-format": output, "content-type": _CONTENT_TYPES.get(output, "text/plain")}
        streamed = (
            call.statement.kind in ("SELECT", "WITH", "(")
            and output in chdb_engine.STREAMED
            and url.get("wait_end_of_query", "0") != "1"
        )
        async with self._handle(call, url) as handle:
            if streamed:
                end = await self._stream(send, call, handle, answer)
            else:
                body, summary = await self._in_thread(self._engine.run, handle, call)
        # Only now, or a client's next request would find its session busy.
        if streamed:
            await send({"type": "http.response.body", "body": end})
        else:
            await _reply(send, 200, answer | {"x-clickhouse-summary": _summary(summary)}, body)

    async def _stream(self, send: Send, call: Call, handle: Any, answer: Headers) -> bytes:
        """Send the result block by block; returns what the body ends with."""
        blocks = self._engine.stream(handle, call)
        tag = secrets.token_hex(8)
        try:
            # What fails before the first block is still an ordinary error.
            block = await self._in_thread(_next, blocks)
            started = {**answer, "x-clickhouse-exception-tag": tag, "x-clickhouse-summary": _summary(Summary())}
            await _start(send, 200, started)
            while block is not None:
                await send({"type": "http.response.body", "body": block, "more_body": True})
                try:
                    block = await self._in_thread(_next, blocks)
                except EngineError as problem:
                    return _exception_block(str(problem), tag)
            return b""
        finally:
            await self._in_thread(_close, blocks)

    @asynccontextmanager
    async def _handle(self, call: Call, url: Mapping[str, str]) -> AsyncIterator[Any]:
        """A fresh handle, or the session's: state is kept for sessions of the admin that POST, nobody else has any."""
        name = url.get("session_id")
        if not name or call.user != "admin" or call.read_only:
            handle = await self._in_thread(self._engine.handle)
            try:
                yield handle
            finally:
                await self._in_thread(chdb_engine.close_handle, handle)
            return
        session = await self._session((call.user, name))
        session.busy = True
        try:
            yield session.handle
        finally:
            await self._in_thread(self._engine.restore, session.handle, call)
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
                await self._in_thread(chdb_engine.close_handle, self._sessions.pop(name).handle)
        if key not in self._sessions:
            handle = await self._in_thread(self._engine.handle)
            self._sessions[key] = _Session(handle, now + 60)
        session = self._sessions[key]
        if session.busy:
            raise _Failure(SESSION_IS_LOCKED, "Session is locked by a concurrent client. (SESSION_IS_LOCKED)")
        return session

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        if self._waiting >= MAX_WAITING:
            raise _Failure(
                TOO_MANY_SIMULTANEOUS_QUERIES,
                f"Too many simultaneous queries: {MAX_CONCURRENT} run and {MAX_WAITING} wait. Try again in a second",
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

    async def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)


async def _read(receive: Receive, headers: Headers) -> bytes:
    declared = headers.get("content-length", "")
    size = int(declared) if declared.isdigit() else 0
    parts: list[bytes] = []
    received = 0
    while max(size, received) <= MAX_BODY:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Failure(BAD_ARGUMENTS, "the request broke off")
        parts.append(message.get("body", b""))
        received += len(parts[-1])
        if not message.get("more_body"):
            return b"".join(parts)
    raise _Failure(QUERY_IS_TOO_LARGE, f"a request has at most {MAX_BODY} bytes: send it in several")


def _decompressed(body: bytes, encoding: str) -> bytes:
    if not encoding or encoding == "identity":
        return body
    out = bytearray()
    rest = body
    try:
        while rest:
            decoder = _decoder(encoding)
            out += decoder.decompress(rest, MAX_BODY + 1 - len(out))
            if len(out) > MAX_BODY:
                raise _Failure(QUERY_IS_TOO_LARGE, f"a request has at most {MAX_BODY} bytes when it is decompressed")
            if not decoder.eof:
                raise _Failure(CANNOT_DECOMPRESS, f"the {encoding} body ends too early")
            rest = decoder.unused_data or b""
    except _Failure:
        raise
    except Exception as problem:  # noqa: BLE001 - zlib, lz4 and zstd raise classes of their own for damaged data
        raise _Failure(CANNOT_DECOMPRESS, f"the body is not {encoding}: {problem}") from None
    return bytes(out)


def _decoder(encoding: str) -> Any:
    if encoding in ("gzip", "deflate"):
        return zlib.decompressobj(wbits=47)  # 47: zlib or gzip, whichever it is
    if encoding == "lz4":
        import lz4.frame  # type: ignore[import-untyped]

        return lz4.frame.LZ4FrameDecompressor()
    if encoding == "zstd":
        from backports import zstd

        return zstd.ZstdDecompressor()
    raise _Failure(NOT_IMPLEMENTED, f"Content-Encoding {encoding[:20]!r} is not known: use gzip, deflate, lz4 or zstd")


def _url_fields(query_string: bytes) -> dict[str, str]:
    try:
        fields = parse_qsl(
            query_string.decode("ascii"), keep_blank_values=True, max_num_fields=MAX_URL_FIELDS, errors="strict"
        )
    except ValueError as problem:
        raise _Failure(BAD_ARGUMENTS, f"the URL cannot be read: {problem}") from None
    return dict(fields)


def _credentials(headers: Headers, url: Mapping[str, str]) -> tuple[str, str]:
    if "x-clickhouse-user" in headers:
        return headers["x-clickhouse-user"], headers.get("x-clickhouse-key", "")
    scheme, _, encoded = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            name, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return "", ""
        return name, password
    return url.get("user", "default"), url.get("password", "")


def _refuse_unsupported(headers: Headers, url: Mapping[str, str]) -> None:
    if headers.get("content-type", "").startswith("multipart/"):
        raise _Failure(NOT_IMPLEMENTED, "external data and form-encoded queries are not served by the embedded engine")
    for name in ("compress", "decompress"):
        if url.get(name, "0") not in ("0", "false", ""):
            raise _Failure(NOT_IMPLEMENTED, f"{name}=1 (block compression) is not served: use Content-Encoding")
    if url.get("role"):
        raise _Failure(statements.ACCESS_DENIED, "roles cannot be chosen here")


def _seconds(text: str | None) -> int:
    return int(text) if text and text.isdigit() else 60


def _summary(summary: Summary) -> str:
    values = {name: str(value) for name, value in vars(summary).items()}
    return json.dumps(values | {"total_rows_to_read": "0", "result_bytes": "0", "elapsed_ns": "0"})


def _next(blocks: Iterator[bytes]) -> bytes | None:
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
