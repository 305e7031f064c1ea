"""Operators' pages of prices: versions, proposals of others, and a draft that is checked, compared and simulated first.

A draft is in the form alone, nothing of it is kept before it is published or proposed, which goes through the same
functions as `meterhouse prices`.
"""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from starlette.responses import RedirectResponse, Response

from meterhouse_portal.operator_visit import ROWS, OperatorPage, OperatorVisit
from meterhouse_portal.visit import NotShown
from meterhouse_rating import amounts_in, periods, price_changes, publishing, simulate, versions
from meterhouse_rating.amounts_in import Amount, NoAmount
from meterhouse_rating.book import BookRefused, Checked, check
from meterhouse_rating.document import MAX_BYTES
from meterhouse_rating.periods import PeriodError
from meterhouse_rating.publishing import PublishingRefused
from meterhouse_rating.simulate import Simulation
from meterhouse_rating.versions import NotThere, SecondPersonNeeded, Version
from meterhouse_rating.world import World
from meterhouse_store import meters, registry

MAX_DRAFT: Final = 3 * MAX_BYTES
"""Bytes of a form with a price book in it: letters that are no ASCII take three as they are sent."""


def show_prices(visit: OperatorVisit, problem: str = "", said: str = "") -> Response:
    """Versions of the price book, and proposals that wait for a second person."""
    every = versions.versions(visit.engine, visit.namespace)
    proposals = publishing.proposals(visit.engine, visit.namespace)
    newest = every[-1].source if every else ""
    return visit.page(
        "operator_prices.html", problem=problem, said=said, versions=every[::-1][:ROWS],
        proposals=proposals[::-1][:ROWS], two_persons=publishing.two_persons(visit.engine, visit.namespace),
        changes=_changes, newest=newest,
    )  # fmt: skip


def decide_prices(visit: OperatorVisit) -> Response:
    """Approve or reject a proposal."""
    with _refused() as refusal:
        reference, why, now = visit.form.get("proposal", ""), visit.why, visit.clock()
        if visit.form.get("act") == "approve":
            publishing.approve(visit.engine, visit.namespace, reference, visit.units, by=visit.person, why=why, now=now)
        elif visit.form.get("act") == "reject":
            publishing.reject(visit.engine, visit.namespace, reference, by=visit.person, why=why, now=now)
        else:
            raise NotShown(visit.form.get("act", ""))
    return show_prices(visit, refusal[0]) if refusal else RedirectResponse("/operator/prices", 303)


# ---- a draft --------------------------------------------------------------------------------------------------------


def show_draft(visit: OperatorVisit) -> Response:
    """The newest price book to be changed: its amounts one by one, or all of its text."""
    return _draft(visit, _newest(visit))


def change_draft(visit: OperatorVisit) -> Response:
    """Put amounts into the text; or check, compare and simulate the text; or publish or propose it."""
    act, text = visit.form.get("act", ""), visit.form.get("text", "").replace("\r\n", "\n")
    if act == "amounts":
        new = {name: value for name, value in visit.form.items() if name.startswith("amount-")}
        try:
            return _looked_at(visit, amounts_in.changed(text, new))
        except NoAmount as wrong:
            return _draft(visit, text, str(wrong))
    if act == "check":
        return _looked_at(visit, text)
    if act == "publish":
        return _publish(visit, text)
    raise NotShown(act)


def _looked_at(visit: OperatorVisit, text: str) -> Response:
    try:
        checked = check(text, visit.units)
    except BookRefused as refused:
        return _draft(visit, text, "The book has mistakes; nothing is published.", mistakes=refused.mistakes)
    last = f"{periods.month_of(visit.clock(), 'UTC').start - timedelta(days=1):%Y-%m}"
    made, trouble = None, ""
    try:
        with visit.stores.warehouse() as client:
            world = World(visit.engine, client, visit.namespace, meters.declared(visit.settings), now=visit.clock)
            made = simulate.simulate(world, text, [last], costs=False)
    except (NotThere, PeriodError) as wrong:
        trouble = f"{last} cannot be simulated: {wrong}"
    return _draft(visit, text, checked=checked, made=made, month=last, trouble=trouble)


def _publish(visit: OperatorVisit, text: str) -> Response:
    why, now = visit.why, visit.clock()
    try:
        began = _begin(visit.form.get("valid_from", ""))
        if publishing.two_persons(visit.engine, visit.namespace):
            made = publishing.propose(
                visit.engine, visit.namespace, text, visit.units, by=visit.person, valid_from=began, now=now
            )
            if isinstance(made, Version):
                return show_prices(visit, said=f"That is version {made.version} already.")
            proposal, new = made
            waits = "waits for another operator, below" if new else f"was proposed by {proposal.author} already"
            return show_prices(visit, said=f"Version {proposal.version} {waits}.")
        version, new = versions.publish(
            visit.engine, visit.namespace, text, visit.units, author=visit.person.name, valid_from=began, now=now
        )
    except BookRefused as refused:
        return _draft(visit, text, "The book has mistakes; nothing is published.", mistakes=refused.mistakes)
    except (PublishingRefused, SecondPersonNeeded, PeriodError) as refused:
        return _draft(visit, text, str(refused))
    if new:
        publishing.note_published(visit.engine, visit.namespace, version, by=visit.person, why=why, now=now)
    told = "is published" if new else "was published already"
    return show_prices(visit, said=f"Version {version.version} {told}. {_left_out(visit, version)}")


def _left_out(visit: OperatorVisit, version: Version) -> str:
    """A warning of plans that customers are on and the version lacks."""
    world = registry.namespace(visit.engine, visit.namespace)
    known, contracts = (
        versions.versions(visit.engine, visit.namespace),
        registry.contracts(visit.engine, visit.namespace),
    )
    missing = versions.plans_left_out(version, known, contracts, None if world is None else world.default_plan)
    if not missing:
        return ""
    return f"It lacks plans that customers are on: {', '.join(missing)}. Their usage will have no price."


def _draft(
    visit: OperatorVisit,
    text: str,
    problem: str = "",
    *,
    mistakes: list[Any] | None = None,
    checked: Checked | None = None,
    made: Simulation | None = None,
    month: str = "",
    trouble: str = "",
) -> Response:
    newest = _newest(visit)
    wrong = {it.line for it in mistakes or ()}
    return visit.page(
        "operator_draft.html", problem=problem, text=text, mistakes=mistakes or [], wrong=wrong,
        lines=text.splitlines() if mistakes else [], checked=checked, made=made, month=month, trouble=trouble,
        changed=[] if checked is None else price_changes.changes(newest, text) if newest else [],
        unified=[] if checked is None else _changes(newest, text), amounts=_amounts(text),
        two_persons=publishing.two_persons(visit.engine, visit.namespace), form=visit.form, rows=ROWS,
    )  # fmt: skip


def _amounts(text: str) -> list[Amount]:
    try:
        return amounts_in.amounts(text)
    except NoAmount:
        return []


def _newest(visit: OperatorVisit) -> str:
    every = versions.versions(visit.engine, visit.namespace)
    return every[-1].source if every else versions.starter()


def _begin(text: str) -> datetime | None:
    said = text.strip()
    return periods.instant(said).astimezone(UTC) if said else None


@contextmanager
def _refused() -> Iterator[list[str]]:
    said: list[str] = []
    try:
        yield said
    except PublishingRefused as refused:
        said.append(str(refused))


def _changes(old: str, new: str) -> list[str]:
    """The lines that differ, with + and -, and three around them."""
    return list(difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=3))[2:500]


PAGES: Final = (
    OperatorPage("GET", "/operator/prices", lambda visit: show_prices(visit)),
    OperatorPage("POST", "/operator/prices", decide_prices),
    OperatorPage("GET", "/operator/draft", show_draft),
    OperatorPage("POST", "/operator/draft", change_draft, MAX_DRAFT),
)
