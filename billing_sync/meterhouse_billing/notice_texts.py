"""What notices say, in text and HTML, under the operator's name, logo and colour."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from typing import Any, Final

from meterhouse_rating import periods
from meterhouse_store.brand import Brand

LOGO: Final = "logo@meterhouse"
"""The content id of the logo in a message."""


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


def of(kind: str, customer_id: str, subject: str, facts: Mapping[str, Any], brand: Brand) -> Text:
    """The message of a notice."""
    say = _SAYINGS.get(kind)
    words = _Words(subject, ()) if say is None else say(customer_id, facts)
    support = f"Questions? Write to {brand.support}." if brand.support else ""
    return Text(f"{brand.name}: {words.heading}", _text(words, brand, support), _html(words, brand, support))


def _budget(facts: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    unit = facts["unit"]
    rows = [
        ("Budget", facts["budget"]),
        ("Period", _period(facts)),
        ("Used", f"{facts['used']} {unit}"),
        ("Limit", f"{facts['limit']} {unit}"),
    ]
    if facts["agent_id"]:
        rows.insert(1, ("Agent", facts["agent_id"]))
    return tuple(rows)


def _threshold(customer_id: str, facts: Mapping[str, Any]) -> _Words:
    percent = facts["threshold_percent"]
    end = "Model calls stop when it is used up." if facts["hard"] else "Nothing stops when it is used up."
    said = f"{customer_id} has used {percent} % of it. {end}"
    return _Words(f"{percent} % of a budget is used", (said,), _budget(facts))


def _cap(customer_id: str, facts: Mapping[str, Any]) -> _Words:
    said = (
        f"{customer_id} has reached it, and its model calls are paused. What is under way ends.",
        "Acknowledge or raise the budget, and calls go on within seconds.",
    )
    return _Words("A budget is used up: model calls are paused", said, _budget(facts))


def _over(customer_id: str, facts: Mapping[str, Any]) -> _Words:
    said = f"Calls that were under way used {facts['over']} {facts['unit']} more than the cap of {customer_id}."
    return _Words("More than a cap was used", (said,), _budget(facts))


def _paused(customer_id: str, facts: Mapping[str, Any]) -> _Words:
    who = f"agent {facts['agent_id']} of {customer_id}" if facts["agent_id"] else customer_id
    since = periods.local(datetime.fromisoformat(facts["since"]), _zone(facts))
    said = f"Model calls of {who} are paused since {since}."
    return _Words("Model calls are paused", (said,), (("Reason", facts["reason"]), ("Said", facts["why"])))


def _pre_charge(customer_id: str, facts: Mapping[str, Any]) -> _Words:
    said = [f"This is what {customer_id} will be charged for {_period(facts)}."]
    if facts["look_until"]:
        said.append(f"Until {_day(facts, 'look_until')} there is time to look at it: tell us what is not right.")
    return _Words(f"{_money(facts)} will be charged", tuple(said), _items(facts))


def _invoice(customer_id: str, facts: Mapping[str, Any]) -> _Words:
    said = f"Invoice {facts['number']} to {customer_id} for {_period(facts)}, due on {_day(facts, 'due_at')}."
    return _Words(f"Invoice {facts['number']}: {_money(facts)}", (said,), _items(facts), _page(facts))


def _payment_failed(customer_id: str, facts: Mapping[str, Any]) -> _Words:
    said = (
        f"The payment of {_money(facts)} for invoice {facts['number']} of {customer_id} failed.",
        "It will be tried again. Please look at your payment method.",
    )
    return _Words(f"A payment failed: invoice {facts['number']}", said, (), _page(facts))


def _due(customer_id: str, facts: Mapping[str, Any]) -> _Words:
    said = f"Invoice {facts['number']} of {customer_id} over {_money(facts)} is due on {_day(facts, 'due_at')}."
    return _Words(f"Invoice {facts['number']} is due soon", (said,), (), _page(facts))


def _overdue(customer_id: str, facts: Mapping[str, Any]) -> _Words:
    said = f"Invoice {facts['number']} of {customer_id} over {_money(facts)} was due on {_day(facts, 'due_at')}."
    return _Words(f"Invoice {facts['number']} is overdue", (said, "It is not paid yet."), (), _page(facts))


def _receipt(customer_id: str, facts: Mapping[str, Any]) -> _Words:
    said = f"Thank you: {_money(facts)} for invoice {facts['number']} of {customer_id} arrived."
    return _Words(f"Received: {_money(facts)}", (said,), (), _page(facts))


def _top_up(customer_id: str, facts: Mapping[str, Any]) -> _Words:
    bought = f"{facts['amount']} {facts['currency']}"
    how = "by its rule, because little was left" if facts["automatic"] else "on Stripe's page"
    return _Words(f"Credits bought: {bought}", (f"{customer_id} has {bought} more of credits, paid {how}.",))


def _top_up_failed(customer_id: str, facts: Mapping[str, Any]) -> _Words:
    said = (
        f"{customer_id} was to be charged {facts['amount']} {facts['currency']} for more credits, which failed.",
        "No more credits are bought automatically until that is turned on again. Please look at your payment method.",
    )
    return _Words("Credits could not be bought", said, (("Reason", facts["why"]),))


def _money(facts: Mapping[str, Any]) -> str:
    return f"{facts['total']} {facts['currency']}"


def _items(facts: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    more = [("...", f"{facts['more_lines']} more lines")] if facts["more_lines"] else []
    return (*((it["description"], it["amount"]) for it in facts["lines"]), *more, ("Total", _money(facts)))


def _page(facts: Mapping[str, Any]) -> tuple[str, str] | None:
    return ("Look at the invoice", facts["url"]) if facts["url"] else None


def _period(facts: Mapping[str, Any]) -> str:
    start, end = (datetime.fromisoformat(facts[name]) for name in ("period_start", "period_end"))
    return periods.shown(periods.Period(start, end), _zone(facts)).replace("..", " to ", 1)


def _day(facts: Mapping[str, Any], name: str) -> str:
    """The day of a moment, in the customer's time zone."""
    return periods.local(datetime.fromisoformat(facts[name]), _zone(facts))[:10]


def _zone(facts: Mapping[str, Any]) -> str:
    """The customer's time zone; notices of before it was kept with them told of UTC."""
    return str(facts.get("time_zone", "UTC"))


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
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>'
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
