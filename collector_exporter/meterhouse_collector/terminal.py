"""What the commands of the collector share: options, exit codes, the warehouse's client, tables that line up."""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

    from meterhouse_store.settings import Settings

Data = Annotated[Path | None, typer.Option("--data", help="Data directory of `up` (METERHOUSE_DATA).")]
Json = Annotated[bool, typer.Option("--json", help="For machines: one JSON document.")]

DONE: Final = 0
FAILED: Final = 1
CALLED_WRONGLY: Final = 2
EXCEPTIONS: Final = 3


def settings_of(data: Path | None) -> "Settings":
    """The settings; ends the command with what is wrong in the environment."""
    from pydantic import ValidationError

    from meterhouse_store.settings import load
    from meterhouse_store.terminal import wrong_settings

    try:
        return load(data)
    except ValidationError as problem:
        print(wrong_settings(problem), file=sys.stderr)
        raise typer.Exit(CALLED_WRONGLY) from None


def existing(data: Path | None) -> "Settings":
    """The settings of a Meterhouse that is there: in the data directory, or wherever the environment says."""
    from meterhouse_store.settings import NoData, load_existing

    settings = settings_of(data)
    if settings.warehouse_url is not None:
        return settings
    try:
        return load_existing(data)
    except NoData as missing:
        raise failed(str(missing)) from None


def client_of(settings: "Settings", *, database: str | None = None, user: str = "admin") -> "Client":
    """A client of the warehouse; ends the command where it does not answer."""
    from clickhouse_connect.driver.exceptions import Error

    from meterhouse_store.settings import NoData
    from meterhouse_store.warehouse import WarehouseUnavailable, connect

    try:
        return connect(settings, timeout_s=10, database=database, user=user)
    except (NoData, WarehouseUnavailable, Error) as problem:
        raise failed(str(problem)) from None


def failed(text: str) -> typer.Exit:
    """Say what failed; to be raised, it ends the command with exit code 1."""
    print(text, file=sys.stderr)
    return typer.Exit(FAILED)


def print_rows(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table whose columns line up, numbers to the right."""
    cells = [[text_of(value) for value in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(header), *cells]) for i in range(len(header))]
    numeric = [all(not isinstance(row[i], str | datetime) for row in rows) for i in range(len(header))]
    for line in [list(header), *cells]:
        parts = [
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        ]
        print("  ".join(parts).rstrip())


def text_of(value: Any) -> str:
    """A value as people read it: exact decimals, UTC times in ISO 8601, and ? for what is not known."""
    from decimal import Decimal

    from meterhouse_store.numbers import plain
    from meterhouse_store.terminal import visible

    if value is None:
        return "?"
    if isinstance(value, Decimal):
        return plain(value)
    return iso(value) if isinstance(value, datetime) else visible(str(value))


def iso(at: datetime) -> str:
    """A UTC time in ISO 8601; clickhouse-connect gives UTC columns as naive datetimes."""
    return at.replace(tzinfo=UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
