"""Fuzz the way of a request for a while: tests/collector_exporter/fuzz. A longer run: its run.py with more seconds."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SECONDS = 120
RUN = Path(__file__).parents[1] / "tests" / "collector_exporter" / "fuzz" / "run.py"


def prove(seconds: int = SECONDS) -> list[dict[str, Any]]:
    """`collector.fuzz`: inputs tried; a violation is anything but a refusal in words or a record that reads back."""
    with tempfile.TemporaryDirectory(prefix="meterhouse-fuzz-") as directory:
        done = subprocess.run(
            [sys.executable, str(RUN), str(seconds), directory],
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=seconds + 300,
        )
        crashes = [file for file in Path(directory).iterdir() if re.match("crash-|timeout-|oom-", file.name)]
        for file in crashes:
            print(f"{file.name}: {file.read_bytes()[:200]!r}")
    found = re.search(r"stat::number_of_executed_units:\s*(\d+)", done.stdout)
    if found is None and not crashes:
        raise RuntimeError(f"the fuzzing did not run: {done.stdout[-2000:]}")
    return [{"name": "collector.fuzz", "cases": int(found[1]) if found else 1, "violations": len(crashes)}]
