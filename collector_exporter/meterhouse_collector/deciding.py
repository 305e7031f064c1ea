"""Deciding about rows: the options by which commands choose rows and say who and why, and the way from there.

Shared by `suspense`, whose rows do not count yet, and `events`, whose rows do. Heavy imports happen inside.
"""

import functools
import getpass
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

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
    text_of,
)
from meterhouse_store.terminal import instant

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client
    from sqlalchemy import Engine

    from meterhouse_store.decided import Applied
    from meterhouse_store.decisions import Draft
    from meterhouse_store.settings import Settings
    from meterhouse_store.suspended import Filter, Held, Ruling

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


CHOICE: Final = {
    "reason": Reason, "customer": Customer, "meter": Meter, "since": Since, "until": Until, "credential": Credential,
    "agent": Agent, "event": Event, "quantity": Quantity,
}  # fmt: skip
"""The options that choose rows, in the order of a Filter."""


@dataclass(frozen=True)
class Asked:
    """What a command about rows was told."""

    settings: "Settings"
    which: "Filter"
    why: str
    by: str | None
    yes: bool
    dry_run: bool
    limit: int
    as_json: bool


def about_rows(**other: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the options by which rows are chosen and decided about; it is called with what they come to.

    Its own parameters come after that, and before the options in the help. `other`: an option with another text, or
    None for one that it has not.
    """
    choice = {name: other.get(name, option) for name, option in CHOICE.items()}
    choice = {name: option for name, option in choice.items() if option is not None}

    def with_options(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def told(*own: Any, **given: Any) -> None:
            which = filter_of(**{name: given.pop(name) for name in choice})
            settings = existing(given.pop("data"))
            asked = Asked(settings, which, **{name: given.pop(name) for name in ("why", "by", "yes", "dry_run")},
                          limit=given.pop("limit"), as_json=given.pop("as_json"))  # fmt: skip
            command(asked, *own, **given)

        optional: dict[str, tuple[Any, Any]] = {"data": (Data, None), "as_json": (Json, False)}
        optional |= {name: (option, None) for name, option in choice.items()}
        optional |= {"by": (By, None), "yes": (Yes, False), "dry_run": (DryRun, False), "limit": (Limit, 100_000)}
        own = list(inspect.signature(command).parameters.values())[1:]
        first = [it for it in own if it.default is inspect.Parameter.empty]
        rest = [it for it in own if it.default is not inspect.Parameter.empty]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = [
            *first,
            inspect.Parameter("why", kind, annotation=Why),
            *rest,
            *(inspect.Parameter(name, kind, default=unsaid, annotation=of) for name, (of, unsaid) in optional.items()),
        ]
        # Typer reads both.
        told.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        told.__annotations__ = {it.name: it.annotation for it in parameters}
        return told

    return with_options


def decide(
    asked: Asked,
    what: str,
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
        text = f"{counted(ruling.rows, 'row')}, {text_of(ruling.quantity)} in quantity, to be {what}"
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
            print(f"{counted(ruling.rows, 'row')} {what}")
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

    schema.ensure(client, settings.warehouse_database)
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
    reason: str | None = None,
    customer: str | None = None,
    meter: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    credential: str | None = None,
    agent: str | None = None,
    event: list[str] | None = None,
    quantity: str | None = None,
) -> "Filter":
    """Which rows the options choose; ends the command where a quantity is no number, or a reason none of ours."""
    from meterhouse_store import reasons
    from meterhouse_store.numbers import D
    from meterhouse_store.suspended import Filter

    if reason is not None and not reasons.sentence(reason):
        raise wrong(f"there is no reason {reason!r}; there are {', '.join(sorted(reasons.SENTENCES))}")
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
