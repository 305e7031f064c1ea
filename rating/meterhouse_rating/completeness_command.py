"""`meterhouse completeness`: whether a customer's usage of a period is all there."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from meterhouse_rating.command_line import EXCEPTIONS, Data, Json, existing, fail, print_json, refusals, world_of

app = typer.Typer(help="Say whether a customer's usage of a period is all there.", add_completion=False)


@app.command()
def completeness(
    customer: Annotated[str, typer.Option(help="The customer that is billed.")],
    period: Annotated[
        str, typer.Option(metavar="P", help="2026-10 (a month in the customer's time zone) or START..END (half-open).")
    ],
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Say whether a customer's usage of a period is all there: streams and their gaps, calls that were not finished,
    suspense that may be the customer's, control totals, and how far the warehouse is.

    Exit code 3 when there is something to look at.
    """
    from meterhouse_rating import periods
    from meterhouse_rating.layout import counted
    from meterhouse_store import registry
    from meterhouse_store.completeness import report

    with refusals():
        world = world_of(existing(data))
        known = {it.customer_id: it for it in registry.customers(world.engine, world.namespace)}
        zone = known[customer].time_zone if customer in known else "UTC"
        asked = periods.parse(period, zone)
        found = report(world.client, world.namespace, customer, asked.start, asked.end, now=datetime.now(UTC))
        if customer not in known and not found.found.streams:
            fail(f"{customer} is not registered and sent nothing: `meterhouse customers list` shows who is.")
        if as_json:
            print_json(found.as_json())
        else:
            print(f"{customer}, {periods.shown(asked, zone)}")
            for stream in found.found.streams:
                if stream.events:
                    times = f"last in the hour of {stream.hours[-1]:%Y-%m-%d %H:%M} UTC"
                    sent = f"{counted(stream.events, 'event')} of {counted(stream.processes, 'process')}"
                    print(f"  {stream.name}: {sent}, {times}")
            for one in found.found.received:
                parts = f"{one.counted:,} counted + {one.suspended:,} suspended + {one.set_aside:,} set aside"
                whole = f"{one.received:,} rows received in the period"
                print(f"  key {one.credential_id}: {whole} = {parts} + {one.duplicates:,} duplicates")
            if found.found.resets:
                print(f"  running totals began anew {found.found.resets} times")
            for name, through in found.found.projected_through:
                print(f"  collector {name}: in the warehouse up to {through:%Y-%m-%d %H:%M:%S} UTC")
            for sentence in found.exceptions:
                print(f"! {sentence}")
            print(found.verdict)
    if found.exceptions:
        raise typer.Exit(EXCEPTIONS)
