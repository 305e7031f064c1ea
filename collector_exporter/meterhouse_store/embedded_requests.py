"""What a request to ClickHouse's HTTP interface says: its URL, head and body, refused where they are not served.

`url` is the fields of the query string, `headers` has lower-case names. Everything here raises Failure.
"""

import base64
import binascii
import email.parser
import email.policy
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import parse_qsl

from meterhouse_store import compression, statements
from meterhouse_store.statements import User

MAX_BODY = 256 * 1024 * 1024
MAX_READER_BODY = 1024 * 1024
MAX_URL_FIELDS = 1000

BAD_ARGUMENTS = 36
UNKNOWN_FORMAT = 73
NOT_IMPLEMENTED = 48
CANNOT_DECOMPRESS = 271
TOO_MANY_SIMULTANEOUS_QUERIES = 202
SESSION_IS_LOCKED = 373
QUERY_IS_TOO_LARGE = 223
AUTHENTICATION_FAILED = 516

# Of the transport, not settings of the engine; send_progress and the like have no meaning here.
_TRANSPORT = frozenset(
    {"query", "database", "default_format", "session_id", "session_timeout", "session_check", "query_id", "user"}
    | {"password", "quota_key", "wait_end_of_query", "buffer_size", "client_protocol_version", "stacktrace"}
    | {"send_progress_in_http_headers", "http_headers_progress_interval_ms", "enable_http_compression"}
    | {"cancel_http_readonly_queries_on_client_close", "add_http_cors_header", "compress", "decompress", "role"}
)
# chDB would answer with an object of Python's.
_PYTHON_FORMATS = frozenset({"arrowtable", "dataframe", "datastore"})

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Headers = dict[str, str]


class Failure(Exception):
    """A request that is answered with a ClickHouse error code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"Code: {code}. DB::Exception: {message}")
        self.code = code


def body_limit(user: User) -> int:
    """The most bytes of a body, compressed or not."""
    return MAX_BODY if user == "admin" else MAX_READER_BODY


async def read_body(receive: Receive, headers: Headers, limit: int) -> bytes:
    """The body as it came; it has the length that the head declares."""
    declared = headers.get("content-length", "")
    size = int(declared) if re.fullmatch(r"[0-9]{1,18}", declared) else 0
    parts: list[bytes] = []
    received = 0
    while max(size, received) <= limit:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Failure(BAD_ARGUMENTS, "the request broke off")
        parts.append(message.get("body", b""))
        received += len(parts[-1])
        if not message.get("more_body"):
            if declared and received != size:
                raise Failure(BAD_ARGUMENTS, f"Content-Length is {declared}, but {received} bytes came")
            return b"".join(parts)
    raise Failure(QUERY_IS_TOO_LARGE, f"a request has at most {limit} bytes: send it in several")


def decompressed(body: bytes, encoding: str, limit: int) -> bytes:
    """The body without its Content-Encoding."""
    try:
        return compression.decompress(body, encoding, limit)
    except compression.UnknownEncoding as problem:
        raise Failure(NOT_IMPLEMENTED, str(problem)) from None
    except compression.BadCompression as problem:
        raise Failure(CANNOT_DECOMPRESS, str(problem)) from None
    except compression.TooLarge as problem:
        raise Failure(QUERY_IS_TOO_LARGE, f"{problem}: send it in several") from None


def query_id(url: Mapping[str, str]) -> str:
    """The id that the client chose, where a header can carry it, or a new one."""
    asked = url.get("query_id", "")
    return asked if re.fullmatch(r"[!-~]{1,200}", asked) else str(uuid.uuid4())


def settings(url: Mapping[str, str]) -> dict[str, str]:
    """The settings of the engine."""
    return {name: value for name, value in url.items() if name not in _TRANSPORT and not name.startswith("param_")}


def parameters(url: Mapping[str, str]) -> dict[str, str]:
    """The values of a statement's `{name:Type}`."""
    found = {name[6:]: value for name, value in url.items() if name.startswith("param_")}
    for name in found:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise Failure(BAD_ARGUMENTS, f"a parameter is named by letters, digits and _, not {name[:64]!r}")
    return found


def default_format(url: Mapping[str, str], headers: Headers) -> str:
    """The format of an answer whose statement names none."""
    name = url.get("default_format") or headers.get("x-clickhouse-format") or "TabSeparated"
    if not re.fullmatch(r"[A-Za-z0-9]+", name) or name.lower() in _PYTHON_FORMATS:
        raise Failure(UNKNOWN_FORMAT, f"Unknown format {name[:64]} (UNKNOWN_FORMAT)")
    return name


def url_fields(query_string: bytes) -> dict[str, str]:
    """The query string's fields; of a repeated one the last."""
    try:
        fields = parse_qsl(
            query_string.decode("ascii"), keep_blank_values=True, max_num_fields=MAX_URL_FIELDS, errors="strict"
        )
    except ValueError as problem:
        raise Failure(BAD_ARGUMENTS, f"the URL cannot be read: {problem}") from None
    return dict(fields)


def credentials(headers: Headers, url: Mapping[str, str]) -> tuple[str, str]:
    """(user, password), from any of ClickHouse's three places."""
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


def is_form(headers: Headers) -> bool:
    """Whether the body is a form of fields, as clients send a statement with long parameters."""
    return headers.get("content-type", "").lower().startswith("multipart/form-data")


def form_fields(body: bytes, headers: Headers) -> dict[str, str]:
    """The fields of a multipart form; a file among them would be external data, which is not served."""
    head = f"Content-Type: {headers['content-type']}\r\n\r\n".encode("latin-1", "replace")
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
    if not message.is_multipart():
        raise Failure(BAD_ARGUMENTS, "the form cannot be read: it has no parts, or another boundary than it says")
    fields: dict[str, str] = {}
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        if not isinstance(name, str) or part.get_filename() is not None:
            raise Failure(NOT_IMPLEMENTED, "external data is not served by the embedded engine")
        if len(fields) >= MAX_URL_FIELDS:
            raise Failure(BAD_ARGUMENTS, f"a form has at most {MAX_URL_FIELDS} fields")
        try:
            fields[name] = bytes(part.get_payload(decode=True) or b"").decode()
        except UnicodeDecodeError:
            raise Failure(BAD_ARGUMENTS, f"the form's field {name[:64]!r} is not UTF-8") from None
    if outside := [name for name in fields if name != "query" and not name.startswith("param_")]:
        # Who asks, and with which settings, is in the URL and the head alone.
        raise Failure(NOT_IMPLEMENTED, f"the form's field {outside[0][:64]!r} is not served: put it into the URL")
    return fields


def refuse_unsupported(headers: Headers, url: Mapping[str, str]) -> None:
    """Raise Failure for what the embedded engine does not serve."""
    if headers.get("content-type", "").startswith("multipart/") and not is_form(headers):
        raise Failure(NOT_IMPLEMENTED, "of multipart bodies only multipart/form-data is served")
    for name in ("compress", "decompress"):
        if url.get(name, "0") not in ("0", "false", ""):
            raise Failure(NOT_IMPLEMENTED, f"{name}=1 (block compression) is not served: use Content-Encoding")
    if url.get("role"):
        raise Failure(statements.ACCESS_DENIED, "roles cannot be chosen here")
