"""Two persons: where a namespace asks for them, one proposes a price book and another one puts it in force.

A proposal is kept as it was made. What is approved becomes a version byte for byte; what is decided, refused attempts
included, is in the audit record (price_audit.py). Ending the rule is a proposal too: one person alone cannot.

Names are taken as they are given, as everywhere in Meterhouse; the account of the operating system is kept beside.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Engine, insert, select

from meterhouse_rating import price_audit, versions
from meterhouse_rating.book import BookRefused, check
from meterhouse_rating.ids import digest
from meterhouse_rating.price_audit import (
    APPROVED,
    ONE_PERSON,
    PROPOSED,
    PUBLISHED,
    REFUSED,
    REJECTED,
    TWO_PERSONS,
    Entry,
)
from meterhouse_rating.versions import Version
from meterhouse_store import persons
from meterhouse_store.tables import price_proposals

BOOK: Final = "book"
OPEN: Final = "open"
OUTDATED: Final = "outdated"
MIN_HASH: Final = 8
"""So much of a hash at least names a proposal; what is shorter and all digits is a version."""
_MAX_NAME: Final = 128
_END_OF_RULE: Final = "persons: 1\n"


class PublishingRefused(ValueError):
    """Something about a proposal that is not done; the text says why, and what to do."""


@dataclass(frozen=True)
class Person:
    """Who acts: the name as given, and the account of the operating system. Raises PublishingRefused for no name."""

    name: str
    account: str

    def __post_init__(self) -> None:
        if not self.name.strip() or len(self.name) > _MAX_NAME or not self.name.isprintable():
            raise PublishingRefused(f"{self.name[:_MAX_NAME]!r} names nobody: 1 to {_MAX_NAME} printable characters")

    def is_author_of(self, proposal: "Proposal") -> bool:
        """Whether it may be the same person: capitals and spaces make no second one."""
        return persons.may_be_one(self.name, proposal.author)


@dataclass(frozen=True)
class Proposal:
    """What somebody proposed; `kind` book or one_person (the end of the rule).

    `state`: open, outdated (another version came meanwhile), approved or rejected; then `decided` says by whom.
    """

    proposal_id: str
    kind: str
    sha256: str
    source: str
    valid_from: datetime | None
    base_version: int
    author: str
    account: str
    recorded_at: datetime
    state: str = OPEN
    decided: Entry | None = None

    @property
    def version(self) -> int | None:
        """The version that it would be; None for the end of the rule."""
        return self.base_version + 1 if self.kind == BOOK else None

    @property
    def intact(self) -> bool:
        """Whether the text is the one that was proposed."""
        return hashlib.sha256(self.source.encode()).hexdigest() == self.sha256


def two_persons(engine: Engine, namespace: str) -> bool:
    """Whether the namespace asks for two persons."""
    with engine.connect() as connection:
        return price_audit.two_persons(connection, namespace)


def ask_for_two(engine: Engine, namespace: str, *, by: Person, why: str, now: datetime) -> bool:
    """From now on a price book takes two persons; returns whether that is new. One person may say so."""
    _check_why(why)
    with versions.locked(engine, namespace) as connection:
        if price_audit.two_persons(connection, namespace):
            return False
        _note(connection, namespace, TWO_PERSONS, by, why, now)
    return True


def propose_one(engine: Engine, namespace: str, *, by: Person, why: str, now: datetime) -> tuple[Proposal, bool] | None:
    """Propose that one person is enough again; the proposal and whether it is new. None where one is enough already."""
    _check_why(why)
    with versions.locked(engine, namespace) as connection:
        if not price_audit.two_persons(connection, namespace):
            return None
        return _propose(connection, namespace, ONE_PERSON, _END_OF_RULE, None, 0, by, why, now)


def propose(
    engine: Engine,
    namespace: str,
    text: str,
    declared: Mapping[str, str],
    *,
    by: Person,
    valid_from: datetime | None,
    now: datetime,
) -> tuple[Proposal, bool] | Version:
    """Propose a book as the next version: the proposal and whether it is new, or the version that it is already.

    The same text proposed again on the same version is the same proposal, also by somebody else. Raises BookRefused.
    """
    sha256 = check(text, declared).book.sha256
    with versions.locked(engine, namespace) as connection:
        known = versions.of(connection, namespace)
        standing = versions.repeated(known, sha256, valid_from)
        if standing is not None:
            return standing
        return _propose(connection, namespace, BOOK, text, valid_from, len(known), by, "", now)


def approve(
    engine: Engine,
    namespace: str,
    reference: str,
    declared: Mapping[str, str],
    *,
    by: Person,
    why: str,
    now: datetime,
) -> tuple[Proposal, Version | None]:
    """Put a proposal in force as another person than its author: it, and the version it made (None: the rule ends).

    `reference`: the version that it would be, or the beginning of its hash. Approving again changes nothing. Raises
    PublishingRefused, after noting it, for the author, where another version came meanwhile, where the text is not the
    one that was proposed, and where the book has mistakes by the meters of now.
    """
    _check_why(why)
    version = None
    with versions.locked(engine, namespace) as connection:
        found = named(_proposals(connection, namespace), reference)
        known = versions.of(connection, namespace)
        if found.state == APPROVED and found.decided is not None:
            made = found.decided.version
            return found, next((it for it in known if it.version == made), None)
        objection = _objection(found, by, declared, known)
        if objection is None:
            if found.kind == BOOK:
                version = versions.add(
                    connection,
                    namespace,
                    known,
                    found.source,
                    found.sha256,
                    author=found.author,
                    valid_from=found.valid_from,
                    now=now,
                )
            made = None if version is None else version.version
            _note(connection, namespace, APPROVED, by, why, now, found.proposal_id, made)
            if found.kind == ONE_PERSON:
                _note(connection, namespace, ONE_PERSON, by, why, now, found.proposal_id)
        else:
            _note(connection, namespace, REFUSED, by, objection, now, found.proposal_id)
    if objection is not None:
        raise PublishingRefused(objection)
    return found, version


def reject(engine: Engine, namespace: str, reference: str, *, by: Person, why: str, now: datetime) -> Proposal:
    """Turn a proposal down, or take back one's own. Raises PublishingRefused where there is none that is open."""
    _check_why(why)
    with versions.locked(engine, namespace) as connection:
        found = named(_proposals(connection, namespace), reference)
        if found.state == APPROVED:
            raise PublishingRefused(f"{_called(found)} is approved, and a version is never taken back: publish another")
        if found.state != REJECTED:
            _note(connection, namespace, REJECTED, by, why, now, found.proposal_id)
    return found


def note_published(engine: Engine, namespace: str, version: Version, *, by: Person, why: str, now: datetime) -> None:
    """Note who published a version alone, and why."""
    _check_why(why)
    with versions.locked(engine, namespace) as connection:
        _note(connection, namespace, PUBLISHED, by, why, now, version=version.version)


def proposals(engine: Engine, namespace: str) -> list[Proposal]:
    """All proposals, oldest first."""
    with engine.connect() as connection:
        return _proposals(connection, namespace)


def audit(engine: Engine, namespace: str) -> list[Entry]:
    """All that was done, oldest first."""
    with engine.connect() as connection:
        return price_audit.entries(connection, namespace)


def approvers(engine: Engine, namespace: str) -> dict[int, str]:
    """Version -> who approved it, of those that took two persons."""
    return {it.version: it.who for it in audit(engine, namespace) if it.what == APPROVED and it.version is not None}


def named(found: Sequence[Proposal], reference: str) -> Proposal:
    """The proposal that a version's number, or the beginning of its hash or id, names. Raises PublishingRefused."""
    if reference.isdecimal() and len(reference) < MIN_HASH:
        matches = [it for it in found if str(it.version) == reference]
    elif len(reference) >= MIN_HASH:
        beginning = reference.lower()
        matches = [it for it in found if it.sha256.startswith(beginning) or it.proposal_id.startswith(beginning)]
    else:
        raise PublishingRefused(f"{reference!r} names no proposal: a version, or at least {MIN_HASH} of a hash")
    # What waits comes first: the same text may have been rejected before, and proposed on another version.
    waiting = [it for it in matches if it.state == OPEN]
    if len(waiting) > 1:
        ids = ", ".join(f"{it.proposal_id[:12]} (sha256 {it.sha256[:12]}, by {it.author})" for it in waiting)
        raise PublishingRefused(f"several proposals are named {reference}, name one by its id: {ids}")
    chosen = waiting or matches
    if not chosen:
        raise PublishingRefused(f"nothing named {reference} is proposed: `meterhouse prices proposals` lists what is")
    return chosen[-1]


def _objection(found: Proposal, by: Person, declared: Mapping[str, str], known: Sequence[Version]) -> str | None:
    """Why this person does not put this proposal in force now; None where nothing is in the way."""
    if not found.intact:
        return f"the text of {_called(found)} is not the one that was proposed: publish it again"
    if found.state == REJECTED and found.decided is not None:
        return f"{_called(found)} was rejected by {found.decided.who} ({found.decided.why}): publish it again"
    if by.is_author_of(found):
        unclear = "--by says who you are" if persons.spelt(by.name) == persons.spelt(found.author) else persons.UNCLEAR
        return f"{found.author} proposed {_called(found)}: another person has to approve it ({unclear})"
    if found.kind == BOOK:
        if found.base_version != len(known):
            return (
                f"{_called(found)} was proposed when version {found.base_version} was the newest, which is now "
                f"{len(known)}: compare them, and publish it again"
            )
        try:
            check(found.source, declared)
        except BookRefused as refused:
            return f"{_called(found)} has mistakes by the meters of now: {refused}"
    return None


def _propose(
    connection: Connection,
    namespace: str,
    kind: str,
    text: str,
    valid_from: datetime | None,
    base: int,
    by: Person,
    why: str,
    now: datetime,
) -> tuple[Proposal, bool]:
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    same = [
        it
        for it in _proposals(connection, namespace)
        if (it.kind, it.sha256, it.valid_from, it.base_version) == (kind, sha256, valid_from, base)
    ]
    waiting = [it for it in same if it.state == OPEN]
    if waiting:
        return waiting[0], False
    moment = None if valid_from is None else valid_from.isoformat()
    identity = digest(["price proposal", namespace, kind, sha256, moment, base, len(same)])
    made = Proposal(identity, kind, sha256, text, valid_from, base, by.name, by.account, now)
    values = {
        column.name: getattr(made, column.name) for column in price_proposals.columns if column.name != "namespace"
    }
    connection.execute(insert(price_proposals).values(namespace=namespace, **values))
    _note(connection, namespace, PROPOSED, by, why, now, identity)
    return made, True


def _proposals(connection: Connection, namespace: str) -> list[Proposal]:
    decided = {
        it.proposal_id: it for it in price_audit.entries(connection, namespace) if it.what in (APPROVED, REJECTED)
    }
    newest = len(versions.of(connection, namespace))
    table = price_proposals
    columns = [column for column in table.columns if column.name != "namespace"]
    query = select(*columns).where(table.c.namespace == namespace).order_by(table.c.recorded_at, table.c.proposal_id)
    found = []
    for row in connection.execute(query).mappings():
        entry = decided.get(row["proposal_id"])
        outdated = row["kind"] == BOOK and row["base_version"] != newest
        state = entry.what if entry is not None else OUTDATED if outdated else OPEN
        found.append(Proposal(**row, state=state, decided=entry))
    return found


def _note(
    connection: Connection,
    namespace: str,
    what: str,
    by: Person,
    why: str,
    now: datetime,
    proposal_id: str | None = None,
    version: int | None = None,
) -> None:
    who: dict[str, Any] = {"who": by.name, "account": by.account, "why": why.strip()}
    price_audit.record(connection, namespace, what, **who, proposal_id=proposal_id, version=version, now=now)


def _called(found: Proposal) -> str:
    what = "the end of the rule" if found.kind == ONE_PERSON else f"version {found.version}"
    return f"{what} ({found.sha256[:12]})"


def _check_why(why: str) -> None:
    if not why.strip():
        raise PublishingRefused("say why (--why): it is kept with the record")
