"""`meterhouse costs`: what providers, tools and own units ask, and of which usage that is not known."""

import getpass
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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

if TYPE_CHECKING:
    from meterhouse_rating.costs_entries import Entry

costs = typer.Typer(
    help="What usage costs you: price lists of providers, and costs of your own.",
    no_args_is_help=True,
    add_completion=False,
)

By = Annotated[str | None, typer.Option(help="Who; the user of this machine if not given.")]
Why = Annotated[str, typer.Option(help="Kept with it.")]
Since = Annotated[str | None, typer.Option("--valid-from", metavar="T", help="For usage from then on (ISO, UTC).")]

_DECLARED = ("llm.requests", "agent.conversations", "agent.tasks")
"""What `costs import` declares to cost nothing: such an event says that something happened, its usage has the cost."""


@costs.command("import")
def costs_import(
    file: Annotated[Path | None, typer.Argument(help="A catalogue; without it the one that is shipped.")] = None,
    installed: Annotated[
        bool, typer.Option("--installed", help="Of the genai-prices package that is installed here.")
    ] = False,
    valid_from: Since = None,
    why: Why = "imported",
    by: By = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Pin a price list of providers. The first prices all usage, a later one what happens from its import on.

    Declares that llm.requests, agent.conversations and agent.tasks cost nothing by themselves, where nothing else is
    known of them; `costs retract` takes that back.
    """
    from meterhouse_rating import catalogues, costs_book, costs_snapshot
    from meterhouse_rating.costs_entries import DECLARED, Entry
    from meterhouse_rating.periods import instant
    from meterhouse_store.numbers import D
    from meterhouse_store.registry import ALWAYS

    with refusals():
        settings = existing(data)
        engine, who, now = engine_of(settings), by or getpass.getuser(), datetime.now(UTC)
        if installed:
            try:
                text = costs_snapshot.of_installed()
            except ModuleNotFoundError:
                fail("genai-prices is not installed here: pip install genai-prices, or leave --installed out.")
        else:
            text = catalogues.text() if file is None else _read(file)
        moment = None if valid_from is None else instant(valid_from)
        pinned, new = costs_book.pin(engine, settings.namespace, text, valid_from=moment, now=now, who=who, why=why)
        free = [
            Entry(
                meter, D(0), "USD", ALWAYS, source=DECLARED, service_tier="*", who=who,
                why="says that something happened; what was used for it has the cost",
            )
            for meter in _DECLARED
        ]  # fmt: skip
        declared = costs_book.add(engine, settings.namespace, free, now) if new else []
        if as_json:
            print_json(_pinned_json(pinned) | {"new": new, "declared_free": [it.meter for it, _ in declared]})
            return
        catalogue = pinned.read()
        models = sum(len(it.models) for it in catalogue.providers)
        done = "imported" if new else "was imported already, nothing changed"
        print(f"{pinned.name}: {len(catalogue.providers)} providers, {models:,} models, {done}.")
        print(f"It prices usage from {_day(pinned.valid_from)} on. Id {pinned.catalogue_id[:12]}.")
        if declared:
            print(f"Declared to cost nothing by themselves: {', '.join(it.meter for it, _ in declared)}.")


@costs.command("set")
def costs_set(
    meter: Annotated[str, typer.Argument(help="The meter, such as tool.calls; llm.tokens.* is all of them.")],
    price: Annotated[str, typer.Argument(help="What it costs; 0 where it costs nothing.")],
    why: Why,
    per: Annotated[int, typer.Option(help="So many units have that price.")] = 1,
    currency: Annotated[str, typer.Option(help="ISO 4217.")] = "USD",
    provider: Annotated[str, typer.Option(help="Only of this provider; a * at the end is any rest.")] = "",
    model: Annotated[str, typer.Option(help="Only of this model; a * at the end is any rest.")] = "",
    modality: Annotated[str, typer.Option(help="Only of text, image, audio, ...")] = "",
    cache_ttl: Annotated[str, typer.Option(help="Only of caches of 5m, 1h.")] = "",
    service_tier: Annotated[
        str, typer.Option(help="Only of this tier (batch, priority, ...), * for all; else the standard one.")
    ] = "",
    tool: Annotated[str, typer.Option(help="Only of this tool.")] = "",
    agent: Annotated[str, typer.Option(help="Only of this agent.")] = "",
    customer: Annotated[str, typer.Option(help="Only for this customer.")] = "",
    negotiated: Annotated[bool, typer.Option("--negotiated", help="Agreed with the provider, not your own.")] = False,
    valid_from: Since = None,
    valid_until: Annotated[str | None, typer.Option("--valid-until", metavar="T", help="And before then.")] = None,
    by: By = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing.")] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Record a cost: a negotiated price, or your own for a tool, a self-hosted model or another unit.

    It goes before the imported price list. Nothing is overwritten: of two that say as much about the usage the later
    counts. Without --valid-from it is of all usage. The same again, to the letter, changes nothing.
    """
    from meterhouse_rating import costs_book
    from meterhouse_rating.costs_entries import NEGOTIATED, OWN, Entry
    from meterhouse_rating.periods import instant
    from meterhouse_store.numbers import D
    from meterhouse_store.registry import ALWAYS

    with refusals():
        try:
            amount = D(price)
        except ValueError:
            fail(f"{price!r} is no number. Write 0.01.", CALLED_WRONGLY)
        settings = existing(data)
        wanted = Entry(
            meter,
            amount,
            currency.upper(),
            ALWAYS if valid_from is None else instant(valid_from),
            per=per,
            source=NEGOTIATED if negotiated else OWN,
            provider=provider,
            model=model,
            modality=modality,
            cache_ttl=cache_ttl,
            service_tier=service_tier,
            tool=tool,
            agent_id=agent,
            customer_id=customer,
            valid_until=None if valid_until is None else instant(valid_until),
            who=by or getpass.getuser(),
            why=why,
        )
        ((made, new),) = costs_book.add(
            engine_of(settings), settings.namespace, [wanted], datetime.now(UTC), write=not dry_run
        )
        if as_json:
            print_json(_entry_json(made) | {"new": new, "dry_run": dry_run})
            return
        done = "would be recorded (dry run)" if dry_run and new else "recorded" if new else "was recorded already"
        print(f"{_what(made)}: {_price(made)}, {_span(made)}: {done}. Id {made.entry_id[:12]}.")


@costs.command("retract")
def costs_retract(
    beginning: Annotated[str, typer.Argument(metavar="ID", help="The beginning of the id of a cost or a catalogue.")],
    why: Why,
    by: By = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Take a cost or a price list back: it prices nothing any more. The record of it stays."""
    from meterhouse_rating import costs_book

    with refusals():
        settings = existing(data)
        name, new = costs_book.retract(
            engine_of(settings),
            settings.namespace,
            beginning,
            now=datetime.now(UTC),
            who=by or getpass.getuser(),
            why=why,
        )
        if as_json:
            print_json({"retracted_id": name, "new": new})
        else:
            print(f"{name[:12]}: {'retracted' if new else 'was retracted already'}.")


@costs.command("list")
def costs_list(
    every: Annotated[bool, typer.Option("--all", help="Also what was retracted.")] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """List the price lists and the costs of your own, the newest last."""
    from meterhouse_rating import costs_book
    from meterhouse_rating.layout import table

    with refusals():
        settings = existing(data)
        entries, pinned, back = costs_book.history(engine_of(settings), settings.namespace)
        if not every:
            entries = [it for it in entries if it.entry_id not in back]
            pinned = [it for it in pinned if it.catalogue_id not in back]
        if as_json:
            print_json(
                {
                    "catalogues": [_pinned_json(it) | _back_json(back.get(it.catalogue_id)) for it in pinned],
                    "entries": [_entry_json(it) | _back_json(back.get(it.entry_id)) for it in entries],
                }
            )
            return
        blocks = []
        if pinned:
            lists = [("id", "price list", "valid from", "by", "why", "")]
            lists += [
                (it.catalogue_id[:12], it.name, _day(it.valid_from), it.who, it.why, _gone(back, it.catalogue_id))
                for it in pinned
            ]
            blocks.append(table(lists))
        if entries:
            rows = [("id", "of", "cost", "source", "when", "by", "why", "")]
            rows += [
                (it.entry_id[:12], _what(it), _price(it), it.source, _span(it), it.who, it.why[:48],
                 _gone(back, it.entry_id))
                for it in entries
            ]  # fmt: skip
            blocks.append(table(rows))
        print("\n\n".join(blocks) or "No costs are known: `meterhouse costs import` pins a price list of providers.")


@costs.command("rates")
def costs_rates(
    anew: Annotated[bool, typer.Option("--anew", help="Look through all usage again.")] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Resolve what usage costs into the warehouse, where the view `costs` has it for each event. May be repeated.

    `rate run`, `costs status` and `margin` do this by themselves. Exit code 3 where the cost of some usage is unknown.
    """
    from meterhouse_rating import costs_rates as rates
    from meterhouse_rating.layout import counted

    with refusals():
        settings = existing(data)
        made = rates.refresh(world_of(settings), anew=anew)
        if as_json:
            print_json(vars(made))
        else:
            print(
                f"{counted(made.combinations, 'kind')} of usage, {made.unknown:,} of unknown cost; "
                f"{counted(made.written, 'rate')} written."
            )
        if made.unknown:
            raise typer.Exit(EXCEPTIONS)


@costs.command("status")
def costs_status(
    period: Annotated[
        str | None, typer.Option(metavar="P", help="2026-10 (UTC) or START..END; else this month and the last.")
    ] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Say what usage cost, and of which usage that is not known and why. Exit code 3 where there is any.

    Without --period its end is kept as that of a scheduled command: `rate metrics` and the portal tell Prometheus the
    exit code (meterhouse_command_last_exit_code), 3 while any cost is unknown.
    """
    from meterhouse_rating import costs_rates as rates
    from meterhouse_rating import costs_report
    from meterhouse_store.last_runs import recorded

    with refusals():
        settings = existing(data)
        engine = engine_of(settings)
        kept = recorded(engine, settings.namespace, "costs status", lambda: datetime.now(UTC))
        with kept if period is None else nullcontext():
            world = world_of(settings, engine)
            rates.refresh(world)
            asked = costs_report.span(period, world.now())
            found = costs_report.status(world, asked)
            if any(it.reason == "not_resolved" for it in found.unknown):
                rates.refresh(world, anew=True)
                found = costs_report.status(world, asked)
            if as_json:
                print_json(costs_report.as_json(found))
            else:
                print(costs_report.as_text(found))
            if found.unknown:
                raise typer.Exit(EXCEPTIONS)


def _read(file: Path) -> str:
    from meterhouse_rating.costs_book import MAX_SNAPSHOT

    try:
        with file.open("rb") as stream:
            return stream.read(MAX_SNAPSHOT + 1).decode()
    except (OSError, UnicodeDecodeError) as broken:
        fail(
            f"{file} cannot be read: {broken}. `meterhouse costs import` without a file takes the one that is shipped."
        )


def _what(entry: "Entry") -> str:
    from meterhouse_rating.costs_entries import MATCHED

    said = [f"{name.removesuffix('_id')} {getattr(entry, name)}" for name in MATCHED[:-1] if getattr(entry, name)]
    return ", ".join([entry.meter, *reversed(said)])


def _price(entry: "Entry") -> str:
    from meterhouse_store.numbers import plain

    return f"{plain(entry.price)} {entry.currency}" + (f" per {entry.per:,}" if entry.per != 1 else "")


def _span(entry: "Entry") -> str:
    since, until = _day(entry.valid_from), entry.valid_until
    return f"from {since}" if until is None else f"{since}..{_day(until)}"


def _day(moment: datetime) -> str:
    from meterhouse_rating.periods import short

    return "the beginning" if moment.year == 1970 else short(moment.replace(microsecond=0))


def _gone(back: dict[str, Any], name: str) -> str:
    return f"retracted: {back[name]['why']}"[:48] if name in back else ""


def _back_json(row: dict[str, Any] | None) -> dict[str, Any]:
    return {"retracted": None if row is None else {name: row[name] for name in ("recorded_at", "who", "why")}}


def _pinned_json(pinned: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(pinned).items() if name != "snapshot"} | {"name": pinned.name}


def _entry_json(entry: "Entry") -> dict[str, Any]:
    from meterhouse_store.numbers import plain

    return vars(entry) | {"price": plain(entry.price)}
