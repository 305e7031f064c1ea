"""`rate run` and `rate close`: step by step, each step committed before it is reported.

A run can be stopped after any step and started again, or run beside another one: what is settled is found settled, and
what is not is done. The generators do the work; printing and exit codes are the caller's.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy.exc import IntegrityError

from meterhouse_rating import mirrors, usage, windows
from meterhouse_rating.engine import UsageRow
from meterhouse_rating.late import LateUsage, look
from meterhouse_rating.layout import counted
from meterhouse_rating.money import show
from meterhouse_rating.periods import Period, PeriodError
from meterhouse_rating.results import Moment
from meterhouse_rating.settle import Outcome, Terms, WatermarkWentBack, settle
from meterhouse_rating.usage import Watermark, watermark
from meterhouse_rating.versions import NotThere, versions
from meterhouse_rating.world import World
from meterhouse_store import registry
from meterhouse_store.sql import begin_write

ATTEMPTS: Final = 4
"""How often a customer is settled anew when another run comes in between."""

_POLL_S: Final = 0.5


@dataclass(frozen=True)
class Request:
    """What to rate: a period as written on the command line, or None for all that is due; one customer or all."""

    period: str | None
    customer: str | None = None
    dry_run: bool = False


@dataclass(frozen=True)
class Step:
    """One finished step: its name, and a sentence for people. `outcome` where it was a customer's."""

    name: str
    text: str
    outcome: Outcome | None = None
    late: tuple[LateUsage, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} {self.text}".rstrip()


class NotYet(RuntimeError):
    """A period cannot be closed yet; the message says when, or what it waits for."""


@dataclass
class _Run:
    """One run: the shared terms (they grow when customers are registered) and what is known of the warehouse."""

    world: World
    request: Request
    terms: Terms
    mark: Watermark
    close: bool = False

    @property
    def moment(self) -> Moment:
        now = self.world.now()
        return Moment(min(self.mark.as_of or now, now), self.mark.as_json(), now)


def run(world: World, request: Request) -> Iterator[Step]:
    """Rate what is asked for; open ratings are replaced where their inputs changed, closed ones only looked at.

    Raises PeriodError, WatermarkWentBack, NotThere when there is no price book.
    """
    it = _Run(world, request, _terms(world), watermark(world.client))
    moment = it.moment
    asked = windows.asked_for(world, request.period, request.customer, it.terms, moment.as_of)
    yield _watermark_step(it, moment)
    for window in asked:
        yield from _settle_window(it, window, moment)
    yield from _late(it, moment)
    if not request.dry_run:
        yield from _mirror(it)


def close(world: World, request: Request, *, grace: timedelta, wait_s: float) -> Iterator[Step]:
    """Rate a period for good: wait until the warehouse has all that was received up to its end and the grace, then
    freeze each customer's lines and post them to the ledger.

    Raises what `run` raises, and NotYet for a period that is not over or a warehouse that does not get there in time.
    """
    if request.period is None:
        raise PeriodError("name the period to close, such as 2026-10.")
    terms = _terms(world)
    moment_known = world.now()
    asked = list(windows.asked_for(world, request.period, request.customer, terms, moment_known))
    due = max(window.period.end for window in asked) + grace
    if moment_known < due:
        raise NotYet(f"{request.period} can be closed from {due.isoformat()} on: its end and {grace} of grace")
    it = _Run(world, request, terms, _wait_for(world, due, wait_s), close=True)
    moment = it.moment
    yield _watermark_step(it, moment)
    for window in asked:
        yield from _settle_window(it, window, moment)
    yield from _late(it, moment)
    if not request.dry_run:
        yield from _mirror(it)


def _terms(world: World) -> Terms:
    published = versions(world.engine, world.namespace)
    if not published:
        raise NotThere("no price book is published: `meterhouse prices publish FILE`, or --starter instead of a file")
    contracts: dict[str, list[registry.Contract]] = {}
    for contract in registry.contracts(world.engine, world.namespace):
        contracts.setdefault(contract.customer_id, []).append(contract)
    known = {customer.customer_id: customer for customer in registry.customers(world.engine, world.namespace)}
    books = {version.version: version.book for version in published}
    return Terms(world.namespace, known, contracts, published, books, frozenset(world.meters))


def _wait_for(world: World, due: datetime, wait_s: float) -> Watermark:
    deadline = time.monotonic() + wait_s
    while True:
        mark = watermark(world.client)
        behind = mark.behind(due)
        if mark.positions and not behind:
            return mark
        if time.monotonic() >= deadline:
            who = ", ".join(behind) or "no collector has written to this warehouse"
            raise NotYet(
                f"the warehouse is not complete up to {due.isoformat()} after {wait_s:g} s of waiting: {who}. "
                "Is the collector running? `meterhouse warehouse status` shows how far it is"
            )
        world.sleep(_POLL_S)


def _watermark_step(it: _Run, moment: Moment) -> Step:
    collectors = ", ".join(f"{name} at {segment}:{at}" for name, (segment, at) in sorted(it.mark.positions.items()))
    return Step("watermark", f"as of {moment.as_of.isoformat()} ({collectors or 'no collector yet'})")


def _settle_window(it: _Run, window: windows.Window, moment: Moment) -> Iterator[Step]:
    only = None if it.request.customer is None else [it.request.customer]
    found = usage.aggregates(
        it.world.client, it.world.namespace, window.period, it.terms.dimensions, as_of=moment.as_of, customers=only
    )
    mine = window.customers(found, it.request.customer)
    events = sum(row.events for name in mine for row in found.get(name, ()))
    users = sum(name in found for name in mine)
    yield Step("usage", f"{window.period}: {counted(events, 'event')} of {counted(users, 'customer')}")
    for customer_id in mine:
        rows = found.get(customer_id, ())
        if customer_id not in it.terms.customers:
            yield from _register(it, customer_id)
        outcome = _settle(it, customer_id, window.period, rows, moment)
        if outcome.what != "nothing":
            yield _customer_step(outcome, it.request.dry_run)


def _register(it: _Run, customer_id: str) -> Iterator[Step]:
    """Put a customer that was not seen before on the namespace's default plan, where it has one."""
    world = it.world
    namespace = registry.namespace(world.engine, world.namespace)
    if namespace is None or namespace.default_plan is None or it.request.dry_run:
        return
    try:
        customer = _add(world, customer_id, namespace.default_plan)
    except registry.RegistryError:
        return  # such an id cannot be registered: its usage is listed as unrated
    contracts = [
        contract
        for contract in registry.contracts(world.engine, world.namespace)
        if contract.customer_id == customer_id
    ]
    it.terms = it.terms.with_customer(customer, contracts)
    yield Step("registered", f"{customer_id} on plan {namespace.default_plan}, first seen in usage")


def _add(world: World, customer_id: str, plan: str) -> registry.Customer:
    """Register the customer, or find it when another run registers it at this moment."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return registry.add_customer(
                world.engine, world.namespace, customer_id, plan=plan, origin=registry.AUTO, now=world.now()
            )
        except IntegrityError:
            if attempt == ATTEMPTS:
                raise
    raise AssertionError("the loop above returns or raises")


def _settle(it: _Run, customer_id: str, period: Period, rows: tuple[UsageRow, ...], moment: Moment) -> Outcome:
    world, mark = it.world, it.mark
    for attempt in range(1, ATTEMPTS + 1):
        try:
            if it.request.dry_run:
                with world.engine.connect() as connection:
                    return settle(
                        connection, it.terms, customer_id, period, rows, moment, mark, close=it.close, write=False
                    )
            with begin_write(world.engine) as connection:
                return settle(connection, it.terms, customer_id, period, rows, moment, mark, close=it.close)
        except IntegrityError:
            # Another run wrote the same rows first; they are looked at again.
            if attempt == ATTEMPTS:
                raise
        except WatermarkWentBack as behind:
            # Another run may simply have looked later: then this customer is rated on what is known now.
            mark = watermark(world.client)
            if attempt == ATTEMPTS or mark.went_backwards(dict(behind.recorded)):
                raise
            it.mark = mark
            moment = replace(it.moment, rated_at=moment.rated_at)
            found = usage.aggregates(
                world.client,
                world.namespace,
                period,
                it.terms.dimensions,
                as_of=moment.as_of,
                customers=[customer_id],
            )
            rows = found.get(customer_id, ())
    raise AssertionError("the loop above returns or raises")


def _customer_step(outcome: Outcome, dry_run: bool) -> Step:
    who = outcome.customer_id
    if outcome.rated is None or outcome.inputs is None:
        text = f"{who} {outcome.period}"
    else:
        amount = show(outcome.rated.total_minor, outcome.inputs.currency)
        text = f"{who} {amount} {outcome.inputs.currency} {outcome.period}"
    reasons = sorted({left.reason for left in outcome.exceptions})
    if reasons:
        text += f" (unrated usage: {', '.join(reasons)})"
    if not dry_run:
        return Step(outcome.what, text, outcome)
    return Step("would close" if outcome.what == "closed" else outcome.what, f"{text} (dry run)", outcome)


def _late(it: _Run, moment: Moment) -> Iterator[Step]:
    zones = {name: customer.time_zone for name, customer in it.terms.customers.items()}
    found = look(it.world, it.request.period, it.request.customer, zones, moment.as_of)
    if found:
        events = sum(late.events for late in found)
        text = f"{counted(events, 'event')} arrived after the period was closed, not billed"
        yield Step("late", text, late=found)


def _mirror(it: _Run) -> Iterator[Step]:
    copied = mirrors.catch_up(it.world.engine, it.world.client, it.world.namespace)
    if copied:
        yield Step("mirrored", f"{counted(copied, 'rating')} copied to the warehouse")
