"""Corrections: what a closed period comes to now, less what it came to, as signed lines. Pure functions.

The closed rating is priced again with all that is known now of its usage, and all that was agreed when it was closed:
its own period, tiers and price version; of a month in parts it goes on from what the parts closed before it come to
now. Each line that differs becomes a correction that names it. Where usage that credits had paid is taken away, the
credits come back, those used last first. Of what is late credits pay what is owed of it: less what caps and discounts
take off, and what other usage of the month gives back.

Recurring fees are left out: they go by contracts and dated quantities, and nothing can be agreed into a closed period.
What was billed in advance for a month that is not closed is made up for by that month's own rating.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Final

from meterhouse_rating.credit_lines import minor, paid_by, used_by
from meterhouse_rating.credits import PROMOTIONAL, Grant
from meterhouse_rating.engine import Inputs, rate
from meterhouse_rating.ids import digest
from meterhouse_rating.money import of_minor, show, to_minor
from meterhouse_rating.periods import Period
from meterhouse_rating.rated import CORRECTION, CREDIT_APPLIED, CREDIT_RESTORED, Rated, RatedLine
from meterhouse_rating.settling import Sums, corrected, settled_by, told, uncorrected
from meterhouse_store.numbers import D, plain

_PAID: Final = "paid-then"
_NOT_CORRECTED: Final = frozenset({CORRECTION, CREDIT_RESTORED, CREDIT_APPLIED, "credit_pack"})

LineRow = Mapping[str, Any]
"""A row of `rated_lines`."""


@dataclass(frozen=True)
class Closed:
    """A rating that was closed: its lines, and the corrections of it that stand on closed ratings and credit notes.

    `paid_late`: what grants paid of these corrections. `after`: the parts of its month that it goes on from, and that
    are corrected, too.
    """

    rating_id: str
    period: Period
    currency: str
    lines: Sequence[LineRow]
    corrected: Sequence[LineRow] = ()
    paid_late: Sequence[tuple[str, int]] = ()
    after: Sequence[Period] = ()


@dataclass
class _Was:
    """What was billed of one line so far."""

    line_id: str = ""
    quantity: Decimal = Decimal(0)
    exact: Decimal = Decimal(0)
    amount_minor: int = 0
    meters: dict[str, Decimal] = field(default_factory=dict)
    settled: Sums = field(default_factory=dict)
    like: LineRow | None = None

    def add(self, line: LineRow, meters: Mapping[str, str]) -> None:
        self.quantity += line["quantity"]
        self.exact += line["amount_exact"]
        self.amount_minor += line["amount_minor"]
        for name, quantity in meters.items():
            self.meters[name] = self.meters.get(name, Decimal(0)) + D(quantity)
        for key, it in settled_by(line).items():
            self.settled[key] = self.settled.get(key, Decimal(0)) + it


def correct(closed: Closed, inputs: Inputs) -> tuple[RatedLine, ...]:
    """The corrections of a closed rating, by inputs of its own time with the usage of now."""
    paid, late = _paid(closed)
    total_paid = sum(amount for _, amount in paid)
    # What credits paid then pays first; the rest of what was there then is none of this rating's any more.
    then = Grant(_PAID, PROMOTIONAL, total_paid, inputs.setting.period.start, priority=-1)
    now = rate(replace(inputs, credits=(then,), top_up=None, corrections=()))
    found = _differences(closed, now)
    restored = total_paid - _used_of(now, closed.currency)
    # Of usage that is taken away what was late was paid last.
    less = -_owed(found, closed.currency) - restored
    restored += max(0, min(less, sum(amount for _, amount in late)))
    return tuple(found) if restored <= 0 else (*found, _restored(closed, [*paid, *late], restored))


def in_favour(made: tuple[RatedLine, ...], currency: str) -> tuple[RatedLine, ...]:
    """What of the corrections of a closed rating can be on a credit note: where they are in the customer's favour all,
    or, where usage comes to more, which is owed and which credits may pay, what they give back beside it.
    """
    if total(made) >= 0:
        return ()
    beside = tuple(line for line in made if line.kind != CREDIT_RESTORED and not _tells_of_usage(line))
    return beside if _owed(made, currency) > 0 and total(beside) < 0 else made


def with_payable(
    made: Sequence[tuple[RatedLine, ...]], noted: Iterable[tuple[RatedLine, ...]], currency: str
) -> list[tuple[RatedLine, ...]]:
    """The corrections that a rating bills of closed ratings of one month, with what credits may pay of them, `payable`.

    That is what usage comes to more in the month, after discounts; so what one line or part gives back is set off
    against what another has more, on credit notes (`noted`), too. Credits that come back may pay again at once, also
    where that is less.
    """
    owed = [_owed(lines, currency) for lines in made]
    back = sum(line.amount_minor for lines in made for line in lines if line.kind == CREDIT_RESTORED)
    whole = sum(owed) + sum(min(0, _owed(lines, currency)) for lines in noted)
    left = min(sum(max(0, it) for it in owed), max(whole, back))
    found = []
    for lines, of_it in zip(made, owed, strict=True):
        stamped, room = [], min(left, max(0, of_it))
        left -= room
        for line in lines:
            may_pay = line.amount_minor if line.kind == CREDIT_RESTORED else _of_usage(line, currency)
            if may_pay > 0:
                if line.kind != CREDIT_RESTORED:
                    may_pay = min(room, may_pay)
                    room -= may_pay
                line = replace(line, explanation={**line.explanation, "payable": show(may_pay, currency)})
            stamped.append(line)
        found.append(tuple(stamped))
    return found


def _owed(lines: Iterable[RatedLine], currency: str) -> int:
    """What corrections of a rating have of usage, beyond what credits paid of it already."""
    return sum(it.amount_minor if it.kind == CREDIT_RESTORED else _of_usage(it, currency) for it in lines)


def _tells_of_usage(line: RatedLine) -> bool:
    return line.metric is not None or "of_usage" in line.explanation


def _of_usage(line: RatedLine, currency: str) -> int:
    if line.kind != CORRECTION:
        return 0
    return line.amount_minor if line.metric is not None else minor(line.explanation.get("of_usage", "0"), currency)


def _differences(closed: Closed, now: Rated) -> list[RatedLine]:
    was: dict[str, _Was] = {}
    usage = {it.description for it in now.lines if it.kind == "usage"}
    usage |= {uncorrected(it["description"]) for it in (*closed.lines, *closed.corrected) if it["metric"] is not None}
    for row in closed.lines:
        if row["kind"] in _NOT_CORRECTED or "service" in row["explanation"]:
            continue
        before = was.setdefault(
            _name(closed, row["kind"], row), _Was(row["line_id"] if row["amount_minor"] else "", like=row)
        )
        before.add(row, row["explanation"].get("meters", {}))
    for row in closed.corrected:
        corrects = row["explanation"]["corrects"]
        if row["kind"] == CORRECTION:
            before = was.setdefault(corrects["name"], _Was(corrects["line"], like=row))
            before.add(row, row["explanation"]["corrected_meters"])
    found = []
    for line in now.lines:
        if line.kind in _NOT_CORRECTED or "service" in line.explanation:
            continue
        name = _name(closed, line.kind, {**vars(line), "dimensions": dict(line.dimensions)})
        found.append(_correction(closed, name, was.pop(name, _Was()), line, usage))
    found += [_correction(closed, name, before, None, usage) for name, before in sorted(was.items())]
    return [line for line in found if line.amount_minor or line.quantity or _tells(line.explanation)]


def _tells(explanation: Mapping[str, Any]) -> bool:
    return bool(explanation["corrected_meters"] or explanation["settles"])


def _correction(closed: Closed, name: str, was: _Was, line: RatedLine | None, usage: Collection[str]) -> RatedLine:
    """`usage`: what the lines of usage are called, which discounts are off, too."""
    now = None if line is None else {**vars(line), "currency": closed.currency}
    like: Mapping[str, Any] = now or was.like or {}
    kind = line.kind if line is not None else _kind_of(was.like or {})
    exact = line.amount_exact if line is not None else Decimal(0)
    amount = (0 if line is None else line.amount_minor) - was.amount_minor
    meters = {key: D(it) for key, it in (line.explanation.get("meters", {}) if line is not None else {}).items()}
    changed = {
        key: meters.get(key, Decimal(0)) - was.meters.get(key, Decimal(0)) for key in sorted({*meters, *was.meters})
    }
    settled = settled_by(now) if now is not None else {}
    more = {key: settled.get(key, Decimal(0)) - was.settled.get(key, Decimal(0)) for key in {*settled, *was.settled}}
    budget = like["explanation"].get("budget") or like["explanation"].get("corrects", {}).get("budget")
    off_usage = sum((it for (what, of), it in more.items() if what == "off" and of in usage), Decimal(0))
    explanation = {
        "corrects": {
            "rating": closed.rating_id,
            "line": was.line_id,
            "name": name,
            "kind": kind,
            "period": str(closed.period),
            **({"order": _order_of(like)} if kind == "discount" else {}),
            **({"budget": budget} if budget else {}),
            **({"after": [str(it) for it in closed.after]} if closed.after else {}),
        },
        "price": like["explanation"].get("price", {}),
        **({"tax": like["explanation"]["tax"]} if "tax" in like["explanation"] else {}),
        **({"now": _now(line)} if line is not None else {}),
        "steps": [
            {"comes_to": str(closed.period), "amount": plain(exact)},
            {"billed_so_far": str(closed.period), "amount": plain(-was.exact)},
        ],
        "corrected_meters": {key: plain(quantity) for key, quantity in changed.items() if quantity},
        "settles": told(like, more),
        **({"of_usage": _shown(-off_usage, closed.currency)} if off_usage else {}),
        "amount_exact": plain(exact - was.exact),
        "amount": show(amount, closed.currency),
    }
    dimensions = like["dimensions"]
    return RatedLine(
        CORRECTION,
        like["component"],
        like["metric"],
        corrected(str(like["description"]), closed.period),
        (Decimal(0) if line is None else line.quantity) - was.quantity if like["metric"] else Decimal(0),
        like["unit"],
        tuple(dimensions.items()) if isinstance(dimensions, Mapping) else dimensions,
        exact - was.exact,
        amount,
        explanation,
    )


def _now(line: RatedLine) -> dict[str, Any]:
    """The arithmetic of a line as it comes to now."""
    return {name: line.explanation[name] for name in ("steps", "conversion") if name in line.explanation}


def _shown(amount: Decimal, currency: str) -> str:
    return show(to_minor(amount, currency, "half_even"), currency)


def _restored(closed: Closed, paid: Sequence[tuple[str, int]], restored: int) -> RatedLine:
    left = restored
    used: dict[str, int] = {}
    for name, amount in reversed(paid):
        back = min(left, amount)
        if back:
            used[name] = used.get(name, 0) - back
            left -= back
    explanation = {
        "corrects": {
            "rating": closed.rating_id,
            "line": next((row["line_id"] for row in closed.lines if row["kind"] == CREDIT_APPLIED), ""),
            "name": digest(["restored", closed.rating_id]),
            "kind": CREDIT_APPLIED,
            "period": str(closed.period),
        },
        "steps": [{"restored": name, "amount": show(-amount, closed.currency)} for name, amount in used.items()],
        "used": {name: show(amount, closed.currency) for name, amount in used.items()},
        "corrected_meters": {},
        "amount": show(restored, closed.currency),
    }
    words = ("credits", None, f"Credits given back (correction of {closed.period})", Decimal(1), "")
    return RatedLine(CREDIT_RESTORED, *words, (), of_minor(restored, closed.currency), restored, explanation)


def _paid(closed: Closed) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """What credits paid of the rating, and of its corrections, and did not come back, in the order of use."""
    back: dict[str, int] = {}
    for row in closed.corrected:
        for name, amount in used_by(row["explanation"], closed.currency).items():
            back[name] = back.get(name, 0) - amount
    own = [
        (grant, amount)
        for row in closed.lines
        if row["kind"] == CREDIT_APPLIED
        for name, grant, amount in paid_by(row["explanation"], closed.currency)
        if uncorrected(name) == name  # what it paid of corrections is of the ratings that these correct
    ]
    late = _left_of(closed.paid_late, back)
    return _left_of(own, back), late


def _left_of(paid: Sequence[tuple[str, int]], back: dict[str, int]) -> list[tuple[str, int]]:
    """What is left of payments when what came `back` is taken off, last ones first, and off that."""
    left = []
    for name, amount in reversed(paid):
        gone = min(amount, back.get(name, 0))
        back[name] = back.get(name, 0) - gone
        left.append((name, amount - gone))
    return [(name, amount) for name, amount in reversed(left) if amount > 0]


def _used_of(now: Rated, currency: str) -> int:
    told = (used_by(line.explanation, currency) for line in now.lines if line.kind == CREDIT_APPLIED)
    return sum(it.get(_PAID, 0) for it in told)


def _name(closed: Closed, kind: str, line: Mapping[str, Any]) -> str:
    """The one name of what a line is for, the same before and after."""
    key = [kind, line["component"], line["metric"], sorted(map(list, dict(line["dimensions"]).items()))]
    return digest(["correction", closed.rating_id, *key])


def _kind_of(like: LineRow) -> str:
    corrects = like.get("explanation", {}).get("corrects")
    return str(corrects["kind"] if corrects else like.get("kind", ""))


def _order_of(like: LineRow) -> str:
    """Whether a discount is taken off before the minimum; of one from before corrections said it, nobody knows."""
    explanation = like["explanation"]
    return str(explanation.get("order") or explanation.get("corrects", {}).get("order", ""))


def total(lines: Iterable[RatedLine]) -> int:
    """What corrections come to, in minor units."""
    return sum(line.amount_minor for line in lines)
