"""What the database itself refuses, on SQLite and PostgreSQL: triggers, made with their tables.

Those of the ledger are made with `ledger_chain`; `append_only` makes those of a table whose rows are only added.
"""

from typing import Any, Final

from sqlalchemy import DDL, Table, event

_UNBALANCED: Final = (
    "(SELECT count(*) FROM ledger_entries WHERE transaction_id = NEW.transaction_id) < 2 OR EXISTS (SELECT 1 FROM "
    "ledger_entries WHERE transaction_id = NEW.transaction_id GROUP BY currency HAVING sum(amount_minor) <> 0)"
)
# ruff: noqa: S608 - every part of the statements below is a constant of this module
_UNLINKED: Final = (
    "NEW.previous_hash <> coalesce((SELECT hash FROM ledger_chain WHERE namespace = NEW.namespace AND sequence = "
    f"NEW.sequence - 1), CASE WHEN NEW.sequence = 1 THEN '{'0' * 64}' ELSE '' END)"
)
_SEALED: Final = "EXISTS (SELECT 1 FROM ledger_chain WHERE transaction_id = NEW.transaction_id)"
_PERSON_SEALED: Final = (
    "EXISTS (SELECT 1 FROM ledger_chain WHERE transaction_id = OLD.transaction_id AND personal_salt IS NOT NULL)"
)


def _changed(columns: str) -> str:
    return " OR ".join(f"NEW.{name} IS DISTINCT FROM OLD.{name}" for name in columns.split())


# name, table, when, the condition under which it is refused, what is said
_RULES: Final = (
    ("ledger_entries_sealed", "ledger_entries", "INSERT", _SEALED, "this transaction is sealed"),
    ("ledger_entries_kept", "ledger_entries", "UPDATE", "1 = 1", "entries are never changed"),
    ("ledger_entries_there", "ledger_entries", "DELETE", "1 = 1", "entries are never deleted"),
    (
        "ledger_transactions_kept",
        "ledger_transactions",
        "UPDATE",
        f"{_changed('transaction_id namespace kind source_id effective_at recorded_at corrects')} OR {_PERSON_SEALED}",
        "transactions are never changed",
    ),
    ("ledger_transactions_there", "ledger_transactions", "DELETE", "1 = 1", "transactions are never deleted"),
    ("ledger_chain_balanced", "ledger_chain", "INSERT", _UNBALANCED, "a transaction sums to zero in each currency"),
    ("ledger_chain_linked", "ledger_chain", "INSERT", _UNLINKED, "a seal follows the last one"),
    (
        "ledger_chain_kept",
        "ledger_chain",
        "UPDATE",
        f"{_changed('namespace sequence transaction_id personal_sha256 previous_hash hash')} "
        "OR NEW.personal_salt IS NOT NULL",
        "seals are never changed",
    ),
    ("ledger_chain_there", "ledger_chain", "DELETE", "1 = 1", "seals are never deleted"),
)

NAMES: Final = tuple((name, table) for name, table, *_ in _RULES)
"""Trigger and table of each rule."""


def attach(chain: Table) -> None:
    """Make the rules wherever the chain's table, the last of the ledger's, is made."""
    for name, table, change, condition, words in _RULES:
        _refuse(chain, name, table, change, condition, f"ledger: {words}")


def append_only(table: Table, fixed: str) -> None:
    """Let the database refuse that rows of the table are deleted, or that one of the `fixed` columns is changed."""
    name = table.name
    _refuse(table, f"{name}_kept", name, "UPDATE", _changed(fixed), f"{name}: rows are never changed")
    _refuse(table, f"{name}_there", name, "DELETE", "1 = 1", f"{name}: rows are never deleted")


def chained(table: Table, fixed: str) -> None:
    """`append_only` for a table that is a hash chain itself: a row follows the last one, and a salt only goes."""
    name = table.name
    linked = (
        f"NEW.previous_hash <> coalesce((SELECT hash FROM {name} WHERE namespace = NEW.namespace AND sequence = "
        f"NEW.sequence - 1), CASE WHEN NEW.sequence = 1 THEN '{'0' * 64}' ELSE '' END)"
    )
    _refuse(table, f"{name}_linked", name, "INSERT", linked, f"{name}: a row follows the last one")
    kept = f"{_changed(fixed)} OR NEW.personal_salt IS NOT NULL"
    _refuse(table, f"{name}_kept", name, "UPDATE", kept, f"{name}: rows are never changed")
    _refuse(table, f"{name}_there", name, "DELETE", "1 = 1", f"{name}: rows are never deleted")


def _refuse(made_with: Table, name: str, table: str, change: str, condition: str, words: str) -> None:
    for dialect, statements in (
        ("sqlite", _sqlite(name, table, change, condition, words)),
        ("postgresql", _postgresql(name, table, change, condition, words)),
    ):
        for statement in statements:
            event.listen(made_with, "after_create", _ddl(statement, dialect))


def _ddl(statement: str, dialect: str) -> Any:
    made: Any = DDL
    return made(statement).execute_if(dialect=dialect)


def _sqlite(name: str, table: str, change: str, condition: str, words: str) -> tuple[str, ...]:
    condition = condition.replace("IS DISTINCT FROM", "IS NOT")
    return (
        f"CREATE TRIGGER {name} BEFORE {change} ON {table} WHEN {condition} BEGIN SELECT RAISE(ABORT, '{words}'); END",
    )


def _postgresql(name: str, table: str, change: str, condition: str, words: str) -> tuple[str, ...]:
    row = "OLD" if change == "DELETE" else "NEW"
    return (
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF {condition} THEN "
        f"RAISE EXCEPTION '{words}' USING ERRCODE = 'integrity_constraint_violation'; END IF; "
        f"RETURN {row}; END $$",
        f"CREATE TRIGGER {name} BEFORE {change} ON {table} FOR EACH ROW EXECUTE FUNCTION {name}()",
    )
