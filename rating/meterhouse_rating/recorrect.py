"""Corrections in SQL: which closed ratings a period corrects, by the customer's policy, and what is kept of it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import Connection, Engine, insert, select

from meterhouse_rating import results
from meterhouse_rating.corrections import Closed, correct, in_favour, total, with_payable
from meterhouse_rating.credit_lines import paid_by
from meterhouse_rating.engine import Inputs, RatedLine, UsageRow
from meterhouse_rating.periods import Period, overlaps
from meterhouse_rating.rated import ABOUT_CLOSED, CREDIT_APPLIED
from meterhouse_rating.settled import CLOSED, OPEN, Past, Row, Standing, credit_note_id, lines_of, noted_of
from meterhouse_rating.terms import Terms
from meterhouse_rating.usage import Found
from meterhouse_store.numbers import plain
from meterhouse_store.sql import begin_write
from meterhouse_store.tables import accounted_usage, correction_policies, credit_notes, rated_lines, ratings

NEXT_INVOICE: Final = "next_invoice"
CREDIT_NOTE: Final = "credit_note"
NONE: Final = "none"
POLICIES: Final = (NEXT_INVOICE, CREDIT_NOTE, NONE)


@dataclass(frozen=True)
class Restated:
    """A closed rating whose usage is not what it was: what it is now, and the terms that its closing knew."""

    standing: Standing
    terms: Terms
    found: Found


@dataclass(frozen=True)
class Corrected:
    """A closed rating with its inputs of today, and its corrections: those on the rating that is made, or on a note."""

    restated: Restated
    inputs: Inputs
    on_rating: tuple[RatedLine, ...]
    on_note: tuple[RatedLine, ...]


def policy_of(connection: Connection, namespace: str, customer_id: str) -> str:
    """What becomes of usage of the customer that changes after its period was closed."""
    return policies(connection, namespace).get(customer_id, NEXT_INVOICE)


def policies(connection: Connection, namespace: str) -> dict[str, str]:
    """The same for all customers that have agreed to something."""
    table = correction_policies
    query = select(table.c.customer_id, table.c.policy).where(table.c.namespace == namespace)
    return {str(name): str(policy) for name, policy in connection.execute(query.order_by(table.c.recorded_at))}


def set_policy(
    engine: Engine, namespace: str, customer_id: str, policy: str, *, who: str, why: str, now: datetime
) -> bool:
    """Record what becomes of the customer's late usage from now on; False where it is so already."""
    with begin_write(engine) as connection:
        if policy_of(connection, namespace, customer_id) == policy:
            return False
        row = {"namespace": namespace, "customer_id": customer_id, "recorded_at": now, "policy": policy}
        connection.execute(insert(correction_policies).values(**row, who=who, why=why))
    return True


def corrected(
    connection: Connection,
    namespace: str,
    customer_id: str,
    period: Period,
    month: Period,
    past: Past,
    restated: Sequence[Restated],
    rerate: Callable[[Connection, Restated, Sequence[Row]], Inputs | None],
) -> tuple[Corrected, ...]:
    """The corrections that belong on the rating of a period: of closed ones before it, each on one open rating only.

    Each goes on from what the parts of its month that were closed before it come to with their corrections, which
    `rerate` is given. What corrects another part of the period's own `month` is on no later rating than this one, which
    goes on from it.
    """
    policy = policy_of(connection, namespace, customer_id) if restated else NONE
    if policy == NONE:
        return ()
    others = [it for it in past.standing if it.state == OPEN and not overlaps(it.period, period)]
    sooner = _carried(connection, [it for it in others if it.period < period], past)
    carried = sooner | _carried(connection, others, past)
    final, paid_late = _final(connection, past)
    known = [row for rows in final.values() for row in rows]
    found = []
    for it in sorted(restated, key=lambda it: _when_closed(it.standing)):
        closed = it.standing
        inputs = rerate(connection, it, known)
        if inputs is None:
            continue
        lines = [dict(row) for row in lines_of(connection, [closed.rating_id])]
        so_far = final.get(closed.rating_id, []), paid_late.get(closed.rating_id, [])
        after = _corrected_before(past, closed, inputs.setting.month, known)
        made = correct(Closed(closed.rating_id, closed.period, closed.currency, lines, *so_far, after), inputs)
        known += results.line_rows_of("", closed.currency, made)
        elsewhere = sooner if overlaps(closed.period, month) else carried
        if closed.period.end > period.start or closed.rating_id in elsewhere:
            continue
        on_note = in_favour(made, closed.currency) if policy == CREDIT_NOTE else ()
        found.append(Corrected(it, inputs, tuple(line for line in made if line not in on_note), on_note))
    return tuple(sorted(_with_payable(found), key=lambda it: it.restated.standing.period))


def _with_payable(found: Sequence[Corrected]) -> list[Corrected]:
    """The corrections, with what credits may pay of those of each month."""
    stamped = []
    for month in sorted({it.inputs.setting.month for it in found}):
        of_it = [it for it in found if it.inputs.setting.month == month]
        lines = [it.on_rating for it in of_it], [it.on_note for it in of_it]
        made = with_payable(*lines, of_it[0].restated.standing.currency)
        stamped += [replace(it, on_rating=on_rating) for it, on_rating in zip(of_it, made, strict=True)]
    return stamped


def _corrected_before(past: Past, closed: Standing, month: Period, corrections: Iterable[Row]) -> list[Period]:
    """The parts of the month that were closed before this one, and have corrections."""
    names = {row["explanation"]["corrects"]["rating"] for row in corrections}
    return [
        it.period
        for it in past.standing
        if it.rating_id in names
        and it.closed_at is not None
        and overlaps(it.period, month)
        and _when_closed(it) < _when_closed(closed)
    ]


def _when_closed(it: Standing) -> tuple[datetime, Period]:
    assert it.closed_at is not None, "it is closed"
    return it.closed_at, it.period


def account_rows(rating_id: str, usage: Iterable[UsageRow], as_of: datetime) -> list[dict[str, Any]]:
    """What usage a closed rating and its corrections account for, and up to when it is known: rows of
    `accounted_usage`, in the place of those that are there.
    """
    sums: dict[str, Decimal] = {}
    for row in usage:
        sums[row.meter] = sums.get(row.meter, Decimal(0)) + row.quantity
    return [
        {"rating_id": rating_id, "meter": meter, "quantity": quantity, "as_of": as_of}
        for meter, quantity in (sums or {"": Decimal(0)}).items()
    ]


def accounted(
    connection: Connection, namespace: str, since: datetime | None = None
) -> dict[str, tuple[datetime, dict[str, Decimal]]]:
    """Per closed rating (of periods that end after `since`) up to when its usage is accounted for, and the quantities
    per meter.
    """
    query = (
        select(accounted_usage)
        .join(ratings, ratings.c.rating_id == accounted_usage.c.rating_id)
        .where(ratings.c.namespace == namespace)
    )
    if since is not None:
        query = query.where(ratings.c.period_end > since)
    found: dict[str, tuple[datetime, dict[str, Decimal]]] = {}
    for row in connection.execute(query).mappings():
        meters = found.setdefault(row["rating_id"], (row["as_of"], {}))[1]
        if row["meter"]:
            meters[row["meter"]] = row["quantity"]
    return found


def note_of(
    namespace: str, customer_id: str, it: Corrected, with_rating: str, moment: results.Moment
) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
    """The credit note of a correction that the closing of a rating makes: its row of `credit_notes`, and its lines as
    rows of `rated_lines`, from which they are posted; None where there is none.
    """
    if not it.on_note:
        return None
    closed = it.restated.standing
    note_id = credit_note_id(closed.rating_id, with_rating)
    rows = results.line_rows_of(note_id, closed.currency, it.on_note)
    note = {
        "credit_note_id": note_id,
        "namespace": namespace,
        "customer_id": customer_id,
        "rating_id": closed.rating_id,
        "currency": closed.currency,
        "total_minor": total(it.on_note),
        "lines": [{name: plain(v) if isinstance(v, Decimal) else v for name, v in row.items()} for row in rows],
        "as_of": moment.as_of,
        "recorded_at": moment.rated_at,
    }
    return note, rows


def notes(connection: Connection, namespace: str, customer_id: str | None = None) -> Sequence[Mapping[str, Any]]:
    """The credit notes of a namespace, or of a customer, by customer and time."""
    query = select(credit_notes).where(credit_notes.c.namespace == namespace)
    if customer_id is not None:
        query = query.where(credit_notes.c.customer_id == customer_id)
    ordered = query.order_by(credit_notes.c.customer_id, credit_notes.c.recorded_at, credit_notes.c.credit_note_id)
    return [dict(row) for row in connection.execute(ordered).mappings()]


def _final(connection: Connection, past: Past) -> tuple[dict[str, list[Row]], dict[str, list[tuple[str, int]]]]:
    """The customer's corrections that are final, on closed ratings and credit notes, by the rating they are of; and
    which grants paid how much of them, in minor units.
    """
    closed = [it.rating_id for it in past.standing if it.state == CLOSED]
    found: dict[str, list[Row]] = {}
    of: dict[tuple[str, str], str] = {}
    for row in (*map(dict, _corrections_on(connection, closed, past)), *noted_of(connection, closed)):
        corrects = row["explanation"]["corrects"]["rating"]
        found.setdefault(corrects, []).append(row)
        of[row["rating_id"], row["description"]] = corrects
    paid: dict[str, list[tuple[str, int]]] = {}
    carrying = {rating_id for rating_id, _ in of}
    for row in _lines_on(connection, [it for it in closed if it in carrying], past, [CREDIT_APPLIED]):
        for description, grant, amount in paid_by(row["explanation"], row["currency"]):
            if corrects := of.get((row["rating_id"], description[:256])):
                paid.setdefault(corrects, []).append((grant, amount))
    return found, paid


def _carried(connection: Connection, among: Iterable[Standing], past: Past) -> set[str]:
    """The ratings that have corrections on these."""
    lines = _corrections_on(connection, [it.rating_id for it in among], past)
    return {line["explanation"]["corrects"]["rating"] for line in lines}


def _corrections_on(connection: Connection, rating_ids: Sequence[str], past: Past) -> list[Mapping[Any, Any]]:
    """The lines of ratings that correct others: as the past has them, where it does, or else as they are stored."""
    return _lines_on(connection, rating_ids, past, ABOUT_CLOSED)


def _lines_on(
    connection: Connection, rating_ids: Sequence[str], past: Past, kinds: Sequence[str]
) -> list[Mapping[Any, Any]]:
    known = [line for name in rating_ids for line in past.lines.get(name, ()) if line["kind"] in kinds]
    unknown = [name for name in rating_ids if name not in past.lines]
    query = select(rated_lines).where(rated_lines.c.rating_id.in_(unknown), rated_lines.c.kind.in_(kinds))
    stored = connection.execute(query).mappings().all() if unknown else []
    return sorted([*known, *stored], key=lambda line: line["line_id"])
