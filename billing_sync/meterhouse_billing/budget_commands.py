"""`meterhouse budgets`: what is printed, and the exit codes; the work is done in `budget_round` and the registry."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meterhouse_billing import budget_output
from meterhouse_billing.command_line import operator
from meterhouse_rating.command_line import EXCEPTIONS, Data, Json, engine_of, existing, fail, print_json, refusals

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from meterhouse_billing.budget_state import State
    from meterhouse_rating.world import World
    from meterhouse_store.budgets import Budget
    from meterhouse_store.settings import Settings

budgets = typer.Typer(
    help="What customers may use, and what happens at the end of it.", no_args_is_help=True, add_completion=False
)

Customer = Annotated[str, typer.Argument(metavar="CUSTOMER", help="The customer's id.")]
Name = Annotated[str, typer.Argument(metavar="BUDGET", help="The budget's name, as `budgets list` shows it.")]
Why = Annotated[str, typer.Option(help="Kept with the change.")]
By = Annotated[str | None, typer.Option(help="Who; the user of this machine if not given.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what it would come to; write nothing.")]
Agent = Annotated[str, typer.Option(metavar="AGENT", help="One agent of the customer; all of them if not given.")]
_WAIT_S = 10.0


@budgets.command("set")
def _set(
    customer: Customer,
    why: Why,
    amount: Annotated[str | None, typer.Option(help="Money, in the customer's currency: 100.00.")] = None,
    units: Annotated[str | None, typer.Option(help="So many units of the meter or metric of --of.")] = None,
    of: Annotated[str, typer.Option(metavar="METER", help="agent.conversations, or a metric of the price book.")] = "",
    prepaid: Annotated[bool, typer.Option("--prepaid", help="What is there of credits, and no more.")] = False,
    per: Annotated[str, typer.Option(help="day, week or month, in the customer's time zone.")] = "month",
    agent: Agent = "",
    name: Annotated[str | None, typer.Option(help="Its name, if the usual one is taken.")] = None,
    soft: Annotated[bool, typer.Option("--soft", help="Tell, and stop nobody.")] = False,
    bill_over: Annotated[
        bool, typer.Option("--bill-over", help="Bill what is used above a hard cap all the same.")
    ] = False,
    thresholds: Annotated[str, typer.Option(help="Per cent at which a notice is written.")] = "50,80,100",
    by: By = None,
    dry_run: DryRun = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Set a budget of money, of units, or of a prepaid balance; a name that is there is set anew.

    At a hard cap (the default) model calls stop before the provider is called. What is used above it all the same
    (calls under way) is not billed, unless --bill-over says so.
    """
    from meterhouse_store import budgets as store
    from meterhouse_store.budgets import MONEY, PREPAID, UNITS, Budget

    chosen = [it for it, given in ((MONEY, amount), (UNITS, units), (PREPAID, prepaid)) if given]
    if len(chosen) != 1:
        raise typer.BadParameter("name one of --amount, --units and --prepaid")
    budget = Budget(
        customer,
        name or f"{of or chosen[0]}{f'@{agent}' if agent else ''}{'' if per == 'month' else f'/{per}'}",
        chosen[0],
        _number(amount or units or "0"),
        of=of,
        agent_id=agent,
        per=per,
        hard=not soft,
        bill_over=bill_over,
        thresholds=_thresholds(thresholds),
    )
    with _opened(data) as it:
        who = by or operator()
        store.set_budget(it.engine, it.namespace, budget, who=who, why=why, now=_now(), dry_run=dry_run)
        for known in store.standing(store.changes(it.engine, it.namespace, customer)):
            if known.name == budget.name:  # set anew it keeps what was acknowledged
                budget = replace(budget, acknowledged=known.acknowledged)
        it.show(customer, budget.name, as_json, instead=budget if dry_run else None)


@budgets.command("list")
def _list(
    customer: Annotated[str | None, typer.Option(help="Only this customer.")] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """List the budgets: what is used, what agents hold, what is left. Exit code 3 where one cannot be worked out."""
    with _opened(data) as it:
        it.show(customer, None, as_json)


@budgets.command("show")
def _show(customer: Customer, data: Data = None, as_json: Json = False) -> None:
    """Show a customer's budgets and pauses, and every change of them with who and why, in the customer's time zone."""
    with _opened(data) as it:
        it.show(customer, None, as_json, history=True)


@budgets.command("raise")
def _raise(
    customer: Customer,
    name: Name,
    why: Why,
    to: Annotated[str | None, typer.Option(help="The new limit.")] = None,
    more: Annotated[str | None, typer.Option("--by-amount", help="So much more than now.")] = None,
    by: By = None,
    dry_run: DryRun = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Another limit for the period of now; the next one has the old limit again (`budgets set` changes it for good)."""
    from meterhouse_store import budgets as store

    if (to is None) == (more is None):
        raise typer.BadParameter("name --to or --by-amount")
    with _opened(data) as it:
        state = it.state(customer, name)
        limit = _number(to) if to is not None else state.limit + _number(more or "0")
        start = state.period.start
        said: dict[str, Any] = {"who": by or operator(), "why": why, "now": _now(), "dry_run": dry_run}
        store.raise_limit(it.engine, it.namespace, state.budget, limit, start, **said)
        raised = replace(state.budget, raised={start.astimezone(UTC).isoformat(): limit})
        it.show(customer, name, as_json, instead=raised if dry_run else None)


@budgets.command("acknowledge")
def _acknowledge(
    customer: Customer, name: Name, why: Why, by: By = None, dry_run: DryRun = False, data: Data = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Let calls go on above the cap in the period of now: what they use is wanted, and billed."""
    from meterhouse_store import budgets as store

    with _opened(data) as it:
        state = it.state(customer, name)
        start = state.period.start
        said: dict[str, Any] = {"who": by or operator(), "why": why, "now": _now(), "dry_run": dry_run}
        store.acknowledge(it.engine, it.namespace, state.budget, start, **said)
        acknowledged = replace(state.budget, acknowledged=frozenset([start.astimezone(UTC).isoformat()]))
        it.show(customer, name, as_json, instead=acknowledged if dry_run else None)


@budgets.command("remove")
def _remove(
    customer: Customer, name: Name, why: Why, by: By = None, dry_run: DryRun = False, data: Data = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Remove a budget; its changes stay on record."""
    from meterhouse_store import budgets as store

    with _opened(data) as it:
        budget = it.state(customer, name).budget
        who = by or operator()
        store.remove(it.engine, it.namespace, budget, who=who, why=why, now=_now(), dry_run=dry_run)
        it.show(customer, None, as_json, without=name if dry_run else None)


@budgets.command("pause")
def _pause(
    customer: Customer, why: Why, agent: Agent = "",
    reason: Annotated[str, typer.Option(help="What it is lifted by.")] = "operator",
    by: By = None, dry_run: DryRun = False, data: Data = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Stop a customer's model calls; agents that hold a lease go on with it, for a minute at most."""
    from meterhouse_store import budgets as store

    _turn(store.pause, customer, reason, agent, why, by, dry_run, data, as_json)


@budgets.command("unpause")
def _unpause(
    customer: Customer, why: Why, agent: Agent = "",
    reason: Annotated[str, typer.Option(help="The pause to lift; those of other reasons stay.")] = "operator",
    by: By = None, dry_run: DryRun = False, data: Data = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Lift a pause; the agents' next calls go out, after three seconds at most."""
    from meterhouse_store import budgets as store

    _turn(store.lift, customer, reason, agent, why, by, dry_run, data, as_json)


@budgets.command("policy")
def _policy(
    customer: Customer,
    why: Why,
    pause_at: Annotated[str, typer.Option(help="call, or task: a task under way may end.")] = "call",
    on_unreachable: Annotated[str, typer.Option(help="allow (fail open) or pause (fail closed).")] = "allow",
    by: By = None,
    dry_run: DryRun = False,
    data: Data = None,
) -> None:
    """Say how a customer's agents are stopped, and whether they go on while the collector does not answer."""
    from meterhouse_billing import budget_round
    from meterhouse_store import budgets as store
    from meterhouse_store.budgets import Policy

    with _opened(data) as it:
        policy = Policy(pause_at, on_unreachable)
        who = by or operator()
        store.set_policy(it.engine, it.namespace, customer, policy, who=who, why=why, now=_now(), dry_run=dry_run)
        if not dry_run:
            budget_round.run(it.world, customer)
        print(f"{customer}: pauses at a {pause_at}; {on_unreachable} while nobody answers.{_dry(dry_run)}")


@budgets.command("apply")
def _apply(data: Data = None, as_json: Json = False) -> None:
    """Work out all budgets once: what agents may use, and which notices are due. Exit code 3 where one has trouble."""
    from meterhouse_billing import budget_mirror, budget_round, payment_pauses
    from meterhouse_billing.payment_pauses import PauseSettings

    with _opened(data) as it:
        payment_pauses.follow(it.engine, it.namespace, PauseSettings(), _now())
        done = budget_round.run(it.world)
        budget_mirror.copy(it.world, done)
        if as_json:
            print_json(budget_output.as_json(done) | {"new_notices": done.notices})
        else:
            print(budget_output.summary(done))
        _exit(done.states)


@budgets.command("watch")
def _watch(
    data: Data = None,
    every: Annotated[float, typer.Option(min=0.2, max=60, metavar="SECONDS", help="How often is looked.")] = 5.0,
) -> None:
    """Do what `apply` does whenever there is something new, until it is stopped; `meterhouse jobs` runs this."""
    from meterhouse_billing.budget_watch import watch

    with refusals():
        settings = existing(data)
        watch(
            settings,
            every,
            lambda done: print(f"{_now():%Y-%m-%dT%H:%M:%SZ} {budget_output.summary(done)}", flush=True),
        )


# ---- what is shown


class _Opened:
    """The stores of one command."""

    def __init__(self, settings: "Settings") -> None:
        self.settings, self.namespace = settings, settings.namespace
        self.engine: Engine = engine_of(settings)
        self._world: World | None = None

    @property
    def world(self) -> "World":
        from meterhouse_rating.command_line import world_of

        if self._world is None:
            self._world = world_of(self.settings, self.engine, timeout_s=_WAIT_S)
        return self._world

    def state(self, customer: str, name: str) -> "State":
        """How one budget stands; ends the command where there is none of the name."""
        from meterhouse_billing import budget_round

        found = budget_round.run(self.world, customer, write=False).states
        named = [it for it in found if it.budget.name == name]
        if not named:
            has = ", ".join(it.budget.name for it in found) or "none"
            fail(f"{customer} has no budget {name} (it has {has}): `meterhouse budgets set` makes one")
        return named[0]

    def show(
        self,
        customer: str | None,
        name: str | None,
        as_json: bool,
        *,
        instead: "Budget | None" = None,
        without: str | None = None,
        history: bool = False,
    ) -> None:
        """Bring budgets to the collector and print them; of `instead` or `without` only what it would come to."""
        from meterhouse_billing import budget_round
        from meterhouse_billing.budget_state import read, states

        zones = self._zones()
        if customer is not None and customer not in zones:
            fail(f"{customer} is not registered: `meterhouse customers list` shows who is.")
        dry = instead is not None or without is not None
        done = budget_round.run(self.world, customer, write=not dry)
        if instead is not None:
            done = replace(done, states=tuple(states(read(self.world), [instead])))
        kept = [it for it in done.states if name in (None, it.budget.name) and it.budget.name != without]
        done = replace(done, states=tuple(kept))
        changes = self._changes(customer) if history and customer is not None else []
        if as_json:
            print_json(budget_output.as_json(done) | ({"changes": changes} if history else {}) | {"dry_run": dry})
        else:
            budget_output.print_round(done, zones)
            budget_output.print_changes(changes, zones.get(customer or "", "UTC"))
            if dry:
                print("Nothing was written (dry run).")
        _exit(done.states)

    def _zones(self) -> dict[str, str]:
        """The registered customers, with their time zones."""
        from meterhouse_store import registry

        return {it.customer_id: it.time_zone for it in registry.customers(self.engine, self.namespace)}

    def _changes(self, customer: str) -> list[dict[str, Any]]:
        from meterhouse_store import budgets as store
        from meterhouse_store.numbers import plain

        return [
            {
                "recorded_at": it.recorded_at.isoformat(),
                "budget": it.name,
                "change": it.change,
                "limit": None if it.amount is None else plain(it.amount),
                "who": it.who,
                "why": it.why,
            }
            for it in store.changes(self.engine, self.namespace, customer)
        ]


@contextmanager
def _opened(data: Any) -> Iterator[_Opened]:
    from meterhouse_billing.budget_round import TooBusy
    from meterhouse_store.registry import RegistryError

    with refusals():
        try:
            yield _Opened(existing(data))
        except (RegistryError, TooBusy) as refused:
            fail(f"{refused}.")


def _turn(
    turn: Any,
    customer: str,
    reason: str,
    agent: str,
    why: str,
    by: str | None,
    dry_run: bool,
    data: Any,
    as_json: bool,
) -> None:
    from meterhouse_store import budgets as store

    with _opened(data) as it:
        said = {"who": by or operator(), "why": why}
        now = _now()
        changed = turn(it.engine, it.namespace, customer, reason, agent_id=agent, **said, now=now, dry_run=dry_run)
        found = store.pauses(it.engine, it.namespace, customer)
        if changed and dry_run:
            found = [one for one in found if (one.agent_id, one.reason) != (agent, reason)]
            if turn is store.pause:
                found.append(store.Pause(customer, agent, reason, now, **said))
    if as_json:
        print_json({"changed": changed, "dry_run": dry_run, "pauses": [vars(one) for one in found]})
        return
    for one in found:
        print(f"{customer}{f', agent {one.agent_id}' if one.agent_id else ''} is paused: {one.reason} ({one.why})")
    if not found:
        print(f"{customer} is not paused.{_dry(dry_run)}")
    elif dry_run:
        print(_dry(dry_run).strip())


def _exit(found: Any) -> None:
    if any(it.trouble for it in found):
        raise typer.Exit(EXCEPTIONS)


def _number(text: str) -> Decimal:
    from meterhouse_store.numbers import D

    try:
        return D(text.replace("_", ""))
    except ValueError as wrong:
        raise typer.BadParameter(f"{wrong}") from None


def _thresholds(text: str) -> tuple[int, ...]:
    parts = [it.strip() for it in text.split(",") if it.strip()]
    if not all(it.isdigit() for it in parts):
        raise typer.BadParameter("thresholds are per cent, with commas: 50,80,100")
    return tuple(sorted({int(it) for it in parts}))


def _dry(dry_run: bool) -> str:
    return " Nothing was written (dry run)." if dry_run else ""


def _now() -> datetime:
    return datetime.now(UTC)
