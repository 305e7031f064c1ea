"""`bill driver` and `bill setup`: what the meter driver needs in Stripe, made once, to the cent or not at all."""

import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
import stripe
from metered import BOOK, DECLARED, NOVEMBER, OCTOBER, Metered

from meterhouse_billing import drivers, records
from meterhouse_billing.gateway import BillingError, StripeUnavailable
from meterhouse_billing.meter_prices import NotExpressible, offer
from meterhouse_billing.meter_setup import Choice, payment_link
from meterhouse_rating.book import parse
from meterhouse_store import registry

HEAD = """
book: b
currency: USD
rounding: half_up
metrics:
  documents: {unit: document, meters: [documents]}
  seconds: {unit: second, meters: [agent.seconds]}
  distinct: {unit: model, meters: [operations], aggregate: unique, of: model}
plans:
  pay:
    components:
"""


@pytest.fixture
def metered(books, sandbox):
    made = Metered(books.engine, sandbox.url)
    made.customer("acme", email="acme@example.com", name="Acme")
    return made


def objects(client):
    """How many objects of each kind Stripe has."""
    v1 = client.v1
    products = {price.product for price in v1.prices.list({"limit": 100}).data}
    return {
        "meters": len(v1.billing.meters.list({"limit": 100}).data),
        "prices": len(v1.prices.list({"limit": 100}).data),
        "products": len(products),
        "customers": len(v1.customers.list({"limit": 100}).data),
        "subscriptions": len(v1.subscriptions.list({"limit": 100}).data),
    }


CUSTOMER = 6  # the call that makes it
EXPECTED = {"meters": 2, "prices": 2, "products": 2, "customers": 1, "subscriptions": 1}


def test_set_up_twice_makes_everything_once(metered):
    first = metered.setup()
    assert [step.text.partition(":")[0] for step in first] == [
        "product documents/documents",
        "meter documents",
        "price documents/documents",
        "product operations/operations",
        "meter operations",
        "price operations/operations",
        "customer",
        "subscription",
    ]
    assert objects(metered.client) == EXPECTED
    [subscription] = metered.client.v1.subscriptions.list().data
    assert (subscription.start_date, subscription.billing_cycle_anchor) == (1790812800, 1793491200)
    assert metered.setup() == []
    assert objects(metered.client) == EXPECTED


@pytest.mark.sampled(10)
@pytest.mark.parametrize(
    ("fault", "call"),
    [
        *(("dropped_after", call) for call in range(8)),
        *((fault, call) for fault in ("dropped_before", "saved_500", "saved_500_done") for call in (0, 2, 6, 7)),
    ],
)
def test_stopped_at_any_call_the_next_run_makes_the_rest(metered, fault, call):
    from meterhouse_billing.gateway import ATTEMPTS

    # The call, and all its repetitions, meet the fault; the run ends there.
    slow = ["slow"] * call
    metered.control("faults", {"script": [*slow, *[fault] * ATTEMPTS], "slow_s": 0})
    with pytest.raises(StripeUnavailable):
        metered.setup()
    metered.control("faults", {})
    if call == CUSTOMER and fault == "saved_500":  # Stripe repeats it for a day, and its search may lag behind
        with pytest.raises(StripeUnavailable):
            metered.setup()
        metered.at(metered.truth.now + timedelta(hours=25))
    metered.setup()
    assert objects(metered.client) == EXPECTED
    assert metered.setup() == []


def test_a_dry_run_shows_what_would_be_sent_and_sends_nothing(metered):
    steps = metered.setup(dry_run=True)
    assert objects(metered.client) == dict.fromkeys(EXPECTED, 0)
    requests = [step.request for step in steps]
    assert [request["operation"] for request in requests] == [
        *("product.create", "meter.create", "price.create") * 2,
        "customer.create",
        "subscription.create",
    ]
    price = requests[2]["params"]
    assert (price["unit_amount_decimal"], price["currency"], price["recurring"]) == (
        "2",
        "usd",
        {"interval": "month", "usage_type": "metered", "meter": "(new meter documents)"},
    )


def test_a_customer_of_stripe_is_adopted_by_name_and_never_by_its_address_alone(metered):
    theirs = metered.client.v1.customers.create({"name": "Acme Inc", "email": "acme@example.com"}).id
    [problem] = [step for step in metered.setup() if step.failed]
    assert theirs in problem.text and f"--map acme={theirs}" in problem.text and "--new acme" in problem.text
    assert len(metered.client.v1.customers.list().data) == 1
    steps = metered.setup(Choice({"acme": theirs}))
    assert [step.text for step in steps if step.failed] == []
    shown = metered.client.v1.customers.retrieve(theirs)
    assert shown.metadata["meterhouse_customer_id"] == "acme" and shown.name == "Acme Inc"
    [customer] = [it for it in registry.customers(metered.engine, "test") if it.customer_id == "acme"]
    assert customer.stripe_customer_id == theirs
    assert objects(metered.client) == EXPECTED
    metered.customer("globex")
    [problem] = [step for step in metered.setup(Choice({"globex": theirs})) if step.failed]
    assert f"{theirs} is the customer acme of test already" in problem.text


def test_a_second_customer_of_the_same_address_is_made_when_the_operator_says_so(metered):
    metered.client.v1.customers.create({"name": "Acme Inc", "email": "acme@example.com"})
    metered.setup(Choice({}, frozenset({"acme"})))
    assert objects(metered.client) == EXPECTED | {"customers": 2}


def test_a_customer_whose_metadata_is_ours_is_found_again(metered):
    metadata = {"meterhouse_namespace": "test", "meterhouse_customer_id": "acme"}
    metered.client.v1.customers.create({"name": "Acme", "metadata": metadata})
    metered.setup()
    assert objects(metered.client) == EXPECTED


def test_a_hosted_page_takes_the_customers_card(metered):
    import urllib.request

    with pytest.raises(BillingError, match="is not in Stripe yet"):
        payment_link(metered.world, "acme", "https://example.com/thanks")
    metered.setup()
    url = payment_link(metered.world, "acme", "https://example.com/thanks")
    with urllib.request.urlopen(url) as page:
        assert "Leave a test card" in page.read().decode()


# ---- which driver


def test_a_customer_has_one_driver_from_a_months_edge_on(books, metered):
    known = drivers.drivers(books.engine, "test")
    assert [drivers.driver_at(known, "acme", at) for at in (OCTOBER - timedelta(seconds=1), OCTOBER, NOVEMBER)] == [
        "invoices",
        "meters",
        "meters",
    ]
    assert drivers.driver_at(known, "globex", NOVEMBER) == "invoices"


@pytest.mark.parametrize(
    ("driver", "start", "words"),
    [
        ("invoices", OCTOBER + timedelta(days=3), "is within a month of acme"),
        ("invoices", OCTOBER - timedelta(days=30), "is over: switch from 2026-10-01 on"),
        ("invoices", OCTOBER, "usage of it was sent to Stripe's meters"),
        ("pigeon", NOVEMBER, "choose from invoices, meters"),
    ],
)
def test_a_switch_that_would_bill_twice_or_not_at_all_is_refused(metered, driver, start, words):
    metered.setup()
    metered.truth.use("acme", "documents", OCTOBER, 5)
    metered.sync()
    with pytest.raises(BillingError, match=words):
        metered.switch("acme", driver, start)


def test_a_switch_that_is_taken_back_makes_no_second_subscription(metered):
    metered.setup()
    with pytest.raises(BillingError, match="is billed by meters from 2026-11-01 on already"):
        metered.switch("acme", "meters", NOVEMBER)
    metered.switch("acme", "invoices", NOVEMBER)
    metered.truth.now += timedelta(seconds=1)
    metered.switch("acme", "meters", NOVEMBER)
    assert metered.setup() == []
    assert objects(metered.client) == EXPECTED
    assert metered.exceptions() == []


def test_what_stripes_meters_bill_is_on_no_invoice_of_ours_and_a_month_invoiced_cannot_be_metered(books, metered):
    books.rating("globex", [("usage", "documents", "5", 10)])
    [draft] = records.drafts(books.engine, "test")
    records.record(books.engine, draft, who="anna", now=metered.truth.now)
    with pytest.raises(BillingError, match="an invoice of it is made"):
        metered.switch("globex")
    registry.add_customer(books.engine, "test", "initech", plan="pay", currency="USD", now=OCTOBER)
    metered.switch("initech")
    books.rating("initech", [("usage", "documents", "5", 10)])
    assert [draft.customer_id for draft in records.drafts(books.engine, "test")] == ["globex"]


# ---- what Stripe can express


@pytest.mark.parametrize(
    ("component", "reason"),
    [
        ("{model: per_unit, metric: documents, by: [model], prices: [{model: a, price: 1}], default: 2}", "by model"),
        ("{model: per_unit, metric: seconds, price: 0.01}", "agent.seconds is no meter of whole numbers"),
        ("{model: per_unit, metric: distinct, price: 1}", "distinct is unique over the month"),
        ("{model: per_unit, metric: documents, per: 100_000_000_000_000, price: 0.07}", "more than 12 decimals"),
        ("{model: package, metric: documents, size: 10, price: 1}", "no price like package"),
        (
            "{model: graduated, metric: documents, tiers: [{up_to: 3, price: 0.005}, {price: 0.01}]}",
            "the tier up to 3 comes to 0.015 USD",
        ),
        (
            "{model: graduated, metric: documents, tiers: [{up_to: 3, price: 1, flat: 5}, {price: 0.01}]}",
            "its first tier has a flat fee",
        ),
        ("{model: graduated, metric: documents, tiers: [{up_to: 2.5, price: 2}, {price: 1}]}", "a tier ends at 2.5"),
    ],
)
def test_a_price_that_stripe_cannot_express_exactly_is_refused_and_says_why(component, reason):
    book = parse(f"{HEAD}      it: {component}\n")
    with pytest.raises(NotExpressible) as refused:
        offer(book, book.plans["pay"], "USD", DECLARED, "test")
    assert any(reason in told for told in refused.value.reasons), refused.value.reasons
    assert "bill such customers by invoices" in str(refused.value)


def test_halves_of_a_cent_need_the_rounding_that_stripe_has():
    text = BOOK.replace("half_up", "half_even").replace("price: 0.02", "price: 0.005")
    book = parse(text)
    with pytest.raises(NotExpressible, match="write `rounding: half_up`"):
        offer(book, book.plans["pay"], "USD", DECLARED, "test")
    whole = parse(BOOK.replace("half_up", "half_even"))
    assert len(offer(whole, whole.plans["pay"], "USD", DECLARED, "test")) == 2
    with pytest.raises(NotExpressible, match="it is in USD, the customer pays in EUR"):
        offer(whole, whole.plans["pay"], "EUR", DECLARED, "test")


@pytest.mark.parametrize(
    ("made", "start", "words"),
    [
        (
            {"time_zone": "Europe/Berlin"},
            datetime(2026, 9, 30, 22, tzinfo=UTC),
            "its months are those of Europe/Berlin",
        ),
        ({}, OCTOBER, "its plan has a monthly fee (base)"),
    ],
)
def test_what_a_customer_has_beside_its_plan_is_refused(books, sandbox, made, start, words):
    text = BOOK + "      base: {model: flat, price: 49.00}\n"
    metered = Metered(books.engine, sandbox.url, book=text)
    registry.add_customer(books.engine, "test", "acme", plan="pay", currency="USD", now=OCTOBER, **made)
    metered.switch("acme", start=start)
    [step] = metered.setup()
    assert step.failed and words in step.text


# ---- parity: Stripe's amount is the rated one


PLANS = {
    "per unit": "{model: per_unit, metric: documents, per: 1000, price: 0.37}",
    "graduated": "{model: graduated, metric: documents, per: 100, tiers: "
    "[{up_to: 200, price: 0.505}, {up_to: 1000, price: 0.2, flat: 3}, {price: 0.137}]}",
    "volume": "{model: volume, metric: documents, tiers: "
    "[{up_to: 10, price: 0.005}, {up_to: 200, price: 0.0033, flat: 1.5}, {price: 0.002}]}",
    "flat with included": "{model: flat, price: 49.00, included: {documents: 100}, overage: "
    "{documents: {per: 100, tiers: [{up_to: 200, price: 0.5}, {price: 0.333}]}}}",
}


@pytest.mark.parametrize("name", PLANS)
def test_for_random_usage_stripe_bills_to_the_cent_what_is_rated(tmp_path, name):
    """The sandbox's formulas are written out from Stripe's documentation and know nothing of ours."""
    import json

    from simple_amounts import rated_cents

    from meterhouse_sandbox import stripe_prices

    text = f"{HEAD}      it: {PLANS[name]}\n"
    book = parse(text)
    items = offer(book, book.plans["pay"], "USD", DECLARED, "test")
    chance = random.Random(7)
    edges = [0, 1, 9, 10, 11, 99, 100, 101, 199, 200, 201, 299, 300, 301, 500, 999, 1000, 1001]
    for quantity in [*edges, *(chance.randrange(10_000) for _ in range(300))]:
        cents = 0
        for item in items:
            said = json.loads(json.dumps(item.price))
            price = {"tiers_mode": None, "tiers": [], "unit_amount_decimal": None} | said
            for tier in price["tiers"]:
                tier["up_to"] = None if tier["up_to"] == "inf" else tier["up_to"]
                tier.setdefault("flat_amount", None)
            units = Decimal(1) if item.event_name is None else Decimal(quantity)
            cents += sum(amount for _, _, amount in stripe_prices.lines(price, units))
        assert cents == rated_cents(book, quantity), quantity


def test_the_sdk_carries_small_prices_to_stripe_as_they_are(books, sandbox):
    text = BOOK.replace("metric: documents, price: 0.02", "metric: documents, per: 1_000_000, price: 0.000000001")
    metered = Metered(books.engine, sandbox.url, book=text)
    metered.customer("acme")
    [problem] = [step for step in metered.setup() if step.failed]
    assert "more than 12 decimals" in problem.text
    metered = Metered(books.engine, sandbox.url, book=text.replace("0.000000001", "0.00003"))
    metered.setup()
    prices = metered.client.v1.prices.list({"limit": 100}).data
    assert Decimal("0.000000003") in {Decimal(price.unit_amount_decimal) for price in prices}
    assert isinstance(prices[0], stripe.Price)
