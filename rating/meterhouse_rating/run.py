"""`rate run` and `rate close`: step by step, each step committed before it is reported.

A run can be stopped after any step and started again, or run beside another one: what is settled is found settled, and
what is not is done. The generators do the work; printing and exit codes are the caller's.
"""

import gc
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from meterhouse_rating import costs_book, costs_rates, expiring, known, mirrors, news, reading, restated, windows
from meterhouse_rating.changes import Changes, lock
from meterhouse_rating.late import LateUsage, look
from meterhouse_rating.layout import counted
from meterhouse_rating.money import show
from meterhouse_rating.periods import Period, PeriodError
from meterhouse_rating.queries import EVERYBODY, Names
from meterhouse_rating.recorrect import Restated
from meterhouse_rating.results import Moment
from meterhouse_rating.settle import Outcome, WatermarkWentBack, settle
from meterhouse_rating.settled import CLOSED, Unwritten, pasts, standings
from meterhouse_rating.sorting import ConservationError
from meterhouse_rating.statements import Statements
from meterhouse_rating.terms import Terms
from meterhouse_rating.usage import Found, Watermark, watermark
from meterhouse_rating.world import World
from meterhouse_store import decided, decisions, registry
from meterhouse_store.sql import begin_write
from meterhouse_store.tables import rating_statements

BATCH: Final = 200
"""So many customers are settled in one transaction: a run that is stopped leaves each of them whole, old or new."""

ATTEMPTS: Final = 4
"""How often customers are settled anew when another run comes in between."""

_GARBAGE_AFTER: Final = 50_000
"""More objects than the customers of a transaction have."""

_POLL_S: Final = 0.5


@dataclass(frozen=True)
class Request:
    """What to rate: a period as written on the command line, or None for all that is due; one customer or all."""

    period: str | None
    customer: str | None = None
    dry_run: bool = False
    new: bool = False
    """Only what came since the last such request, of the months under way."""
    beside: bool = False
    """Of a period that overlaps closed ones, what lies beside them; else it is refused."""

    @property
    def customers(self) -> list[str] | None:
        """The one, or None for all."""
        return None if self.customer is None else [self.customer]


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
    dry: Unwritten = field(default_factory=Unwritten)
    """What a dry run has made so far: later periods go on from that."""

    @property
    def moment(self) -> Moment:
        now = self.world.now()
        return Moment(min(self.mark.as_of or now, now), self.mark.as_json(), now)


@contextmanager
def _garbage_seldom() -> Iterator[None]:
    """Look for garbage in cycles less often: nearly all that a run makes is in use until its customers are written,
    and to look through it every 700 objects takes an eighth of the time, and still a twentieth every 10,000.
    """
    before = gc.get_threshold()
    gc.set_threshold(_GARBAGE_AFTER, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def run(world: World, request: Request) -> Iterator[Step]:
    """Rate what is asked for; open ratings are replaced where their inputs changed, closed ones only looked at.

    Raises PeriodError, WatermarkWentBack, NotThere when there is no price book.
    """
    with _garbage_seldom():
        yield from _run_steps(world, request)


def _run_steps(world: World, request: Request) -> Iterator[Step]:
    it, moment = _begun(world, request, watermark(world.client))
    _apply_decisions(world)
    if request.new:
        yield from _new(it, moment)
        return
    it.restated = restated.changed(world, request.customers, moment.as_of)
    asked = windows.asked_for(world, request.period, request.customer, it.terms, moment.as_of, beside=request.beside)
    yield _watermark_step(it, moment)
    for window in asked:
        yield from _settle_window(it, window, moment)
    yield from _late(it, moment)
    if not request.dry_run:
        if request.period is None:
            yield from _expire(it, asked)
        yield from _mirror(it)


def _new(it: _Run, moment: Moment) -> Iterator[Step]:
    yield _watermark_step(it, moment)
    for base, window in news.windows(it.world, it.terms, it.mark, moment):
        yield from _settle_window(it, window, moment)
        # Only now: what a run that is stopped had not settled yet is still new to the next one.
        news.keep(it.world.engine, base)
    yield from _mirror(it)


def close(world: World, request: Request, *, grace: timedelta, wait_s: float) -> Iterator[Step]:
    """Rate a period for good: wait until the warehouse has all that was received up to its end and the grace, then
    freeze each customer's lines and post them to the ledger. Without a period: every month that is over and not closed.

    Raises what `run` raises, and NotYet for a period that is not over or a warehouse that does not get there in time.
    """
    with _garbage_seldom():
        yield from _close_steps(world, request, grace, wait_s)


def _close_steps(world: World, request: Request, grace: timedelta, wait_s: float) -> Iterator[Step]:
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
    it, moment = _begun(world, request, _wait_for(world, due, wait_s), close=True)
    _apply_decisions(world)
    it.restated = restated.changed(world, request.customers, moment.as_of)
    yield _watermark_step(it, moment)
    for window in asked:
        yield from _settle_window(it, window, moment)
    yield from _late(it, moment)
    if not request.dry_run:
        yield from _mirror(it)


def _begun(world: World, request: Request, mark: Watermark, *, close: bool = False) -> tuple[_Run, Moment]:
    """A run by what is known now, and its moment; of costs what had been recorded by then, so that they can be found
    again by it.
    """
    it = _Run(world, request, known.terms(world), mark, close)
    moment = it.moment
    it.terms = replace(it.terms, costs=costs_book.read(world.engine, world.namespace, moment.rated_at))
    return it, moment


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
    closes = it.close and not it.request.dry_run
    only = it.request.customer
    with (
        closing(Statements(it.world.client, it.world.namespace, window.period, moment.rated_at)) as stating,
        closing(reading.read(it.world, it.terms, window, moment.as_of, it.request.customers)) as ranges,
    ):
        done = _closed(it, window.period) if closes else set()
        members = window.customers({}, only)
        stated = {name for name in members if name not in done} if closes else set()
        if stated:
            stating.begin()
            stating.ask(sorted(stated))
        for names, found in ranges:
            mine = window.customers(found, only, names)
            if window.strangers and only is not None and only not in it.terms.customers and not mine:
                raise PeriodError(_nobody(only, window.period))
            yield _usage_step(window, names, mine, found, len(members))
            if closes:
                stating.ask([name for name in mine if name not in done and name not in stated])
            for start in range(0, len(mine), BATCH):
                batch = mine[start : start + BATCH]
                for customer_id in batch:
                    if customer_id not in it.terms.customers:
                        yield from _register(it, customer_id)
                        if it.terms.trial_end(customer_id, window.period) is not None:
                            found |= known.gather(it.world, it.terms, window.period, moment.as_of, [customer_id])
                used = {customer_id: found.pop(customer_id, Found()) for customer_id in batch}
                for outcome in _settle(it, window.period, used, moment, stating):
                    if outcome.what != "nothing":
                        yield _customer_step(outcome, it.request.dry_run)


def _nobody(customer_id: str, period: Period) -> str:
    return (
        f"{customer_id} is not registered and has used nothing in {period}: see `meterhouse customers list`, or "
        f"`meterhouse customers add {customer_id}`."
    )


def _usage_step(
    window: windows.Window, names: Names, mine: Sequence[str], found: Mapping[str, Found], members: int
) -> Step:
    """What was used by those of a range of names; the first of a period's says how many there are in all."""
    events = sum(row.events for name in mine if name in found for row in found[name].rows)
    users = sum(name in found for name in mine)
    among = "" if names == EVERYBODY or not mine else f" from {mine[0]} to {mine[-1]}"
    text = f"{window.period}: {counted(events, 'event')} of {counted(users, 'customer')}{among}"
    return Step("usage", text, customers=0 if names.first else max(members, len(mine)))


def _closed(it: _Run, period: Period) -> set[str]:
    """Whose period is closed already."""
    with it.world.engine.connect() as connection:
        every = standings(connection, it.world.namespace)
    return {one.customer_id for one in every if one.period == period and one.state == CLOSED}


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
    it.terms = it.terms.with_customer(customer, registry.contracts(world.engine, world.namespace, customer_id))
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


def _settle(
    it: _Run, period: Period, used: Mapping[str, Found], moment: Moment, stating: Statements
) -> Iterator[Outcome]:
    """Settle customers in one transaction; those before one that cannot be settled are settled all the same."""
    try:
        yield from _settle_all(it, period, used, moment, stating)
    except (PeriodError, ConservationError):
        if len(used) == 1:
            raise
        for customer_id, found in used.items():
            yield from _settle_all(it, period, {customer_id: found}, moment, stating)


def _settle_all(
    it: _Run, period: Period, used: Mapping[str, Found], moment: Moment, stating: Statements
) -> list[Outcome]:
    """All of the customers, or none of them."""
    world, mark, names = it.world, it.mark, sorted(used)
    if it.request.dry_run:
        with world.engine.connect() as connection:
            changes = Changes(world.namespace)
            outcomes = _settle_on(connection, it, period, used, moment, mark, changes)
        changes.imagine(it.dry)
        return outcomes
    stated = stating.of(names)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with begin_write(world.engine) as connection:
                lock(connection, world.namespace, names)
                changes = Changes(world.namespace)
                outcomes = _settle_on(connection, it, period, used, moment, mark, changes)
                closed = [outcome.customer_id for outcome in outcomes if outcome.what == "closed"]
                changes.add(rating_statements, [stated[name] for name in closed])
                changes.write(connection)
            return outcomes
        except IntegrityError:
            # Another run wrote the same rows first; they are looked at again.
            if attempt == ATTEMPTS:
                raise
        except WatermarkWentBack as behind:
            # Another run may simply have looked later: then these customers are rated on what is known now.
            mark = watermark(world.client)
            if attempt == ATTEMPTS or mark.went_backwards(dict(behind.recorded)):
                raise
            moment = replace(replace(it, mark=mark).moment, rated_at=moment.rated_at)
            now = known.gather(world, it.terms, period, moment.as_of, names)
            used = {name: now.get(name, Found()) for name in names}
    raise AssertionError("the loop above returns or raises")


def _settle_on(
    connection: Connection,
    it: _Run,
    period: Period,
    used: Mapping[str, Found],
    moment: Moment,
    mark: Watermark,
    changes: Changes,
) -> list[Outcome]:
    terms = it.terms
    zones = {name: terms.customers[name].time_zone if name in terms.customers else "UTC" for name in used}
    before = pasts(connection, terms.namespace, zones, period, for_long=terms.reaches_back(period))
    if it.request.dry_run:
        before = {name: past.after(name, it.dry) for name, past in before.items()}
    return [
        settle(
            connection,
            *(terms, name, period, used[name], past, moment, mark, changes),
            close=it.close,
            restated=it.restated.get(name, ()),
        )
        for name, past in before.items()
    ]


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


def _expire(it: _Run, due: Iterable[windows.Window]) -> Iterator[Step]:
    open_still = {name for one in due for name in one.members if not it.terms.over(name, one.period)}
    for name, lost, currency in expiring.expire(it.world, it.terms, it.request.customer, open_still):
        yield Step("expired", f"{name} {show(lost, currency)} {currency} of credits")


def _mirror(it: _Run) -> Iterator[Step]:
    copied = mirrors.catch_up(it.world.engine, it.world.client, it.world.namespace)
    if copied:
        yield Step("mirrored", f"{counted(copied, 'rating')} copied to the warehouse")
    # After all that is about revenue: what is wrong with costs never stands in its way.
    told = costs_rates.keep_up(it.world)
    if told:
        yield Step("costs", told)
