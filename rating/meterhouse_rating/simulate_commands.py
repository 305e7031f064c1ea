"""`meterhouse prices simulate` and `meterhouse rate shadow`: what is printed, and the exit codes."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from meterhouse_rating.command_line import (
    CALLED_WRONGLY,
    EXCEPTIONS,
    FAILED,
    Data,
    Json,
    existing,
    fail,
    print_json,
    refusals,
    world_of,
)
from meterhouse_rating.price_commands import read_text

if TYPE_CHECKING:
    from meterhouse_rating.shadow import Shadow

_SHOWN = 50


def simulate(
    book: Annotated[Path, typer.Option(help="The other price book, YAML; it is not published.")],
    period: Annotated[str, typer.Option(metavar="P", help="2026-10, or 2026-08..2026-10 with both ends.")],
    customer: Annotated[str | None, typer.Option(help="Only this customer.")] = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a row per customer there.")] = None,
    picture: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Write a picture there.")] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Price real history under another book: who would pay more, who less, and what has no price there.

    Nothing is published and nothing is written but the files that are named. Revenue is before credits, which pay it.

    Exit code 3 when the other book leaves usage without a price.
    """
    from meterhouse_rating import simulate as simulation
    from meterhouse_rating import simulate_picture, simulate_report

    with refusals("; nothing was simulated"):
        months = simulation.months_of(period)
        made = simulation.simulate(world_of(existing(data)), read_text(book), months, customer)
        if csv is not None:
            csv.write_text(simulate_report.as_csv(made), encoding="utf-8")
        if picture is not None:
            picture.write_text(simulate_picture.as_svg(made), encoding="utf-8")
        if as_json:
            print_json(simulate_report.as_json(made))
        else:
            print(simulate_report.as_text(made))
        if made.left:
            raise typer.Exit(EXCEPTIONS)


def shadow(
    period: Annotated[str, typer.Option(metavar="P", help="2026-10 or START..END; with --book 2026-08..2026-10.")],
    book: Annotated[
        Path | None, typer.Option(help="Compare with this price book instead, which is a YAML file.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="FILE.csv", help="Compare with another system's totals: customer,metric,quantity,amount."),
    ] = None,
    customer: Annotated[str | None, typer.Option(help="Only this customer.")] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Rate what is closed once more, from what its closing knew, and compare each line. Writes nothing.

    Exit code 1 when anything differs, 3 when nothing differs and something could not be compared.
    """
    from meterhouse_rating import shadow as shadows
    from meterhouse_rating.simulate import months_of

    if book is not None and against is not None:
        fail("Name --book or --against, not both.", CALLED_WRONGLY)
    with refusals("; nothing was compared"):
        world = world_of(existing(data))
        try:
            if book is not None:
                made = shadows.under(world, months_of(period), read_text(book), customer)
            elif against is not None:
                made = shadows.against(world, period, against, customer)
            else:
                made = shadows.again(world, period, customer)
        except shadows.TotalsRefused as refused:
            fail(str(refused))
        if as_json:
            print_json({**asdict(made), "differences": [asdict(it) for it in made.differences]})
        else:
            print(_as_text(made, period))
        if made.differences:
            raise typer.Exit(FAILED)
        if made.unknown:
            raise typer.Exit(EXCEPTIONS)


def _as_text(made: "Shadow", period: str) -> str:
    from meterhouse_rating.layout import counted, table

    if not made.lines and not made.unknown:
        return f"Nothing of {period} to compare."
    parts = []
    if made.differences:
        rows = [("customer", "period", "line", "what", "old", "new")]
        shown = made.differences[:_SHOWN]
        rows += [(it.customer_id, it.period, it.line, it.field, it.old, it.new) for it in shown]
        more = len(made.differences) - len(shown)
        parts.append(table(rows, right={4, 5}) + (f"\n  and {more:,} more: --json has all of them" if more else ""))
    parts += [f"  not compared: {it}" for it in made.unknown[:_SHOWN]]
    parts += [f"  the same in other words: {it}" for it in made.reworded[:_SHOWN]]
    told = "nothing differs" if not made.differences else counted(len(made.differences), "difference")
    parts.append(f"{counted(made.lines, 'line')} compared, {told}.")
    return "\n".join(parts)
