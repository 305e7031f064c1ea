"""`meterhouse prices` and `meterhouse rate` as somebody meets them: what they say, refuse and answer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import commands
import pytest

from meterhouse_store import tables

METERHOUSE = str(Path(sys.executable).parent / "meterhouse")
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


@pytest.fixture
def meterhouse(sqlite_house, command_environment, tmp_path):
    """Calls a command of the house; answers its exit code, stdout and stderr."""
    environment = command_environment(sqlite_house)

    def call(*arguments, **changed):
        done = commands.run(arguments, env=environment | changed, cwd=tmp_path)
        return done.returncode, done.stdout, done.stderr

    return call


@pytest.fixture
def book(tmp_path):
    file = tmp_path / "book.yaml"
    file.write_text(BOOK)
    return file


def used(house, *customers):
    house.collected("2026-11-05T00:00:00")
    for customer in customers:
        house.event(customer, "llm.tokens.input", "1500000", "2026-10-02T00:00:00")


@pytest.mark.parametrize(
    "arguments",
    [
        ("rate", "status"),
        ("prices", "publish", "--starter"),
        *(
            pytest.param(it, marks=pytest.mark.long)
            for it in (
                ("rate", "run", "--due"),
                ("rate", "close", "--period", "2026-10"),
                ("rate", "explain", "ab"),
                ("prices", "list"),
                ("prices", "show"),
            )
        ),
    ],
)
def test_a_directory_without_a_meterhouse_is_refused_and_stays_as_it_is(tmp_path, arguments):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("METERHOUSE_")}
    done = subprocess.run([METERHOUSE, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("there is no Meterhouse in ")
    assert list(tmp_path.iterdir()) == []


def test_a_book_can_be_checked_where_there_is_no_meterhouse(tmp_path, book):
    done = subprocess.run([METERHOUSE, "prices", "check", str(book)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "no mistakes" in done.stdout
    assert list(tmp_path.iterdir()) == [book]


@pytest.mark.parametrize("command", [pytest.param("check", marks=pytest.mark.long), "publish"])
def test_a_file_that_is_no_book_is_refused_in_a_sentence(meterhouse, tmp_path, command):
    (tmp_path / "binary").write_bytes(b"ab\xff")
    assert meterhouse("prices", command, "missing.yaml") == (
        1, "", "missing.yaml cannot be read: No such file or directory. Name a price book in YAML.\n",
    )  # fmt: skip
    assert meterhouse("prices", command, ".")[2] == ". cannot be read: Is a directory. Name a price book in YAML.\n"
    assert meterhouse("prices", command, "binary")[2].startswith("binary is no text: byte 2 is not UTF-8.")


def test_one_mistake_is_one_and_only_publishing_says_that_nothing_was_published(meterhouse, book):
    book.write_text(BOOK.replace("currency: USD", "currency: DOLLAR"))
    assert meterhouse("prices", "check", str(book))[2].splitlines()[-1] == "1 mistake."
    assert meterhouse("prices", "publish", str(book))[2].splitlines()[-1] == "1 mistake; nothing was published."


def test_publishing_says_which_periods_the_version_prices(meterhouse, book):
    meterhouse("prices", "publish", "--starter")
    assert meterhouse("prices", "publish", str(book)) == (
        0,
        "Price book own, version 2, published: valid from the beginning.\n"
        "Version 1 is the starter book that `meterhouse up` began with.\n",
        "",
    )
    assert meterhouse("prices", "publish", str(book), "--valid-from", "2026-11-20") == (
        0,
        "Price book own, version 3, published: valid from 2026-11-20.\n"
        "It prices periods that begin then or later; 2026-11 stays on version 2 (`--valid-from 2026-11-01` prices "
        "2026-11 too).\n",
        "",
    )
    assert meterhouse("prices", "publish", str(book), "--valid-from", "2026-11-01")[1].splitlines()[1:] == [
        "It prices periods that begin then or later; from 2026-12 on version 3 does."
    ]
    assert meterhouse("prices", "publish", str(book), "--valid-from", "2026-11-03")[1].splitlines()[1:] == [
        "It prices no month: version 3, valid from 2026-11-20, prices those that begin then or later "
        "(`--valid-from 2026-11-20` or later prices months again)."
    ]
    assert meterhouse("prices", "publish", str(book), "--valid-from", "9999-12-31") == (
        2, "", "9999-12-31 is not within the years 1969 to 2200.\n",
    )  # fmt: skip


def test_publishing_warns_of_plans_that_customers_are_on_and_the_book_lacks(sqlite_house, meterhouse, book):
    from datetime import UTC, datetime

    from meterhouse_store import registry

    registry.ensure_namespace(sqlite_house.world.engine, "test", default_plan="welcome")
    code, _, err = meterhouse("prices", "publish", "--starter")
    assert code == 0 and "has no plan welcome (the default of new customers); it has pay-as-you-go." in err
    for name, plan in (("a", "team"), ("b", "team"), ("c", "pay"), ("d", "old")):
        sqlite_house.customer(name, plan=plan)
    sqlite_house.customer("d", plan="pay", valid_from=datetime(2026, 10, 1, tzinfo=UTC))
    code, out, err = meterhouse("prices", "publish", str(book), "--valid-from", "2026-10-01")
    assert code == 3 and "version 2, published" in out
    assert err.startswith(
        "warning: version 2 has no plan team (2 customers), welcome (the default of new customers); it has pay."
    )


def test_the_list_of_versions_lines_up(meterhouse, book):
    meterhouse("prices", "publish", str(book), "--author", "ann")
    meterhouse("prices", "publish", str(book), "--valid-from", "2026-11-20T10:20:30+02:00", "--author", "somebody-else")
    lines = meterhouse("prices", "list")[1].splitlines()
    assert [line[:-14] for line in lines[1:]] == [
        "        1  own   the beginning         ann          ",
        "        2  own   2026-11-20T08:20:30Z  somebody-else",
    ]
    assert lines[0] == "  version  book  valid from            by             sha256"


def test_a_closed_period_carries_what_was_known_of_its_completeness_to_the_invoice(sqlite_house, meterhouse):
    house = sqlite_house
    house.publish(BOOK)
    house.customer("acme")
    names = {"service_name": "shop", "credential_id": "cred_1", "process_id": "p1"}
    for day in range(1, 32):
        when = f"2026-10-{day:02}T22:00:00"
        house.event("acme", "llm.tokens.input", "1000000", when, record_id=f"r{day}", **names)
    unread = {"status": "unfinished", "usage_source": "none"}
    house.event("acme", "llm.tokens.input", "1", "2026-10-30T21:00:00", record_id="u", **unread, **names)
    held = {"reason": "customer_missing", "record_id": "s"}
    house.event("", "llm.tokens.input", "5", "2026-10-09T00:00:00", **held, **names)
    house.collected()
    assert meterhouse("rate", "run", "--period", "2026-10")[0] == 0
    assert house.rows(tables.rating_statements) == []  # an open rating can still become complete
    before = house.rows(tables.ratings)[0]
    assert meterhouse("rate", "close", "--period", "2026-10")[0] == 0
    (rating,) = house.rows(tables.ratings)
    # It is no part of what the rating is computed from.
    assert (rating["state"], rating["inputs_sha256"], rating["result_sha256"]) == (
        "closed",
        before["inputs_sha256"],
        before["result_sha256"],
    )
    verdict = "Not certain to be complete: 32 events of 1 stream, 2 to look at."
    code, out, _ = meterhouse("bill", "run", "--due", "--dry-run")
    assert (code, out.splitlines()[-1]) == (0, f"  {verdict}")
    # What comes or is decided later changes nothing of what was stated.
    house.event("acme", "llm.tokens.input", "9", "2026-10-31T23:00:00", **names)
    (draft,) = json.loads(meterhouse("bill", "run", "--due", "--dry-run", "--json")[1])["drafts"]
    assert draft["completeness"] == verdict
    (kept,) = house.rows(tables.rating_statements)
    statement = kept["statement"]
    assert (kept["rating_id"], kept["verdict"], statement["verdict"]) == (rating["rating_id"], verdict, verdict)
    assert statement["exceptions"] == [
        "shop (cred_1): 1 calls died before their answer was read",
        "1 row of nobody, sent with the same keys is in suspense as customer_missing: "
        "nobody says which customer it was for",
    ]
    (stream,) = statement["streams"]
    assert stream == {
        "service_name": "shop",
        "credential_id": "cred_1",
        "processes": 1,
        "events": 32,
        "unfinished": 1,
        "estimated": 0,
        "without_usage": 1,
    }
    assert statement["held"] == [{"reason": "customer_missing", "claimed": False, "rows": 1}]
    assert statement["projected_through"] == [["c1", "2026-11-21T12:00:00+00:00"]]
    assert (statement["start"], statement["end"]) == ("2026-10-01T00:00:00+00:00", "2026-11-01T00:00:00+00:00")
    assert "acme" not in json.dumps(statement)  # an erasure need not look into it


def test_status_answers_3_where_usage_is_unrated_or_late(sqlite_house, meterhouse):
    house = sqlite_house
    house.publish(BOOK)
    house.customer("acme")
    used(house, "acme")
    house.close()
    assert meterhouse("rate", "status")[0] == 0
    house.event("acme", "llm.tokens.input", "300", "2026-10-09T00:00:00", received="2026-11-20T00:00:00")
    code, out, _ = meterhouse("rate", "status", "--period", "2026-10")
    assert code == 3
    assert out.endswith(
        "Arrived after the period was closed\n"
        "  acme  2026-10-01..2026-11-01  llm.tokens.input  300  on the next invoice\n"
    )
    assert json.loads(meterhouse("rate", "status", "--json")[1])["late"][0]["quantity"] == "300"
    house.collected("2026-11-21T00:00:00", position=2000)
    code, out, _ = meterhouse("rate", "close", "--period", "2026-10")
    assert code == 3 and "late 1 event arrived after the period was closed, on the next invoice" in out
    code, out, err = meterhouse("rate", "status", METERHOUSE_WAREHOUSE_URL="http://a:b@127.0.0.1:9")
    assert code == 0 and "3,000.00  USD" in out
    assert err.startswith("usage that came after a period was closed is not shown: ")


def test_a_line_is_explained_by_the_id_that_the_table_shows(sqlite_house, meterhouse):
    sqlite_house.publish(BOOK)
    sqlite_house.customer("acme")
    used(sqlite_house, "acme")
    code, out, err = meterhouse("rate", "run", "--period", "2026-10")
    assert code == 0, err
    row = next(line for line in out.splitlines() if line.startswith("  in  "))
    assert row.split()[:-1] == ["in", "1,500,000", "tokens", "3,000.00", "USD"]
    short_id = row.split()[-1]
    assert len(short_id) == 10
    code, out, _ = meterhouse("rate", "explain", short_id)
    assert code == 0
    assert out.splitlines()[0] == "in: 1,500,000 tokens, 3,000.00 USD"
    assert "  1,500,000 at 2 USD per 1,000: 3,000 USD (line 9)." in out.splitlines()
    assert json.loads(meterhouse("rate", "explain", short_id, "--json")[1])["amount"] == "3000.00"


def test_wide_tables_show_the_ids_of_lines_when_they_are_asked_for(sqlite_house, meterhouse):
    name = "a-component-with-a-long-name-that-says-all-there-is-to-say"
    sqlite_house.publish(BOOK.replace("in: {model", f"{name}: {{model"))
    sqlite_house.customer("acme")
    used(sqlite_house, "acme")
    sqlite_house.run()
    narrow, wide = (meterhouse("rate", "status", *more)[1].splitlines()[1] for more in ((), ("--lines",)))
    assert narrow.endswith("  USD") and wide.startswith(narrow) and len(wide) == len(narrow) + 12


def test_closing_an_empty_month_says_that_there_is_nothing_in_it(sqlite_house, meterhouse):
    sqlite_house.publish(BOOK)
    used(sqlite_house)
    code, out, _ = meterhouse("rate", "close", "--period", "2026-09")
    assert (code, out.splitlines()[-1]) == (0, "Nothing to close in 2026-09: no usage and no fees.")


def test_output_that_does_not_fit_is_told_in_a_sentence(sqlite_house, command_environment):
    environment = command_environment(sqlite_house)
    for more in ((), ("--out", "-")):
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                [METERHOUSE, "report", "revenue", "--period", "2026-10", *more],
                env=environment,
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                timeout=60,
            )
        assert done.stderr.startswith("the output cannot be written: no space is left where it goes\n"), done.stderr
        assert "Traceback" not in done.stderr and done.returncode != 0


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "arguments",
    [
        ("prices", "show"),
        ("rate", "run", "--period", "2026-10"),
        ("rate", "status"),
        ("report", "revenue", "--period", "2026-10"),
    ],
)
def test_a_reader_that_has_seen_enough_is_no_error(sqlite_house, command_environment, arguments):
    sqlite_house.publish(BOOK)
    used(sqlite_house, "stranger")
    sqlite_house.run()
    process = subprocess.Popen(
        [METERHOUSE, *arguments],
        env=command_environment(sqlite_house),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(30) == 1
