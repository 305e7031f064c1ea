"""An itemised usage statement: what a customer's period comes to, line by line, before anything is charged.

Of what is closed it says what was billed; of what is open, what it comes to by all that is known now, and nothing is
written. Beside the lines stands what is free, what has no price, what came late, and what is held in suspense.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from meterhouse_rating import late, periods, report
from meterhouse_rating.engine import BY_CHOICE
from meterhouse_rating.explain import said
from meterhouse_rating.late import LateUsage
from meterhouse_rating.layout import counted, money, number, table, unit
from meterhouse_rating.money import show
from meterhouse_rating.periods import Period
from meterhouse_rating.results import Moment, Row
from meterhouse_rating.run import Request, run
from meterhouse_rating.settled import CLOSED
from meterhouse_rating.world import World
from meterhouse_store import completeness
from meterhouse_store.completeness import Held
from meterhouse_store.numbers import plain
from meterhouse_store.reasons import sentence
from meterhouse_store.registry import Customer
from meterhouse_store.spreadsheet import no_formula

KINDS: Final = {
    "usage": "Usage",
    "flat": "Fees",
    "minimum": "Minimum commitment",
    "discount": "Discounts",
    "credit_pack": "Credits bought",
    "correction": "Corrections of closed periods",
    "credit_restored": "Credits given back",
    "credit_applied": "Credits applied",
}
COLUMNS: Final = (
    "period_start",
    "period_end",
    "state",
    "section",
    "what",
    "dimensions",
    "quantity",
    "unit",
    "amount",
    "currency",
    "events",
    "why",
    "line_id",
)


@dataclass(frozen=True)
class Statement:
    """Ratings of the period in order (rows of `ratings`), their lines by rating, and what is on no line.

    `free` and `unrated` are rows of `unrated_usage`; `held` is in suspense and may be the customer's; `complete` is
    the verdict on completeness and `missing` what speaks against it.
    """

    customer: Customer
    period: Period
    ratings: Sequence[Row]
    lines: Mapping[str, Sequence[Row]]
    free: Sequence[Row]
    unrated: Sequence[Row]
    late: Sequence[LateUsage]
    held: Sequence[Held]
    complete: str
    missing: Sequence[str]

    @property
    def exceptions(self) -> bool:
        """Whether there is usage that may still change the total: without a price, late, or in suspense."""
        return bool(self.unrated or self.late or self.held)

    @property
    def totals(self) -> dict[str, int]:
        """Per currency, in minor units."""
        sums: dict[str, int] = {}
        for it in self.ratings:
            sums[it["currency"]] = sums.get(it["currency"], 0) + it["total_minor"]
        return sums


def state(world: World, customer: Customer, text: str, period: Period) -> Statement:
    """The statement of a period as written. Raises NotThere without a price book, WatermarkWentBack."""
    name, now = customer.customer_id, world.now()
    stored = report.stored(world.engine, world.namespace, text, name)
    closed = [it for it in stored.ratings if it["state"] == CLOSED]
    spans = {it["period_start"] for it in closed}
    request = Request(text, name, dry_run=True, beside=True)
    steps = [it.outcome for it in run(world, request) if it.outcome is not None]
    open_now = report.imagined(world.namespace, steps, Moment(now, {}, now), ())
    left = [it for it in stored.unrated if it["period_start"] in spans]
    left += [it for it in open_now.unrated if it["period_start"] not in spans]
    known = completeness.report(world.client, world.namespace, name, period.start, period.end, now=now)
    return Statement(
        customer,
        period,
        sorted([*closed, *open_now.ratings], key=lambda it: it["period_start"]),
        {**stored.lines, **open_now.lines},
        sorted((it for it in left if it["reason"] in BY_CHOICE), key=_order),
        sorted((it for it in left if it["reason"] not in BY_CHOICE), key=_order),
        late.look(world, text, name, {name: customer.time_zone}, now),
        known.found.held,
        known.verdict,
        known.exceptions,
    )


def _order(row: Row) -> tuple[str, ...]:
    return str(row["period_start"]), row["meter"], row["reason"], _dimensions(row)


def as_json(it: Statement) -> dict[str, Any]:
    """One document; numbers of usage and money are text, minor units are integers."""
    return {
        "customer_id": it.customer.customer_id,
        "name": it.customer.name,
        "time_zone": it.customer.time_zone,
        "period_start": it.period.start.isoformat(),
        "period_end": it.period.end.isoformat(),
        "ratings": [
            {
                "period_start": rating["period_start"].isoformat(),
                "period_end": rating["period_end"].isoformat(),
                "state": rating["state"],
                "plan": rating["plan"],
                "book_version": rating["book_version"],
                "as_of": rating["as_of"].isoformat(),
                "currency": rating["currency"],
                "total_minor": rating["total_minor"],
                "total": show(rating["total_minor"], rating["currency"]),
                "sums": {kind: show(amount, rating["currency"]) for kind, amount in _sums(it, rating).items()},
                "lines": [_line_json(line) for line in it.lines[rating["rating_id"]]],
            }
            for rating in it.ratings
        ],
        "totals": {currency: show(amount, currency) for currency, amount in it.totals.items()},
        "free": [_left_json(row) for row in it.free],
        "unrated": [_left_json(row) for row in it.unrated],
        "late": [
            {"period": str(one.period), "meter": one.meter, "events": one.events, "quantity": plain(one.quantity)}
            | {"becomes": one.becomes}
            for one in it.late
        ],
        "suspense": [vars_of(one) for one in it.held],
        "completeness": {"verdict": it.complete, "exceptions": list(it.missing)},
    }


def vars_of(held: Held) -> dict[str, Any]:
    """What is in suspense for one reason; `claimed`: it names the customer, else nobody, with the customer's keys."""
    return {"reason": held.reason, "claimed": held.claimed, "rows": held.rows, "why": sentence(held.reason)}


def as_rows(it: Statement) -> list[dict[str, Any]]:
    """The same as flat rows of COLUMNS, for a spreadsheet: what has an amount adds up to the totals."""
    rows: list[dict[str, Any]] = []
    for rating in it.ratings:
        about = {
            "period_start": rating["period_start"].isoformat(),
            "period_end": rating["period_end"].isoformat(),
            "state": rating["state"],
            "currency": rating["currency"],
        }
        for line in it.lines[rating["rating_id"]]:
            steps = "; ".join(_steps(line))
            rows.append(
                about
                | {
                    "section": line["kind"],
                    "what": line["description"],
                    "dimensions": _dimensions(line),
                    "quantity": plain(line["quantity"]),
                    "unit": line["unit"],
                    "amount": show(line["amount_minor"], line["currency"]),
                    "why": steps,
                    "line_id": line["line_id"],
                }
            )
    for section, left in (("free", it.free), ("unrated", it.unrated)):
        rows += [
            {
                "period_start": row["period_start"].isoformat(),
                "period_end": row["period_end"].isoformat(),
                "section": section,
                "what": row["meter"],
                "dimensions": _dimensions(row),
                "quantity": plain(row["quantity"]),
                "events": row["events"],
                "why": f"{row['reason']}: {row['hint']}",
            }
            for row in left
        ]
    rows += [
        {"section": "late", "what": one.meter, "quantity": plain(one.quantity), "events": one.events}
        | {"why": f"of {one.period}: {one.becomes}"}
        for one in it.late
    ]
    rows += [
        {"section": "suspense", "what": one.reason, "events": one.rows, "why": sentence(one.reason)} for one in it.held
    ]
    # Names of meters, models and tools come from agents: a spreadsheet must not run them.
    texts = ("what", "dimensions", "unit", "why")
    rows = [dict.fromkeys(COLUMNS, "") | row for row in rows]
    return [row | {name: no_formula(row[name]) for name in texts} for row in rows]


def as_text(it: Statement) -> str:
    """Tables that line up, with the arithmetic of each line below it."""
    called = it.customer.name
    name = f" ({called})" if called and called != it.customer.customer_id else ""
    zone = it.customer.time_zone
    span = periods.shown(it.period, zone).removesuffix(f" {zone}")
    blocks = [f"Usage statement of {it.customer.customer_id}{name}, {span}, time zone {zone}"]
    blocks += [_rating_text(it, rating) for rating in it.ratings] or ["Nothing was used, and there are no fees."]
    if len(it.ratings) > 1:
        shown = [(f"Total in {currency}", money(amount, currency)) for currency, amount in it.totals.items()]
        blocks.append(table(shown, right={1}))
    blocks += [_left_text("Free of charge", it.free), _left_text("Without a price (what to do)", it.unrated)]
    if it.late:
        rows = [(str(one.period), one.meter, number(one.quantity), one.becomes) for one in it.late]
        blocks.append("Arrived after its period was closed\n" + table(rows, right={2}))
    if it.held:
        rows = [
            (f"{one.rows:,}", "rows" if one.claimed else "rows of nobody", one.reason, sentence(one.reason))
            for one in it.held
        ]
        blocks.append("In suspense, not counted\n" + table(rows, right={0}))
    missing = "".join(f"\n  {sentence_}" for sentence_ in it.missing)
    blocks.append(f"{it.complete}{missing}")
    return "\n\n".join(block for block in blocks if block)


def _rating_text(it: Statement, rating: Row) -> str:
    currency, span = rating["currency"], Period(rating["period_start"], rating["period_end"])
    state = "closed" if rating["state"] == CLOSED else "open: amounts can still change"
    when = periods.shown(span, it.customer.time_zone)
    head = f"{when}, plan {rating['plan']}, price book version {rating['book_version']}, {state}"
    rows: list[tuple[str, ...]] = []
    below: list[list[str]] = []
    for line in it.lines[rating["rating_id"]]:
        used = (number(line["quantity"]), unit(line["unit"], line["quantity"])) if line["unit"] else ("", "")
        rows.append((line["description"], *used, money(line["amount_minor"], currency), currency))
        below.append(_steps(line))
    for kind, amount in [*_sums(it, rating).items(), ("Total", rating["total_minor"])]:
        rows.append((kind, "", "", money(amount, currency), currency))
        below.append([])
    told = table(rows, right={1, 3}).splitlines()
    lines = [part for row, steps in zip(told, below, strict=True) for part in (row, *(f"      {one}" for one in steps))]
    at = sum(1 + len(steps) for steps in below[: len(it.lines[rating["rating_id"]])])
    return "\n".join([head, *lines[:at], "", *lines[at:]])


def _sums(it: Statement, rating: Row) -> dict[str, int]:
    """What the lines come to by kind, in the order in which a bill is made."""
    sums: dict[str, int] = {}
    for line in it.lines[rating["rating_id"]]:
        sums[line["kind"]] = sums.get(line["kind"], 0) + line["amount_minor"]
    return {KINDS[kind]: sums[kind] for kind in KINDS if kind in sums}


def _steps(line: Row) -> list[str]:
    """The arithmetic in sentences, in the currency that the line is priced in."""
    conversion = line["explanation"].get("conversion")
    currency = line["currency"] if conversion is None else conversion["currency"]
    told = [said(step, currency) for step in line["explanation"]["steps"]]
    return told if conversion is None else [*told, f"At {conversion['rate']} {line['currency']}."]


def _dimensions(row: Row) -> str:
    return ", ".join(f"{name} {value}" for name, value in dict(row["dimensions"]).items())


def _line_json(line: Row) -> dict[str, Any]:
    names = ("line_id", "kind", "component", "metric", "description", "unit", "dimensions", "amount_minor")
    return {name: line[name] for name in names} | {
        "quantity": plain(line["quantity"]),
        "amount": show(line["amount_minor"], line["currency"]),
        "steps": line["explanation"]["steps"],
        "arithmetic": _steps(line),
    }


def _left_json(row: Row) -> dict[str, Any]:
    names = ("meter", "dimensions", "events", "reason", "hint")
    return {name: row[name] for name in names} | {"quantity": plain(row["quantity"])}


def _left_text(head: str, rows: Iterable[Row]) -> str:
    found: dict[tuple[str, str, str], tuple[Decimal, int]] = {}
    for row in rows:
        key = (row["meter"], row["reason"], row["hint"])
        quantity, events = found.get(key, (Decimal(0), 0))
        found[key] = (quantity + row["quantity"], events + row["events"])
    shown = [
        (meter, number(quantity), counted(events, "event"), reason, hint)
        for (meter, reason, hint), (quantity, events) in sorted(found.items())
    ]
    return f"{head}\n{table(shown, right={1})}" if shown else ""
