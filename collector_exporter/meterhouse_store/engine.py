"""The embedded ClickHouse engine (chDB): one process per directory, a fresh handle per request, roles of its own.

chDB cannot CREATE USER, but it reads a users file like any ClickHouse. Its one user holds two roles; a request takes
the role of the HTTP user it came from, so the engine itself keeps `reader` to the views and both away from files and
other hosts. A handle costs a quarter of a millisecond and takes its settings with it when it is closed.

What no grant and no configuration of chDB covers is the function file() (the engine counts as clickhouse-local, so
user_files_path does not hold it) and INTO OUTFILE (done by chDB's client side): statements.py alone keeps those out.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import chdb

from meterhouse_store.endpoints import replace_private
from meterhouse_store.statements import Statement, User, unsafe_functions

INSERT_CHUNK = 4 * 1024 * 1024
READER_LIMITS = {
    "max_execution_time": "60",
    "max_result_rows": "1000000",
    "result_overflow_mode": "throw",
    "max_memory_usage": "4000000000",
}
# What the views set for themselves: a reader's query may set nothing, and neither may a view that it reads.
READER_VIEWS = {"do_not_merge_across_partitions_select_final": "1", "optimize_move_to_prewhere_if_final": "1"}
# Shapes of answers that clients ask for; all else that a reader's request sets is refused, because the engine takes the
# settings of a request before it knows about `readonly`.
READER_SETTINGS = frozenset(
    {"output_format_json_quote_64bit_integers", "output_format_json_quote_decimals", "output_format_write_statistics"}
    | {"output_format_json_quote_denormals", "output_format_json_named_tuples_as_objects", "session_timezone"}
    | {"output_format_arrow_string_as_string", "output_format_parquet_string_as_string", "log_comment"}
    | {"date_time_output_format", "http_write_exception_in_output_format", "join_use_nulls", "extremes"}
    # Rows of the answer, at most and from which on: Grafana's datasource sends its row limit with every query.
    | {"limit", "offset"}
)
# Formats whose blocks, one after the other, are one well-formed stream.
STREAMED = frozenset({"Native", "TabSeparated", "TSV", "CSV", "RowBinary", "JSONEachRow"})
_TAG = "log_comment"  # a setting that does nothing but stand beside the statement in system.processes
READONLY = 164
UNKNOWN_SETTING = 115
UNKNOWN_EXCEPTION = 1002

_SETTING = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

# fsync_*: without them a power cut took acknowledged rows and, in six of ten runs, a store that opened again. Whatever
# is lost can be projected again from the journals (the projector's checkpoints stand in the same store and are lost
# with it), but that takes hours at size, and with one insert a second the two calls cost next to nothing.
# ignore_empty_sql_security...: makes the default below part of every view: who may read a view reads through it.
_CONFIG = """<clickhouse>
  <users_config>{users}</users_config>
  <timezone>UTC</timezone>
  <ignore_empty_sql_security_in_create_view_query>0</ignore_empty_sql_security_in_create_view_query>
  <merge_tree><fsync_after_insert>1</fsync_after_insert><fsync_part_directory>1</fsync_part_directory></merge_tree>
</clickhouse>
"""
# async_insert is on by default in this version: acknowledged would not mean stored. The constraints: settings that name
# a file of this host, another host, or a language that statements.py does not read.
_USERS = """<clickhouse>
  <profiles><default>
    <async_insert>0</async_insert>
    <default_normal_view_sql_security>DEFINER</default_normal_view_sql_security>
    <format_schema_source>string</format_schema_source>
    <allow_introspection_functions>0</allow_introspection_functions>
    <constraints>{constraints}</constraints>
  </default></profiles>
  <quotas><default/></quotas>
  <roles><admin><grants>{admin}</grants></admin><reader><grants>{reader}</grants></reader></roles>
  <users><default>
    <password></password><networks><ip>::1</ip><ip>127.0.0.1</ip></networks>
    <profile>default</profile><quota>default</quota>
    <grants><query>GRANT admin</query><query>GRANT reader</query></grants>
  </default></users>
</clickhouse>
"""
_FIXED_SETTINGS = (
    "dialect",
    "default_normal_view_sql_security",
    "format_avro_schema_registry_url",
    "format_schema_source",
    "format_template_resultset",
    "format_template_row",
    "input_format_record_errors_file_path",
    "output_format_schema",
    "rename_files_after_processing",
)
_ADMIN_GRANTS = (
    "GRANT SELECT, INSERT, ALTER, CREATE DATABASE, CREATE TABLE, CREATE VIEW, CREATE TEMPORARY TABLE, DROP, TRUNCATE, "
    "OPTIMIZE, CHECK, SHOW, SYSTEM FLUSH, SYSTEM SYNC REPLICA, SYSTEM VIEWS ON *.*",
    "GRANT SET DEFINER ON default",
)


class EngineError(Exception):
    """The engine's own error: `code` is ClickHouse's."""

    def __init__(self, message: str) -> None:
        found = re.search(r"Code: (\d+)\. ", message)
        super().__init__(message[found.start() :] if found else message)
        self.code = int(found.group(1)) if found else UNKNOWN_EXCEPTION


@dataclass(frozen=True)
class Call:
    """One statement with what the request says beside it; `settings` and `parameters` as text."""

    user: User
    statement: Statement
    data: memoryview
    database: str | None
    settings: Mapping[str, str]
    parameters: Mapping[str, str]
    default_format: str
    read_only: bool
    tag: str = ""
    """What `Engine.kill` finds the statement by while it runs."""


@dataclass(frozen=True)
class Summary:
    """What a statement read and wrote."""

    read_rows: int = 0
    read_bytes: int = 0
    written_rows: int = 0
    written_bytes: int = 0
    result_rows: int = 0


class Engine:
    """The store in a directory. Threads may call it at the same time; the process must not fork once it is open."""

    def __init__(self, directory: Path, database: str) -> None:
        """Open or create the store; `database` is the one whose views the reader may read.

        Raises EngineError where it cannot be opened: another process has it, or it is damaged.
        """
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", database):
            raise ValueError(f"a database is named by letters, digits and _, not {database!r}")
        if re.search(r"[?&%#<]", str(directory)):
            raise ValueError(f"the data directory's name has a character that chDB cannot take: {directory}")
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        config = _write_config(directory.with_name(directory.name + "-config"), database)
        self._address = f"{directory}?config-file={config}"
        self._root = _connect(self._address)  # keeps the store open between requests
        with _errors():
            names = self._root.query("SELECT name FROM system.table_functions", "TSV").bytes().decode().split()
        self.unsafe_functions = unsafe_functions(frozenset(names))

    def close(self) -> None:
        """Close the store; no call may be running."""
        self._root.close()

    def handle(self) -> Any:
        """A handle of one's own, to be closed by `close_handle`."""
        return _connect(self._address)

    def run(self, handle: Any, call: Call) -> tuple[bytes, Summary]:
        """Run a statement to its end on a handle that nobody else uses now. Raises EngineError."""
        self._prepare(handle, call)
        with _errors():
            if call.statement.insert_format is not None:
                return b"", _insert(handle, call)
            result = handle.query(call.statement.sql, call.default_format, params=dict(call.parameters))
            return result.bytes(), Summary(
                read_rows=result.storage_rows_read(),
                read_bytes=result.storage_bytes_read(),
                written_rows=getattr(result, "rows_written", int)(),
                written_bytes=getattr(result, "bytes_written", int)(),
                result_rows=result.rows_read(),
            )

    def kill(self, tag: str) -> None:
        """Have the statement of this tag stop, if it still runs. Raises EngineError."""
        handle = self.handle()
        try:
            with _errors():
                handle.query(f"KILL QUERY WHERE Settings['{_TAG}'] = {_quoted(tag)} ASYNC")
        finally:
            close_handle(handle)

    def stream(self, handle: Any, call: Call) -> Iterator[tuple[bytes, int]]:
        """The result of a query in blocks, each with its rows; its format must be one of STREAMED.

        Raises EngineError, maybe in between.
        """
        self._prepare(handle, call)
        with _errors():
            blocks = handle.send_query(call.statement.sql, call.default_format, params=dict(call.parameters))
            try:
                for block in blocks:
                    yield block.bytes(), block.rows_read()
            finally:
                blocks.close()

    def _prepare(self, handle: Any, call: Call) -> None:
        with _errors():
            settings = _reader_settings(call.settings) if call.user == "reader" else dict(call.settings)
            for name in settings:
                if not _SETTING.fullmatch(name):
                    raise EngineError(
                        f"Code: {UNKNOWN_SETTING}. DB::Exception: Unknown setting {name!r} (UNKNOWN_SETTING)"
                    )
            if call.tag:
                settings[_TAG] = call.tag
            first = [f"SET {name} = {_quoted(value)}" for name, value in settings.items()]
            if call.database:
                first.append(f"USE {_name(call.database)}")
            # The engine's own guard; readonly comes last because it forbids changing settings.
            first.append(f"SET ROLE {call.user}")
            if call.user == "reader":
                first.append("SET readonly = 1")
            elif call.read_only:
                first.append("SET readonly = 2")
            handle.query("; ".join(first))  # at once: each by itself takes the engine a fifth of a millisecond

    def restore(self, handle: Any, call: Call) -> None:
        """Take a call's settings from a handle that is kept for a session."""
        for name in call.settings:
            try:
                with _errors():
                    handle.query(f"SET {name} = DEFAULT")
            except EngineError as problem:
                if problem.code != UNKNOWN_SETTING:  # the call was refused for it
                    raise


def _reader_settings(asked: Mapping[str, str]) -> dict[str, str]:
    """What of a reader's settings is taken: a limit may be lowered, never lifted."""
    for name in asked:
        if name not in READER_SETTINGS and name not in READER_LIMITS:
            raise EngineError(
                f"Code: {READONLY}. DB::Exception: Cannot modify {name[:64]!r} setting in readonly mode (READONLY)"
            )
    limits = {name: _lower(asked.get(name, ""), limit) for name, limit in READER_LIMITS.items()}
    return dict(asked) | READER_VIEWS | limits


def _lower(asked: str, limit: str) -> str:
    numbers = re.fullmatch(r"[0-9]{1,18}", asked) and limit.isdecimal()
    return asked if numbers and 0 < int(asked) < int(limit) else limit


def close_handle(handle: Any) -> None:
    """Close a handle of `Engine.handle`."""
    handle.close()


def readable_views() -> list[str]:
    """The views that the schema defines: what a reader may read."""
    pattern = re.compile(r"CREATE\s+(?:OR\s+REPLACE\s+)?VIEW\s+(?:IF\s+NOT\s+EXISTS\s+)?\{database\}\.(\w+)", re.I)
    scripts = [file for file in (files("meterhouse_store") / "schema").iterdir() if file.name.endswith(".sql")]
    return sorted({name for file in scripts for name in pattern.findall(file.read_text(encoding="utf-8"))})


def _insert(handle: Any, call: Call) -> Summary:
    inserter = handle.send_insert(call.statement.sql, call.statement.insert_format)
    finished = False
    try:
        for start in range(0, len(call.data), INSERT_CHUNK):
            inserter.append(bytes(call.data[start : start + INSERT_CHUNK]))
        written = inserter.finish()
        finished = True
    finally:
        if not finished:
            inserter.cancel()
    return Summary(written_rows=written.rows_written, written_bytes=written.bytes_written)


def _connect(address: str) -> Any:
    connect: Any = chdb.connect  # typed in some releases only
    with _errors():
        return connect(address)


@contextmanager
def _errors() -> Iterator[None]:
    """chDB reports an engine's error as RuntimeError, or its subclass ChdbError, with ClickHouse's text."""
    try:
        yield
    except RuntimeError as problem:
        raise EngineError(str(problem)) from None


def _write_config(folder: Path, database: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    users, config = folder / "users.xml", folder / "config.xml"
    reader = [f"GRANT SELECT ON {database}.{view}" for view in readable_views()]
    replace_private(
        users,
        _USERS.format(
            constraints="".join(f"<{name}><readonly/></{name}>" for name in _FIXED_SETTINGS),
            admin="".join(f"<query>{grant}</query>" for grant in _ADMIN_GRANTS),
            reader="".join(f"<query>{grant}</query>" for grant in reader),
        ),
    )
    replace_private(config, _CONFIG.format(users=users))
    return config


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _name(identifier: str) -> str:
    return "`" + identifier.replace("\\", "\\\\").replace("`", "\\`") + "`"
