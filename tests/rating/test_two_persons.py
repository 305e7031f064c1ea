"""Two persons: one proposes a price book, another one puts it in force, and neither can do both."""

import io
import json
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Column, Integer, MetaData, String, Table, inspect, text, update
from sqlalchemy.exc import DBAPIError
from typer.testing import CliRunner

from meterhouse_rating import publishing, versions
from meterhouse_rating.commands import prices
from meterhouse_rating.publishing import Person, PublishingRefused
from meterhouse_store import audit, audit_book, ledger_rules, privacy, registry, roles, sql_dump
from meterhouse_store.audit_book import Anchor
from meterhouse_store.settings import Settings
from meterhouse_store.sql import begin_write, open_engine
from meterhouse_store.tables import UtcTime, price_proposals

BOOK = """
book: own
currency: USD
metrics:
  input: {unit: token, meters: [llm.tokens.input]}
plans:
  pay:
    components:
      in: {model: per_unit, metric: input, per: 1000, price: 2.00}
"""
DEARER = BOOK.replace("2.00", "3.00")  # with the line end at both ends, which YAML would not miss
METERS = {"llm.tokens.input": "{token}"}
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
ANN, BOB, EVE = Person("ann", "root"), Person("bob", "root"), Person("eve", "root")


@pytest.fixture
def engine(sql_url, tmp_path):
    made = open_engine(Settings(data=tmp_path, sql_url=sql_url))
    versions.publish(made, "test", BOOK, METERS, author="ann", now=NOW)
    publishing.ask_for_two(made, "test", by=ANN, why="audit", now=NOW)
    yield made
    made.dispose()


def propose(engine, book=DEARER, by=ANN, valid_from=None):
    return publishing.propose(engine, "test", book, METERS, by=by, valid_from=valid_from, now=NOW)[0]


def approve(engine, reference, by=BOB):
    return publishing.approve(engine, "test", reference, METERS, by=by, why="read it", now=NOW)


def refused(engine, reference, by=BOB):
    with pytest.raises(PublishingRefused) as problem:
        approve(engine, reference, by)
    return str(problem.value)


def acts(engine):
    return [(it.what, it.who) for it in publishing.audit(engine, "test")]


def test_nobody_publishes_alone(engine):
    with pytest.raises(versions.SecondPersonNeeded, match="takes two persons"):
        versions.publish(engine, "test", DEARER, METERS, author="ann", now=NOW)
    assert len(versions.versions(engine, "test")) == 1


def test_what_another_person_approves_is_in_force_byte_for_byte(engine):
    proposal = propose(engine, valid_from=datetime(2026, 12, 1, tzinfo=UTC))
    assert (proposal.version, proposal.author, proposal.recorded_at) == (2, "ann", NOW)
    assert len(versions.versions(engine, "test")) == 1  # proposing prices nothing
    approve(engine, proposal.sha256[:12])
    _, made = versions.versions(engine, "test")
    assert (made.version, made.source, made.sha256, made.author) == (2, DEARER, proposal.sha256, "ann")
    assert made.valid_from == datetime(2026, 12, 1, tzinfo=UTC)
    again, version = approve(engine, proposal.sha256[:12])
    assert (again.state, version) == ("approved", made) and len(versions.versions(engine, "test")) == 2
    assert acts(engine) == [("two_persons", "ann"), ("proposed", "ann"), ("approved", "bob")]


def test_without_a_date_it_is_valid_from_its_approval(engine):
    propose(engine)
    later = datetime(2026, 12, 2, tzinfo=UTC)
    publishing.approve(engine, "test", "2", METERS, by=BOB, why="read it", now=later)
    assert versions.versions(engine, "test")[1].valid_from == later


@pytest.mark.parametrize("name", ["ann", "Ann", " ANN ", "ａｎｎ"])
def test_the_author_is_no_second_person_however_the_name_is_spelt(engine, name):
    propose(engine)
    assert "another person has to approve it" in refused(engine, "2", Person(name, "other"))
    assert len(versions.versions(engine, "test")) == 1
    last = publishing.audit(engine, "test")[-1]
    assert (last.what, last.who, last.account) == ("refused", name, "other") and "another person" in last.why


def test_proposing_the_same_again_approves_nothing(engine):
    first = propose(engine)
    assert propose(engine, by=BOB) == first and len(versions.versions(engine, "test")) == 1
    assert acts(engine)[-1] == ("proposed", "ann")


def test_a_proposal_on_another_base_is_refused(engine):
    propose(engine)
    other = propose(engine, DEARER.replace("3.00", "4.00"), by=EVE)
    assert "several proposals are named 2" in refused(engine, "2")
    approve(engine, other.sha256)
    assert [it.state for it in publishing.proposals(engine, "test") if it.author == "ann"] == ["outdated"]
    said = refused(engine, versions.check(DEARER, METERS).book.sha256)
    assert "was proposed when version 1 was the newest, which is now 2" in said
    assert propose(engine).version == 3
    assert "is now 2" not in str(approve(engine, "3"))
    assert [it.source for it in versions.versions(engine, "test")] == [BOOK, DEARER.replace("3.00", "4.00"), DEARER]


def test_a_text_that_was_changed_is_refused_by_the_database_and_by_its_hash(engine):
    propose(engine)
    changed = update(price_proposals).values(source=DEARER.replace("3.00", "0.01"))
    with pytest.raises(DBAPIError, match="never changed"), begin_write(engine) as connection:
        connection.execute(changed)
    with begin_write(engine) as connection:  # as somebody who owns the database could
        on = "" if engine.dialect.name == "sqlite" else " ON price_proposals"
        connection.execute(text(f"DROP TRIGGER price_proposals_kept{on}"))
        connection.execute(changed)
    assert "is not the one that was proposed" in refused(engine, "2")
    assert len(versions.versions(engine, "test")) == 1


def test_a_rejected_proposal_is_not_approved_but_may_be_made_again(engine):
    propose(engine)
    publishing.reject(engine, "test", "2", by=BOB, why="too dear", now=NOW)
    assert "was rejected by bob (too dear)" in refused(engine, "2", EVE)
    propose(engine)
    approve(engine, "2")
    assert acts(engine)[1:] == [
        ("proposed", "ann"),
        ("rejected", "bob"),
        ("refused", "eve"),
        ("proposed", "ann"),
        ("approved", "bob"),
    ]


def test_ending_the_rule_takes_two_persons_as_well(engine):
    ending, _ = publishing.propose_one(engine, "test", by=ANN, why="small team", now=NOW)
    assert publishing.two_persons(engine, "test")
    assert "another person" in refused(engine, ending.sha256, ANN) and publishing.two_persons(engine, "test")
    assert approve(engine, ending.sha256)[1] is None
    assert not publishing.two_persons(engine, "test")
    assert versions.publish(engine, "test", DEARER, METERS, author="ann", now=NOW)[0].version == 2
    assert [(it.position, it.what) for it in publishing.audit(engine, "test")] == [
        (1, "two_persons"), (2, "proposed"), (3, "refused"), (4, "approved"), (5, "one_person"),
    ]  # fmt: skip
    # Asked for again, it holds again, and the first end of it counts no more.
    publishing.ask_for_two(engine, "test", by=BOB, why="audit", now=NOW)
    assert publishing.propose_one(engine, "test", by=ANN, why="again", now=NOW)[1]
    assert publishing.two_persons(engine, "test")


def test_a_meter_that_is_no_longer_declared_is_seen_when_it_is_approved(engine):
    propose(engine)
    with pytest.raises(PublishingRefused, match="has mistakes by the meters of now"):
        publishing.approve(engine, "test", "2", {"tool.calls": "{call}"}, by=BOB, why="read it", now=NOW)


def test_a_refused_attempt_is_on_record_of_whom_has_no_role_as_well(engine):
    propose(engine)
    with begin_write(engine) as connection:
        roles.change(connection, "test", "pricing", "bob", granted=True, who="bob", why="audit", now=NOW)
    assert "another person has to approve it" in refused(engine, "2", ANN)
    with pytest.raises(roles.NotAllowed, match="eve may not change this"):
        publishing.reject(engine, "test", "2", by=EVE, why="too dear", now=NOW)
    assert acts(engine)[1:] == [("proposed", "ann"), ("refused", "ann")]
    assert len(versions.versions(engine, "test")) == 1


def test_a_customer_that_is_called_like_a_decision_may_be_erased_and_the_decision_stands(engine):
    registry.add_customer(engine, "test", "two_persons", now=NOW)
    erasure = privacy.begin(engine, "e1", "test", "two_persons", who="anna", why="asked", now=NOW)
    privacy.rename(engine, erasure, "p-1", {})
    privacy.finish(engine, erasure, "p-1", NOW)
    assert publishing.two_persons(engine, "test") and acts(engine) == [("two_persons", "ann")]


# ---- databases and backups of version 7, which had a table beside the audit log

LATER = NOW + timedelta(minutes=5)
FORMER = Table(
    "price_audit",
    MetaData(),
    Column("namespace", String(64), primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("recorded_at", UtcTime, nullable=False),
    Column("what", String(16), nullable=False),
    Column("proposal_id", String(64)),
    Column("version", Integer),
    Column("who", String(128), nullable=False),
    Column("account", String(128), nullable=False),
    Column("why", String(500), nullable=False),
)
ledger_rules.append_only(FORMER, "namespace position recorded_at what proposal_id version")
HASH = "ab" * 32
BEFORE_THE_LOG = [(1, NOW, "two_persons", None, None, "ann", "root", "audit"),
                  (2, NOW, "proposed", HASH, None, "ann", "root", "")]  # fmt: skip
IN_BOTH = [(3, LATER, "approved", HASH, 1, "bob", "daemon", "read it"),
           (4, LATER, "one_person", HASH, None, "bob", "daemon", "read it")]  # fmt: skip
AFTER = [(5, LATER, "two_persons", None, None, "eve", "root", "audit of 2026")]
NAMES = ("position", "recorded_at", "what", "proposal_id", "version", "who", "account", "why")


@pytest.fixture
def former(sql_url, tmp_path):
    """A database of version 7: five acts, of which the audit log, younger than the table, knows the last three."""
    settings = Settings(data=tmp_path, sql_url=sql_url)
    made = open_engine(settings)
    for namespace in ("live", "test"):
        registry.ensure_namespace(made, namespace, now=NOW)
    with begin_write(made) as connection:
        FORMER.create(connection)
        for row in [*BEFORE_THE_LOG, *IN_BOTH, *AFTER]:
            connection.execute(FORMER.insert().values(namespace="test", **dict(zip(NAMES, row, strict=True))))
        connection.execute(FORMER.insert().values(namespace="live", **dict(zip(NAMES, AFTER[0], strict=True))))
    with begin_write(made) as connection:  # as version 7 told its log of what was inserted
        for position, at, what, proposal, version, who, account, why in [*IN_BOTH, *AFTER]:
            audit.note(
                connection, "test", "price decision", subject=what, who=who, why=why, at=at,
                added={"position": position, "what": what, "proposal_id": proposal, "version": version,
                       "account": account},
            )  # fmt: skip
    with begin_write(made) as connection:
        connection.execute(text("DROP INDEX audit_log_by_what"))
        connection.execute(text("UPDATE schema_version SET version = 7"))
    yield made, settings
    made.dispose()


def told(engine, namespace="test"):
    return [tuple(getattr(it, name) for name in NAMES) for it in publishing.audit(engine, namespace)]


def check_moved(engine, anchor):
    """All acts are there once, with who and when, in a log that follows the one of before; the rule holds."""
    assert told(engine) == [*BEFORE_THE_LOG, *IN_BOTH, *AFTER]
    assert told(engine, "live") == AFTER
    proof = audit_book.verify(engine, "test", [anchor])
    assert (proof.sequence, proof.problems) == (anchor.sequence + 2, [])
    assert audit_book.verify(engine, "live").problems == []
    moved = audit_book.entries(engine, "test", limit=2)
    assert [(it.what, it.subject, it.who, it.changed_at) for it in reversed(moved)] == [
        ("price decision", "two_persons", "ann", NOW), ("price decision", "proposed", "ann", NOW),
    ]  # fmt: skip
    found = inspect(engine)
    assert not found.has_table("price_audit")
    assert "audit_log_by_what" in {it["name"] for it in found.get_indexes("audit_log")}
    assert publishing.two_persons(engine, "test")
    with pytest.raises(versions.SecondPersonNeeded):
        versions.publish(engine, "test", BOOK, METERS, author="ann", now=LATER)
    proposal = publishing.propose(engine, "test", BOOK, METERS, by=ANN, valid_from=None, now=LATER)[0]
    assert "another person" in refused(engine, proposal.sha256, ANN)
    assert approve(engine, proposal.sha256)[1].version == 1
    assert [it.position for it in publishing.audit(engine, "test")] == [1, 2, 3, 4, 5, 6, 7, 8]


def anchor_of(engine):
    proof = audit_book.verify(engine, "test")
    assert proof.problems == []
    return Anchor("test", proof.sequence, proof.hash)


def test_a_database_of_version_7_has_its_price_decisions_in_the_audit_log(former):
    engine, settings = former
    anchor = anchor_of(engine)
    again = open_engine(settings)
    check_moved(again, anchor)
    if engine.dialect.name == "postgresql":
        with again.connect() as connection:
            left = "SELECT count(*) FROM pg_proc WHERE proname LIKE 'price_audit%'"
            assert connection.execute(text(left)).scalar_one() == 0
    again.dispose()
    open_engine(settings).dispose()  # once more changes nothing
    assert len(told(engine)) == 8


def test_a_backup_of_version_7_is_restored_with_its_price_decisions_in_the_audit_log(former, tmp_path):
    engine, _ = former
    anchor = anchor_of(engine)
    with engine.connect() as connection:
        rows = connection.execute(FORMER.select().order_by(FORMER.c.namespace, FORMER.c.position)).all()
    out = io.BytesIO()
    counts = sql_dump.dump(engine, out) | {"price_audit": len(rows)}
    lines = [json.dumps({"schema_version": 7}), *out.getvalue().decode().splitlines()[1:]]
    lines.append(json.dumps({"table": "price_audit", "columns": [column.name for column in FORMER.columns]}))
    lines += [json.dumps(list(row), default=lambda it: it.isoformat()) for row in rows]
    other = open_engine(Settings(data=tmp_path / "other"))
    sql_dump.load(other, io.BytesIO("\n".join(lines).encode()), counts, lambda _: None)
    check_moved(other, anchor)
    other.dispose()


def test_the_commands_tell_who_does_what(tmp_path, monkeypatch):
    for name in ("METERHOUSE_SQL_URL", "METERHOUSE_WAREHOUSE_URL", "METERHOUSE_METERS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("METERHOUSE_DATA", str(tmp_path))
    monkeypatch.setenv("METERHOUSE_NAMESPACE", "test")
    open_engine(Settings(data=tmp_path)).dispose()
    book = tmp_path / "book.yaml"
    book.write_text(DEARER)

    def call(*arguments):
        done = CliRunner().invoke(prices, list(arguments))
        return done.exit_code, done.output

    assert call("persons") == (0, "A price book of test takes one person.\n")
    assert call("persons", "2")[0] == 1  # without a reason
    assert call("persons", "2", "--why", "audit", "--by", "ann")[1].endswith("takes two persons from now on.\n")
    code, said = call("publish", str(book), "--author", "ann", "--valid-from", "2026-12-01")
    assert code == 0 and said.startswith("Version 1 is proposed: sha256 ") and "valid from 2026-12-01 on." in said
    assert call("list")[1].startswith("No price book is published")
    digest = said.split("`meterhouse prices approve ")[1].split()[0]
    assert call("proposals", digest) == (0, DEARER)
    assert call("proposals")[1].splitlines()[1].split()[1:] == ["version", "1", "2026-12-01", "ann", digest, "open"]
    code, said = call("approve", digest, "--why", "mine", "--by", "ann")
    assert code == 1 and "another person has to approve it" in said
    code, said = call("approve", digest, "--why", "read it", "--by", "bob")
    assert code == 0 and said.startswith("Price book own, version 1, published: valid from 2026-12-01."), said
    assert "ann, bob" in call("list")[1]
    assert json.loads(call("list", "--json")[1])[0]["approved_by"] == "bob"
    assert call("proposals")[1] == "No proposal waits (`--all` lists those that did).\n"
    assert [it["what"] for it in json.loads(call("audit", "--json")[1])] == [
        "two_persons",
        "proposed",
        "refused",
        "approved",
    ]
    assert call("reject", digest, "--why", "late", "--by", "eve")[0] == 1
    code, said = call("persons", "1", "--why", "small", "--by", "ann")
    assert code == 0 and "proposed that one person is enough" in said
    assert call("persons")[1].endswith("two persons.\n")
