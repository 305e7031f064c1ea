"""Usage that counts, imported from files, retracted, amended and reverted, in the real engine; figures by hand."""

import json
import os
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from collector_samples import RECEIVED_NS, record

from meterhouse_collector import backfill
from meterhouse_collector.backfill import FileRefused
from meterhouse_collector.inbox import Inbox
from meterhouse_store import decided, decisions, sql, suspended
from meterhouse_store.settings import Settings
from meterhouse_store.suspended import Filter

NOW = datetime(2026, 11, 1, tzinfo=UTC)
METERS = {"llm.tokens.input", "llm.tokens.output", "agent.seconds"}
TOLD = {"import.batch": "b1", "import.by": "ann", "import.why": "the old system"}
ANY = Filter(since=datetime(1970, 1, 1, tzinfo=UTC))
TABLE = """customer_id,meter,quantity,event_time,model,attributes.source
acme,llm.tokens.input,1500,2026-10-03T10:00:00Z,big,old
acme,llm.tokens.input,1500,2026-10-03T10:00:00Z,big,old
acme,meterhouse.llm.tokens.output,200,2026-10-03T12:00:00+02:00,big,old
beta,agent.seconds,12.25,2026-10-04,,
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "usage.csv"
    path.write_text(TABLE)
    return path


class Desk:
    """Sends as the command does, projects as the projector does, and decides as the command does."""

    def __init__(self, engine, client):
        self.engine, self.client, self.sent, self.decided = engine, client, [], 0

    def send(self, events):
        for request in backfill.requests(events, "test"):
            self.sent.append(record(request, len(self.sent) + 1, received_ns=RECEIVED_NS + len(self.sent)))
            self.project(self.sent[-1:])

    def project(self, records):
        Inbox(self.client).post(b"".join(records))
        Inbox(self.client).mark_conflicts(0, 2 * RECEIVED_NS)

    def decide(self, drafts):
        self.decided += 1
        moment = NOW + timedelta(hours=self.decided)
        decisions.record(self.engine, drafts, why="told so", who="ann", clock=lambda: moment)
        decided.apply(self.engine, self.client)

    def retract(self, which=ANY, batch=None):
        rows = suspended.find_counted(self.client, "live", which, 100, batch)
        self.decide(suspended.retract(rows).drafts)
        return len(rows)

    def amend(self, event_id, quantity):
        query = "SELECT *, toUnixTimestamp64Nano(key_time) AS key_ns FROM usage WHERE event_id = {id:String}"
        (row,) = self.client.query(query, parameters={"id": event_id}).named_results()
        copy = backfill.amended(row, quantity)
        self.send([copy])
        which = Filter(events=(event_id,), quantity=copy.quantity)
        rows = suspended.find(self.client, "live", which, 10)
        self.decide(suspended.release(rows, suspended.counting(self.client, "live", which)).drafts)

    def revert(self, *, whole=False):
        last = decisions.latest(self.engine, "live", 1)[0]
        undone = decisions.with_its_command(self.engine, "live", last.decision_id, whole=whole)
        self.decide(decisions.undo(self.engine, undone))

    def usage(self):
        query = "SELECT billed_customer_id, meter, quantity FROM usage ORDER BY 1, 2, 3"
        return [(customer, meter, f"{quantity.normalize():f}") for customer, meter, quantity in self.rows(query)]

    def rows(self, query):
        return self.client.query(query).result_rows


@pytest.fixture
def desk(database, tmp_path):
    engine = sql.open_engine(Settings(data=tmp_path))
    yield Desk(engine, database)
    engine.dispose()


ALL = [
    ("acme", "llm.tokens.input", "1500"),
    ("acme", "llm.tokens.input", "1500"),
    ("acme", "llm.tokens.output", "200"),
    ("beta", "agent.seconds", "12.25"),
]


def test_a_file_becomes_usage_once_however_often_it_is_imported(desk, file):
    events = backfill.read(file, METERS, NOW, TOLD)
    desk.send(events)
    desk.send(backfill.read(file, METERS, NOW, TOLD))
    assert desk.usage() == ALL
    (row,) = desk.client.query("SELECT * FROM usage WHERE quantity = 200").named_results()
    assert (row["model"], row["status"], row["event_time"].isoformat()) == ("big", "ok", "2026-10-03T10:00:00")
    assert row["attributes"] == {"source": "old", **TOLD}
    # A row more of the same is a row more; one with another quantity is a conflict and not more usage.
    file.write_text(TABLE + "acme,llm.tokens.input,1500,2026-10-03T10:00:00Z,big,old\n")
    desk.send(backfill.read(file, METERS, NOW, TOLD))
    file.write_text(TABLE.replace(",200,", ",300,"))
    desk.send(backfill.read(file, METERS, NOW, TOLD))
    assert desk.usage() == [ALL[0], *ALL]
    assert desk.rows("SELECT reason, toInt64(quantity) FROM suspense") == [("conflict", 300)]


def test_json_lines_say_the_same_as_the_table(file, tmp_path):
    header, *rows = (line.split(",") for line in TABLE.splitlines())
    lines = tmp_path / "usage.jsonl"
    objects = [{name: value for name, value in zip(header, row, strict=True) if value} for row in rows]
    lines.write_text("\n".join(json.dumps(it) for it in objects) + "\n\n")
    assert backfill.read(lines, METERS, NOW, TOLD) == backfill.read(file, METERS, NOW, TOLD)
    exact = tmp_path / "exact.jsonl"
    exact.write_text('{"customer_id": "a", "meter": "agent.seconds", "quantity": 0.1, "event_time": "2026-10-01"}')
    assert backfill.read(exact, METERS, NOW, {})[0].quantity == Decimal("0.1")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (",llm.tokens.input,1,2026-10-01,,", "line 2: customer_id is missing"),
        ("a,none,1,2026-10-01,,", "line 2: meter: none is not declared"),
        ("a,agent.seconds,-1,2026-10-01,,", "line 2: quantity: -1 is not from 0"),
        ("a,agent.seconds,0.1234567891,2026-10-01,,", "line 2: quantity: 0.1234567891 is not from 0"),
        ("a,llm.tokens.input,12.5,2026-10-01,,", "quantity: 12.5 is part of a unit, and llm.tokens.input counts whole"),
        ("a,agent.seconds,123456789012345.123456789,2026-10-01,,", "that a double can hold"),
        ("a,agent.seconds,many,2026-10-01,,", "line 2: quantity: 'many' is no number"),
        ("a,agent.seconds,1,yesterday,,", "line 2: event_time: 'yesterday' is no time"),
        ("a,agent.seconds,1,2025-09-01,,", "line 2: event_time: more than 400 days ago"),
        (f"{'a' * 257},agent.seconds,1,2026-10-01,,", "line 2: customer_id is longer than 256 bytes"),
        ("a,agent.seconds,1", "line 2: it has not as many fields as the header"),
    ],
)
def test_a_file_with_a_mistake_is_refused_with_its_line(file, line, problem):
    file.write_text(f"{TABLE.splitlines()[0]}\n{line}\n")
    with pytest.raises(FileRefused) as refused:
        backfill.read(file, METERS, NOW, TOLD)
    assert problem in str(refused.value)


def test_of_one_line_all_mistakes_are_told(file):
    file.write_text(f"{TABLE.splitlines()[0]}\n,own.meter,many,yesterday,,\n")
    with pytest.raises(FileRefused) as refused:
        backfill.read(file, METERS, NOW, TOLD)
    told = str(refused.value).splitlines()
    starts = ("customer_id is missing", "meter: own.meter is not declared", "event_time:", "quantity:")
    assert [one.startswith(f"line 2: {start}") for one, start in zip(told, starts, strict=True)] == [True] * 4
    assert "METERHOUSE_METERS" in told[1] and "below `meters:` the line own.meter: {" in told[1]


def test_all_mistakes_are_told_and_ids_of_ones_own_come_once(tmp_path):
    file = tmp_path / "usage.csv"
    file.write_text(
        "event_id,customer_id,meter,quantity,event_time\n"
        + "x1,a,agent.seconds,1,2026-10-01\n" * 2
        + "x 2,a,agent.seconds,1,2026-10-01\n"
    )
    with pytest.raises(FileRefused) as refused:
        backfill.read(file, METERS, NOW, TOLD)
    assert str(refused.value).splitlines() == [
        "line 3: event_id: x1 is that of line 2",
        "line 4: event_id: 1 to 64 characters of A-Z, a-z, 0-9, _ and -",
    ]


def test_a_batch_is_retracted_and_brought_back_as_a_whole(desk, file):
    desk.send(backfill.read(file, METERS, NOW, TOLD))
    file.write_text(TABLE.splitlines()[0] + "\nacme,agent.seconds,7,2026-10-05,,\n")
    desk.send(backfill.read(file, METERS, NOW, TOLD | {"import.batch": "b2"}))
    assert desk.retract(batch="b1") == 4
    assert desk.usage() == [("acme", "agent.seconds", "7")]
    desk.project(desk.sent)  # whatever is sent again
    assert desk.usage() == [("acme", "agent.seconds", "7")]
    desk.revert(whole=True)
    assert desk.usage() == [("acme", "agent.seconds", "7"), *ALL]
    assert desk.retract(Filter(customer="acme", meter="llm.tokens.output")) == 1
    assert len(desk.usage()) == 4


def test_an_amended_event_counts_with_the_new_quantity_alone_and_a_revert_is_all_of_it(desk, file):
    events = backfill.read(file, METERS, NOW, TOLD)
    desk.send(events)
    name = events[2].event_id
    desk.amend(name, "250")
    amended = [*ALL[:2], ("acme", "llm.tokens.output", "250"), ALL[3]]
    assert desk.usage() == amended
    desk.project(desk.sent)
    assert desk.usage() == amended
    desk.amend(name, "260")
    assert desk.usage()[2][2] == "260"
    desk.revert()
    assert desk.usage() == amended
    assert {it.why for it in decisions.latest(desk.engine, "live", 100)} == {"told so"}


def test_what_is_retracted_after_a_revert_leaves_no_other_copy_to_count(desk, file):
    events = backfill.read(file, METERS, NOW, TOLD)
    desk.send(events)
    desk.amend(events[2].event_id, "250")
    desk.revert()
    assert desk.usage() == ALL
    desk.retract(Filter(events=(events[2].event_id,)))
    assert desk.usage() == [*ALL[:2], ALL[3]]
    assert desk.rows("SELECT reason, toInt64(quantity) FROM suspense") == [("conflict", 250)]
    desk.revert()
    assert desk.usage() == ALL


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"quantity": Decimal(250)}, "its quantity is that already"),
        ({"source": "otel.sum"}, "whose quantities are worked out"),
        ({"billed_customer_id": "beta"}, "it was assigned to another customer"),
        ({"key_ns": 0}, "is always 1"),
    ],
)
def test_what_cannot_be_amended_is_refused_with_what_to_do(change, problem):
    row = {
        "event_id": "e",
        "meter": "llm.tokens.input",
        "quantity": Decimal(200),
        "source": "meterhouse",
        "customer_id": "acme",
        "key_ns": 1,
    }
    with pytest.raises(ValueError, match=problem):
        backfill.amended(row | {"billed_customer_id": "acme"} | change, "250")


def test_a_pipe_is_refused_because_an_import_reads_twice(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileRefused, match="read twice"):
        backfill.read(tmp_path / "pipe", METERS, NOW, TOLD)
