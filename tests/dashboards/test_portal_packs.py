"""Evidence packs in the portal: a customer asks, a job makes, the customer downloads and verifies with Python alone."""

import hashlib
import json
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import BytesIO

import pytest
from clickhouse_connect.driver.exceptions import DatabaseError, OperationalError
from portal_samples import NOW, form_token, portal_world, text_of, visiting
from sqlalchemy import delete, select, update
from sqlalchemy.exc import DBAPIError
from typer.testing import CliRunner

from meterhouse_portal import commands, members, packs
from meterhouse_portal.commands import portal
from meterhouse_rating import evidence
from meterhouse_rating.periods import Period, parse
from meterhouse_store import privacy, sql_dump, tables
from meterhouse_store.registry import RegistryError
from meterhouse_store.settings import Settings
from meterhouse_store.sql import begin_write


@pytest.fixture(scope="module")
def made_world(warehouse_address, tmp_path_factory):
    with portal_world(warehouse_address, tmp_path_factory.mktemp("portal") / "data") as made:
        yield made


@pytest.fixture
def world(made_world):
    yield made_world
    with begin_write(made_world[0].engine) as connection:
        for table in (tables.evidence_packs, tables.evidence_blocks):
            connection.execute(delete(table))


def rating_of(world, customer="acme", state="closed"):
    table = tables.ratings
    query = select(table).where(table.c.customer_id == customer, table.c.state == state)
    with world[0].engine.connect() as connection:
        return dict(connection.execute(query).mappings().one())


def made(world, scratch, now=NOW):
    return list(packs.make_asked(replace(world[0], now=lambda: now), scratch))


def blocks_kept(world):
    with world[0].engine.connect() as connection:
        return connection.execute(select(tables.evidence_blocks.c.customer_id)).scalars().all()


def test_a_customer_asks_downloads_and_verifies_with_nothing_but_python(world, tmp_path):
    at, _ = world
    address = f"/account/invoices/{rating_of(world)['rating_id']}"
    with visiting(world, "bill@acme.example") as browser:
        page = browser.get(address).text
        assert "Ask for the evidence pack" in page and "evidence.zip" not in page
        assert browser.get(f"{address}/evidence.zip").status_code == 404
        form = {"form": form_token(page)}
        assert browser.post(f"{address}/evidence", data=form).headers["location"] == f"{address}#evidence"
        page = browser.get(address).text
        assert "Asked for 2026-11-21 04:30" in text_of(page) and "Ask for the evidence pack" not in page

        (outcome,) = made(world, tmp_path)
        assert list(tmp_path.iterdir()) == [], "nothing is left in the scratch folder"
        page = browser.get(address).text
        assert f"{address}/evidence.zip" in page and "kept until 2026-11-28" in text_of(page)
        answer = browser.get(f"{address}/evidence.zip")
        head = browser.head(f"{address}/evidence.zip")
    assert answer.status_code == 200 and head.headers["content-length"] == str(len(answer.content))
    name = re.search(r'filename="(.+)"', answer.headers["content-disposition"]).group(1)
    assert name == "evidence-2026-10-01-2026-11-01.zip"  # October of Berlin begins and ends in UTC's month before
    assert f"{(len(answer.content) + 999) // 1000} kB" in text_of(page)

    file = tmp_path / name
    file.write_bytes(answer.content)
    done = subprocess.run([sys.executable, "-I", file], cwd=tmp_path, env={}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    # 300,000 tokens at 2.00 a thousand and four tool calls at 0.50.
    assert "Verified: 602.00 EUR (closed)." in done.stdout and re.search(r" 3 +events:", done.stdout)
    id_shown = re.search(r"<code>([0-9a-f]{64})</code>", page).group(1)
    manifest = zipfile.ZipFile(BytesIO(answer.content)).read("manifest.json")
    assert id_shown in done.stdout and id_shown == hashlib.sha256(manifest).hexdigest() == outcome.manifest_sha256
    evidence.make(at, "acme", parse("2026-10", "Europe/Berlin"), tmp_path / "by-hand.zip")
    assert (tmp_path / "by-hand.zip").read_bytes() == answer.content


def test_it_says_what_it_is_in_german_too(world, tmp_path):
    rating = rating_of(world)
    packs.ask(world[0].engine, "live", "acme", rating, NOW)
    made(world, tmp_path)
    with visiting(world, "bill@acme.example") as browser:
        shown = text_of(browser.get(f"/account/invoices/{rating['rating_id']}", headers={"Accept-Language": "de"}).text)
    assert "Nachweis Eine Datei mit allem, woraus dies entstand" in shown and "aufbewahrt bis 28.11.2026" in shown


def test_a_viewer_and_another_customer_get_none(world, tmp_path):
    rating = rating_of(world)
    packs.ask(world[0].engine, "live", "acme", rating, NOW)
    made(world, tmp_path)
    path = f"/account/invoices/{rating['rating_id']}/evidence.zip"
    for email, status in (("vera@acme.example", 403), ("gus@globex.example", 404), ("olga@acme.example", 200)):
        with visiting(world, email) as browser:
            assert browser.get(path).status_code == status, email
    with visiting(world, "gus@globex.example") as browser:
        token = form_token(browser.get("/account").text)
        assert browser.post(path.removesuffix(".zip"), data={"form": token}).status_code == 404
        none = browser.get("/account/invoices/" + "0" * 64 + "/evidence.zip")
        assert none.text == browser.get(path).text


def test_nobody_gets_one_unless_the_operator_switched_it_on(world, tmp_path, monkeypatch):
    at, settings = world
    rating = rating_of(world)
    packs.ask(at.engine, "live", "acme", rating, NOW)
    made(world, tmp_path)
    monkeypatch.setenv("METERHOUSE_PORTAL_EVIDENCE", "")  # as docker compose passes what is not set
    unset = Settings(data=settings.data, warehouse_url=settings.warehouse_url)
    address = f"/account/invoices/{rating['rating_id']}"
    with visiting((at, unset), "bill@acme.example") as browser:
        page = browser.get(address).text
        assert "vidence" not in page
        assert browser.get(f"{address}/evidence.zip").status_code == 404
        token = form_token(browser.get("/account/budgets").text)
        assert browser.post(f"{address}/evidence", data={"form": token}).status_code == 404
    for said, on in (("on", True), ("off", False)):
        monkeypatch.setenv("METERHOUSE_PORTAL_EVIDENCE", said)
        assert Settings(data=settings.data).portal_evidence is on


def test_a_month_under_way_has_none_and_one_is_made_at_a_time(world):
    at, _ = world
    closed = rating_of(world)
    with pytest.raises(RegistryError, match="once it is closed"):
        packs.ask(at.engine, "live", "acme", closed | {"state": "open"}, NOW)
    first = packs.ask(at.engine, "live", "acme", closed, NOW)
    assert packs.ask(at.engine, "live", "acme", closed, NOW + timedelta(minutes=1)) == first
    with pytest.raises(RegistryError, match="Another evidence pack of yours is being made"):
        packs.ask(at.engine, "live", "acme", closed | {"rating_id": "1" * 64}, NOW)
    theirs = rating_of(world, "globex")
    assert packs.ask(at.engine, "live", "globex", theirs, NOW).customer_id == "globex"


def test_what_does_not_agree_with_itself_is_handed_to_nobody(world, tmp_path):
    at, _ = world
    rating = rating_of(world)
    table, line = tables.rated_lines, tables.rated_lines.c.amount_minor
    is_it = (table.c.rating_id == rating["rating_id"]) & (line == 200)
    packs.ask(at.engine, "live", "acme", rating, NOW)
    with begin_write(at.engine) as connection:
        assert connection.execute(update(table).where(is_it).values(amount_minor=199)).rowcount == 1
    try:
        (outcome,) = made(world, tmp_path)
    finally:
        with begin_write(at.engine) as connection:
            is_changed = (table.c.rating_id == rating["rating_id"]) & (line == 199)
            connection.execute(update(table).where(is_changed).values(amount_minor=200))
    assert (outcome.state, outcome.problem) == (packs.FAILED, packs.DIFFERS)
    assert "1.99" in outcome.told and blocks_kept(world) == []
    address = f"/account/invoices/{rating['rating_id']}"
    with visiting(world, "bill@acme.example") as browser:
        page = browser.get(address).text
        assert "what is stored does not agree with itself. Whoever sends your invoices sees that." in text_of(page)
        assert browser.get(f"{address}/evidence.zip").status_code == 404
        browser.post(f"{address}/evidence", data={"form": form_token(page)})
        assert made(world, tmp_path)[0].state == packs.MADE
        assert browser.get(f"{address}/evidence.zip").status_code == 200


def test_one_that_is_too_large_is_for_the_operator_to_hand_over(world, tmp_path, monkeypatch):
    monkeypatch.setattr(packs, "LARGEST", 1000)
    rating = rating_of(world)
    packs.ask(world[0].engine, "live", "acme", rating, NOW)
    (outcome,) = made(world, tmp_path)
    assert outcome.problem == packs.TOO_LARGE and "make it with `meterhouse evidence`" in outcome.told
    with visiting(world, "bill@acme.example") as browser:
        shown = text_of(browser.get(f"/account/invoices/{rating['rating_id']}").text)
    assert "It is too large to be kept here. Whoever sends your invoices sees that." in shown
    assert blocks_kept(world) == []


def test_a_pack_of_many_blocks_is_the_file_to_the_byte(world, tmp_path, monkeypatch):
    monkeypatch.setattr(packs, "_BLOCK", 1000)
    pack = packs.ask(world[0].engine, "live", "acme", rating_of(world), NOW)
    (outcome,) = made(world, tmp_path)
    evidence.make(world[0], "acme", Period(pack.period_start, pack.period_end), tmp_path / "by-hand.zip")
    wanted = (tmp_path / "by-hand.zip").read_bytes()
    assert len(wanted) == outcome.bytes and len(blocks_kept(world)) == -(-len(wanted) // 1000) > 10
    assert b"".join(packs.blocks(world[0].engine, outcome)) == wanted


def test_a_download_of_one_that_is_made_anew_differently_breaks_off(world, tmp_path, monkeypatch):
    monkeypatch.setattr(packs, "_BLOCK", 1000)
    at, rating = world[0], rating_of(world)
    packs.ask(at.engine, "live", "acme", rating, NOW)
    (before,) = made(world, tmp_path)
    under_way = packs.blocks(at.engine, before)
    next(under_way)
    packs.ask(at.engine, "live", "acme", rating, NOW)  # the same again, to the byte: it goes on
    made(world, tmp_path)
    next(under_way)
    with begin_write(at.engine) as connection:
        connection.execute(update(tables.evidence_blocks).values(manifest_sha256="f" * 64))
    with pytest.raises(LookupError, match="is not there any more"):
        list(under_way)


def test_a_pack_goes_after_a_week_and_can_be_asked_for_again(world, tmp_path):
    rating = rating_of(world)
    packs.ask(world[0].engine, "live", "acme", rating, NOW)
    made(world, tmp_path)
    assert made(world, tmp_path, NOW + timedelta(days=7)) == [] and len(blocks_kept(world)) == 1
    assert made(world, tmp_path, NOW + timedelta(days=7, seconds=1)) == []
    assert blocks_kept(world) == []
    with visiting(world, "bill@acme.example") as browser:
        assert "Ask for the evidence pack" in browser.get(f"/account/invoices/{rating['rating_id']}").text


def test_what_cannot_be_made_now_waits_longer_each_time_and_is_given_up_after_eight(world, tmp_path, monkeypatch):
    tried = []

    def down(_world, customer, *_):
        tried.append(customer)
        raise DatabaseError("the warehouse is away")

    monkeypatch.setattr(evidence, "make", down)
    engine = world[0].engine
    packs.ask(engine, "live", "acme", rating_of(world), NOW)
    packs.ask(engine, "live", "globex", rating_of(world, "globex"), NOW + timedelta(seconds=1))
    found = made(world, tmp_path, NOW + timedelta(seconds=1))
    assert [(it.customer_id, it.state, it.told) for it in found] == [
        ("acme", "asked", "the warehouse is away"), ("globex", "asked", "the warehouse is away"),
    ]  # fmt: skip
    tried.clear()
    at_minutes = []
    for minute in range(1, 1000):
        made(world, tmp_path, NOW + timedelta(minutes=minute, seconds=2))
        at_minutes += [minute] * tried.count("acme")
        tried.clear()
    # 2, 4, 8 … minutes after the try before: seven more.
    assert at_minutes == [2, 6, 14, 30, 62, 126, 254]
    pack = packs.of_rating(engine, "live", "acme", rating_of(world)["rating_id"])
    assert (pack.state, pack.problem, pack.tries) == (packs.FAILED, packs.GIVEN_UP, 8)


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (OperationalError("Unexpected Http Driver Exception (for url http://admin:secret@127.0.0.1:1)"),
         "the warehouse does not answer"),
        (DBAPIError("SELECT secret", {}, ValueError("disk is away")), "the SQL database cannot be used: disk is away"),
        (OSError(28, "No space left on device", "/data/run/packs"), "/data/run/packs: No space left on device"),
    ],
)  # fmt: skip
def test_why_it_waits_is_said_in_the_words_of_other_commands(world, tmp_path, monkeypatch, problem, said):
    def down(*_):
        raise problem

    monkeypatch.setattr(evidence, "make", down)
    packs.ask(world[0].engine, "live", "acme", rating_of(world), NOW)
    assert [it.told for it in made(world, tmp_path)] == [said]


def test_one_that_kills_its_maker_comes_behind_those_of_others(world, tmp_path, monkeypatch):
    engine, make = world[0].engine, evidence.make

    def killed(_world, customer, *rest):
        if customer == "acme":
            raise KeyboardInterrupt
        return make(_world, customer, *rest)

    monkeypatch.setattr(evidence, "make", killed)
    packs.ask(engine, "live", "acme", rating_of(world), NOW)
    packs.ask(engine, "live", "globex", rating_of(world, "globex"), NOW + timedelta(seconds=1))
    with pytest.raises(KeyboardInterrupt):
        made(world, tmp_path)
    assert [it.customer_id for it in made(world, tmp_path)] == ["globex"]


def test_one_process_makes_packs_at_a_time_and_clears_away_what_a_killed_one_left(tmp_path):
    folder = tmp_path / "run" / "packs"
    hold = (
        "import sys, time; from pathlib import Path; from meterhouse_portal import packs\n"
        "with packs.alone(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'of-a-customer').mkdir(); print('making', flush=True); time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", hold, folder], stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout.readline() == "making\n"
        with packs.alone(folder) as mine:
            assert mine is None
        assert (folder / "of-a-customer").is_dir()
        killed.kill()
    with packs.alone(folder) as mine:
        assert mine == folder and not (folder / "of-a-customer").exists()


def test_no_pack_is_begun_when_the_round_has_lasted_long_enough(world, tmp_path):
    packs.ask(world[0].engine, "live", "acme", rating_of(world), NOW)
    assert list(packs.make_asked(world[0], tmp_path, longest_s=-1)) == []
    (left,) = packs.not_made(world[0].engine, "live")
    assert (left.customer_id, left.tries) == ("acme", 0)


def test_the_one_that_is_there_stays_until_another_takes_its_place(world, tmp_path, monkeypatch):
    at, rating = world[0], rating_of(world)
    packs.ask(at.engine, "live", "acme", rating, NOW)
    (made_first,) = made(world, tmp_path)
    packs.ask(at.engine, "live", "acme", rating, NOW + timedelta(hours=1))
    address = f"/account/invoices/{rating['rating_id']}"

    def shown():
        with visiting(world, "bill@acme.example") as browser:
            assert browser.get(f"{address}/evidence.zip").status_code == 200
            return text_of(browser.get(address).text)

    assert "kept until 2026-11-28" in shown() and "Asked for 2026-11-21 05:30" in shown()
    monkeypatch.setattr(packs, "LARGEST", 1000)
    made(world, tmp_path)
    assert "kept until 2026-11-28" in shown() and "It is too large to be kept here." in shown()
    pack = packs.of_rating(at.engine, "live", "acme", rating["rating_id"])
    assert (pack.manifest_sha256, pack.made_at) == (made_first.manifest_sha256, NOW)


def test_a_pack_whose_blocks_went_meanwhile_is_not_there(world, tmp_path):
    rating = rating_of(world)
    packs.ask(world[0].engine, "live", "acme", rating, NOW)
    made(world, tmp_path)
    with begin_write(world[0].engine) as connection:
        connection.execute(delete(tables.evidence_blocks))
    with visiting(world, "bill@acme.example") as browser:
        assert browser.get(f"/account/invoices/{rating['rating_id']}/evidence.zip").status_code == 404


def test_a_pack_says_nothing_of_what_others_sent_with_the_same_keys(world, tmp_path):
    stated, table = rating_of(world)["rating_id"], tables.rating_statements
    with world[0].engine.connect() as connection:
        statement = connection.execute(select(table.c.statement).where(table.c.rating_id == stated)).scalar_one()
    assert {"received", "waiting_decisions"} <= statement.keys(), "the operator reads them"
    packs.ask(world[0].engine, "live", "acme", rating_of(world), NOW)
    (pack,) = made(world, tmp_path)
    file = zipfile.ZipFile(BytesIO(b"".join(packs.blocks(world[0].engine, pack))))
    (told,) = json.loads(file.read("completeness.json")).values()
    assert told["verdict"] and not {"received", "waiting_decisions"} & told.keys()


def test_the_operator_sees_what_is_not_made_and_why(world, tmp_path, monkeypatch):
    at = world[0]
    monkeypatch.setattr(packs, "LARGEST", 1000)
    packs.ask(at.engine, "live", "acme", rating_of(world), NOW)
    made(world, tmp_path)
    members.set_operator(at.engine, "live", "anna@operator.example", True, who="tests", now=NOW)
    with visiting(world, "anna@operator.example") as browser:
        shown = text_of(browser.get("/operator").text)
    assert "Evidence packs not made 1" in shown
    assert re.search(r"acme , 2026-10-01 to 2026-11-01 \(Europe/Berlin\), cannot be made: it has [\d,]+ bytes", shown)


def test_two_rounds_at_once_make_it_once(world, tmp_path, monkeypatch):
    make, inner = evidence.make, []

    def twice(*arguments):
        if not inner:
            inner.append(None)
            later = NOW + timedelta(minutes=3)  # the other round takes the first for one that was killed
            inner[:] = made(world, tmp_path, later)
        return make(*arguments)

    monkeypatch.setattr(evidence, "make", twice)
    packs.ask(world[0].engine, "live", "acme", rating_of(world), NOW)
    assert made(world, tmp_path) == [], "the one that was made meanwhile is not made again"
    assert inner[0].state == packs.MADE and len(blocks_kept(world)) == 1
    pack = packs.of_rating(world[0].engine, "live", "acme", rating_of(world)["rating_id"])
    assert (pack.made_at, pack.tries) == (NOW + timedelta(minutes=3), 2)


def test_no_backup_has_packs(world, tmp_path):
    packs.ask(world[0].engine, "live", "acme", rating_of(world), NOW)
    made(world, tmp_path)
    out = BytesIO()
    counts = sql_dump.dump(world[0].engine, out)
    assert counts["ratings"] > 0 and not {"evidence_packs", "evidence_blocks"} & counts.keys()
    assert b"evidence_" not in out.getvalue()


def test_an_erasure_takes_packs_along_also_one_that_is_being_made(world, tmp_path, monkeypatch):
    at, make = world[0], evidence.make

    def erased_meanwhile(*arguments):
        result = make(*arguments)
        privacy.forget(at.engine, "e1", "live", "globex", who="ann", why="ticket", now=NOW)
        return result

    rating = rating_of(world, "globex")
    packs.ask(at.engine, "live", "globex", rating, NOW)
    made(world, tmp_path)
    packs.ask(at.engine, "live", "globex", rating, NOW)
    assert len(blocks_kept(world)) == 1
    monkeypatch.setattr(evidence, "make", erased_meanwhile)
    assert made(world, tmp_path) == [], "nothing that was thrown away is said to be made"
    assert blocks_kept(world) == []
    assert packs.of_rating(at.engine, "live", "globex", rating["rating_id"]) is None


def test_the_command_says_what_it_made_and_what_it_could_not(world, warehouse_address, monkeypatch):
    at, settings = world
    password = "admin-password-of-the-tests"
    monkeypatch.setenv("METERHOUSE_WAREHOUSE_URL", f"http://admin:{password}@{warehouse_address}")
    now = datetime.now(UTC)

    def call(*more):
        done = CliRunner().invoke(portal, ["packs", "--data", str(settings.data), *more])
        return done.exit_code, done.output

    assert call() == (0, "")
    assert call("--json") == (0, "[]\n")
    packs.ask(at.engine, "live", "acme", rating_of(world), now)
    code, said = call()
    assert code == 0
    assert re.fullmatch(r"acme 2026-09-30T22:00:00Z\.\.2026-10-31T23:00:00Z: made, [\d,]+ bytes\n", said), said
    packs.ask(at.engine, "live", "globex", rating_of(world, "globex"), now)
    monkeypatch.setattr(packs, "LARGEST", 1000)
    for _ in range(2):  # it is said again by each run, as long as it is so
        code, said = call("--json")
        (told,) = json.loads(said)
        assert (code, told["customer_id"], told["state"], told["problem"]) == (3, "globex", "failed", "too_large")
    assert re.match(r"globex 2026-10-01\.\.2026-11-01: cannot be made: it has [\d,]+ bytes", call()[1])

    packs.ask(at.engine, "live", "globex", rating_of(world, "globex"), now)
    with begin_write(at.engine) as connection:  # whoever tried it first was killed
        connection.execute(update(tables.evidence_packs).values(tries=1, tried_at=now))
    assert call() == (
        1, "globex 2026-10-01..2026-11-01: not made now, tried 1 of 8 times: whoever made it was killed\n",
    )  # fmt: skip
    with packs.alone(settings.packs_scratch):
        code, said = call()
        assert code == 0 and said.endswith("Another run makes packs now.\n")


def test_a_difference_is_told_in_one_line_that_begins_with_whose_it_is(world, tmp_path):
    pack = packs.ask(world[0].engine, "live", "acme", rating_of(world), NOW)
    why = packs._differences(["line 1 of 2.00 is 1.99", "total"])
    told = commands._told_of_pack(replace(pack, state=packs.FAILED, told=why))
    assert told == (
        "acme 2026-09-30T22:00:00Z..2026-10-31T23:00:00Z: cannot be made: what is stored does not agree with itself: "
        "line 1 of 2.00 is 1.99; and 1 more (`meterhouse evidence` says all)"
    )
