"""Everything outside of billing that a run needs: the SQL database, Stripe, the clock, and who is asking."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from sqlalchemy import Engine

from meterhouse_billing import policies
from meterhouse_billing.gateway import Gateway


@dataclass(frozen=True)
class World:
    """`who` is recorded with every decision. `gateway` talks to the key's own account until `of` or `on` is asked."""

    engine: Engine
    gateway: Gateway
    namespace: str
    who: str
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    def of(self, customer_id: str) -> "World":
        """The same, talking to the Stripe account in which the customer is; '': the namespace's."""
        return self.on(policies.load(self.engine, self.namespace, customer_id).stripe_account)

    def on(self, account: str) -> "World":
        """The same, talking to a connected account (`acct_...`), or ('') to the key's own."""
        return replace(self, gateway=self.gateway.on(account))


@dataclass(frozen=True)
class Desk:
    """What is needed to decide what Stripe has no part in."""

    engine: Engine
    namespace: str
    who: str
    now: Callable[[], datetime]
