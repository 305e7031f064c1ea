"""The commands `collector`, `warehouse` and `suspense`. What they do is elsewhere; here they meet the terminal."""

import json
import os
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from meterhouse_collector.deciding import wrong
from meterhouse_collector.suspense_commands import suspense as suspense  # the command of that name
from meterhouse_collector.terminal import (
    DONE,
    EXCEPTIONS,
    Data,
    Json,
    client_of,
    existing,
    failed,
    iso,
    print_rows,
    settings_of,
    text_of,
)

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

_KEPT = [
    "namespace",
    "credential_id",
    "received",
    "counted",
    "suspended",
    "set_aside",
    "duplicates",
    "refused_requests",
]
_CONSERVATION = """
    SELECT namespace, credential_id, sum(received), sum(counted), sum(suspended), sum(set_aside), sum(duplicates),
        sum(refused_requests)
    FROM conservation GROUP BY namespace, credential_id ORDER BY namespace, credential_id
"""
_WRONG_HOURS = "SELECT namespace, credential_id, hour, duplicates FROM conservation WHERE duplicates < 0 ORDER BY ALL"

Host = Annotated[str, typer.Option(help="Address to listen on.")]


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

    raise typer.Exit(serve(settings_of(data), host, http_port, grpc_port))


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

    settings = settings_of(data)
    embedded.serve(settings.data, host, port, _warehouse_users(settings.data))


@warehouse.command("migrate")
def warehouse_migrate(
    data: Data = None,
    cluster: Annotated[
        str, typer.Option(metavar="NAME", help="Make it on this cluster of ClickHouse servers: replicated, sharded.")
    ] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the statements; ask and change nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Create the database, tables and views that are missing. May be run again.

    What was applied stands in the table schema_migrations. A database that was made with --cluster stays on its
    cluster; a database that a newer Meterhouse has written to is refused.
    """
    from meterhouse_store import migrations, schema

    settings = settings_of(data)
    try:
        if dry_run:
            print(migrations.as_text(settings.warehouse_database, cluster))
            return
        with closing(client_of(settings, database="default")) as client:
            made = schema.migrate(client, settings.warehouse_database, cluster=cluster)
            notes = migrations.missing_settings(client) if made.cluster else []
    except (schema.SchemaRefused, ValueError) as problem:
        raise failed(str(problem)) from None
    if as_json:
        print(json.dumps({name: getattr(made, name) for name in made.__slots__} | {"notes": notes}))
        return
    for line in [*migrations.report(made), *notes]:
        print(line)


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

    settings = existing(data)
    try:
        result = work.rebuild(
            journal_directory(settings.data),
            lambda name: client_of(settings, database=name),
            sql.open_engine(settings),
            settings.warehouse_database,
            lambda text: print(text, file=sys.stderr),
            force=force,
        )
    except work.CannotRebuild as problem:
        raise failed(str(problem)) from None
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


@warehouse.command("rollup")
def warehouse_rollup(data: Data = None, as_json: Json = False) -> None:
    """Sum usage by day, hour and conversation, for dashboards and reports. `meterhouse jobs` does it every round.

    A day is summed when nothing has come for it for a quarter of an hour, and again whenever something does; until
    then it is read event by event, which takes longer and comes to the same. May be run at any time.
    """
    from meterhouse_store import rollups

    settings = existing(data)
    with closing(client_of(settings)) as client:
        rolled = rollups.roll_up(client)
    if as_json:
        days = [{"namespace": namespace, "day": str(day)} for namespace, day in rolled.days]
        print(json.dumps({"days": days, "unsettled": rolled.unsettled}))
    else:
        print(f"{len(rolled.days)} days summed, {rolled.unsettled} under way: those are read event by event")


@warehouse.command("verify")
def warehouse_verify(
    data: Data = None,
    as_json: Json = False,
    segment: Annotated[str | None, typer.Option(help="Only this segment of the journal.")] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Project again what differs.")] = False,
) -> None:
    """Read the journal again and compare the warehouse with it: rows, control totals, decisions, and sums of days.

    The collector may go on running. Exit code 3 when something differs (with --repair: still differs); rows that no
    journal has are only told, `warehouse rebuild` leaves them out.
    """
    from meterhouse_collector import verify as work
    from meterhouse_collector.service import journal_directory

    settings = existing(data)
    shown = work.terminal_progress() if sys.stderr.isatty() and not as_json else work.no_progress()
    try:
        with shown as progress:
            result = work.verify(
                journal_directory(settings.data),
                lambda name: client_of(settings, database=name),
                settings.warehouse_database,
                progress,
                segment=segment,
                repair=repair,
            )
    except work.CannotVerify as problem:
        raise failed(str(problem)) from None
    if as_json:
        print(json.dumps(result.as_json()))
    else:
        for difference in result.differences:
            print(difference)
        print(result.verdict())
    raise typer.Exit(EXCEPTIONS if result.is_wrong else DONE)


@warehouse.command("status")
def warehouse_status(data: Data = None, as_json: Json = False) -> None:
    """Show how much is in the warehouse, what came of all that was received, and how far each journal is projected.

    Exit code 3 when a collector's journal is more than a minute behind, or when received does not equal counted +
    suspended + set aside + duplicates in any hour: then `warehouse verify` says what is missing.
    """
    from meterhouse_collector.projection import BEHIND_S

    client = client_of(existing(data))
    totals = client.query("SELECT namespace, count() FROM usage GROUP BY 1 ORDER BY 1").result_rows
    held = client.query("SELECT namespace, reason, count() FROM suspense GROUP BY 1, 2 ORDER BY 1, 2").result_rows
    marks = client.query("SELECT collector_id, segment, position, projected_through FROM watermark").result_rows
    kept = client.query(_CONSERVATION).result_rows
    unequal = client.query(_WRONG_HOURS).result_rows
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
                            "projected_through": iso(row[3]),
                            "behind": row[0] in behind,
                        }
                        for row in marks
                    ],
                    "conservation": [dict(zip(_KEPT, row, strict=True)) for row in kept],
                    "does_not_add_up": [
                        {"namespace": row[0], "credential_id": row[1], "hour": iso(row[2]), "duplicates": row[3]}
                        for row in unequal
                    ],
                }
            )
        )
        raise typer.Exit(EXCEPTIONS if behind or unequal else DONE)
    print_rows(
        ["namespace", "state", "events"], [(r[0], "usage", r[1]) for r in totals] + [(r[0], r[1], r[2]) for r in held]
    )
    print()
    print_rows(_KEPT, kept)
    print()
    print_rows(["collector", "projected through", "segment", "offset"], [(r[0], iso(r[3]), r[1], r[2]) for r in marks])
    for collector_id, lag_s in behind.items():
        print(f"collector {collector_id} is {lag_s:.0f} s behind: is it running, and what does its log say?")
    for namespace, credential_id, hour, duplicates in unequal:
        print(
            f"what {credential_id or 'an unknown key'} sent in the hour of {iso(hour)} ({namespace or 'no namespace'}) "
            f"does not add up: {-duplicates} more rows are here than were received. See `meterhouse warehouse verify`"
        )
    raise typer.Exit(EXCEPTIONS if behind or unequal else DONE)


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

    from meterhouse_store.warehouse import said

    if not sql.strip():
        raise wrong("the query is empty: try SELECT meter, sum(quantity) FROM usage GROUP BY meter")
    if _has_format(sql):
        raise wrong("leave FORMAT out: rows are printed as a table, or with --json as JSON")
    client = client_of(existing(data), user="reader")
    try:
        found = client.query(sql)
    except Error as problem:
        raise failed(said(problem)) from None
    if as_json:
        rows = [dict(zip(found.column_names, row, strict=True)) for row in found.result_rows]
        print(json.dumps(rows, default=text_of))
    else:
        print_rows(found.column_names, found.result_rows)


def _has_format(sql: str) -> bool:
    """Whether a query names the format of its answer, which the client does, too."""
    from meterhouse_store.statements import Refused, inspect

    try:
        return inspect(sql.encode(), "admin", frozenset()).output_format is not None
    except Refused:  # the warehouse says what is wrong with it
        return False


def _warehouse_users(data: Path) -> dict[str, str]:
    given = {user: os.environ.get(f"METERHOUSE_WAREHOUSE_{user.upper()}_PASSWORD") for user in ("admin", "reader")}
    file = data / "run" / "secrets.json"
    if not all(given.values()) and file.exists():
        secrets = json.loads(file.read_text())
        given = {user: password or secrets.get(f"warehouse_{user}") for user, password in given.items()}
    missing = [user for user, password in given.items() if not password]
    if missing:
        raise failed(
            "the users need passwords: set "
            + " and ".join(f"METERHOUSE_WAREHOUSE_{user.upper()}_PASSWORD" for user in missing)
        )
    return {user: password for user, password in given.items() if password}
