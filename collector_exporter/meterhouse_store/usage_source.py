"""Which view has all of one customer's usage and is planned the soonest (schema/03_views.sql, schema/mirrors.sql)."""

from typing import Final

from clickhouse_connect.driver.client import Client

WHOLE: Final = "usage"
PLAIN: Final = "usage_plain"

_APART: Final = (
    "SELECT 1 FROM usage_apart WHERE namespace = {namespace:String} AND customer_id = {customer:String} LIMIT 1"
)


def of_customer(client: Client, namespace: str, customer_id: str) -> str:
    """PLAIN or WHOLE, for what is in the warehouse now: ask once the watermark is known."""
    found = client.query(_APART, parameters={"namespace": namespace, "customer": customer_id}).result_rows
    return WHOLE if found else PLAIN
