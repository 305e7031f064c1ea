"""A price list in words: what each part of a plan measures, what it costs, and its tiers as a table.

Pure, and made of the objects that a rating charges by, not of the text of the price book. One function per price model.
Names, meters and formulas stay as the price book has them; everything else is in the reader's language.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Final

from meterhouse_rating.agreements import Discount
from meterhouse_rating.book import Book, Plan
from meterhouse_rating.layout import unit_in
from meterhouse_rating.metrics import COUNT, LATEST, MAX, NOT_FAILED, OK_ONLY, PER, TIME_WEIGHTED, UNIQUE, Metric
from meterhouse_rating.models.cost_plus import CostPlus
from meterhouse_rating.models.credit_pack import CreditPack
from meterhouse_rating.models.dimensions import ATTRIBUTE
from meterhouse_rating.models.flat import Flat
from meterhouse_rating.models.formula import Custom
from meterhouse_rating.models.graduated import Graduated
from meterhouse_rating.models.included import Included
from meterhouse_rating.models.matrix import Cell, Matrix
from meterhouse_rating.models.minimum import Minimum
from meterhouse_rating.models.package import Package
from meterhouse_rating.models.patterns import Match
from meterhouse_rating.models.per_unit import PerUnit
from meterhouse_rating.models.percentage import Percentage
from meterhouse_rating.models.recurring import Recurring
from meterhouse_rating.models.volume import Volume
from meterhouse_rating.money import exact
from meterhouse_rating.price_api.price_list import Added, Part, PriceList
from meterhouse_rating.tiers import Tier
from meterhouse_store.currencies import MINOR_DIGITS
from meterhouse_store.language import Language
from meterhouse_store.numbers import plain

DIMENSIONS: Final = {
    "model": "Model", "provider": "Provider", "operation": "Operation", "tool": "Tool", "modality": "Modality",
    "cache_ttl": "Cache lifetime", "service_tier": "Service tier", "agent_id": "Agent (id)", "agent_name": "Agent",
    "status": "Status", "step": "Step", "conversation_id": "Conversation", "task_id": "Task", "call_id": "Call",
}  # fmt: skip
"""What people call the dimensions that prices depend on most; the others have the names of the price book."""

STATUS_WORDS: Final = {
    "ok": "ended well", "failed": "failed", "aborted": "broken off", "unfinished": "not finished",
}  # fmt: skip
TASK_WORDS: Final = {
    OK_ONLY: "Calls inside a task count only if the task ended well.",
    NOT_FAILED: "Calls inside a task count unless the task failed.",
}
PRORATIONS: Final = {
    "day": "A part of a month costs its share, counted in days.",
    "second": "A part of a month costs its share, counted in seconds.",
    "none": "What holds at the end of the month counts for all of it.",
}
SPANS: Final = {Decimal(seconds): name for name, seconds in PER.items()}
BY_UNITS: Final = "Each unit costs the price of the row that it falls in."
BY_VOLUME: Final = "All units of the month cost the price of the row that the last one falls in."
FEE_BY_UNITS: Final = "The fee of a row is due once, with the first unit in it."
FEE_BY_VOLUME: Final = "The fee of a row is due once, where the month ends in it."
MATCHING: Final = (
    "A * at the end stands for any ending. The first row that fits counts.",
    "What fits no row has no price here.",
)
FIXED: Final = ("Plus %(fixed)s in a month in which there is anything.", "Plus %(fixed)s for each use.")
_NO_FEE: Final = "\N{EN DASH}"
_ZERO: Final = Decimal(0)


@dataclass(frozen=True)
class Table:
    """Rows with a head; the last `figures` columns are amounts. `about`: what of the part it is of, if not all."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    figures: int = 1
    about: str = ""


@dataclass(frozen=True)
class Entry:
    """One priced part: its name, what is measured, one price or tables of prices, and what else there is to know."""

    title: str
    measured: tuple[str, ...]
    price: str = ""
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    formula: str = ""
    own: bool = False


@dataclass(frozen=True)
class Offered:
    """A plan, or an add-on, in words; `notes` hold for all of its entries."""

    entries: tuple[Entry, ...]
    notes: tuple[str, ...]


def plan(found: PriceList, to: Language) -> Offered:
    """The plan of a price list."""
    return _offered(_Words(to, found.book, found.plan, found), found.parts)


def addon(found: PriceList, added: Added, beside: Offered, to: Language) -> Offered:
    """What one of an add-on costs; what is noted of the plan beside it is not said again."""
    made = _offered(_Words(to, found.book, added.plan, found, is_addon=True), added.parts)
    return replace(made, notes=tuple(it for it in made.notes if it not in beside.notes))


def off(discount: Discount, found: PriceList, currency: str, zone: str, to: Language) -> str:
    """What a discount takes off, of what, and how long; `currency` is the customer's."""
    options = {it.component.name: it.options.title for it in found.parts}
    of = ", ".join(options.get(name, name) for name in discount.components) or to.say("all parts")
    if discount.percent is not None:
        told = [to.say("%(percent)s %% off %(parts)s", percent=to.number(discount.percent), parts=of)]
    else:
        amount = money(discount.amount or _ZERO, currency, to)
        told = [to.say("%(amount)s a month off %(parts)s", amount=amount, parts=of)]
    told.append(to.say("from %(day)s on", day=to.day(discount.valid_from, zone)))
    if discount.months is not None:
        told.append(to.say("for %(months)s calendar months in all", months=discount.months))
    if discount.until is not None:
        told.append(to.say("until %(day)s", day=to.day(discount.until, zone)))
    if discount.before_minimum:
        told.append(to.say("before a minimum is compared"))
    return ", ".join(told)


def money(amount: Decimal, currency: str, to: Language) -> str:
    """An amount in major units with its currency, with all of its digits, and those that the currency has at least."""
    digits = max(MINOR_DIGITS.get(currency, 2), len(plain(amount).partition(".")[2]))
    return f"{to.fixed(amount, digits)} {currency}"


@dataclass(frozen=True)
class _Words:
    """What the words of one plan or add-on are made with."""

    to: Language
    book: Book
    plan: Plan
    listed: PriceList
    is_addon: bool = False

    def say(self, message: str, /, **values: object) -> str:
        return self.to.say(message, **values)

    def number(self, value: Decimal) -> str:
        return self.to.number(value)

    def money(self, amount: Decimal) -> str:
        return money(amount, self.plan.currency, self.to)

    def units(self, metric: str, quantity: Decimal = Decimal(2)) -> str:
        return unit_in(self.to, self.book.metrics[metric].unit, quantity)

    def priced(self, price: Decimal, per: Decimal, metric: str) -> str:
        """`2.00 EUR per 1,000 tokens`, `0.05 EUR per call`; `free` of nothing."""
        if not price:
            return self.to.translated("free")
        units = self.units(metric, per)
        of = units if per == 1 else f"{self.number(per)} {units}"
        return self.say("%(price)s per %(per)s", price=self.money(price), per=of)

    def titles(self, names: Sequence[str]) -> str:
        options = {name: it.title for name, it in self.plan.options.items()}
        return ", ".join(options.get(name, name) for name in names)

    def dimension(self, name: str) -> str:
        if name.startswith(ATTRIBUTE):
            return name.removeprefix(ATTRIBUTE)
        return self.to.translated(DIMENSIONS.get(name, name))

    def pattern(self, pattern: str) -> str:
        if pattern == "*":
            return self.to.translated("any")
        return pattern or self.to.translated("none")


_Saying = Callable[[Any, _Words], Entry]


def _offered(words: _Words, parts: Sequence[Part]) -> Offered:
    with exact():
        said = [_entry(it, words) for it in parts]
    rules = [_which_calls(it, words) for it in parts]
    # What holds for most of what is measured is said once.
    common = max(filter(None, rules), key=rules.count, default=())
    entries = [
        entry if rule == common else replace(entry, notes=(*entry.notes, *rule))
        for entry, rule in zip(said, rules, strict=True)
    ]
    if any(rule not in ((), common) for rule in rules):
        common = (words.say("Unless a part says otherwise:"), *common)
    behaviours = {it.options.tax.behaviour or words.book.tax.behaviour for it in parts}
    return Offered(tuple(entries), (*([" ".join(common)] if common else []), *_tax(behaviours, words)))


def _entry(part: Part, words: _Words) -> Entry:
    component = part.component
    entry = _SAYINGS[type(component)](component, words)
    return replace(entry, title=part.options.title, own=part.own)


def _tax(behaviours: set[str | None], words: _Words) -> tuple[str, ...]:
    if behaviours == {"exclusive"}:
        return (words.say("Prices are without tax, which is added."),)
    return (words.say("Prices have tax in them."),) if behaviours == {"inclusive"} else ()


def _which_calls(part: Part, words: _Words) -> tuple[str, ...]:
    """Which calls are billed, of what a part measures; nothing where it measures nothing."""
    found: dict[str, None] = {}
    for name in part.component.metrics:
        metric = words.book.metrics[name]
        free = words.book.free_statuses(metric, part.options)
        if free:
            listed = ", ".join(words.to.translated(STATUS_WORDS[it]) for it in free)
            found[words.say("Not billed are calls that are: %(statuses)s.", statuses=listed)] = None
        else:
            found[words.say("Calls are billed however they end.")] = None
        rule = words.book.task_rule(metric, part.options)
        if rule in TASK_WORDS:
            found[words.say(TASK_WORDS[rule])] = None
    return tuple(found)


def _measured(name: str, words: _Words) -> str:
    """What a metric counts, and in what unit."""
    metric = words.book.metrics[name]
    told = {"meters": " + ".join(metric.meters), "units": words.units(name)}
    if metric.aggregate == COUNT:
        return words.say("Measured: the number of uses of %(meters)s (%(units)s).", **told)
    if metric.aggregate == MAX:
        return words.say("Measured: the largest single use of %(meters)s in a month (%(units)s).", **told)
    if metric.aggregate == UNIQUE:
        of = words.dimension(metric.of or "")
        return words.say("Measured: how many different values of %(of)s %(meters)s has (%(units)s).", of=of, **told)
    if metric.aggregate == LATEST:
        return _each(words.say("Measured: the level of %(meters)s at the end of the month (%(units)s).", **told),
                     metric, words)  # fmt: skip
    if metric.aggregate == TIME_WEIGHTED:
        span = words.to.translated(SPANS[metric.per])
        said = words.say("Measured: the level of %(meters)s times how long it holds, by the %(span)s (%(units)s).",
                         span=span, **told)  # fmt: skip
        return _each(said, metric, words)
    return words.say("Measured: the sum of %(meters)s (%(units)s).", **told)


def _each(said: str, metric: Metric, words: _Words) -> str:
    if metric.of is None:
        return said
    each = words.say("Each value of %(of)s has its own.", of=words.dimension(metric.of))
    return f"{said} {each}"


def _usage(metric: str, words: _Words, **more: Any) -> Entry:
    return Entry("", (_measured(metric, words),), **more)


# ---- tables ---------------------------------------------------------------------------------------------------------


def _range(lower: Decimal, upper: Decimal | None, words: _Words) -> str:
    if upper is None:
        return words.say("beyond %(lower)s", lower=words.number(lower)) if lower else words.say("all")
    if not lower:
        return words.say("up to %(upper)s", upper=words.number(upper))
    return words.say("beyond %(lower)s up to %(upper)s", lower=words.number(lower), upper=words.number(upper))


def _tier_rows(
    tiers: Sequence[Tier], per: Decimal, metric: str, words: _Words, start: Decimal = _ZERO
) -> list[tuple[str, str, str]]:
    """Range, price and fee of each tier, the first of which begins at `start`."""
    rows, lower = [], start
    for tier in tiers:
        upper = None if tier.up_to is None else start + tier.up_to
        fee = words.money(tier.flat) if tier.flat else _NO_FEE
        rows.append((_range(lower, upper, words), words.priced(tier.price, per, metric), fee))
        lower = lower if upper is None else upper
    return rows


def _tiered(rows: Sequence[tuple[str, str, str]], head: str, words: _Words, about: str = "") -> Table:
    """Tiers as a table, with a column of fees where there is one."""
    has_fees = any(fee != _NO_FEE for _, _, fee in rows)
    columns = (head, words.say("Price"), words.say("Fee"))
    if has_fees:
        return Table(columns, tuple(rows), 2, about)
    return Table(columns[:2], tuple(row[:2] for row in rows), 1, about)


def _in_a_month(metric: str, words: _Words) -> str:
    return words.say("%(units)s in a calendar month", units=words.units(metric))


def _has_fees(tiers: Sequence[Tier]) -> bool:
    return any(it.flat for it in tiers)


def _graduated_notes(tiers: Sequence[Tier], words: _Words) -> tuple[str, ...]:
    notes = [BY_UNITS] if len(tiers) > 1 else []
    return tuple(words.say(it) for it in (*notes, *([FEE_BY_UNITS] if _has_fees(tiers) else [])))


def _by_dimensions(
    dimensions: Sequence[str], rows: Sequence[tuple[Match, tuple[str, ...]]], head: Sequence[str], words: _Words
) -> tuple[Table, tuple[str, ...]]:
    """Rows by what they match, and what there is to know of how they match."""
    told = tuple((*_values(match, words, is_rest=bool(at)), *cells) for at, (match, cells) in enumerate(rows))
    patterns = [it for match, _ in rows for it in match.patterns]
    notes = [MATCHING[0]] if any(it.endswith("*") and it != "*" for it in patterns) else []
    if not any(set(match.patterns) == {"*"} for match, _ in rows):
        notes.append(MATCHING[1])
    columns = (*(words.dimension(it) for it in dimensions), *head)
    return Table(columns, told), tuple(words.say(it) for it in notes)


def _values(match: Match, words: _Words, is_rest: bool) -> tuple[str, ...]:
    """What a row matches; `is_rest`: there are rows before it."""
    if match.patterns == ("*",) and is_rest:
        return (words.say("all others"),)
    return tuple(words.pattern(it) for it in match.patterns)


# ---- the price models -----------------------------------------------------------------------------------------------


def _per_unit(it: PerUnit, words: _Words) -> Entry:
    if not it.dimensions:
        return _usage(it.metric, words, price=words.priced(it.prices[0].price, it.per, it.metric))
    rows = [(one.match, (words.priced(one.price, it.per, it.metric),)) for one in it.prices]
    table, notes = _by_dimensions(it.dimensions, rows, (words.say("Price"),), words)
    return _usage(it.metric, words, tables=(table,), notes=notes)


def _graduated(it: Graduated, words: _Words) -> Entry:
    table = _tiered(_tier_rows(it.tiers, it.per, it.metric, words), _in_a_month(it.metric, words), words)
    return _usage(it.metric, words, tables=(table,), notes=_graduated_notes(it.tiers, words))


def _volume(it: Volume, words: _Words) -> Entry:
    table = _tiered(_tier_rows(it.tiers, it.per, it.metric, words), _in_a_month(it.metric, words), words)
    notes = [BY_VOLUME, *([FEE_BY_VOLUME] if _has_fees(it.tiers) else [])]
    return _usage(it.metric, words, tables=(table,), notes=tuple(words.say(note) for note in notes))


def _package(it: Package, words: _Words) -> Entry:
    size = f"{words.number(it.size)} {words.units(it.metric, it.size)}"
    price = words.say("%(price)s for every started package of %(size)s", price=words.money(it.price), size=size)
    free = f"{words.number(it.free)} {words.units(it.metric, it.free)}"
    notes = (words.say("The first %(free)s of a month are free.", free=free),) if it.free else ()
    return _usage(it.metric, words, price=price, notes=notes)


def _included(it: Included, words: _Words) -> Entry:
    number = f"{words.number(it.included)} {words.units(it.metric, it.included)}"
    each = [name for name in (words.plan.title if words.is_addon else None, it.each) if name is not None]
    if not each:
        return _usage(it.metric, words, tables=(_beyond(it, it.included, words),),
                      notes=_graduated_notes(it.tiers, words))  # fmt: skip
    notes = [words.say("Included in a month: %(number)s for each of %(name)s.", number=number, name=", ".join(each))]
    now = None if words.is_addon else words.listed.quantities.get(each[0])
    if now is not None:
        total = words.number(it.included * now.quantity)
        notes.append(
            words.say("%(quantity)s of them now: %(total)s included.", quantity=words.number(now.quantity), total=total)
        )
    head = words.say("%(units)s beyond what is included", units=words.units(it.metric))
    if not it.tiers:
        notes.append(words.say("There is no more on this plan: what goes beyond has no price here."))
        return _usage(it.metric, words, notes=tuple(notes))
    table = _tiered(_tier_rows(it.tiers, it.per, it.metric, words), head, words)
    return _usage(it.metric, words, tables=(table,), notes=(*notes, *_graduated_notes(it.tiers, words)))


def _beyond(it: Any, included: Decimal, words: _Words, about: str = "") -> Table:
    """What is included as the first row, and the tiers from there on; `it` has tiers, a per and a metric."""
    rows = _tier_rows(it.tiers, it.per, it.metric, words, included)
    if not it.tiers:
        rows = [(_range(included, None, words), words.say("no price: there is no more on this plan"), _NO_FEE)]
    if included:
        rows.insert(0, (_range(_ZERO, included, words), words.say("included"), _NO_FEE))
    return _tiered(rows, _in_a_month(it.metric, words), words, about)


def _flat(it: Flat, words: _Words) -> Entry:
    tables, notes = [], []
    for allowance in it.allowances:
        about = words.say("Usage: %(metric)s", metric=allowance.metric.replace("_", " "))
        tables.append(_beyond(allowance, allowance.included, words, about))
        notes += [note for note in _graduated_notes(allowance.tiers, words) if note not in notes]
    monthly = words.money(it.price)
    price = words.say("%(price)s a month", price=monthly)
    if words.is_addon:
        price = words.say("%(price)s a month each", price=monthly)
    measured = tuple(_measured(name, words) for name in it.metrics)
    return Entry("", measured, price, tuple(tables), (*notes, words.say("The fee of a month is due in full.")))


def _recurring(it: Recurring, words: _Words) -> Entry:
    price = words.say("%(price)s a month", price=words.money(it.price))
    notes = []
    if it.quantity != 1 or words.is_addon:
        price = words.say("%(price)s a month each", price=words.money(it.price))
    if isinstance(it.quantity, str):
        fact = words.listed.quantities.get(it.quantity)
        if fact is None:
            notes.append(words.say("No number of %(name)s is recorded, so that nothing is due.", name=it.quantity))
        else:
            notes.append(_so_many(it, fact.quantity, it.quantity, words))
    elif it.quantity != 1:
        notes.append(_so_many(it, it.quantity, unit_in(words.to, it.unit, it.quantity), words))
    notes.append(words.say(PRORATIONS[it.prorate]))
    if it.advance:
        notes.append(words.say("It is billed in advance, with the month before."))
    return Entry("", (), price, notes=tuple(notes))


def _so_many(it: Recurring, quantity: Decimal, name: str, words: _Words) -> str:
    told = {"quantity": words.number(quantity), "name": name, "amount": words.money(it.price * quantity)}
    return words.say("Now %(quantity)s (%(name)s): %(amount)s a month.", **told)


def _minimum(it: Minimum, words: _Words) -> Entry:
    price = words.say("at least %(price)s a month", price=words.money(it.amount))
    of = words.say("all other parts of the plan") if it.of is None else words.titles(it.of)
    less = words.say("What these come to less in a month is added: %(parts)s.", parts=of)
    return Entry("", (), price, notes=(less, words.say(PRORATIONS[it.prorate])))


def _credit_pack(it: CreditPack, words: _Words) -> Entry:
    price = words.say("%(price)s once", price=words.money(it.price))
    notes = [words.say("It is worth credits of %(credits)s, which pay usage.", credits=words.money(it.credits))]
    if it.expires_days is None:
        notes.append(words.say("The credits do not expire."))
    else:
        days = it.expires_days
        notes.append(words.say("The credits hold for %(days)s days from the start of their month.", days=days))
    return Entry("", (), price, notes=tuple(notes))


def _percentage(it: Percentage, words: _Words) -> Entry:
    percent, notes = words.number(it.percent), []
    if it.metric is None:
        price = words.say("%(percent)s %% of %(parts)s", percent=percent, parts=words.titles(it.of))
        fixed = FIXED[0]
    else:
        price = words.say("%(percent)s %% of what is measured", percent=percent)
        fixed = FIXED[1]
    if it.fixed:
        notes.append(words.say(fixed, fixed=words.money(it.fixed)))
    if it.free:
        notes.append(words.say("The first %(free)s of a month are free.", free=words.money(it.free)))
    if it.least:
        notes.append(
            words.say("At least %(least)s in a month in which there is anything.", least=words.money(it.least))
        )
    if it.most is not None:
        notes.append(words.say("At most %(most)s a month.", most=words.money(it.most)))
    measured = () if it.metric is None else (_measured(it.metric, words),)
    return Entry("", measured, price, notes=tuple(notes))


def _cost_plus(it: CostPlus, words: _Words) -> Entry:
    price = words.say("the provider's price, plus %(percent)s %%", percent=words.number(it.markup))
    notes: list[str] = []
    if it.fee:
        notes.append(words.say("Plus %(fee)s.", fee=words.priced(it.fee, it.per, it.metric)))
    if it.costs is None:
        return _usage(it.metric, words, price=price, notes=tuple(notes))
    costs, factor = it.costs, (100 + it.markup).scaleb(-2)
    rows = [
        (one.match, tuple(words.priced(amount, costs.per, it.metric) for amount in (one.price, one.price * factor)))
        for one in costs.prices
    ]
    head = (words.say("The provider's price"), words.say("Price"))
    table, matching = _by_dimensions(costs.dimensions, rows, head, words)
    return _usage(it.metric, words, price=price, tables=(replace(table, figures=2),), notes=(*notes, *matching))


def _formula(it: Custom, words: _Words) -> Entry:
    measured = tuple(f"{name}: {_measured(metric, words)}" for name, metric in it.inputs)
    note = words.say("The formula gives %(currency)s for the usage of a calendar month.", currency=words.plan.currency)
    return Entry("", measured, formula=it.formula.text, notes=(note,))


def _matrix(it: Matrix, words: _Words) -> Entry:
    tiered = [cell for cell in it.cells if len(cell.tiers) > 1]
    modes = {cell.mode for cell in it.cells if len(cell.tiers) > 1 or _has_fees(cell.tiers)}
    has_fees = any(_has_fees(cell.tiers) for cell in it.cells)
    rows = [(cell.match, row) for cell in it.cells for row in _cell_rows(cell, it.metric, words)]
    head = [(_in_a_month(it.metric, words), bool(tiered)), (words.say("Counted"), len(modes) > 1)]
    head += [(words.say("Price"), True), (words.say("Fee"), has_fees)]
    shown = [at for at, (_, is_shown) in enumerate(head) if is_shown]
    kept = [(match, tuple(row[at] for at in shown)) for match, row in rows]
    table, notes = _by_dimensions(it.dimensions, kept, [head[at][0] for at in shown], words)
    said: list[str] = []
    for mode, by, fee in (("graduated", BY_UNITS, FEE_BY_UNITS), ("volume", BY_VOLUME, FEE_BY_VOLUME)):
        of_it = [cell for cell in it.cells if cell.mode == mode]
        told = [by] if any(len(cell.tiers) > 1 for cell in of_it) else []
        told += [fee] if any(_has_fees(cell.tiers) for cell in of_it) else []
        prefix = f"{_counted(mode, words)}: " if told and len(modes) > 1 else ""
        said += [prefix + words.say(one) for one in told]
    return _usage(it.metric, words, tables=(replace(table, figures=1 + has_fees),), notes=(*notes, *said))


def _cell_rows(cell: Cell, metric: str, words: _Words) -> list[tuple[str, str, str, str]]:
    rows = _tier_rows(cell.tiers, cell.per, metric, words)
    return [(place, _counted(cell.mode, words), price, fee) for place, price, fee in rows]


def _counted(mode: str, words: _Words) -> str:
    return words.say("unit by unit") if mode == "graduated" else words.say("all alike")


_SAYINGS: Final[Mapping[type[Any], _Saying]] = {
    PerUnit: _per_unit,
    Graduated: _graduated,
    Volume: _volume,
    Package: _package,
    Included: _included,
    Matrix: _matrix,
    Percentage: _percentage,
    CostPlus: _cost_plus,
    Custom: _formula,
    Flat: _flat,
    Recurring: _recurring,
    Minimum: _minimum,
    CreditPack: _credit_pack,
}
