"""Operators' pages: invoices to review, customers' questions, suspense, price books, and what was decided.

Everything is decided through the same functions as by the commands, in the name of whoever is signed in: so the rules
of two persons hold here, too.
"""

from typing import Final

from sqlalchemy import RowMapping
from starlette.responses import RedirectResponse, Response

from meterhouse_billing import approvals, disputes, records, reviews
from meterhouse_billing.gateway import BillingError
from meterhouse_billing.states import NotNow
from meterhouse_billing.world import Desk
from meterhouse_portal import operator_customers, operator_prices, packs, questions
from meterhouse_portal.operator_visit import ROWS, OperatorPage, OperatorVisit
from meterhouse_portal.stores import NoWarehouse
from meterhouse_portal.visit import NotShown
from meterhouse_rating import explain, publishing
from meterhouse_rating.settled import by_rating, lines_of
from meterhouse_store import audit_book, decisions, operator_changes, registry, suspended
from meterhouse_store.registry import RegistryError
from meterhouse_store.suspended import Filter

_DECIDED: Final = "Decided. The next rating run counts by it, or `meterhouse suspense apply` at once."
_LATEST: Final = 20
_VERBS: Final = ("approve", "hold", "finalise")

# ---- invoices -------------------------------------------------------------------------------------------------------


def show_reviews(visit: OperatorVisit, problem: str = "") -> Response:
    """What waits for an operator, the invoices that do with their lines and what there is to look at, and the latest
    that went out.
    """
    engine, namespace = visit.engine, visit.namespace
    found = reviews.waiting(engine, namespace)
    notes = reviews.notes_waiting(engine, namespace)
    shown, more = found[:ROWS], len(found) - ROWS
    with engine.connect() as connection:
        lines = by_rating(lines_of(connection, [it.invoice["rating_id"] for it in shown]))
    taken_back = disputes.listed(engine, namespace)
    customers = registry.customers(engine, namespace)
    on_a_plan = {it.customer_id for it in registry.contracts(engine, namespace)}
    proposals = [it for it in publishing.proposals(engine, namespace) if it.state == publishing.OPEN]
    changes = operator_changes.latest(engine, namespace, ROWS, waiting=True)
    no_packs = [it for it in packs.not_made(engine, namespace) if it.state == packs.FAILED or it.tries]
    figures = [
        ("Invoices that wait", len(found), "#invoices"),
        ("of them with something to look at", sum(bool(it.findings) for it in found), "#invoices"),
        ("Credit notes that wait", len(notes), "#notes" if notes else ""),
        ("Questions that wait", len(questions.of_all(engine, namespace, waiting=True)), "/operator/questions"),
        ("In suspense", _suspended(visit), "/operator/suspense"),
        ("Changes that wait", len(changes), "/operator/customers"),
        ("Prices that wait", len(proposals), "/operator/prices"),
        ("Payments taken back", len(taken_back), "#disputes" if taken_back else ""),
        ("Evidence packs not made", len(no_packs), "#packs" if no_packs else ""),
        ("Customers", len(customers), "/operator/customers"),
        ("of them without a plan", sum(it.customer_id not in on_a_plan for it in customers), "/operator/customers"),
    ]
    return visit.page(
        "operator_reviews.html", problem=problem, reviews=shown, more=more, notes=notes, lines=lines, figures=figures,
        disputes=taken_back[:ROWS], no_packs=no_packs[:ROWS],
        done=_decided_last(visit), latest=records.latest(engine, namespace, _LATEST),
        sentences=explain.sentences, no_stripe=_no_stripe(visit) if shown else "",
        zones={it.customer_id: it.time_zone for it in customers},
    )  # fmt: skip


def _decided_last(visit: OperatorVisit) -> RowMapping | None:
    """The invoice that was decided about just now, as it is since."""
    row = records.invoice(visit.engine, visit.request.query_params.get("done", "")[:64])
    return row if row is not None and row["namespace"] == visit.namespace else None


def _suspended(visit: OperatorVisit) -> int | None:
    """So many events are held back; None where the warehouse does not answer."""
    try:
        with visit.stores.warehouse() as client:
            return suspended.count(client, visit.namespace, Filter())
    except NoWarehouse:
        return None


def _no_stripe(visit: OperatorVisit) -> str:
    """Why nothing can be approved now; empty where Stripe's key is there."""
    try:
        visit.billing(visit.engine, visit.namespace, visit.visitor.email, visit.clock)
    except BillingError as refused:
        return str(refused)
    return ""


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
    who, why = visit.visitor.email, visit.why
    try:
        if verb == "hold":
            steps = approvals.hold(Desk(visit.engine, visit.namespace, who, visit.clock), draft, why)
        else:
            do = {"approve": approvals.approve, "finalise": approvals.finalise_approved}[verb]
            steps = do(visit.billing(visit.engine, visit.namespace, who, visit.clock), draft, why)
        for _ in steps:
            pass
    except (BillingError, NotNow) as refused:
        return show_reviews(visit, str(refused))
    return RedirectResponse(f"/operator?done={name}", 303)


# ---- questions ------------------------------------------------------------------------------------------------------


def show_questions(visit: OperatorVisit, problem: str = "") -> Response:
    """What customers ask about lines."""
    found = questions.of_all(visit.engine, visit.namespace, waiting=False)[:ROWS]
    with visit.engine.connect() as connection:
        rows = lines_of(connection, sorted({it.rating_id for it in found}))
    asked = {it.line_id for it in found}
    lines = {row["line_id"]: (row, explain.sentences(row)) for row in rows if row["line_id"] in asked}
    return visit.page("operator_questions.html", problem=problem, questions=found, lines=lines)


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
        customers=customers, choices=suspended.choices,
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
    *operator_prices.PAGES,
    *operator_customers.PAGES,
    OperatorPage("GET", "/operator/record", show_record),
)
