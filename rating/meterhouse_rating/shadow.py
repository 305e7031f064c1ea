"""Two ratings side by side, line by line: what is stored beside what the code of now, or another book, makes of it.

A closed rating is rated again from what its closing knew: usage, prices, contracts and credits of then. Nothing is
written. Another billing system's totals can be laid beside the stored lines, too.
"""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Final

from meterhouse_rating import known, periods
from meterhouse_rating.as_of import closed_again
from meterhouse_rating.ids import digest
from meterhouse_rating.money import of_minor
from meterhouse_rating.periods import Period
from meterhouse_rating.results import line_rows
from meterhouse_rating.settled import CLOSED, Standing, lines_of, standings
from meterhouse_rating.simulate import History, Seen, other_terms, side
from meterhouse_rating.world import World
from meterhouse_store import registry
from meterhouse_store.numbers import plain

ABSENT = "-"
_WORDS: Final = frozenset({"description", "explanation"})
"""Fields that say how a line came about; none of them is counted or charged."""

Row = Mapping[Any, Any]
_Lines = dict[tuple[str, Period], list[dict[str, Any]]]


class TotalsRefused(ValueError):
    """A file of totals that cannot be read; the message says what to write."""


@dataclass(frozen=True)
class Difference:
    """What differs on one line: `old` and `new` are what each side has, `-` where it has none."""

    customer_id: str
    period: str
    line: str
    field: str
    old: str
    new: str


@dataclass
class Shadow:
    """What was compared: so many were the `same`, `differences` are listed, `unknown`: what could not be compared.

    `reworded`: ratings of which every line has the same quantity and amount, and is told in other words.
    """

    same: int = 0
    lines: int = 0
    differences: list[Difference] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    reworded: list[str] = field(default_factory=list)


def again(world: World, text: str, only: str | None = None) -> Shadow:
    """The closed ratings of a period as written against themselves, rated by the code of now. Raises PeriodError."""
    made = Shadow()
    with world.engine.connect() as connection:
        for closed, every in _closed(world, text, only):
            known_again = closed_again(world, connection, closed, every)
            rated, inputs = known_again.outcome.rated, known_again.outcome.inputs
            who = f"{closed.customer_id} {closed.period}"
            if rated is None or inputs is None:
                reasons = sorted({it.reason for it in known_again.outcome.leftovers})
                made.unknown.append(f"{who}: cannot be rated again ({', '.join(reasons) or 'no usage and no price'})")
                continue
            old = lines_of(connection, [closed.rating_id])
            new = line_rows(closed.rating_id, inputs.currency, rated)
            found = compare(closed.customer_id, str(closed.period), old, new, exactly=True)
            if found and all(it.field in _WORDS for it in found):
                # Another version of the code says it otherwise, and comes to the same.
                made.reworded.append(f"{who}: {', '.join(sorted({it.line for it in found}))}")
                found = []
            elif rated.sha256() != closed.result_sha256 and not found:
                found = [_whole(closed, "unrated usage", closed.result_sha256, rated.sha256())]
            if found and inputs.sha256() != closed.inputs_sha256:
                # Then it is not (only) the code that differs.
                found.append(_whole(closed, "inputs", closed.inputs_sha256, inputs.sha256()))
            _count(made, found, max(len(old), len(new)))
    return made


def under(world: World, months: Sequence[str], book: str, only: str | None = None) -> Shadow:
    """Months under the published books, line by line against the same under another one. Raises what simulate does."""
    old = known.terms(world)
    both = old, other_terms(world, old, book)
    made, now = Shadow(), world.now()
    histories: tuple[History, History] = {}, {}
    for month in months:
        sides: list[_Lines] = [{}, {}]
        seen: Seen = {}
        for lines, terms, history in zip(sides, both, histories, strict=True):
            for outcome in side(world, terms, month, history, only, now, seen):
                who = f"{outcome.customer_id} {outcome.period}"
                if outcome.rated is not None and outcome.inputs is not None:
                    key = (outcome.customer_id, outcome.period)
                    lines[key] = line_rows("simulated", outcome.inputs.currency, outcome.rated)
                if outcome.exceptions:
                    reasons = ", ".join(sorted({it.reason for it in outcome.exceptions}))
                    which = "the published books" if terms is old else "the other book"
                    made.unknown.append(f"{who}: usage without a price under {which} ({reasons})")
        for key in sorted({*sides[0], *sides[1]}):
            one, other = (it.get(key, []) for it in sides)
            if one or other:
                found = compare(key[0], str(key[1]), one, other, exactly=False)
                _count(made, found, max(len(one), len(other)))
    return made


def against(world: World, text: str, file: Path, only: str | None = None) -> Shadow:
    """The stored ratings of a period against a CSV: customer, metric, quantity, amount, and currency if one likes.

    `metric` may be the name of a fee's component. Raises TotalsRefused, PeriodError.
    """
    theirs = totals_of(file)
    ours: dict[tuple[str, str], tuple[Decimal, Decimal]] = {}
    with world.engine.connect() as connection:
        for it, _ in _standing(world, text, only):
            for line in lines_of(connection, [it.rating_id]):
                key = (it.customer_id, line["metric"] or line["component"])
                quantity, amount = ours.get(key, (Decimal(0), Decimal(0)))
                ours[key] = (quantity + line["quantity"], amount + of_minor(line["amount_minor"], it.currency))
    made = Shadow()
    for key in sorted({*ours, *(it for it in theirs if only is None or it[0] == only)}):
        name, metric = key
        one, other = theirs.get(key), ours.get(key)
        pairs = (
            [("quantity", 0), ("amount", 1)] if one is None or other is None or one[0] is not None else [("amount", 1)]
        )
        found = [
            Difference(name, text, metric, what, _shown(one, index), _shown(other, index))
            for what, index in pairs
            if one is None or other is None or one[index] != other[index]
        ]
        _count(made, found, 1)
    return made


def totals_of(file: Path) -> dict[tuple[str, str], tuple[Decimal | None, Decimal]]:
    """Per customer and metric the quantity (None where the cell is empty) and the amount. Raises TotalsRefused."""
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream)
        missing = {"customer", "metric", "quantity", "amount"} - set(reader.fieldnames or ())
        if missing:
            raise TotalsRefused(f"{file} has no column {', '.join(sorted(missing))}: customer,metric,quantity,amount.")
        found: dict[tuple[str, str], tuple[Decimal | None, Decimal]] = {}
        for row in reader:
            where = f"{file}, line {reader.line_num}"
            key = (row["customer"] or "", row["metric"] or "")
            if key in found:
                raise TotalsRefused(f"{where}: {key[0]} has {key[1]} twice. Add the two up.")
            quantity = _number(row["quantity"], where) if row["quantity"] else None
            found[key] = (quantity, _number(row["amount"], where))
    return found


def compare(
    customer_id: str, period: str, old: Iterable[Row], new: Iterable[Row], *, exactly: bool
) -> list[Difference]:
    """The lines of two ratings of one period; `exactly`: explanations, too, which name the book and its lines."""
    one, other = ({_key(line): line for line in lines} for lines in (old, new))
    found = []
    for key in sorted({*one, *other}):
        mine, theirs = one.get(key), other.get(key)
        told = _told(mine or theirs or {})
        if mine is None or theirs is None:
            found.append(Difference(customer_id, period, told, "line", _amount(mine), _amount(theirs)))
            continue
        pairs = [(name, plain(mine[name]), plain(theirs[name])) for name in ("quantity", "amount_exact")]
        pairs.append(("amount", _amount(mine), _amount(theirs)))
        if exactly:
            pairs += [(name, str(mine[name]), str(theirs[name])) for name in ("position", "description", "unit")]
            pairs.append(("explanation", digest(mine["explanation"])[:12], digest(theirs["explanation"])[:12]))
        found += [Difference(customer_id, period, told, *it) for it in pairs if it[1] != it[2]]
    return found


def _closed(world: World, text: str, only: str | None) -> Iterator[tuple[Standing, list[Standing]]]:
    return (it for it in _standing(world, text, only) if it[0].state == CLOSED)


def _standing(world: World, text: str, only: str | None) -> Iterator[tuple[Standing, list[Standing]]]:
    """The ratings within the period as written, each with all of its customer's."""
    zones = {it.customer_id: it.time_zone for it in registry.customers(world.engine, world.namespace)}
    by_customer: dict[str, list[Standing]] = {}
    with world.engine.connect() as connection:
        for it in standings(connection, world.namespace, only):
            by_customer.setdefault(it.customer_id, []).append(it)
    for name, every in sorted(by_customer.items()):
        asked = periods.parse(text, zones.get(name, "UTC"))
        yield from ((it, every) for it in every if asked.start <= it.period.start and it.period.end <= asked.end)


def _count(made: Shadow, found: Sequence[Difference], lines: int) -> None:
    made.lines += lines
    made.same += not found
    made.differences += found


def _key(line: Row) -> tuple[str, ...]:
    explanation = line["explanation"]
    corrects = explanation.get("corrects", {}).get("name", "")
    dimensions = repr(sorted(line["dimensions"].items()))
    return (line["kind"], line["component"], line["metric"] or "", dimensions, explanation.get("service", ""), corrects)


def _told(line: Row) -> str:
    dimensions = ", ".join(f"{name}={value}" for name, value in line["dimensions"].items())
    return f"{line['component']} ({dimensions})" if dimensions else str(line["component"])


def _amount(line: Row | None) -> str:
    return ABSENT if line is None else plain(of_minor(line["amount_minor"], line["currency"]))


def _whole(closed: Standing, name: str, old: str, new: str) -> Difference:
    return Difference(closed.customer_id, str(closed.period), "(rating)", name, old[:12], new[:12])


def _shown(side: Sequence[Decimal | None] | None, index: int) -> str:
    value = None if side is None else side[index]
    return ABSENT if value is None else plain(value)


def _number(text: str | None, where: str) -> Decimal:
    try:
        value = Decimal((text or "").strip())
    except InvalidOperation:
        raise TotalsRefused(f"{where}: {text!r} is no number. Write it as 1234.50.") from None
    if not value.is_finite():
        raise TotalsRefused(f"{where}: {text!r} is no number. Write it as 1234.50.")
    return value
