"""The command `suspense`: look at usage that does not count, and decide about it. Heavy imports happen inside."""

import getpass
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meterhouse_collector.terminal import (
    CALLED_WRONGLY,
    DONE,
    EXCEPTIONS,
    Data,
    Json,
    client_of,
    existing,
    failed,
    print_rows,
    text_of,
)
from meterhouse_store.terminal import instant

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client
    from sqlalchemy import Engine

    from meterhouse_store.decided import Applied
    from meterhouse_store.decisions import Decision, Draft, Key
    from meterhouse_store.settings import Settings
    from meterhouse_store.suspended import Filter, Held, Ruling

suspense = typer.Typer(
    help="Usage that was received and does not count, each with its reason: list it, decide about it.",
    no_args_is_help=True,
    add_completion=False,
)

Reason = Annotated[str | None, typer.Option(help="Only rows held back for this reason.")]
Customer = Annotated[str | None, typer.Option(help="Only rows that name this customer; '' for those that name none.")]
Meter = Annotated[str | None, typer.Option(help="Only this meter, without the prefix meterhouse.")]
Since = Annotated[datetime | None, typer.Option(parser=instant, metavar="TIME", help="Received from then on.")]
Until = Annotated[datetime | None, typer.Option(parser=instant, metavar="TIME", help="Received before.")]
Credential = Annotated[str | None, typer.Option(help="Only what came with this key (`meterhouse keys list`).")]
Agent = Annotated[str | None, typer.Option(help="Only this agent, by name or id.")]
Event = Annotated[list[str] | None, typer.Option(help="Only this event; may be given several times.")]
Quantity = Annotated[str | None, typer.Option(help="Only copies with this quantity.")]
Why = Annotated[str, typer.Option(help="Why; it is kept with the decision.")]
By = Annotated[str | None, typer.Option(help="Who decides; else the user of this machine.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]
Limit = Annotated[int, typer.Option(min=1, max=1_000_000, help="Refuse where more rows than this are found.")]


@suspense.callback()
def _suspense() -> None:
    """Usage that was received and does not count, each with its reason: list it, decide about it."""


@suspense.command("list")
def suspense_list(
    data: Data = None,
    as_json: Json = False,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Rows at most, the latest first.")] = 200,
    reason: Reason = None,
    customer: Customer = None,
    meter: Meter = None,
    since: Since = None,
    until: Until = None,
    credential: Credential = None,
    agent: Agent = None,
    event: Event = None,
    quantity: Quantity = None,
) -> None:
    """List suspended usage of the namespace, and what could not be read, the latest first.

    Exit code 3 when there is any.
    """
    from meterhouse_store import suspended

    which = filter_of(reason, customer, meter, since, until, credential, agent, event, quantity)
    settings = existing(data)
    client = client_of(settings)
    total = suspended.count(client, settings.namespace, which)
    rows = suspended.find(client, settings.namespace, which, limit)
    if as_json:
        print(json.dumps([_as_json(row) for row in rows]))
    elif not total:
        print("nothing is suspended" if which.is_empty else "nothing suspended is like that")
    else:
        print_rows(
            ["received", "reason", "customer", "meter", "quantity", "as sent", "event time", "event"],
            [
                (
                    row.received_at,
                    row.reason,
                    row.key.customer_id or "-",
                    row.key.meter,
                    row.key.quantity,
                    row.raw_value[:24],
                    row.event_time,
                    row.key.event_id,
                )
                for row in rows
            ],
        )
        print(f"{total} suspended" + (f", the latest {limit} shown" if total > limit else ""))
    raise typer.Exit(EXCEPTIONS if total else DONE)


@suspense.command("show")
def suspense_show(event_id: str, data: Data = None, as_json: Json = False) -> None:
    """Show all that is known of an event's rows, whether they are in suspense or not, and every decision about them."""
    from meterhouse_store import decisions

    settings = existing(data)
    client = client_of(settings)
    found: list[dict[str, Any]] = []
    for state in ("usage", "suspense", "set_aside"):
        query = (
            f"SELECT *, toUnixTimestamp64Nano(key_time) AS key_ns FROM {state} "  # noqa: S608 - three names
            "WHERE namespace IN ({namespace:String}, '') AND event_id = {event:String} "
            "ORDER BY meter, customer_id, quantity"
        )
        rows = client.query(query, parameters={"namespace": settings.namespace, "event": event_id})
        found += [{"state": state, **row} for row in rows.named_results()]
    if not found:
        raise failed(f"there is no event {event_id!r} in namespace {settings.namespace}")
    keys = [_key(row) for row in found]
    with opened(settings) as engine:
        history = [decisions.of_rows(engine, [key.row_id]) for key in keys]
    if as_json:
        both = zip(found, history, strict=True)
        print(json.dumps([{**row, "decisions": [_told(one) for one in past]} for row, past in both], default=text_of))
        return
    for row, past in zip(found, history, strict=True):
        for name, value in row.items():
            if value not in ("", {}, None):
                print(f"{name:20} {text_of(value)}")
        for one in past:
            print(f"{'decision':20} {_sentence(one)}")
        print()


@suspense.command("assign")
def suspense_assign(
    to: Annotated[str, typer.Argument(metavar="CUSTOMER", help="Whom the usage is billed to.")],
    why: Why,
    data: Data = None,
    as_json: Json = False,
    reason: Reason = None,
    customer: Customer = None,
    meter: Meter = None,
    since: Since = None,
    until: Until = None,
    credential: Credential = None,
    agent: Agent = None,
    event: Event = None,
    quantity: Quantity = None,
    by: By = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    limit: Limit = 100_000,
) -> None:
    """Bill suspended usage to CUSTOMER, where the customer is what was in doubt.

    The customer as claimed stays with the row; `usage` has CUSTOMER as billed_customer_id. Exit code 3 when rows that
    were found were refused.
    """
    from meterhouse_store import suspended

    if not to or len(to.encode()) > 256:
        raise wrong("a customer is named by 1 to 256 bytes")
    which = filter_of(reason, customer, meter, since, until, credential, agent, event, quantity)
    asked = Asked(existing(data), which, f"assigned to {to}", why, by, yes, dry_run, limit, as_json)
    decide(asked, lambda rows, client, namespace: suspended.assign(
        rows, to, suspended.counting(client, namespace, which, to)
    ))  # fmt: skip


@suspense.command("release")
def suspense_release(
    why: Why,
    data: Data = None,
    as_json: Json = False,
    reason: Reason = None,
    customer: Customer = None,
    meter: Meter = None,
    since: Since = None,
    until: Until = None,
    credential: Credential = None,
    agent: Agent = None,
    event: Event = None,
    quantity: Quantity = None,
    by: By = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    limit: Limit = 100_000,
) -> None:
    """Let suspended usage count as it stands, for the customer it names.

    One whose time was out of range counts at the time it was received. A copy in conflict takes the place of the one
    that stands, which is retracted. Exit code 3 when rows that were found were refused.
    """
    from meterhouse_store import suspended

    which = filter_of(reason, customer, meter, since, until, credential, agent, event, quantity)
    asked = Asked(existing(data), which, "released", why, by, yes, dry_run, limit, as_json)
    decide(asked, lambda rows, client, namespace: suspended.release(
        rows, suspended.counting(client, namespace, which)
    ))  # fmt: skip


@suspense.command("discard")
def suspense_discard(
    why: Why,
    data: Data = None,
    as_json: Json = False,
    reason: Reason = None,
    customer: Customer = None,
    meter: Meter = None,
    since: Since = None,
    until: Until = None,
    credential: Credential = None,
    agent: Agent = None,
    event: Event = None,
    quantity: Quantity = None,
    by: By = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    limit: Limit = 100_000,
) -> None:
    """Take usage out of suspense for good: nobody pays for it. It is kept, in the view `set_aside`."""
    from meterhouse_store import suspended

    which = filter_of(reason, customer, meter, since, until, credential, agent, event, quantity)
    asked = Asked(existing(data), which, "discarded", why, by, yes, dry_run, limit, as_json)
    decide(asked, lambda rows, _client, _namespace: suspended.discard(rows))


@suspense.command("undo")
def suspense_undo(
    decision: Annotated[str, typer.Argument(help="The decision's id, or the beginning of it: `suspense decisions`.")],
    why: Why,
    data: Data = None,
    whole: Annotated[bool, typer.Option("--whole", help="All that the same command decided.")] = False,
    by: By = None,
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """Put rows back to what they were before a decision, by a further decision. What belongs to it goes with it."""
    from meterhouse_store import decisions

    settings = existing(data)
    with opened(settings) as engine:
        try:
            drafts = decisions.undo(engine, decisions.with_its_command(engine, decision, whole=whole))
        except LookupError as problem:
            raise failed(str(problem)) from None
        if not agreed(f"{counted(len(drafts), 'decision')} would be undone", yes, dry_run):
            return
        record_and_apply(settings, engine, drafts, why, by)
    print(f"{counted(len(drafts), 'decision')} undone")


@suspense.command("decisions")
def suspense_decisions(
    data: Data = None,
    as_json: Json = False,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most, the latest first.")] = 50,
) -> None:
    """List what was decided, the latest first."""
    from meterhouse_store import decisions

    settings = existing(data)
    with opened(settings) as engine:
        found = decisions.latest(engine, settings.namespace, limit)
    if as_json:
        print(json.dumps([_told(one) for one in found], default=text_of))
    elif not found:
        print("nothing was decided")
    else:
        print_rows(
            ["decided", "decision", "what", "customer", "meter", "quantity", "event", "by", "why"],
            [
                (
                    one.decided_at,
                    one.decision_id[:12],
                    _what(one),
                    one.draft.key.customer_id or "-",
                    one.draft.key.meter,
                    one.draft.key.quantity,
                    one.draft.key.event_id,
                    one.who,
                    one.why,
                )
                for one in found
            ],
        )


@suspense.command("apply")
def suspense_apply(data: Data = None) -> None:
    """Bring decisions into the warehouse that are not in it yet. The collector does so by itself.

    Exit code 3 where decisions wait for rows that are not in the warehouse.
    """
    settings = existing(data)
    with opened(settings) as engine:
        done = apply_decisions(settings, engine, client_of(settings))
    print(f"{counted(done.applied, 'decision')} applied, {done.waiting} wait for their rows")
    raise typer.Exit(EXCEPTIONS if done.waiting else DONE)


@dataclass(frozen=True)
class Asked:
    """What a command was told."""

    settings: "Settings"
    which: "Filter"
    what: str
    why: str
    by: str | None
    yes: bool
    dry_run: bool
    limit: int
    as_json: bool


def decide(
    asked: Asked,
    rule: "Callable[[list[Held], Client, str], Ruling]",
    find: "Callable[[Client, str, Filter, int], list[Held]] | None" = None,
    nothing: str = "nothing suspended is like that",
) -> None:
    """Find the rows (those in suspense, if not told otherwise), rule, ask, record, apply, and say what was done."""
    from meterhouse_store import suspended

    find = find or suspended.find
    if not asked.why.strip():
        raise wrong("say --why: it is kept with the decision")
    if asked.which.is_empty:
        raise wrong("say which rows: --reason, --customer, --meter, --since, --credential, --agent or --event")
    settings = asked.settings
    client = client_of(settings)
    with opened(settings) as engine:
        apply_decisions(settings, engine, client)  # what is seen is what everybody has decided so far
        rows = find(client, settings.namespace, asked.which, asked.limit + 1)
        if len(rows) > asked.limit:
            raise failed(f"more than {asked.limit} rows are like that: narrow it down, or raise --limit")
        ruling = rule(rows, client, settings.namespace)
        text = f"{counted(ruling.rows, 'row')}, {text_of(ruling.quantity)} in quantity, to be {asked.what}"
        done = bool(ruling.drafts) and agreed(text, asked.yes, asked.dry_run, quiet=asked.as_json)
        if done:
            record_and_apply(settings, engine, ruling.drafts, asked.why, asked.by)
    if asked.as_json:
        refused = [{"rows": number, "why": sentence} for sentence, number in ruling.refused]
        told = {"rows": ruling.rows, "quantity": text_of(ruling.quantity), "done": done, "refused": refused}
        print(json.dumps(told | {"decisions": [draft.decision_id for draft in ruling.drafts] if done else []}))
    else:
        if not rows:
            print(nothing)
        if done:
            print(f"{counted(ruling.rows, 'row')} {asked.what}")
        for sentence, number in ruling.refused:
            print(f"{counted(number, 'row')} refused: {sentence}")
    raise typer.Exit(EXCEPTIONS if ruling.refused else DONE)


def _now() -> datetime:
    return datetime.now(UTC)


def agreed(text: str, yes: bool, dry_run: bool, *, quiet: bool = False) -> bool:
    if dry_run:
        if not quiet:
            print(f"{text} (dry run, nothing was done)")
        return False
    if yes:
        return True
    if not sys.stdin.isatty():
        raise wrong(f"{text}: say --yes to do it, or --dry-run")
    return typer.confirm(f"{text}. Do it?", err=True)


def record_and_apply(
    settings: "Settings", engine: "Engine", drafts: "Sequence[Draft]", why: str, by: str | None
) -> None:
    from meterhouse_store import decisions

    try:
        decisions.record(engine, drafts, why=why, who=by or getpass.getuser(), clock=_now)
    except decisions.DecidedMeanwhile as problem:
        raise failed(str(problem)) from None
    except ValueError as problem:
        raise wrong(str(problem)) from None
    apply_decisions(settings, engine, client_of(settings))


def apply_decisions(settings: "Settings", engine: "Engine", client: "Client") -> "Applied":
    """Where the journal is here, a rebuild may be about to exchange the tables: its lock is taken."""
    from meterhouse_collector.projection import projection_lock
    from meterhouse_collector.service import journal_directory
    from meterhouse_store import decided, schema

    schema.migrate(client, settings.warehouse_database)
    directory = journal_directory(settings.data)
    if not directory.exists():
        return decided.apply(engine, client)
    with projection_lock(directory, wait=True):
        return decided.apply(engine, client)


@contextmanager
def opened(settings: "Settings") -> "Iterator[Engine]":
    from sqlalchemy.exc import OperationalError

    from meterhouse_store.sql import SchemaMismatch, open_engine

    try:
        engine = open_engine(settings)
    except (SchemaMismatch, OperationalError) as problem:
        raise failed(f"the SQL database cannot be used: {problem}") from None
    try:
        yield engine
    finally:
        engine.dispose()


def filter_of(
    reason: str | None,
    customer: str | None,
    meter: str | None,
    since: datetime | None,
    until: datetime | None,
    credential: str | None,
    agent: str | None,
    event: list[str] | None,
    quantity: str | None,
) -> "Filter":
    from meterhouse_store.numbers import D
    from meterhouse_store.suspended import Filter

    try:
        number = None if quantity is None else D(quantity)
    except ValueError as problem:
        raise wrong(str(problem)) from None
    return Filter(reason, customer, meter, since, until, credential, agent, tuple(event or ()), number)


def wrong(sentence: str) -> typer.Exit:
    print(sentence, file=sys.stderr)
    return typer.Exit(CALLED_WRONGLY)


def counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _key(row: dict[str, Any]) -> "Key":
    from meterhouse_store.decisions import Key

    claimed = (row["namespace"], row["customer_id"], row["meter"])
    return Key(*claimed, row.pop("key_ns"), row["event_id"], row["quantity"])


def _as_json(row: "Held") -> dict[str, Any]:
    return {
        "received_at": text_of(row.received_at),
        "reason": row.reason,
        "customer_id": row.key.customer_id,
        "meter": row.key.meter,
        "quantity": text_of(row.key.quantity),
        "raw_value": row.raw_value,
        "event_time": text_of(row.event_time),
        "event_id": row.key.event_id,
        "agent_name": row.agent_name,
        "credential_id": row.credential_id,
    }


def _told(one: "Decision") -> dict[str, Any]:
    key = one.draft.key
    return {
        "decision_id": one.decision_id,
        "kind": one.draft.kind,
        "reason": one.draft.reason,
        "billed_customer_id": one.draft.billed_customer_id,
        "original_reason": one.draft.original_reason,
        "customer_id": key.customer_id,
        "meter": key.meter,
        "event_id": key.event_id,
        "quantity": text_of(key.quantity),
        "follows": one.draft.follows,
        "why": one.why,
        "who": one.who,
        "decided_at": text_of(one.decided_at),
    }


def _what(one: "Decision") -> str:
    to = f" to {one.draft.billed_customer_id}" if one.draft.billed_customer_id else ""
    return f"{one.draft.kind}{to}"


def _sentence(one: "Decision") -> str:
    return f"{text_of(one.decided_at)} {one.decision_id[:12]} {_what(one)} by {one.who}: {one.why}"
