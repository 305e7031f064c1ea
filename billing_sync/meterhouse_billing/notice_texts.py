"""What notices say, in text and HTML, under the operator's name, logo and colour."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, time
from decimal import Decimal
from html import escape
from typing import Any, Final
from zoneinfo import ZoneInfo

from meterhouse_rating import periods
from meterhouse_store.brand import Brand
from meterhouse_store.language import ENGLISH, Language

LOGO: Final = "logo@meterhouse"
"""The content id of the logo in a message."""
_AMOUNT: Final = re.compile(r"-?[0-9]+(\.[0-9]+)?")


@dataclass(frozen=True)
class Text:
    """A message: subject, plain text and HTML."""

    subject: str
    text: str
    html: str


@dataclass(frozen=True)
class _Words:
    """The heading, what is said, a table (the last column is a number), and a page to go to."""

    heading: str
    sentences: tuple[str, ...]
    rows: tuple[tuple[str, str], ...] = ()
    link: tuple[str, str] | None = None


@dataclass(frozen=True)
class _Told:
    """What a notice is about, and the language it is told in."""

    customer_id: str
    facts: Mapping[str, Any]
    language: Language

    def say(self, message: str, /, **values: object) -> str:
        """The message, whose placeholders may also be the customer and any of the facts."""
        return self.language.translated(message) % {"customer": self.customer_id, **self.facts, **values}

    def amount(self, text: str) -> str:
        """An amount as the facts have it, 1200.50, as the language writes it; English has it as it is."""
        if self.language.tag == ENGLISH or not _AMOUNT.fullmatch(text):
            return text
        return self.language.fixed(Decimal(text), len(text.partition(".")[2]))

    @property
    def money(self) -> str:
        return f"{self.amount(self.facts['total'])} {self.facts['currency']}"

    @property
    def period(self) -> str:
        start, end = (datetime.fromisoformat(self.facts[name]) for name in ("period_start", "period_end"))
        shown = periods.shown(periods.Period(start, end), self._zone)
        if self.language.tag == ENGLISH:
            return shown.replace("..", " to ", 1)
        first, after = (
            self.language.day(it, self._zone) if self._is_midnight(it) else self.language.time(it, self._zone)
            for it in (start, end)
        )
        zone = "" if self._zone == "UTC" else f" {self._zone}"
        return self.language.say("%(start)s to %(end)s", start=first, end=after) + zone

    def day(self, name: str) -> str:
        """The day of a moment, in the customer's time zone."""
        return self.language.day(datetime.fromisoformat(self.facts[name]), self._zone)

    def moment(self, name: str) -> str:
        """A moment, in the customer's time zone."""
        at = datetime.fromisoformat(self.facts[name])
        return periods.local(at, self._zone) if self.language.tag == ENGLISH else self.language.time(at, self._zone)

    @property
    def budget(self) -> tuple[tuple[str, str], ...]:
        rows = [
            (self.say("Budget"), self.facts["budget"]),
            (self.say("Period"), self.period),
            (self.say("Used"), f"{self.amount(self.facts['used'])} {self.facts['unit']}"),
            (self.say("Limit"), f"{self.amount(self.facts['limit'])} {self.facts['unit']}"),
        ]
        if self.facts["agent_id"]:
            rows.insert(1, (self.say("Agent"), self.facts["agent_id"]))
        return tuple(rows)

    @property
    def items(self) -> tuple[tuple[str, str], ...]:
        more = [("...", self.say("%(more_lines)s more lines"))] if self.facts["more_lines"] else []
        lines = ((it["description"], self.amount(it["amount"])) for it in self.facts["lines"])
        tax = [(self.say("Tax"), self.amount(self.facts["tax"]))] if self.facts.get("tax") else []
        return (*lines, *more, *tax, (self.say("Total"), self.money))

    @property
    def page(self) -> tuple[str, str] | None:
        return (self.say("Look at the invoice"), self.facts["url"]) if self.facts["url"] else None

    @property
    def _zone(self) -> str:
        """The customer's time zone; notices of before it was kept with them told of UTC."""
        return str(self.facts.get("time_zone", "UTC"))

    def _is_midnight(self, moment: datetime) -> bool:
        return moment.astimezone(ZoneInfo(self._zone)).time() == time()


def of(kind: str, customer_id: str, subject: str, facts: Mapping[str, Any], brand: Brand) -> Text:
    """The message of a notice, in the brand's language."""
    told = _Told(customer_id, facts, Language(brand.language))
    words = _words(kind, subject, told)
    support = told.language.say("Questions? Write to %(support)s.", support=brand.support) if brand.support else ""
    return Text(f"{brand.name}: {words.heading}", _text(words, brand, support), _html(words, brand, support))


def heading(kind: str, customer_id: str, subject: str, facts: Mapping[str, Any], language: Language) -> str:
    """A notice in one line: what was kept of it in English, its heading in other languages."""
    if language.tag == ENGLISH:
        return subject
    return _words(kind, subject, _Told(customer_id, facts, language)).heading


def _words(kind: str, subject: str, told: _Told) -> _Words:
    say = _SAYINGS.get(kind)
    return _Words(subject, ()) if say is None else say(told)


def _threshold(it: _Told) -> _Words:
    said = it.say("%(customer)s has used %(threshold_percent)s %% of it.")
    hard = it.facts["hard"]
    end = it.say("Model calls stop when it is used up.") if hard else it.say("Nothing stops when it is used up.")
    return _Words(it.say("%(threshold_percent)s %% of a budget is used"), (f"{said} {end}",), it.budget)


def _cap(it: _Told) -> _Words:
    said = (
        it.say("%(customer)s has reached it, and its model calls are paused. What is under way ends."),
        it.say("Acknowledge or raise the budget, and calls go on within seconds."),
    )
    return _Words(it.say("A budget is used up: model calls are paused"), said, it.budget)


def _over(it: _Told) -> _Words:
    said = it.say(
        "Calls that were under way used %(over)s %(unit)s more than the cap of %(customer)s.",
        over=it.amount(it.facts["over"]),
    )
    return _Words(it.say("More than a cap was used"), (said,), it.budget)


def _paused(it: _Told) -> _Words:
    since = it.moment("since")
    if it.facts["agent_id"]:
        said = it.say("Model calls of agent %(agent_id)s of %(customer)s are paused since %(since)s.", since=since)
    else:
        said = it.say("Model calls of %(customer)s are paused since %(since)s.", since=since)
    rows = ((it.say("Reason"), it.facts["reason"]), (it.say("Said"), it.facts["why"]))
    return _Words(it.say("Model calls are paused"), (said,), rows)


def _pre_charge(it: _Told) -> _Words:
    said = [it.say("This is what %(customer)s will be charged for %(period)s.", period=it.period)]
    if it.facts["look_until"]:
        day = it.day("look_until")
        said.append(it.say("Until %(day)s there is time to look at it: tell us what is not right.", day=day))
    return _Words(it.say("%(money)s will be charged", money=it.money), tuple(said), it.items)


def _invoice(it: _Told) -> _Words:
    to_pay = it.facts.get("to_pay", it.facts["total"])  # an older notice does not say
    if Decimal(to_pay) == 0:
        said = it.say("Invoice %(number)s to %(customer)s for %(period)s. Nothing is left to pay.", period=it.period)
    elif to_pay == it.facts["total"]:
        said = it.say(
            "Invoice %(number)s to %(customer)s for %(period)s, due on %(day)s.", period=it.period, day=it.day("due_at")
        )
    else:
        said = it.say(
            "Invoice %(number)s to %(customer)s for %(period)s. %(left)s are left to pay, due on %(day)s.",
            period=it.period,
            left=f"{it.amount(to_pay)} {it.facts['currency']}",
            day=it.day("due_at"),
        )
    return _Words(it.say("Invoice %(number)s: %(money)s", money=it.money), (said,), it.items, it.page)


def _payment_failed(it: _Told) -> _Words:
    said = (
        it.say("The payment of %(money)s for invoice %(number)s of %(customer)s failed.", money=it.money),
        it.say("It will be tried again. Please look at your payment method."),
    )
    return _Words(it.say("A payment failed: invoice %(number)s"), said, (), it.page)


def _due(it: _Told) -> _Words:
    said = it.say(
        "Invoice %(number)s of %(customer)s over %(money)s is due on %(day)s.", money=it.money, day=it.day("due_at")
    )
    return _Words(it.say("Invoice %(number)s is due soon"), (said,), (), it.page)


def _overdue(it: _Told) -> _Words:
    said = it.say(
        "Invoice %(number)s of %(customer)s over %(money)s was due on %(day)s.", money=it.money, day=it.day("due_at")
    )
    return _Words(it.say("Invoice %(number)s is overdue"), (said, it.say("It is not paid yet.")), (), it.page)


def _receipt(it: _Told) -> _Words:
    said = it.say("Thank you: %(money)s for invoice %(number)s of %(customer)s arrived.", money=it.money)
    return _Words(it.say("Received: %(money)s", money=it.money), (said,), (), it.page)


def _top_up(it: _Told) -> _Words:
    bought = f"{it.amount(it.facts['amount'])} {it.facts['currency']}"
    if it.facts["automatic"]:
        said = it.say(
            "%(customer)s has %(bought)s more of credits, paid by its rule, because little was left.", bought=bought
        )
    else:
        said = it.say("%(customer)s has %(bought)s more of credits, paid on Stripe's page.", bought=bought)
    return _Words(it.say("Credits bought: %(bought)s", bought=bought), (said,))


def _top_up_failed(it: _Told) -> _Words:
    wanted = f"{it.amount(it.facts['amount'])} {it.facts['currency']}"
    said = (
        it.say("%(customer)s was to be charged %(wanted)s for more credits, which failed.", wanted=wanted),
        it.say(
            "No more credits are bought automatically until that is turned on again. "
            "Please look at your payment method."
        ),
    )
    return _Words(it.say("Credits could not be bought"), said, ((it.say("Reason"), it.facts["why"]),))


_SAYINGS: Final = {
    "budget_threshold": _threshold,
    "budget_cap": _cap,
    "over_cap": _over,
    "paused": _paused,
    "pre_charge": _pre_charge,
    "invoice": _invoice,
    "payment_failed": _payment_failed,
    "payment_due": _due,
    "overdue": _overdue,
    "receipt": _receipt,
    "top_up": _top_up,
    "top_up_failed": _top_up_failed,
}


def _text(words: _Words, brand: Brand, support: str) -> str:
    width = max((len(name) for name, _ in words.rows), default=0)
    parts = [words.heading, *words.sentences]
    if words.rows:
        parts.append("\n".join(f"{name.ljust(width)}  {value}" for name, value in words.rows))
    if words.link:
        parts.append(f"{words.link[0]}: {words.link[1]}")
    parts += [support] if support else []
    parts.append("\n".join(["-- ", brand.name, *brand.address_lines]))
    return "\n\n".join(parts) + "\n"


def _html(words: _Words, brand: Brand, support: str) -> str:
    colour = escape(brand.colour)
    logo = f'<img src="cid:{LOGO}" alt="{escape(brand.name)}" height="40">' if brand.logo else escape(brand.name)
    said = "".join(f"<p>{escape(it)}</p>" for it in words.sentences)
    link = ""
    if words.link:
        style = f"background:{colour};color:{brand.on_colour};padding:10px 16px;text-decoration:none;border-radius:4px"
        link = f'<p><a href="{escape(words.link[1])}" style="{style}">{escape(words.link[0])}</a></p>'
    foot = "<br>".join(escape(it) for it in (*([support] if support else []), *brand.address_lines))
    return (
        f'<!doctype html><html lang="{brand.language}"><head><meta charset="utf-8"><title>'
        f"{escape(words.heading)}</title></head>"
        '<body style="font-family:Helvetica,Arial,sans-serif;color:#1a1a1a;max-width:600px;margin:0 auto;padding:16px">'
        f'<div style="border-bottom:4px solid {colour};padding-bottom:12px;font-size:18px">{logo}</div>'
        f'<h1 style="font-size:20px">{escape(words.heading)}</h1>{said}{_table(words.rows)}{link}'
        f'<p style="color:#595959;font-size:13px">{foot}</p></body></html>'
    )


def _table(rows: Sequence[tuple[str, str]]) -> str:
    if not rows:
        return ""
    cell = "padding:4px 12px 4px 0;border-bottom:1px solid #ddd"
    lines = (
        f'<tr><td style="{cell}">{escape(name)}</td><td style="{cell};text-align:right">{escape(value)}</td></tr>'
        for name, value in rows
    )
    return f'<table style="border-collapse:collapse">{"".join(lines)}</table>'
