"""Everything outside of billing that a run needs: the SQL database, Stripe, the clock, and who is asking."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Engine

from meterhouse_billing.gateway import Gateway


@dataclass(frozen=True)
class World:
    """`who` is recorded with every decision."""

    engine: Engine
    gateway: Gateway
    namespace: str
    who: str
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
