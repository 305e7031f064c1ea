"""Takes a person out of the SQL database: what says who a customer is, and on demand the customer's id too.

Amounts, quantities, times and the ledger stay. What is replaced are whole words: in columns of text, and in strings
inside JSON. The texts of prices are the operator's own and are not looked into, nor is what has a name from a list of
ours, of a price book, of Stripe or of a standard: a customer may be called `open`, `USD` or like its plan.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import (
    JSON,
    Column,
    Connection,
    Engine,
    String,
    Table,
    Text,
    cast,
    delete,
    insert,
    or_,
    select,
    update,
)

from meterhouse_store import audit, decisions, ledger_chain, people, renaming, tables
from meterhouse_store.registry import RegistryError
from meterhouse_store.sql import begin_write

ERASED: Final = "erased"
"""What stands where a name, an e-mail address or a reference stood."""

KEPT, BEGUN, DONE = "kept", "begun", "erased"

_IDS: Final = ("customer_id", "billed_customer_id")
_NUMBER: Final = re.compile(r"[+-]?[\d.,]+")
_PERSONAL: Final = re.compile("customer|reference|memo|why", re.IGNORECASE)
_LABELLED: Final = r"(?i:customer|reference)[\w.-]*[\\\"'\s:=]*"
"""What stands before an id in a text such as {"customer_id": "4711"}."""
_NOT_LOOKED_INTO: Final = frozenset({"price_books", "price_proposals", "erasures", "namespaces"})
_AS_RATED: Final = frozenset(
    {
        ("rated_lines", "explanation"),
        ("credit_notes", "lines"),
        ("credit_note_issues", "lines"),
        ("metered_invoices", "lines"),
        ("price_overrides", "source"),
        ("billing_settings", "value"),
        ("rating_statements", "statement"),
    }
)
"""What prices say, what was made of them, and what is said of their usage without naming a customer."""
_PRICED: Final = frozenset({
    "usage", "flat", "minimum", "credit_pack", "credit_applied", "credit_restored", "correction",
})  # fmt: skip
"""Kinds of lines and transactions whose description and memo are from prices: of other customers they stay."""
_LISTED: Final = frozenset({
    "account", "addon", "book", "cache_ttl", "change", "channel", "code", "component", "components",
    "corrects", "currency", "driver", "ended", "event", "event_name", "from_state", "grant_id", "hash", "how",
    "identifiers", "key_sha256", "kind", "kinds", "line_id", "measure", "meter", "meters", "metric",
    "modality", "model", "object", "object_id", "of", "on_unreachable", "operation", "origin",
    "original_reason", "package", "pause_at", "payment_intent", "per", "plan", "policy", "previous_hash",
    "process_id", "provider", "rating_id", "reason", "role", "rounding", "service_tier", "sha256", "source",
    "source_id", "state", "status", "stripe_customer_id", "stripe_id", "stripe_invoice_id", "stripe_item_id",
    "time_zone", "to_state", "tool", "type", "unit", "verdict", "version", "wanted", "what", "zone",
})  # fmt: skip
"""Columns, and keys in JSON, whose values are names from such lists, or hashes and ids of something else."""
_BY_NAME: Final = frozenset({"arrived", "granted", "inputs", "meters", "quantities", "sums", "used", "weights"})
"""Keys in JSON whose values are objects that have such names as keys."""


@dataclass(frozen=True)
class Erasure:
    """An erasure as it is recorded; `former_id` is set while the bytes of a customer are being erased."""

    erasure_id: str
    namespace: str
    customer_id: str
    former_id: str | None
    bytes: str
    who: str
    why: str
    begun_at: datetime
    done_at: datetime | None


def words_of(connection: Connection, namespace: str, customer_id: str) -> dict[str, str]:
    """What says who the customer is, beside the id -> what takes its place; nothing of one that is not registered."""
    table = tables.customers
    query = select(table).where(table.c.namespace == namespace, table.c.customer_id == customer_id)
    row = connection.execute(query).mappings().one_or_none()
    if row is None:
        return {}
    found = {row[name] for name in ("name", "email", "reference")} - {None, "", ERASED, customer_id}
    return dict.fromkeys(sorted(found, key=len, reverse=True), ERASED)


def count(engine: Engine, namespace: str, customer_id: str, *, ids: bool) -> dict[str, int]:
    """Table -> how many of its rows an erasure would change, where any; with `ids`, those that have the id too."""
    with engine.connect() as connection:
        words = words_of(connection, namespace, customer_id)
        if ids:
            words[customer_id] = ERASED
        found: dict[str, int] = {}
        for table in _looked_into():
            keys = {
                tuple(row[name] for name in _key(table))
                for row, _ in _changes(connection, table, namespace, words, {customer_id})
            }
            for column in _id_columns(table) if ids else ():
                rows = connection.execute(_where_id(select(table), table, column, namespace, customer_id)).mappings()
                keys |= {tuple(row[name] for name in _key(table)) for row in rows}
            if keys:
                found[table.name] = len(keys)
        for name, of_people in people.count(connection, namespace, customer_id).items():
            found[name] = max(of_people, found.get(name, 0))
        if not ids and words:
            found.setdefault("customers", 1)
    return found


def is_under_way(engine: Engine, namespace: str, customer_id: str) -> bool:
    """Whether an erasure of the customer's bytes was begun and is not through."""
    table = tables.erasures
    is_it = (table.c.namespace == namespace) & (table.c.former_id == customer_id)
    with engine.connect() as connection:
        return connection.execute(select(table.c.erasure_id).where(is_it)).first() is not None


def check_registered(engine: Engine, namespace: str, customer_id: str) -> None:
    """Raises RegistryError where the registry does not have the customer, so that it has nothing to forget."""
    table = tables.customers
    is_it = (table.c.namespace == namespace) & (table.c.customer_id == customer_id)
    with engine.connect() as connection:
        if connection.execute(select(table.c.name).where(is_it)).first() is None:
            raise RegistryError(
                f"customer {customer_id!r} is not registered in {namespace}, so no name, e-mail or reference is kept "
                "(`meterhouse customers list`); `--bytes` takes the id itself out of journal, SQL and warehouse"
            )


def begin(
    engine: Engine, erasure_id: str, namespace: str, customer_id: str, *, who: str, why: str, now: datetime
) -> Erasure:
    """The erasure of a customer's bytes that is under way, or this new one.

    From then on nothing is decided about the customer's usage until it is through (decisions.py). Raises RegistryError
    without a reason.
    """
    check_reason(why)
    with begin_write(engine) as connection:
        decisions.alone(connection)
        table = tables.erasures
        is_it = (table.c.namespace == namespace) & (table.c.former_id == customer_id)
        row = connection.execute(select(table).where(is_it)).mappings().one_or_none()
        if row is None:
            values: dict[str, Any] = {
                "erasure_id": erasure_id, "namespace": namespace, "customer_id": customer_id, "former_id": customer_id,
                "bytes": BEGUN, "who": who, "why": why, "begun_at": now, "done_at": None,
            }  # fmt: skip
            connection.execute(insert(table).values(**values))
            return Erasure(**values)
        return Erasure(**row)


def forget(
    engine: Engine, erasure_id: str, namespace: str, customer_id: str, *, who: str, why: str, now: datetime
) -> None:
    """Remove name, e-mail and reference, wherever they stand; the id stays. May be repeated.

    Raises RegistryError where the customer is not registered, or without a reason.
    """
    check_reason(why)
    check_registered(engine, namespace, customer_id)
    with begin_write(engine) as connection:
        words = words_of(connection, namespace, customer_id)
        with audit.paused(connection):
            words |= dict.fromkeys(people.take_out(connection, namespace, customer_id, ERASED), ERASED)
            _replace_words(connection, namespace, words, {customer_id})
            _blank(connection, namespace, customer_id, ERASED)
        connection.execute(
            insert(tables.erasures).values(
                erasure_id=erasure_id, namespace=namespace, customer_id=customer_id, former_id=None, bytes=KEPT,
                who=who, why=why, begun_at=now, done_at=now,
            )
        )  # fmt: skip
    _purge(engine)


def rename(engine: Engine, erasure: Erasure, pseudonym: str, renamed: renaming.Renamed) -> None:
    """Remove name, e-mail, reference and the id itself, for which `pseudonym` stands from now on, in one transaction.

    `renamed`: rows of usage that were decided about and are called otherwise in the journal now. Open ratings of the
    customer go; the next run makes them again, of the same usage. May be repeated.
    """
    namespace, former = erasure.namespace, erasure.customer_id
    with begin_write(engine) as connection, audit.paused(connection):
        is_it = (tables.customers.c.namespace == namespace) & (tables.customers.c.customer_id == pseudonym)
        if connection.execute(select(tables.customers).where(is_it)).first() is not None:
            return
        words = words_of(connection, namespace, former) | {former: pseudonym}
        words |= dict.fromkeys(people.take_out(connection, namespace, former, ERASED), ERASED)
        _drop_open_ratings(connection, namespace, former)
        _blank(connection, namespace, former, pseudonym)
        renaming.rename(connection, namespace, former, pseudonym, renamed)
        transactions = tables.ledger_transactions
        of_customer = (transactions.c.namespace == namespace) & (transactions.c.customer_id == former)
        ledger_chain.unseal_persons(connection, of_customer)
        for table in _looked_into():
            for column in _id_columns(table):
                changed = update(table).values({column.name: pseudonym, **_unsealed(table)})
                connection.execute(_where_id(changed, table, column, namespace, former))
        _replace_words(connection, namespace, words, {former, pseudonym})


def finish(engine: Engine, erasure: Erasure, pseudonym: str, now: datetime) -> None:
    """Note that nothing of the customer is left: from here on nothing says who it was."""
    is_it = tables.erasures.c.erasure_id == erasure.erasure_id
    done = {"customer_id": pseudonym, "former_id": None, "bytes": DONE, "done_at": now}
    with begin_write(engine) as connection, audit.paused(connection):  # what was there before says who it was
        connection.execute(update(tables.erasures).where(is_it).values(**done))
    _purge(engine)


def check_reason(why: str) -> None:
    """Raises RegistryError where no reason is given."""
    if not why.strip():
        raise RegistryError("say why: it is kept with the erasure")


def _looked_into() -> Iterator[Table]:
    return (table for table in tables.metadata.sorted_tables if table.name not in _NOT_LOOKED_INTO)


def _id_columns(table: Table) -> list[Column[Any]]:
    return [table.columns[name] for name in _IDS if name in table.columns]


def _where_id(statement: Any, table: Table, column: Column[Any], namespace: str, customer_id: str) -> Any:
    return statement.where(column == customer_id, table.c.namespace == namespace)


def _key(table: Table) -> list[str]:
    return [column.name for column in table.primary_key.columns]


def _blank(connection: Connection, namespace: str, customer_id: str, name: str) -> None:
    table = tables.customers
    is_it = (table.c.namespace == namespace) & (table.c.customer_id == customer_id)
    connection.execute(update(table).where(is_it).values(name=name, email=None, reference=None))


def _drop_open_ratings(connection: Connection, namespace: str, customer_id: str) -> None:
    ratings, lines = tables.ratings, tables.rated_lines
    is_open = (ratings.c.namespace == namespace) & (ratings.c.customer_id == customer_id) & (ratings.c.state == "open")
    chosen = select(ratings.c.rating_id).where(is_open)
    connection.execute(delete(lines).where(lines.c.rating_id.in_(chosen)))
    connection.execute(delete(ratings).where(is_open))


def _replace_words(connection: Connection, namespace: str, words: Mapping[str, str], mine: Collection[str]) -> None:
    for table in _looked_into():
        for row, changes in list(_changes(connection, table, namespace, words, mine)):
            is_it = [table.columns[name] == row[name] for name in _key(table)]
            if table is tables.ledger_transactions:
                ledger_chain.unseal_persons(connection, is_it[0])
            connection.execute(update(table).where(*is_it).values(**changes, **_unsealed(table)))


def _unsealed(table: Table) -> dict[str, Any]:
    """What else is to be changed with a row that says who somebody is: the audit log forgets its salt."""
    return {"personal_salt": None} if table is tables.audit_log else {}


def _changes(
    connection: Connection, table: Table, namespace: str, words: Mapping[str, str], mine: Collection[str]
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Rows whose texts have one of the words, with what becomes of these; `mine`: the customer's id, old and new."""
    fixed = {*_key(table), *_IDS, "namespace"} | {key.parent.name for key in table.foreign_keys}
    fixed |= {"row_id", "meter", "event_id", "follows"}  # of decisions: renaming.py
    texts = [
        column
        for column in table.columns
        if (column.name not in fixed and isinstance(column.type, (JSON, String, Text))) or _is_list(column)
        if column.name not in _LISTED and (table.name, column.name) not in _AS_RATED
    ]
    if not texts or not words:
        return
    # JSON is stored with \u escapes, the payload of a webhook maybe too.
    sought = {*words, *(json.dumps(word)[1:-1] for word in words)}
    found = or_(*(cast(column, Text).contains(word, autoescape=True) for column in texts for word in sought))
    query = select(table).where(found)
    if "namespace" in table.columns:
        query = query.where(table.c.namespace == namespace)
    for row in connection.execute(query).mappings().all():
        by_prices = row.get("kind") in _PRICED and row.get("customer_id") not in mine
        looked_into = [it for it in texts if not by_prices or it.name not in ("description", "memo")]
        changes = {column.name: _text_without(row[column.name], words, column.name) for column in looked_into}
        changes = {name: value for name, value in changes.items() if value != row[name]}
        if changes:
            yield row, changes


def _is_list(column: Column[Any]) -> bool:
    return column.table.name == "credentials" and column.name == "customers"


def _text_without(value: Any, words: Mapping[str, str], column: str) -> Any:
    """The value of a column without the words, also where it is JSON as text."""
    if isinstance(value, str) and value.startswith("{"):
        try:
            told = json.loads(value)
        except ValueError:  # a text that only begins like that
            return _without(value, words, column)
        changed = _without(told, words, column)
        return value if changed == told else json.dumps(changed, separators=(",", ":"))
    return _without(value, words, column)


def _without(value: Any, words: Mapping[str, str], name: str) -> Any:
    """The value of what is called `name` without the words."""
    if isinstance(value, dict):
        keys = {} if name in _BY_NAME else {key: _without(key, words, "") for key in value}
        return {keys.get(key, key): _without(one, words, key) for key, one in value.items()}
    if isinstance(value, list):
        return [_without(one, words, name) for one in value]
    if not isinstance(value, str) or name in _LISTED:
        return value
    for word, instead in words.items():
        for form in {word, json.dumps(word)[1:-1]}:
            plain = instead.replace("\\", r"\\")  # in what takes its place, re.sub knows escapes
            if not _NUMBER.fullmatch(word) or _PERSONAL.search(name):
                value = re.sub(rf"(?<![\w@.-]){re.escape(form)}(?![\w@-])", plain, value)
            else:  # elsewhere it may as well be a quantity or a price
                value = re.sub(rf"({_LABELLED}){re.escape(form)}(?![\w@.-])", rf"\g<1>{plain}", value)
    return value


def _purge(engine: Engine) -> None:
    """On SQLite, what was deleted stands in the file until it is written anew. PostgreSQL's autovacuum does that."""
    if engine.dialect.name != "sqlite":
        return
    raw = engine.raw_connection()
    try:
        for statement in ("VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)"):
            raw.cursor().execute(statement)
    finally:
        raw.close()
