"""The meter driver against the sandbox, with the real SDK over HTTP: Stripe's totals are the usage, always."""

from datetime import timedelta
from decimal import Decimal

import pytest
from metered import NOVEMBER, OCTOBER, Metered

from meterhouse_billing import meter_close, meter_records, meter_sync
from meterhouse_billing.gateway import BillingError, StripeUnavailable
from meterhouse_rating.periods import Period
from meterhouse_store import audit_book, tables

HOUR = timedelta(hours=1)
MONTH = Period(OCTOBER, NOVEMBER)


@pytest.fixture
def metered(books, sandbox):
    made = Metered(books.engine, sandbox.url)
    made.customer("acme")
    assert [step.text for step in made.setup() if step.failed] == []
    return made


def events(books):
    rows = books.rows(tables.meter_events)
    return sorted((row["hour"], row["version"], row["total"], row["state"]) for row in rows)


def test_five_documents_are_ten_cents_and_a_thousand_operations_twenty_dollars(metered):
    metered.truth.use("acme", "documents", OCTOBER, 5)
    assert metered.sync() == ["2026-10: 1 hourly total to send", "sent 1 of 1 hourly total"]
    assert metered.upcoming("acme") == 10
    metered.truth.use("acme", "operations", OCTOBER + HOUR / 2, 1000)
    metered.sync()
    assert metered.upcoming("acme") == 2010
    assert metered.sync() == []


def test_an_hour_has_its_newest_total_also_when_usage_comes_late_or_is_taken_back(books, metered):
    metered.at(OCTOBER + 5 * HOUR)
    for quantity in (5, 2):
        metered.truth.use("acme", "documents", OCTOBER, quantity)
        metered.sync()
    metered.truth.use("acme", "documents", OCTOBER + 3 * HOUR, 10)
    metered.sync()
    metered.truth.use("acme", "documents", OCTOBER, -3)  # 4 are left
    metered.truth.used.pop(("acme", "documents", OCTOBER + 3 * HOUR))  # and none of these
    metered.sync()
    assert metered.in_stripe("acme", "documents") == 4
    assert events(books) == [
        (OCTOBER, 1, 5, "delivered"),
        (OCTOBER, 2, 7, "delivered"),
        (OCTOBER, 3, 4, "delivered"),
        (OCTOBER + 3 * HOUR, 1, 10, "delivered"),
        (OCTOBER + 3 * HOUR, 2, 0, "delivered"),
    ]


def test_the_last_hour_of_a_month_stays_in_its_month_although_it_is_sent_in_the_next(metered):
    metered.truth.use("acme", "documents", NOVEMBER - timedelta(seconds=1), 7)
    metered.at(NOVEMBER + timedelta(minutes=10))
    metered.sync()
    assert metered.in_stripe("acme", "documents") == 7
    assert metered.in_stripe("acme", "documents", NOVEMBER, NOVEMBER + 48 * HOUR) == 0
    metered.at(NOVEMBER + HOUR)
    assert metered.sync() == ["acme: 2026-10 is compared: 2 of 2 meters equal"]
    [customer] = metered.client.v1.customers.list().data
    [invoice] = metered.client.v1.invoices.list({"customer": customer.id}).data
    assert invoice.total == 14


@pytest.mark.parametrize(
    "fault", ["dropped_before", "dropped_after", "409", "429", "saved_500", "saved_500_done", "slow"]
)
def test_a_fault_at_any_call_changes_no_total(metered, fault):
    for number in range(3):
        metered.truth.use("acme", "documents", OCTOBER + number * HOUR, 5)
    metered.at(OCTOBER + 4 * HOUR)
    metered.control("faults", {"script": [fault, fault, fault]})
    metered.sync()
    metered.truth.use("acme", "documents", OCTOBER, 1)
    metered.sync()
    assert metered.in_stripe("acme", "documents") == 16


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_killed_before_or_after_any_call_the_next_run_goes_on(metered, when, number):
    class Killed(BaseException):
        pass

    for hour in range(3):
        metered.truth.use("acme", "documents", OCTOBER + hour * HOUR, 5)
    metered.at(OCTOBER + 4 * HOUR)
    run, calls = metered.run(), 0
    send = run.gateway.send

    def killing(event, attempts):
        nonlocal calls
        calls += 1
        if calls == number and when == "before":
            raise Killed
        send(event, attempts)
        if calls == number:
            raise Killed

    run.gateway.send = killing
    list(meter_sync.plan(run))
    with pytest.raises(Killed):
        list(meter_sync.deliver(run))
    metered.truth.use("acme", "documents", OCTOBER + (number - 1) * HOUR, 1)
    metered.sync()
    assert metered.in_stripe("acme", "documents") == 16
    assert {state for _, _, _, state in events_of(metered)} <= {"delivered", "superseded"}


def events_of(metered):
    with metered.engine.connect() as connection:
        rows = connection.execute(tables.meter_events.select()).mappings().all()
    return [(row["hour"], row["version"], row["total"], row["state"]) for row in rows]


def test_after_an_outage_of_thirty_hours_everything_arrives_once(books, metered):
    metered.truth.use("acme", "documents", OCTOBER, 5)
    metered.at(OCTOBER + 2 * HOUR)
    metered.control("faults", {"script": ["dropped_after"] * 5})  # recorded, and never answered
    with pytest.raises(StripeUnavailable):
        metered.sync()
    for hour in range(2, 32):
        metered.at(OCTOBER + hour * HOUR)
        metered.control("faults", {"down": True})
        metered.truth.use("acme", "documents", metered.truth.now, 1)
        with pytest.raises(StripeUnavailable):
            metered.sync()
    metered.control("faults", {})
    metered.at(OCTOBER + 33 * HOUR)
    metered.sync()
    assert metered.in_stripe("acme", "documents") == 35
    # Only what was tried stands; the hours that waited have one event each.
    assert [version for _, version, _, _ in events(books)] == [1] * 31
    assert metered.sync() == []


def test_a_day_later_the_summary_is_read_before_anything_is_sent_again(metered):
    metered.truth.use("acme", "documents", OCTOBER, 5)
    metered.at(OCTOBER + 2 * HOUR)
    metered.control("faults", {"script": ["dropped_after"] * 5})
    with pytest.raises(StripeUnavailable):
        metered.sync()
    metered.at(OCTOBER + 30 * HOUR)
    metered.control("faults", {})
    run, sent = metered.run(), []
    run.gateway.send = lambda event, attempts: sent.append(event)
    list(meter_sync.deliver(run))
    assert sent == []
    assert [state for _, _, _, state in events_of(metered)] == ["delivered"]
    assert metered.in_stripe("acme", "documents") == 5


def test_an_older_total_is_never_sent_once_there_is_a_newer_one(metered, monkeypatch):
    """Both reach Stripe and nothing is written down; a day on Stripe has forgotten the older one's name only."""

    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    for hours, quantity in ((1, 5), (2, 2)):
        metered.at(OCTOBER + hours * HOUR)
        metered.truth.use("acme", "documents", OCTOBER, quantity)
        with monkeypatch.context() as patched, pytest.raises(Killed):
            patched.setattr(meter_records, "delivered", killed)
            metered.sync()
    metered.at(OCTOBER + 25.5 * HOUR)
    metered.sync()
    assert metered.in_stripe("acme", "documents") == 7
    assert {state for _, _, _, state in events_of(metered)} == {"delivered", "superseded"}


def test_a_rejection_is_matched_by_its_key_shown_with_a_next_step_and_mended(books, metered):
    from meterhouse_billing import news

    metered.truth.use("acme", "documents", OCTOBER, 5)
    [subscription] = metered.run().subscriptions
    stripe_id = subscription.metered[0].stripe_meter_id
    metered.client.v1.billing.meters.deactivate(stripe_id)
    metered.sync()
    assert metered.exceptions() == []  # Stripe took it
    # The report, as a webhook brings it; twice.
    from sqlalchemy import create_engine, text

    state = create_engine(f"sqlite:///{books.settings.data.parent}/sandbox/stripe.sqlite3")
    with state.connect() as connection:
        [body] = connection.execute(text("SELECT body FROM objects WHERE kind = 'thin_event'")).scalars()
    import json

    thin = {name: value for name, value in json.loads(body).items() if name != "data"}
    assert news.receive(books.engine, "test", json.dumps(thin), metered.truth.now)
    assert not news.receive(books.engine, "test", json.dumps(thin), metered.truth.now)
    [told] = news.process(metered.world)
    assert told.endswith("1 meter event of ours not counted")
    [exception] = metered.exceptions()
    assert "Stripe does not count 5 of test.documents." in exception.text
    assert "`meterhouse bill sync --repair 2026-10 --customer acme`" in exception.text
    assert "no_meter" in exception.text
    # It is not sent again by itself; mended, it is.
    assert not [step for step in metered.sync() if "to send" in step]
    state.dispose()


def test_reports_come_by_webhook_shuffled_and_twice_and_each_is_matched_once(books, tmp_path, serve, wait):
    """From the sandbox's signed deliveries through the endpoint; three events go to a meter that is gone."""
    import time

    from meterhouse_billing import news
    from meterhouse_billing.webhooks import application as endpoint
    from meterhouse_sandbox.stripe_server import application

    outcomes, worlds = [], []

    def work():
        for world in worlds:
            outcomes.extend(news.process(world))

    secret = "whsec_1"
    with serve(endpoint(books.engine, "test", secret, work)) as hook:
        stripes = application(tmp_path / "s", webhook_url=f"{hook.url}/webhooks/stripe", webhook_secret=secret)
        with serve(stripes) as server:
            made = Metered(books.engine, server.url)
            made.customer("acme")
            made.setup()
            made.control("faults", {"shuffle_webhooks": True, "repeat_webhooks": True, "seed": 5})
            [subscription] = made.run().subscriptions
            made.client.v1.billing.meters.deactivate(subscription.metered[0].stripe_meter_id)
            made.at(OCTOBER + 5 * HOUR)
            for hour in range(3):
                made.truth.use("acme", "documents", OCTOBER + hour * HOUR, 5 + hour)
            made.sync()
            worlds.append(made.world)
            wait(lambda: len(made.exceptions()) == 3, timeout_s=20)
            time.sleep(0.5)  # the repetitions, too
            assert sorted(step.text.split()[4] for step in made.exceptions()) == ["5", "6", "7"]
            told = [text for text in outcomes if "meter.no_meter_found" in text]
            assert [text.rpartition(": ")[2] for text in told] == ["1 meter event of ours not counted"] * 3


def late(metered):
    """7 documents of October were compared, and 3 came later; what the sync after that says."""
    metered.truth.use("acme", "documents", NOVEMBER - HOUR, 7)
    metered.at(NOVEMBER + HOUR)
    metered.sync()
    metered.truth.use("acme", "documents", NOVEMBER - 2 * HOUR, 3)
    metered.at(NOVEMBER + 2 * HOUR)
    return metered.sync()


def test_late_usage_of_a_closed_month_is_an_exception_and_sent_nowhere(metered):
    [told] = late(metered)
    assert told.startswith("acme: EXCEPTION: 2026-10: 3 of test.documents.")
    assert "came after the month was closed on 2026-11-01 01:00 UTC" in told
    assert metered.in_stripe("acme", "documents") == 7


def test_a_difference_that_is_seen_to_is_listed_no_more_until_it_changes(metered):
    assert len(late(metered)) == 1
    engine, told = metered.world.engine, {"who": "ann", "now": NOVEMBER + 3 * HOUR}
    with pytest.raises(BillingError, match="no difference to see to in 2026-10 of globex"):
        meter_close.handle(engine, "test", MONTH, "globex", why="cn_1", **told)
    with pytest.raises(BillingError, match="say in --why what was done"):
        meter_close.handle(engine, "test", MONTH, "acme", why=" ", **told)
    [it] = meter_close.handle(engine, "test", MONTH, "acme", why="invoice item ii_1 in Stripe", **told)
    assert (it.ours, it.later) == (7, 10)
    assert metered.exceptions() == [] and metered.sync() == []
    [noted] = audit_book.entries(engine, "test", what="meter difference")
    assert (noted.customer_id, noted.who, noted.why) == ("acme", "ann", "invoice item ii_1 in Stripe")
    assert {name: Decimal(it) for name, it in noted.details["added"].items()} == {"ours": 7, "stripes": 7, "later": 10}
    # Once is enough: nothing is left of it.
    with pytest.raises(BillingError, match="no difference to see to in 2026-10 of acme"):
        meter_close.handle(engine, "test", MONTH, "acme", why="again", **told)

    metered.truth.use("acme", "documents", NOVEMBER - 3 * HOUR, 1)
    metered.at(NOVEMBER + 4 * HOUR)
    [told] = metered.sync()
    assert "2026-10: 4 of test.documents." in told


def test_a_difference_at_the_months_end_has_a_next_step_that_mends_it(metered):
    metered.truth.use("acme", "documents", OCTOBER, 5)
    metered.truth.use("acme", "documents", OCTOBER + HOUR, 8)
    metered.at(OCTOBER + 3 * HOUR)
    metered.sync()
    # Somebody else reports to the same meter.
    [subscription] = metered.run().subscriptions
    payload = {"stripe_customer_id": subscription.stripe_customer_id, "value": "99"}
    name = subscription.metered[0].event_name
    metered.client.v1.billing.meter_events.create(
        {"event_name": name, "payload": payload, "timestamp": int((OCTOBER + HOUR).timestamp()) + 5}
    )
    metered.at(NOVEMBER + HOUR)
    told = metered.sync()
    assert told[0] == "acme: 2026-10 is compared: 1 of 2 meters equal"
    assert "2026-10: Stripe has 104 of test.documents." in told[1] and "used are 13" in told[1]
    assert [str(step) for step in meter_close.repair(metered.run(), MONTH, "acme")] == [
        "acme: 2026-10: 1 hourly total to send again",
        "sent 1 of 1 hourly total",
        "acme: 2026-10 is compared: 2 of 2 meters equal",
    ]
    assert metered.in_stripe("acme", "documents") == 13
    assert metered.exceptions() == []


def test_a_customer_and_meter_never_have_two_calls_in_flight(metered):
    metered.customer("globex")
    metered.setup()
    metered.at(OCTOBER + 30 * HOUR)
    for name in ("acme", "globex"):
        for hour in range(20):
            metered.truth.use(name, "documents", OCTOBER + hour * HOUR, 1)
    run, flying, most = metered.run(), set(), set()
    send = run.gateway.send

    def watched(event, attempts):
        assert event.lane not in flying
        flying.add(event.lane)
        most.add(len(flying))
        send(event, attempts)
        flying.discard(event.lane)

    run.gateway.send = watched
    list(meter_sync.plan(run))
    list(meter_sync.deliver(run))
    assert max(most) == 2
    assert metered.in_stripe("acme", "documents") == metered.in_stripe("globex", "documents") == 20


def test_only_one_run_of_a_namespace_is_at_work(metered):
    from meterhouse_billing.meter_lock import Busy, alone

    with alone(metered.engine, "test"):
        with pytest.raises(Busy), alone(metered.engine, "test"):
            pass
        with alone(metered.engine, "other"):
            pass


def test_the_pace_never_lets_more_calls_through_in_any_second():
    from meterhouse_billing.pace import Pace

    now, begun = 0.0, []

    def sleep(seconds):
        nonlocal now
        now += seconds

    pace = Pace(25, clock=lambda: now, sleep=sleep)
    for number in range(200):
        now += 0.001 * (number % 7)
        pace.wait()
        begun.append(now)
    assert max(sum(first <= at < first + 1 for at in begun) for first in begun) == 25
    assert begun[-1] < 200 / 25 * 1.1


def test_usage_that_is_no_whole_number_is_an_exception_and_the_rest_is_sent(metered):
    metered.truth.use("acme", "operations", OCTOBER, 4)
    metered.truth.used["acme", "documents", OCTOBER] = "1.5"
    told = metered.sync()
    assert "1.5 in the hour from 2026-10-01 00:00 is no whole number" in told[1]
    assert metered.in_stripe("acme", "operations") == 4
    assert metered.in_stripe("acme", "documents") == 0


def test_everything_is_written_down_before_it_is_sent(metered):
    metered.truth.use("acme", "documents", OCTOBER, 5)
    run = metered.run()
    list(meter_sync.plan(run))
    assert [state for _, _, _, state in events_of(metered)] == ["pending"]
    assert metered.in_stripe("acme", "documents") == 0

    def look(event, attempts):
        [row] = [it for lane in meter_records.pending(metered.engine, "test").values() for it in lane]
        assert (row.identifier, row.attempts, row.sent_at) == (event.identifier, 1, metered.truth.now)

    run.gateway.send = look
    list(meter_sync.deliver(run))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_random_month_of_crashes_faults_and_outages_ends_exact(tmp_path, sandbox, seed):
    """Many more of these: `make prove ONLY=billing`."""
    from meter_months import check

    assert check(seed, tmp_path / "data", sandbox.url) == []


def test_on_postgresql_it_is_the_same(tmp_path, sandbox, postgres_url):
    from meter_months import check

    from meterhouse_billing.meter_lock import Busy, alone
    from meterhouse_store.settings import Settings
    from meterhouse_store.sql import open_engine

    assert check(4, tmp_path / "data", sandbox.url, postgres_url) == []
    engine = open_engine(Settings(data=tmp_path / "data", namespace="test", sql_url=postgres_url))
    with alone(engine, "test"), pytest.raises(Busy), alone(engine, "test"):
        pass
    with alone(engine, "test"):
        pass
    engine.dispose()
