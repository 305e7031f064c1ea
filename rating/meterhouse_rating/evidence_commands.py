"""`meterhouse evidence` and `meterhouse verify`: what is printed, and the exit codes."""

from pathlib import Path
from typing import Annotated

import typer

from meterhouse_rating.command_line import (
    CALLED_WRONGLY,
    FAILED,
    Data,
    Json,
    existing,
    fail,
    print_json,
    refusals,
    world_of,
)
from meterhouse_rating.evidence_check.findings import NotReadable, Refused
from meterhouse_rating.evidence_check.ledger import Anchor
from meterhouse_rating.evidence_check.main import Result, read_anchor

evidence = typer.Typer(help="Make an evidence pack of a customer's period.", add_completion=False)
verify = typer.Typer(help="Verify an evidence pack.", add_completion=False)

Anchors = Annotated[
    list[Path] | None, typer.Option("--anchor", help="A file that `ledger anchor` wrote; may be given again.")
]


@evidence.command()
def make(
    customer: Annotated[str, typer.Argument(metavar="CUSTOMER", help="The customer's id.")],
    period: Annotated[
        str, typer.Option(metavar="P", help="2026-10 (a month in the customer's time zone) or START..END (half-open).")
    ],
    out: Annotated[Path, typer.Option(help="The pack, a zip file; what is there already is not replaced.")],
    anchor: Anchors = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Put what a customer's period was billed by into one file: its events, lines with their arithmetic, the price
    book, completeness, the ledger's transactions with their seals, and a program that verifies all of it.

    Made again it is the same file, to the byte. With --anchor the whole chain between the anchors is in it, so that the
    verifier can follow it; other customers' transactions are there with their amounts, and nobody's name.

    Exit code 1 when nothing is rated, or what is stored does not agree with itself: then no pack is made.
    """
    from meterhouse_rating import evidence, periods
    from meterhouse_store import registry

    with refusals():
        anchors = _anchors(anchor)
        world = world_of(existing(data))
        known = {it.customer_id: it for it in registry.customers(world.engine, world.namespace)}
        if customer not in known:
            fail(f"{customer} is not registered: `meterhouse customers list` shows who is.")
        asked = periods.parse(period, known[customer].time_zone)
        try:
            result = evidence.make(world, customer, asked, out, anchors)
        except evidence.NoEvidence as refused:
            fail(str(refused))
        if not result.verified:
            _tell(result, as_json)
            fail("No pack was made: what is stored does not agree with itself.")
        if as_json:
            print_json(result.as_json() | {"file": str(out)})
        else:
            print(result.as_text())
            print(f"{out}: {out.stat().st_size:,} bytes")


@verify.command()
def check(
    pack: Annotated[Path, typer.Argument(metavar="PACK", help="A file that `meterhouse evidence` made.")],
    anchor: Anchors = None,
    as_json: Json = False,
) -> None:
    """Recompute everything in an evidence pack: hashes, quantities from the events, amounts from the price book,
    totals, the ledger's sums and chain. It needs nothing but the pack: no Meterhouse has to run, and `python3 PACK`
    does the same.

    Says what was recomputed and what is only carried. With --anchor the ledger in it is held against what you kept.

    Exit code 1 when anything differs, 2 when there is no file to read.
    """
    from meterhouse_rating.evidence_check.main import verify

    try:
        result = verify(pack, _anchors(anchor))
    except NotReadable as refused:
        fail(f"{refused}.", CALLED_WRONGLY)
    _tell(result, as_json)
    if not result.verified:
        raise typer.Exit(FAILED)


def _anchors(paths: list[Path] | None) -> list[Anchor]:
    try:
        return [read_anchor(path) for path in paths or ()]
    except Refused as refused:
        fail(f"{refused}.", CALLED_WRONGLY)


def _tell(result: Result, as_json: bool) -> None:
    if as_json:
        print_json(result.as_json())
    else:
        print(result.as_text())
