"""A simulation for people, for spreadsheets and for machines."""

import csv
import io
from collections import Counter
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any, Final

from meterhouse_rating.layout import counted, money, number, table
from meterhouse_rating.money import of_minor, show
from meterhouse_rating.simulate import Change, Simulation
from meterhouse_store.numbers import D, plain
from meterhouse_store.spreadsheet import no_formula

SHOWN: Final = 20
"""So many customers and moves are shown to people; CSV and JSON have all of them."""

COLUMNS: Final = ("customer", "currency", "old", "new", "change", "change_percent", "cost", "old_margin", "new_margin")


def as_text(made: Simulation) -> str:
    """Totals, customers (who gains and who loses most), items, moves between tiers, and what has no price."""
    span = made.months[0] if len(made.months) == 1 else f"{made.months[0]}..{made.months[-1]}"
    parts = [f"{span} under price book {made.book}, beside the published books. Nothing was written.\n"]
    if not made.changes:
        parts.append("No revenue on either side.\n")
    else:
        parts += [_customers(made), _items(made)]
    if made.moves:
        parts.append(_moves(made))
    parts += _left(made)
    return "\n".join(parts).rstrip()


def as_json(made: Simulation) -> dict[str, Any]:
    """All of it; amounts as decimal strings in major units."""
    return {
        "months": list(made.months),
        "book": made.book,
        "totals": [_row(it) for it in made.totals.values()],
        "customers": [_row(it) for it in made.ranked],
        "items": [
            {
                "name": item.name,
                "model": item.model or None,
                "currency": currency,
                "old": show(old, currency),
                "new": show(new, currency),
                "change": show(new - old, currency),
            }
            for (currency, item), (old, new) in _sorted_items(made)
        ],
        "moves": [
            {"customer": it.customer_id, "month": it.month, "component": it.component, "old": it.old, "new": it.new}
            for it in made.moves
        ],
        "unrated": [
            {
                "meter": it.meter,
                "reason": it.reason,
                "hint": it.hint,
                "events": it.events,
                "quantity": plain(it.quantity),
                "customers": sorted(it.customers),
            }
            for _, it in sorted(made.left.items())
        ],
        "unrated_events_old": made.left_old,
    }


def as_csv(made: Simulation) -> str:
    """One row per customer and currency, who pays more first."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for it in made.ranked:
        row = _row(it)
        writer.writerow(
            [no_formula(row["customer"]), *("" if row[name] is None else row[name] for name in COLUMNS[1:])]
        )
    return out.getvalue()


def percent(change: Change) -> Decimal | None:
    """The change in percent of the old revenue, to one tenth; None where there was none."""
    if not change.old_minor:
        return None
    share = Decimal(change.minor) * 100 / abs(change.old_minor)
    return share.quantize(Decimal("0.1"), ROUND_HALF_EVEN)


def _row(it: Change) -> dict[str, Any]:
    old, new = of_minor(it.old_minor, it.currency), of_minor(it.new_minor, it.currency)
    changed = percent(it)
    return {
        "customer": it.customer_id,
        "currency": it.currency,
        "old": show(it.old_minor, it.currency),
        "new": show(it.new_minor, it.currency),
        "change": show(it.minor, it.currency),
        "change_percent": None if changed is None else plain(changed),
        "cost": None if it.cost is None else plain(it.cost),
        "old_margin": None if it.cost is None else plain(old - it.cost),
        "new_margin": None if it.cost is None else plain(new - it.cost),
    }


def _customers(made: Simulation) -> str:
    changes = made.ranked
    more, less = sum(it.minor > 0 for it in changes), sum(it.minor < 0 for it in changes)
    same = len(changes) - more - less
    shown = changes if len(changes) <= SHOWN else _extremes(changes)
    head: tuple[str, ...] = ("customer", "old", "new", "change", "%", "old margin", "new margin", "")
    rows = [head]
    rows += [_cells(it, it.customer_id) for it in shown]
    rows += [_cells(it, "all") for it in made.totals.values()]
    told = f"{counted(more, 'customer')} would pay more, {less:,} less, {same:,} the same.\n"
    if len(shown) < len(changes):
        told += f"The {SHOWN} with the largest changes; --csv and --json have all {len(changes):,}.\n"
    return f"{told}\n{table(rows, right={1, 2, 3, 4, 5, 6})}\n"


def _extremes(changes: list[Change]) -> list[Change]:
    """The largest of each currency, as many of each: amounts of different currencies cannot be compared."""
    ranks: Counter[str] = Counter()
    found: list[tuple[int, Change]] = []
    for it in sorted(changes, key=lambda it: (-abs(it.minor), it.customer_id)):
        found.append((ranks[it.currency], it))
        ranks[it.currency] += 1
    largest = [it for _, it in sorted(found, key=lambda one: (one[0], one[1].currency))[:SHOWN]]
    return [it for it in changes if it in largest]


def _cells(it: Change, name: str) -> tuple[str, ...]:
    changed = percent(it)
    share = "-" if changed is None else f"{changed:+}"
    old, new = of_minor(it.old_minor, it.currency), of_minor(it.new_minor, it.currency)
    margins = ["unknown"] * 2 if it.cost is None else [f"{side - it.cost:,.2f}" for side in (old, new)]
    amounts = (money(it.old_minor, it.currency), money(it.new_minor, it.currency), _signed(it.minor, it.currency))
    return (name, *amounts, share, *margins, it.currency)


def _items(made: Simulation) -> str:
    rows = [("metric or fee", "model", "old", "new", "change", "")]
    for (currency, name), models in _by_metric(made).items():
        for model, (old, new) in _comparable(models).items():
            amounts = (money(old, currency), money(new, currency), _signed(new - old, currency))
            rows.append((name, model or "-", *amounts, currency))
    return f"{table(rows, right={2, 3, 4})}\n"


def _by_metric(made: Simulation) -> dict[tuple[str, str], dict[str, tuple[int, int]]]:
    """(currency, metric or fee) -> model ('' where it is not priced by model) -> old and new minor units."""
    found: dict[tuple[str, str], dict[str, tuple[int, int]]] = {}
    for (currency, item), amounts in _sorted_items(made):
        found.setdefault((currency, item.name), {})[item.model] = amounts
    return found


def _comparable(models: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """The same; one row where only one of the books prices by model: model by model there is nothing to compare."""
    by_model = [{bool(model) for model, amounts in models.items() if amounts[side]} for side in (0, 1)]
    if by_model[0] == by_model[1] or not all(by_model):
        return models
    old, new = (sum(amounts[side] for amounts in models.values()) for side in (0, 1))
    whose = "both" if len(by_model[0] | by_model[1]) == 1 else "the old" if True in by_model[0] else "the new"
    return {f"all (by model in {whose} book)": (old, new)}


def _moves(made: Simulation) -> str:
    rows = [("customer", "month", "component", "old tier", "new tier")]
    rows += [(it.customer_id, it.month, it.component, _tier(it.old), _tier(it.new)) for it in made.moves[:SHOWN]]
    more = f"\n  and {len(made.moves) - SHOWN:,} more: --json has all of them" if len(made.moves) > SHOWN else ""
    return f"Other tiers, or a minimum that is due on one side only:\n\n{table(rows)}{more}\n"


def _tier(text: str) -> str:
    """`1000000..5000000` is `1,000,000..5,000,000`."""
    if ".." not in text:
        return text or "-"
    return "..".join(number(D(edge)) if edge else "" for edge in text.split(".."))


def _left(made: Simulation) -> list[str]:
    parts = []
    if made.left:
        rows = [("meter", "reason", "customers", "events", "quantity")]
        rows += [
            (it.meter, it.reason, f"{len(it.customers):,}", f"{it.events:,}", number(it.quantity))
            for _, it in sorted(made.left.items())
        ]
        hints = sorted({it.hint for it in made.left.values()})[:SHOWN]
        parts.append(f"Without a price under the new book:\n\n{table(rows, right={2, 3, 4})}\n")
        parts += [f"  {hint}" for hint in hints]
    if made.left_old:
        parts.append(f"The published books leave {counted(made.left_old, 'event')} without a price.")
    return parts


def _sorted_items(made: Simulation) -> list[Any]:
    return sorted(made.items.items(), key=lambda it: (it[0][0], it[0][1].name, it[0][1].model))


def _signed(amount_minor: int, currency: str) -> str:
    return ("+" if amount_minor > 0 else "") + money(amount_minor, currency)
