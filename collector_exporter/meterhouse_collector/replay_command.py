"""The command `meterhouse replay`."""

import json
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from meterhouse_collector.replay import Plan, Trace

app = typer.Typer(help="Load usage from a CSV file of real LLM requests.", add_completion=False)


@app.command()
def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="CSV: TIMESTAMP,ContextTokens,GeneratedTokens.")],
    customers: Annotated[str, typer.Option(help="Who takes turns: a,b,c, or weighted a:3,b:1.")],
    period_start: Annotated[str, typer.Option("--from", help="Where the first row goes, e.g. 2026-10-01 (UTC).")],
    period_end: Annotated[str, typer.Option("--to", help="Before where the last row goes, e.g. 2026-11-01 (UTC).")],
    provider: Annotated[str, typer.Option(help="gen_ai.provider.name of the calls.")] = "azure",
    model: Annotated[str, typer.Option(help="gen_ai.response.model of the calls.")] = "gpt-x",
    agent: Annotated[str, typer.Option(help="gen_ai.agent.name of the calls.")] = "replay",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Compute and print the totals, send nothing.")] = False,
    data: Annotated[Path | None, typer.Option(help="Data directory of `up` (METERHOUSE_DATA).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines: one JSON document.")] = False,
) -> None:
    """Load usage from a CSV file of real LLM requests.

    Row i (from 0, in file order) is one call: llm.requests 1, llm.tokens.input = ContextTokens, llm.tokens.output =
    GeneratedTokens; no event for 0 tokens.

    Time is stretched linearly from the file's [first, last] onto [FROM, TO). Row i belongs to customer number i modulo
    n of --customers, where a:3,b:1 stands as a,a,a,b.

    Ids follow from the file, these options, the row and the meter: the same command again sends the same events and
    changes nothing.

    Goes to METERHOUSE_ENDPOINT with METERHOUSE_API_KEY, else to what runs in the data directory. Prints the totals per
    customer: the truth that usage must show.
    """
    from meterhouse_collector import replay as work

    try:
        trace = work.read_trace(file)
        plan = work.Plan(
            work.cycle(customers), *_period(period_start, period_end), provider=provider, model=model, agent=agent
        )
    except work.BadTrace as problem:
        print(problem, file=sys.stderr)
        raise typer.Exit(2) from None
    except OSError as problem:
        print(_unreadable(file, problem), file=sys.stderr)
        raise typer.Exit(2) from None
    if not dry_run:
        endpoint, key = collector_address(data)
        try:
            _send(endpoint, key, trace, plan)
        except work.SendFailed as problem:
            print(f"{problem}; what was sent is kept, run the same command again to go on", file=sys.stderr)
            raise typer.Exit(1) from None
    _print_totals(work.totals(work.events(trace, plan)), dry_run=dry_run, as_json=as_json)


def _send(endpoint: str, key: str, trace: "Trace", plan: "Plan") -> None:
    from rich.progress import track

    from meterhouse_collector import replay as work

    sender = work.Sender(endpoint, key)
    requests = list(work.requests(work.events(trace, plan), trace, plan))
    for request in track(requests, description="sending", disable=not sys.stderr.isatty(), transient=True):
        sender.send(request)
    sender.close()


def _print_totals(totals: dict[str, Any], *, dry_run: bool, as_json: bool) -> None:
    meters = sorted({meter for counter in totals.values() for meter in counter} - {"events"})
    if as_json:
        customers = {
            name: {"events": counter["events"], "units": {meter: str(counter[meter]) for meter in meters}}
            for name, counter in sorted(totals.items())
        }
        print(json.dumps({"sent": not dry_run, "customers": customers}))
        return
    names = sorted(totals)
    rows = [(name, totals[name]["events"], *(totals[name][meter] for meter in meters)) for name in names]
    rows.append(("total", *(sum(row[i] for row in rows) for i in range(1, len(meters) + 2))))
    print(f"{'customer':<20}{'events':>12}" + "".join(f"{meter:>20}" for meter in meters))
    for name, *units in rows:
        print(f"{name:<20}{units[0]:>12,}" + "".join(f"{unit:>20,}" for unit in units[1:]))
    print("dry run: nothing was sent" if dry_run else "sent and acknowledged")


def _period(start: str, end: str) -> tuple[datetime, datetime]:
    from meterhouse_collector.replay import BadTrace

    try:
        first, last = (datetime.fromisoformat(text) for text in (start, end))
    except ValueError as problem:
        raise BadTrace(
            f"--from and --to are dates or instants like 2026-10-01 or 2026-10-01T12:00: {problem}"
        ) from None
    first, last = (at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC) for at in (first, last))
    now = datetime.now(UTC)
    if not first < last:
        raise BadTrace("--from must be before --to")
    if first < now - timedelta(days=400) or last > now + timedelta(days=1):
        raise BadTrace("usage counts from 400 days ago to one day ahead: choose --from and --to in between")
    return first, last


def collector_address(data: Path | None) -> tuple[str, str]:
    from meterhouse_store import endpoints, settings

    endpoint, key = os.environ.get("METERHOUSE_ENDPOINT"), os.environ.get("METERHOUSE_API_KEY")
    if endpoint and key:
        return endpoint, key
    try:
        found = endpoints.read(settings.load_existing(data).data)
    except settings.NoData as missing:
        raise _no_collector(str(missing)) from None
    if found is None:
        raise _no_collector("Meterhouse does not run here: start `meterhouse up`")
    return endpoint or found.collector.http, key or found.collector.api_key


def _no_collector(text: str) -> typer.Exit:
    print(f"{text}. A collector elsewhere is named by METERHOUSE_ENDPOINT and METERHOUSE_API_KEY", file=sys.stderr)
    return typer.Exit(1)


def _unreadable(file: Path, problem: OSError) -> str:
    if isinstance(problem, FileNotFoundError):
        return f"there is no file {file}"
    if isinstance(problem, IsADirectoryError):
        return f"{file} is a directory: name a CSV file in it"
    return f"{file} cannot be read: {problem.strerror}"
