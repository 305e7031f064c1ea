"""A warehouse and a collector on free ports until standard input ends; the first line of output is JSON with addresses.

python foreign_server.py DIRECTORY        # with the Python of an environment that has the `server` extra
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import collector_samples as samples

from meterhouse_store import schema, warehouse
from meterhouse_store.settings import Settings


def main(data: Path) -> None:
    """Serve until nobody listens any more."""
    port = samples.free_port()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("METERHOUSE_")}
    environment = clean | {
        "METERHOUSE_WAREHOUSE_ADMIN_PASSWORD": samples.ADMIN,
        "METERHOUSE_WAREHOUSE_READER_PASSWORD": "reader-password-of-the-tests",
    }
    command = [sys.executable, "-c", samples.MAIN, "warehouse", "serve", "--data", str(data), "--port", str(port)]
    with (data / "warehouse.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=data, env=environment, stdout=log, stderr=log)
    collector = None
    try:
        url = f"http://admin:{samples.ADMIN}@127.0.0.1:{port}"
        admin = warehouse.connect(Settings(warehouse_url=url), timeout_s=120, database="default")
        schema.migrate(admin, "meterhouse")
        admin.close()
        collector = samples.Collector(data, url, "meterhouse")
        collector.environment["METERHOUSE_MAPPING"] = str(data / "mapping.yaml")
        collector.start()
        found = {"http": collector.http, "key": collector.key, "password": samples.ADMIN}
        print(json.dumps(found | {"warehouse": f"http://127.0.0.1:{port}/?database=meterhouse"}), flush=True)
        sys.stdin.read()
    finally:
        if collector is not None:
            collector.stop()
        process.terminate()
        process.wait(60)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
