"""What of the ledger goes into an evidence pack: the customer's transactions, and the chain they are sealed in."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, func, or_, select

from meterhouse_rating.evidence_check.ledger import Anchor
from meterhouse_rating.ledger import DEFERRED_CREDITS
from meterhouse_rating.told import Told
from meterhouse_store.ledger_chain import SEALED
from meterhouse_store.tables import ledger_chain, ledger_entries, ledger_transactions


def ledger_of(
    connection: Connection, namespace: str, customer_id: str, told: Sequence[Told], anchors: Sequence[Anchor]
) -> dict[str, Any]:
    """The customer's transactions that are effective in the ratings' periods, each with its seal.

    Between `anchors`, the last before them and the first behind, everybody's transactions are in it, without whose they
    are: their seals are salted hashes. Without anchors only the customer's own are. `earlier`: the customer's further
    transactions before them that moved credits.
    """
    chain, transactions = ledger_chain, ledger_transactions
    start, end = told[0].standing.period.start, told[-1].standing.period.end
    lines = [line["line_id"] for it in told for line in it.facts["lines"]]
    mine = (
        (transactions.c.namespace == namespace)
        & (transactions.c.customer_id == customer_id)
        # What a closing posts is effective at its period's end.
        & (
            or_(
                (transactions.c.effective_at > start) & (transactions.c.effective_at <= end),
                transactions.c.source_id.in_(lines),
            )
        )
    )
    joined = chain.join(transactions, transactions.c.transaction_id == chain.c.transaction_id)
    bounds = select(func.min(chain.c.sequence), func.max(chain.c.sequence)).select_from(joined).where(mine)
    first, last = connection.execute(bounds).one()
    chosen, kept = mine, []
    if anchors and first is not None:
        before = [it for it in anchors if it.sequence < first]
        behind = [it for it in anchors if it.sequence >= last]
        low = max((it.sequence for it in before), default=0)
        high = min((it.sequence for it in behind), default=last)
        chosen = (chain.c.namespace == namespace) & (chain.c.sequence > low) & (chain.c.sequence <= high)
        kept = sorted(
            {(it.sequence, it.hash) for it in (*before, *behind) if it.sequence in (low, high) and it.sequence}
        )
    query = select(chain, transactions).select_from(joined).where(chosen).order_by(chain.c.sequence)
    rows = connection.execute(query).mappings().all()
    # What moved credits before: the fold of it is what the customer had.
    credits = select(ledger_entries.c.transaction_id).where(ledger_entries.c.account == DEFERRED_CREDITS)
    before_ = (
        (transactions.c.namespace == namespace)
        & (transactions.c.customer_id == customer_id)
        & transactions.c.transaction_id.in_(credits)
        & transactions.c.transaction_id.not_in(select(transactions.c.transaction_id).select_from(joined).where(chosen))
        & (chain.c.sequence < (last or 0))
    )
    earlier = connection.execute(
        select(chain, transactions).select_from(joined).where(before_).order_by(chain.c.sequence)
    ).mappings()
    earlier_rows = earlier.all()
    entries: dict[str, list[dict[str, Any]]] = {}
    of_chosen = select(transactions.c.transaction_id).select_from(joined).where(chosen | before_)
    every = select(ledger_entries).where(ledger_entries.c.transaction_id.in_(of_chosen))
    columns = ("position", "account", "amount_minor", "currency", "grant_id")
    for row in connection.execute(every.order_by(ledger_entries.c.position)).mappings():
        entries.setdefault(row["transaction_id"], []).append({name: row[name] for name in columns})
    return {
        "anchors": [{"sequence": sequence, "hash": hash_} for sequence, hash_ in kept],
        "earlier": [_facts(row, entries[row["transaction_id"]], own=True) for row in earlier_rows],
        "transactions": [
            _told(row, entries.get(row["transaction_id"], []), customer_id, start, end, lines) for row in rows
        ],
    }


def _told(
    row: Any, entries: list[dict[str, Any]], customer_id: str, start: datetime, end: datetime, lines: Sequence[str]
) -> dict[str, Any]:
    own = row["customer_id"] == customer_id and (start < row["effective_at"] <= end or row["source_id"] in lines)
    return _facts(row, entries, own=own)


def _facts(row: Any, entries: list[dict[str, Any]], *, own: bool) -> dict[str, Any]:
    sealed = ("sequence", "personal_sha256", "previous_hash", "hash")
    facts = {name: row[name] for name in sealed} | {name: _text(row[name]) for name in SEALED}
    facts |= {"own": own, "entries": entries}
    return facts | {"personal_salt": row["personal_salt"], "memo": row["memo"]} if own else facts


def _text(value: Any) -> Any:
    """As it was sealed."""
    return value.astimezone(UTC).isoformat(timespec="microseconds") if isinstance(value, datetime) else value
