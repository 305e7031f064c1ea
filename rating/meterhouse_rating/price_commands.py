"""`meterhouse prices`: what is printed, and the exit codes; the work is done elsewhere."""

import sys
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
    units,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy import Engine

    from meterhouse_rating.publishing import Person, Proposal
    from meterhouse_rating.versions import Version

prices = typer.Typer(help="Check, publish and show price books.", no_args_is_help=True, add_completion=False)

BEGINNING = "the beginning"


@prices.command("check")
def prices_check(file: Annotated[Path, typer.Argument(help="The price book, YAML.")], data: Data = None) -> None:
    """Check a price book; lists every mistake with its line. Exit code 1 when there are any."""
    from meterhouse_rating.book import check
    from meterhouse_store.settings import load

    with refusals():
        # Only the declared meters are read: a book can be checked where there is no Meterhouse.
        checked = check(read_text(file), units(load(data)))
        for note in checked.notes:
            print(f"note: {note}")
        plans = ", ".join(checked.book.plans)
        print(f"{file}: no mistakes. Price book {checked.book.name} with the plans {plans}.")


@prices.command("publish")
def prices_publish(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="The price book, YAML; with --starter a name.")
    ] = None,
    starter: Annotated[
        bool,
        typer.Option("--starter", help="A book that ships with Meterhouse: `--starter NAME`, or the one of `up`."),
    ] = False,
    valid_from: Annotated[str | None, typer.Option(metavar="T", help="ISO date or instant.")] = None,
    author: Annotated[str | None, typer.Option(help="Who publishes it.")] = None,
    data: Data = None,
) -> None:
    """Publish a price book as the next version, which is never changed.

    It prices periods that begin at or after --valid-from. The first book is valid from the beginning, later ones from
    now where nothing else is said. Publishing the same again changes nothing. Where `prices persons 2` holds, it is
    proposed, and in force when another person approves it.

    Exit code 3 when the book lacks a plan that customers are on, or that new ones get: their usage will be unrated.
    """
    from datetime import UTC, datetime

    from meterhouse_rating import periods, publishing, versions

    if file is None and not starter:
        fail("Name a FILE, or --starter for the book that ships with Meterhouse.", CALLED_WRONGLY)
    with refusals("; nothing was published"):
        settings = existing(data)
        text = versions.starter() if file is None else _starter(str(file)) if starter else read_text(file)
        of_up = starter and file is None
        engine, namespace = engine_of(settings), settings.namespace
        begins = None if valid_from is None else periods.beginning(valid_from)
        if publishing.two_persons(engine, namespace):
            by, now = person(author), datetime.now(UTC)
            proposed = publishing.propose(engine, namespace, text, units(settings), by=by, valid_from=begins, now=now)
            if not isinstance(proposed, versions.Version):
                print(_proposed(*proposed))
                return
            version, new = proposed, False
        else:
            who = versions.STARTER_AUTHOR if of_up else person(author).name
            version, new = versions.publish(engine, namespace, text, units(settings), author=who, valid_from=begins)
        print_in_force(engine, namespace, version, new)
        if plans_missing(engine, namespace, version) and not of_up:
            raise typer.Exit(EXCEPTIONS)  # but what a system begins with takes no price from anybody


@prices.command("starters")
def prices_starters(
    name: Annotated[str | None, typer.Argument(help="Print this one, to begin your own book with.")] = None,
) -> None:
    """List the starter books that ship with Meterhouse, or print one of them."""
    from meterhouse_rating import starters
    from meterhouse_rating.layout import table

    if name is not None:
        sys.stdout.write(_starter(name))
    else:
        print(table([("name", "what it is"), *starters.names().items()]))
        print("\n`meterhouse prices starters NAME > book.yaml` begins your own book with one of them.")


@prices.command("list")
def prices_list(data: Data = None, as_json: Json = False) -> None:
    """List the published versions."""
    from meterhouse_rating.layout import table
    from meterhouse_rating.publishing import approvers
    from meterhouse_rating.versions import versions

    with refusals():
        settings = existing(data)
        engine = engine_of(settings)
        found, second = versions(engine, settings.namespace), approvers(engine, settings.namespace)
        if as_json:
            print_json([_version_json(it) | {"approved_by": second.get(it.version)} for it in found])
        elif found:
            rows = [("version", "book", "valid from", "by", "sha256")]
            for it in found:
                by = f"{it.author}, {second[it.version]}" if it.version in second else it.author
                rows.append((str(it.version), it.book.name, _day(it.valid_from), by, it.sha256[:12]))
            print(table(rows, right={0}))
        else:
            print("No price book is published: `meterhouse prices publish FILE`.")


@prices.command("show")
def prices_show(
    version: Annotated[int | None, typer.Argument(help="The version; without it the newest.")] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Print a published price book exactly as it was published."""
    from meterhouse_rating.versions import versions

    with refusals():
        settings = existing(data)
        found = versions(engine_of(settings), settings.namespace)
        chosen = found[-1:] if version is None else [it for it in found if it.version == version]
        if not chosen:
            fail("There is no such version: `meterhouse prices list` shows them.")
        if as_json:
            print_json(_version_json(chosen[0]) | {"source": chosen[0].source})
        else:
            sys.stdout.write(chosen[0].source)


def person(name: str | None) -> "Person":
    """Who calls: the name given, else that of the account. Raises PublishingRefused."""
    import getpass

    from meterhouse_rating.publishing import Person

    account = getpass.getuser()
    return Person(account if name is None else name, account)


def print_in_force(engine: "Engine", namespace: str, version: "Version", new: bool) -> None:
    """Say which periods a version prices."""
    from meterhouse_rating.versions import versions

    print(_published(version, versions(engine, namespace), new))


def plans_missing(engine: "Engine", namespace: str, version: "Version") -> bool:
    """Warn of plans that customers or the namespace's default are on and the version lacks; whether there are any."""
    from meterhouse_rating import versions
    from meterhouse_store import registry

    world = registry.namespace(engine, namespace)
    default = None if world is None else world.default_plan
    known, contracts = versions.versions(engine, namespace), registry.contracts(engine, namespace)
    left_out = versions.plans_left_out(version, known, contracts, default)
    if left_out:
        print(_warning(version, left_out, default), file=sys.stderr)
    return bool(left_out)


def _proposed(proposal: "Proposal", new: bool) -> str:
    begins = "its approval" if proposal.valid_from is None else _day(proposal.valid_from)
    what = "is proposed" if new else f"was proposed by {proposal.author} already, nothing changed"
    return (
        f"Version {proposal.version} {what}: sha256 {proposal.sha256}, valid from {begins} on.\n"
        f"Another person puts it in force: `meterhouse prices approve {proposal.sha256[:12]} --why ...`"
    )


def _published(version: "Version", known: "Sequence[Version]", new: bool) -> str:
    from meterhouse_rating import reach, versions

    what = "published" if new else "was published already, nothing changed"
    text = f"Price book {version.book.name}, version {version.version}, {what}: valid from {_day(version.valid_from)}."
    found = reach.reach(version, known)
    if _day(version.valid_from) != BEGINNING or found is None or found.until is not None:
        text += f"\n{reach.told(version, known)}"
    if version.version == 2 and known[0].author == versions.STARTER_AUTHOR:
        text += "\nVersion 1 is the starter book that `meterhouse up` began with."
    return text


def _warning(version: "Version", left_out: dict[str, int], default: str | None) -> str:
    from meterhouse_rating.layout import counted

    plans = []
    for plan, count in left_out.items():
        users = [counted(count, "customer")] if count else []
        users += ["the default of new customers"] if plan == default else []
        plans.append(f"{plan} ({', '.join(users)})")
    return (
        f"warning: version {version.version} has no plan {', '.join(plans)}; it has {', '.join(version.book.plans)}. "
        "Usage on a plan that is not in the book is unrated: add the plan and publish again, or move the customers "
        "(`meterhouse customers add ID --plan PLAN`)."
    )


def _starter(name: str) -> str:
    from meterhouse_rating import starters

    try:
        return starters.text(name)
    except KeyError:
        fail(f"There is no starter book {name}: `meterhouse prices starters` lists them.", CALLED_WRONGLY)


def read_text(file: Path) -> str:
    """The text of a price book's file; ends the command where there is none."""
    from meterhouse_rating.document import MAX_BYTES

    try:
        with file.open("rb") as stream:
            # One byte more than allowed is enough to be refused.
            return stream.read(MAX_BYTES + 1).decode()
    except UnicodeDecodeError as broken:
        fail(f"{file} is no text: byte {broken.start} is not UTF-8. Name a price book in YAML.")
    except OSError as broken:
        fail(f"{file} cannot be read: {broken.strerror}. Name a price book in YAML.")


def _day(moment: "datetime") -> str:
    from meterhouse_rating.periods import short

    return BEGINNING if moment.year == 1970 else short(moment.replace(microsecond=0))


def _version_json(version: Any) -> dict[str, Any]:
    return {
        "version": version.version,
        "book": version.book.name,
        "sha256": version.sha256,
        "author": version.author,
        "valid_from": version.valid_from.isoformat(),
        "recorded_at": version.recorded_at.isoformat(),
    }
