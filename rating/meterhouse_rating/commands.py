"""`meterhouse rate`, and `meterhouse prices` from beside it: what is printed, and the exit codes."""

import re
import sys
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from meterhouse_rating.command_line import (
    CALLED_WRONGLY,
    EXCEPTIONS,
    Data,
    Json,
    engine_of,
    existing,
    fail,
    print_json,
    refusals,
    world_of,
)
from meterhouse_rating.price_commands import prices

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Engine

    from meterhouse_rating.late import LateUsage
    from meterhouse_rating.report import Report
    from meterhouse_rating.run import Request, Step
    from meterhouse_rating.settle import Outcome
    from meterhouse_rating.world import World
    from meterhouse_store.settings import Settings

__all__ = ["prices", "rate"]

rate = typer.Typer(help="Price the usage of a period, and close it.", no_args_is_help=True, add_completion=False)

_STATUS_TIMEOUT_S = 2
"""So long `rate status`, which is about SQL, waits for the warehouse."""

PeriodOption = Annotated[
    str | None,
    typer.Option(metavar="P", help="2026-10 (a month in the customer's time zone) or START..END (half-open)."),
]
CustomerOption = Annotated[str | None, typer.Option(help="Only this customer.")]


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
        fail("Name a --period, or --due for all that is due.", CALLED_WRONGLY)
    with refusals():
        _check_period(period)
        world = world_of(existing(data))
        request = Request(period, customer, dry_run)
        _drive(world, run(world, request), request, as_json, "Nothing to rate: no usage and no fees.")


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
    """Close a period: rate it for good, freeze its lines, post them to the ledger. Again changes nothing.

    Exit code 3 when there is usage without a price, or usage that came after the period was closed.
    """
    from meterhouse_rating.run import Request, close

    with refusals():
        _check_period(period)
        request, after, wait_s = Request(period, customer, dry_run), _duration(grace), _duration(wait).total_seconds()
        world = world_of(existing(data))
        steps = close(world, request, grace=after, wait_s=wait_s)
        _drive(world, steps, request, as_json, f"Nothing to close in {period}: no usage and no fees.")


@rate.command("status")
def rate_status(
    period: PeriodOption = None,
    customer: CustomerOption = None,
    lines: Annotated[bool, typer.Option("--lines", help="Show the lines' ids, however wide the table gets.")] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Show what is rated: per customer what was used and what it costs, and what has no price.

    Exit code 3 when there is usage without a price, or usage that came after its period was closed.
    """
    from meterhouse_rating import report

    with refusals():
        _check_period(period)
        settings = existing(data)
        engine = engine_of(settings)
        found = report.stored(engine, settings.namespace, period, customer)
        if found.closed:
            found = replace(found, late=_late(settings, engine, period, customer))
        where = "" if period is None else f" in {period}"
        how = "--due" if period is None else f"--period {period}"
        _print_report(found, as_json, lines=lines, empty=f"Nothing is rated{where} yet: `meterhouse rate run {how}`.")
        if found.exceptions:
            raise typer.Exit(EXCEPTIONS)


@rate.command("explain")
def rate_explain(
    line_id: Annotated[str, typer.Argument(help="The line's id, or its beginning, as `rate status --lines` shows it.")],
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Say how a line's amount came about: quantity, price and its line in the book, tiers, rounding, credits."""
    from meterhouse_rating import explain, report

    with refusals():
        settings = existing(data)
        rows = report.lines_named(engine_of(settings), settings.namespace, line_id)
        if len(rows) != 1:
            many = "Several lines begin" if rows else "No line begins"
            fail(f"{many} with {line_id}: `meterhouse rate status --lines` shows their ids.")
        if as_json:
            explanation = rows[0]["explanation"]
            print_json({"line_id": rows[0]["line_id"], "description": rows[0]["description"], **explanation})
        else:
            print(explain.as_text(rows[0]))


def _drive(world: "World", steps: "Iterable[Step]", request: "Request", as_json: bool, empty: str) -> None:
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
    if request.dry_run:
        now = world.now()
        found = report.imagined(world.namespace, outcomes, Moment(now, {}, now), late)
    else:
        found = report.stored(world.engine, world.namespace, request.period, request.customer, late)
    if not as_json:
        print()
    _print_report(found, as_json, empty=empty)
    if found.exceptions:
        raise typer.Exit(EXCEPTIONS)


def _late(settings: "Settings", engine: "Engine", period: str | None, customer: str | None) -> "tuple[LateUsage, ...]":
    """What came for closed periods since; without a warehouse it cannot be told, which is said."""
    from meterhouse_rating import late
    from meterhouse_store import registry
    from meterhouse_store.warehouse import WarehouseUnavailable

    try:
        world = world_of(settings, engine, timeout_s=_STATUS_TIMEOUT_S)
    except WarehouseUnavailable as unavailable:
        print(f"usage that came after a period was closed is not shown: {unavailable}", file=sys.stderr)
        return ()
    zones = {it.customer_id: it.time_zone for it in registry.customers(engine, settings.namespace)}
    return late.look(world, period, customer, zones, world.now())


def _print_report(found: "Report", as_json: bool, *, lines: bool = False, empty: str) -> None:
    from meterhouse_rating import report

    if as_json:
        print_json(report.as_json(found))
    else:
        print(report.as_text(found, line_ids=lines, empty=empty))


def _duration(text: str) -> timedelta:
    found = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if not found:
        fail(f"{text!r} is no duration. Write 90s, 15m, 1h or 2d.", CALLED_WRONGLY)
    seconds = {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]
    return timedelta(seconds=int(found[1]) * seconds)


def _check_period(text: str | None) -> None:
    """Refuse what is no period before anything is waited for. Raises PeriodError."""
    from meterhouse_rating.periods import parse

    if text is not None:
        parse(text, "UTC")
