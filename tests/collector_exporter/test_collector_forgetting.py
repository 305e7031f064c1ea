"""`meterhouse customers erase`: what says who somebody is, is gone; what was used and owed is what it was."""

import json
import time
from datetime import UTC, datetime, timedelta

import pytest
from collector_samples import any_value, batch, event, request_of, wait_for, wait_projected
from foreign_samples import call, span, sum_of, tokens_of, total_of
from sqlalchemy import insert, select, update

from meterhouse_store import decided, decisions, privacy, registry, sql, suspended, tables
from meterhouse_store.settings import Settings
from meterhouse_store.sql import begin_write
from meterhouse_store.suspended import Filter

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
TOTALS = "SELECT meter, count(), sum(quantity) FROM usage GROUP BY 1 ORDER BY 1"
WORDS = ("jane.doe@example.org", "Jane Doe", "crm-4711", "jane-s-cat")


@pytest.fixture
def jane(collector, database):
    """A customer whose id is her address, with usage, a closed rating, a ledger entry, and another customer beside."""
    address = WORDS[0]
    registry.add_customer(
        collector.engine, "live", address, name="Jane Doe", email=address, reference="crm-4711", plan="basic"
    )
    registry.add_customer(collector.engine, "live", "acme", name="Acme")
    request = batch([address, "acme"], 3, "r")
    point = request.resource_metrics[0].scope_metrics[0].metrics[0].sum.data_points[0]
    for number, exemplar in enumerate(point.exemplars):
        exemplar.filtered_attributes[0].value.string_value = f"event-{number}"  # an id has no @ in it
        exemplar.filtered_attributes.add(key="gen_ai.conversation.id", value=any_value("jane-s-cat"))
    assert collector.post(request)[0] == 200
    count = "SELECT count() FROM usage"
    wait_for(lambda: database.query(count).first_row == (6,), within_s=120, what="the projection")
    with begin_write(collector.engine) as connection:
        rating = {
            "namespace": "live", "customer_id": address, "currency": "USD", "plan": "basic", "book_version": 1,
            "watermark": {}, "as_of": NOW, "inputs_sha256": "i", "result_sha256": "r", "total_minor": 300,
            "rated_at": NOW,
        }  # fmt: skip
        connection.execute(
            insert(tables.ratings),
            [
                rating | {"rating_id": "closed", "state": "closed", "period_start": NOW.replace(month=9),
                          "period_end": NOW.replace(month=10), "closed_at": NOW},
                rating | {"rating_id": "open", "state": "open", "period_start": NOW.replace(month=10),
                          "period_end": NOW, "closed_at": None},
            ],
        )  # fmt: skip
        connection.execute(
            insert(tables.ledger_transactions).values(
                transaction_id="t", namespace="live", customer_id=address, kind="usage", source_id="l",
                effective_at=NOW, recorded_at=NOW, memo=f"usage of {address}",
            )
        )  # fmt: skip
        connection.execute(
            insert(tables.ledger_entries).values(
                transaction_id="t", position=0, account="receivable", amount_minor=300, currency="USD"
            )
        )
        params = {"name": "Jane Doe", "email": address, "metadata": {"customer_id": address}}
        connection.execute(
            insert(tables.outbox).values(
                idempotency_key="k", namespace="live", operation="customer.create", subject_id="s",
                request={"params": params}, state="done", attempts=1, created_at=NOW,
            )
        )  # fmt: skip
    return address


def found_in(folder, words):
    """(file, word) for every word that stands in any file of the folder."""
    found = []
    for file in sorted(folder.rglob("*")):
        if file.is_dir() or file.name == "collector.log":
            continue
        try:
            content = file.read_bytes()
        except FileNotFoundError:  # the engine, which is running, has merged this part away
            continue
        found += [(str(file.relative_to(folder)), word) for word in words if word.encode() in content]
    return found


def leave_half_a_pack(data):
    """What a killed maker of evidence packs leaves."""
    folder = data / "run" / "packs" / "tmp1"
    folder.mkdir(parents=True)
    (folder / "pack.zip").write_text("jane-4711 Jane Doe crm-4711")


def test_without_bytes_the_registry_forgets_and_the_id_goes_on(collector, database, jane):
    done = collector.command("customers", "erase", jane, "--why", "ticket 17", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["would_change"]["outbox"] == 1
    assert [one.name for one in registry.customers(collector.engine, "live")] == ["Acme", "Jane Doe"]

    leave_half_a_pack(collector.data)
    done = collector.command("customers", "erase", jane, "--why", "ticket 17", "--yes")
    assert done.returncode == 0, done.stderr
    acme, erased = registry.customers(collector.engine, "live")
    assert (acme.name, erased.customer_id) == ("Acme", jane)
    assert (erased.name, erased.email, erased.reference) == ("erased", None, None)
    assert found_in(collector.data, ["Jane Doe", "crm-4711"]) == []
    with collector.engine.connect() as sql:
        request = sql.execute(select(tables.outbox.c.request)).scalar_one()
        recorded = sql.execute(select(tables.erasures.c.why, tables.erasures.c.bytes)).all()
    assert request["params"]["name"] == "erased"
    assert recorded == [("ticket 17", "kept")]


def test_with_bytes_nothing_in_the_data_directory_or_the_warehouse_names_the_customer(collector, database, jane):
    before = database.query(TOTALS).result_rows
    assert {word for _, word in found_in(collector.data, WORDS)} == set(WORDS)
    leave_half_a_pack(collector.data)
    done = collector.command("customers", "erase", jane, "--why", "ticket 17", "--bytes", "--yes", "--json")
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert database.query(TOTALS).result_rows == before
    rows = database.query("SELECT customer_id, count() FROM usage GROUP BY 1 ORDER BY count(), 1").result_rows
    assert sorted(rows) == sorted([("acme", 3), (outcome["customer_id"], 3)])
    collector.kill()
    assert found_in(collector.data, WORDS) == []
    text = database.query("SELECT * FROM events").result_rows
    assert not any(word in str(text) for word in WORDS)

    with collector.engine.connect() as sql:
        ratings = sql.execute(select(tables.ratings.c.customer_id, tables.ratings.c.state)).all()
        ledger = sql.execute(select(tables.ledger_transactions.c.customer_id, tables.ledger_transactions.c.memo)).one()
        amount = sql.execute(select(tables.ledger_entries.c.amount_minor)).scalar_one()
        contracts = sql.execute(select(tables.contracts.c.customer_id, tables.contracts.c.plan)).all()
        erasures = sql.execute(select(tables.erasures)).mappings().one()
    pseudonym = outcome["customer_id"]
    assert ratings == [(pseudonym, "closed")]
    assert ledger == (pseudonym, f"usage of {pseudonym}")
    assert amount == 300
    assert contracts == [(pseudonym, "basic")]
    assert (erasures["customer_id"], erasures["former_id"], erasures["bytes"]) == (pseudonym, None, "erased")

    again = collector.command("warehouse", "rebuild", "--json")
    assert again.returncode == 0, again.stderr
    rebuilt = json.loads(again.stdout)
    assert rebuilt["live_sha256"] == rebuilt["rebuilt_sha256"] == outcome["usage_sha256"]


def test_an_erasure_that_was_interrupted_goes_on_where_it_stopped(collector, database, jane, monkeypatch):
    from meterhouse_collector import forgetting, rebuild
    from meterhouse_collector.service import journal_directory
    from meterhouse_store import privacy
    from meterhouse_store.warehouse import connect

    query = "SELECT namespace, customer_id, meter, toUnixTimestamp64Nano(key_time), event_id, quantity FROM usage"
    key = decisions.Key(*database.query(f"{query} WHERE customer_id = {{of:String}} LIMIT 1", {"of": jane}).first_row)
    draft = decisions.Draft(decisions.RETRACT, key, "retracted", "", "", "")
    Desk(collector.engine, database).record([draft])
    collector.kill()

    def attempt(own):
        begun = privacy.begin(collector.engine, own, "live", jane, who="ann", why="ticket 17", now=NOW)
        settings = collector.settings
        return forgetting.forget_bytes(
            journal_directory(collector.data), collector.engine, lambda name: connect(settings, database=name),
            settings.warehouse_database, begun, lambda _line: None, now=NOW,
        )  # fmt: skip

    def cut(*_arguments, **_more):
        raise KeyboardInterrupt

    for module, name in ((privacy, "rename"), (rebuild, "rebuild"), (privacy, "finish")):
        with monkeypatch.context() as patched:
            patched.setattr(module, name, cut)
            with pytest.raises(KeyboardInterrupt):
                attempt(f"try-{name}")
    done = attempt("last")
    assert len(database.query("SELECT DISTINCT customer_id FROM usage").result_rows) == 2
    query = "SELECT customer_id, reason, event_id FROM set_aside"
    ((customer_id, reason, event_id),) = database.query(query).result_rows
    assert (customer_id, reason, event_id != key.event_id) == (done.pseudonym, "retracted", True)
    assert found_in(collector.data, WORDS) == []
    with collector.engine.connect() as sql:
        assert sql.execute(select(tables.erasures.c.erasure_id, tables.erasures.c.customer_id)).all() == [
            ("try-rename", done.pseudonym)
        ]


def everything_of(person):
    """Requests of all kinds of sources, each with something of the person that waits for a decision."""
    start_ns = time.time_ns() - 3600 * 10**9
    later = {"start_ns": start_ns, "customer": person}

    def at(request, *seconds):
        """The points of a foreign request at so many seconds after its start."""
        for resource in request.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    points = getattr(metric, metric.WhichOneof("data")).data_points
                    for point, second in zip(points, seconds, strict=True):
                        point.time_unix_nano = start_ns + second * 10**9
        return request

    own = {"customer.id": person, "gen_ai.agent.name": f"agent of {person}"}
    said = {"gen_ai.conversation.id": "jane-s-cat"}
    now = start_ns + 5 * 10**9
    requests = [
        request_of(event(7, "e-1", now, extra=said), point=own),
        request_of(event(9, "e-1", now, extra=said), point=own),  # a conflict
        request_of(event(float("nan"), "e-2", now, extra=said), point=own),
        request_of(event(11, "e-3", now), point={"gen_ai.agent.name": "a"}),  # names nobody
        request_of(event(13, "e-4", now), point={"customer.id": "acme"}),
        at(sum_of((1, 5), name="pages.read", **later, seat=7), 1),
        at(sum_of((1, 6), name="pages.read", **later, seat=8), 1),  # another series, by a number only
        at(sum_of((1, 17), name="pages.read", **later, **{"gen_ai.agent.id": 3}), 1),  # a bad identifier
        at(total_of((1, 10), (2, 30), (3, 25), name="pages.total", **later), 1, 2, 3),  # a fall
        at(total_of((1, 40), name="pages.total", customer="acme", start_ns=start_ns), 1),
        at(tokens_of((1, 100.0), start_ns=start_ns, customer=person), 1),
    ]
    traces = [span(1, customer=person, more=call(50, 20)), span(2, parent=1, customer=person, more=call(50, 20))]
    for request in traces:
        one = request.resource_spans[0].scope_spans[0].spans[0]
        one.start_time_unix_nano, one.end_time_unix_nano = now, now + 10**9
    return requests, traces


STATE = """
    SELECT state, meter, source, reason, original_reason, count(), sum(quantity), uniqExact(event_id) FROM (
        SELECT 'usage' AS state, meter, source, '' AS reason, original_reason, quantity, event_id FROM usage
        UNION ALL SELECT 'suspense', meter, source, reason, original_reason, quantity, event_id FROM suspense
        UNION ALL SELECT 'aside', meter, source, reason, original_reason, quantity, event_id FROM set_aside)
    GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2, 3, 4, 5
"""


@pytest.fixture
def decided_jane(collector, database):
    """A person with usage of all sources and decisions about it: her id, and where decisions are made."""
    person = WORDS[0]
    registry.add_customer(collector.engine, "live", person, name="Jane Doe", email=person, reference="crm-4711")
    registry.add_customer(collector.engine, "live", "acme", name="Acme")
    with collector.engine.begin() as connection:  # valid since before the running totals began
        connection.execute(update(tables.credentials).values(valid_from=NOW - timedelta(days=1)))
    requests, traces = everything_of(person)
    time.sleep(2.5)  # the collector reads credentials again
    for request in requests:
        assert collector.post(request)[0] == 200
    for request in traces:
        assert collector.post(request, path="/v1/traces")[0] == 200
    wait_projected(database)
    desk = Desk(collector.engine, database)
    desk.decide(suspended.assign, Filter(events=("e-3",)), person)
    desk.decide(suspended.release, Filter(reason="conflict"))
    desk.decide(suspended.discard, Filter(reason="bad_quantity"))
    desk.decide(suspended.release, Filter(reason="cumulative_fall"))
    desk.decide(suspended.discard, Filter(reason="bad_identifier"))
    desk.undo()
    desk.decide(suspended.release, Filter(reason="bad_identifier"))
    return person, desk


class Desk:
    """Decides as `meterhouse suspense` does."""

    def __init__(self, engine, client):
        self.engine, self.client = engine, client

    def decide(self, rule, which, *customer):
        rows = suspended.find(self.client, "live", which, 100)
        now = () if rule is suspended.discard else (suspended.counting(self.client, "live", which, *customer),)
        drafts = rule(rows, *customer, *now).drafts
        assert drafts
        self.record(drafts)

    def undo(self, number=0, why=f"{WORDS[0]} called"):
        last = decisions.latest(self.engine, "live", 20)[number]
        undone = decisions.with_its_command(self.engine, "live", last.decision_id, whole=True)
        self.record(decisions.undo(self.engine, undone), why)

    def record(self, drafts, why=f"{WORDS[0]} says so"):
        clock = lambda: datetime.now(UTC)  # noqa: E731
        decisions.record(self.engine, drafts, why=why, who="ann", clock=clock)
        decided.apply(self.engine, self.client)

    def all(self):
        return decisions.latest(self.engine, "live", 100)[::-1]

    def state(self):
        return self.client.query(STATE).result_rows


def in_warehouse(client, words):
    """(table, word) for every word that stands in any row of any table of any database."""
    query = "SELECT database, name FROM system.tables WHERE engine LIKE '%MergeTree' AND database != 'system'"
    return [
        (f"{database}.{table}", word)
        for database, table in client.query(query).result_rows
        for word in words
        if client.query(
            f"SELECT count() FROM {database}.{table} WHERE position(toString(tuple(*)), {{word:String}}) > 0",
            parameters={"word": word},
        ).result_rows != [(0,)]
    ]  # fmt: skip


@pytest.mark.long
def test_with_bytes_decisions_stay_and_no_byte_of_journal_sql_and_warehouse_names_the_person(
    collector, database, decided_jane, collector_warehouse_data
):
    person, desk = decided_jane
    words = (person, "Jane Doe", "crm-4711", "jane-s-cat")
    warehouse = collector_warehouse_data
    before, made = desk.state(), desk.all()
    named = {table.removeprefix("tests.") for table, _ in in_warehouse(database, [person])}
    assert named >= {"events", "conflicts", "cumulative_points", "decided_increases", "spans", "mirror_decisions"}
    assert person in {word for _, word in found_in(warehouse, [person])}
    done = collector.command("customers", "erase", person, "--why", "ticket 17", "--bytes", "--yes", "--json")
    assert done.returncode == 0, done.stderr
    pseudonym = json.loads(done.stdout)["customer_id"]

    assert desk.state() == before
    assert in_warehouse(database, words) == []
    now = desk.all()
    said = [[(one.decided_at, one.draft.kind, one.draft.reason, one.who) for one in some] for some in (now, made)]
    assert sorted(said[0]) == sorted(said[1])
    assert [one.draft.billed_customer_id for one in now if one.draft.kind == "assign"] == [pseudonym]
    assert {one.why for one in now} == {f"{pseudonym} says so", f"{pseudonym} called"}
    ids = {one.decision_id for one in now}
    assert {one.draft.follows for one in now} <= ids | {""}
    with collector.engine.connect() as sql:
        assert set(sql.execute(select(tables.decisions.c.decision_id)).scalars()) == ids
    assert found_in(warehouse, words) == []

    # They are as good as before: the last one can be undone.
    pages = "SELECT toInt64(sum(quantity)) FROM usage WHERE meter = 'pages.read'"
    assert database.query(pages).result_rows == [(5 + 6 + 17,)]
    desk.undo(why="a mistake")
    assert database.query(pages).result_rows == [(5 + 6,)]
    collector.kill()
    assert found_in(collector.data, words) == []


def test_a_customer_that_only_events_name_is_erased_once_it_is_agreed(collector, database):
    unknown = "joe-bloggs-of-leeds"
    assert collector.post(batch([unknown, "acme"], 3, "u"))[0] == 200
    wait_for(lambda: database.query("SELECT count() FROM usage").first_row == (6,), within_s=120, what="the projection")
    before = database.query(TOTALS).result_rows
    erase = ("customers", "erase", unknown, "--why", "ticket 17")
    done = collector.command(*erase)
    assert done.returncode == 1
    assert "is not registered in live" in done.stderr and "`--bytes`" in done.stderr

    done = collector.command(*erase, "--bytes", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert f"erasing {unknown} would change" in done.stdout and "journal: 1 record in 1 segment" in done.stdout
    done = collector.command(*erase, "--bytes")  # nobody is there to be asked
    assert done.returncode == 2
    assert "journal: 1 record in 1 segment" in done.stderr and "--yes" in done.stderr
    assert unknown in {word for _, word in found_in(collector.data / "journal", [unknown])}

    done = collector.command(*erase, "--bytes", "--yes", "--json")
    assert done.returncode == 0, done.stderr
    pseudonym = json.loads(done.stdout)["customer_id"]
    assert database.query(TOTALS).result_rows == before
    rows = database.query("SELECT customer_id, count() FROM usage GROUP BY ALL").result_rows
    assert sorted(rows) == sorted([("acme", 3), (pseudonym, 3)])
    assert found_in(collector.data, [unknown]) == []
    done = collector.command(*erase, "--bytes", "--yes")
    assert done.returncode == 1 and f"nothing in live has the id '{unknown}'" in done.stderr


def test_a_pseudonym_is_nobodys_that_has_usage(collector, database):
    """Of ten ids of one digit nine are others' and the tenth is the customer's own: there is none to take."""
    digits = [str(digit) for digit in range(10)]
    assert collector.post(batch(digits, 1, "d"))[0] == 200
    wait_for(
        lambda: database.query("SELECT count() FROM usage").first_row == (10,), within_s=120, what="the projection"
    )
    done = collector.command("customers", "erase", "7", "--why", "ticket 17", "--bytes", "--yes")
    assert done.returncode == 1 and "there is no free pseudonym" in done.stderr
    assert len(database.query("SELECT DISTINCT customer_id FROM usage").result_rows) == 10


def test_an_id_that_is_a_number_is_not_taken_for_a_price_or_a_quantity(tmp_path):
    engine = sql.open_engine(Settings(data=tmp_path))
    registry.ensure_namespace(engine, "live")
    registry.add_customer(engine, "live", "100", name="Jane Doe")
    explained = {"tiers": [{"up_to": "100", "price": "0.01"}], "customer_id": "100"}
    with begin_write(engine) as connection:
        connection.execute(
            insert(tables.outbox).values(
                idempotency_key="k", namespace="live", operation="invoice.create", subject_id="s", request=explained,
                state="done", attempts=1, created_at=NOW, last_error='no such customer: {"customer_id": "100"}, 100',
            )
        )  # fmt: skip
    begun = privacy.begin(engine, "e", "live", "100", who="ann", why="ticket 17", now=NOW)
    privacy.rename(engine, begun, "777", {})
    with engine.connect() as connection:
        request, error = connection.execute(select(tables.outbox.c.request, tables.outbox.c.last_error)).one()
    engine.dispose()
    assert request == {"tiers": [{"up_to": "100", "price": "0.01"}], "customer_id": "777"}
    assert error == 'no such customer: {"customer_id": "777"}, 100'
