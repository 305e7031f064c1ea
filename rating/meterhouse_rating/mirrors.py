"""Brings the warehouse's copy of the ratings up to date with SQL, whatever an earlier run did not get to."""

from typing import Final

from clickhouse_connect.driver.client import Client
from sqlalchemy import Engine, func, select

from meterhouse_store import mirror
from meterhouse_store.tables import ledger_transactions, ratings

_SOME: Final = 2000
"""Up to so many ratings are copied with the ledgers of their customers; beyond that all of the namespace."""

POSTED: Final = "SELECT uniqExact(transaction_id) FROM mirror_ledger_entries WHERE namespace = {namespace:String}"
COPIED: Final = "SELECT rating_id, state, result_sha256 FROM mirror_ratings FINAL WHERE namespace = {namespace:String}"


def catch_up(engine: Engine, client: Client, namespace: str) -> int:
    """Copy what the warehouse lacks or has otherwise; returns how many ratings that were.

    Compares instead of remembering, so that a run that was killed between its commit and the copy leaves no gap.
    """
    stored = select(ratings.c.rating_id, ratings.c.state, ratings.c.result_sha256)
    with engine.connect() as connection:
        here = {tuple(row) for row in connection.execute(stored.where(ratings.c.namespace == namespace))}
    there = {tuple(row) for row in client.query(COPIED, parameters={"namespace": namespace}).result_rows}
    missing = sorted({rating_id for rating_id, _, _ in here - there})
    removed = {rating_id for rating_id, _, result in there if result} - {rating_id for rating_id, _, _ in here}
    if removed or len(missing) > _SOME:
        mirror.push(engine, client, namespace)
    elif not missing and _ledger_lacks(engine, client, namespace):  # credits, adjustments, payments
        mirror.push_ledger(engine, client, namespace)
    else:
        mirror.push_ratings(engine, client, namespace, missing)
    return len(missing) + len(removed)


def _ledger_lacks(engine: Engine, client: Client, namespace: str) -> bool:
    transactions = ledger_transactions
    with engine.connect() as connection:
        chosen = select(func.count()).select_from(transactions).where(transactions.c.namespace == namespace)
        there = connection.execute(chosen).scalar_one()
    found = client.query(POSTED, parameters={"namespace": namespace}).result_rows
    return bool(there != found[0][0])
