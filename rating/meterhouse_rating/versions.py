"""Price-book versions: published once, never changed, each valid from a moment on."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from importlib.resources import files
from typing import Any, Final

from sqlalchemy import Connection, Engine, Select, insert, select

from meterhouse_rating import price_audit
from meterhouse_rating.book import Book, check, parse
from meterhouse_rating.periods import Period
from meterhouse_store.registry import ALWAYS, ENDED, Contract, ensure_namespace
from meterhouse_store.registry import namespace as namespace_of
from meterhouse_store.sql import begin_write
from meterhouse_store.tables import namespaces, price_books

STARTER_AUTHOR: Final = "starter"


class NotThere(LookupError):
    """A price book that has to be published first."""


class SecondPersonNeeded(RuntimeError):
    """Nobody publishes alone here (publishing.py)."""


@dataclass(frozen=True)
class Version:
    """A published price book; `source` is its text."""

    version: int
    sha256: str
    source: str
    author: str
    valid_from: datetime
    recorded_at: datetime

    @property
    def book(self) -> Book:
        return _parsed(self.source)


@lru_cache(maxsize=64)
def _parsed(source: str) -> Book:
    # Runs read the books of a namespace again and again, and a published text never changes.
    return parse(source)


def starter() -> str:
    """The text of the starter book that ships with Meterhouse."""
    return (files("meterhouse_rating") / "starter.yaml").read_text(encoding="utf-8")


def publish(
    engine: Engine,
    namespace: str,
    text: str,
    declared: Mapping[str, str],
    *,
    author: str,
    valid_from: datetime | None = None,
    now: datetime | None = None,
) -> tuple[Version, bool]:
    """Publish a book as the next version; returns it and whether it is new.

    The same text with the same `valid_from` is the same version. Without `valid_from` a text that is the newest version
    already changes nothing; the first book (the starter does not count) is valid from the beginning, a later one from
    now. The namespace is created where it does not exist. Raises BookRefused, and SecondPersonNeeded where nobody
    publishes alone.
    """
    sha256 = check(text, declared).book.sha256
    now = now or datetime.now(UTC)
    with locked(engine, namespace) as connection:
        known = of(connection, namespace)
        standing = repeated(known, sha256, valid_from)
        if standing is not None:
            return standing, False
        if price_audit.two_persons(connection, namespace):
            raise SecondPersonNeeded(
                f"in {namespace} a price book takes two persons: `meterhouse prices publish` proposes one"
            )
        return add(connection, namespace, known, text, sha256, author=author, valid_from=valid_from, now=now), True


@contextmanager
def locked(engine: Engine, namespace: str) -> Iterator[Connection]:
    """A transaction in which nobody else publishes or decides; the namespace is created where it does not exist.

    Its row is the lock: two publishers get two numbers.
    """
    if namespace_of(engine, namespace) is None:
        ensure_namespace(engine, namespace)
    with begin_write(engine) as connection:
        is_it = namespaces.c.namespace == namespace
        connection.execute(select(namespaces.c.namespace).where(is_it).with_for_update())
        yield connection


def repeated(known: Sequence[Version], sha256: str, valid_from: datetime | None) -> Version | None:
    """The version that publishing this text would be once more; None where it is new."""
    same = [version for version in known if version.sha256 == sha256]
    if valid_from is None:
        return same[-1] if same and same[-1] == known[-1] else None
    return next((version for version in same if version.valid_from == valid_from), None)


def add(
    connection: Connection,
    namespace: str,
    known: Sequence[Version],
    text: str,
    sha256: str,
    *,
    author: str,
    valid_from: datetime | None,
    now: datetime,
) -> Version:
    """Write the next version of a namespace that is `locked`; without `valid_from` as `publish` says."""
    new = following(known, text, sha256, author=author, valid_from=valid_from, now=now)
    connection.execute(insert(price_books).values(namespace=namespace, **vars(new)))
    return new


def following(
    known: Sequence[Version], text: str, sha256: str, *, author: str, valid_from: datetime | None, now: datetime
) -> Version:
    """The version that publishing the text would make; without `valid_from` as `publish` says. Writes nothing."""
    if valid_from is None:
        valid_from = now if any(version.author != STARTER_AUTHOR for version in known) else ALWAYS
    return Version(len(known) + 1, sha256, text, author, valid_from, now)


def of(connection: Connection, namespace: str, *, after: int = 0, limit: int | None = None) -> list[Version]:
    """The versions after that number, so many or all, in the order they were published."""
    query = _all(namespace).where(price_books.c.version > after).limit(limit)
    return [Version(**row) for row in connection.execute(query).mappings()]


def versions(engine: Engine, namespace: str) -> list[Version]:
    """All versions, in the order they were published."""
    with engine.connect() as connection:
        return of(connection, namespace)


def in_force(known: Sequence[Version], period: Period) -> Version | None:
    """The version that prices the whole period: the one in force at its start.

    Of several the one with the latest `valid_from` counts, then the one published last. Where none is in force at the
    start, it is the first that becomes valid within the period.
    """
    at_start = [version for version in known if version.valid_from <= period.start]
    if at_start:
        return max(at_start, key=lambda version: (version.valid_from, version.version))
    within = [version for version in known if version.valid_from < period.end]
    return min(within, key=lambda version: (version.valid_from, -version.version), default=None)


def plans_left_out(
    version: Version, known: Sequence[Version], contracts: Iterable[Contract], default_plan: str | None
) -> dict[str, int]:
    """The plans that the version does not have, but customers (how many) or the default do while it is in force."""
    plans = version.book.plans
    until = min((it.valid_from for it in known if it.valid_from > version.valid_from), default=None)
    customers: dict[str, set[str]] = {}
    if default_plan is not None and default_plan not in plans:
        customers[default_plan] = set()
    replaced_at: dict[str, datetime] = {}
    for contract in sorted(contracts, key=lambda it: it.valid_from, reverse=True):
        ends = replaced_at.get(contract.customer_id)
        replaced_at[contract.customer_id] = contract.valid_from
        over = ends is not None and ends <= version.valid_from
        too_late = until is not None and contract.valid_from >= until
        if contract.plan not in plans and contract.plan != ENDED and not over and not too_late:
            customers.setdefault(contract.plan, set()).add(contract.customer_id)
    return {plan: len(found) for plan, found in sorted(customers.items())}


def _all(namespace: str) -> Select[Any]:
    columns = [price_books.c[name] for name in ("version", "sha256", "source", "author", "valid_from", "recorded_at")]
    return select(*columns).where(price_books.c.namespace == namespace).order_by(price_books.c.version)
