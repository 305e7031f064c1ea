"""`meterhouse customers`, `keys` and `down`, called as a person calls them."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from sqlalchemy import insert

from meterhouse.cli import main
from meterhouse_collector.terminal import print_rows
from meterhouse_store import commands, endpoints, terminal
from meterhouse_store.access import credentials, hash_key
from meterhouse_store.settings import Settings
from meterhouse_store.sql import begin_write, open_engine
from meterhouse_store.tables import price_books

BOOK = """
book: own
currency: USD
plans:
  basic: {components: {}}
  team: {currency: EUR, components: {}}
"""
LATER_BOOK = "book: own\nplans: {next: {components: {}}}\n"


@pytest.fixture
def publish(tmp_path):
    """Puts the text of a book beside the others, as publishing does once it was checked."""

    def put(version, source, valid_from):
        engine = open_engine(Settings(data=tmp_path))
        with begin_write(engine) as connection:
            connection.execute(
                insert(price_books).values(
                    namespace="live", version=version, sha256=str(version), source=source, author="a",
                    valid_from=valid_from, recorded_at=valid_from,
                )
            )  # fmt: skip
        engine.dispose()

    return put


@pytest.fixture
def call(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("METERHOUSE_SQL_URL", raising=False)
    monkeypatch.delenv("METERHOUSE_NAMESPACE", raising=False)
    open_engine(Settings(data=tmp_path)).dispose()

    def command(*arguments):
        """(exit code, stdout, stderr)"""
        try:
            code = main([*arguments, "--data", str(tmp_path)])
        except SystemExit as end:
            code = end.code or 0
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return command


def test_a_customer_is_added_changed_and_listed(call):
    assert call("customers", "add", "acme", "--name", "Acme", "--plan", "team")[0] == 0
    code, printed, _ = call("customers", "add", "acme", "--email", "billing@acme.example", "--json")
    assert code == 0
    added = json.loads(printed)[0]
    assert (added["name"], added["email"], added["currency"]) == ("Acme", "billing@acme.example", "USD")
    assert [contract["plan"] for contract in added["contracts"]] == ["team"]
    _, printed, _ = call("customers", "list")
    rows = [line.split() for line in printed.splitlines() if line.strip()]
    assert rows[0] == [
        "customer",
        "name",
        "plans",
        "currency",
        "time",
        "zone",
        "email",
        "registered",
        "by",
    ]
    assert rows[2] == ["acme", "Acme", "team", "USD", "UTC", "billing@acme.example", "operator"]


def test_a_customer_without_a_plan_is_told_what_is_missing(call):
    _, printed, _ = call("customers", "add", "acme")
    assert "No plan yet" in printed


def test_who_begins_before_the_month_of_registration_is_told_how_its_earlier_fees_are_billed(call):
    _, printed, _ = call("customers", "add", "acme", "--plan", "team", "--valid-from", "2026-08-31T23:00:00-02:00")
    assert "fees of earlier ones are billed by `meterhouse rate close --period 2026-09 --customer acme`." in printed
    for later in ([], ["--valid-from", "2999-01-01"]):
        assert "earlier ones" not in call("customers", "add", "globex", "--plan", "team", *later)[1]


def test_a_pseudonym_is_made_up_and_the_registry_alone_knows_whose_it_is(call):
    code, printed, _ = call(
        "customers", "add", "--pseudonym", "--name", "Jane Doe", "--reference", "crm-4711", "--json"
    )
    assert code == 0
    made = json.loads(printed)[0]
    assert made["customer_id"].startswith("cus_") and len(made["customer_id"]) == 24
    assert (made["name"], made["reference"]) == ("Jane Doe", "crm-4711")
    assert "Jane Doe (crm-4711)" in call("customers", "list")[1]
    assert call("customers", "add", "acme", "--pseudonym")[0] == 2
    assert call("customers", "add")[0] == 2


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_list_is_printed_whatever_the_encoding_of_the_pipe_lacks(call, tmp_path, encoding):
    call("customers", "add", "acme", "--name", "Škoda 🚗 GmbH")
    env = os.environ | {"PYTHONIOENCODING": encoding, "METERHOUSE_DATA": str(tmp_path)}
    program = [
        sys.executable,
        "-c",
        "import sys; from meterhouse.cli import main; sys.exit(main())",
        "customers",
        "list",
    ]
    done = subprocess.run(program, env=env, capture_output=True, check=True)
    shown = "Škoda 🚗 GmbH" if encoding == "utf-8" else "\\u0160koda \\ud83d\\ude97 GmbH"
    assert shown in done.stdout.decode(encoding)
    done = subprocess.run([*program, "--json"], env=env, capture_output=True, check=True)
    assert json.loads(done.stdout.decode(encoding))[0]["name"] == "Škoda 🚗 GmbH"


def test_mistakes_end_with_1_and_name_all_of_them(call):
    code, _, error = call("customers", "add", "acme", "--currency", "eu", "--time-zone", "Mars")
    assert code == 1
    assert "'eu'" in error and "'Mars'" in error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("",), "customer id ''"),
        (("acme", "--currency", "UDS"), "currency 'UDS' is not an ISO 4217 code such as USD"),
        (("acme", "--email", "billing at acme"), "'billing at acme' is no e-mail address"),
        (("acme", "--email", "Acme <billing@acme.example>"), "is no e-mail address"),
        *(
            (("acme", "--time-zone", zone), f"{zone!r} is not an IANA name")
            for zone in ("right/Europe/Berlin", "posix/UTC", "localtime", "posixrules", "Factory", "Europe", "")
        ),
    ],
)
def test_what_names_no_customer_no_address_and_no_zone_is_refused(call, arguments, said):
    code, _, error = call("customers", "add", *arguments)
    assert (code, said in error) == (1, True), error
    assert json.loads(call("customers", "list", "--json")[1]) == []


def test_an_alias_of_a_zone_is_one_and_an_address_can_be_taken_away(call):
    call("customers", "add", "acme", "--time-zone", "US/Eastern", "--email", "a@acme.example")
    added = json.loads(call("customers", "add", "acme", "--email", "", "--json")[1])[0]
    assert (added["time_zone"], added["email"]) == ("US/Eastern", "")


def test_a_wrong_call_ends_with_2(call):
    assert call("customers", "add", "acme", "--plan", "team", "--valid-from", "tomorrow")[0] == 2
    assert call("jobs", "--every", "0s")[0] == 2


def test_a_key_is_shown_once_and_works(call, tmp_path):
    code, printed, _ = call("keys", "create", "support", "--customers", "acme, globex", "--json")
    assert code == 0
    made = json.loads(printed)
    engine = open_engine(Settings(data=tmp_path))
    (kept,) = credentials(engine)
    engine.dispose()
    assert (kept.credential_id, kept.key_sha256) == (made["credential_id"], hash_key(made["key"]))
    assert kept.customers == ("acme", "globex")
    listed = json.loads(call("keys", "list", "--json")[1])
    assert [key["credential_id"] for key in listed] == [made["credential_id"]]
    assert made["key"] not in json.dumps(listed)
    assert "is revoked since" in call("keys", "revoke", made["credential_id"])[1]
    assert call("keys", "revoke", "cred_other")[0] == 1


def test_down_where_nothing_runs_is_fine(call):
    code, printed, _ = call("down")
    assert (code, printed.split()[0]) == (0, "Nothing")


def test_settings_that_cannot_be_used_are_named(call, monkeypatch):
    monkeypatch.setenv("METERHOUSE_NAMESPACE", "Not Good")
    code, _, error = call("customers", "list")
    assert code == 2
    assert "METERHOUSE_NAMESPACE" in error


@pytest.mark.parametrize(
    "arguments",
    [
        ("customers", "list"),
        ("customers", "add", "acme"),
        ("customers", "withdraw", "acme", "--valid-from", "2999-01-01"),
        ("keys", "create", "support"),
        ("keys", "list"),
        ("keys", "revoke", "cred_x"),
        ("jobs",),
    ],
)
def test_a_directory_without_a_meterhouse_is_refused_and_stays_as_it_is(arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("METERHOUSE_SQL_URL", raising=False)
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--data", str(tmp_path / "wrong")])
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith(f"there is no Meterhouse in {tmp_path}/wrong") and "--data" in error
    assert list(tmp_path.iterdir()) == []


def test_a_plan_that_the_price_book_does_not_have_is_refused_with_those_it_has(call, publish):
    publish(4, BOOK, datetime(2026, 1, 1, tzinfo=UTC))
    code, _, error = call("customers", "add", "acme", "--plan", "nosuch")
    assert code == 1
    assert "no plan 'nosuch' in price book version 4 (it has basic, team)" in error
    assert json.loads(call("customers", "list", "--json")[1]) == []


def test_a_new_customer_s_currency_is_its_plan_s(call, publish):
    publish(1, BOOK, datetime(2026, 1, 1, tzinfo=UTC))
    assert json.loads(call("customers", "add", "acme", "--plan", "team", "--json")[1])[0]["currency"] == "EUR"
    assert json.loads(call("customers", "add", "globex", "--plan", "basic", "--json")[1])[0]["currency"] == "USD"


@pytest.mark.parametrize("more", [("--plan", "team", "--currency", "USD"), ("--plan", "team")])
def test_a_currency_other_than_the_plan_s_is_refused_with_the_command_that_changes_it(call, publish, more):
    publish(1, BOOK, datetime(2026, 1, 1, tzinfo=UTC))
    assert call("customers", "add", "acme", "--currency", "USD")[0] == 0
    code, _, error = call("customers", "add", "acme", *more)
    assert code == 1
    assert "plan team is in EUR, acme in USD: `meterhouse customers add acme --plan team --currency EUR`" in error
    assert call("customers", "add", "acme", "--plan", "team", "--currency", "EUR")[0] == 0
    assert "plan team is in EUR" in call("customers", "add", "acme", "--currency", "USD")[2]


def test_the_plan_is_looked_up_in_the_book_that_is_in_force_when_it_begins(call, publish):
    publish(1, BOOK, datetime(2026, 1, 1, tzinfo=UTC))
    publish(2, LATER_BOOK, datetime(2999, 1, 1, tzinfo=UTC))
    assert "version 1 (it has basic, team)" in call("customers", "add", "acme", "--plan", "next")[2]
    assert call("customers", "add", "acme", "--plan", "next", "--valid-from", "2999-02-01")[0] == 0
    assert "version 2 (it has next)" in call("customers", "add", "x", "--plan", "team", "--valid-from", "2999-01-01")[2]


def test_a_contract_that_has_not_begun_is_replaced_and_withdrawn(call):
    call("customers", "add", "acme", "--plan", "basic")
    call("customers", "add", "acme", "--plan", "teem", "--valid-from", "2999-01-01")
    call("customers", "add", "acme", "--plan", "team", "--valid-from", "2999-01-01")
    (listed,) = json.loads(call("customers", "list", "--json")[1])
    assert [contract["plan"] for contract in listed["contracts"]] == ["basic", "team"]
    code, printed, _ = call("customers", "withdraw", "acme", "--valid-from", "2999-01-01")
    assert (code, printed) == (0, "acme does not go on plan team from 2999-01-01.\n")
    (listed,) = json.loads(call("customers", "list", "--json")[1])
    assert [contract["plan"] for contract in listed["contracts"]] == ["basic"]
    assert call("customers", "withdraw", "acme", "--valid-from", "1970-01-01")[0] == 1


def test_a_list_that_goes_to_a_file_has_a_line_each_no_text_in_pieces_and_no_blank_ends(call):
    long = {"--name": "n" * 80, "--plan": "p" * 30, "--email": "e" * 60 + "@acme.example"}
    call("customers", "add", "a" * 60, *(word for pair in long.items() for word in pair))
    call("customers", "add", "acme", "--plan", "basic")
    call("keys", "create", "support")
    _, printed, _ = call("customers", "list")
    lines = printed.splitlines()
    assert len(lines) == 4  # head, rule, two customers
    assert all(text in lines[2] for text in ("a" * 60, *long.values()))
    assert all(line and line == line.rstrip() for line in lines)
    _, printed, _ = call("keys", "list")
    assert "+00:00" not in printed and all(line and line == line.rstrip() for line in printed.splitlines())


def test_dates_are_short_in_a_list(call):
    call("customers", "add", "acme", "--plan", "basic")
    call("customers", "add", "acme", "--plan", "team", "--valid-from", "2999-01-01")
    call("customers", "add", "acme", "--plan", "later", "--valid-from", "2999-02-01T12:30")
    _, printed, _ = call("customers", "list")
    assert "team from 2999-01-01\n" in printed and "later from 2999-02-01 12:30" in printed


def test_what_up_prints_names_a_customer_so_that_usage_is_not_suspended(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "secrets.json").write_text('{"portal_token": "t"}')
    address = endpoints.Address("http://127.0.0.1:1")
    found = endpoints.Endpoints(
        pid=7, data=str(tmp_path), started_at="2026-10-01T00:00:00+00:00", namespace="live",
        warehouse=endpoints.Warehouse("http://127.0.0.1:2", "meterhouse", {"admin": "a", "reader": "b"}),
        collector=endpoints.Collector("http://127.0.0.1:3", "127.0.0.1:4", "mh_key"),
        portal=address, webhooks=address, prices=address, health=address,
    )  # fmt: skip
    commands._welcome(Settings(data=tmp_path), found, "Ctrl-C stops it.")
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    start = lines.index("export METERHOUSE_ENDPOINT=http://127.0.0.1:3")
    assert lines[start + 1 : start + 3] == ["export METERHOUSE_API_KEY=mh_key", "export METERHOUSE_CUSTOMER=acme"]
    assert lines[start + 3].endswith("meterhouse run -- python agent.py")


def test_no_name_that_somebody_chose_ends_a_list_or_is_shown_as_another(capsys):
    names = ["[/b]", "Acme [EU]", "a :smile: b", "x\x1b[2Jy", "Zoë"]
    terminal.print_table([{"customer": name} for name in names], lambda one: one, False)
    assert [line.strip() for line in capsys.readouterr().out.splitlines()[2:]] == [
        "[/b]", "Acme [EU]", "a :smile: b", r"x\x1b[2Jy", "Zoë",
    ]  # fmt: skip
    print_rows(["customer", "rows"], [["x\x1b[2Jy\nz", 1]])
    assert capsys.readouterr().out.splitlines() == ["customer      rows", r"x\x1b[2Jy\nz     1"]


def test_a_list_has_ids_in_one_piece_and_no_empty_columns(capsys):
    made = [{"name": "a name that is longer than there is room for " * 2, "until": ""}, {"name": "b", "until": ""}]
    terminal.print_table(made, lambda one: {"key": "cred_b54fcbd64e99abac55d8013a", **one}, False)
    heading, _, first, *rest = capsys.readouterr().out.splitlines()
    assert heading.split() == ["key", "name"]
    assert first.startswith("cred_b54fcbd64e99abac55d8013a   a name that is longer")
    assert rest[-1].split() == ["cred_b54fcbd64e99abac55d8013a", "b"]


def test_what_does_not_start_and_could_not_say_why_is_told_with_the_room_that_is_left(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("meterhouse_store.stack.meterhouse_command", lambda: ["false"])
    monkeypatch.setattr("shutil.disk_usage", lambda _place: SimpleNamespace(free=2_500_000))
    with pytest.raises(SystemExit) as ended:
        main(["up", "--detach", "--data", str(tmp_path)])
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.endswith(f"it wrote nothing into {tmp_path / 'logs' / 'up.log'}; of its disk 2 MB are free\n")
