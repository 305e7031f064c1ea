"""What an invoice or a usage statement says: its lines with where each amount comes from, from the SQL database.

A document is a pure function of what is stored and of a language: made again it is the same. It is refused where it
would say another amount than the ledger. `meterhouse_reports.drawing` makes a PDF of it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, Engine, func, select

from meterhouse_rating import periods
from meterhouse_rating.explain import sentences
from meterhouse_rating.layout import unit_in
from meterhouse_rating.ledger import RECEIVABLE
from meterhouse_rating.money import show
from meterhouse_rating.periods import Period
from meterhouse_rating.report import SHORT_ID
from meterhouse_rating.results import Row
from meterhouse_rating.settled import CLOSED
from meterhouse_store import registry, tables
from meterhouse_store.language import ENGLISH, Language
from meterhouse_store.numbers import D

_ENGLISH: Final = Language(ENGLISH)
WENT_OUT: Final = frozenset({"finalised", "paid", "failed"})
"""States of an invoice that a customer has."""

KINDS: Final = {
    "usage": "Usage",
    "flat": "Fees",
    "minimum": "Minimum commitment",
    "credit_pack": "Credits bought",
    "discount": "Discounts",
    "correction": "Corrections of earlier periods",
    "credit_restored": "Credits given back",
    "credit_applied": "Credits applied",
}
FREE: Final = {
    "unbilled_meter": "free of charge",
    "unbilled_status": "failed or ended early: free of charge",
    "unbilled_task": "of a task that failed: free of charge",
    "unbilled_trial": "within the trial",
}
STATED: Final = {"event": "events", "stream": "streams"}
"""What a statement of completeness counts."""


class NoDocument(LookupError):
    """There is no such document, or it must not be made; the text says why, and what to do."""


@dataclass(frozen=True)
class Item:
    """A line: what, how much of it, at which price (where there is one price), and the sentences behind the amount."""

    description: str
    quantity: str
    price: str
    amount_minor: int
    details: tuple[str, ...]


@dataclass(frozen=True)
class Document:
    """An invoice or a statement as text, numbers for people; amounts in minor units of `currency`.

    `stamp` says what the document is not, such as `Draft: not issued`. `facts` are labels and values; `sums` the
    amounts by kind of line, which add up to the total; `free` is usage that is not charged: what, how much and why.
    All of it is in the `language`, but for names and what a price book says.
    """

    title: str
    reference: str
    stamp: str
    customer_id: str
    customer_name: str
    facts: tuple[tuple[str, str], ...]
    currency: str
    items: tuple[Item, ...]
    sums: tuple[tuple[str, int], ...]
    total_minor: int
    free: tuple[tuple[str, str, str], ...]
    notes: tuple[str, ...]
    language: Language = _ENGLISH


def invoice(engine: Engine, namespace: str, customer_id: str, period: str, language: Language = _ENGLISH) -> Document:
    """The invoice for a closed period, as it was issued: later payments do not change it. Raises NoDocument."""
    customer, rating, lines = _found(engine, namespace, customer_id, period)
    of = Period(rating["period_start"], rating["period_end"])
    if rating["state"] != CLOSED:
        raise NoDocument(
            f"{of} of {customer_id} is open, so there is no invoice yet: `meterhouse report statement` draws what it "
            "comes to by now, and `meterhouse rate close` closes it"
        )
    with engine.connect() as connection:
        query = select(tables.invoices).where(tables.invoices.c.rating_id == rating["rating_id"])
        row = connection.execute(query).mappings().one_or_none()
        tax = (0, 0) if row is None else _tax(connection, row["stripe_invoice_id"])
    if row is None:
        raise NoDocument(f"{of} of {customer_id} is closed and has no invoice: `meterhouse bill run` drafts it")
    zone = customer.time_zone
    went_out = row["state"] in WENT_OUT
    number_of = row["number"] or row["invoice_id"]
    say = language.say
    facts = [(say("Invoice number"), number_of)] if went_out or row["number"] else []
    if row["finalised_at"] is not None:
        facts.append((say("Date of issue"), _day(row["finalised_at"], zone, language)))
    stamp = "" if went_out else say("Void: not to be paid") if row["state"] == "void" else say("Draft: not issued")
    return _document(language, say("Invoice"), number_of, stamp, customer, rating, lines, facts, [], [], tax)


def statement(engine: Engine, namespace: str, customer_id: str, period: str, language: Language = _ENGLISH) -> Document:
    """What a period, open or closed, comes to by what is rated; with usage that is not charged. Raises NoDocument."""
    customer, rating, lines = _found(engine, namespace, customer_id, period)
    zone, closed, say = customer.time_zone, rating["state"] == CLOSED, language.say
    unrated = tables.unrated_usage
    query = select(unrated).where(
        unrated.c.namespace == namespace,
        unrated.c.customer_id == customer_id,
        unrated.c.period_start >= rating["period_start"],
        unrated.c.period_end <= rating["period_end"],
    )
    notes = []
    with engine.connect() as connection:
        rows = connection.execute(query.order_by(unrated.c.meter, unrated.c.unrated_id)).mappings()
        free = _free(rows, language)
        stated = tables.rating_statements
        wanted = select(stated.c.statement).where(stated.c.rating_id == rating["rating_id"])
        if (told := connection.execute(wanted).scalar_one_or_none()) is not None:
            notes.append(say("When the period was closed: %(verdict)s", verdict=_verdict(told, language)))
    state = say("closed") if closed else say("open: amounts can still change")
    facts = [(say("State"), state), (say("Usage received up to"), _moment(rating["as_of"], zone, language))]
    title, reference, stamp = say("Usage statement"), rating["rating_id"][:SHORT_ID], say("Not an invoice")
    return _document(language, title, reference, stamp, customer, rating, lines, facts, free, notes)


def _verdict(statement: Mapping[str, Any], language: Language) -> str:
    """A statement of completeness in a sentence: as it was made, or what it says in another language."""
    if language.code == ENGLISH:
        return str(statement["verdict"])
    streams = statement["streams"]
    counts = {"event": sum(stream["events"] for stream in streams), "stream": len(streams)}
    seen = {
        STATED[one]: f"{language.number(count)} {language.plural(one, STATED[one], count)}"
        for one, count in counts.items()
    }
    if not (exceptions := len(statement["exceptions"])):
        return language.say(
            "Complete as far as can be known: %(events)s of %(streams)s, nothing is held back and nothing is missing.",
            **seen,
        )
    return language.say(
        "Not certain to be complete: %(events)s of %(streams)s, %(count)s to look at.", **seen, count=exceptions
    )


def _found(engine: Engine, namespace: str, customer_id: str, text: str) -> tuple[registry.Customer, Row, list[Row]]:
    """The customer, the one rating that is in the period as written, and its lines in their order."""
    customer = registry.customer(engine, namespace, customer_id)
    if customer is None:
        raise NoDocument(f"there is no customer {customer_id!r}: `meterhouse customers list` shows them")
    period = periods.parse(text, customer.time_zone)
    of, line = tables.ratings.c, tables.rated_lines
    # Whatever reaches into the period: a part of it alone would look like the whole.
    query = select(tables.ratings).where(
        of.namespace == namespace,
        of.customer_id == customer_id,
        of.period_start < period.end,
        of.period_end > period.start,
    )
    with engine.connect() as connection:
        found = connection.execute(query.order_by(of.period_start)).mappings().all()
        if not found:
            raise NoDocument(f"nothing of {customer_id} is rated in {text}: `meterhouse rate run --period {text}`")
        if found[0]["period_start"] < period.start or found[-1]["period_end"] > period.end:
            raise NoDocument(f"what is rated of {customer_id} begins or ends outside of {text}: {_named(found)}")
        if len(found) > 1:
            raise NoDocument(
                f"{text} of {customer_id} was rated in parts, each with a document of its own: {_named(found)}"
            )
        rating = found[0]
        chosen = select(line).where(line.c.rating_id == rating["rating_id"]).order_by(line.c.position)
        lines: list[Row] = [dict(row) for row in connection.execute(chosen).mappings()]
        _check(connection, rating, lines)
    return customer, rating, lines


def _named(ratings: Iterable[Row]) -> str:
    """The ratings' periods, as `--period` takes them."""
    return ", ".join(f"--period {Period(row['period_start'], row['period_end'])}" for row in ratings)


def _check(connection: Connection, rating: Row, lines: Iterable[Row]) -> None:
    """The lines add up to the rating's total and, where it is closed, to what the ledger's receivable has of them."""
    transactions, entries = tables.ledger_transactions.c, tables.ledger_entries.c
    stations = {"the lines come to": sum(line["amount_minor"] for line in lines)}
    if rating["state"] == CLOSED:
        of_lines = select(tables.rated_lines.c.line_id).where(tables.rated_lines.c.rating_id == rating["rating_id"])
        query = (
            select(func.coalesce(func.sum(entries.amount_minor), 0))
            .select_from(tables.ledger_entries.join(tables.ledger_transactions))
            .where(
                transactions.namespace == rating["namespace"],
                transactions.source_id.in_(of_lines),
                entries.account == RECEIVABLE,
            )
        )
        stations["the ledger has"] = int(connection.execute(query).scalar_one())
    for what, amount in stations.items():
        if amount != rating["total_minor"]:
            raise NoDocument(
                f"rating {rating['rating_id']} is {rating['total_minor']} in minor units of {rating['currency']}, and "
                f"{what} {amount}: `meterhouse ledger verify` and docs/runbooks/reconciliation.md say what to do"
            )


def _tax(connection: Connection, stripe_invoice_id: str | None) -> tuple[int, int]:
    """Tax that Stripe put on top of an invoice, and within its lines."""
    table = tables.invoice_taxes
    row = (
        connection.execute(select(table).where(table.c.stripe_invoice_id == stripe_invoice_id)).mappings().one_or_none()
    )
    return (0, 0) if row is None else (row["added_minor"] or 0, row["contained_minor"] or 0)


def _document(
    language: Language,
    title: str,
    reference: str,
    stamp: str,
    customer: registry.Customer,
    rating: Row,
    lines: list[Row],
    facts: list[tuple[str, str]],
    free: list[tuple[str, str, str]],
    notes: list[str],
    tax: tuple[int, int] = (0, 0),
) -> Document:
    (added, contained), currency, say = tax, rating["currency"], language.say
    total = rating["total_minor"] + added
    zone, start, end = customer.time_zone, rating["period_start"], rating["period_end"]
    told = [
        *facts,
        (say("Period"), _span(start, end, zone, language)),
        (say("Time zone"), _zone(start, end, zone, language)),
        (say("Currency"), rating["currency"]),
        *([(say("Plan"), rating["plan"])] if rating["plan"] else []),  # none after the end of a contract
        (say("Total"), f"{_money(total, currency, language)} {currency}"),
    ]
    sums: dict[str, int] = {}
    for line in sorted(lines, key=lambda line: list(KINDS).index(line["kind"]) if line["kind"] in KINDS else 99):
        label = say(KINDS.get(str(line["kind"]), str(line["kind"])))
        sums[label] = sums.get(label, 0) + line["amount_minor"]
    if added:
        sums[say("Tax")] = added
    if contained:
        shown_tax = f"{_money(contained, currency, language)} {currency}"
        notes = [*notes, say("%(money)s of the total is tax.", money=shown_tax)]
    if total < 0:
        notes = [*notes, say("The total is in the customer's favour.")]
    how = say("Each line is rounded once, as it says; the total is the sum of the lines.")
    if added:
        how = say("Each line is rounded once, as it says; the total is the sum of the lines and the tax.")
    made_of = say(
        "Rating %(name)s, price book version %(version)s.", name=rating["rating_id"], version=rating["book_version"]
    )
    notes = [*notes, how, made_of]
    return Document(
        title=title,
        reference=reference,
        stamp=stamp,
        customer_id=customer.customer_id,
        customer_name=customer.name,
        facts=tuple(told),
        currency=rating["currency"],
        items=tuple(_item(line, language) for line in lines),
        sums=tuple(sums.items()),
        total_minor=total,
        free=tuple(free),
        notes=tuple(notes),
        language=language,
    )


def _item(line: Row, language: Language) -> Item:
    quantity, say = "", language.say
    if line["unit"]:
        quantity = f"{language.number(line['quantity'])} {unit_in(language, line['unit'], line['quantity'])}"
    own = {"*": say("without a price of its own")}
    dimensions = ", ".join(f"{name} {own.get(value, value)}" for name, value in line["dimensions"].items())
    named = line["kind"] == "usage" and dimensions
    details = [say("Only %(names)s.", names=dimensions)] if named else []
    return Item(
        line["description"],
        quantity,
        _price(line["explanation"], line["currency"], language),
        line["amount_minor"],
        (*details, *sentences(line, language), say("Line %(name)s.", name=line["line_id"])),
    )


def _price(explanation: Mapping[str, Any], currency: str, language: Language) -> str:
    """The price, where all of the line has one: tiers and shares stand in the sentences."""
    priced = [step for step in explanation["steps"] if "price" in step and "per" in step]
    if len(priced) != 1 or len(explanation["steps"]) != 1:
        return ""
    of = explanation.get("conversion", {}).get("currency", currency)
    per = D(priced[0]["per"])
    price = f"{language.number(D(priced[0]['price']))} {of}"
    return price if per == 1 else language.say("%(price)s per %(per)s", price=price, per=language.number(per))


def _free(rows: Iterable[Row], language: Language) -> list[tuple[str, str, str]]:
    sums: dict[tuple[str, str], Decimal] = {}
    for row in rows:
        key = (row["meter"], language.say(FREE.get(row["reason"], "has no price yet")))
        sums[key] = sums.get(key, Decimal(0)) + row["quantity"]
    return [(meter, language.number(quantity), why) for (meter, why), quantity in sums.items()]


def _money(amount_minor: int, currency: str, language: Language) -> str:
    """123456 of USD is `1,234.56`."""
    exact = Decimal(show(amount_minor, currency))
    return language.fixed(exact, len(show(amount_minor, currency).partition(".")[2]))


def _local(moment: datetime, zone: str) -> datetime:
    return moment.astimezone(ZoneInfo(zone))


def _day(moment: datetime, zone: str, language: Language) -> str:
    """1 November 2026, in German 1. November 2026."""
    return language.long_day(moment, zone)


def _moment(moment: datetime, zone: str, language: Language) -> str:
    return f"{_day(moment, zone, language)}, {_local(moment, zone):%H:%M:%S}"


def _span(start: datetime, end: datetime, zone: str, language: Language) -> str:
    """Whole days with the last one included; else both moments, of which the latter is not."""
    first, after = _local(start, zone), _local(end, zone)
    if not any((it.hour, it.minute, it.second, it.microsecond) != (0, 0, 0, 0) for it in (first, after)):
        last = after - timedelta(days=1)
        days = _day(start, zone, language), _day(last, zone, language)
        return language.say("%(start)s to %(end)s", start=days[0], end=days[1]) if last > first else days[0]
    moments = {"start": _moment(start, zone, language), "end": _moment(end, zone, language)}
    return language.say("%(start)s until before %(end)s", **moments)


def _zone(start: datetime, end: datetime, zone: str, language: Language) -> str:
    offsets = [f"UTC{_local(it, zone):%z}" for it in (start, end)]
    shown = [f"{it[:6]}:{it[6:]}" for it in offsets]
    if shown[0] == shown[1]:
        return f"{zone} ({shown[0]})"
    told = {"zone": zone, "first": shown[0], "then": shown[1]}
    return language.say("%(zone)s (%(first)s, from the change of clocks %(then)s)", **told)


def shown(amount_minor: int, document: Document) -> str:
    """An amount of the document with the digits of its currency: `1,234.56`."""
    return _money(amount_minor, document.currency, document.language)
