"""Operators' pages: invoices to review, customers' questions, suspense, price books, and what was decided.

Everything is decided through the same functions as by the commands, in the name of whoever is signed in: so the rules
of two persons hold here, too.
"""

import difflib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Engine
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from meterhouse_billing import approvals, gateway, records, reviews
from meterhouse_billing.gateway import BillingError
from meterhouse_billing.states import NotNow
from meterhouse_billing.world import World
from meterhouse_portal import questions
from meterhouse_portal.members import Visitor
from meterhouse_portal.rendering import Rendering
from meterhouse_portal.stores import Stores
from meterhouse_portal.visit import NotShown, Refused
from meterhouse_rating import publishing, versions
from meterhouse_rating.publishing import Person, PublishingRefused
from meterhouse_store import audit_book, decisions, meters, registry, suspended
from meterhouse_store.registry import RegistryError
from meterhouse_store.settings import Settings
from meterhouse_store.suspended import Filter

ROWS: Final = 100
_DECIDED: Final = "Decided. The next rating run counts by it, or `meterhouse suspense apply` at once."
_VERBS: Final = ("approve", "hold", "finalise")

BillingWorld = Callable[[Engine, str, str, Callable[[], datetime]], World]
"""(SQL, namespace, who, clock) -> what billing works with. Raises BillingError where Stripe cannot be reached."""


def billing_world(engine: Engine, namespace: str, who: str, now: Callable[[], datetime]) -> World:
    """Billing with the Stripe key of the environment."""
    registered = registry.namespace(engine, namespace)
    is_live = registered is not None and registered.kind == "live"
    return World(engine, gateway.connect(os.environ, live=is_live), namespace, who, now)


@dataclass(frozen=True)
class OperatorVisit:
    """An operator's request, and the stores."""

    request: Request
    visitor: Visitor
    settings: Settings
    stores: Stores
    form: Mapping[str, str]
    drawn_by: Rendering
    clock: Callable[[], datetime]
    billing: BillingWorld

    @property
    def engine(self) -> Engine:
        return self.stores.engine()

    @property
    def namespace(self) -> str:
        return self.settings.namespace

    @property
    def why(self) -> str:
        """The reason, which every decision has. Raises Refused."""
        said = self.form.get("why", "").strip()
        if not 1 <= len(said) <= 400:
            raise Refused("Say why, in at most 400 characters: it is kept with the decision.")
        return said

    def page(self, template: str, *, problem: str = "", **values: Any) -> HTMLResponse:
        """The template, filled."""
        told = {"visitor": self.visitor, "path": self.request.url.path, "zone": "UTC", "problem": problem}
        return HTMLResponse(self.drawn_by.page(template, **told, **values), 422 if problem else 200)


Handler = Callable[[OperatorVisit], Response]


@dataclass(frozen=True)
class OperatorPage:
    """One page of the operators'."""

    method: str
    path: str
    handler: Handler


# ---- invoices -------------------------------------------------------------------------------------------------------


def show_reviews(visit: OperatorVisit, problem: str = "") -> Response:
    """The invoices that wait, each with what there is to look at."""
    found = reviews.waiting(visit.engine, visit.namespace)
    notes = reviews.notes_waiting(visit.engine, visit.namespace)
    more = len(found) - ROWS
    return visit.page("operator_reviews.html", problem=problem, reviews=found[:ROWS], more=more, notes=notes)


def decide_invoice(visit: OperatorVisit) -> Response:
    """Approve, hold or finalise one of them."""
    verb, name = visit.form.get("act", ""), str(visit.request.path_params["id"])
    if verb not in _VERBS:
        raise NotShown(verb)
    row = records.invoice(visit.engine, name)
    if row is None or row["namespace"] != visit.namespace:
        raise NotShown(name)
    drafts = records.drafts(visit.engine, visit.namespace, customer_id=row["customer_id"])
    draft = next((it for it in drafts if it.invoice_id == name), None)
    if draft is None:
        raise NotShown(name)
    do = {"approve": approvals.approve, "hold": approvals.hold, "finalise": approvals.finalise_approved}[verb]
    try:
        world = visit.billing(visit.engine, visit.namespace, visit.visitor.email, visit.clock)
        for _ in do(world, draft, visit.why):
            pass
    except (BillingError, NotNow) as refused:
        return show_reviews(visit, str(refused))
    return RedirectResponse("/operator", 303)


# ---- questions ------------------------------------------------------------------------------------------------------


def show_questions(visit: OperatorVisit, problem: str = "") -> Response:
    """What customers ask about lines."""
    found = questions.of_all(visit.engine, visit.namespace, waiting=False)[:ROWS]
    return visit.page("operator_questions.html", problem=problem, questions=found)


def answer_question(visit: OperatorVisit) -> Response:
    """Answer one of them."""
    form = visit.form
    try:
        questions.answer(
            visit.engine, visit.namespace, form.get("question", ""), form.get("outcome", ""), form.get("why", ""),
            who=visit.visitor.email, now=visit.clock(),
        )  # fmt: skip
    except RegistryError as wrong:
        return show_questions(visit, str(wrong))
    return RedirectResponse("/operator/questions", 303)


# ---- suspense -------------------------------------------------------------------------------------------------------


def show_suspense(visit: OperatorVisit, problem: str = "", said: str = "") -> Response:
    """What is held back, the latest first; of one reason, or all."""
    reason = visit.request.query_params.get("reason") or None
    with visit.stores.warehouse() as client:
        rows = suspended.find(client, visit.namespace, Filter(reason=reason), ROWS)
        total = suspended.count(client, visit.namespace, Filter(reason=reason))
    customers = [it.customer_id for it in registry.customers(visit.engine, visit.namespace)][:1000]
    return visit.page(
        "operator_suspense.html", problem=problem, said=said, rows=rows, total=total, reason=reason,
        customers=customers,
    )  # fmt: skip


def decide_suspense(visit: OperatorVisit) -> Response:
    """Assign, release or discard the chosen row. The next rating run counts it; nothing is taken back silently."""
    form, act = visit.form, visit.form.get("act", "")
    which = Filter(events=(form.get("event", ""),), meter=form.get("meter") or None, reason=form.get("reason") or None)
    with visit.stores.warehouse() as client:
        # The row that was on the page, as it was then: others may have the same event id.
        rows = [
            it
            for it in suspended.find(client, visit.namespace, which, ROWS)
            if (it.key.row_id, it.decision_id) == (form.get("row", ""), form.get("follows", ""))
        ]
        if not rows:
            return show_suspense(visit, "That row is not there any more, or was decided about meanwhile: look again.")
        customer = form.get("customer", "")
        if act == "assign":
            if not any(it.customer_id == customer for it in registry.customers(visit.engine, visit.namespace)):
                return show_suspense(visit, f"There is no customer {customer!r}: choose one of the list.")
            counting = suspended.counting(client, visit.namespace, which, customer)
            ruling = suspended.assign(rows, customer, counting)
        elif act == "release":
            ruling = suspended.release(rows, suspended.counting(client, visit.namespace, which))
        elif act == "discard":
            ruling = suspended.discard(rows)
        else:
            raise NotShown(act)
    if ruling.refused:
        return show_suspense(visit, "; ".join(sentence for sentence, _ in ruling.refused))
    try:
        who = visit.visitor.email
        decisions.record(visit.engine, ruling.drafts, why=visit.why, who=who, clock=visit.clock)
    except decisions.DecidedMeanwhile as meanwhile:
        return show_suspense(visit, str(meanwhile))
    return show_suspense(visit, said=_DECIDED)


# ---- prices ---------------------------------------------------------------------------------------------------------


def show_prices(visit: OperatorVisit, problem: str = "") -> Response:
    """Versions of the price book, and proposals that wait for a second person."""
    every = versions.versions(visit.engine, visit.namespace)
    proposals = publishing.proposals(visit.engine, visit.namespace)
    newest = every[-1].source if every else ""
    return visit.page(
        "operator_prices.html", problem=problem, versions=every[::-1][:ROWS], proposals=proposals[::-1][:ROWS],
        two_persons=publishing.two_persons(visit.engine, visit.namespace), changes=_changes, newest=newest,
    )  # fmt: skip


def decide_prices(visit: OperatorVisit) -> Response:
    """Approve or reject a proposal."""
    with _prices_refused() as refusal:
        person = Person(visit.visitor.email, "portal")
        reference, why, now = visit.form.get("proposal", ""), visit.why, visit.clock()
        if visit.form.get("act") == "approve":
            declared = {name: it.unit for name, it in meters.declared(visit.settings).items()}
            publishing.approve(visit.engine, visit.namespace, reference, declared, by=person, why=why, now=now)
        elif visit.form.get("act") == "reject":
            publishing.reject(visit.engine, visit.namespace, reference, by=person, why=why, now=now)
        else:
            raise NotShown(visit.form.get("act", ""))
    return show_prices(visit, refusal[0]) if refusal else RedirectResponse("/operator/prices", 303)


@contextmanager
def _prices_refused() -> Iterator[list[str]]:
    said: list[str] = []
    try:
        yield said
    except PublishingRefused as refused:
        said.append(str(refused))


def _changes(old: str, new: str) -> list[str]:
    """The lines that differ, with + and -, and three around them."""
    return list(difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=3))[2:500]


# ---- what was decided -----------------------------------------------------------------------------------------------


def show_record(visit: OperatorVisit) -> Response:
    """What was changed last, with who and why: the audit log's latest rows."""
    entries = [
        (it.changed_at, _about(it), audit_book.told(it.details).replace(" -> ", " → "), it.who, it.why)
        for it in audit_book.entries(visit.engine, visit.namespace, limit=ROWS)
    ]
    return visit.page("operator_record.html", entries=entries)


def _about(it: audit_book.Entry) -> str:
    of = f" of {it.customer_id}" if it.customer_id else ""
    return f"{it.what}{of}" + (f": {it.subject}" if it.subject and it.what not in _BY_CUSTOMER else "")


_BY_CUSTOMER: Final = ("invoice", "credit note")
"""What people know by its customer; its id says nothing to them."""

PAGES: Final = (
    OperatorPage("GET", "/operator", lambda visit: show_reviews(visit)),
    OperatorPage("POST", "/operator/invoices/{id}", decide_invoice),
    OperatorPage("GET", "/operator/questions", lambda visit: show_questions(visit)),
    OperatorPage("POST", "/operator/questions", answer_question),
    OperatorPage("GET", "/operator/suspense", lambda visit: show_suspense(visit)),
    OperatorPage("POST", "/operator/suspense", decide_suspense),
    OperatorPage("GET", "/operator/prices", lambda visit: show_prices(visit)),
    OperatorPage("POST", "/operator/prices", decide_prices),
    OperatorPage("GET", "/operator/record", show_record),
)
