"""The page as HTML: a pure function of what was read. Every text from outside passes `escape`."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from urllib.parse import quote

from meterhouse_portal.overview import HINTS_SHOWN, Cost, CustomerMonth, Month, Overview
from meterhouse_portal.wording import breakable, class_if, day_of, duration, escape, marked, month_name, time_of
from meterhouse_rating.layout import counted, money, number
from meterhouse_store.meters import Meter
from meterhouse_store.reasons import sentence

BEHIND = timedelta(seconds=60)
"""A watermark older than this is shown as a warning: the projector writes one every second."""


@dataclass(frozen=True)
class Address:
    """What listens where; `is_page`: a browser that goes there sees something."""

    name: str
    url: str
    is_page: bool = False


def overview_page(overview: Overview, meters: dict[str, Meter], addresses: Iterable[Address]) -> str:
    """The operator's page; `addresses` are what listens where."""
    month = overview.month
    body = [
        f"""<header>
  <p class="brand">Meterhouse <span class="tag">{escape(overview.namespace)}</span></p>
  <h1>{month_name(month)}</h1>
  <nav aria-label="Months">
    <a href="/?period={month.shifted(-1)}" rel="prev">{month_name(month.shifted(-1))}</a>
    <a href="/?period={month.shifted(1)}" rel="next">{month_name(month.shifted(1))}</a>
  </nav>
  <nav aria-label="Operators' pages"><a href="/operator">Invoices, customers and prices</a></nav>
</header>
<main>""",
        _warehouse_alert(overview),
        _figures(overview),
        _customers(overview, meters),
        _suspense(overview),
        _unrated(overview),
        _late(overview),
        _addresses(addresses),
        f"</main>\n<footer><p>Read at {time_of(overview.now)}. Months are those of each customer's time zone. "
        "Amounts are what the last rating run said, before payments.</p></footer>",
    ]
    return document(f"{month_name(month)} · Meterhouse", "\n".join(part for part in body if part))


def message_page(title: str, text: str) -> str:
    """A page with one message; `text` is plain text, `code` in backticks."""
    return document(
        f"{escape(title)} · Meterhouse",
        f'<header><p class="brand">Meterhouse</p></header>\n<main class="message"><h1>{escape(title)}</h1>'
        f"<p>{marked(text)}</p></main>",
    )


def document(title: str, body: str) -> str:
    """A whole HTML document around the body; both are HTML already."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="stylesheet" href="/style.css">
<link rel="icon" href="data:,">
</head>
<body>
{body}
</body>
</html>
"""


def _warehouse_alert(overview: Overview) -> str:
    if overview.warehouse is not None:
        return ""
    return (
        '<p class="alert" role="alert"><strong>The warehouse does not answer.</strong> Usage, suspense and the '
        "watermark are unknown until it does; nothing is lost, the collector keeps what it acknowledged. "
        "<code>meterhouse warehouse status</code> says more.</p>"
    )


def _figures(overview: Overview) -> str:
    found = overview.warehouse
    unrated = sum(row.events for row in overview.unrated)
    figures = [
        ("Customers with usage", "unknown" if found is None else f"{len(found.usage):,}", False),
        ("Usage events", "unknown" if found is None else f"{_all_events(overview):,}", False),
        ("In suspense", "unknown" if found is None else f"{_suspended(overview):,}", _suspended(overview) > 0),
        ("Without a price", f"{unrated:,}", unrated > 0),
        ("Arrived too late", "unknown" if found is None else f"{_late_events(overview):,}", _late_events(overview) > 0),
        ("Warehouse is behind by", *_lag(overview)),
    ]
    items = "".join(
        f"<div{class_if('warn', warn)}><dt>{label}</dt><dd>{value}</dd></div>" for label, value, warn in figures
    )
    return f'<dl class="figures">{items}</dl>'


def _all_events(overview: Overview) -> int:
    usage = overview.warehouse.usage.values() if overview.warehouse else ()
    return sum(meter.events for meters in usage for meter in meters)


def _suspended(overview: Overview) -> int:
    return sum(overview.warehouse.suspense.values()) if overview.warehouse else 0


def _late_events(overview: Overview, customer_id: str | None = None) -> int:
    late = overview.warehouse.late if overview.warehouse else ()
    return sum(row.events for row in late if customer_id in (None, row.customer_id))


def _lag(overview: Overview) -> tuple[str, bool]:
    if overview.warehouse is None:
        return "unknown", True
    if overview.warehouse.projected_through is None:
        return "none yet", False
    behind = overview.now - overview.warehouse.projected_through
    return duration(behind), behind > BEHIND


def _customers(overview: Overview, meters: dict[str, Meter]) -> str:
    if not overview.customers or not any(customer.usage or customer.costs for customer in overview.customers):
        cards = _nothing_yet(overview)
    else:
        cards = (
            '<div class="cards">' + "".join(_customer(row, overview, meters) for row in overview.customers) + "</div>"
        )
    more = ""
    if overview.not_shown:
        command = f"meterhouse rate status --period {overview.month}"
        more = f"<p>{overview.not_shown:,} more, with fewer events: <code>{command}</code></p>"
    return f'<section aria-labelledby="customers"><h2 id="customers">Customers</h2>{cards}{more}</section>'


def _nothing_yet(overview: Overview) -> str:
    if overview.warehouse is None:
        return '<p class="empty">Nothing was rated in this month.</p>'
    latest = overview.warehouse.latest_event_time
    if latest is not None:
        there = Month.of(latest)
        return (
            f'<p class="empty">No usage in {month_name(overview.month)}. The latest usage event is from '
            f'<a href="/?period={there}">{month_name(there)}</a>.</p>'
        )
    return (
        '<div class="empty"><p>No usage yet. Start an agent under Meterhouse and its first call appears here:</p>'
        "<pre><code>pip install /path/to/meterhouse\n"
        "export METERHOUSE_DATA=/path/to/meterhouse-data METERHOUSE_CUSTOMER=acme\n"
        "meterhouse run -- python agent.py</code></pre>"
        "<p>The addresses below say where it reports to.</p></div>"
    )


def _customer(customer: CustomerMonth, overview: Overview, meters: dict[str, Meter]) -> str:
    name = customer.name or customer.customer_id
    label = f'<span class="id">{escape(customer.customer_id)}</span>' if name != customer.customer_id else ""
    if customer.name is None:
        label += '<span class="tag warn">not registered</span>'
    elif customer.plan is None:
        label += '<span class="tag warn">no plan</span>'
    else:
        label += f'<span class="tag">{escape(customer.plan)}</span>'
    return (
        f'<article class="card"><div class="head"><h3>{escape(name)}</h3><p class="labels">{label}</p></div>'
        f"{_costs(customer, overview)}{_usage(customer, overview, meters)}</article>"
    )


def _costs(customer: CustomerMonth, overview: Overview) -> str:
    shown = "".join(_cost(cost, overview.month) for cost in customer.costs)
    if not shown:
        state = "no price" if customer.unpriced else "not rated yet"
        shown = f'<p class="cost"><span class="amount none">{state}</span></p>'
    late = _late_events(overview, customer.customer_id)
    marks = [
        f'<span class="tag warn">{counted(events, "event")} {what}</span>'
        for events, what in ((customer.unpriced, "without a price"), (late, "too late for their invoice"))
        if events
    ]
    return shown + (f'<p class="labels">{"".join(marks)}</p>' if marks else "")


def _cost(cost: Cost, month: Month) -> str:
    state = f"invoice {cost.invoice}" if cost.invoice else "closed" if cost.state == "closed" else "so far"
    # A zone moves a month's edge by less than a day, so a calendar month needs no dates beside it.
    month_in_utc, day = month.within("UTC"), timedelta(days=1)
    whole = abs(cost.period_start - month_in_utc.start) < day and abs(cost.period_end - month_in_utc.end) < day
    dates = "" if whole else f"{day_of(cost.period_start)} to {day_of(cost.period_end)}, "
    return (
        f'<p class="cost"><span class="amount">{money(cost.total_minor, cost.currency)} {escape(cost.currency)}</span> '
        f'<span class="state">{dates}{escape(state)}, rated {time_of(cost.rated_at)}</span></p>'
    )


def _usage(customer: CustomerMonth, overview: Overview, meters: dict[str, Meter]) -> str:
    if not customer.usage:
        return f'<p class="none">{"usage unknown" if overview.warehouse is None else "no usage"}</p>'
    rows = "".join(
        f'<tr><th scope="row">{breakable(row.meter)}</th><td>{number(row.quantity)}</td>'
        f"<td>{_unit(row.meter, meters)}</td></tr>"
        for row in customer.usage
    )
    return (
        f"<table><caption>Used in {month_name(overview.month)}"
        f'<span class="unseen"> by {escape(customer.name or customer.customer_id)}</span></caption><thead><tr>'
        f'<th scope="col">Meter</th><th scope="col">Quantity</th><th scope="col">Unit</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )


def _suspense(overview: Overview) -> str:
    if overview.warehouse is None:
        return ""
    rows = "".join(
        f'<tr><th scope="row"><code>{escape(reason)}</code>{_meaning(reason)}</th><td>{events:,}</td></tr>'
        for reason, events in overview.warehouse.suspense.items()
    )
    content = (
        f'<table><thead><tr><th scope="col">Reason</th><th scope="col">Events</th></tr></thead><tbody>{rows}</tbody>'
        "</table><p>Kept, and not in anybody's usage. <code>meterhouse suspense list</code> shows each.</p>"
        if rows
        else '<p class="none">Nothing of this month is held back.</p>'
    )
    if overview.warehouse.suspense_elsewhere:
        content += f"<p>Of other months: {counted(overview.warehouse.suspense_elsewhere, 'event')}.</p>"
    return f'<section aria-labelledby="suspense"><h2 id="suspense">Suspense</h2>{content}</section>'


def _meaning(reason: str) -> str:
    words = sentence(reason)
    return f"<br>{escape(words)}" if words else ""


def _unrated(overview: Overview) -> str:
    rows = "".join(
        f'<tr><th scope="row">{marked(row.hint)}<br><code>{escape(row.reason)}</code></th><td>{row.events:,}</td></tr>'
        for row in overview.unrated[:HINTS_SHOWN]
    )
    more = len(overview.unrated) - HINTS_SHOWN
    content = (
        f'<table><thead><tr><th scope="col">What would price it</th><th scope="col">Events</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>" + (f"<p>and {more:,} more</p>" if more > 0 else "")
        if rows
        else '<p class="none">All rated usage of this month has a price.</p>'
    )
    if overview.unrated_elsewhere:
        content += f"<p>Of other months: {counted(overview.unrated_elsewhere, 'event')}.</p>"
    return f'<section aria-labelledby="unrated"><h2 id="unrated">Without a price</h2>{content}</section>'


def _late(overview: Overview) -> str:
    late = overview.warehouse.late if overview.warehouse else ()
    if not late:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(row.customer_id)}<span class="state">{breakable(row.meter)}</span></th>'
        f"<td>{number(row.quantity)}</td></tr>"
        for row in late
    )
    return (
        '<section aria-labelledby="late"><h2 id="late">Arrived too late</h2><table><thead><tr>'
        '<th scope="col">Customer and meter</th><th scope="col">Quantity</th></tr></thead>'
        f"<tbody>{rows}</tbody></table><p>It came after its period was closed: it is in the usage above and on no "
        "invoice yet. The customer's next rating corrects it, unless agreed otherwise.</p></section>"
    )


def _addresses(addresses: Iterable[Address]) -> str:
    rows = "".join(f"<div><dt>{escape(it.name)}</dt><dd>{_address(it)}</dd></div>" for it in addresses)
    if not rows:
        return ""
    content = f'<dl class="addresses">{rows}</dl>'
    return f'<section aria-labelledby="addresses"><h2 id="addresses">Addresses</h2>{content}</section>'


def _address(address: Address) -> str:
    text = escape(address.url)
    if address.is_page and address.url.startswith(("http://", "https://")):
        return f'<a href="{escape(quote(address.url, safe=":/?#[]@!$&()*+,;=%~"))}">{text}</a>'
    return f"<code>{text}</code>"


def _unit(meter: str, meters: dict[str, Meter]) -> str:
    # UCUM writes what is counted in braces; for people the word is enough.
    return escape(meters[meter].unit.strip("{}")) if meter in meters else '<span class="tag warn">not declared</span>'
