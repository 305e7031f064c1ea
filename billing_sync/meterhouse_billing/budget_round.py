"""One round of budgets: works out how they stand, and writes what the collector serves and what people are to be told.

May be repeated and run beside another round: what is written of a customer is of one moment, a later one is never
replaced by an earlier one, and a notice has one id however often its cause is seen.
"""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import Connection, Engine, delete, func, insert, select, update

from meterhouse_billing import budget_notices, notices
from meterhouse_billing.budget_state import State, budgets_of, read, states
from meterhouse_billing.budget_usage import Reading
from meterhouse_rating.world import World
from meterhouse_store import budgets
from meterhouse_store.budgets import Pause, Policy
from meterhouse_store.numbers import plain
from meterhouse_store.reservations import LAPSE, Held
from meterhouse_store.sql import begin_write
from meterhouse_store.tables import allowances, budget_changes, customers, leases, pause_changes

ATTEMPTS: Final = 5
"""So often a round is begun anew because somebody changed a budget meanwhile."""


@dataclass(frozen=True)
class Round:
    """What came of it: the budgets as they stand, the pauses, how many notices are new, and what agents hold."""

    states: tuple[State, ...]
    pauses: tuple[Pause, ...]
    notices: int
    held: Mapping[str, tuple[Held, ...]]
    now: datetime

    def reserved(self, state: State) -> Decimal:
        """What agents hold of a limit, or have used and not delivered yet."""
        limit, zero = state.as_limit(), Decimal(0)
        return sum((it.reserved(limit, self.now) for it in self.held.get(state.budget.customer_id, ())), zero)


class TooBusy(RuntimeError):
    """Budgets were changed all the time while they were looked at."""


def run(world: World, customer_id: str | None = None, *, write: bool = True) -> Round:
    """A round of one customer, or of all. Raises TooBusy."""
    for _ in range(ATTEMPTS):
        seen = _version(world.engine, world.namespace)
        reading = read(world, customer_id)
        held, granted = _held(world.engine, world.namespace, customer_id)
        found = tuple(states(reading, budgets_of(reading, customer_id)))
        arrived = reading.arrived(granted)
        if not write:
            paused = tuple(budgets.pauses(world.engine, world.namespace, customer_id))
            return Round(found, paused, 0, _with_arrived(held, arrived), reading.now)
        with begin_write(world.engine) as connection:
            if _version(connection, world.namespace) != seen:
                continue
            return _written(connection, reading, customer_id, found, held, arrived)
    raise TooBusy(f"budgets of {world.namespace} were changed {ATTEMPTS} times while they were looked at: try again")


@dataclass
class Watch:
    """Rounds whenever there is something new: usage, a change of a budget, agents that ask; else once a minute."""

    world: World
    _seen: Any = None
    _last_s: float = 0.0

    def due(self) -> Round | None:
        """A round, or None where nothing happened."""
        seen = self._signs()
        if seen == self._seen and time.monotonic() - self._last_s < _AT_LEAST_S:
            return None
        done = run(self.world)
        self._seen, self._last_s = seen, time.monotonic()
        return done

    def _signs(self) -> Any:
        from meterhouse_rating.usage import watermark

        with self.world.engine.connect() as connection:
            asked = connection.execute(
                select(func.count(), func.max(leases.c.expires_at)).where(leases.c.namespace == self.world.namespace)
            ).one()
            changed = _version(connection, self.world.namespace)
            paused = select(func.count()).where(pause_changes.c.namespace == self.world.namespace)
            pauses = connection.execute(paused).scalar()
        return watermark(self.world.client).as_json(), tuple(asked), changed, pauses


_AT_LEAST_S: Final = 60.0


def _written(
    connection: Connection,
    reading: Reading,
    only: str | None,
    found: tuple[State, ...],
    held: Mapping[str, tuple[Held, ...]],
    arrived: Mapping[str, Mapping[str, Decimal]],
) -> Round:
    world, now = reading.world, reading.now
    # Pauses and policies as they are in this transaction: nobody is let go on by a round that began before.
    paused = budgets.pauses_in(connection, world.namespace, only)
    policies = budgets.policies_in(connection, world.namespace, only)
    by_customer: dict[str, list[State]] = defaultdict(list)
    for state in found:
        by_customer[state.budget.customer_id].append(state)
    table = allowances
    query = select(table.c.customer_id, table.c.computed_at).where(table.c.namespace == world.namespace)
    if only is not None:
        query = query.where(table.c.customer_id == only)
    there = {row.customer_id: row.computed_at for row in connection.execute(query.with_for_update())}
    later = {name for name, computed_at in there.items() if computed_at > now}
    wanted = {*by_customer, *(it.customer_id for it in paused), *policies}
    for name in sorted(wanted - later):
        mine = [it for it in paused if it.customer_id == name]
        row = _allowance(by_customer.get(name, ()), mine, policies.get(name, Policy())) | {"computed_at": now}
        key = {"namespace": world.namespace, "customer_id": name}
        if name in there:
            connection.execute(update(table).filter_by(**key).values(**row))
        else:
            connection.execute(insert(table).values(**key, **row))
    for name in sorted(set(there) - wanted - later):
        connection.execute(delete(table).where(table.c.namespace == world.namespace, table.c.customer_id == name))
    for name, theirs in held.items():
        for it in theirs if name not in later else ():
            _settle(connection, world.namespace, it, arrived.get(it.lease_id, {}), now)
    zones = _zones(connection, world.namespace, {it.customer_id for it in paused})
    told = [
        *budget_notices.of_states(world.namespace, found, now),
        *budget_notices.of_pauses(world.namespace, paused, zones),
    ]
    new = notices.keep(connection, told, now)
    return Round(found, tuple(paused), new, _with_arrived(held, arrived), now)


def _zones(connection: Connection, namespace: str, names: Set[str]) -> dict[str, str]:
    query = select(customers.c.customer_id, customers.c.time_zone)
    query = query.where(customers.c.namespace == namespace, customers.c.customer_id.in_(names))
    return {row.customer_id: row.time_zone for row in connection.execute(query)} if names else {}


def _allowance(found: Sequence[State], paused: Sequence[Pause], policy: Policy) -> dict[str, Any]:
    return {
        "pauses": [{"agent_id": it.agent_id, "reason": it.reason} for it in paused],
        "limits": [it.as_limit().as_json() for it in found if it.caps],
        "pause_at": policy.pause_at,
        "on_unreachable": policy.on_unreachable,
    }


def _settle(connection: Connection, namespace: str, it: Held, arrived: Mapping[str, Decimal], now: datetime) -> None:
    key = {"namespace": namespace, "lease_id": it.lease_id}
    if now >= it.expires_at + LAPSE:
        connection.execute(delete(leases).filter_by(**key).where(leases.c.expires_at == it.expires_at))
    elif dict(arrived) != dict(it.arrived):
        texts = {meter: plain(quantity) for meter, quantity in arrived.items()}
        connection.execute(update(leases).filter_by(**key).values(arrived=texts))


def _held(
    engine: Engine, namespace: str, customer_id: str | None
) -> tuple[dict[str, tuple[Held, ...]], dict[str, datetime]]:
    """The leases by customer, and when each was granted."""
    query = select(leases).where(leases.c.namespace == namespace)
    if customer_id is not None:
        query = query.where(leases.c.customer_id == customer_id)
    found: dict[str, tuple[Held, ...]] = {}
    granted = {}
    with engine.connect() as connection:
        for row in connection.execute(query).mappings():
            found[row["customer_id"]] = (*found.get(row["customer_id"], ()), Held.of_row(dict(row)))
            granted[row["lease_id"]] = row["granted_at"]
    return found, granted


def _with_arrived(
    held: Mapping[str, tuple[Held, ...]], arrived: Mapping[str, Mapping[str, Decimal]]
) -> dict[str, tuple[Held, ...]]:
    return {
        name: tuple(replace(it, arrived=arrived.get(it.lease_id, {})) for it in theirs) for name, theirs in held.items()
    }


def _version(asked: Engine | Connection, namespace: str) -> Any:
    """Changes with every change of a budget."""
    query = select(func.count(), func.max(budget_changes.c.recorded_at)).where(budget_changes.c.namespace == namespace)
    if isinstance(asked, Connection):
        return tuple(asked.execute(query).one())
    with asked.connect() as connection:
        return tuple(connection.execute(query).one())
