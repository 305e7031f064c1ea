"""The sandbox's billing meters, seen by the real stripe SDK over HTTP."""

import json
import urllib.request
from datetime import UTC, datetime

import pytest
import stripe

HOUR = 3600
OCTOBER = int(datetime(2026, 10, 1, tzinfo=UTC).timestamp())
NOVEMBER = int(datetime(2026, 11, 1, tzinfo=UTC).timestamp())


def control(sandbox, what, said):
    request = urllib.request.Request(
        f"{sandbox.url}/_sandbox/{what}", json.dumps(said).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)


@pytest.fixture
def client(sandbox):
    control(sandbox, "clock", {"now": OCTOBER + 10 * HOUR})
    return sandbox.client


def meter(client, name="documents", **more):
    return client.v1.billing.meters.create(
        {"display_name": name, "event_name": name, "default_aggregation": {"formula": "sum"}, **more}
    )


def send(client, customer, value, at, identifier, *, key=None, name="documents"):
    params = {
        "event_name": name,
        "identifier": identifier,
        "timestamp": at,
        "payload": {"stripe_customer_id": customer, "value": str(value)},
    }
    return client.v1.billing.meter_events.create(params, {"idempotency_key": key} if key else None)


def total(client, made, customer, start=OCTOBER, end=NOVEMBER):
    params = {"customer": customer, "start_time": start, "end_time": end}
    found = client.v1.billing.meters.event_summaries.list(made.id, params).data
    return [summary.aggregated_value for summary in found]


def refusal(call):
    with pytest.raises(stripe.StripeError) as caught:
        call()
    return caught.value


def test_raw_events_add_up_and_of_a_pre_aggregated_hour_the_newest_counts(client):
    acme = client.v1.customers.create({"name": "Acme"}).id
    raw, hourly = meter(client, "raw"), meter(client, "hourly", event_time_window="hour")
    for name in ("raw", "hourly"):
        send(client, acme, 5, OCTOBER, f"{name}-1", name=name)
        send(client, acme, 7, OCTOBER + 30, f"{name}-2", name=name)
        send(client, acme, 100, OCTOBER + HOUR, f"{name}-3", name=name)
    assert total(client, raw, acme) == [112]
    assert total(client, hourly, acme) == [107]
    assert total(client, hourly, acme, OCTOBER, OCTOBER + HOUR) == [7]
    assert total(client, hourly, acme, OCTOBER + 2 * HOUR, OCTOBER + 3 * HOUR) == []


def test_an_identifier_is_taken_once_within_a_day_and_again_after_it(sandbox, client):
    acme, made = client.v1.customers.create({"name": "Acme"}).id, meter(client)
    send(client, acme, 5, OCTOBER, "one")
    again = refusal(lambda: send(client, acme, 5, OCTOBER, "one"))
    assert (again.http_status, again.user_message) == (400, "An event already exists with identifier one.")
    control(sandbox, "clock", {"now": OCTOBER + 10 * HOUR + 25 * HOUR})
    send(client, acme, 5, OCTOBER, "one")
    assert total(client, made, acme) == [10]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"identifier": "x" * 101}, "identifier must be at most 100 characters"),
        ({"event_name": "x" * 101}, "event_name must be at most 100 characters"),
        ({"timestamp": OCTOBER + 11 * HOUR}, "up to 5 minutes in the future"),
        ({"timestamp": OCTOBER + 10 * HOUR - 35 * 24 * HOUR - 1}, "within the past 35 calendar days"),
        ({"colour": "red"}, "unknown parameter: colour"),
    ],
)
def test_what_can_be_seen_at_once_is_refused_at_once(client, changed, words):
    acme = client.v1.customers.create({"name": "Acme"}).id
    meter(client)
    params = {"event_name": "documents", "identifier": "a", "timestamp": OCTOBER + 10 * HOUR}
    params |= {"payload": {"stripe_customer_id": acme, "value": "1"}} | changed
    assert words in refusal(lambda: client.v1.billing.meter_events.create(params)).user_message


@pytest.mark.parametrize(
    ("name", "customer", "value", "code"),
    [
        ("documents", "cus_nobody", "1", "meter_event_customer_not_found"),
        ("documents", None, "1.5", "meter_event_invalid_value"),
        ("documents", None, "1234567890123456", "meter_event_value_too_many_digits"),
        ("pages", None, "1", "no_meter"),
    ],
)
def test_what_does_not_count_is_taken_and_reported_with_the_idempotency_key(
    tmp_path, serve, wait, name, customer, value, code
):
    from meterhouse_sandbox.stripe_server import application

    taken = []

    async def endpoint(scope, receive, send_reply):
        message = await receive()
        taken.append(json.loads(message["body"]))
        await send_reply({"type": "http.response.start", "status": 200, "headers": []})
        await send_reply({"type": "http.response.body", "body": b""})

    async def app(scope, receive, send_reply):
        if scope["type"] == "http":
            await endpoint(scope, receive, send_reply)

    with serve(app) as hook:
        stripes = application(tmp_path, webhook_url=hook.url + "/x", webhook_secret="whsec_1")
        with serve(stripes) as server:
            client = stripe.StripeClient("sk_test_1", base_addresses={"api": server.url})
            acme, made = client.v1.customers.create({"name": "Acme"}).id, meter(client)
            at = int(client.v1.customers.retrieve(acme).created)
            send(client, customer or acme, value, at, "one", key="the-key", name=name)
            wait(lambda: any(event["object"] == "v2.core.event" for event in taken))
            [thin] = [event for event in taken if event["object"] == "v2.core.event"]
            assert "data" not in thin
            full = client.v2.core.events.retrieve(thin["id"])
            [kind] = full.data.reason.error_types
            assert (kind.code, kind.sample_errors[0].request.identifier) == (code, "the-key")
            assert total(client, made, acme, at - at % 60, at - at % 60 + 60) == []


def test_a_cancelled_event_counts_no_more_and_only_within_a_day(sandbox, client):
    acme, made = client.v1.customers.create({"name": "Acme"}).id, meter(client)
    send(client, acme, 5, OCTOBER, "one")
    send(client, acme, 7, OCTOBER, "two")
    cancel = {"event_name": "documents", "type": "cancel", "cancel": {"identifier": "one"}}
    client.v1.billing.meter_event_adjustments.create(cancel)
    assert total(client, made, acme) == [7]
    control(sandbox, "clock", {"now": OCTOBER + 40 * HOUR})
    late = refusal(lambda: client.v1.billing.meter_event_adjustments.create(cancel | {"cancel": {"identifier": "two"}}))
    assert late.code == "resource_missing"


@pytest.mark.parametrize(
    ("price", "usage", "cents"),
    [
        ({"unit_amount_decimal": "0.05"}, 30, 2),  # Stripe's own example: 1.5 is rounded up
        ({"unit_amount_decimal": "2"}, 5, 10),
        (
            {
                "billing_scheme": "tiered",
                "tiers_mode": "graduated",
                "tiers": [
                    {"up_to": 5, "unit_amount": 700},
                    {"up_to": 10, "unit_amount": 650},
                    {"up_to": "inf", "unit_amount": 600},
                ],
            },
            20,
            3500 + 3250 + 6000,
        ),
        (
            {
                "billing_scheme": "tiered",
                "tiers_mode": "volume",
                "tiers": [
                    {"up_to": 5, "unit_amount": 700},
                    {"up_to": 10, "unit_amount": 650},
                    {"up_to": "inf", "unit_amount": 600},
                ],
            },
            6,
            3900,
        ),
    ],
    ids=["decimal", "per unit", "graduated", "volume"],
)
def test_a_month_of_usage_becomes_an_invoice_by_the_prices_formula(sandbox, client, price, usage, cents):
    """Amounts from https://docs.stripe.com/subscriptions/pricing-models/tiered-pricing and .../decimal-amounts."""
    acme, made = client.v1.customers.create({"name": "Acme"}).id, meter(client, event_time_window="hour")
    product = client.v1.products.create({"id": "mh_documents", "name": "Documents"})
    recurring = {"interval": "month", "usage_type": "metered", "meter": made.id}
    priced = client.v1.prices.create({"product": product.id, "currency": "usd", "recurring": recurring, **price})
    subscription = client.v1.subscriptions.create(
        {
            "customer": acme,
            "items": [{"price": priced.id}],
            "backdate_start_date": OCTOBER,
            "billing_cycle_anchor": NOVEMBER,
            "proration_behavior": "none",
        }
    )
    send(client, acme, usage - 1, OCTOBER, "one")
    control(sandbox, "clock", {"now": NOVEMBER + 1800})
    send(client, acme, 1, NOVEMBER - HOUR, "two")  # late, while the invoice is a draft
    assert client.v1.invoices.create_preview({"subscription": subscription.id}).total == cents
    control(sandbox, "clock", {"now": NOVEMBER + 3600})
    send(client, acme, 1000, NOVEMBER - 2 * HOUR, "three")  # too late for this invoice, and for every other
    [invoice] = client.v1.invoices.list({"customer": acme}).data
    assert (invoice.total, invoice.period_start, invoice.period_end) == (cents, OCTOBER, NOVEMBER)
    assert client.v1.invoices.create_preview({"subscription": subscription.id}).total == 0


def test_the_fault_schedule_loses_requests_and_replies_and_keeps_its_500(sandbox, client):
    def create(key, name="Acme"):
        return client.v1.customers.create({"name": name}, {"idempotency_key": key})

    script = ["dropped_before", "dropped_after", "409", "429", "saved_500", "saved_500_done"]
    control(sandbox, "faults", {"script": script})
    problems = [refusal(lambda number=number: create(f"k{number}", f"n{number}")) for number in range(len(script))]
    assert [problem.http_status for problem in problems] == [None, None, 409, 429, 500, 500]
    names = {customer.name for customer in client.v1.customers.list({"limit": 100}).data}
    assert names == {"n1", "n5"}
    for number in (4, 5):  # kept under the key
        assert refusal(lambda number=number: create(f"k{number}", f"n{number}")).http_status == 500
    assert create("k0", "n0").name == "n0"


def test_above_a_published_limit_requests_are_refused_and_slow_ones_of_a_customer_exclude_each_other(tmp_path, serve):
    from concurrent.futures import ThreadPoolExecutor

    from meterhouse_sandbox.stripe_server import application

    with serve(application(tmp_path, limits=True)) as server:
        client = stripe.StripeClient("sk_test_1", base_addresses={"api": server.url})
        acme = client.v1.customers.create({"name": "Acme"}).id
        other = client.v1.customers.create({"name": "Globex"}).id
        meter(client)
        at = int(client.v1.customers.retrieve(acme).created)
        request = urllib.request.Request(f"{server.url}/_sandbox/faults", b'{"rates": {"slow": 1}, "slow_s": 0.3}')
        urllib.request.urlopen(request).close()

        def try_it(customer, name):
            try:
                send(client, customer, 1, at, name)
            except stripe.StripeError as problem:
                return problem.http_status
            return 200

        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(try_it, [acme, acme, other], ["a", "b", "c"]))
        assert sorted(found[:2]) == [200, 429] and found[2] == 200


def test_more_requests_within_a_second_than_stripe_publishes_are_refused():
    from meterhouse_sandbox.stripe_faults import Limits

    limits = Limits(on=True)
    assert [limits.refuses("GET /v1/customers") for _ in range(26)] == [None] * 25 + ["endpoint-rate"]
    assert [limits.refuses("GET /v1/customers/search") for _ in range(21)] == [None] * 20 + ["endpoint-rate"]
    assert [limits.refuses(f"GET /v1/{number}") for number in range(56)] == [None] * 55 + ["global-rate"]
    # Of their own, and not among the hundred of an account.
    assert [limits.refuses("POST /v1/billing/meter_events") for _ in range(1001)] == [None] * 1000 + ["endpoint-rate"]
    assert not any(Limits(on=False).refuses("GET /v1/customers") for _ in range(100))
