"""Brings the rates that costs are computed from in the warehouse (`cost_rates`) up to date with usage and with SQL.

Only usage that became known since the last time is looked through for combinations that have no rate yet; where entries
or catalogues changed, the rates of all known combinations are worked out anew. Only what differs is written, in one
insert, so that a reader sees the one or the other. May be repeated, and run twice at once.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from meterhouse_rating import costs_book, costs_resolve
from meterhouse_rating.costs_catalogue import Price, Unknown
from meterhouse_rating.costs_entries import Usage
from meterhouse_rating.costs_resolve import Rate
from meterhouse_rating.layout import counted
from meterhouse_rating.queries import EPOCH, nanoseconds
from meterhouse_rating.usage import watermark
from meterhouse_rating.world import World

KEY: Final = (
    "meter", "provider", "model", "modality", "cache_ttl", "service_tier", "tool", "agent_id", "customer_id",
)  # fmt: skip
KNOWN, FREE, UNKNOWN, GONE, SCOPE, RESOLVED = "known", "free", "unknown", "gone", "scope", "resolved"

_STEP: Final = "Array(Tuple({} {}, price Decimal(38, 18)))"
_NAME: Final = "LowCardinality(String)"
_COLUMNS: Final[Mapping[str, str]] = {
    "namespace": _NAME,
    **dict.fromkeys(KEY[:-1], _NAME),
    "customer_id": "String",
    "valid_from": "DateTime64(6, 'UTC')",
    "status": _NAME,
    "reason": _NAME,
    "price": "Decimal(38, 18)",
    "per": "Int64",
    "currency": _NAME,
    "tiers": _STEP.format("start", "UInt64"),
    "clock": _STEP.format("second", "UInt32"),
    "minimum": "Decimal(38, 9)",
    "entry_id": "String",
    "version": "UInt64",
}
_SAID: Final = tuple(name for name in _COLUMNS if name not in ("namespace", "version"))
_CHUNK: Final = 100_000

_STORED: Final = (
    f"SELECT {', '.join(_SAID)} FROM cost_rates FINAL WHERE namespace = {{namespace:String}} AND status != 'gone'"  # noqa: S608
)
_COMBINATIONS: Final = (
    "SELECT DISTINCT meter, provider, model, modality, cache_ttl, service_tier, tool, "
    "if(agent_id IN {agents:Array(String)}, agent_id, '') AS cost_agent, "
    "if(billed_customer_id IN {customers:Array(String)}, billed_customer_id, '') AS cost_customer FROM usage "
    "WHERE namespace = {namespace:String} AND known_at > fromUnixTimestamp64Nano({after_ns:Int64}, 'UTC')"
)

_SAME_NUMBER: Final = (
    f"SELECT cityHash64(namespace, {', '.join(KEY)}) FROM cost_rates FINAL "  # noqa: S608
    f"WHERE status IN ('known', 'free', 'unknown') GROUP BY 1 HAVING uniqExact(({', '.join(KEY)}, namespace)) > 1"
)
"""The view `costs` finds a combination by this number: 1 in 10^19 that any two have the same, and then it is said."""

_OVERLAP: Final = timedelta(minutes=10)
"""So far back is looked again: decisions and several collectors do not become visible in the order of their times."""


_ALL_EVERY: Final = timedelta(days=1)


@dataclass(frozen=True)
class Refreshed:
    """What a refresh found: combinations of usage, how many of them have an unknown cost now, and rows written."""

    combinations: int
    unknown: int
    written: int


def refresh(world: World, *, anew: bool = False) -> Refreshed:
    """Resolve what is not resolved yet; `anew` looks through all usage. Errors of the stores pass through."""
    book = costs_book.read(world.engine, world.namespace)
    stored = _stored(world.client, world.namespace)
    customers, agents = costs_resolve.named(book)
    scopes = {(SCOPE, agent, "") for agent in agents} | {(SCOPE, "", customer) for customer in customers}
    old_scopes = {(row["status"], row["agent_id"], row["customer_id"]) for row in stored if row["status"] == SCOPE}
    marks = [row for row in stored if row["status"] == RESOLVED]
    up_to = max([datetime.fromisoformat(row["entry_id"]) for row in marks], default=EPOCH)
    all_at = max([datetime.fromisoformat(row["reason"]) for row in marks], default=EPOCH)
    # Usage that was general may be that of a customer whom an entry names now: then all of it is looked through. And
    # now and then in any case: what comes from a journal that was fetched was received long ago.
    anew = anew or scopes != old_scopes or world.now() - all_at >= _ALL_EVERY
    after = EPOCH if anew else up_to - _OVERLAP
    up_to = max(watermark(world.client).as_of or EPOCH, up_to)
    found = set(_combinations(world, customers, agents, after))
    found |= {
        Usage(**{name: row[name] for name in KEY})
        for row in stored
        if row["status"] in (KNOWN, FREE, UNKNOWN)
        and row["customer_id"] in customers | {""}
        and row["agent_id"] in agents | {""}
    }
    rates = costs_resolve.rates(book, sorted(found, key=lambda it: tuple(getattr(it, name) for name in KEY)))
    wanted = [_row(it) for it in rates]
    wanted += [_marker(SCOPE, agent_id=agent, customer_id=customer) for _, agent, customer in sorted(scopes)]
    if up_to > EPOCH:
        all_at = world.now() if anew else all_at
        wanted.append(_marker(RESOLVED, entry_id=up_to.isoformat(), reason=all_at.isoformat()))
    written = _write(world, stored, wanted)
    if written and world.client.query(_SAME_NUMBER).result_rows:
        raise ValueError("two kinds of usage have the same number: one of them would have the other's cost")
    return Refreshed(len(found), len({it.usage for it in rates if isinstance(it.cost, Unknown)}), written)


def keep_up(world: World) -> str:
    """Refresh where any costs are recorded; a sentence about what somebody should look at, or nothing."""
    book = costs_book.read(world.engine, world.namespace)
    if not book.entries and not book.catalogues:
        return ""
    try:
        found = refresh(world)
    except (ClickHouseError, ValueError) as wrong:
        return f"not resolved ({wrong}): `meterhouse costs rates` tries again"
    if not found.unknown:
        return ""
    return f"{counted(found.unknown, 'kind')} of usage of unknown cost: `meterhouse costs status` says which"


def _stored(client: Client, namespace: str) -> list[dict[str, Any]]:
    rows = client.query(_STORED, parameters={"namespace": namespace}).result_rows
    return [_comparable(dict(zip(_SAID, row, strict=True))) for row in rows]


def _next_version(world: World) -> int:
    """Above all that stand, also where a clock was set back."""
    query = "SELECT max(version) FROM cost_rates WHERE namespace = {namespace:String}"
    last = world.client.query(query, parameters={"namespace": world.namespace}).result_rows[0][0]
    return max(int(world.now().timestamp() * 1_000_000), int(last) + 1)


def _combinations(world: World, customers: set[str], agents: set[str], after: datetime) -> Iterable[Usage]:
    parameters = {
        "namespace": world.namespace,
        "customers": sorted(customers),
        "agents": sorted(agents),
        "after_ns": nanoseconds(after),
    }
    for row in world.client.query(_COMBINATIONS, parameters=parameters).result_rows:
        yield Usage(**dict(zip(KEY, row, strict=True)))


def _row(it: Rate) -> dict[str, Any]:
    cost = it.cost
    said: dict[str, Any] = {name: getattr(it.usage, name) for name in KEY} | {"valid_from": it.valid_from}
    if isinstance(cost, Price):
        said |= vars(cost) | {"status": FREE if cost.free else KNOWN, "reason": "", "entry_id": cost.entry}
        said.pop("entry")
        said.pop("free")
    else:
        said |= {"status": UNKNOWN, "reason": cost.reason}
    return _comparable({**_EMPTY, **said})


def _marker(status: str, **said: Any) -> dict[str, Any]:
    return _comparable({**_EMPTY, **dict.fromkeys(KEY, ""), "valid_from": EPOCH, "status": status, **said})


_EMPTY: Final[Mapping[str, Any]] = {
    "reason": "", "price": Decimal(0), "per": 1, "currency": "", "tiers": (), "clock": (), "minimum": Decimal(0),
    "entry_id": "",
}  # fmt: skip


def _comparable(row: dict[str, Any]) -> dict[str, Any]:
    """The row as both sides have it: times aware, steps as tuples of two."""
    row = {name: row[name] for name in _SAID}
    row["valid_from"] = row["valid_from"].replace(tzinfo=UTC)
    for name in ("tiers", "clock"):
        row[name] = tuple((int(it[0]), it[1]) if not isinstance(it, dict) else _pair(it) for it in row[name])
    return row


def _pair(step: Mapping[str, Any]) -> tuple[int, Decimal]:
    first, price = step.values()
    return int(first), price


def _write(world: World, stored: Sequence[dict[str, Any]], wanted: Sequence[dict[str, Any]]) -> int:
    """Insert what is new or different, and mark what is not wanted any more as gone."""
    there, here = {_name(row): row for row in stored}, {_name(row): row for row in wanted}
    changed = [row for name, row in here.items() if there.get(name) != row]
    changed += [row | {"status": GONE} for name, row in there.items() if name not in here]
    version = _next_version(world) if changed else 0
    for start in range(0, len(changed), _CHUNK):
        rows = [{"namespace": world.namespace, **row, "version": version} for row in changed[start : start + _CHUNK]]
        world.client.insert(
            "cost_rates",
            [[row[name] for name in _COLUMNS] for row in rows],
            column_names=list(_COLUMNS),
            column_type_names=list(_COLUMNS.values()),
            settings={"async_insert": 0, "distributed_foreground_insert": 1},
        )
    return len(changed)


def _name(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return (*(row[name] for name in KEY), row["valid_from"])
