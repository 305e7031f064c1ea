"""The command `events`: single usage events that count, looked at, retracted and amended; files of usage, imported."""

import getpass
import json
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from meterhouse_collector.deciding import (
    Asked,
    By,
    Customer,
    DryRun,
    Meter,
    Why,
    Yes,
    about_rows,
    agreed,
    apply_decisions,
    counted,
    decide,
    opened,
    record_and_apply,
    wrong,
)
from meterhouse_collector.suspense_commands import suspense_show, suspense_undo
from meterhouse_collector.terminal import Data, Json, client_of, existing, failed, print_rows, text_of

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

    from meterhouse_store.suspended import Filter, Held

events = typer.Typer(
    help="Usage that counts: look at single events, retract and amend them, import files of usage.",
    no_args_is_help=True,
    add_completion=False,
)

_WAIT_S: Final = 30
_POLL_S: Final = 0.5

events.command("show", help="Show all that is known of an event, and every decision about it.")(suspense_show)
events.command("revert", help="Put events back to what they were before a decision (--whole: all of its command).")(
    suspense_undo
)


@events.command("retract")
@about_rows(
    reason=None,
    customer=Annotated[str | None, typer.Option(help="Only what is billed to this customer.")],
)
def events_retract(
    asked: Asked,
    batch: Annotated[str | None, typer.Option(help="Only what came with this import.")] = None,
) -> None:
    """Take usage that counts out of usage. It is kept, in the view `set_aside`, and `events revert` brings it back.

    Of a closed period the next rating has a correction.
    """
    from meterhouse_store import suspended
    from meterhouse_store.suspended import Filter

    if batch is None and asked.which.is_empty:
        raise wrong("say which events: --event, --batch, --customer, --meter, --since, --credential or --agent")
    if asked.which.is_empty:  # a batch is a choice by itself
        asked = replace(asked, which=Filter(since=datetime(1970, 1, 1, tzinfo=UTC)))

    def find(client: "Client", namespace: str, chosen: "Filter", most: int) -> "list[Held]":
        return suspended.find_counted(client, namespace, chosen, most, batch)

    decide(asked, "retracted", lambda rows, _client, _namespace: suspended.retract(rows), find, "no usage is like that")


@events.command("amend")
def events_amend(
    event: Annotated[str, typer.Argument(metavar="EVENT", help="The event's id.")],
    quantity: Annotated[str, typer.Argument(metavar="QUANTITY", help="What is true.")],
    why: Why,
    data: Data = None,
    meter: Meter = None,
    customer: Customer = None,
    by: By = None,
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """Let an event count with another quantity, from its own time and for the same customer.

    A copy with that quantity is sent to the collector, as a conflict, and let stand in place of the other by one
    decision: at no moment do both count, or none. Where it was interrupted the same command goes on.
    """
    from meterhouse_collector import backfill
    from meterhouse_store.completeness import AMENDMENTS

    settings = existing(data)
    client = client_of(settings)
    if not why.strip():
        raise wrong("say --why: it is kept with the decision")
    with opened(settings) as engine:
        apply_decisions(settings, engine, client)
    row = _the_one(client, settings.namespace, event, meter, customer)
    try:
        copy = backfill.amended(row, quantity)
    except ValueError as problem:
        raise wrong(str(problem)) from None
    if earlier := _set_aside(client, settings.namespace, copy):
        raise wrong(f"it was {text_of(copy.quantity)} before: `meterhouse events revert {earlier[:12]} --why ...`")
    said = f"{row['meter']} of {row['customer_id']} at {text_of(row['event_time'])}: "
    if not agreed(f"{said}{text_of(row['quantity'])} would become {text_of(copy.quantity)}", yes, dry_run):
        return
    _send(list(backfill.requests([copy], AMENDMENTS)), data)
    ruling = _awaited(client, settings.namespace, copy)
    with opened(settings) as engine:
        record_and_apply(settings, engine, ruling.drafts, why, by)
    print(f"{said}{text_of(row['quantity'])} is {text_of(copy.quantity)}")


@events.command("import")
def events_import(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="CSV with a header, or .jsonl: an object a line.")],
    why: Annotated[str, typer.Option(help="Why; it is kept with each event.")],
    data: Data = None,
    as_json: Json = False,
    batch: Annotated[str | None, typer.Option(help="The import's name. [from the file's content]")] = None,
    by: By = None,
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """Import usage from a file: customer_id, meter, quantity, event_time, and what else is known, a row an event.

    It goes through the collector's door into the journal, like all usage. The same file again adds nothing. Whole
    imports are taken back by `events retract --batch NAME`.
    """
    from meterhouse_collector import backfill
    from meterhouse_store.completeness import IMPORTS
    from meterhouse_store.meters import declared
    from meterhouse_store.suspended import BATCH

    if not why.strip() or len(why.encode()) > 256:
        raise wrong("say --why in at most 256 bytes: it is kept with each event")
    try:
        name = batch or backfill.batch_of(file)
        told = {BATCH: name, backfill.BY: (by or getpass.getuser())[:128], backfill.WHY: why.strip()}
        found = backfill.read(file, declared(existing(data)), datetime.now(UTC), told)
    except backfill.FileRefused as refused:
        raise wrong(f"{refused}\nnothing was imported") from None
    except OSError as problem:
        raise wrong(f"{file} cannot be read: {problem.strerror}") from None
    totals = backfill.totals(found)
    done = False
    if not as_json:
        print_rows(
            ["customer", "meter", "events", "quantity", "from", "to"],
            [(*row[:4], _moment(row[4]), _moment(row[5])) for row in totals],
        )
    if agreed(f"{counted(len(found), 'event')} as batch {name}, to be imported", yes, dry_run, quiet=as_json):
        _send(list(backfill.requests(found, IMPORTS)), data)
        done = True
    if as_json:
        rows = [
            {"customer_id": row[0], "meter": row[1], "events": row[2], "quantity": text_of(row[3])} for row in totals
        ]
        print(json.dumps({"batch": name, "events": len(found), "imported": done, "totals": rows}))
    elif done:
        print(f"{counted(len(found), 'event')} imported as batch {name}")
        print(f'to take it back: meterhouse events retract --batch {name} --why "..."')


def _the_one(client: "Client", namespace: str, event: str, meter: str | None, customer: str | None) -> dict[str, Any]:
    where = "namespace = {namespace:String} AND event_id = {event:String}"
    parameters = {"namespace": namespace, "event": event}
    for name, value in (("meter", meter), ("customer_id", customer)):
        if value is not None:
            where += f" AND {name} = {{{name}:String}}"
            parameters[name] = value
    query = f"SELECT *, toUnixTimestamp64Nano(key_time) AS key_ns FROM usage WHERE {where}"  # noqa: S608 - fixed parts
    rows = list(client.query(query, parameters=parameters).named_results())
    if len(rows) != 1:
        problem = "no event that counts" if not rows else f"{len(rows)} events that count"
        more = ": name --meter or --customer" if rows else ": `meterhouse events show` says what became of it"
        raise failed(f"there is {problem} with the id {event!r}{more}")
    return dict(rows[0])


def _set_aside(client: "Client", namespace: str, copy: Any) -> str:
    """The decision that took a copy with this quantity out of usage, or ''."""
    query = (
        "SELECT decision_id FROM set_aside WHERE namespace = {namespace:String} AND event_id = {event:String} "
        "AND meter = {meter:String} AND quantity = {quantity:Decimal(38, 9)} LIMIT 1"
    )
    named = {"namespace": namespace, "event": copy.event_id, "meter": copy.meter, "quantity": copy.quantity}
    rows = client.query(query, parameters=named).result_rows
    return str(rows[0][0]) if rows else ""


def _awaited(client: "Client", namespace: str, copy: Any) -> Any:
    """The decision that lets the copy stand, once the copy is in the warehouse."""
    from meterhouse_store import suspended
    from meterhouse_store.suspended import Filter

    which = Filter(events=(copy.event_id,), meter=copy.meter, quantity=copy.quantity, reason="conflict")
    deadline = time.monotonic() + _WAIT_S
    while True:
        rows = suspended.find(client, namespace, which, 2)
        if rows:
            ruling = suspended.release(rows[:1], suspended.counting(client, namespace, which))
            if not ruling.drafts:
                raise failed(f"the copy cannot stand: {'; '.join(sentence for sentence, _ in ruling.refused)}")
            return ruling
        if time.monotonic() > deadline:
            raise failed(
                f"the copy was taken by the collector and is not in the warehouse after {_WAIT_S} s: nothing is "
                "amended yet; look at `meterhouse warehouse status`, and run the same command again"
            )
        time.sleep(_POLL_S)


def _send(requests: list[bytes], data: Path | None) -> None:
    from rich.progress import track

    from meterhouse_collector.replay import Sender, SendFailed
    from meterhouse_collector.replay_command import collector_address

    endpoint, key = collector_address(data)
    sender = Sender(endpoint, key)
    quiet = not sys.stderr.isatty() or len(requests) == 1
    try:
        for request in track(requests, description="sending", disable=quiet, transient=True):
            sender.send(request)
    except SendFailed as problem:
        raise failed(f"{problem}; what was sent is kept, run the same command again to go on") from None
    finally:
        sender.close()


def _moment(ns: int) -> datetime:
    return datetime.fromtimestamp(ns // 1_000_000_000, UTC)
