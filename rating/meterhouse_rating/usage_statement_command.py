"""`meterhouse statement`: what is printed, and the exit codes."""

import csv
import re
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from meterhouse_rating.command_line import EXCEPTIONS, Data, Json, existing, fail, print_json, refusals, world_of

app = typer.Typer(help="Say what a customer used in a period and what it comes to.", add_completion=False)


@app.command()
def statement(
    customer: Annotated[str, typer.Argument(metavar="CUSTOMER", help="The customer's id.")],
    period: Annotated[
        str,
        typer.Option(
            metavar="P",
            help="2026-10 (a month in the customer's time zone), 2026-08..2026-10 (both in it, each for itself), or "
            "START..END (half-open).",
        ),
    ],
    table: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write it as rows of CSV there too; - for this output.")
    ] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Itemise a customer's usage of a period before anything is charged: each line with its arithmetic, sums by kind,
    what is free, has no price, came late or is in suspense, and whether the usage is complete. Nothing is written.

    Of several months there is a statement each (with --json under `statements`).

    Of an open period it says what all that is known now comes to; of a closed one, what was billed.

    Exit code 3 when there is usage without a price, late, or in suspense.
    """
    from meterhouse_rating import periods, usage_statement
    from meterhouse_rating.simulate import months_of
    from meterhouse_store import registry

    to_output = str(table) == "-"
    with refusals():
        world = world_of(existing(data))
        known = registry.customer(world.engine, world.namespace, customer)
        if known is None:
            fail(f"{customer} is not registered: `meterhouse customers list` shows who is.")
        spans = months_of(period) if re.fullmatch(r"\d{4}-\d\d\.\.\d{4}-\d\d", period) else (period,)
        made = [usage_statement.state(world, known, it, periods.parse(it, known.time_zone)) for it in spans]
        if table is not None:
            rows = [row for it in made for row in usage_statement.as_rows(it)]
            # The output is not ours to close.
            place = nullcontext(sys.stdout) if to_output else table.open("w", encoding="utf-8", newline="")
            with place as file:
                # A \r that is not quoted begins a row in a spreadsheet; where lines end in \n alone it is not quoted.
                writer = csv.DictWriter(file, usage_statement.COLUMNS, lineterminator="\r\n")
                writer.writeheader()
                writer.writerows(rows)
        if as_json:
            told = [usage_statement.as_json(it) for it in made]
            print_json(told[0] if len(spans) == 1 else {"statements": told})
        elif not to_output:
            print("\n\n\n".join(usage_statement.as_text(it) for it in made))
    if any(it.exceptions for it in made):
        raise typer.Exit(EXCEPTIONS)
