"""Two persons: one proposes a price book, another one puts it in force, and neither can do both."""

import json
from datetime import UTC, datetime

import pytest
from sqlalchemy import text, update
from sqlalchemy.exc import DBAPIError
from typer.testing import CliRunner

from meterhouse_rating import publishing, versions
from meterhouse_rating.commands import prices
from meterhouse_rating.publishing import Person, PublishingRefused
from meterhouse_store.settings import Settings
from meterhouse_store.sql import begin_write, open_engine
from meterhouse_store.tables import price_proposals

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
    # Asked for again, it holds again, and the first end of it counts no more.
    publishing.ask_for_two(engine, "test", by=BOB, why="audit", now=NOW)
    assert publishing.propose_one(engine, "test", by=ANN, why="again", now=NOW)[1]
    assert publishing.two_persons(engine, "test")


def test_a_meter_that_is_no_longer_declared_is_seen_when_it_is_approved(engine):
    propose(engine)
    with pytest.raises(PublishingRefused, match="has mistakes by the meters of now"):
        publishing.approve(engine, "test", "2", {"tool.calls": "{call}"}, by=BOB, why="read it", now=NOW)


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
