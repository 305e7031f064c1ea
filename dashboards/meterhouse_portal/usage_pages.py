"""What was used: the month under way, the log down to single events, downloads, and the prices."""

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Final
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

from starlette.responses import Response

from meterhouse.vocabulary import ESTIMATED, FRAMEWORK, NO_USAGE, REPORTED, SDK_LOOP
from meterhouse_portal import account, chart, price_words, usage_log, use_prices
from meterhouse_portal.members import VIEWER
from meterhouse_portal.visit import NotShown, Page, Refused, Visit, WrongField
from meterhouse_rating import charges, engine, periods, shares, sorting
from meterhouse_rating.periods import FIRST_YEAR, LAST_YEAR, MAX_LENGTH, Period, PeriodError
from meterhouse_rating.price_api import price_list
from meterhouse_rating.price_api.price_list import NotPriced
from meterhouse_store.numbers import D
from meterhouse_store.registry import Customer

CHANGES: Final = {
    "plan": "plan %(name)s",
    "contract_ends": "the contract ends",
    "price_book": "price book %(detail)s, version %(name)s",
    "addon_begins": "add-on %(name)s begins, %(detail)s of it",
    "addon_ends": "add-on %(name)s ends",
    "own_price_begins": "your own price of %(name)s begins",
    "own_price_ends": "your own price of %(name)s ends",
    "discount_begins": "discount %(name)s begins (%(detail)s)",
    "discount_ends": "discount %(name)s ends",
    "quantity": "%(name)s: %(detail)s from then on",
    "trial_ends": "the trial ends",
}
"""What is to change of a price list, by its kind."""
_NUMBERED: Final = ("addon_begins", "discount_begins", "quantity")
NOT_PRICED: Final = {
    price_list.NO_BOOK: "There are no prices for this month yet.",
    price_list.NO_PLAN: "There is no plan for this account yet, so that its usage has no price.",
    price_list.CONTRACT_ENDED: "The contract has ended.",
    price_list.PLAN_NOT_IN_BOOK: "The plan of this account is not in the price list of this month.",
    price_list.TERMS_DO_NOT_FIT: "What was agreed with you does not fit the price list of this month.",
    price_list.NO_RATE: "The price list is in another currency than yours, and has no rate for it.",
}
"""Why there is no price list, as customers are told: what to do about it is the operator's to know."""
MEANINGS: Final = {
    **shares.MEANINGS,
    charges.COST_UNKNOWN: "what the provider asks for it is not known yet",
    charges.FORMULA_FAILED: "its formula cannot be computed",
    sorting.NOT_DECLARED: "its meter is not set up yet",
    sorting.CONTRACT_ENDED: "used after the contract ended",
    sorting.TOO_MANY_GROUPS: "of more kinds than can be priced apart",
    sorting.NEGATIVE_QUANTITY: "a part of it has not arrived yet",
    engine.NOT_REGISTERED: "the account is not set up yet",
    engine.AMOUNT_TOO_LARGE: "its amount is too large to be charged",
    use_prices.TOO_MANY_KINDS: "of more kinds than a download tells apart",
}
"""How a price is known, or why there is none, as customers are told."""
STATUSES: Final = price_words.STATUS_WORDS | {"ok": "ok"}
SOURCES: Final = {
    REPORTED: "reported by the provider",
    FRAMEWORK: "reported by a framework",
    SDK_LOOP: "seen in an agent's loop",
    ESTIMATED: "estimated",
    NO_USAGE: "not reported by the provider",
}
"""How the quantity of an event is known."""
NO_PERIOD: Final = "That is no period: write a month (2026-10), or days (2026-10-01..2026-10-15), at most a month."
_PERIOD: Final = ("period", "from", "to")
_MONTHS: Final = 36
_MEDIA: Final = {"csv": "text/csv; charset=utf-8", "parquet": "application/vnd.apache.parquet"}


def overview(visit: Visit) -> Response:
    """The month under way: so far, to its end, what was used, and when."""
    mine, zone = visit.account, visit.account.customer().time_zone
    query = visit.query({"meter", "by"})
    month, by = account.month(None, zone, mine.now), query.get("by", "model")
    if by not in account.GROUPS:
        raise Refused(visit.language.say("Usage is shown by %(names)s.", names=", ".join(account.GROUPS)))
    days, outlook, trouble = mine.under_way(by, month, zone)
    shown = [meter for meter, _, _ in days.totals]
    meter = query.get("meter") or ("llm.tokens.input" if "llm.tokens.input" in shown else next(iter(shown), ""))
    if meter and meter not in shown:
        raise Refused("Usage is shown of one of your meters.")
    bars = chart.joined(days.bars[meter]) if meter in days.bars else None
    unit = mine.meters[meter].unit if meter in mine.meters else ""
    return visit.page(
        "overview.html", month=month, plan=mine.plan(month), totals=days.totals, meter=meter, by=by, bars=bars,
        groups=list(account.GROUPS), outlook=outlook, trouble=trouble,
        drawing=None if bars is None else chart.draw(bars, _title(visit, meter, by), unit, visit.language),
    )  # fmt: skip


def usage(visit: Visit) -> Response:
    """The usage log: what was done, when, by which agent, and what it consumed."""
    query = visit.query({*usage_log.FILTERS, *_PERIOD, "after"})
    wanted, customer = _wanted(query), visit.account.customer()
    try:
        period = _period(visit, customer, query)
    except WrongField as wrong:
        return _log(visit, customer, query, wanted, wrong=wrong)
    try:
        choices, log = usage_log.with_choices(visit.account, period, wanted, query.get("after"))
    except ValueError:
        raise Refused("This is no place in the log: go back to the first page.") from None
    return _log(visit, customer, query, wanted, period=period, choices=choices, log=log)


def _log(
    visit: Visit,
    customer: Customer,
    query: Mapping[str, str],
    wanted: Mapping[str, str],
    *,
    period: Period | None = None,
    choices: Mapping[str, Sequence[str]] | None = None,
    log: usage_log.Log | None = None,
    wrong: WrongField | None = None,
) -> Response:
    """The page with its forms; without a log where the period is wrong."""
    kept = dict(wanted) | _asked_for(query)
    following = None if log is None or log.next is None else urlencode({**kept, "after": log.next})
    return visit.page(
        "usage.html", wrong=wrong, period=period, wanted=wanted, log=log, choices=choices or {}, kept=kept,
        months=_months(visit, customer, query.get("period")), meanings=MEANINGS, query=urlencode(kept),
        statuses=STATUSES, following=following,
    )  # fmt: skip


def usage_csv(visit: Visit) -> Response:
    """The events of the log for a spreadsheet."""
    return _export(visit, "csv")


def usage_parquet(visit: Visit) -> Response:
    """The events of the log for programs."""
    return _export(visit, "parquet")


def action(visit: Visit) -> Response:
    """One action of the log, down to its single events."""
    query = visit.query({"id", "at"})
    try:
        at = datetime.fromisoformat(query.get("at", "")).astimezone(UTC)
    except (ValueError, OverflowError):
        raise NotShown("at") from None
    if not 1970 <= at.year <= 2200:
        raise NotShown("at")
    events = usage_log.events(visit.account, query.get("id", "")[:256], at)
    if not events:
        raise NotShown(query.get("id", ""))
    return visit.page("action.html", events=events, meanings=MEANINGS, sources=SOURCES, statuses=STATUSES)


def prices(visit: Visit) -> Response:
    """The prices that apply now, as a person reads a price list, and what is to change."""
    visit.query(set())
    customer, to = visit.account.customer(), visit.language
    try:
        found, trouble = visit.account.prices(), ""
    except NotPriced as none:
        found, trouble = None, visit.language.translated(NOT_PRICED[none.reason])
        if none.ended is not None:
            trouble = to.say("The contract ended on %(day)s.", day=to.day(none.ended, customer.time_zone))
    if found is None:
        return visit.page("prices.html", prices=None, trouble=trouble)
    changes = [(datetime.fromisoformat(it["applies_from"]), _change(visit, it)) for it in found.told["scheduled"]]
    off = [(it, price_words.off(it, found, customer.currency, customer.time_zone, to)) for it in found.discounts]
    plan = price_words.plan(found, to)
    return visit.page(
        "prices.html", prices=found, trouble="", changes=changes, plan=plan, discounts=off,
        addons=[(it.row, it.plan, price_words.addon(found, it, plan, to)) for it in found.addons],
        trial_until=found.told["plan"]["trial_until"] and datetime.fromisoformat(found.told["plan"]["trial_until"]),
    )  # fmt: skip


PAGES: Final = (
    Page("GET", "/account", VIEWER, overview),
    Page("GET", "/account/usage", VIEWER, usage),
    Page("GET", "/account/usage.csv", VIEWER, usage_csv),
    Page("GET", "/account/usage.parquet", VIEWER, usage_parquet),
    Page("GET", "/account/actions", VIEWER, action),
    Page("GET", "/account/prices", VIEWER, prices),
)


def _change(visit: Visit, change: Mapping[str, str]) -> str:
    """What is to change; numbers in it are written as in APIs (`12.5`, `20 %`, `5.00 EUR`)."""
    to, detail = visit.language, change["detail"]
    number, _, unit = detail.partition(" ")
    if unit not in ("", "%") and change["kind"].startswith("discount"):
        detail = price_words.money(D(number), unit, to)
    elif change["kind"] in _NUMBERED:
        detail = f"{to.number(D(number))} {unit}".strip()
    return to.say(CHANGES[change["kind"]], name=change["name"], detail=detail)


def _title(visit: Visit, meter: str, by: str) -> str:
    return visit.language.say("%(meter)s by day and %(group)s", meter=meter, group=visit.language.translated(by))


def _wanted(query: Mapping[str, str]) -> dict[str, str]:
    """What the log is to be narrowed to."""
    return {name: query[name][:256] for name in usage_log.FILTERS if query.get(name)}


def _asked_for(query: Mapping[str, str]) -> dict[str, str]:
    """What was asked of the period: a month goes before days, so that another month can be chosen."""
    names = ("period",) if "period" in query else ("from", "to")
    return {name: query[name] for name in names if name in query}


def _period(visit: Visit, customer: Customer, query: Mapping[str, str]) -> Period:
    """A month, or days of the customer's zone, the last one included; else the month of now. Raises WrongField."""
    zone, asked = customer.time_zone, _asked_for(query)
    if "from" not in asked and "to" not in asked:
        try:
            return account.month(asked.get("period"), zone, visit.account.now)
        except PeriodError:
            raise WrongField("period", NO_PERIOD) from None
    days: dict[str, datetime] = {}
    for name in ("from", "to"):
        try:
            day = date.fromisoformat(asked.get(name, ""))
            if not FIRST_YEAR < day.year < LAST_YEAR:
                raise ValueError(day)
            days[name] = datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone)) + (name == "to") * timedelta(1)
        except ValueError:
            raise WrongField(name, "Say both days, such as 2026-11-21.") from None
    start, end = days["from"].astimezone(UTC), days["to"].astimezone(UTC)
    if end <= start:
        raise WrongField("to", "The last day is before the first.")
    if end - start > MAX_LENGTH:
        raise WrongField("to", "At most a month is shown at once: 31 days.")
    return Period(start, end)


def _months(visit: Visit, customer: Customer, asked: str | None) -> list[tuple[str, str]]:
    """The months since the customer is registered, the latest first, as they are asked for and as they are called;
    and what was asked for, if it is none of them.
    """
    found: list[tuple[str, str]] = []
    month = periods.month_of(visit.account.now, customer.time_zone)
    while len(found) < _MONTHS and (not found or month.end > customer.registered_at):
        here = month.start.astimezone(ZoneInfo(customer.time_zone))
        found.append((f"{here:%Y-%m}", visit.language.month(month.start, customer.time_zone)))
        month = periods.month_of(month.start - timedelta(days=1), customer.time_zone)
    if asked is not None and asked not in dict(found):
        found.append((asked, asked[:80]))
    return found


def _export(visit: Visit, form: str) -> Response:
    query = visit.query({*usage_log.FILTERS, *_PERIOD})
    period, wanted = _period(visit, visit.account.customer(), query), _wanted(query)
    name = f"usage-{period.start:%Y-%m-%d}-{period.end:%Y-%m-%d}.{form}"
    return visit.download(name, usage_log.export(visit.account, period, wanted, form), _MEDIA[form])
