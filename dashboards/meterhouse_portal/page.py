"""The page as HTML: a pure function of what was read. Every text from outside passes `escape`."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from html import escape
from urllib.parse import quote

from meterhouse_portal.overview import HINTS_SHOWN, Cost, CustomerMonth, Month, Overview
from meterhouse_rating.money import show
from meterhouse_store.meters import Meter
from meterhouse_store.numbers import plain

BEHIND = timedelta(seconds=60)
"""A watermark older than this is shown as a warning: the projector writes one every second."""


def overview_page(overview: Overview, meters: dict[str, Meter], addresses: dict[str, str]) -> str:
    """The operator's page; `addresses` are what listens where, by name."""
    month = overview.month
    body = [
        f"""<header>
  <p class="brand">Meterhouse <span class="tag">{escape(overview.namespace)}</span></p>
  <h1>{_month_name(month)}</h1>
  <nav aria-label="Months">
    <a href="/?period={month.shifted(-1)}" rel="prev">{_month_name(month.shifted(-1))}</a>
    <a href="/?period={month.shifted(1)}" rel="next">{_month_name(month.shifted(1))}</a>
  </nav>
</header>
<main>""",
        _warehouse_alert(overview),
        _figures(overview),
        _customers(overview, meters),
        _suspense(overview),
        _unrated(overview),
        _addresses(addresses),
        f"</main>\n<footer><p>Read at {_clock(overview.now)}. Months are those of each customer's time zone. "
        "Amounts are what the last rating run said, before payments.</p></footer>",
    ]
    return document(f"{_month_name(month)} · Meterhouse", "\n".join(part for part in body if part))


def message_page(title: str, text: str) -> str:
    """A page with one message; `text` is plain text, `code` in backticks."""
    pieces = escape(text).split("`")
    marked = "".join(f"<code>{piece}</code>" if index % 2 else piece for index, piece in enumerate(pieces))
    return document(
        f"{escape(title)} · Meterhouse",
        f'<header><p class="brand">Meterhouse</p></header>\n<main class="message"><h1>{escape(title)}</h1>'
        f"<p>{marked}</p></main>",
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
        ("Warehouse is behind by", *_lag(overview)),
    ]
    items = "".join(
        f"<div{_class('warn', warn)}><dt>{label}</dt><dd>{value}</dd></div>" for label, value, warn in figures
    )
    return f'<dl class="figures">{items}</dl>'


def _all_events(overview: Overview) -> int:
    usage = overview.warehouse.usage.values() if overview.warehouse else ()
    return sum(meter.events for meters in usage for meter in meters)


def _suspended(overview: Overview) -> int:
    return sum(overview.warehouse.suspense.values()) if overview.warehouse else 0


def _lag(overview: Overview) -> tuple[str, bool]:
    if overview.warehouse is None:
        return "unknown", True
    if overview.warehouse.projected_through is None:
        return "none yet", False
    behind = overview.now - overview.warehouse.projected_through
    return _duration(behind), behind > BEHIND


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
            f'<p class="empty">No usage in {_month_name(overview.month)}. The latest usage event is from '
            f'<a href="/?period={there}">{_month_name(there)}</a>.</p>'
        )
    return (
        '<div class="empty"><p>No usage yet. Start an agent under Meterhouse and its first call appears here:</p>'
        "<pre><code>pip install /path/to/meterhouse\nexport METERHOUSE_CUSTOMER=acme\n"
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
        f"{_costs(customer.costs, overview.month)}{_usage(customer, overview, meters)}</article>"
    )


def _costs(costs: Iterable[Cost], month: Month) -> str:
    rows = [_cost(cost, month) for cost in costs]
    return "".join(rows) or '<p class="cost"><span class="amount none">not rated yet</span></p>'


def _cost(cost: Cost, month: Month) -> str:
    state = f"invoice {cost.invoice}" if cost.invoice else "closed" if cost.state == "closed" else "so far"
    # A zone moves a month's edge by less than a day, so a calendar month needs no dates beside it.
    month_in_utc, day = month.within("UTC"), timedelta(days=1)
    whole = abs(cost.period_start - month_in_utc.start) < day and abs(cost.period_end - month_in_utc.end) < day
    dates = "" if whole else f"{_day(cost.period_start)} to {_day(cost.period_end)}, "
    return (
        f'<p class="cost"><span class="amount">{_amount(cost)} {escape(cost.currency)}</span> '
        f'<span class="state">{dates}{escape(state)}, rated {_clock(cost.rated_at)}</span></p>'
    )


def _amount(cost: Cost) -> str:
    whole, point, minor = show(cost.total_minor, cost.currency).removeprefix("-").partition(".")
    return ("-" if cost.total_minor < 0 else "") + f"{int(whole):,}{point}{minor}"


def _usage(customer: CustomerMonth, overview: Overview, meters: dict[str, Meter]) -> str:
    if not customer.usage:
        return f'<p class="none">{"usage unknown" if overview.warehouse is None else "no usage"}</p>'
    rows = "".join(
        f'<tr><th scope="row">{_breakable(row.meter)}</th><td>{_number(row.quantity)}</td>'
        f"<td>{_unit(row.meter, meters)}</td></tr>"
        for row in customer.usage
    )
    return (
        f"<table><caption>Used in {_month_name(overview.month)}"
        f'<span class="unseen"> by {escape(customer.name or customer.customer_id)}</span></caption><thead><tr>'
        f'<th scope="col">Meter</th><th scope="col">Quantity</th><th scope="col">Unit</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )


def _suspense(overview: Overview) -> str:
    if overview.warehouse is None:
        return ""
    rows = "".join(
        f'<tr><th scope="row"><code>{escape(reason)}</code></th><td>{events:,}</td></tr>'
        for reason, events in overview.warehouse.suspense.items()
    )
    content = (
        f'<table><thead><tr><th scope="col">Reason</th><th scope="col">Events</th></tr></thead><tbody>{rows}</tbody>'
        "</table><p>Kept, and not in anybody's usage. <code>meterhouse suspense list</code> shows each.</p>"
        if rows
        else '<p class="none">Nothing is held back.</p>'
    )
    return f'<section aria-labelledby="suspense"><h2 id="suspense">Suspense</h2>{content}</section>'


def _unrated(overview: Overview) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(row.hint)}<br><code>{escape(row.reason)}</code></th><td>{row.events:,}</td></tr>'
        for row in overview.unrated[:HINTS_SHOWN]
    )
    more = len(overview.unrated) - HINTS_SHOWN
    content = (
        f'<table><thead><tr><th scope="col">What would price it</th><th scope="col">Events</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>" + (f"<p>and {more:,} more</p>" if more > 0 else "")
        if rows
        else '<p class="none">All rated usage has a price.</p>'
    )
    return f'<section aria-labelledby="unrated"><h2 id="unrated">Without a price</h2>{content}</section>'


def _addresses(addresses: dict[str, str]) -> str:
    if not addresses:
        return ""
    rows = "".join(f"<div><dt>{escape(name)}</dt><dd>{_address(url)}</dd></div>" for name, url in addresses.items())
    content = f'<dl class="addresses">{rows}</dl>'
    return f'<section aria-labelledby="addresses"><h2 id="addresses">Addresses</h2>{content}</section>'


def _address(text: str) -> str:
    if text.startswith(("http://", "https://")):
        return f'<a href="{escape(quote(text, safe=":/?#[]@!$&()*+,;=%~"))}">{escape(text)}</a>'
    return f"<code>{escape(text)}</code>"


def _unit(meter: str, meters: dict[str, Meter]) -> str:
    # UCUM writes what is counted in braces; for people the word is enough.
    return escape(meters[meter].unit.strip("{}")) if meter in meters else '<span class="tag warn">not declared</span>'


def _breakable(meter: str) -> str:
    return escape(meter).replace(".", ".<wbr>")


def _number(number: Decimal) -> str:
    whole, _, decimals = plain(number).partition(".")
    return f"{int(whole):,}" + (f".{decimals}" if decimals else "")


def _duration(length: timedelta) -> str:
    seconds = max(0, int(length.total_seconds()))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size:,} {unit}"
    return f"{seconds} s"


def _month_name(month: Month) -> str:
    return month.within("UTC").start.strftime("%B %Y")


def _day(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d")


def _clock(moment: datetime) -> str:
    text = moment.astimezone(UTC)
    return f'<time datetime="{text.isoformat(timespec="seconds")}">{text.strftime("%Y-%m-%d %H:%M")} UTC</time>'


def _class(name: str, holds: bool) -> str:
    return f' class="{name}"' if holds else ""
