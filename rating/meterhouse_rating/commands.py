"""`meterhouse prices` and `meterhouse rate`: what is printed, and the exit codes; the work is done elsewhere."""

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Engine

    from meterhouse_rating.late import LateUsage
    from meterhouse_rating.run import Step
    from meterhouse_rating.settle import Outcome
    from meterhouse_rating.world import World
    from meterhouse_store.settings import Settings

prices = typer.Typer(help="Check, publish and show price books.", no_args_is_help=True, add_completion=False)
rate = typer.Typer(help="Price the usage of a period, and close it.", no_args_is_help=True, add_completion=False)

FAILED, CALLED_WRONGLY, EXCEPTIONS = 1, 2, 3

Data = Annotated[Path | None, typer.Option(help="The data directory (or METERHOUSE_DATA).")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
PeriodOption = Annotated[
    str | None,
    typer.Option(metavar="P", help="2026-10 (a month in the customer's time zone) or START..END (half-open)."),
]
CustomerOption = Annotated[str | None, typer.Option(help="Only this customer.")]


@prices.command("check")
def prices_check(file: Annotated[Path, typer.Argument(help="The price book, YAML.")], data: Data = None) -> None:
    """Check a price book; lists every mistake with its line. Exit code 1 when there are any."""
    from meterhouse_rating.book import check

    with _refusals():
        settings = _settings(data)
        checked = check(_read(file), _units(settings))
    for note in checked.notes:
        print(f"note: {note}")
    plans = ", ".join(checked.book.plans)
    print(f"{file}: no mistakes. Price book {checked.book.name} with the plans {plans}.")


@prices.command("publish")
def prices_publish(
    file: Annotated[Path | None, typer.Argument(help="The price book, YAML.")] = None,
    starter: Annotated[bool, typer.Option("--starter", help="The starter book that ships with Meterhouse.")] = False,
    valid_from: Annotated[str | None, typer.Option(metavar="T", help="ISO date or instant.")] = None,
    author: Annotated[str | None, typer.Option(help="Who publishes it.")] = None,
    data: Data = None,
) -> None:
    """Publish a price book as the next version, which is never changed.

    It prices periods that begin at or after --valid-from. The first book is valid from the beginning, later ones from
    now where nothing else is said. Publishing the same again changes nothing.
    """
    import getpass

    from meterhouse_rating import periods, versions

    if (file is None) == (not starter):
        _fail("Name a FILE, or --starter for the book that ships with Meterhouse.", CALLED_WRONGLY)
    with _refusals():
        settings = _settings(data)
        text = versions.starter() if file is None else _read(file)
        version, new = versions.publish(
            _engine(settings),
            settings.namespace,
            text,
            _units(settings),
            author=versions.STARTER_AUTHOR if starter else author or getpass.getuser(),
            valid_from=None if valid_from is None else periods.instant(valid_from),
        )
    what = "published" if new else "was published already, nothing changed"
    print(f"Price book {version.book.name}, version {version.version}, {what}: valid from {_day(version.valid_from)}.")


@prices.command("list")
def prices_list(data: Data = None, as_json: Json = False) -> None:
    """List the published versions."""
    from meterhouse_rating.versions import versions

    with _refusals():
        settings = _settings(data)
        found = versions(_engine(settings), settings.namespace)
    if as_json:
        _print_json([_version_json(version) for version in found])
        return
    if not found:
        print("No price book is published: `meterhouse prices publish FILE`.")
    for version in found:
        valid = f"valid from {_day(version.valid_from):<21}"
        print(f"{version.version:>4}  {version.book.name:<20} {valid} by {version.author:<16} {version.sha256[:12]}")


@prices.command("show")
def prices_show(
    version: Annotated[int | None, typer.Argument(help="The version; without it the newest.")] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Print a published price book exactly as it was published."""
    from meterhouse_rating.versions import versions

    with _refusals():
        settings = _settings(data)
        found = versions(_engine(settings), settings.namespace)
    chosen = found[-1:] if version is None else [it for it in found if it.version == version]
    if not chosen:
        _fail("There is no such version: `meterhouse prices list` shows them.")
    if as_json:
        _print_json(_version_json(chosen[0]) | {"source": chosen[0].source})
    else:
        sys.stdout.write(chosen[0].source)


@rate.command("run")
def rate_run(
    period: PeriodOption = None,
    due: Annotated[bool, typer.Option("--due", help="All that is not closed, month by month.")] = False,
    customer: CustomerOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing.")] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Price usage. Runs may be repeated, stopped and started again: open ratings change only when their inputs did.

    Exit code 3 when there is usage without a price, or usage that came after its period was closed.
    """
    from meterhouse_rating.run import Request, run

    if (period is None) == (not due):
        _fail("Name a --period, or --due for all that is due.", CALLED_WRONGLY)
    with _refusals():
        world = _world(_settings(data))
        _drive(world, run(world, Request(period, customer, dry_run)), period, customer, dry_run, as_json)


@rate.command("close")
def rate_close(
    period: Annotated[str, typer.Option(metavar="P", help="The period, as for `rate run`.")],
    grace: Annotated[str, typer.Option(help="How long after its end usage may still arrive: 90s, 15m, 1h, 2d.")] = "1h",
    customer: CustomerOption = None,
    wait: Annotated[str, typer.Option(help="How long to wait for the warehouse to be complete.")] = "60s",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing.")] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Close a period: rate it for good, freeze its lines, post them to the ledger. Again changes nothing."""
    from meterhouse_rating.run import Request, close

    with _refusals():
        world = _world(_settings(data))
        steps = close(
            world, Request(period, customer, dry_run), grace=_duration(grace), wait_s=_duration(wait).total_seconds()
        )
        _drive(world, steps, period, customer, dry_run, as_json)


@rate.command("status")
def rate_status(
    period: PeriodOption = None, customer: CustomerOption = None, data: Data = None, as_json: Json = False
) -> None:
    """Show what is rated: per customer what was used and what it costs, and what has no price."""
    from meterhouse_rating import report

    with _refusals():
        settings = _settings(data)
        found = report.stored(_engine(settings), settings.namespace, period, customer)
    _print_report(found, as_json)


@rate.command("explain")
def rate_explain(
    line_id: Annotated[str, typer.Argument(help="The line's id, or its beginning.")], data: Data = None
) -> None:
    """Print how a line's amount came about: quantity, price and its line in the book, tiers, rounding, credits."""
    from sqlalchemy import select

    from meterhouse_store.tables import rated_lines, ratings

    with _refusals():
        settings = _settings(data)
        query = (
            select(rated_lines)
            .join(ratings, ratings.c.rating_id == rated_lines.c.rating_id)
            .where(ratings.c.namespace == settings.namespace)
            .where(rated_lines.c.line_id.startswith(line_id, autoescape=True))
            .limit(2)
        )
        with _engine(settings).connect() as connection:
            rows = connection.execute(query).mappings().all()
    if len(rows) != 1:
        many = "Several lines begin" if rows else "No line begins"
        _fail(f"{many} with {line_id}: `meterhouse rate status --json` lists them.")
    _print_json({"line_id": rows[0]["line_id"], "description": rows[0]["description"], **rows[0]["explanation"]})


def _drive(
    world: "World", steps: "Iterable[Step]", period: str | None, customer: str | None, dry_run: bool, as_json: bool
) -> None:
    """Print each step when it is done, then the report; exit code 3 when there is something to look at."""
    from meterhouse_rating import report
    from meterhouse_rating.results import Moment

    outcomes: list[Outcome] = []
    late: list[LateUsage] = []
    for step in steps:
        # Flushed line by line: whoever watches, or stops the run, knows what is committed.
        print(step, flush=True, file=sys.stderr if as_json else sys.stdout)
        late += step.late
        if step.outcome is not None:
            outcomes.append(step.outcome)
    if dry_run:
        now = world.now()
        found = report.imagined(world.namespace, outcomes, Moment(now, {}, now), late)
    else:
        found = report.stored(world.engine, world.namespace, period, customer, late)
    _print_report(found, as_json, gap=True)
    if found.exceptions:
        raise typer.Exit(EXCEPTIONS)


def _print_report(found: Any, as_json: bool, gap: bool = False) -> None:
    from meterhouse_rating import report

    if as_json:
        _print_json(report.as_json(found))
    else:
        print(("\n" if gap else "") + report.as_text(found))


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


@contextmanager
def _refusals() -> Iterator[None]:
    """Turns the refusals that a user can do something about into a sentence and an exit code."""
    from clickhouse_connect.driver.exceptions import ClickHouseError
    from pydantic import ValidationError

    from meterhouse_rating.book import BookRefused
    from meterhouse_rating.periods import PeriodError
    from meterhouse_rating.run import NotYet
    from meterhouse_rating.settle import WatermarkWentBack
    from meterhouse_rating.versions import NotThere
    from meterhouse_store.meters import MetersError
    from meterhouse_store.sql import SchemaMismatch
    from meterhouse_store.warehouse import WarehouseUnavailable

    try:
        yield
    except BookRefused as refused:
        _fail(f"{refused}\n{len(refused.mistakes)} mistakes; nothing was published.")
    except PeriodError as refused:
        _fail(str(refused), CALLED_WRONGLY)
    except NotThere as refused:
        _fail(str(refused.args[0]))
    except (NotYet, WatermarkWentBack, MetersError, SchemaMismatch, WarehouseUnavailable) as refused:
        _fail(str(refused))
    except (ClickHouseError, ValidationError, OSError, UnicodeDecodeError) as refused:
        _fail(f"{type(refused).__name__}: {refused}")


def _fail(text: str, code: int = FAILED) -> NoReturn:
    print(text, file=sys.stderr)
    raise typer.Exit(code)


def _settings(data: Path | None) -> "Settings":
    from meterhouse_store.settings import load

    return load(data)


def _engine(settings: "Settings") -> "Engine":
    from meterhouse_store.sql import open_engine

    return open_engine(settings)


def _world(settings: "Settings") -> "World":
    from meterhouse_rating.world import World
    from meterhouse_store import warehouse
    from meterhouse_store.meters import declared

    return World(_engine(settings), warehouse.connect(settings), settings.namespace, declared(settings))


def _units(settings: "Settings") -> dict[str, str]:
    from meterhouse_store.meters import declared

    return {name: meter.unit for name, meter in declared(settings).items()}


def _read(file: Path) -> str:
    from meterhouse_rating.document import MAX_BYTES

    with file.open("rb") as stream:
        # One byte more than allowed is enough to be refused.
        return stream.read(MAX_BYTES + 1).decode()


def _duration(text: str) -> timedelta:
    found = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if not found:
        _fail(f"{text!r} is no duration. Write 90s, 15m, 1h or 2d.", CALLED_WRONGLY)
    seconds = {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]
    return timedelta(seconds=int(found[1]) * seconds)


def _day(moment: Any) -> str:
    return "the beginning" if moment.year == 1970 else str(moment.isoformat(timespec="seconds"))


def _version_json(version: Any) -> dict[str, Any]:
    return {
        "version": version.version,
        "book": version.book.name,
        "sha256": version.sha256,
        "author": version.author,
        "valid_from": version.valid_from.isoformat(),
        "recorded_at": version.recorded_at.isoformat(),
    }
