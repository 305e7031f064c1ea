"""Revenue by month and customer with clickhouse-connect, as a cell of a notebook has it.

    python examples/notebook_finance.py [DATA]        # the data directory of `meterhouse up`, else METERHOUSE_DATA

With a ClickHouse server give `clickhouse_connect.get_client` its host, user and password instead.
"""

import json
import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

import clickhouse_connect

data = Path(sys.argv[1] if len(sys.argv) > 1 else os.environ.get("METERHOUSE_DATA", "meterhouse-data"))
try:
    warehouse = json.loads((data / "run" / "endpoints.json").read_text())["warehouse"]
except (FileNotFoundError, NotADirectoryError):
    sys.exit(f"{data} is no data directory of a Meterhouse that runs: start it with `meterhouse up --data {data}`")
address = urlsplit(warehouse["url"])
client = clickhouse_connect.get_client(
    host=address.hostname, port=address.port, username="reader", password=warehouse["users"]["reader"],
    database="meterhouse",
)  # fmt: skip
found = client.query(
    "SELECT namespace, month, customer_id, currency, -sum(amount) AS revenue FROM finance_entries "
    "WHERE account = 'revenue' GROUP BY namespace, month, customer_id, currency ORDER BY ALL"
)
for namespace, month, customer, currency, revenue in found.result_rows:
    print(f"{namespace:8}  {month:%Y-%m}  {customer:20}  {revenue:>14} {currency}")
