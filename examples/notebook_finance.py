"""Revenue by month and customer with clickhouse-connect, as a cell of a notebook has it.

    python examples/notebook_finance.py [DATA]        # DATA: the directory of `meterhouse up`, meterhouse-data unsaid

With a ClickHouse server give `clickhouse_connect.get_client` its host, user and password instead.
"""

import json
import sys
from pathlib import Path
from urllib.parse import urlsplit

import clickhouse_connect

data = Path(sys.argv[1] if len(sys.argv) > 1 else "meterhouse-data")
warehouse = json.loads((data / "run" / "endpoints.json").read_text())["warehouse"]
address = urlsplit(warehouse["url"])
client = clickhouse_connect.get_client(
    host=address.hostname, port=address.port, username="reader", password=warehouse["users"]["reader"],
    database="meterhouse",
)  # fmt: skip
found = client.query(
    "SELECT month, customer_id, currency, -sum(amount) AS revenue FROM finance_entries "
    "WHERE account = 'revenue' GROUP BY month, customer_id, currency ORDER BY month, customer_id, currency"
)
for month, customer, currency, revenue in found.result_rows:
    print(f"{month:%Y-%m}  {customer:20}  {revenue:>14} {currency}")
