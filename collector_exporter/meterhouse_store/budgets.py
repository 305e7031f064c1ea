"""Budgets as people set them: what a customer may use in a period, at what it is told, and what happens at the end.

Everything is recorded as a change, with who and why, and never altered: what holds is the fold of a budget's changes.
How much is used is not known here; billing works that out (`meterhouse_billing.budget_state`). With `dry_run` a change
is refused as ever, or made and taken back.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import Connection, Engine, Table, insert, select, update

from meterhouse_store import tables
from meterhouse_store.registry import RegistryError
from meterhouse_store.sql import begin_write

MONEY: Final = "money"
UNITS: Final = "units"
PREPAID: Final = "prepaid"
MEASURES: Final = (MONEY, UNITS, PREPAID)
PERIODS: Final = ("day", "week", "month")
SET, RAISE, ACKNOWLEDGE, REMOVE = "set", "raise", "acknowledge", "remove"
CALL, TASK = "call", "task"
ALLOW, PAUSE = "allow", "pause"
OPERATOR: Final = "operator"
PAYMENT_FAILED: Final = "payment_failed"
"""Reasons of pauses; any other name will do as well."""
THRESHOLDS: Final = (50, 80, 100)
MOST: Final = Decimal(10) ** 18
MAX_THRESHOLDS: Final = 20
MAX_PERCENT: Final = 1000
_PERCENT: Final = f"thresholds are per cent from 1 to {MAX_PERCENT}"
_USUAL: Final = "a limit has at most nine decimals, and 18 digits before them"
PLAN: Final = "plan:"
"""How the names of limits begin that a plan of the price book has."""


@dataclass(frozen=True)
class Budget:
    """What a customer may use in each period; `limit` in its currency, or in units of `of`, a meter or a metric.

    Of a prepaid balance the limit is what is there of credits, and `limit` 0. `hard`: model calls stop at it.
    `bill_over`: what is used above a hard cap all the same is billed. `raised` and `acknowledged` hold in one period
    only, named by its start.
    """

    customer_id: str
    name: str
    measure: str  # money | units | prepaid
    limit: Decimal
    of: str = ""
    agent_id: str = ""
    per: str = "month"
    hard: bool = True
    bill_over: bool = False
    thresholds: tuple[int, ...] = THRESHOLDS
    raised: Mapping[str, Decimal] | None = None
    acknowledged: frozenset[str] = frozenset()

    def limit_in(self, start: datetime) -> Decimal:
        """The limit in the period that starts then."""
        return (self.raised or {}).get(_named(start), self.limit)

    def caps(self, start: datetime) -> bool:
        """Whether calls stop at the limit in the period that starts then."""
        return self.hard and _named(start) not in self.acknowledged

    @property
    def terms(self) -> dict[str, Any]:
        """As it is recorded, without what is in columns of its own."""
        names = ("measure", "of", "agent_id", "per", "hard", "bill_over")
        return {name: getattr(self, name) for name in names} | {"thresholds": list(self.thresholds)}


@dataclass(frozen=True)
class Change:
    """A change as it was recorded."""

    namespace: str
    customer_id: str
    name: str
    recorded_at: datetime
    change: str
    terms: Mapping[str, Any]
    amount: Decimal | None
    who: str
    why: str


@dataclass(frozen=True)
class Policy:
    """How a customer's agents are stopped: before a call or a task, and whether they go on where nobody answers."""

    pause_at: str = CALL
    on_unreachable: str = ALLOW


@dataclass(frozen=True)
class Pause:
    """A pause that holds, of one agent or ('') of all."""

    customer_id: str
    agent_id: str
    reason: str
    since: datetime
    who: str
    why: str


def _require_usual(budget: Budget) -> None:
    """Raises RegistryError with everything that is wrong with a budget."""
    mistakes = [
        what
        for wrong, what in (
            (budget.measure not in MEASURES, f"{budget.measure} is no measure: money, units or prepaid"),
            (budget.per not in PERIODS, f"{budget.per} is no period: day, week or month"),
            (budget.limit <= 0 and budget.measure != PREPAID, "a limit is a number above 0"),
            (not _is_usual(budget.limit), _USUAL),
            ((budget.measure == UNITS) != bool(budget.of), "units are of a meter or a metric: name it"),
            (budget.measure == PREPAID and (budget.agent_id or budget.per != "month"), _PREPAID_WHOLE),
            (not all(1 <= it <= MAX_PERCENT for it in budget.thresholds), _PERCENT),
            (_over_is_billed(budget) and not budget.bill_over, _SAY_BILL_OVER),
            (len(budget.thresholds) > MAX_THRESHOLDS, f"a budget has at most {MAX_THRESHOLDS} thresholds"),
            (not 1 <= len(budget.name) <= 128, "a budget's name has 1 to 128 characters"),
            (budget.name.startswith(PLAN) and budget.measure != UNITS, f"names of plan limits begin with {PLAN}"),
        )
        if wrong
    ]
    if mistakes:
        raise RegistryError("; ".join(mistakes))


def set_budget(
    engine: Engine, namespace: str, budget: Budget, *, who: str, why: str, now: datetime, dry_run: bool = False
) -> None:
    """Set a budget, or set it anew. Raises RegistryError with everything that is wrong with it."""
    _require_usual(budget)
    with _change(engine, dry_run) as connection:
        _require_customer(connection, namespace, budget.customer_id)
        row = {"change": SET, "terms": budget.terms, "amount": budget.limit}
        _record(connection, tables.budget_changes, _key(namespace, budget), row, who, why, now)


def raise_limit(
    engine: Engine,
    namespace: str,
    budget: Budget,
    limit: Decimal,
    start: datetime,
    *,
    who: str,
    why: str,
    now: datetime,
    dry_run: bool = False,
) -> None:
    """Another limit in the period that starts then, and only in it. Raises RegistryError."""
    if limit <= 0 or not _is_usual(limit):
        raise RegistryError(f"a limit is a number above 0; {_USUAL}")
    if limit <= budget.limit_in(start):
        raise RegistryError(f"the limit is {budget.limit_in(start):f} already: `budgets set` sets a lower one")
    row = {"change": RAISE, "terms": {"period_start": _named(start)}, "amount": limit}
    with _change(engine, dry_run) as connection:
        _record(connection, tables.budget_changes, _key(namespace, budget), row, who, why, now)


def acknowledge(
    engine: Engine,
    namespace: str,
    budget: Budget,
    start: datetime,
    *,
    who: str,
    why: str,
    now: datetime,
    dry_run: bool = False,
) -> None:
    """The limit no longer stops anybody in the period that starts then: what goes above it is wanted, and billed."""
    row = {"change": ACKNOWLEDGE, "terms": {"period_start": _named(start)}, "amount": None}
    with _change(engine, dry_run) as connection:
        _record(connection, tables.budget_changes, _key(namespace, budget), row, who, why, now)


def remove(
    engine: Engine, namespace: str, budget: Budget, *, who: str, why: str, now: datetime, dry_run: bool = False
) -> None:
    """From now on there is no such budget; its changes stay on record."""
    row: dict[str, Any] = {"change": REMOVE, "terms": {}, "amount": None}
    with _change(engine, dry_run) as connection:
        _record(connection, tables.budget_changes, _key(namespace, budget), row, who, why, now)


def set_policy(
    engine: Engine,
    namespace: str,
    customer_id: str,
    policy: Policy,
    *,
    who: str,
    why: str,
    now: datetime,
    dry_run: bool = False,
) -> None:
    """How the customer's agents are stopped from now on. Raises RegistryError."""
    if policy.pause_at not in (CALL, TASK) or policy.on_unreachable not in (ALLOW, PAUSE):
        raise RegistryError("pause_at is call or task, on_unreachable is allow or pause")
    with _change(engine, dry_run) as connection:
        _require_customer(connection, namespace, customer_id)
        key = {"namespace": namespace, "customer_id": customer_id}
        row = {"pause_at": policy.pause_at, "on_unreachable": policy.on_unreachable}
        _record(connection, tables.budget_policies, key, row, who, why, now)


def pause(
    engine: Engine,
    namespace: str,
    customer_id: str,
    reason: str = OPERATOR,
    *,
    agent_id: str = "",
    who: str,
    why: str,
    now: datetime,
    dry_run: bool = False,
) -> bool:
    """Stop the customer's model calls for a reason; False where they are for it already. Raises RegistryError."""
    return _turn(engine, namespace, customer_id, reason, agent_id, "on", who, why, now, dry_run)


def lift(
    engine: Engine,
    namespace: str,
    customer_id: str,
    reason: str = OPERATOR,
    *,
    agent_id: str = "",
    who: str,
    why: str,
    now: datetime,
    dry_run: bool = False,
) -> bool:
    """End the pause of that reason, and leave those of others; False where there is none. Raises RegistryError."""
    return _turn(engine, namespace, customer_id, reason, agent_id, "off", who, why, now, dry_run)


def changes(engine: Engine, namespace: str, customer_id: str | None = None) -> list[Change]:
    """All that was recorded about budgets, oldest first."""
    with engine.connect() as connection:
        return [Change(**row) for row in _rows(connection, tables.budget_changes, namespace, customer_id)]


def standing(found: Sequence[Change], given: Sequence[Budget] = ()) -> list[Budget]:
    """The budgets that the changes (oldest first) come to, by customer and name; `given`: limits of their plans."""
    budgets = {(it.customer_id, it.name): it for it in given}
    for it in found:
        key = it.customer_id, it.name
        if it.change == SET and it.amount is not None:
            budgets[key] = of_terms(it.customer_id, it.name, it.terms, it.amount, budgets.get(key))
        elif it.change == REMOVE:
            budgets.pop(key, None)
        elif key in budgets:
            known, start = budgets[key], it.terms["period_start"]
            if it.change == RAISE and it.amount is not None:
                budgets[key] = replace(known, raised={**(known.raised or {}), start: it.amount})
            else:
                budgets[key] = replace(known, acknowledged=known.acknowledged | {start})
    return [budgets[key] for key in sorted(budgets)]


def of_terms(
    customer_id: str, name: str, terms: Mapping[str, Any], limit: Decimal, before: Budget | None = None
) -> Budget:
    """The budget of recorded terms. Set anew, it keeps what was acknowledged, and has the new limit in all periods."""
    return Budget(
        customer_id,
        name,
        terms["measure"],
        limit,
        **{key: terms[key] for key in ("of", "agent_id", "per", "hard", "bill_over")},
        thresholds=tuple(terms["thresholds"]),
        acknowledged=before.acknowledged if before else frozenset(),
    )


def policies_in(connection: Connection, namespace: str, customer_id: str | None = None) -> dict[str, Policy]:
    """The policies that customers have; who has none has `Policy()`."""
    rows = _rows(connection, tables.budget_policies, namespace, customer_id)
    return {row["customer_id"]: Policy(row["pause_at"], row["on_unreachable"]) for row in rows}


def pauses_in(connection: Connection, namespace: str, customer_id: str | None = None) -> list[Pause]:
    """The pauses that hold, by customer, agent and reason."""
    found: dict[tuple[str, str, str], Pause] = {}
    for row in _rows(connection, tables.pause_changes, namespace, customer_id):
        key = row["customer_id"], row["agent_id"], row["reason"]
        found.pop(key, None)
        if row["state"] == "on":
            found[key] = Pause(*key, row["recorded_at"], row["who"], row["why"])
    return [found[key] for key in sorted(found)]


def pauses(engine: Engine, namespace: str, customer_id: str | None = None) -> list[Pause]:
    """The pauses that hold."""
    with engine.connect() as connection:
        return pauses_in(connection, namespace, customer_id)


class _TakenBack(Exception):
    """Ends the transaction of a dry run."""


@contextmanager
def _change(engine: Engine, dry_run: bool) -> Iterator[Connection]:
    """A transaction that writes; that of a dry run is taken back where nothing in it was refused."""
    with suppress(_TakenBack), begin_write(engine) as connection:
        yield connection
        if dry_run:
            raise _TakenBack


def _over_is_billed(budget: Budget) -> bool:
    """Where what goes above a hard cap is on the bill: only a month's of all agents is taken off it."""
    return budget.hard and budget.measure != PREPAID and bool(budget.agent_id or budget.per != "month")


_SAY_BILL_OVER: Final = (
    "what goes above a cap of one agent, of a day or a week is billed: say so (--bill-over), or only tell (--soft)"
)
_PREPAID_WHOLE: Final = "a prepaid balance is the whole customer's, by the month: leave agent and period out"


def _is_usual(limit: Decimal) -> bool:
    """Whether it is an amount that arithmetic and people can live with."""
    exponent = limit.as_tuple().exponent
    return limit.is_finite() and isinstance(exponent, int) and exponent >= -9 and limit < MOST


def _named(start: datetime) -> str:
    return start.astimezone(UTC).isoformat()


def _key(namespace: str, budget: Budget) -> dict[str, str]:
    return {"namespace": namespace, "customer_id": budget.customer_id, "name": budget.name}


def _rows(connection: Connection, table: Table, namespace: str, customer_id: str | None) -> list[dict[str, Any]]:
    query = select(table).where(table.c.namespace == namespace).order_by(table.c.recorded_at)
    if customer_id is not None:
        query = query.where(table.c.customer_id == customer_id)
    return [dict(row) for row in connection.execute(query).mappings()]


def _turn(
    engine: Engine,
    namespace: str,
    customer_id: str,
    reason: str,
    agent_id: str,
    state: str,
    who: str,
    why: str,
    now: datetime,
    dry_run: bool,
) -> bool:
    if not 1 <= len(reason) <= 64:
        raise RegistryError("a reason has 1 to 64 characters: operator, payment_failed, ...")
    table = tables.pause_changes
    key = {"namespace": namespace, "customer_id": customer_id, "agent_id": agent_id, "reason": reason}
    with _change(engine, dry_run) as connection:
        _require_customer(connection, namespace, customer_id)
        query = select(table.c.state).filter_by(**key).order_by(table.c.recorded_at.desc()).limit(1)
        if (connection.execute(query).scalar() or "off") == state:
            return False
        _record(connection, table, key, {"state": state}, who, why, now)
        _serve(connection, namespace, customer_id, now)
    return True


def _serve(connection: Connection, namespace: str, customer_id: str, now: datetime) -> None:
    """Bring the customer's pauses to the collector at once: neither waits for a round, nor for the warehouse."""
    table = tables.allowances
    is_it = (table.c.namespace == namespace) & (table.c.customer_id == customer_id)
    found = pauses_in(connection, namespace, customer_id)
    rows = [{"agent_id": it.agent_id, "reason": it.reason} for it in found]
    if connection.execute(update(table).where(is_it).values(pauses=rows)).rowcount == 0:
        policy = policies_in(connection, namespace, customer_id).get(customer_id, Policy())
        row = {"pauses": rows, "limits": [], "pause_at": policy.pause_at, "on_unreachable": policy.on_unreachable}
        connection.execute(insert(table).values(namespace=namespace, customer_id=customer_id, **row, computed_at=now))


def _record(
    connection: Connection,
    table: Table,
    key: Mapping[str, Any],
    row: Mapping[str, Any],
    who: str,
    why: str,
    now: datetime,
) -> None:
    if not why.strip():
        raise RegistryError("say why: it is kept with the change")
    latest = select(table.c.recorded_at).filter_by(**key).order_by(table.c.recorded_at.desc()).limit(1)
    before = connection.execute(latest).scalar()
    if before is not None:  # in their order, whatever the clock does
        now = max(now, before + timedelta(microseconds=1))
    connection.execute(insert(table).values(**key, **row, recorded_at=now, who=who[:128], why=why[:500]))


def _require_customer(connection: Connection, namespace: str, customer_id: str) -> None:
    known = tables.customers
    query = select(known.c.customer_id).where(known.c.namespace == namespace, known.c.customer_id == customer_id)
    if connection.execute(query).first() is None:
        raise RegistryError(f"{customer_id} is not registered: `meterhouse customers add {customer_id} --plan PLAN`")
