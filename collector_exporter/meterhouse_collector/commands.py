"""The commands `collector`, `warehouse` and `suspense`. What they do is elsewhere; here they meet the terminal."""

import json
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

    from meterhouse_store.settings import Settings
collector = typer.Typer(
    help="Receive usage over OTLP and keep it: the journal and what projects it into ClickHouse.",
    no_args_is_help=True,
    add_completion=False,
)
warehouse = typer.Typer(
    help="The ClickHouse side: serve the embedded engine, migrate, query, rebuild.",
    no_args_is_help=True,
    add_completion=False,
)
suspense = typer.Typer(
    help="Usage that was received and does not count, each with its reason.",
    no_args_is_help=True,
    add_completion=False,
)

Data = Annotated[Path | None, typer.Option("--data", help="Data directory of `up` (METERHOUSE_DATA).")]
Json = Annotated[bool, typer.Option("--json", help="For machines: one JSON document.")]
Host = Annotated[str, typer.Option(help="Address to listen on.")]

# Records that could not be decoded have no namespace: they are everybody's concern.
_SUSPENDED_COUNT = "SELECT count() FROM suspense WHERE namespace IN ({namespace:String}, '')"
_SUSPENDED = """
    SELECT received_at, reason, customer_id, meter, quantity, raw_value, event_time, event_id, agent_name
    FROM suspense WHERE namespace IN ({namespace:String}, '')
    ORDER BY received_at DESC, event_id LIMIT {limit:UInt32}
"""

DONE, FAILED, CALLED_WRONGLY, EXCEPTIONS = 0, 1, 2, 3


@collector.callback()
def _collector() -> None:
    """Receive usage over OTLP and keep it: the journal and what projects it into ClickHouse."""


@collector.command("serve")
def collector_serve(
    data: Data = None,
    host: Host = "127.0.0.1",
    http_port: Annotated[int, typer.Option(help="OTLP/HTTP, allowance, health; 0: a free one.")] = 4318,
    grpc_port: Annotated[int, typer.Option(help="OTLP/gRPC; 0: a free one.")] = 4317,
) -> None:
    """Run the collector until it is told to stop. Requests are acknowledged also while the warehouse is down.

    The journal is DATA/journal, one collector per directory. The warehouse is METERHOUSE_WAREHOUSE_URL, else the
    embedded engine that `meterhouse up` started in DATA.
    """
    from meterhouse_collector.service import serve

    raise typer.Exit(serve(_settings(data), host, http_port, grpc_port))


@warehouse.command("serve")
def warehouse_serve(
    data: Data = None,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(help="ClickHouse HTTP.")] = 8123,
) -> None:
    """Serve the embedded ClickHouse engine of DATA over ClickHouse's HTTP interface.

    Passwords of the users admin and reader: METERHOUSE_WAREHOUSE_ADMIN_PASSWORD and
    METERHOUSE_WAREHOUSE_READER_PASSWORD, else the ones in DATA/run/secrets.json that `meterhouse up` made.
    """
    from meterhouse_store import embedded

    settings = _settings(data)
    embedded.serve(settings.data, host, port, _warehouse_users(settings.data))


@warehouse.command("migrate")
def warehouse_migrate(data: Data = None) -> None:
    """Create the database, tables and views that are missing. May be run again."""
    from meterhouse_store import schema

    settings = _settings(data)
    schema.migrate(_client(settings, database="default"), settings.warehouse_database)
    print(f"database {settings.warehouse_database} is up to date")


@warehouse.command("rebuild")
def warehouse_rebuild(
    data: Data = None,
    as_json: Json = False,
    force: Annotated[bool, typer.Option("--force", help="Exchange them also where a total gets lower.")] = False,
) -> None:
    """Replay the journal into a new database, compare it with the live one, and put it in its place.

    The collector may go on running. Exit code 0: the totals are identical; 3: they were not, the differences are
    printed and the old tables are kept in the database METERHOUSE_WAREHOUSE_DATABASE + "_rebuild". Where a total gets
    lower the journal may lack something: the live tables stay and the rebuilt ones are kept there, unless --force says
    that they are right.
    """
    from meterhouse_collector import rebuild as work
    from meterhouse_collector.service import journal_directory
    from meterhouse_store import sql

    settings = _existing(data)
    try:
        result = work.rebuild(
            journal_directory(settings.data),
            lambda name: _client(settings, database=name),
            sql.open_engine(settings),
            settings.warehouse_database,
            lambda text: print(text, file=sys.stderr),
            force=force,
        )
    except work.CannotRebuild as problem:
        raise _failed(str(problem)) from None
    if as_json:
        print(json.dumps({name: getattr(result, name) for name in result.__slots__}))
    else:
        print(f"live     {result.live_sha256}")
        print(f"rebuilt  {result.rebuilt_sha256}  {result.events} events, {result.suspended} in suspense")
        for line in result.differences:
            print(f"differs: {line}")
        if not result.differences:
            print("identical")
        elif result.exchanged:
            print(f"not identical: the old tables are kept in {result.kept_as}")
        else:
            print(
                f"nothing was exchanged, because a total would get lower: the rebuilt tables are in {result.kept_as}; "
                "--force puts them in place"
            )
    raise typer.Exit(EXCEPTIONS if result.differences else DONE)


@warehouse.command("status")
def warehouse_status(data: Data = None, as_json: Json = False) -> None:
    """Show how much is in the warehouse and how far each collector's journal is projected.

    Exit code 3 when a collector's is more than a minute behind.
    """
    from meterhouse_collector.projection import BEHIND_S

    client = _client(_existing(data))
    totals = client.query("SELECT namespace, count() FROM usage GROUP BY 1 ORDER BY 1").result_rows
    held = client.query("SELECT namespace, reason, count() FROM suspense GROUP BY 1, 2 ORDER BY 1, 2").result_rows
    marks = client.query("SELECT collector_id, segment, position, projected_through FROM watermark").result_rows
    now = datetime.now(UTC).replace(tzinfo=None)
    behind = {row[0]: lag_s for row in marks if (lag_s := (now - row[3]).total_seconds()) > BEHIND_S}
    if as_json:
        print(
            json.dumps(
                {
                    "usage": [{"namespace": row[0], "events": row[1]} for row in totals],
                    "suspense": [{"namespace": row[0], "reason": row[1], "rows": row[2]} for row in held],
                    "watermark": [
                        {
                            "collector_id": row[0],
                            "segment": row[1],
                            "position": row[2],
                            "projected_through": _iso(row[3]),
                            "behind": row[0] in behind,
                        }
                        for row in marks
                    ],
                }
            )
        )
        raise typer.Exit(EXCEPTIONS if behind else DONE)
    _table(
        ["namespace", "state", "events"], [(r[0], "usage", r[1]) for r in totals] + [(r[0], r[1], r[2]) for r in held]
    )
    print()
    _table(["collector", "projected through", "segment", "offset"], [(r[0], _iso(r[3]), r[1], r[2]) for r in marks])
    for collector_id, lag_s in behind.items():
        print(f"collector {collector_id} is {lag_s:.0f} s behind: is it running, and what does its log say?")
    raise typer.Exit(EXCEPTIONS if behind else DONE)


@warehouse.command("query")
def warehouse_query(
    sql: Annotated[
        str, typer.Argument(metavar="SQL", help="For example: SELECT meter, sum(quantity) FROM usage GROUP BY meter")
    ],
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Run one query and print its rows. On the embedded engine it runs as `reader`: views only, nothing is changed."""
    from clickhouse_connect.driver.exceptions import Error

    client = _client(_existing(data), user="reader")
    try:
        found = client.query(sql)
    except Error as problem:
        raise _failed(str(problem)) from None
    if as_json:
        rows = [dict(zip(found.column_names, row, strict=True)) for row in found.result_rows]
        print(json.dumps(rows, default=_text))
    else:
        _table(found.column_names, found.result_rows)


@suspense.callback()
def _suspense() -> None:
    """Usage that was received and does not count, each with its reason."""


@suspense.command("list")
def suspense_list(
    data: Data = None,
    as_json: Json = False,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Rows at most, the latest first.")] = 200,
) -> None:
    """List suspended usage of the namespace, and what could not be read, the latest first.

    It is kept and not lost; assigning it to a customer is yet to come.

    Exit code 3 when there is any.
    """
    settings = _existing(data)
    client = _client(settings)
    parameters = {"namespace": settings.namespace, "limit": limit}
    total = client.query(_SUSPENDED_COUNT, parameters=parameters).result_rows[0][0]
    found = client.query(_SUSPENDED, parameters=parameters)
    names, rows = found.column_names, found.result_rows
    if as_json:
        print(json.dumps([dict(zip(names, row, strict=True)) for row in rows], default=_text))
    elif not total:
        print("nothing is suspended")
    else:
        _table(
            ["received", "reason", "customer", "meter", "quantity", "as sent", "event time", "event"],
            [(row[0], row[1], row[2] or "-", row[3], row[4], row[5][:24], row[6], row[7]) for row in rows],
        )
        print(f"{total} suspended" + (f", the latest {limit} shown" if total > limit else ""))
    raise typer.Exit(EXCEPTIONS if total else DONE)


def _settings(data: Path | None) -> "Settings":
    from pydantic import ValidationError

    from meterhouse_store.settings import load

    try:
        return load(data)
    except ValidationError as problem:
        print(f"the settings cannot be used: {problem}", file=sys.stderr)
        raise typer.Exit(CALLED_WRONGLY) from None


def _existing(data: Path | None) -> "Settings":
    """The settings of a Meterhouse that is there: in the data directory, or wherever the environment says."""
    from meterhouse_store.settings import NoData, load_existing

    settings = _settings(data)
    if settings.warehouse_url is not None:
        return settings
    try:
        return load_existing(data)
    except NoData as missing:
        raise _failed(str(missing)) from None


def _client(settings: "Settings", *, database: str | None = None, user: str = "admin") -> "Client":
    from clickhouse_connect.driver.exceptions import Error

    from meterhouse_store.warehouse import WarehouseUnavailable, connect

    try:
        return connect(settings, timeout_s=10, database=database, user=user)
    except (WarehouseUnavailable, Error) as problem:
        raise _failed(str(problem)) from None


def _warehouse_users(data: Path) -> dict[str, str]:
    given = {user: os.environ.get(f"METERHOUSE_WAREHOUSE_{user.upper()}_PASSWORD") for user in ("admin", "reader")}
    file = data / "run" / "secrets.json"
    if not all(given.values()) and file.exists():
        secrets = json.loads(file.read_text())
        given = {user: password or secrets.get(f"warehouse_{user}") for user, password in given.items()}
    missing = [user for user, password in given.items() if not password]
    if missing:
        raise _failed(
            "the users need passwords: set "
            + " and ".join(f"METERHOUSE_WAREHOUSE_{user.upper()}_PASSWORD" for user in missing)
        )
    return {user: password for user, password in given.items() if password}


def _failed(text: str) -> typer.Exit:
    print(text, file=sys.stderr)
    return typer.Exit(FAILED)


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    cells = [[_text(value) for value in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(header), *cells]) for i in range(len(header))]
    numeric = [all(not isinstance(row[i], str | datetime) for row in rows) for i in range(len(header))]
    for line in [list(header), *cells]:
        parts = [
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        ]
        print("  ".join(parts).rstrip())


def _text(value: Any) -> str:
    from decimal import Decimal

    from meterhouse_store.numbers import plain

    if isinstance(value, Decimal):
        return plain(value)
    return _iso(value) if isinstance(value, datetime) else str(value)


def _iso(at: datetime) -> str:
    # clickhouse-connect gives UTC columns as naive datetimes.
    return at.replace(tzinfo=UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
