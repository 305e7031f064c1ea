"""What the commands of the store share: options, errors in sentences, tables. Heavy imports happen inside."""

import errno
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pydantic import ValidationError
    from sqlalchemy import Engine

    from meterhouse_store.settings import Settings

PIPED_WIDTH = 100_000
"""Columns of a table that does not go to a terminal: whoever searches it must find ids and texts in one piece."""

Data = Annotated[Path | None, typer.Option(help="Data directory of `up` (METERHOUSE_DATA).")]
Json = Annotated[bool, typer.Option("--json", help="For machines: one JSON document.")]


def write_out(out: Path, content: bytes) -> None:
    """Write a file that the user named, `-` being standard output; ends the command where it cannot be written."""
    if str(out) == "-":
        with explained():
            sys.stdout.buffer.write(content)
            sys.stdout.flush()
        return
    try:
        out.write_bytes(content)
    except OSError as problem:
        fail(f"{out} cannot be written: {problem.strerror}")


def instant(text: str) -> datetime:
    """An aware time of an ISO date or instant; UTC where it names no zone."""
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter("an ISO date or instant: 2026-10-01 or 2026-10-01T00:00:00+02:00") from None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def duration(text: str) -> timedelta:
    """A length of time such as 30m, 24h or 7d."""
    found = re.fullmatch(r"([0-9]{1,6})([smhd]?)", text)
    if found is None or (found[2] == "" and found[1].strip("0")):
        raise typer.BadParameter("a length of time: 90s, 30m, 24h or 7d")
    units = {"": "seconds", "s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
    return timedelta(**{units[found[2]]: int(found[1])})


def existing(data: Path | None) -> "Settings":
    """The settings of a Meterhouse that is there; ends the command where there is none."""
    from meterhouse_store.settings import NoData, load_existing

    settings = settings_of(data)
    try:
        load_existing(data)
    except NoData as problem:
        fail(str(problem))
    return settings


def settings_of(data: Path | None) -> "Settings":
    """The settings; ends the command with what is wrong in the environment."""
    from pydantic import ValidationError

    from meterhouse_store.settings import load

    try:
        return load(data)
    except ValidationError as problem:
        print(wrong_settings(problem), file=sys.stderr)
        raise typer.Exit(2) from None


def wrong_settings(problem: "ValidationError") -> str:
    """What is wrong in the environment, a line for each variable; what no repr shows, as passwords, is not shown."""
    from pydantic_settings import BaseSettings

    (of,) = (it for it in BaseSettings.__subclasses__() if it.__name__ == problem.title)
    prefix = of.model_config.get("env_prefix", "")
    shown = {name for named, it in of.model_fields.items() if it.repr for name in (named, it.validation_alias)}
    lines = []
    for it in problem.errors():
        said = it["msg"].removeprefix("Value error, ")
        if not it["loc"]:  # of several variables: it names them
            lines.append(said)
            continue
        name = it["loc"][0]
        variable, given = prefix + str(name).upper().removeprefix(prefix), str(it["input"])
        lines.append(f"{variable}: {said}" + (f", not {given!r}" if name in shown and given not in said else ""))
    return "\n".join(lines)


@contextmanager
def opened_registry(settings: "Settings") -> "Iterator[Engine]":
    """The SQL database with the namespace in it: strict, where nothing made it before."""
    from meterhouse_store import registry
    from meterhouse_store.sql import open_engine

    engine = open_engine(settings)
    try:
        if registry.namespace(engine, settings.namespace) is None:
            registry.ensure_namespace(engine, settings.namespace)
        yield engine
    finally:
        engine.dispose()


@contextmanager
def explained() -> Iterator[None]:
    """Errors that have a sentence for the person end the command with it."""
    from sqlalchemy.exc import OperationalError

    from meterhouse_store.plans import PlanRefused
    from meterhouse_store.registry import RegistryError
    from meterhouse_store.sql import SchemaMismatch
    from meterhouse_store.stack import AlreadyRunning
    from meterhouse_store.supervisor import PartFailed

    try:
        yield
    except (RegistryError, PlanRefused, SchemaMismatch, AlreadyRunning, PartFailed) as problem:
        fail(str(problem))
    except OperationalError as problem:
        fail(f"the SQL database cannot be used: {problem.orig}")
    except BrokenPipeError:  # a reader that has seen enough is no error
        raise
    except OSError as problem:
        fail(told(problem))


def told(problem: OSError) -> str:
    """What the operating system said, with the file that it is about."""
    if problem.errno == errno.ENOSPC and not problem.filename:
        return "the output cannot be written: no space is left where it goes"
    return f"{problem.filename}: {problem.strerror}" if problem.filename and problem.strerror else str(problem)


def fail(sentence: str) -> None:
    """End the command with exit code 1."""
    print(sentence, file=sys.stderr)
    raise typer.Exit(1)


def say(line: str) -> None:
    """Print at once, also into a pipe."""
    print(line, flush=True)


def print_table(
    found: list[dict[str, Any]],
    row_of: Callable[[dict[str, Any]], dict[str, str]],
    as_json: bool,
    when_empty: str = "",
) -> None:
    """A table of `row_of` each, without columns in which nothing stands, or JSON."""
    if as_json:
        print(json.dumps(found, indent=2))
        return
    if not found:
        print(when_empty)
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    rows = [row_of(one) for one in found]
    shown = [heading for heading in rows[0] if any(row[heading] for row in rows)]
    for number, heading in enumerate(shown):
        # The first column names the row: whoever copies it must not find it in pieces.
        table.add_column(heading, overflow="fold", no_wrap=number == 0)
    for row in rows:
        # As Text, never as markup: `[/b]` in a customer's id would end the command, `[EU]` in a name be left out.
        table.add_row(*(Text("\n".join(map(visible, row[heading].split("\n")))) for heading in shown))
    console = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH)
    with console.capture() as drawn:
        console.print(table)
    print("\n".join(line.rstrip() for line in drawn.get().splitlines() if line.strip()))


def visible(text: str) -> str:
    """The text with what does not print as escapes: ids must not steer a terminal, or break a table's lines."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def moment(iso: str) -> str:
    """A UTC time as people write it: the date, and the time of day where it is not midnight."""
    return iso[:16].replace("T", " ").removesuffix(" 00:00")


def plain(record: dict[str, Any]) -> dict[str, Any]:
    """For JSON: times in ISO 8601, UTC."""
    return {
        name: value.isoformat(timespec="seconds") if isinstance(value, datetime) else value
        for name, value in record.items()
    }
