"""`meterhouse ledger` as somebody meets it."""

import json

import pytest
from ledger_samples import furnished, post, sale, without_rules
from sqlalchemy import update
from typer.testing import CliRunner

from meterhouse_rating.ledger_commands import ledger
from meterhouse_rating.ledger_proof import prove
from meterhouse_store import privacy
from meterhouse_store.settings import Settings
from meterhouse_store.sql import begin_write, open_engine
from meterhouse_store.tables import ledger_entries


@pytest.fixture
def engine(tmp_path, monkeypatch):
    for name in ("METERHOUSE_SQL_URL", "METERHOUSE_WAREHOUSE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("METERHOUSE_DATA", str(tmp_path))
    monkeypatch.setenv("METERHOUSE_NAMESPACE", "test")
    made = open_engine(Settings(data=tmp_path))
    yield made
    made.dispose()


def call(*arguments):
    done = CliRunner().invoke(ledger, list(arguments))
    return done.exit_code, done.output


def test_an_anchor_is_written_once_and_the_ledger_held_against_it(engine, tmp_path):
    furnished(engine, 2)
    file = tmp_path / "anchor.json"
    code, said = call("anchor", "--out", str(file))
    assert code == 0 and said.startswith("2 transactions, last seal ")
    assert call("anchor", "--out", str(file))[0] == 1
    post(engine, sale(3), day=3)
    code, said = call("verify", "--anchor", str(file))
    assert code == 0 and said.startswith("The ledger of test holds: 3 transactions, last seal "), said
    assert said.endswith(", as 1 anchor said.\n")
    without_rules(engine)
    with begin_write(engine) as connection:
        connection.execute(update(ledger_entries).values(amount_minor=ledger_entries.c.amount_minor * 2))
    code, said = call("verify", "--anchor", str(file))
    assert code == 1 and said.startswith("The ledger of test does NOT hold (3 transactions):\n  transaction 1 ("), said
    assert call("anchor")[0] == 1
    code, said = call("verify", "--json")
    assert (code, len(json.loads(said)["problems"])) == (1, 3)


def test_a_file_that_is_no_anchor_is_refused(engine, tmp_path):
    (tmp_path / "x").write_text("{}")
    code, said = call("verify", "--anchor", str(tmp_path / "x"))
    assert code == 1 and said.endswith("is no anchor: `meterhouse ledger anchor --out FILE` writes one.\n")


def test_balances_are_folds_at_any_time(engine):
    furnished(engine, 3)  # 1.00 on each of 2, 3 and 4 November
    code, said = call("balance", "--at", "2026-11-03", "--json")
    rows = {(row["account"], row["amount_minor"]) for row in json.loads(said)}
    assert (code, rows) == (0, {("receivable", 200), ("revenue", -200)})
    assert call("balance")[1] == (
        "  customer  account     balance\n"
        "  acme      receivable     3.00  USD\n"
        "  acme      revenue       -3.00  USD\n"
    )  # fmt: skip


def test_the_last_entries_are_told_in_the_order_of_the_chain(engine):
    furnished(engine, 3)
    rows = json.loads(call("entries", "--limit", "2", "--json")[1])
    assert [(row["sequence"], row["account"], row["amount_minor"]) for row in rows] == [
        (2, "receivable", 100), (2, "revenue", -100), (3, "receivable", 100), (3, "revenue", -100),
    ]  # fmt: skip


def test_an_adjustment_names_what_it_corrects_and_is_posted_once(engine):
    first, *_ = furnished(engine, 1)
    arguments = ("adjust", "acme", "--corrects", first[:10], "--why", "agreed", "--by", "ann", "--", "-0.40")
    code, said = call(*arguments[:-2], "--dry-run", "--", "-0.40")
    assert (code, prove(engine, "test").sequence) == (0, 1) and "would be posted (dry run)" in said
    assert "posted" in call(*arguments)[1]
    assert "was posted already" in call(*arguments)[1]
    rows = json.loads(call("entries", "--account", "adjustments", "--json")[1])
    assert [(row["account"], row["amount_minor"], row["corrects"]) for row in rows] == [
        ("receivable", -40, first), ("adjustments", 40, first),
    ]  # fmt: skip
    assert prove(engine, "test").problems == []


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("acme", "0"), "0 USD is no amount that can be charged: 0.01 to 10,000,000,000,000"),
        (("acme", "1.005"), "1.005 USD is no amount that can be charged: 0.01 to 10,000,000,000,000"),
        (("acme", "10_000_000_000_000.01"), "USD is no amount that can be charged: 0.01 to 10,000,000,000,000"),
        (("acme", "1e30"), "1e30 USD is no amount that can be charged: 0.01 to 10,000,000,000,000"),
        (("acme", "much"), "'much' is no amount: write digits and a point, such as 12.50"),
        (("globex", "1"), "globex is not registered: `meterhouse customers add globex`"),
        (("acme", "1", "--account", "promotions"), "'promotions' cannot be adjusted against"),
        (("acme", "1", "--corrects", "zz"), "no transaction of acme begin with zz"),
    ],
)
def test_adjustments_that_cannot_be_are_refused_in_a_sentence(engine, arguments, why):
    furnished(engine, 1)
    code, said = call("adjust", *arguments, "--why", "x")
    assert code == 1 and why in said


def test_the_chain_holds_when_a_customer_was_erased(engine):
    from ledger_samples import DAY

    furnished(engine, 2)
    post(engine, sale(1, customer="globex"), customer="globex", day=3)
    erasure = privacy.begin(engine, "e1", "test", "acme", who="ann", why="asked", now=DAY)
    privacy.rename(engine, erasure, "p-1234", {})
    privacy.finish(engine, erasure, "p-1234", DAY)
    proof = prove(engine, "test")
    assert (proof.problems, proof.erased) == ([], 2)
    rows = json.loads(call("entries", "--json")[1])
    assert {row["customer_id"] for row in rows} == {"p-1234", "globex"}
    assert {row["memo"] for row in rows} == {"sale 1 to p-1234", "sale 2 to p-1234", "sale 1 to globex"}
