"""Tests that are too long for `make test`: those marked `long`, and those that sample there and are whole here."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]


def prove() -> list[dict[str, Any]]:
    """The tests marked `long`, shared out among two processes."""
    return [tests("suite.long_tests", "-m", "long", "--numprocesses", "2", "--dist", "loadfile")]


def tests(name: str, *arguments: str) -> dict[str, Any]:
    """A row of what pytest says of the tests that these arguments choose. Raises RuntimeError where none has run."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *arguments]
        subprocess.run(command, cwd=ROOT, env=os.environ | {"METERHOUSE_PROVE": "1"}, check=False)
        suite = ElementTree.parse(report).getroot().find("testsuite") if report.exists() else None
    if suite is None or not int(suite.get("tests", "0")):
        raise RuntimeError(f"no test of {' '.join(arguments)} has run")
    failed = int(suite.get("failures", "0")) + int(suite.get("errors", "0"))
    return {"name": name, "cases": int(suite.get("tests", "0")), "violations": failed}
