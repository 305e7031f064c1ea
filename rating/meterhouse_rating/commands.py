"""`meterhouse rate`, and `meterhouse prices` from beside it: what is printed, and the exit codes."""

import os
import re
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from meterhouse_rating.command_line import (
    CALLED_WRONGLY,
    EXCEPTIONS,
    FAILED,
    Data,
    Json,
    engine_of,
    existing,
    fail,
    print_json,
    refusals,
    world_of,
)
from meterhouse_rating.price_api.command import serve
from meterhouse_rating.price_commands import prices
from meterhouse_rating.progress import watched
from meterhouse_rating.publishing_commands import add_to
from meterhouse_rating.simulate_commands import shadow, simulate

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy import Engine

    from meterhouse_rating.late import LateUsage
    from meterhouse_rating.report import Report
    from meterhouse_rating.run import Request, Step
    from meterhouse_rating.settle import Outcome
    from meterhouse_rating.world import World
    from meterhouse_store.last_runs import LastRun
    from meterhouse_store.settings import Settings

__all__ = ["prices", "rate"]

rate = typer.Typer(help="Price the usage of a period, and close it.", no_args_is_help=True, add_completion=False)
prices.command("simulate")(simulate)
add_to(prices)
prices.command("serve")(serve)
rate.command("shadow")(shadow)

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
    new: Annotated[
        bool, typer.Option("--new", help="Only usage that came since the last --new, of the months under way.")
    ] = False,
    customer: CustomerOption = None,
    as_of: Annotated[
        str | None, typer.Option("--as-of", metavar="T", help="By what was known then; writes nothing.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing.")] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Price usage. Runs may be repeated, stopped and started again: open ratings change only when their inputs did.

    Where rating is turned off (`meterhouse namespaces set`), --due and --new do nothing, and a --period is refused.

    --new is for every minute, between runs with --due: it rates registered customers whose usage of the month is new.
    Late usage of other months, corrections, trials and what changed in contracts alone are left to --due.

    Exit code 3 when there is usage without a price, or usage that came after its period was closed.
    """
    from meterhouse_rating.run import Request, run
    from meterhouse_store.switches import SwitchedOff

    if (period is not None) + due + new != 1:
        fail("Name a --period, or --due for all that is due, or --new for what is new.", CALLED_WRONGLY)
    if new and (customer is not None or dry_run):
        fail("--new is about all customers, and writes: use --due with --customer or --dry-run.", CALLED_WRONGLY)
    if as_of is not None and period is None:
        fail("--as-of looks at one --period.", CALLED_WRONGLY)
    with refusals():
        _check_period(period)
        settings = existing(data)
        engine = engine_of(settings)
        if as_of is not None:
            _as_of(world_of(settings, engine), period or "", customer, as_of, as_json)
            return
        try:
            _require_rating(settings, engine, dry_run)
        except SwitchedOff as off:
            if period is not None:
                raise
            print(f"Nothing is rated: {off}.", file=sys.stderr if as_json else sys.stdout)
            return
        request = Request(period, customer, dry_run, new)
        with _recorded(settings, engine, "rate run", request):
            world = world_of(settings, engine)
            _drive(world, run(world, request), request, as_json, "Nothing to rate: no usage and no fees.")


@rate.command("close")
def rate_close(
    period: PeriodOption = None,
    due: Annotated[bool, typer.Option("--due", help="Every month that is over and not closed, in order.")] = False,
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

    if (period is None) == (not due):
        fail("Name a --period, or --due for all that is due.", CALLED_WRONGLY)
    with refusals():
        _check_period(period)
        request, after, wait_s = Request(period, customer, dry_run), _duration(grace), _duration(wait).total_seconds()
        settings = existing(data)
        engine = engine_of(settings)
        _require_rating(settings, engine, dry_run)
        where = "Nothing is due to be closed" if due else f"Nothing to close in {period}: no usage and no fees"
        with _recorded(settings, engine, "rate close", request):
            world = world_of(settings, engine)
            steps = close(world, request, grace=after, wait_s=wait_s)
            _drive(world, steps, request, as_json, f"{where}.")


@rate.command("status")
def rate_status(
    period: PeriodOption = None,
    customer: CustomerOption = None,
    lines: Annotated[bool, typer.Option("--lines", help="Show the lines' ids, however wide the table gets.")] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Show what is rated: per customer what was used and what it costs, what has no price, and when it was last run.

    Exit code 3 when there is usage without a price, or usage that came after its period was closed.
    """
    from meterhouse_rating import report
    from meterhouse_store.last_runs import last_runs

    with refusals():
        _check_period(period)
        settings = existing(data)
        engine = engine_of(settings)
        found = report.stored(engine, settings.namespace, period, customer)
        if found.closed:
            found = replace(found, late=_late(settings, engine, period, customer))
        where = "" if period is None else f" in {period}"
        how = "--due" if period is None else f"--period {period}"
        empty = f"Nothing is rated{where} yet: `meterhouse rate run {how}`."
        _print_report(found, as_json, lines=lines, empty=empty, runs=last_runs(engine, settings.namespace))
        if found.exceptions:
            raise typer.Exit(EXCEPTIONS)


@rate.command("metrics")
def rate_metrics(
    textfile: Annotated[
        Path | None, typer.Option(help="Write it there, for node_exporter's textfile collector: NAME.prom.")
    ] = None,
    data: Data = None,
) -> None:
    """Print when `rate run` and `rate close` last began, ended and succeeded, of all namespaces, for Prometheus."""
    from meterhouse_store.last_runs import last_runs, prometheus

    with refusals():
        text = prometheus(last_runs(engine_of(existing(data))))
        if textfile is None:
            print(text, end="")
        else:
            _replace(textfile, text)


@rate.command("corrections")
def rate_corrections(customer: CustomerOption = None, data: Data = None, as_json: Json = False) -> None:
    """List what closed periods were corrected by: lines of later ratings, and credit notes."""
    from meterhouse_rating import report
    from meterhouse_rating.layout import money, table

    with refusals():
        settings = existing(data)
        found = report.corrections(engine_of(settings), settings.namespace, customer)
        if as_json:
            print_json(found)
        elif not found:
            print("Nothing was corrected.")
        else:
            head = ("customer", "of", "what", "on", "amount", "")
            rows = [
                (it["customer_id"], it["period"], it["description"].partition(" (correction of ")[0], it["on"],
                 money(it["amount_minor"], it["currency"]), it["currency"])
                for it in found
            ]  # fmt: skip
            print(table([head, *rows], right={4}))


@rate.command("explain")
def rate_explain(
    line_id: Annotated[str, typer.Argument(help="The line's id, or its beginning, as `rate status --lines` shows it.")],
    events: Annotated[
        int, typer.Option(min=0, max=100_000, help="Show so many of the events; 0: none, and ask no warehouse.")
    ] = 20,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Say how a line's amount came about, down to the events and traces: quantity, price and its line in the book,
    tiers, credits, rounding. So are lines of fees, discounts, credits and corrections, and those of credit notes.

    It is checked that the events add up to the quantity, and that the price book's text gives the amount.

    Exit code 1 when they do not; what differs is said.
    """
    from meterhouse_rating import explain, explain_events, report

    if not line_id.strip():
        fail(
            "Name the line by its id, or the beginning of it: `meterhouse rate status --lines` shows them.",
            CALLED_WRONGLY,
        )
    with refusals():
        settings = existing(data)
        engine = engine_of(settings)
        rows = report.lines_named(engine, settings.namespace, line_id)
        if len(rows) != 1:
            many = "Several lines begin" if rows else "No line begins"
            fail(f"{many} with {line_id}: `meterhouse rate status --lines` shows their ids.")
        line = rows[0]
        found = explain_events.behind(world_of(settings, engine), line, events) if events else None
        if as_json:
            told = {} if found is None else found.as_json()
            about = {"line_id": line["line_id"], "description": line["description"]}
            print_json({**about, **line["explanation"], "behind": told})
        else:
            print(explain.as_text(line))
            if found is not None:
                print(found.as_text())
        if found is not None and found.problems:
            raise typer.Exit(FAILED)


def _as_of(world: "World", period: str, customer: str | None, as_of: str, as_json: bool) -> None:
    """Print what was known at a moment; exit code 3 where a closed rating does not come out as it was closed."""
    from meterhouse_rating import report
    from meterhouse_rating.as_of import rate_as_of
    from meterhouse_rating.periods import instant
    from meterhouse_rating.results import Moment

    moment = instant(as_of)
    found = list(rate_as_of(world, period, customer, moment))
    outcomes = [it.outcome for it in found]
    shown = report.imagined(world.namespace, outcomes, Moment(moment, {}, moment), ())
    for it in found:
        print(it, file=sys.stderr if as_json else sys.stdout)
    _print_report(shown, as_json, empty=f"Nothing of {period} was known then.")
    if any(it.same is False for it in found):
        raise typer.Exit(EXCEPTIONS)


def _require_rating(settings: "Settings", engine: "Engine", dry_run: bool) -> None:
    """Raise SwitchedOff where rating is turned off; looking on does not write, and is let."""
    from meterhouse_store import switches

    if not dry_run:
        switches.require(engine, settings.namespace, switches.RATING)


def _drive(world: "World", steps: "Iterable[Step]", request: "Request", as_json: bool, empty: str) -> None:
    """Print each step when it is done, then the report; exit code 3 when there is something to look at."""
    from meterhouse_rating import report
    from meterhouse_rating.results import Moment

    outcomes: list[Outcome] = []
    late: list[LateUsage] = []
    for step in watched(steps, sys.stderr if as_json else sys.stdout):
        late += step.late
        if step.outcome is not None:
            outcomes.append(step.outcome)
    if request.new:
        _print_new(outcomes, as_json)
        return
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


def _print_new(outcomes: "Sequence[Outcome]", as_json: bool) -> None:
    """Print how many customers changed: all that stands would be much, every minute; exit code 3 as for a whole run."""
    changed = sorted(it.customer_id for it in outcomes if it.what == "rated")
    exceptions = sorted(it.customer_id for it in outcomes if it.exceptions)
    if as_json:
        print_json({"rated": changed, "exceptions": exceptions})
    else:
        told = f"; usage without a price: {', '.join(exceptions)}" if exceptions else ""
        print(f"\n{len(changed)} rated anew{told}. `meterhouse rate status` shows all.")
    if exceptions:
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


def _print_report(
    found: "Report", as_json: bool, *, lines: bool = False, empty: str, runs: "Sequence[LastRun] | None" = None
) -> None:
    from meterhouse_rating import report

    if as_json:
        shown = report.as_json(found)
        print_json(shown if runs is None else shown | {"runs": [asdict(it) for it in runs]})
        return
    print(report.as_text(found, line_ids=lines, empty=empty))
    if runs:
        print("\n" + report.runs_as_text(runs))


def _recorded(settings: "Settings", engine: "Engine", command: str, request: "Request") -> AbstractContextManager[None]:
    """Keep how the command ends. One customer alone, or a dry run, is no sign of a kept schedule."""
    from meterhouse_store.last_runs import recorded

    if request.dry_run or request.customer is not None:
        return nullcontext()
    name = (
        f"{command} --new" if request.new else f"{command} --due" if request.period is None else f"{command} --period"
    )
    return recorded(engine, settings.namespace, name, lambda: datetime.now(UTC))


def _replace(file: Path, text: str) -> None:
    """Write the file so that whoever reads it finds the old text or the new one."""
    new = file.with_name(f".{file.name}.{os.getpid()}")
    new.write_text(text, encoding="utf-8")
    new.replace(file)


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
