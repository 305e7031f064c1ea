"""Evidence packs: a mixed month verifies with nothing but Python and the pack, and every forgery is told."""

import gzip
import hashlib
import json
import subprocess
import sys
import zipfile

import pytest
from evidence_samples import furnished
from typer.testing import CliRunner

from meterhouse_rating.evidence_check.main import verify
from meterhouse_rating.evidence_commands import evidence
from meterhouse_rating.evidence_commands import verify as verify_command
from meterhouse_rating.ledger_commands import ledger


@pytest.fixture(scope="module")
def house(new_house, tmp_path_factory):
    """For looking only."""
    making = new_house("evidence", tmp_path_factory.mktemp("evidence"))
    yield furnished(next(making))
    making.close()


def call(house, environment, app, *arguments):
    done = CliRunner().invoke(app, [str(it) for it in arguments], env=environment(house))
    return done.exit_code, done.output


@pytest.fixture(scope="module")
def pack(house, tmp_path_factory):
    from meterhouse_rating.evidence import make
    from meterhouse_rating.periods import parse

    file = tmp_path_factory.mktemp("pack") / "acme.zip"
    result = make(house.world, "acme", parse("2026-10", "UTC"), file)
    assert result.verified, result.as_text()
    return file


def test_a_mixed_month_verifies_with_nothing_but_python(pack, tmp_path):
    done = subprocess.run([sys.executable, "-I", pack], cwd=tmp_path, env={}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    said = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert said[0] == "Evidence pack of acme (test), 2026-10-01..2026-11-01"
    assert said[-1] == "Verified: 194.25 USD (closed)."
    assert "recomputed 32 events: each once, in its period, on a line or left over for a reason" in said
    # All but the discount and the credits: those are recomputed from the agreement and the balance.
    assert "recomputed 15 amounts of lines, from the text of the price book" in said
    assert "recomputed 11 quantities of lines, from the events" in said
    assert "recomputed 17 lines that are in the ledger with their amount" in said
    assert "carried 1 statements of completeness, as they were made when the period was closed" in said


def test_the_command_makes_the_same_bytes_again_and_verifies_them(house, pack, tmp_path, command_environment):
    again = tmp_path / "again.zip"
    code, said = call(house, command_environment, evidence, "acme", "--period", "2026-10", "--out", again)
    assert code == 0 and "Verified: 194.25 USD (closed)." in said, said
    assert again.read_bytes() == pack.read_bytes()
    assert call(house, command_environment, evidence, "acme", "--period", "2026-10", "--out", again)[0] == 0
    code, said = call(house, command_environment, verify_command, again, "--json")
    document = json.loads(said)
    assert (code, document["verified"], document["problems"]) == (0, True, [])
    assert document["totals"][0]["total"] == "194.25"
    again.write_text("something else")
    code, said = call(house, command_environment, evidence, "acme", "--period", "2026-10", "--out", again)
    assert code == 1 and "is there already and is another file: name a new one" in said
    code, said = call(house, command_environment, evidence, "acme", "--period", "2026-09", "--out", tmp_path / "x")
    assert code == 1 and said.startswith("nothing of acme is rated in 2026-09-01..2026-10-01")


def test_anchors_put_the_whole_chain_into_the_pack_and_nobody_elses_name(house, tmp_path, command_environment):
    anchor, file = tmp_path / "anchor.json", tmp_path / "acme.zip"
    assert call(house, command_environment, ledger, "anchor", "--out", anchor)[0] == 0
    made = ("acme", "--period", "2026-10", "--out", file, "--anchor", anchor)
    assert call(house, command_environment, evidence, *made)[0] == 0
    told = json.loads(zipfile.ZipFile(file).read("ledger.json"))["transactions"]
    assert [it["sequence"] for it in told] == list(range(1, len(told) + 1))
    assert {it["own"] for it in told} == {True, False}
    assert "other" not in json.dumps(told)
    code, said = call(house, command_environment, verify_command, file, "--anchor", anchor)
    assert code == 0 and "anchors that were kept elsewhere" in said, said
    kept = json.loads(anchor.read_text())
    anchor.write_text(json.dumps(kept | {"hash": "f" * 64}))
    code, said = call(house, command_environment, verify_command, file, "--anchor", anchor)
    assert code == 1 and f"the anchor of transaction {kept['sequence']}: it says ffff" in said


# ---- forgeries ------------------------------------------------------------------------------------------------------


def contents(pack):
    with zipfile.ZipFile(pack) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def written(files, path, *, rehash=True):
    """A pack of these files; `rehash`: with a manifest that fits them, as a careful forger would write it."""
    if rehash:
        manifest = json.loads(files["manifest.json"])
        named = {name: {"sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
        named["events.jsonl.gz"]["unpacked"] = len(gzip.decompress(files["events.jsonl.gz"]))
        del named["manifest.json"]
        files["manifest.json"] = json.dumps(manifest | {"files": named}).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def events(change):
    def forge(files):
        lines = gzip.decompress(files["events.jsonl.gz"]).decode().splitlines()
        found = change([json.loads(line) for line in lines])
        files["events.jsonl.gz"] = gzip.compress(b"".join(json.dumps(it).encode() + b"\n" for it in found))

    return forge


def facts(name, change):
    def forge(files):
        value = json.loads(files[name])
        change(value)
        files[name] = json.dumps(value).encode()

    return forge


def ratings(change):
    return facts("ratings.json", lambda value: change(value[0]))


def line_of(rating, description):
    return next(line for line in rating["lines"] if line["description"] == description)


def with_amount(rating, description, minor):
    """The line with another amount, in all places where it is told, and the total with it."""
    line = line_of(rating, description)
    rating["total_minor"] += minor - line["amount_minor"]
    line["amount_minor"] = minor
    line["amount_exact"] = line["explanation"]["amount_exact"] = line["explanation"]["amount"] = f"{minor / 100:.2f}"
    line["explanation"]["steps"] = [{"amount": line["amount_exact"]}]


def book(old, new):
    """The book with another text, under the hash of that text."""

    def forge(files):
        text = files["books/1.yaml"].decode()
        assert text.count(old) == 1
        files["books/1.yaml"] = text.replace(old, new).encode()
        books = json.loads(files["books.json"])
        books[0]["sha256"] = hashlib.sha256(files["books/1.yaml"]).hexdigest()
        files["books.json"] = json.dumps(books).encode()

    return forge


def both(*forgeries):
    def forge(files):
        for one in forgeries:
            one(files)

    return forge


def entry(value, kind, account):
    found = next(it for it in value["transactions"] if it["kind"] == kind)
    return next(it for it in found["entries"] if it["account"] == account)


def of_first(name, value):
    return lambda found: [found[0] | {name: value}, *found[1:]]


def seal_broken(value):
    value["transactions"][1]["previous_hash"] = "0" * 64


def cheaper_in_the_ledger(value):
    entry(value, "minimum", "receivable")["amount_minor"] -= 100
    entry(value, "minimum", "revenue")["amount_minor"] += 100


def hide_as_free(rating):
    line_of(rating, "input (llama)")["explanation"]["meters"] = {"llm.tokens.input": "1400000"}
    next(it for it in rating["left"] if it["meter"] == "llm.tokens.input")["quantity"] = "100999"


FORGERIES = {
    "an event's quantity": (
        events(of_first("quantity", "2000001")), "its quantity, from the events: it says 2000000,",
    ),
    "an event that is no number": (events(of_first("quantity", "NaN")), "'NaN' is no decimal number"),
    "an event removed": (
        events(lambda found: found[1:]), "llm.tokens.input on lines and left over: it says 3500999,",
    ),
    "an event doubled": (events(lambda found: [found[0], *found]), "event e00 is there twice"),
    "an event added": (
        events(lambda found: sorted([*found, found[0] | {"id": "e99"}], key=lambda it: (it["time"], it["id"]))),
        "llm.tokens.input on lines and left over: it says 3500999, recomputed it is 5500999",
    ),
    "an event of another month": (
        events(of_first("time", "2026-09-30T00:00:00.000000000Z")), "is in no rated period",
    ),
    "an event that came later": (
        events(of_first("known", "2026-11-20T00:00:00.000000000Z")),
        "event e00 became known after its period was rated",
    ),
    "a failed call as a good one": (
        events(lambda found: [it | {"status": "ok"} for it in found]),
        "usage that is free (llm.tokens.input unbilled_status): it says 999, recomputed it is 0",
    ),
    "a line's amount": (
        ratings(lambda it: with_amount(it, "tools", 760)),
        "(tools): its amount by the price book: it says 7.6, recomputed it is 7.5",
    ),
    "a line's rounding": (ratings(lambda it: line_of(it, "share").update(amount_minor=602)), "its rounded amount"),
    "a line removed": (ratings(lambda it: it["lines"].pop(1)), "llm.tokens.output on lines and left over"),
    "a line doubled": (ratings(lambda it: it["lines"].insert(0, it["lines"][0])), "is there twice"),
    "a price in the book": (
        book("{model: gpt-5*, price: 3.00}", "{model: gpt-5*, price: 2.50}"),
        "(input (gpt-5-mini)): its amount by the price book: it says 6, recomputed it is 5",
    ),
    "a price in the book and the line": (
        both(
            book("{model: gpt-5*, price: 3.00}", "{model: gpt-5*, price: 2.50}"),
            ratings(lambda it: with_amount(it, "input (gpt-5-mini)", 500)),
        ),
        "(input (gpt-5-mini)): what the ledger says is owed: it says 600, recomputed it is 500",
    ),
    "a tier's bound": (
        book("{up_to: 10, price: 0.50}", "{up_to: 12, price: 0.50}"),
        "(tools): its amount by the price book: it says 7.5, recomputed it is 8",
    ),
    "the minimum": (
        book("amount: 200.00", "amount: 210.00"), "(least): its amount by the price book: it says 71.29",
    ),
    "seats": (
        ratings(lambda it: it["quantities"]["seats"][0].__setitem__(1, "1")), "how many there were from 2026-10-11",
    ),
    "the discount": (ratings(lambda it: it["discounts"][0].update(percent="20")), "(Launch): what it takes off"),
    "credits": (ratings(lambda it: line_of(it, "Credits applied").update(amount_minor=-400)), "what credits pay"),
    "usage told as free": (
        ratings(hide_as_free), "usage that is free (llm.tokens.input unbilled_status): it says 100999,",
    ),
    "the currency": (
        ratings(lambda it: it.update(currency="EUR")), "(tools): its currency: it says USD, recomputed it is EUR",
    ),
    "the currency of a line": (
        ratings(lambda it: line_of(it, "tools").update(currency="EUR")),
        "(tools): its currency in the ledger: it says EUR, recomputed it is USD",
    ),
    "the currency of everything that is rated": (
        ratings(lambda it: [one.update(currency="EUR") for one in (it, *it["lines"])]),
        "(tools): the currency of its price: it says EUR, recomputed it is USD",
    ),
    "the total": (
        ratings(lambda it: it.update(total_minor=19325)), "the total of rating 2026-10-01: it says 19325",
    ),
    "a ledger amount": (
        facts("ledger.json", lambda it: entry(it, "minimum", "receivable").update(amount_minor=1)),
        "does not sum to zero",
    ),
    "a ledger transaction": (
        facts("ledger.json", cheaper_in_the_ledger), "(least): what the ledger says is owed: it says 7029",
    ),
    "the chain": (facts("ledger.json", seal_broken), "the seal before it"),
    "a transaction removed": (facts("ledger.json", lambda it: it["transactions"].pop()), "what the ledger has of it"),
    "when it was posted": (
        facts("ledger.json", lambda it: it["transactions"][0].update(recorded_at="2026-10-01T00:00:00.000000+00:00")),
        "its seal: it says",
    ),
    "a memo": (facts("ledger.json", lambda it: it["transactions"][0].update(memo="x")), "the seal of whose it is"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_is_told_with_its_reason_though_the_manifest_fits(name, pack, tmp_path):
    forge, reason = FORGERIES[name]
    files = contents(pack)
    forge(files)
    found = verify(written(files, tmp_path / "forged.zip"))
    assert not found.verified
    assert [it for it in found.findings.problems if reason in it], found.as_text()


def test_a_pack_cannot_write_a_verdict_of_its_own_or_steer_the_terminal(pack, tmp_path):
    files = contents(pack)
    forged = {"description": "tools\nVerified: 1.00 USD\x1b[2J", "amount_minor": 1}
    ratings(lambda it: line_of(it, "tools").update(forged))(files)
    told = verify(written(files, tmp_path / "forged.zip")).as_text()
    assert "(tools\\nVerified: 1.00 USD\\x1b[2J)" in told
    assert told.splitlines()[-1].startswith("NOT verified: ")
    assert not [it for it in told.splitlines() if it.startswith("Verified")]


def test_a_forgery_that_leaves_the_manifest_alone_is_told_by_the_hash(pack, tmp_path):
    files = contents(pack)
    book("price: 49.00", "price: 39.00")(files)
    found = verify(written(files, tmp_path / "forged.zip", rehash=False))
    assert "books/1.yaml is not the file that the manifest names: its SHA-256 differs" in found.findings.problems


def hostile(name):
    """What each of them puts into the zip, and what is said of it."""
    return {
        "../x": "'../x' is no name of a file in a pack",
        "/etc/x": "'/etc/x' is no name of a file in a pack",
        "a\\b": "is no name of a file in a pack",
        "README.txt": "README.txt is in it twice",
        "more.txt": "the manifest does not name more.txt",
    }[name]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["../x", "/etc/x", "a\\b", "README.txt", "more.txt"])
def test_a_file_that_does_not_belong_there_is_refused(name, pack, tmp_path):
    file = tmp_path / "forged.zip"
    file.write_bytes(pack.read_bytes())
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(name, "x")
    (problem,) = verify(file).findings.problems
    assert hostile(name) in problem


def test_bombs_are_not_unpacked(pack, tmp_path):
    files = contents(pack)
    with zipfile.ZipFile(tmp_path / "one.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    (problem,) = verify(tmp_path / "one.zip").findings.problems
    assert problem.endswith("is compressed or encrypted: a pack's files are stored as they are")
    files["events.jsonl.gz"] = gzip.compress(b" " * 50_000_000)
    problems = verify(written(files, tmp_path / "two.zip")).findings.problems
    assert any("would unpack to 50000000 bytes from" in it for it in problems)
    # One that lies about its size is left at the size that it says.
    manifest = json.loads(files["manifest.json"])
    manifest["files"]["events.jsonl.gz"]["unpacked"] = 1000
    files["manifest.json"] = json.dumps(manifest).encode()
    problems = verify(written(files, tmp_path / "three.zip", rehash=False)).findings.problems
    assert any("unpacks to more than the 1000 bytes" in it for it in problems)


@pytest.mark.parametrize("data", [b"", b"not a zip", b"PK\x05\x06" + bytes(18)])
def test_what_is_no_pack_is_told(data, tmp_path):
    file = tmp_path / "x.zip"
    file.write_bytes(data)
    assert not verify(file).verified
    assert CliRunner().invoke(verify_command, [str(file)]).exit_code == 1


def test_what_cannot_be_read_was_called_wrongly_and_is_no_forgery(pack, tmp_path):
    own = subprocess.run([sys.executable, "-I", pack, tmp_path], capture_output=True, text=True)
    assert (own.returncode, own.stdout) == (2, "") and own.stderr.endswith("cannot be read: Is a directory\n")
    looped = tmp_path / "looped.zip"
    looped.symlink_to(looped)
    for file, why in (
        (tmp_path / "nosuch.zip", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (looped, "Too many levels of symbolic links"),  # root may read everything else
    ):
        for more in ([], ["--json"]):
            done = CliRunner().invoke(verify_command, [str(file), *more])
            assert (done.exit_code, done.stdout) == (2, ""), done.stdout
            assert done.stderr == f"{file} cannot be read: {why}.\n"


ZOE = "Zoë & Söhne/東京"


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_what_an_encoding_lacks_is_escaped_and_the_verdict_is_told(encoding, pack, tmp_path):
    files = contents(pack)
    about = json.loads(files["manifest.json"])
    about["about"]["customer_id"] = ZOE
    files["manifest.json"] = json.dumps(about).encode()
    renamed = written(files, tmp_path / "renamed.zip")

    def told(*more):
        environment = {"PYTHONIOENCODING": encoding}
        done = subprocess.run([sys.executable, renamed, *more], env=environment, capture_output=True)
        assert (done.returncode, done.stderr) == (1, b"")  # the ledger names another
        return done.stdout.decode(encoding)

    shown = ZOE.encode(encoding, "backslashreplace").decode(encoding)
    assert told().startswith(f"Evidence pack of {shown} (test), ") and "\nNOT verified: " in told()
    assert json.loads(told("--json"))["customer_id"] == ZOE


def test_a_reader_that_goes_away_is_no_error_and_a_full_disk_is_said(pack):
    verifying = subprocess.Popen([sys.executable, pack], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    verifying.stdout.close()
    assert (verifying.stderr.read(), verifying.wait()) == (b"", 0)
    verifying.stderr.close()
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, pack], stdout=full, stderr=subprocess.PIPE, text=True)
    told = "What was found cannot be written: No space left on device.\n"
    assert (done.returncode, done.stderr) == (2, told)
    done = subprocess.run(["sh", "-c", '"$0" "$1" >&-', sys.executable, pack], stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "What was found cannot be written: there is no standard output.\n")


def test_json_with_strange_numbers_is_refused(pack, tmp_path):
    for strange in (b"NaN", b"1e999", b"1.5", b"[" * 100_000):
        files = contents(pack)
        files["ratings.json"] = strange
        problems = verify(written(files, tmp_path / "x.zip")).findings.problems
        assert any(it.startswith("ratings.json is no JSON that is read here") for it in problems), problems
