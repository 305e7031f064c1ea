"""The audit log: every change with who and why, in one transaction with it, and nobody can change it unseen."""

import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Engine, select, text, update
from sqlalchemy.exc import DBAPIError
from typer.testing import CliRunner

from meterhouse_store import access, audit, audit_book, audit_rules, privacy, registry, sql_dump, switches, tables
from meterhouse_store.audit_book import Anchor
from meterhouse_store.settings import Settings
from meterhouse_store.sql import begin_write, open_engine

NOW = datetime(2026, 11, 2, 8, tzinfo=UTC)
LATER = NOW + timedelta(minutes=1)


@pytest.fixture
def engine(sql_engine: Engine) -> Engine:
    registry.ensure_namespace(sql_engine, "live", now=NOW)
    return sql_engine


def told(engine: Engine, **only: Any) -> list[tuple[str, str, str, str, str]]:
    found = audit_book.entries(engine, "live", **only)
    return [(it.what, it.customer_id, it.subject, it.who, it.why) for it in reversed(found)]


def test_what_is_changed_is_in_the_log_with_who_what_when_and_why(engine):
    with audit.acting("olga"):
        registry.add_customer(engine, "live", "acme", plan="pay", email="olga@acme.example", now=NOW)
    switches.turn(engine, "live", {"sync": "off"}, who="anna", why="audit", now=NOW)
    with audit.acting("paul"):
        credential, _ = access.create_key(engine, "live", "agents", customers=["acme"], now=NOW)
        access.revoke_key(engine, credential.credential_id, now=NOW)
        registry.add_customer(engine, "live", "acme", email="new@acme.example", now=NOW)
    assert told(engine)[1:] == [
        ("customer", "acme", "", "olga", ""),
        ("contract", "acme", "pay", "olga", ""),
        ("switch", "", "sync", "anna", "audit"),
        ("key", "", credential.credential_id, "paul", ""),
        ("key", "", credential.credential_id, "paul", ""),
        ("customer", "acme", "", "paul", ""),
    ]
    changed, revoked, made, switched = audit_book.entries(engine, "live", limit=4)
    assert switched.details == {"added": {"switch": "sync", "state": "off"}} and switched.changed_at == NOW
    assert made.details["added"] == {
        "credential_id": credential.credential_id, "name": "agents", "customers": ["customer:acme"],
        "revoked_at": None, "role": "metering",
    }  # fmt: skip
    assert revoked.details == {"changed": {"revoked_at": [None, "2026-11-02T08:00:00+00:00"]}}
    assert changed.details == {"changed": {"email": "changed"}}  # what it was is the customer's own
    assert audit_book.verify(engine, "live").problems == []


def test_a_change_that_is_rolled_back_is_in_no_log_and_one_that_changes_nothing_neither(engine):
    before = audit_book.verify(engine, "live").sequence
    with pytest.raises(RuntimeError), begin_write(engine) as connection:
        switches.record(connection, "live", "sync", "off", who="anna", why="w", now=NOW)
        raise RuntimeError
    with begin_write(engine) as connection:
        is_it = tables.namespaces.c.namespace == "live"
        connection.execute(update(tables.namespaces).where(is_it).values(default_currency="USD"))
    assert audit_book.verify(engine, "live").sequence == before


def test_rows_of_one_statement_for_one_reason_are_one_change(engine):
    rows = [
        {"namespace": "live", "customer_id": name, "agent_id": "", "reason": reason, "recorded_at": NOW}
        | {"state": "on", "who": "anna", "why": "key leaked"}
        for name in ("acme", "globex")
        for reason in ("operator", "fraud")
    ]
    with begin_write(engine) as connection:
        connection.execute(tables.pause_changes.insert(), rows)
    latest, earlier = audit_book.entries(engine, "live", what="pause")
    assert (earlier.customer_id, latest.customer_id) == ("acme", "globex")
    assert (latest.subject, latest.details["rows"]) == ("2 of them", 2)
    assert latest.details["added"] == {"agent_id": "", "state": "on"}


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        ("UPDATE audit_log SET why = 'as agreed' WHERE sequence = 2", "row 2 (switch sync by anna) is not what was"),
        ("UPDATE audit_log SET what = 'budget' WHERE sequence = 2", "row 2 (budget) is not what was sealed"),
        ("DELETE FROM audit_log WHERE sequence = 2", "row 2 is followed by row 3"),
        ("DELETE FROM audit_log WHERE sequence = 3", "an anchor knows 3 rows, the log has 2"),
        (
            "UPDATE audit_log SET personal_salt = NULL, who = 'olga', hash = 'x' WHERE sequence = 2",
            "row 3 does not foll",
        ),
    ],
)
def test_what_somebody_changes_in_the_log_is_refused_and_seen_where_he_gets_around_that(engine, change, seen):
    for number in range(2):
        switches.turn(engine, "live", {"sync": "off"}, who="anna", why=f"reason {number}", now=NOW)
    proof = audit_book.verify(engine, "live")
    assert (proof.sequence, proof.problems) == (3, [])
    anchor = Anchor("live", proof.sequence, proof.hash)
    with pytest.raises(DBAPIError, match="audit_log: rows are never"), begin_write(engine) as connection:
        connection.execute(text(change))
    with begin_write(engine) as connection:
        for name in ("kept", "there"):
            on = " ON audit_log" if engine.dialect.name == "postgresql" else ""
            connection.execute(text(f"DROP TRIGGER audit_log_{name}{on}"))
        connection.execute(text(change))
    assert any(it.startswith(seen) for it in audit_book.verify(engine, "live", [anchor]).problems)


@pytest.mark.parametrize(
    "change",
    ["UPDATE namespace_switches SET why = 'as agreed'", "UPDATE namespace_switches SET state = 'on'",
     "DELETE FROM namespace_switches"],
)  # fmt: skip
def test_what_somebody_changes_in_a_record_itself_is_seen_by_the_log(engine, change):
    switches.turn(engine, "live", {"sync": "off"}, who="anna", why="audit", now=NOW)
    assert audit_book.verify(engine, "live").problems == []
    with begin_write(engine) as connection:
        connection.execute(text(change))
    assert audit_book.verify(engine, "live").problems == [
        "what row 2 says (switch sync by anna) is not in namespace_switches: it was changed or removed there"
    ]


def test_numbers_texts_and_lists_are_the_same_in_the_log_and_in_what_it_is_about(engine):
    told = {"namespace": "live", "recorded_at": NOW, "who": "anna", "why": "order 4711"}
    budget = {"customer_id": "acme", "name": "money", "change": "set", "terms": {"of": ["ä", 1, None], "soft": False}}
    cost = dict.fromkeys(("provider", "model", "modality", "cache_ttl", "service_tier", "tool", "agent_id"), "")
    cost |= {"entry_id": "e", "source": "own", "meter": "pages", "customer_id": "acme", "per": 1000, "currency": "USD"}
    with begin_write(engine) as connection:
        connection.execute(tables.budget_changes.insert().values(**told, **budget, amount=Decimal("100.50")))
        connection.execute(tables.budget_changes.insert().values(**told | {"recorded_at": LATER}, **budget))
        cost |= {"price": Decimal("0.000000001"), "valid_from": NOW.astimezone(timezone(timedelta(hours=2)))}
        connection.execute(tables.cost_entries.insert().values(**told, **cost))
    first, *_ = audit_book.entries(engine, "live", what="cost")
    assert first.details["added"]["price"] == "0.000000001"
    assert first.details["added"]["valid_from"] == "2026-11-02T08:00:00+00:00"
    proof = audit_book.verify(engine, "live")
    assert (proof.sequence, proof.problems) == (4, [])


def test_every_table_that_says_who_or_why_is_audited():
    named = {
        table.name for table in tables.metadata.sorted_tables if {"who", "why", "author"} & set(table.columns.keys())
    }
    # Who made a proposal is a price decision (meterhouse_rating.price_audit).
    left_out = named - set(audit_rules.RULES)
    assert left_out == {"audit_log", "price_proposals"}, "a table that says who wants a rule in audit_rules.py"
    for name, rule in audit_rules.RULES.items():
        assert {*rule.subject.split(), *rule.hidden.split()} <= set(tables.metadata.tables[name].columns.keys())


def test_no_secret_and_no_address_is_in_the_log(engine):
    registry.add_customer(
        engine, "live", "acme", name="Acme Ltd", email="olga@acme.example", reference="CRM-1", now=NOW
    )
    _, key = access.create_key(engine, "live", "agents", now=NOW)
    with engine.connect() as connection:
        rows = [str(tuple(row)) for row in connection.execute(select(tables.audit_log))]
        stored = connection.execute(select(tables.credentials.c.key_sha256)).scalars().all()
    for secret in (key, *stored, "olga@acme.example", "Acme Ltd", "CRM-1"):
        assert not any(secret in row for row in rows)


def test_erasing_a_customer_takes_it_out_of_the_log_and_the_chain_holds(engine):
    registry.add_customer(engine, "live", "olga-smith", plan="pay", email="o@x.example", now=NOW)
    switches.turn(engine, "live", {"sync": "off"}, who="anna", why="olga-smith asked", now=NOW)
    erasure = privacy.begin(engine, "e1", "live", "olga-smith", who="anna", why="asked", now=NOW)
    privacy.rename(engine, erasure, "p-1", {})
    privacy.finish(engine, erasure, "p-1", NOW)
    assert told(engine)[1:] == [
        ("customer", "p-1", "", told(engine)[1][3], ""),
        ("contract", "p-1", "pay", told(engine)[2][3], ""),
        ("switch", "", "sync", "anna", "p-1 asked"),
        ("erasure", "p-1", "", "anna", "asked"),
    ]
    proof = audit_book.verify(engine, "live")
    assert (proof.problems, proof.erased) == ([], 4)
    with engine.connect() as connection:
        assert not any("olga" in str(tuple(row)) for row in connection.execute(select(tables.audit_log)))


def test_a_backup_brings_the_log_as_it_was(engine, tmp_path):
    import io

    switches.turn(engine, "live", {"sync": "off"}, who="anna", why="w", now=NOW)
    out = io.BytesIO()
    counts = sql_dump.dump(engine, out)
    other = open_engine(Settings(data=tmp_path / "other"))
    sql_dump.load(other, io.BytesIO(out.getvalue()), counts, lambda _: None)
    assert audit_book.verify(other, "live") == audit_book.verify(engine, "live")
    other.dispose()


def test_commands_list_prove_and_anchor(tmp_path, monkeypatch):
    from meterhouse_store.audit_commands import audit as app

    monkeypatch.delenv("METERHOUSE_NAMESPACE", raising=False)
    settings = Settings(data=tmp_path)
    engine = open_engine(settings)
    registry.ensure_namespace(engine, settings.namespace, now=NOW)
    switches.turn(engine, settings.namespace, {"sync": "off"}, who="anna", why="audit", now=NOW)
    engine.dispose()

    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, [*arguments, "--data", str(tmp_path)])
        return result.exit_code, result.output

    code, shown = run("list", "--what", "switch")
    assert code == 0
    assert shown.splitlines()[-1].split() == ["2", "2026-11-02", "08:00", "anna", "switch", "sync", "added:", "switch",
                                              "sync;", "state", "off", "audit"]  # fmt: skip
    assert json.loads(run("list", "--json", "--limit", "1")[1])[0]["why"] == "audit"
    anchor = tmp_path / "anchor.json"
    assert run("anchor", "--out", str(anchor))[0] == 0
    code, shown = run("verify", "--anchor", str(anchor))
    assert code == 0 and "holds: 2 changes" in shown and "as 1 anchor said" in shown
    anchor.write_text(anchor.read_text().replace('"sequence": 2', '"sequence": 7'))
    assert run("verify", "--anchor", str(anchor), "--json")[0] == 1
