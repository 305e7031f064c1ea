"""`meterhouse customers erase` where it refuses: a sentence, exit code 1; SQL, journal and warehouse are as they were.

No refusal leaves an erasure behind that is under way: nothing could be decided about the customer any more.
"""

import os

import commands
import pytest
from collector_samples import event, request_of
from sqlalchemy import select

from meterhouse_store import registry, tables

WHY = ("--why", "ticket 17")


@pytest.fixture
def erase(world, tmp_path, collector_warehouse):
    """Calls the command where acme is registered, and usage is of acme, of nobody, of an id with U+FFFD for a line
    feed, and of all the customers that are one digit."""
    registry.ensure_namespace(world.engine, "live")
    registry.add_customer(world.engine, "live", "acme", name="Acme")
    world.metrics(request_of(event(3, "a")), valid_from_ns=0)
    world.metrics(request_of(event(5, "n"), point={"gen_ai.agent.name": "x"}), valid_from_ns=0)
    for number, customer in enumerate(["acme\n", *map(str, range(10))]):
        world.metrics(request_of(event(1, f"e-{number}"), point={"customer.id": customer}), valid_from_ns=0)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("METERHOUSE_")}
    environment = clean | {
        "METERHOUSE_DATA": str(tmp_path),
        "METERHOUSE_WAREHOUSE_URL": collector_warehouse,
        "METERHOUSE_WAREHOUSE_DATABASE": world.client.database,
    }
    return lambda *arguments: commands.run(["customers", "erase", *arguments], env=environment)


def everything(world):
    with world.engine.connect() as sql:
        rows = {table.name: sql.execute(select(table)).all() for table in tables.metadata.sorted_tables}
    journal = {file.name: file.read_bytes() for file in world.journal.iterdir() if file.suffix != ".lock"}
    return rows, journal, world.state()


def test_what_is_refused_is_told_and_changes_nothing(world, erase):
    before = everything(world)
    for arguments, told in (
        (("nosuch", *WHY), "customer 'nosuch' is not registered in live"),
        (("", *WHY), "customer '' is not registered in live"),
        (("nosuch", *WHY, "--bytes"), "nothing in live has the id 'nosuch': mind its spelling"),
        (("acme", "--why", " "), "say why: it is kept with the erasure"),
        (("acme", "--why", " ", "--bytes"), "say why: it is kept with the erasure"),
        (("", *WHY, "--bytes"), "name the customer: an empty id is usage without a customer"),
        (("acme\ufffd", *WHY, "--bytes"), "U+FFFD in an id stands for a character that is not stored as it came"),
        (("7", *WHY, "--bytes"), "there is no free pseudonym of 1 characters: all are ids of other customers"),
    ):
        done = erase(*arguments, "--yes")
        assert (done.returncode, done.stdout) == (1, ""), arguments
        assert done.stderr.startswith(told) and done.stderr.count("\n") == 1, (arguments, done.stderr)
        assert everything(world) == before, arguments


def test_where_there_is_no_journal_the_bytes_are_not_erased(world, erase):
    (world.journal / "collector_id").unlink()
    before = everything(world)
    done = erase("acme", *WHY, "--bytes", "--yes")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"there is no journal in {world.journal}: run this where the collector runs\n"
    assert everything(world) == before
