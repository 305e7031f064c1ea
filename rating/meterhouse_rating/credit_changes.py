"""What people do with credits: grant, refund, revoke, set a top-up rule, ask for the balance. Each is repeatable."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Connection, Engine, insert, select

from meterhouse_rating import credit_book, ledger
from meterhouse_rating.credit_book import AGAINST, GRANTED, OPERATOR, REFUNDED, REVOKED, Origin
from meterhouse_rating.credits import BEFORE_GRANTS, BOUGHT, Grant, order
from meterhouse_rating.ids import digest
from meterhouse_rating.ledger import Entry, Posting
from meterhouse_rating.money import show
from meterhouse_rating.periods import short
from meterhouse_rating.settled import OPEN, lines_of, standings
from meterhouse_store.sql import begin_write
from meterhouse_store.tables import credit_grants, credit_top_ups, customers, ledger_transactions

MAX_TIMES: Final = 1_000


class CreditsRefused(ValueError):
    """Something that cannot be done with credits; the text says why, and what to do."""


@dataclass(frozen=True)
class Change:
    """What was, or would be, done to a grant: by so much, and what is left. `new` False: it was done before."""

    grant_id: str
    customer_id: str
    kind: str
    currency: str
    amount_minor: int
    left_minor: int
    new: bool


def grant(
    engine: Engine,
    namespace: str,
    customer_id: str,
    wanted: Grant,
    currency: str | None,
    *,
    reference: str,
    who: str,
    why: str,
    now: datetime,
    write: bool = True,
) -> Change:
    """Grant credits (`left_minor` of `wanted`; its id is made here). With a `reference` the same one is the same grant.

    Bought ones have been paid already (debit cash); what is to be invoiced is a credit pack of the price book. Raises
    CreditsRefused.
    """
    _check_reason(why)
    if wanted.left_minor <= 0:
        raise CreditsRefused("grant more than nothing")
    if wanted.expires_at is not None and wanted.expires_at <= wanted.granted_at:
        raise CreditsRefused("it expires before it begins")
    if wanted.rollover_minor and wanted.expires_at is None:
        raise CreditsRefused("only what expires is rolled over: give it a time at which it expires")
    with begin_write(engine) as connection:
        own = customer_currency(connection, namespace, customer_id)
        if currency not in (None, own):
            raise CreditsRefused(f"{customer_id} pays in {own}, not in {currency}")
        said = [reference] if reference else [wanted.canonical(), own, why]
        made = Grant(**{**vars(wanted), "grant_id": credit_book.grant_name(namespace, customer_id, *said)})
        query = select(credit_grants).where(credit_grants.c.grant_id == made.grant_id)
        there = connection.execute(query).mappings().one_or_none()
        if there is not None and (there["kind"], there["amount_minor"]) != (made.kind, made.left_minor):
            raise CreditsRefused(
                f"{reference} is the reference of {show(there['amount_minor'], own)} {own} ({there['kind']}) already"
            )
        if there is None and write:
            where = (connection, namespace, customer_id)
            credit_book.add_row(*where, own, made, Origin(OPERATOR, reference, who, why), now)
            sides = (
                Entry(AGAINST[GRANTED][made.kind], made.left_minor, own),
                Entry(ledger.DEFERRED_CREDITS, -made.left_minor, own, made.grant_id),
            )
            posting = Posting(GRANTED, made.grant_id, f"{_terms(made, own)}: {why} ({who})", sides)
            ledger.post(*where, [posting], effective_at=made.granted_at, recorded_at=now)
        return Change(made.grant_id, customer_id, made.kind, own, made.left_minor, made.left_minor, there is None)


def _terms(made: Grant, currency: str) -> str:
    """The rules of a grant. They come first in what is sealed of it, which is how an evidence pack proves them."""
    until = "without end" if made.expires_at is None else f"until {short(made.expires_at.astimezone(UTC))}"
    rolled = f", up to {show(made.rollover_minor, currency)} rolled over" if made.rollover_minor else ""
    return f"{made.kind} credits, priority {made.priority}, {until}{rolled}"


def give_back(
    engine: Engine,
    namespace: str,
    beginning: str,
    kind: str,
    *,
    amount_minor: int | None,
    who: str,
    why: str,
    now: datetime,
    write: bool = True,
) -> Change:
    """Refund a bought grant (`credit_refunded`) or revoke a promotional one (`credit_revoked`): the rest, or a part.

    What open ratings use of it counts as used. Raises CreditsRefused.
    """
    _check_reason(why)
    with begin_write(engine) as connection:
        row = _named(connection, namespace, beginning)
        name, customer_id, currency = row["grant_id"], row["customer_id"], row["currency"]
        customer_currency(connection, namespace, customer_id)  # the lock
        if row["kind"] not in AGAINST[kind]:
            other = "`credits revoke`" if kind == REFUNDED else "`credits refund`"
            raise CreditsRefused(f"{name[:12]} is {row['kind']}: {other} takes it back")
        grants = {it.grant_id: it.left_minor for it in grants_now(connection, namespace, customer_id, currency)}
        left = grants[name]
        amount = left if amount_minor is None else amount_minor
        source = digest([kind, name, amount, why])
        if ledger.posted(connection, namespace, kind, source):
            return Change(name, customer_id, row["kind"], currency, amount, left, False)
        if not 0 < amount <= left:
            raise CreditsRefused(f"{show(left, currency)} {currency} of {name[:12]} are left, in open ratings included")
        sides = (
            Entry(ledger.DEFERRED_CREDITS, amount, currency, name),
            Entry(AGAINST[kind][row["kind"]], -amount, currency),
        )
        if write:
            posting = Posting(kind, source, f"{why} ({who})", sides, _origin(connection, namespace, row))
            ledger.post(connection, namespace, customer_id, [posting], effective_at=now, recorded_at=now)
        return Change(name, customer_id, row["kind"], currency, amount, left - amount, True)


def set_top_up(
    engine: Engine,
    namespace: str,
    customer_id: str,
    *,
    below_minor: int,
    amount_minor: int,
    times: int,
    valid_from: datetime,
    who: str,
    now: datetime,
    write: bool = True,
) -> bool:
    """Record a top-up rule (an amount of 0 ends it); False where it was there. Raises CreditsRefused."""
    if amount_minor < 0 or below_minor < 0 or not 0 < times <= MAX_TIMES:
        raise CreditsRefused(f"a top-up needs an amount, a balance that is not negative, and 1 to {MAX_TIMES} times")
    table = credit_top_ups
    with begin_write(engine) as connection:
        currency = customer_currency(connection, namespace, customer_id)
        key = {"namespace": namespace, "customer_id": customer_id, "valid_from": valid_from}
        rule = {"below_minor": below_minor, "amount_minor": amount_minor, "times": times, "currency": currency}
        query = select(table).where(*(table.c[name] == value for name, value in key.items()))
        row = connection.execute(query).mappings().one_or_none()
        if row is not None and any(row[name] != value for name, value in rule.items()):
            raise CreditsRefused(f"another rule of {customer_id} begins then: give another --from")
        if row is None and write:
            connection.execute(insert(table).values(**key, **rule, who=who, recorded_at=now))
        return row is None


def grants_now(connection: Connection, namespace: str, customer_id: str, currency: str) -> list[Grant]:
    """The customer's grants, what open ratings use taken off."""
    open_ids = [it.rating_id for it in standings(connection, namespace, customer_id) if it.state == OPEN]
    return credit_book.standing(connection, namespace, customer_id, currency, lines_of(connection, open_ids))


def balance(
    engine: Engine, namespace: str, customer_id: str, at: datetime, *, with_open: bool
) -> tuple[str, list[Grant]]:
    """The customer's currency, and in the order of use the grants that hold at a moment and what was left of them then.

    `with_open`: what open ratings use is taken off. Raises CreditsRefused.
    """
    with engine.connect() as connection:
        currency = customer_currency(connection, namespace, customer_id)
        if with_open:
            found = grants_now(connection, namespace, customer_id, currency)
        else:
            found = credit_book.standing(connection, namespace, customer_id, currency, at=at)
        held = credit_book.at_start((it for it in found if it.granted_at <= at), at)
        return currency, order(held)


def listed(engine: Engine, namespace: str, customer_id: str | None) -> Sequence[dict[str, Any]]:
    """The grants' rows with `left_minor`, what open ratings use taken off."""
    with engine.connect() as connection:
        rows = credit_book.rows_of(connection, namespace, None if customer_id is None else [customer_id])
        left: dict[tuple[str, str], dict[str, int]] = {}
        for key in {(row["customer_id"], row["currency"]) for row in rows}:
            left[key] = {it.grant_id: it.left_minor for it in grants_now(connection, namespace, *key)}
        return [{**row, "left_minor": left[row["customer_id"], row["currency"]][row["grant_id"]]} for row in rows]


def customer_currency(connection: Connection, namespace: str, customer_id: str) -> str:
    """The currency of a customer, whose row is locked by that. Raises CreditsRefused where there is none."""
    query = select(customers.c.currency).where(
        customers.c.namespace == namespace, customers.c.customer_id == customer_id
    )
    found = connection.execute(query.with_for_update()).scalar_one_or_none()
    if found is None:
        raise CreditsRefused(f"{customer_id} is not registered: `meterhouse customers add {customer_id}`")
    return str(found)


def _named(connection: Connection, namespace: str, beginning: str) -> Any:
    query = select(credit_grants).where(
        credit_grants.c.namespace == namespace, credit_grants.c.grant_id.startswith(beginning, autoescape=True)
    )
    found = connection.execute(query.limit(2)).mappings().all()
    if len(found) != 1:
        many = "several grants begin" if found else "no grant begins"
        raise CreditsRefused(f"{many} with {beginning}: `meterhouse credits list` shows their ids")
    return found[0]


def _origin(connection: Connection, namespace: str, row: Any) -> str | None:
    """The transaction that made the grant: what a refund or a revocation corrects."""
    kinds = {OPERATOR: (GRANTED, row["grant_id"]), credit_book.PACK: ("credit_pack", row["source_id"])}
    kind, source = kinds.get(row["source"], (credit_book.EXPIRED, row["source_id"]))
    name = ledger.transaction_id(namespace, kind, source)
    query = select(ledger_transactions.c.transaction_id).where(ledger_transactions.c.transaction_id == name)
    return connection.execute(query).scalar_one_or_none()


def _check_reason(why: str) -> None:
    if not why.strip():
        raise CreditsRefused("say why: it is kept with the transaction")


__all__ = [
    "BEFORE_GRANTS",
    "BOUGHT",
    "REFUNDED",
    "REVOKED",
    "Change",
    "CreditsRefused",
    "balance",
    "give_back",
    "grant",
    "listed",
    "set_top_up",
]
