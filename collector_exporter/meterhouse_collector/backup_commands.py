"""The commands `meterhouse backup` and `meterhouse restore`. Heavy imports happen inside."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meterhouse_store.terminal import Data, Json, existing, explained, fail, settings_of

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

    from meterhouse_store.archive import Reader
    from meterhouse_store.settings import Settings

backup = typer.Typer(help="Back up journal and SQL, consistent with each other.", add_completion=False)
restore = typer.Typer(help="Put a backup in place, in an empty data directory.", add_completion=False)

EXCEPTIONS = 3
NoWarehouse = Annotated[bool, typer.Option("--no-warehouse", help="Neither hash nor make the warehouse.")]


@backup.command()
def _backup(
    target: Annotated[Path, typer.Argument(metavar="PLACE", help="A new directory, or a new file ending in .tar.")],
    data: Data = None,
    verify: Annotated[bool, typer.Option("--verify", help="Write nothing: read the backup PLACE, all of it.")] = False,
    no_warehouse: NoWarehouse = False,
    as_json: Json = False,
) -> None:
    """Write a backup while everything runs, or --verify one.

    It holds what was acknowledged before it began, and the SQL database as it was at one moment. The warehouse is left
    out, as it is made from both; its hash is kept, for the restore to compare.
    """
    from meterhouse_collector import backup as work
    from meterhouse_collector.service import journal_directory
    from meterhouse_store.archive import BackupRefused, Writer
    from meterhouse_store.sql import open_engine

    try:
        if verify:
            _print(_verified(target), as_json, f"{target} is whole")
            return
        settings = existing(data)
        with explained(), _progress("copied", None) as (say, progress), _asked(settings, no_warehouse, say) as client:
            engine = open_engine(settings)
            try:
                writer = Writer(target, progress)
                journal = journal_directory(settings.data)
                manifest = work.backup(journal, engine, client, writer, say, now=datetime.now(UTC))
            finally:
                engine.dispose()
    except BackupRefused as problem:
        fail(str(problem))
    _print(manifest, as_json, f"{target} is complete")


@restore.command()
def _restore(
    source: Annotated[Path, typer.Argument(metavar="PLACE", help="What `meterhouse backup` wrote.")],
    data: Data = None,
    no_warehouse: NoWarehouse = False,
    as_json: Json = False,
) -> None:
    """Put a backup in place: SQL, the journal, and from both the warehouse, compared with its hash.

    The data directory must be new or empty, and so must METERHOUSE_SQL_URL and the warehouse's database be. Nothing is
    overwritten, and a damaged backup is refused before anything is written. Calls to Stripe are off afterwards:
    compare, then `meterhouse namespaces set NAME --sync on --why ...`. Exit code 3 where the warehouse differs.
    """
    from meterhouse_collector import backup as work
    from meterhouse_collector.service import journal_directory
    from meterhouse_store.archive import BackupRefused
    from meterhouse_store.sql import open_engine

    settings = settings_of(data)
    place, made = settings.data, False
    try:
        if place.exists() and any(place.iterdir()):
            raise BackupRefused(f"{place} is not empty: name a new --data, nothing is overwritten")
        manifest = _verified(source)
        # All of it under another name, so that nothing can start on half of it.
        partial = settings_of(place.with_name(place.name + ".restoring"))
        if partial.data.exists():
            raise BackupRefused(f"{partial.data} is left from a restore that was interrupted: remove it")
        made = True
        with explained(), closing(_reader(source)) as reader, _progress("restored", reader.size()) as (say, progress):
            engine = open_engine(partial)
            journal = journal_directory(partial.data)
            try:
                work.restore(reader, journal, engine, say, progress, who=_who(), now=datetime.now(UTC))
                differences: list[str] = []
                if not no_warehouse:
                    with _warehouse_of(partial, say) as client:
                        differences = work.refill(reader, journal, engine, client, say)[1]
            finally:
                engine.dispose()
        if place.exists():
            place.rmdir()
        partial.data.rename(place)
    except BackupRefused as problem:
        if made:
            shutil.rmtree(partial.data)
        fail(str(problem))
    _print(manifest | {"differences": differences}, as_json, f"restored into {place}, calls to Stripe are off")
    for line in differences:
        print(f"differs: {line}", file=sys.stderr)
    if differences:
        raise typer.Exit(EXCEPTIONS)


def _reader(source: Path) -> "Reader":
    from meterhouse_store.archive import Reader

    return Reader(source)


def _verified(source: Path) -> dict[str, Any]:
    with closing(_reader(source)) as reader, _progress("read", reader.size()) as (_, progress):
        reader.verify(progress)
        return reader.manifest


@contextmanager
def _asked(settings: "Settings", no_warehouse: bool, say: Callable[[str], None]) -> "Iterator[Client | None]":
    """The warehouse where it can be asked; a backup is taken without it, too."""
    from clickhouse_connect.driver.exceptions import Error

    from meterhouse_store.warehouse import WarehouseUnavailable, connect

    client = None
    if not no_warehouse:
        try:
            client = connect(settings, timeout_s=5)
        except (WarehouseUnavailable, Error) as problem:
            say(f"the backup has no hash of the warehouse: {problem}")
    try:
        yield client
    finally:
        if client is not None:
            client.close()


@contextmanager
def _warehouse_of(settings: "Settings", say: Callable[[str], None]) -> "Iterator[Client]":
    """The warehouse to fill: the server that is set, else the embedded engine, started for as long as it takes."""
    import os
    import secrets
    import socket
    import subprocess

    from meterhouse_store import schema, warehouse
    from meterhouse_store.stack import meterhouse_command

    url, process = settings.warehouse_url, None
    if url is None:
        password = secrets.token_urlsafe(32)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        named = {f"METERHOUSE_WAREHOUSE_{user}_PASSWORD": password for user in ("ADMIN", "READER")}
        command = [*meterhouse_command(), "warehouse", "serve", "--data", str(settings.data), "--port", str(port)]
        process = subprocess.Popen(command, env=os.environ | named)
        url = f"http://{warehouse.ADMIN}:{password}@127.0.0.1:{port}"
    try:
        reached = settings.model_copy(update={"warehouse_url": url})
        say("warehouse")
        with closing(warehouse.connect(reached, database="default")) as admin:
            schema.migrate(admin, settings.warehouse_database)
        with closing(warehouse.connect(reached)) as client:
            yield client
    finally:
        if process is not None:
            process.terminate()
            process.wait(60)


@contextmanager
def _progress(what: str, total: int | None) -> Iterator[tuple[Callable[[str], None], Callable[[int], None]]]:
    """(say, progress): lines, and a bar of the bytes, on stderr; the bar on a terminal only."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=total)

        def say(line: str) -> None:
            print(line, file=sys.stderr, flush=True)

        def progress(size: int) -> None:
            bar.update(task, advance=size)

        yield say, progress


def _print(manifest: dict[str, Any], as_json: bool, sentence: str) -> None:
    if as_json:
        print(json.dumps(manifest))
        return
    rows = sum(manifest["sql"]["rows"].values())
    size = sum(file["bytes"] for file in manifest["files"].values())
    kept = manifest["warehouse"]
    usage = f"usage up to {kept['through']} has the hash {kept['usage_sha256']}" if kept else "no hash of the warehouse"
    print(f"{sentence}: {rows} SQL rows, {manifest['journal']['files']} journal files, {size} bytes; {usage}")


def _who() -> str:
    import getpass

    return getpass.getuser()
