"""A month of metered billing in miniature: usage that is the truth, the sandbox's clock, and the driver's runs."""

import json
import urllib.request
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from meterhouse_billing import drivers, meter_close, meter_sync
from meterhouse_billing.gateway import Gateway, connect
from meterhouse_billing.meter_gateway import MeterGateway
from meterhouse_billing.meter_setup import Choice, setup
from meterhouse_billing.pace import Pace
from meterhouse_billing.world import World
from meterhouse_rating import versions
from meterhouse_rating.periods import Period
from meterhouse_rating.usage import Hour
from meterhouse_store import registry
from meterhouse_store.meters import Meter

OCTOBER = datetime(2026, 10, 1, tzinfo=UTC)
NOVEMBER = datetime(2026, 11, 1, tzinfo=UTC)
DECLARED = {
    name: Meter(name, "1", "one", "integer", Decimal(1))
    for name in ("documents", "operations", "llm.tokens.input", "llm.tokens.output")
} | {"agent.seconds": Meter("agent.seconds", "s", "one", "decimal", Decimal(1))}

BOOK = """
book: metered
currency: USD
rounding: half_up
metrics:
  documents: {unit: document, meters: [documents]}
  operations: {unit: operation, meters: [operations]}
plans:
  pay:
    components:
      documents: {model: per_unit, metric: documents, price: 0.02}
      operations: {model: per_unit, metric: operations, price: 0.02}
"""


@dataclass
class Truth:
    """The usage, as a warehouse would tell it: (customer, meter, hour) -> quantity."""

    now: datetime = OCTOBER
    used: dict[tuple[str, str, datetime], int] = field(default_factory=dict)

    def use(self, customer: str, meter: str, at: datetime, quantity: int) -> None:
        key = customer, meter, at.replace(minute=0, second=0, microsecond=0)
        self.used[key] = self.used.get(key, 0) + quantity

    def as_of(self) -> datetime | None:
        return self.now

    def hours(self, period: Period, customers: Sequence[str], as_of: datetime) -> Iterable[Hour]:
        for (customer, meter, start), quantity in sorted(self.used.items()):
            if customer in customers and period.start <= start < period.end and start <= as_of:
                yield Hour(customer, meter, "ok", start, 1, Decimal(quantity))

    def total(self, customer: str, meter: str) -> int:
        return sum(quantity for (name, of, _), quantity in self.used.items() if (name, of) == (customer, meter))


@dataclass
class Metered:
    """A namespace whose customers are on the meters; `url` is where the sandbox is."""

    engine: Any
    url: str
    truth: Truth = field(default_factory=Truth)
    book: str = BOOK
    workers: int = 4
    stream: str = "off"

    def __post_init__(self) -> None:
        self.gateway: Gateway = connect({"STRIPE_API_KEY": "sk_test_1", "METERHOUSE_STRIPE_URL": self.url}, live=False)
        self.gateway._sleep = lambda _seconds: None
        self.world = World(self.engine, self.gateway, "test", "anna", lambda: self.truth.now)
        self.client = self.gateway._client
        self.at(OCTOBER + timedelta(hours=1))
        units = {name: meter.unit for name, meter in DECLARED.items()}
        versions.publish(self.engine, "test", self.book, units, author="anna", now=OCTOBER)

    def control(self, what: str, said: dict[str, Any]) -> None:
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"{self.url}/_sandbox/{what}", json.dumps(said).encode(), headers)
        urllib.request.urlopen(request).close()

    def at(self, now: datetime) -> None:
        """Move both clocks."""
        self.truth.now = now
        self.control("clock", {"now": now.timestamp()})

    def customer(self, customer_id: str, **more: Any) -> None:
        registry.add_customer(self.engine, "test", customer_id, plan="pay", currency="USD", now=OCTOBER, **more)
        self.switch(customer_id)

    def switch(self, customer_id: str, driver: str = "meters", start: datetime = OCTOBER) -> None:
        drivers.switch(
            self.engine, "test", customer_id, driver, valid_from=start, who="anna", why="to try", now=self.truth.now
        )

    def setup(self, choice: Choice | None = None, **more: Any) -> list[Any]:
        return list(setup(self.world, DECLARED, choice or Choice({}), pace=Pace(10**9), **more))

    def run(self) -> meter_sync.Sync:
        never = Pace(10**9)
        gateway = MeterGateway(self.gateway, never, never)
        return meter_sync.Sync(self.world, self.truth, gateway, workers=self.workers, stream=self.stream)

    def sync(self) -> list[str]:
        """A whole round; what it says."""
        run = self.run()
        steps = [*meter_sync.plan(run), *meter_sync.deliver(run), *meter_close.freeze(run)]
        return [str(step) for step in [*steps, *self.exceptions()]]

    def exceptions(self) -> list[meter_sync.Step]:
        run = self.run()
        return list(meter_close.exceptions(self.engine, "test", run.known, run.subscriptions))

    def in_stripe(self, customer: str, metric: str, start: datetime = OCTOBER, end: datetime = NOVEMBER) -> float:
        """What the customer's subscription counts of a metric, asked with the real SDK."""
        [subscription] = [it for it in self.run().subscriptions if it.customer_id == customer]
        [metered] = [it for it in subscription.metered if it.metric == metric]
        params: Any = {
            "customer": subscription.stripe_customer_id,
            "start_time": int(start.timestamp()),
            "end_time": int(end.timestamp()),
        }
        found = self.client.v1.billing.meters.event_summaries.list(metered.stripe_meter_id, params).data
        return sum(summary.aggregated_value for summary in found)

    def upcoming(self, customer: str) -> int:
        """What Stripe would bill now, in cents."""
        [subscription] = [it for it in self.run().subscriptions if it.customer_id == customer]
        params: Any = {"subscription": subscription.stripe_subscription_id}
        return int(self.client.v1.invoices.create_preview(params).total)
