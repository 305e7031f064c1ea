"""Meter events by Stripe's v2 stream: the same totals as by v1, each once; the real SDK against the local Stripe."""

import json
from datetime import timedelta

import pytest
from metered import OCTOBER, Metered

from meterhouse_billing import meter_reports, meter_sync
from meterhouse_billing.gateway import StripeUnavailable
from meterhouse_billing.pace import Limits
from meterhouse_sandbox import stripe_meters, stripe_routes, stripe_stream
from meterhouse_sandbox.stripe_contract import StripeRefusal
from meterhouse_store import tables

HOUR = timedelta(hours=1)


@pytest.fixture
def metered(books, sandbox):
    made = Metered(books.engine, sandbox.url, stream="on")
    for name in ("acme", "globex"):
        made.customer(name)
    assert [step.text for step in made.setup() if step.failed] == []
    return made


@pytest.fixture
def asked(monkeypatch):
    """How many events each request of the stream had, as the local Stripe saw them."""
    sizes = []
    real = stripe_stream.meters.take
    monkeypatch.setattr(
        stripe_meters, "take", lambda context, given: (sizes.append(given["identifier"]), real(context, given))[1]
    )
    return sizes


def use(metered, hours=75):
    """75 hours of two customers: 150 totals, 1 + 2 + ... + 75 = 2,850 documents each."""
    for number in range(hours):
        for name in ("acme", "globex"):
            metered.truth.use(name, "documents", OCTOBER + number * HOUR, number + 1)
    metered.at(OCTOBER + hours * HOUR)


def both(metered):
    return [metered.in_stripe(name, "documents") for name in ("acme", "globex")]


@pytest.mark.parametrize("books", ["sqlite", "postgres"], indirect=True)
def test_many_totals_go_in_few_requests_and_count_once(books, metered, asked):
    use(metered)
    assert metered.sync() == ["2026-10: 150 hourly totals to send", "sent 150 of 150 hourly totals by the stream"]
    assert both(metered) == [2850, 2850]
    assert sorted(len(row["identifiers"]) for row in books.rows(tables.meter_batches)) == [50, 100]
    assert sorted(asked) == sorted(row["identifier"] for row in books.rows(tables.meter_events))
    metered.truth.use("acme", "documents", OCTOBER, 5)  # late: a newer total of its hour
    assert metered.sync()[-1] == "sent 1 of 1 hourly total by the stream"
    assert both(metered) == [2855, 2850]
    assert metered.sync() == []


@pytest.mark.parametrize("fault", ["dropped_before", "dropped_after", "409", "429", "saved_500", "saved_500_done"])
def test_a_fault_at_any_call_changes_no_total(metered, fault):
    use(metered)
    metered.control("faults", {"script": [fault, fault, fault]})
    assert metered.sync()[-1] == "sent 150 of 150 hourly totals by the stream"
    assert both(metered) == [2850, 2850]


@pytest.mark.parametrize("later", [timedelta(minutes=1), timedelta(hours=30)])
@pytest.mark.parametrize("then", ["on", "off"])
def test_what_was_taken_without_an_answer_counts_once_when_it_is_sent_again_either_way(metered, later, then):
    use(metered, hours=20)
    metered.control("faults", {"script": ["dropped_after"] * 6})
    with pytest.raises(StripeUnavailable):
        metered.sync()
    metered.control("faults", {})
    metered.at(metered.truth.now + later)  # after 30 hours Stripe has forgotten identifiers: the summaries are read
    metered.stream = then
    metered.sync()
    assert both(metered) == [210, 210]
    assert metered.sync() == []


def test_a_session_that_is_over_is_renewed_before_and_after_stripe_says_so(metered, monkeypatch):
    made = []
    real = stripe_stream.open_session
    [route] = [it for it in stripe_stream.STREAM_ROUTES if it.path.endswith("session")]
    monkeypatch.setattr(
        stripe_routes,
        "STREAM_ROUTES",
        [
            type(route)(
                **vars(route) | {"handle": lambda context, name, given: (made.append(1), real(context, given))[1]}
            ),
            *[it for it in stripe_stream.STREAM_ROUTES if it is not route],
        ],
    )
    use(metered, hours=2)
    run = metered.run()
    stream = meter_sync.MeterStream(run.gateway.gateway, metered.world.now)
    assert stream.token() == stream.token() and len(made) == 1
    metered.at(metered.truth.now + timedelta(minutes=14, seconds=1))
    stream.token()
    assert len(made) == 2  # in its last minute
    metered.control("clock", {"now": metered.truth.now.timestamp() + 901})  # only Stripe's clock went on
    list(meter_sync.plan(run))
    [events] = [[event for lane in meter_sync.records.pending(metered.engine, "test").values() for event in lane]]
    stream.send(events, meter_sync.batch_id(events))
    assert len(made) == 3 and both(metered) == [3, 3]


def test_where_stripe_refuses_the_stream_everything_goes_by_v1(metered, monkeypatch):
    def refused(context, token):
        raise StripeRefusal("This account has no access to the stream.", status=403)

    monkeypatch.setattr(stripe_stream, "authenticate", refused)
    use(metered)
    done = metered.sync()
    assert "sent 150 of 150 hourly totals (not by the stream: Stripe refused: " in done[-1]
    assert both(metered) == [2850, 2850]


def test_a_report_about_a_request_of_many_is_matched_to_the_event_that_does_not_count(books, metered, monkeypatch):
    use(metered, hours=3)
    real = stripe_meters._reading

    def bad(context, meter, given):
        customer, value, problem = real(context, meter, given)
        return (
            (customer, "0", ("meter_event_invalid_value", "no number")) if value == "2" else (customer, value, problem)
        )

    monkeypatch.setattr(stripe_meters, "_reading", bad)
    metered.sync()
    state = stripe_stream_state(metered)
    assert len(state) == 2  # of each customer the second hour
    said = [meter_reports.take(metered.world, event) for event in [*state, *state[::-1]]]
    assert said[0] == "2 meter events of ours not counted"
    rejected = [row for row in books.rows(tables.meter_events) if row["state"] == "rejected"]
    assert {(row["customer_id"], row["total"]) for row in rejected} == {("acme", 2), ("globex", 2)}
    assert any("no number (meter_event_invalid_value)" in step.text for step in metered.exceptions())


def stripe_stream_state(metered):
    """The ids of the thin events, the oldest first, as the endpoint would get them."""
    import sqlite3
    from pathlib import Path

    file = next(Path(metered.engine.url.database).parents[1].glob("sandbox/stripe.sqlite3"))
    with sqlite3.connect(file) as sql:
        return [json.loads(row[0])["id"] for row in sql.execute("SELECT body FROM objects WHERE kind = 'thin_event'")]


def test_auto_takes_the_stream_when_there_is_very_much(metered, monkeypatch):
    metered.stream = "auto"
    use(metered, hours=2)
    assert metered.sync()[-1] == "sent 4 of 4 hourly totals"
    monkeypatch.setattr(meter_sync, "STREAM_FROM", 2)
    metered.truth.use("acme", "documents", OCTOBER, 1)
    assert metered.sync()[-1] == "sent 1 of 1 hourly total"
    use(metered, hours=2)
    assert metered.sync()[-1] == "sent 4 of 4 hourly totals by the stream"
    assert both(metered) == [7, 6]


def test_the_streams_requests_have_a_limit_of_their_own():
    assert Limits().of("POST /v2/billing/meter_event_stream") == 100
    assert Limits().of("POST /v2/billing/meter_event_session") == 25
