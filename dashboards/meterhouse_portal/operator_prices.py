"""Operators' pages of prices: versions, proposals of others, and a draft that is checked, compared and simulated first.

A draft is in the form alone, nothing of it is kept before it is published or proposed, which goes through the same
functions as `meterhouse prices`.
"""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any, Final

from starlette.responses import RedirectResponse, Response

from meterhouse_portal.operator_visit import ROWS, OperatorPage, OperatorVisit
from meterhouse_portal.stores import NoWarehouse
from meterhouse_portal.visit import NotShown
from meterhouse_rating import amounts_in, periods, price_changes, publishing, reach, simulate, versions
from meterhouse_rating.amounts_in import Amount, NoAmount
from meterhouse_rating.book import BookRefused, Checked, check
from meterhouse_rating.document import MAX_BYTES
from meterhouse_rating.ids import digest
from meterhouse_rating.periods import PeriodError
from meterhouse_rating.publishing import Proposal, PublishingRefused
from meterhouse_rating.reach import Reach
from meterhouse_rating.simulate import Simulation
from meterhouse_rating.versions import NotThere, SecondPersonNeeded, Version
from meterhouse_rating.world import World
from meterhouse_store import meters, registry

MAX_DRAFT: Final = 6 * MAX_BYTES
"""Bytes of a form with a price book in it, twice: letters that are no ASCII take three as they are sent."""

_MIXED: Final = (
    "Both the amounts and the text were changed, and they are not mixed. Nothing of it is lost: check one of the two, "
    "or change one back."
)
_CHANGED: Final = (
    "Nothing is published: this is not what was checked. Look at what it changes now, and publish it then."
)
_OPTION: Final = "a valid-from of {}"


def show_prices(visit: OperatorVisit, problem: str = "", said: str = "") -> Response:
    """Versions of the price book, and proposals that wait for a second person."""
    every = versions.versions(visit.engine, visit.namespace)
    proposals = publishing.proposals(visit.engine, visit.namespace)
    latest = _latest(every)
    newest = "" if latest is None else latest.source
    # Simulating reads the usage of a month at two prices: of the proposal that somebody looks at, alone.
    looked_at, now = visit.request.query_params.get("look") or visit.form.get("proposal", ""), visit.clock()
    open_books = [it for it in proposals[::-1][:ROWS] if it.state == publishing.OPEN and it.kind == publishing.BOOK]
    told = {it.proposal_id: reach.told(_proposed(visit, every, it, now), every, _OPTION) for it in open_books}
    effect = next(
        (_effect(visit, every, _proposed(visit, every, it, now), it.source, now)
         for it in open_books if it.proposal_id == looked_at), None
    )  # fmt: skip
    return visit.page(
        "operator_prices.html", problem=problem, said=said, versions=every[::-1][:ROWS],
        proposals=proposals[::-1][:ROWS], told=told, looked_at=looked_at, effect=effect, rows=ROWS,
        last=f"{_last_month(now):%Y-%m}", two_persons=publishing.two_persons(visit.engine, visit.namespace),
        changes=_changes, newest=newest,
    )  # fmt: skip


def _proposed(visit: OperatorVisit, known: list[Version], it: Proposal, now: datetime) -> Version:
    """The version that a proposal would be, approved now."""
    return versions.following(known, it.source, it.sha256, author=visit.person.name, valid_from=it.valid_from, now=now)


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
    """The price book that holds in the end, to be changed: its amounts one by one, or all of its text."""
    return _draft(visit, _newest(versions.versions(visit.engine, visit.namespace)))


def change_draft(visit: OperatorVisit) -> Response:
    """Check, compare and simulate what was typed, in the amounts or in the text; or publish or propose it as checked.

    One form has all that is typed, and `before`: the text that the amounts were read from.
    """
    act = visit.form.get("act", "")
    if act not in ("check", "amounts", "text", "publish"):
        raise NotShown(act)
    newest = _newest(versions.versions(visit.engine, visit.namespace))
    before, typed = _sent(visit, "before", newest), _sent(visit, "text", newest)
    new = {name: value for name, value in visit.form.items() if name.startswith("amount-")}
    try:
        with_amounts = amounts_in.changed(before, new) if new and act != "text" else before
    except NoAmount as wrong:
        return _draft(visit, typed, str(wrong), before=before)
    if act != "amounts" and typed not in (before, with_amounts) and with_amounts != before:
        return _draft(visit, typed, _MIXED, before=before, mixed=True)
    text = typed if act != "amounts" and typed != before else with_amounts
    try:
        began = _begin(visit.form.get("valid_from", ""))
    except PeriodError as refused:
        return _draft(visit, text, str(refused))
    if act == "publish":
        return _publish(visit, text, began)
    return _looked_at(visit, text, began)


def _sent(visit: OperatorVisit, name: str, newest: str) -> str:
    """A text as it was before a browser sent it, which ends lines in its own way."""
    text = visit.form.get(name, "").replace("\r\n", "\n")
    return newest if text == newest.replace("\r\n", "\n") else text


def _looked_at(visit: OperatorVisit, text: str, began: datetime | None, problem: str = "") -> Response:
    try:
        checked = check(text, visit.units)
    except BookRefused as refused:
        return _draft(visit, text, "The book has mistakes; nothing is published.", mistakes=refused.mistakes)
    known, sha256 = versions.versions(visit.engine, visit.namespace), checked.book.sha256
    standing = _standing(known, sha256, began)
    if standing is not None:
        return _draft(visit, text, problem, checked=checked, standing=standing)
    now = visit.clock()
    version = versions.following(known, text, sha256, author=visit.person.name, valid_from=began, now=now)
    effect = _effect(visit, known, version, text, now)
    return _draft(visit, text, problem, checked=checked, effect=effect)


@dataclass(frozen=True)
class Effect:
    """What a version that is not published yet would do; `reached` None: it would price no month.

    `made` is `month` with its prices, beside those of the version `beside`, which prices `first` without it (None: the
    versions that are in force in that month); it and `open_months` are None where there is `trouble`.
    """

    version: Version
    reached: Reach | None
    told: str
    open_months: dict[str, int] | None
    month: str
    beside: Version | None
    first: str
    made: Simulation | None
    trouble: str


def _last_month(now: datetime) -> datetime:
    """A moment in the last month that is over."""
    return periods.month_of(now, "UTC").start - timedelta(days=1)


def _effect(visit: OperatorVisit, known: list[Version], version: Version, text: str, now: datetime) -> Effect:
    reached = reach.reach(version, known)
    # A draft that is valid from the beginning is compared with what prices the month under way without it.
    first = periods.month_of(now, "UTC") if reached is None or reached.first.end < now else reached.first
    if reached is not None and reached.until is not None and first.start >= reached.until:
        first = reached.first
    beside = versions.in_force(known, first)
    last = f"{_last_month(now):%Y-%m}"
    made, trouble, open_months = None, "", None
    try:
        with visit.stores.warehouse() as client:
            world = World(visit.engine, client, visit.namespace, meters.declared(visit.settings), now=visit.clock)
            open_months = reach.open_months(world, version)
            made = simulate.simulate(world, text, [last], costs=False, beside=beside)
    except (NotThere, PeriodError) as wrong:
        trouble = f"{last} cannot be simulated: {wrong}"
    except NoWarehouse:
        trouble = "Usage cannot be read now; nothing is lost. Try again in a minute."
    said = reach.told(version, known, _OPTION)
    return Effect(version, reached, said, open_months, last, beside, f"{first.start:%Y-%m}", made, trouble)


def _publish(visit: OperatorVisit, text: str, began: datetime | None) -> Response:
    why, now = visit.why, visit.clock()
    try:
        sha256 = check(text, visit.units).book.sha256
        known = versions.versions(visit.engine, visit.namespace)
        standing = _standing(known, sha256, began)
        if standing is not None:
            return show_prices(visit, said=f"That is version {standing.version} already: nothing was published.")
        if visit.form.get("checked") != _seen(text, visit.form.get("valid_from", ""), known):
            return _looked_at(visit, text, began, _CHANGED)
        version = versions.following(known, text, sha256, author=visit.person.name, valid_from=began, now=now)
        if reach.reach(version, known) is None:
            return _looked_at(visit, text, began, reach.told(version, known, _OPTION))
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
    except (PublishingRefused, SecondPersonNeeded) as refused:
        return _draft(visit, text, str(refused))
    if new:
        publishing.note_published(visit.engine, visit.namespace, version, by=visit.person, why=why, now=now)
    told = "is published" if new else "was published already"
    known = versions.versions(visit.engine, visit.namespace)
    reaches = reach.told(version, known, _OPTION)
    return show_prices(visit, said=f"Version {version.version} {told}. {reaches} {_left_out(visit, version)}")


def _seen(text: str, valid_from: str, known: list[Version]) -> str:
    """What a page that was checked showed: a draft, from when, after which version."""
    return digest(["draft", text, valid_from.strip(), len(known)])


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
    before: str | None = None,
    mixed: bool = False,
    mistakes: list[Any] | None = None,
    checked: Checked | None = None,
    standing: Version | None = None,
    effect: Effect | None = None,
) -> Response:
    """The form; with `before`, amounts as they were typed beside a text that they were not put into."""
    known = versions.versions(visit.engine, visit.namespace)
    newest = _newest(known)
    wrong = {it.line for it in mistakes or ()}
    return visit.page(
        "operator_draft.html", problem=problem, text=text, mistakes=mistakes or [], wrong=wrong,
        lines=text.splitlines() if mistakes else [], checked=checked, standing=standing, effect=effect, mixed=mixed,
        changed=[] if checked is None else price_changes.changes(newest, text) if newest else [],
        unified=[] if checked is None else _changes(newest, text), before=text if before is None else before,
        amounts=_amounts(text if before is None else before), amounts_typed={} if before is None else visit.form,
        seen="" if effect is None else _seen(text, visit.form.get("valid_from", ""), known),
        two_persons=publishing.two_persons(visit.engine, visit.namespace), form=visit.form, rows=ROWS,
        latest=_latest(known),
    )  # fmt: skip


def _amounts(text: str) -> list[tuple[str, list[Amount]]]:
    """The amounts of each plan and add-on, in the order of the text."""
    try:
        found = amounts_in.amounts(text)
    except NoAmount:
        return []
    return [(group, list(some)) for group, some in groupby(found, lambda it: it.group)]


def _newest(known: list[Version]) -> str:
    latest = _latest(known)
    return versions.starter() if latest is None else latest.source


def _latest(known: list[Version]) -> Version | None:
    """The version that prices all months in the end: one that was published later for months before it does not."""
    return max(known, key=lambda it: (it.valid_from, it.version), default=None)


def _standing(known: list[Version], sha256: str, began: datetime | None) -> Version | None:
    """The version that a draft is already; None where there is something to publish."""
    latest = _latest(known)
    if began is None and latest is not None and latest.sha256 == sha256:
        return latest
    return versions.repeated(known, sha256, began)


def _begin(text: str) -> datetime | None:
    said = text.strip()
    return periods.beginning(said) if said else None


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
