"""Budgets: how they stand, what was told of them, and the one that members set themselves.

A member's budget is called `own`. Members change that one alone: what the operator, a contract or a plan limits is
theirs to read. What passes their own cap is billed: else it were a way to use for nothing.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from starlette.responses import Response

from meterhouse_billing import budget_round, notice_texts
from meterhouse_billing.budget_state import State
from meterhouse_portal.members import BILLING
from meterhouse_portal.visit import NotShown, Page, Visit, WrongField
from meterhouse_store import budgets
from meterhouse_store.budgets import MONEY, Budget
from meterhouse_store.registry import RegistryError

OWN: Final = "own"
MAX_AMOUNT: Final = Decimal(10) ** 12
_EXAMPLE: Final = Decimal("1500.50")


def show(visit: Visit) -> Response:
    """Every budget with what is used of it, pauses, and notices."""
    visit.query(set())
    return _page(visit)


def change(visit: Visit) -> Response:
    """Set, raise, acknowledge or remove the members' own budget; agents that were stopped go on within seconds."""
    mine, form = visit.account, visit.form
    own = _own(mine.budgets().states)
    act = form.get("act", "set")
    who, now = visit.visitor.email, mine.now
    try:
        if own is None and any(it.budget.name == OWN for it in mine.budgets().states):
            raise RegistryError("The operator has a budget of that name: ask for another one.")
        if act == "set":
            limit, stop = _amount(visit), form.get("stop") == "yes"
            thresholds = _thresholds(visit)
            wanted = Budget(mine.customer_id, OWN, MONEY, limit, hard=stop, bill_over=True, thresholds=thresholds)
            budgets.set_budget(mine.engine, mine.namespace, wanted, who=who, why="portal", now=now)
        elif own is None:
            raise NotShown(act)
        else:
            _act(visit, own, act, who, now)
    except RegistryError as wrong:
        return _page(visit, wrong)
    budget_round.run(mine.world(), mine.customer_id)
    return visit.to("/account/budgets")


PAGES: Final = (
    Page("GET", "/account/budgets", BILLING, show),
    Page("POST", "/account/budgets", BILLING, change),
)


def _own(states: Sequence[State]) -> State | None:
    """The members' budget: in money, and what passes it is billed, or it would be a way to use for nothing."""
    named = (it for it in states if it.budget.name == OWN)
    return next((it for it in named if it.budget.bill_over and it.budget.measure == MONEY), None)


def _act(visit: Visit, own: State, act: str, who: str, now: datetime) -> None:
    engine, namespace = visit.account.engine, visit.account.namespace
    if act == "raise":
        limit = _amount(visit)
        if limit <= own.limit:
            raise WrongField("amount", "The limit of this month is that high already: write a larger amount.")
        budgets.raise_limit(engine, namespace, own.budget, limit, own.period.start, who=who, why="portal", now=now)
    elif act == "acknowledge":
        budgets.acknowledge(engine, namespace, own.budget, own.period.start, who=who, why="portal", now=now)
    elif act == "remove":
        budgets.remove(engine, namespace, own.budget, who=who, why="portal", now=now)
    else:
        raise NotShown(act)


def _page(visit: Visit, wrong: RegistryError | None = None) -> Response:
    mine = visit.account
    found = mine.budgets()
    own = _own(found.states)
    return visit.page(
        "budgets.html", wrong=wrong, states=found.states, pauses=found.pauses, own=own,
        notices=[(it["created_at"], _told(visit, it)) for it in mine.notices()],
    )  # fmt: skip


def _told(visit: Visit, notice: Mapping[str, Any]) -> str:
    facts, subject = notice["facts"], notice["subject"]
    return notice_texts.heading(notice["kind"], notice["customer_id"], subject, facts, visit.language)


def _amount(visit: Visit) -> Decimal:
    """The amount as the visitor's language writes it. Raises WrongField."""
    language = visit.language
    try:
        amount = language.read(visit.form.get("amount", ""), 2)
    except ValueError:
        full = language.fixed(_EXAMPLE, 2)
        raise WrongField("amount", language.say("Write the amount as 1500 or %(full)s.", full=full)) from None
    if not 0 < amount <= MAX_AMOUNT:
        raise WrongField("amount", "The amount is above 0.")
    return amount


def _thresholds(visit: Visit) -> tuple[int, ...]:
    """In per cent, in their order; the usual ones where none are written. Raises WrongField."""
    said = visit.form.get("thresholds", "").strip().rstrip(",")
    if not said:
        return budgets.THRESHOLDS
    try:
        found = sorted(set(visit.language.read_whole(said)))
    except ValueError:
        found = []
    if not 1 <= len(found) <= budgets.MAX_THRESHOLDS or found[0] < 1 or found[-1] > budgets.MAX_PERCENT:
        raise WrongField(
            "thresholds", "Write at most 20 thresholds in whole per cent from 1 to 1000, like this: 50, 80, 100."
        )
    return tuple(found)
