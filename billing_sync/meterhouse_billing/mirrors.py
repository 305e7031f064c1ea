"""Brings the warehouse's copy of the invoices up to date with SQL, whatever an earlier run did not get to."""

from typing import Final

from clickhouse_connect.driver.exceptions import ClickHouseError
from sqlalchemy import Engine

from meterhouse_billing import credit_records, records
from meterhouse_store import mirror, warehouse
from meterhouse_store.settings import Settings

TIMEOUT_S: Final = 5.0
COPIED: Final = (
    "SELECT invoice_id, state, stripe_invoice_id, credited_minor FROM mirror_invoices FINAL "
    "WHERE namespace = {namespace:String}"
)


def catch_up(engine: Engine, settings: Settings) -> str | None:
    """Copy what the warehouse lacks or has otherwise; None, or why that has to wait.

    The warehouse is a copy for reports: invoicing does not wait for it, the next run copies what this one could not.
    """
    rows = records.all_invoices(engine, settings.namespace)
    credited = credit_records.off_what_remained(engine, settings.namespace)
    here = {
        (row["invoice_id"], row["state"], row["stripe_invoice_id"] or "", credited.get(row["invoice_id"], 0))
        for row in rows
    }
    if not here:
        return None
    try:
        client = warehouse.connect(settings, timeout_s=TIMEOUT_S)
        there = {tuple(row) for row in client.query(COPIED, parameters={"namespace": settings.namespace}).result_rows}
        for invoice_id in sorted({name for name, *_ in here - there}):
            mirror.push(engine, client, settings.namespace, invoice_id=invoice_id)
    except (warehouse.WarehouseUnavailable, ClickHouseError, OSError) as problem:
        return f"the warehouse's copy of the invoices waits for the next run: {problem}"
    return None
