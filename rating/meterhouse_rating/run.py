"""`rate run` and `rate close`: step by step, each step committed before it is reported.

A run can be stopped after any step and started again, or run beside another one: what is settled is found settled, and
what is not is done. The generators do the work; printing and exit codes are the caller's.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy.exc import IntegrityError

from meterhouse_rating import costs_rates, known, mirrors, restated, statements, windows
from meterhouse_rating.late import LateUsage, look
from meterhouse_rating.layout import counted
from meterhouse_rating.money import show
from meterhouse_rating.periods import Period
from meterhouse_rating.results import Moment, rating_id
from meterhouse_rating.settle import Outcome, Restated, Terms, WatermarkWentBack, settle
from meterhouse_rating.usage import Found, Watermark, watermark
from meterhouse_rating.world import World
from meterhouse_store import decided, decisions, registry
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
    customers: int = 0
    """How many customers are looked at next, where a period begins."""

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
    restated: Mapping[str, Sequence[Restated]] = field(default_factory=dict)

    @property
    def moment(self) -> Moment:
        now = self.world.now()
        return Moment(min(self.mark.as_of or now, now), self.mark.as_json(), now)


def run(world: World, request: Request) -> Iterator[Step]:
    """Rate what is asked for; open ratings are replaced where their inputs changed, closed ones only looked at.

    Raises PeriodError, WatermarkWentBack, NotThere when there is no price book.
    """
    it = _Run(world, request, known.terms(world), watermark(world.client))
    moment = it.moment
    _apply_decisions(world)
    it.restated = restated.changed(world, request.customer, moment.as_of)
    asked = windows.asked_for(world, request.period, request.customer, it.terms, moment.as_of)
    yield _watermark_step(it, moment)
    for window in asked:
        yield from _settle_window(it, window, moment)
    yield from _late(it, moment)
    if not request.dry_run:
        yield from _mirror(it)


def close(world: World, request: Request, *, grace: timedelta, wait_s: float) -> Iterator[Step]:
    """Rate a period for good: wait until the warehouse has all that was received up to its end and the grace, then
    freeze each customer's lines and post them to the ledger. Without a period: every month that is over and not closed.

    Raises what `run` raises, and NotYet for a period that is not over or a warehouse that does not get there in time.
    """
    terms = known.terms(world)
    moment_known = world.now()
    asked = list(windows.asked_for(world, request.period, request.customer, terms, moment_known))
    if request.period is None:
        asked = [window for window in asked if window.period.end + grace <= moment_known]
        if not asked:
            return
    due = max(window.period.end for window in asked) + grace
    if moment_known < due:
        raise NotYet(f"{request.period} can be closed from {due.isoformat()} on: its end and {grace} of grace")
    it = _Run(world, request, terms, _wait_for(world, due, wait_s), close=True)
    moment = it.moment
    _apply_decisions(world)
    it.restated = restated.changed(world, request.customer, moment.as_of)
    yield _watermark_step(it, moment)
    for window in asked:
        yield from _settle_window(it, window, moment)
    yield from _late(it, moment)
    if not request.dry_run:
        yield from _mirror(it)


def _apply_decisions(world: World) -> None:
    """Bring what was decided up to the moment that is rated into the warehouse: else it were neither rated nor late."""
    decisions.wait_for_others(world.engine)
    decided.apply(world.engine, world.client)


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
    found = known.gather(it.world, it.terms, window.period, moment.as_of, only)
    mine = window.customers(found, it.request.customer)
    events = sum(row.events for name in mine if name in found for row in found[name].rows)
    users = sum(name in found for name in mine)
    text = f"{window.period}: {counted(events, 'event')} of {counted(users, 'customer')}"
    yield Step("usage", text, customers=len(mine))
    for customer_id in mine:
        used = found.get(customer_id, Found())
        if customer_id not in it.terms.customers:
            yield from _register(it, customer_id)
            if it.terms.trial_end(customer_id, window.period) is not None:
                used = known.gather(it.world, it.terms, window.period, moment.as_of, [customer_id]).get(
                    customer_id, Found()
                )
        outcome = _settle(it, customer_id, window.period, used, moment)
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


def _settle(it: _Run, customer_id: str, period: Period, used: Found, moment: Moment) -> Outcome:
    world, mark = it.world, it.mark
    late = it.restated.get(customer_id, ())
    stated = None
    if it.close and not it.request.dry_run:
        stated = statements.gather(world, customer_id, period, moment.rated_at)
    for attempt in range(1, ATTEMPTS + 1):
        what = (it.terms, customer_id, period, used)
        try:
            if it.request.dry_run:
                with world.engine.connect() as connection:
                    return settle(connection, *what, moment, mark, close=it.close, write=False, restated=late)
            with begin_write(world.engine) as connection:
                outcome = settle(connection, *what, moment, mark, close=it.close, restated=late)
                if outcome.what == "closed" and stated is not None:
                    closed = rating_id(world.namespace, customer_id, period)
                    statements.keep(connection, closed, stated, moment.rated_at)
                return outcome
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
            used = known.gather(it.world, it.terms, period, moment.as_of, [customer_id]).get(customer_id, Found())
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
        becomes = " or ".join(sorted({late.becomes for late in found}, reverse=True))
        text = f"{counted(events, 'event')} arrived after the period was closed, {becomes}"
        yield Step("late", text, late=found)


def _mirror(it: _Run) -> Iterator[Step]:
    copied = mirrors.catch_up(it.world.engine, it.world.client, it.world.namespace)
    if copied:
        yield Step("mirrored", f"{counted(copied, 'rating')} copied to the warehouse")
    # After all that is about revenue: what is wrong with costs never stands in its way.
    told = costs_rates.keep_up(it.world)
    if told:
        yield Step("costs", told)
