"""`meterhouse prices persons`, `proposals`, `approve`, `reject` and `audit`: a price book that takes two persons."""

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meterhouse_rating.command_line import (
    CALLED_WRONGLY,
    EXCEPTIONS,
    FAILED,
    Data,
    Json,
    engine_of,
    existing,
    fail,
    print_json,
    refusals,
    units,
)
from meterhouse_rating.price_commands import person, plans_missing, print_in_force, read_text

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from meterhouse_rating.publishing import Proposal
    from meterhouse_rating.versions import Version

Reference = Annotated[
    str, typer.Argument(metavar="VERSION|HASH", help="The version that it would be, or the beginning of its hash.")
]
Why = Annotated[str, typer.Option(help="Kept with the record.")]
By = Annotated[str | None, typer.Option(help="Who you are; the account's name if not given.")]


def add_to(prices: typer.Typer) -> None:
    """Make these commands part of `meterhouse prices`."""
    for command in (diff, persons, proposals, approve, reject, audit):
        prices.command(command.__name__)(command)


def diff(
    first: Annotated[str, typer.Argument(metavar="BOOK", help="A file, a version, or the beginning of a hash.")],
    second: Annotated[str | None, typer.Argument(metavar="[BOOK]", help="The other one, the newer of the two.")] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Compare two price books value by value; one alone is compared with the newest version.

    Exit code 1 when anything differs; how the texts are laid out does not count.
    """
    from meterhouse_rating import price_changes, versions
    from meterhouse_rating.layout import table

    with refusals():
        settings = existing(data)
        engine, namespace = engine_of(settings), settings.namespace
        known = versions.versions(engine, namespace)
        if second is None and not known:
            raise versions.NotThere("no price book is published: name two books to compare")
        old = known[-1].source if second is None else _text(first, known, engine, namespace)
        new = _text(first if second is None else second, known, engine, namespace)
        found = price_changes.changes(old, new)
        if as_json:
            print_json([vars(it) for it in found])
        elif found:
            rows = [("where", "before", "after")]
            rows += [
                (it.place, "-" if it.before is None else it.before, "-" if it.after is None else it.after)
                for it in found
            ]
            print(table(rows))
        else:
            print("Nothing differs.")
        if found:
            raise typer.Exit(FAILED)


def _text(reference: str, known: "list[Version]", engine: "Engine", namespace: str) -> str:
    """The text of a book: a file, a published version by its number or hash, or a proposal. Raises BookRefused."""
    from pathlib import Path

    from meterhouse_rating import publishing
    from meterhouse_rating.book import parse

    if not reference.strip():
        fail("A book is named by a file, a version, or the beginning of a hash.", CALLED_WRONGLY)
    if Path(reference).exists() or _is_file(reference):
        text = read_text(Path(reference))
        parse(text)
        return text
    whole = reference.isdecimal() and len(reference) < publishing.MIN_HASH
    matches = [
        it
        for it in known
        if (str(it.version) == reference if whole else it.sha256.startswith(reference.lower()))
        and (whole or len(reference) >= publishing.MIN_HASH)
    ]
    return (
        matches[-1].source if matches else publishing.named(publishing.proposals(engine, namespace), reference).source
    )


def _is_file(reference: str) -> bool:
    """Whether it can only be meant as a file: then one that is not there is said to be so."""
    return "/" in reference or reference.lower().endswith((".yaml", ".yml"))


def persons(
    number: Annotated[str | None, typer.Argument(metavar="[1|2]", help="How many from now on.")] = None,
    why: Why = "",
    by: By = None,
    data: Data = None,
) -> None:
    """Say how many persons it takes to put a price book in force, or set it for the namespace.

    2 holds at once. 1 again is a proposal that another person has to approve, like a price book.
    """
    from meterhouse_rating import publishing

    if number not in (None, "1", "2"):
        fail(f"{number!r} persons: write 1 or 2.", CALLED_WRONGLY)
    with refusals():
        settings = existing(data)
        engine, namespace, now = engine_of(settings), settings.namespace, datetime.now(UTC)
        if number is None:
            two = publishing.two_persons(engine, namespace)
            print(f"A price book of {namespace} takes {'two persons' if two else 'one person'}.")
        elif number == "2":
            new = publishing.ask_for_two(engine, namespace, by=person(by), why=why, now=now)
            print(f"A price book of {namespace} takes two persons {'from now on' if new else 'already'}.")
        elif made := publishing.propose_one(engine, namespace, by=person(by), why=why, now=now):
            proposal, new = made
            what = "It is proposed" if new else f"{proposal.author} proposed already"
            print(
                f"{what} that one person is enough. Another one makes it so: "
                f"`meterhouse prices approve {proposal.sha256[:12]} --why ...`"
            )
        else:
            print(f"A price book of {namespace} takes one person already.")


def proposals(
    reference: Annotated[
        str | None,
        typer.Argument(metavar="[VERSION|HASH]", help="Print the text of this one, to compare and to simulate with."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Those that were decided and outdated, too.")] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """List the proposals that wait for another person, or print the text of one. Times are UTC."""
    from meterhouse_rating import publishing
    from meterhouse_rating.layout import table

    with refusals():
        settings = existing(data)
        found = publishing.proposals(engine_of(settings), settings.namespace)
        if reference is not None:
            sys.stdout.write(publishing.named(found, reference).source)
            return
        shown = [it for it in found if every or it.state == publishing.OPEN]
        if as_json:
            print_json([_json(it) for it in shown])
        elif shown:
            head = ("proposed at", "what", "valid from", "by", "sha256", "state")
            print(table([head, *(_row(it) for it in shown)]))
        else:
            print("Nothing is proposed." if every else "No proposal waits (`--all` lists those that did).")


def approve(reference: Reference, why: Why, by: By = None, data: Data = None) -> None:
    """Put a proposed price book in force, as another person than its author. Again changes nothing.

    By its hash it is the very text that you have read; a version's number means what is proposed as that version now.

    Exit code 1 when it is refused, which is noted: to its author, where another version came meanwhile, where its text
    was changed. 3 when the book lacks a plan that customers are on.
    """
    from meterhouse_rating import price_audit, publishing

    with refusals():
        settings = existing(data)
        engine, namespace, now = engine_of(settings), settings.namespace, datetime.now(UTC)
        found, version = publishing.approve(
            engine, namespace, reference, units(settings), by=person(by), why=why, now=now
        )
        again = found.state == price_audit.APPROVED
        if version is None:
            print(f"A price book of {namespace} takes one person {'already' if again else 'from now on'}.")
            return
        print_in_force(engine, namespace, version, not again)
        if plans_missing(engine, namespace, version):
            raise typer.Exit(EXCEPTIONS)


def reject(reference: Reference, why: Why, by: By = None, data: Data = None) -> None:
    """Turn a proposal down, or take back your own. Again changes nothing."""
    from meterhouse_rating import publishing

    with refusals():
        settings = existing(data)
        found = publishing.reject(
            engine_of(settings), settings.namespace, reference, by=person(by), why=why, now=datetime.now(UTC)
        )
        print(f"{_what(found)} of {found.author} ({found.sha256[:12]}) is rejected.")


def audit(data: Data = None, as_json: Json = False) -> None:
    """Show who proposed, approved and rejected what, when and why, and what was refused. Times are UTC."""
    from meterhouse_rating import publishing
    from meterhouse_rating.layout import table
    from meterhouse_rating.periods import short

    with refusals():
        settings = existing(data)
        engine = engine_of(settings)
        found = publishing.audit(engine, settings.namespace)
        if as_json:
            print_json([vars(it) for it in found])
        elif found:
            names = {it.proposal_id: it.sha256[:12] for it in publishing.proposals(engine, settings.namespace)}
            rows = [("at", "what", "sha256", "who", "account", "why")]
            for it in found:
                what = f"{it.what}: version {it.version}" if it.version is not None else it.what
                at = short(it.recorded_at.replace(microsecond=0))
                rows.append((at, what, names.get(it.proposal_id or "", ""), it.who, it.account, it.why))
            print(table(rows))
        else:
            print("Nothing was proposed yet.")


def _what(found: "Proposal") -> str:
    return "One person is enough" if found.version is None else f"Version {found.version}"


def _row(found: "Proposal") -> tuple[str, ...]:
    from meterhouse_rating.periods import short

    begins = "" if found.version is None else "its approval"
    begins = begins if found.valid_from is None else short(found.valid_from.replace(microsecond=0))
    state = found.state if found.decided is None else f"{found.state} by {found.decided.who}: {found.decided.why}"
    at = short(found.recorded_at.replace(microsecond=0))
    return at, _what(found).lower(), begins, found.author, found.sha256[:12], state


def _json(found: "Proposal") -> dict[str, Any]:
    decided = None if found.decided is None else vars(found.decided)
    values = {name: value for name, value in vars(found).items() if name != "source"}
    return values | {"version": found.version, "decided": decided}
