"""`meterhouse bill driver, setup, sync, meters, link` from outside: a real warehouse, the real SDK, the sandbox."""

import json
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from quick_stores import empty
from typer.testing import CliRunner

from meterhouse_billing import meter_records
from meterhouse_billing.commands import bill
from meterhouse_billing.meter_records import Frozen
from meterhouse_rating import versions
from meterhouse_rating.contract_commands import contracts
from meterhouse_rating.periods import month_of
from meterhouse_store import registry, schema, warehouse
from meterhouse_store.meters import declared

BOOK = """
book: b
currency: USD
metrics:
  documents: {unit: document, meters: [api.calls]}
  operations: {unit: operation, meters: [tool.calls]}
plans:
  pay:
    components:
      documents: {model: per_unit, metric: documents, price: 0.02}
      operations: {model: per_unit, metric: operations, price: 0.02}
  by-model:
    components:
      documents: {model: per_unit, metric: documents, by: [model], prices: [{model: a, price: 0.02}], default: 0.03}
"""


@pytest.fixture
def call(books, sandbox, monkeypatch):
    for name in ("STRIPE_SECRET_KEY", "STRIPE_WEBHOOK_SECRET", "METERHOUSE_WAREHOUSE_URL", "METERHOUSE_METERS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"METERHOUSE_DATA": str(books.settings.data), "METERHOUSE_NAMESPACE": "test"}.items():
        monkeypatch.setenv(name, value)
    for name, value in sandbox.environment.items():
        monkeypatch.setenv(name, value)
    units = {name: meter.unit for name, meter in declared(books.settings).items()}
    versions.publish(books.engine, "test", BOOK, units, author="anna")
    registry.add_customer(books.engine, "test", "acme", name="Acme", plan="pay")
    return lambda *arguments: CliRunner().invoke(bill, list(arguments))


@pytest.fixture
def client(books, warehouse_server, monkeypatch):
    """The warehouse, empty."""
    where = {"warehouse_url": warehouse_server.url(), "warehouse_database": "billing_tests"}
    settings = books.settings.model_copy(update=where)
    schema.ensure(warehouse.connect(settings, database="default"), settings.warehouse_database)
    for name, value in where.items():
        monkeypatch.setenv(f"METERHOUSE_{name.upper()}", value)
    found = warehouse.connect(settings)
    empty(found)
    yield found
    found.close()


def use(client, meter, quantity, event_id, status="ok", now=None):
    now = now or datetime.now(UTC)
    row = {
        "namespace": "test",
        "customer_id": "acme",
        "meter": meter,
        "event_id": event_id,
        "event_time": now,
        "quantity": quantity,
        "status": status,
        "received_at": now,
        "first": 1,
    }
    client.insert("events", [list(row.values())], column_names=list(row))
    at = datetime.now(UTC)
    columns = ["collector_id", "segment", "position", "projected_through", "step"]
    client.insert(
        "checkpoints", [["c1", "s", int(at.timestamp()), at, int(at.timestamp() * 1e6)]], column_names=columns
    )


def test_five_documents_and_a_thousand_operations_from_the_warehouse_to_stripes_amount(call, client, sandbox):
    month = f"{datetime.now(UTC):%Y-%m}"
    assert "Nothing to do: no customer is billed by Stripe's meters" in call("sync").output
    switched = call("driver", "acme", "meters", "--from", month, "--why", "wants Stripe's meters")
    assert (switched.exit_code, "Next: meterhouse bill setup --customer acme" in switched.output) == (0, True)
    waiting = call("meters")
    assert waiting.exit_code == 3 and "! acme: EXCEPTION: has no subscription in Stripe" in waiting.output
    shown = call("setup", "--dry-run", "--json")
    assert [step["request"]["operation"] for step in json.loads(shown.stdout)["steps"]][-1] == "subscription.create"
    assert sandbox.client.v1.subscriptions.list().data == []
    assert call("setup").exit_code == 0
    assert "Nothing to do" in call("setup").output
    use(client, "api.calls", 5, "one")
    use(client, "api.calls", 3, "failed", status="failed")  # the book leaves failed calls free
    first = call("sync", "--json")
    assert first.exit_code == 0, first.output
    [subscription] = sandbox.client.v1.subscriptions.list().data
    assert sandbox.client.v1.invoices.create_preview({"subscription": subscription.id}).total == 10
    moment = datetime.now(UTC)
    for _ in range(2):  # the same event comes again
        use(client, "tool.calls", 1000, "two", now=moment)
    assert call("sync").exit_code == 0
    assert sandbox.client.v1.invoices.create_preview({"subscription": subscription.id}).total == 2010
    table = call("meters").output.splitlines()
    assert table[0].split() == ["customer", "meter", "delivered", "pending", "rejected"]
    assert [line.split()[0] for line in table[1:]] == ["acme", "acme"]
    assert "/_sandbox/checkout/cs_test_" in call("link", "acme", "--return-url", "https://example.com").output
    assert json.loads(call("driver", "--json").stdout)["drivers"][0]["driver"] == "meters"


def test_what_was_seen_to_is_said_to_the_command(call, books):
    registry.add_customer(books.engine, "test", "globex", name="Globex", plan="pay")
    october, digits = month_of(datetime(2026, 10, 5, tzinfo=UTC), "UTC"), (Decimal(5), Decimal(4), Decimal(5))
    for customer in ("acme", "globex"):
        compared = Frozen(customer, "test.documents", october, *digits, datetime(2026, 11, 1, 1, tzinfo=UTC))
        meter_records.freeze(books.engine, "test", [compared])
    assert call("meters").output.count("! ") == 2
    for wrong in (["--handled", "2026-10"], ["--customer", "acme"], ["--why", "cn_1"]):
        assert call("meters", *wrong).exit_code == 2
    assert (
        "no difference to see to in 2026-09"
        in call("meters", "--handled", "2026-09", "--customer", "acme", "--why", "cn_1").output
    )
    said = call("meters", "--handled", "2026-10", "--customer", "acme", "--why", "cn_1")
    assert said.output.splitlines()[0] == "acme: 2026-10: what differs of test.documents is seen to"
    assert said.exit_code == 3 and said.output.count("! globex") == 1 and "! acme" not in said.output
    assert [line.split()[-2:] for line in said.output.splitlines() if "2026-10  test" in line] == [
        ["seen", "to"],
        ["4", "differs"],
    ]
    assert call("meters", "--handled", "2026-10", "--customer", "globex", "--why", "cn_2").exit_code == 0
    months = json.loads(call("meters", "--json").stdout)["months"]
    assert all(it["handled_at"] for it in months)


def test_a_contract_that_is_cancelled_ends_the_subscription_with_it(call, client, sandbox):
    now = datetime.now(UTC)
    call("driver", "acme", "meters", "--from", f"{now:%Y-%m}", "--why", "wants Stripe's meters")
    assert call("setup").exit_code == 0
    use(client, "api.calls", 5, "one")
    end = month_of(now, "UTC").end
    cancelled = CliRunner().invoke(contracts, ["cancel", "acme", "--at", f"{end:%Y-%m-%d}", "--why", "moved away"])
    assert cancelled.exit_code == 0, cancelled.output
    synced = call("sync")
    assert (synced.exit_code, f"ends in Stripe on {end:%Y-%m-%d}" in synced.output) == (0, True), synced.output
    [subscription] = sandbox.client.v1.subscriptions.list().data
    assert subscription.cancel_at == end.timestamp()
    assert "ends in Stripe" not in call("sync").output
    told = json.loads(call("driver", "--json").stdout)["drivers"]
    assert [(it["driver"], it["why"]) for it in told] == [
        ("meters", "wants Stripe's meters"),
        ("invoices", "its contract ended"),
    ]


def test_a_plan_that_stripe_cannot_express_is_refused_with_the_reasons_and_exit_code_3(books, call):
    registry.add_customer(books.engine, "test", "globex", plan="by-model")
    call("driver", "globex", "meters", "--why", "to try")
    refused = call("setup", "--customer", "globex")
    assert refused.exit_code == 3
    assert "globex: EXCEPTION: Stripe cannot bill the plan by-model to the cent" in refused.output
    assert "documents: a price by model" in refused.output
    assert call("setup", "--customer", "acme").exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("driver", "acme", "meters"), 1, "say why"),
        (("driver", "nobody", "meters", "--why", "x"), 1, "there is no customer 'nobody'"),
        (("driver", "acme"), 2, "Name the driver: invoices or meters"),
        (("setup", "--map", "acme"), 2, "write CUSTOMER=cus_..."),
        (("sync", "--repair", "2026-10"), 2, "--repair and --customer go together"),
        (("link", "acme", "--return-url", "https://example.com"), 1, "acme is not in Stripe yet"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(call, arguments, code, words):
    result = call(*arguments)
    assert (result.exit_code, words in result.output) == (code, True), result.output
