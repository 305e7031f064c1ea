"""`run/endpoints.json`: where the parts of a running Meterhouse listen, and their secrets (docs/contracts.md, 6)."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from meterhouse_store.settings import NoData


@dataclass(frozen=True)
class Warehouse:
    """The ClickHouse HTTP interface; `users` maps a user's name to its password."""

    url: str
    database: str
    users: dict[str, str] = field(repr=False)


@dataclass(frozen=True)
class Collector:
    """OTLP over HTTP (a base URL) and gRPC (host:port), and a key that may report for any customer."""

    http: str
    grpc: str
    api_key: str = field(repr=False)


@dataclass(frozen=True)
class Address:
    """One URL of a part."""

    url: str


@dataclass(frozen=True)
class Endpoints:
    """All of a running Meterhouse; `started_at` is ISO 8601 in UTC."""

    pid: int
    data: str
    started_at: str
    namespace: str
    warehouse: Warehouse
    collector: Collector
    portal: Address
    webhooks: Address
    prices: Address
    health: Address


def path(data: Path) -> Path:
    """Where the file of a data directory is."""
    return data / "run" / "endpoints.json"


def read(data: Path) -> Endpoints | None:
    """What `meterhouse up` wrote into this data directory; None where nothing runs.

    Raises NoData for a file that is not what `write` wrote.
    """
    file = path(data)
    try:
        text = file.read_text()
    except FileNotFoundError:
        return None
    try:
        found: dict[str, Any] = json.loads(text)
        return Endpoints(
            pid=found["pid"],
            data=found["data"],
            started_at=found["started_at"],
            namespace=found["namespace"],
            warehouse=Warehouse(**found["warehouse"]),
            collector=Collector(**found["collector"]),
            portal=Address(**found["portal"]),
            webhooks=Address(**found["webhooks"]),
            prices=Address(**found["prices"]),
            health=Address(**found["health"]),
        )
    except (KeyError, TypeError, ValueError) as problem:
        raise NoData(f"{file} is damaged ({problem!r}): stop Meterhouse, delete the file, start again") from None


def write(data: Path, endpoints: Endpoints) -> None:
    """Write the file, readable by its owner only; readers see the old or the new one, never half of it."""
    replace_private(path(data), json.dumps(asdict(endpoints), indent=2) + "\n")


def remove(data: Path) -> None:
    """Remove the file; nothing happens where there is none."""
    path(data).unlink(missing_ok=True)


def replace_private(file: Path, text: str) -> None:
    """Write a file of mode 0600 in one step."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = file.with_name(f"{file.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    fresh.replace(file)
