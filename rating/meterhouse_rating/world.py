"""Everything outside of rating that a run needs: the two stores, the declared meters, the clock."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from clickhouse_connect.driver.client import Client
from sqlalchemy import Engine

from meterhouse_store.meters import Meter


@dataclass(frozen=True)
class World:
    """The SQL engine, the ClickHouse client, the namespace, and the clock (`now`, `sleep` in seconds)."""

    engine: Engine
    client: Client
    namespace: str
    meters: Mapping[str, Meter]
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    sleep: Callable[[float], None] = time.sleep
