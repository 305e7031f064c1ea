"""A contract that ends on Stripe's meters: its subscription ends, and what is late is on an invoice that is made here.

Usage is in a real warehouse and rated as ever; Stripe is the sandbox, on the same clock.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from metered import BOOK, DECLARED, NOVEMBER, OCTOBER, Metered
from quick_stores import empty

from meterhouse_billing import drivers, meter_end, meter_reconcile, meter_usage, news, reconcile, records
from meterhouse_billing.run import bill
from meterhouse_rating import ledger_books
from meterhouse_rating.run import Request, close
from meterhouse_rating.world import World
from meterhouse_store import registry, schema, warehouse

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
DECEMBER = NOVEMBER + timedelta(days=30)


@dataclass
class Real:
    """The usage in the warehouse, by the clock of the test; in the place of `metered.Truth`."""

    world: World
    now: datetime = OCTOBER

    def __post_init__(self):
        world = World(self.world.engine, self.world.client, "test", DECLARED, lambda: self.now, lambda _s: None)
        self.world, self.source = world, meter_usage.Warehouse(world)

    def as_of(self):
        step = int(self.now.timestamp()) * 10**6
        row = ["c1", "s", int(self.now.timestamp()), self.now, step]
        columns = ["collector_id", "segment", "position", "projected_through", "step"]
        self.world.client.insert("checkpoints", [row], column_names=columns)
        return self.source.as_of()

    def hours(self, *asked):
        return self.source.hours(*asked)

    def use(self, quantity, when, received=None):
        received = received or when
        row = {"namespace": "test", "customer_id": "acme", "meter": "documents", "event_time": when}
        row |= {"event_id": f"{when:%d%H}{quantity}", "quantity": quantity, "status": "ok", "received_at": received}
        row |= {"first": 2**64 - 1 - int(received.timestamp()) * 10**9}
        self.world.client.insert("events", [list(row.values())], column_names=list(row))

    def take_away(self, quantity):
        self.world.client.command(
            "INSERT INTO events SELECT * REPLACE ('retracted' AS reason, toUInt64(18446744073709551615) AS first, "
            f"toDateTime64('{self.now:%Y-%m-%d %H:%M:%S}', 6, 'UTC') AS decided_at, 'd' AS decision_id) "
            f"FROM events FINAL WHERE quantity = {quantity}"
        )

    def close(self):
        self.as_of()
        list(close(self.world, Request(None), grace=HOUR, wait_s=0))


@pytest.fixture
def at_once(request):
    return getattr(request, "param", False)


@pytest.fixture
def metered(books, sandbox, warehouse_server, at_once):
    """200 and 50 documents in October, 5.00 USD, on the meters."""
    where = {"warehouse_url": warehouse_server.url(), "warehouse_database": "billing_tests"}
    settings = books.settings.model_copy(update=where)
    schema.ensure(warehouse.connect(settings, database="default"), settings.warehouse_database)
    client = warehouse.connect(settings)
    empty(client)
    truth = Real(World(books.engine, client, "test", DECLARED))
    book = BOOK.replace("rounding:", "plan_changes: {apply: at_once}\nrounding:") if at_once else BOOK
    made = Metered(books.engine, sandbox.url, truth=truth, book=book)
    registry.add_customer(
        books.engine, "test", "acme", plan="pay", currency="USD", time_zone="UTC", valid_from=OCTOBER, now=OCTOBER
    )
    made.switch("acme")
    assert [step.text for step in made.setup() if step.failed] == []
    for quantity in (200, 50):
        truth.use(quantity, OCTOBER + HOUR)
    yield made
    client.close()


def cancelled(metered, when=NOVEMBER):
    told = {"who": "ann", "why": "moved away", "now": metered.truth.now}
    registry.end_contract(metered.engine, "test", "acme", when, **told)


def round_of(metered):
    """`bill sync`; what it says of the subscription, and of what a person has to look at."""
    ends = [str(step) for step in meter_end.end(metered.run())]
    metered.sync()
    return ends, [str(step) for step in metered.exceptions()]


def invoices(metered):
    """Per invoice in Stripe: whether it is of a subscription, and its total; the earliest first."""
    found = metered.client.v1.invoices.list({"limit": 100}).data
    return [("parent" in it.to_dict(), it.total) for it in reversed(found) if it.total]


def billed(metered):
    """`bill run --approve`, and again; what it says of exceptions."""
    said = []
    for _ in range(2):
        said += bill(metered.world, records.drafts(metered.engine, "test"), approve=True)
    return [str(step) for step in said if step.failed]


def differences(metered):
    news.poll(metered.world)
    rows = reconcile.reconcile(metered.world, records.drafts(metered.engine, "test", every=True))
    drafts = records.drafts(metered.engine, "test", every=True, driver=drivers.METERS)
    rows += meter_reconcile.reconcile(metered.world, drafts, every=True)
    return [one.code for row in rows for one in row.differences]


def owed(metered):
    found = {it.account: it.amount_minor for it in ledger_books.balances(metered.engine, "test", "acme", None)}
    return found.get("receivable", 0)


def closes_with_stripes_invoice_alone(metered):
    """The month of 500 is closed: Stripe's meters have invoiced all of it, and there is nothing left to bill."""
    metered.truth.close()
    assert billed(metered) == [] and invoices(metered) == [(True, 500)]
    assert (owed(metered), differences(metered)) == (500, [])


def subscription(metered):
    [found] = metered.client.v1.subscriptions.list({"limit": 10, "status": "all"}).data
    return found


def test_a_subscription_ends_with_the_contract_and_nothing_after_it_is_billed(metered):
    metered.at(OCTOBER + 20 * DAY)
    cancelled(metered)
    name = subscription(metered).id
    assert round_of(metered) == ([f"acme: {name} ends in Stripe on 2026-11-01"], [])
    metered.truth.use(30, NOVEMBER + DAY)
    for moment in (NOVEMBER + 2 * HOUR, NOVEMBER + 2 * DAY, DECEMBER + 2 * HOUR):
        metered.at(moment)
        assert round_of(metered) == ([], [])
    assert subscription(metered).status == "canceled"
    assert invoices(metered) == [(True, 500)]
    closes_with_stripes_invoice_alone(metered)


def test_an_end_that_is_taken_back_lets_the_subscription_go_on(metered):
    metered.at(OCTOBER + 10 * DAY)
    cancelled(metered)
    name = subscription(metered).id
    round_of(metered)
    metered.at(OCTOBER + 11 * DAY)
    registry.withdraw_contract(metered.engine, "test", "acme", NOVEMBER, now=metered.truth.now)
    assert round_of(metered) == ([f"acme: {name} goes on"], [])
    metered.truth.use(30, NOVEMBER + DAY)
    for moment in (NOVEMBER + 2 * DAY, DECEMBER + 2 * HOUR):
        metered.at(moment)
        round_of(metered)
    assert invoices(metered) == [(True, 500), (True, 60)]


def test_what_is_late_after_the_end_of_the_contract_is_invoiced_once(metered):
    """10 documents of October, 0.20, arrive in November; in December they are on an invoice that is none of the
    subscription's.
    """
    metered.at(OCTOBER + 20 * DAY)
    cancelled(metered)
    round_of(metered)
    metered.at(NOVEMBER + 2 * HOUR)
    round_of(metered)
    metered.truth.close()
    metered.truth.use(10, OCTOBER + 2 * HOUR, received=NOVEMBER + 5 * DAY)
    metered.at(NOVEMBER + 6 * DAY)
    _, [waits] = round_of(metered)
    assert "10 of" in waits and "`meterhouse bill run` invoices the correction" in waits
    metered.at(DECEMBER + 2 * HOUR)
    round_of(metered)
    metered.truth.close()
    assert billed(metered) == []
    assert invoices(metered) == [(True, 500), (False, 20)]
    assert owed(metered) == 520
    metered.at(DECEMBER + 2 * DAY)
    metered.truth.close()
    assert billed(metered) == [] and invoices(metered) == [(True, 500), (False, 20)]


def test_what_is_taken_away_after_the_end_of_the_contract_comes_back(metered):
    """50 documents, 1.00: of 5.00 that are owed 4.00 are left. A person approves the credit, as any."""
    metered.at(OCTOBER + 20 * DAY)
    cancelled(metered)
    round_of(metered)
    metered.at(NOVEMBER + 2 * HOUR)
    round_of(metered)
    metered.truth.close()
    metered.at(NOVEMBER + 6 * DAY)
    metered.truth.take_away(50)
    round_of(metered)
    metered.at(DECEMBER + 2 * HOUR)
    metered.truth.close()
    assert all("-1.00 USD is a credit, which no run approves" in it for it in billed(metered))
    assert owed(metered) == 400
    assert invoices(metered) == [(True, 500), (False, -100)]


@pytest.mark.parametrize("at_once", [True], indirect=True)
def test_a_contract_that_ends_within_the_month_is_billed_up_to_then(metered):
    """On 11 October, told on the 15th: the 30 documents of the 12th were sent, and are taken back in Stripe."""
    metered.truth.use(30, OCTOBER + 11 * DAY)
    metered.at(OCTOBER + 14 * DAY)
    round_of(metered)
    assert metered.in_stripe("acme", "documents") == 280
    cancelled(metered, OCTOBER + 10 * DAY)
    round_of(metered)
    assert metered.in_stripe("acme", "documents") == 250
    metered.at(NOVEMBER + 2 * HOUR)
    assert round_of(metered)[1] == []
    closes_with_stripes_invoice_alone(metered)


def test_a_contract_that_ends_within_an_hour_is_billed_to_the_moment_and_again_from_the_next_one_on(metered):
    end = datetime(2026, 10, 15, 10, 20, tzinfo=UTC)
    for minutes, quantity in ((-10, 30), (0, 40), (10, 500), (20, 7), (25, 1)):
        metered.truth.use(quantity, end + timedelta(minutes=minutes))
    cancelled(metered, end)
    registry.add_customer(
        metered.engine, "test", "acme", plan="pay", currency="USD", time_zone="UTC",
        valid_from=end + timedelta(minutes=20), now=OCTOBER,
    )  # fmt: skip
    metered.at(datetime(2026, 10, 16, tzinfo=UTC))
    assert round_of(metered)[1] == []
    # 250 of the first hour; of the other one 30 before the end, and 8 of the contract that follows.
    assert metered.in_stripe("acme", "documents") == 250 + 30 + 8


def test_an_end_that_is_told_after_it_ends_the_subscription_at_once_and_leaves_the_month_before_invoiced(metered):
    """On 3 November, when 30 documents of the 2nd were sent: they are not billed."""
    metered.at(OCTOBER + 20 * DAY)
    round_of(metered)
    metered.truth.use(30, NOVEMBER + DAY)
    metered.at(NOVEMBER + 2 * DAY)
    round_of(metered)
    cancelled(metered)
    name = subscription(metered).id
    assert round_of(metered) == ([f"acme: {name} is ended in Stripe: billed by invoices since 2026-11-01"], [])
    metered.at(DECEMBER + 2 * HOUR)
    assert round_of(metered) == ([], [])
    closes_with_stripes_invoice_alone(metered)


def test_who_comes_back_is_on_invoices_until_the_next_switch(metered):
    metered.at(OCTOBER + 20 * DAY)
    cancelled(metered)
    registry.add_customer(metered.engine, "test", "acme", plan="pay", valid_from=DECEMBER, now=metered.truth.now)
    known = drivers.drivers(metered.engine, "test")
    assert [drivers.driver_at(known, "acme", it) for it in (OCTOBER, NOVEMBER, DECEMBER)] == [
        "meters",
        "invoices",
        "invoices",
    ]
    metered.switch("acme", "meters", DECEMBER)
    assert drivers.driver_at(drivers.drivers(metered.engine, "test"), "acme", DECEMBER) == "meters"
