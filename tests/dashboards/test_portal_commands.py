"""`meterhouse portal` for operators: who may sign in, and what customers ask."""

import json
import re
from datetime import UTC, datetime

import pytest
from typer.testing import CliRunner

from meterhouse_portal import members, questions
from meterhouse_portal.commands import portal
from meterhouse_store import registry, sql
from meterhouse_store.settings import Settings

NOW = datetime(2026, 11, 21, 3, 30, tzinfo=UTC)


@pytest.fixture
def engine(tmp_path, monkeypatch):
    monkeypatch.setenv("METERHOUSE_DATA", str(tmp_path))
    engine = sql.open_engine(Settings(data=tmp_path))
    registry.ensure_namespace(engine, "live", now=NOW)
    registry.add_customer(engine, "live", "acme", plan="pay", now=NOW)
    yield engine
    engine.dispose()


def call(*arguments):
    done = CliRunner().invoke(portal, arguments)
    return done.exit_code, done.output


def test_an_operator_invites_lists_links_and_removes(engine):
    assert call("invite", "acme", "Olga@acme.example", "--by", "op") == (
        0, "olga@acme.example signs in for acme as owner, at the portal's /account.\n",
    )  # fmt: skip
    assert re.search(r"olga@acme\.example +owner", call("members", "acme")[1])
    assert json.loads(call("members", "acme", "--json")[1])[0]["who"] == "op"
    _, shown = call("link", "olga@acme.example")
    token = re.fullmatch(r"http://127\.0\.0\.1:8080/sign-in/(\S+)\n", shown).group(1)
    assert members.sign_in(engine, "live", token, datetime.now(UTC)) is not None
    assert call("link", "nobody@acme.example")[0] == 1
    assert call("invite", "acme", "olga@acme.example", "--role", "none")[0] == 0
    assert "Nobody" in call("members", "acme")[1]
    assert call("members", "acm") == (1, "there is no customer 'acm' in live: `meterhouse customers list`\n")


def test_a_key_for_frames_is_shown_once_listed_and_removed(engine):
    code, text = call("embed-keys", "--add", "app", "--customer", "acme", "--by", "op")
    assert code == 0 and re.fullmatch(r"ek_[0-9a-f]{16}\.[\w-]{43}\n", text)
    key = text.partition(".")[0]
    listed = call("embed-keys")[1]
    assert re.search(rf"{key} +app +acme ", listed) and text.strip() not in listed
    assert call("embed-keys", "--add", "app", "--customer", "initech")[0] == 1
    assert call("embed-keys", "--customer", "acme")[0] == 1
    assert "No key: `meterhouse portal embed-keys --add NAME`." in call("embed-keys", "--remove", key)[1]
    assert call("embed-keys", "--remove", key)[0] == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("initech", "x@acme.example"), "there is no customer 'initech'"),
        (("acme", "no address"), "is no e-mail address"),
        (("acme", "x@acme.example", "--role", "king"), "'king' is no role: viewer, billing, owner"),
    ],
)
def test_a_wrong_invitation_is_refused_in_a_sentence(engine, arguments, said):
    code, shown = call("invite", *arguments)
    assert code == 1
    assert said in shown


def test_questions_are_listed_and_answered_once(engine):
    line = {"rating_id": "r" * 64, "line_id": "a" * 64, "amount_minor": 1250, "currency": "EUR"}
    asked = questions.ask(engine, "live", "acme", line, "Why?", who="olga@acme.example", now=NOW)
    short = asked.question_id[:10]
    assert re.search(rf"{short} +acme +aaaaaaaaaa +12\.50 EUR", call("questions")[1])
    assert call("answer", short, "--accept", "--why", "Credited", "--by", "op") == (
        0,
        f"{short} of acme is accepted.\n",
    )
    assert "No question waits" in call("questions")[1]
    code, shown = call("answer", short, "--reject", "--why", "No")
    assert (code, "it is answered once" in shown) == (1, True)
    assert call("answer", "zzz", "--reject", "--why", "No")[0] == 1


def test_the_end_of_an_operator_is_said(engine):
    call("operators", "--add", "ann@op.example")
    both = call("operators", "--add", "Bob@op.example")
    assert both == (0, "bob@op.example may sign in at /operator.\nann@op.example\nbob@op.example\n")
    assert (
        call("operators", "--remove", "bob@op.example")[1]
        == "bob@op.example is no operator any more.\nann@op.example\n"
    )
    assert "zoe@op.example is no operator." in call("operators", "--remove", "zoe@op.example")[1]
    last = call("operators", "--remove", "ann@op.example")[1]
    assert last.startswith("ann@op.example is no operator any more.\nThere are no operators:")
