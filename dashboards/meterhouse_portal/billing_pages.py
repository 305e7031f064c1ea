"""What it costs: invoices with every line explained, as pages, PDFs and evidence; credits; questions about lines."""

from typing import Final
from zoneinfo import ZoneInfo

from starlette.responses import Response

from meterhouse_portal import packs, questions
from meterhouse_portal.members import BILLING
from meterhouse_portal.rendering import STATES
from meterhouse_portal.visit import NotShown, Page, Visit, WrongField
from meterhouse_rating import explain, periods
from meterhouse_reports import drawing
from meterhouse_reports.documents import NoDocument
from meterhouse_store.language import Language
from meterhouse_store.registry import RegistryError


def invoices(visit: Visit) -> Response:
    """Rated periods with their invoices, and what was paid."""
    visit.query(set())
    mine, to = visit.account, visit.language
    zone = mine.customer().time_zone
    corrections = [
        {**it, "period": _days(it["period"], zone, to), "on": _place(it["on"], zone, to)} for it in mine.corrections()
    ]
    return visit.page("invoices.html", ratings=mine.ratings(), payments=mine.payments(), corrections=corrections)


def _days(span: str, zone: str, to: Language) -> str:
    """A period as the ledger writes it, by the days of the customer's zone."""
    period = periods.parse(span, "UTC")
    return to.say("%(start)s to %(end)s", start=to.day(period.start, zone), end=to.day(period.end, zone))


def _place(on: str, zone: str, to: Language) -> str:
    """Where a correction stands: `2026-10-01..2026-11-01 (closed)`, or `credit note 3f2a`."""
    span, _, state = on.partition(" (")
    if not state:
        return to.say("credit note %(name)s", name=on.removeprefix("credit note "))
    return f"{_days(span, zone, to)}, {to.translated(STATES.get(state.rstrip(')'), state.rstrip(')')))}"


def invoice(visit: Visit, wrong: RegistryError | None = None) -> Response:
    """One period: every line, each with the way to its explanation."""
    found = visit.account.rating(visit.id)
    if found is None:
        raise NotShown(visit.id)
    rating, lines = found
    pack = _pack(visit) if visit.with_packs else None
    name = pack and _pack_name(visit, pack)
    return visit.page("invoice.html", wrong=wrong, rating=rating, lines=lines, pack=pack, pack_name=name)


def show_invoice(visit: Visit) -> Response:
    """One period."""
    return invoice(visit)


def ask_pack(visit: Visit) -> Response:
    """Ask for the evidence pack of a closed period."""
    found, mine = visit.account.rating(visit.id), visit.account
    if found is None or not visit.with_packs:
        raise NotShown(visit.id)
    try:
        packs.ask(mine.engine, mine.namespace, mine.customer_id, found[0], mine.now)
    except RegistryError as wrong:
        return invoice(visit, wrong)
    return visit.to(f"/account/invoices/{visit.id}#evidence")


def pack(visit: Visit) -> Response:
    """The evidence pack, where one is made."""
    found = _pack(visit) if visit.with_packs else None
    if found is None or found.manifest_sha256 is None:
        raise NotShown(visit.id)
    blocks = packs.blocks(visit.account.engine, found)
    try:
        return visit.download(_pack_name(visit, found), blocks, "application/zip", size=found.bytes)
    except LookupError:  # its time was over between these lines
        raise NotShown(visit.id) from None


def _pack(visit: Visit) -> packs.Pack | None:
    return packs.of_rating(visit.account.engine, visit.account.namespace, visit.account.customer_id, visit.id)


def _pack_name(visit: Visit, pack: packs.Pack) -> str:
    zone = ZoneInfo(visit.account.customer().time_zone)
    start, end = (it.astimezone(zone) for it in (pack.period_start, pack.period_end))
    return f"evidence-{start:%Y-%m-%d}-{end:%Y-%m-%d}.zip"


def pdf(visit: Visit) -> Response:
    """The invoice as a document; a usage statement where there is none yet."""
    found = visit.account.rating(visit.id)
    if found is None:
        raise NotShown(visit.id)
    try:
        document = visit.account.document(found[0], visit.language)
    except NoDocument:
        raise NotShown(visit.id) from None
    day = found[0]["period_start"].astimezone(ZoneInfo(visit.account.customer().time_zone))
    name = f"{document.title.lower().replace(' ', '-')}-{day:%Y-%m-%d}.pdf"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(drawing.draw(document, visit.drawn_by.brand), media_type="application/pdf", headers=headers)


def line(visit: Visit, wrong: RegistryError | None = None) -> Response:
    """One line, explained, with what was asked about it."""
    found = visit.account.line(visit.id)
    if found is None:
        raise NotShown(visit.id)
    mine = visit.account
    asked = questions.of_customer(mine.engine, mine.namespace, mine.customer_id)
    return visit.page(
        "line.html", wrong=wrong, line=found, explanation=explain.sentences(found, visit.language),
        questions=[it for it in asked if it.line_id == found["line_id"]],
    )  # fmt: skip


def show_line(visit: Visit) -> Response:
    """One line, explained."""
    return line(visit)


def ask(visit: Visit) -> Response:
    """Ask about a line."""
    found = visit.account.line(visit.id)
    if found is None:
        raise NotShown(visit.id)
    mine, text = visit.account, visit.form.get("question", "")
    try:
        questions.ask(mine.engine, mine.namespace, mine.customer_id, found, text, who=visit.visitor.email, now=mine.now)
    except RegistryError as wrong:
        return line(visit, WrongField("question", str(wrong)))
    return visit.to(f"/account/lines/{found['line_id']}#questions")


def asked(visit: Visit) -> Response:
    """All that was asked and answered."""
    mine = visit.account
    return visit.page("questions.html", questions=questions.of_customer(mine.engine, mine.namespace, mine.customer_id))


def credits(visit: Visit) -> Response:
    """Credits with what is left of each grant."""
    grants = [it for it in visit.account.credits() if it.left_minor]
    left = sum(it.left_minor for it in grants if it.expires_at is None or it.expires_at > visit.account.now)
    return visit.page("credits.html", grants=grants, left=left)


PAGES: Final = (
    Page("GET", "/account/invoices", BILLING, invoices),
    Page("GET", "/account/invoices/{id}", BILLING, show_invoice),
    Page("GET", "/account/invoices/{id}/pdf", BILLING, pdf),
    Page("POST", "/account/invoices/{id}/evidence", BILLING, ask_pack),
    Page("GET", "/account/invoices/{id}/evidence.zip", BILLING, pack),
    Page("GET", "/account/lines/{id}", BILLING, show_line),
    Page("POST", "/account/lines/{id}", BILLING, ask),
    Page("GET", "/account/questions", BILLING, asked),
    Page("GET", "/account/credits", BILLING, credits),
)
