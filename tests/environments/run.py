"""Runs agents' tests with libraries that cannot all live in one environment, and with the oldest supported ones.

    python tests/environments/run.py [NAME ...]        # default: every *.txt beside this file

Each NAME.txt is a pip requirements file whose comments say what it provides and which test files run in it:

    # provides crewai
    # tests test_meterhouse_crewai.py test_meterhouse_mcp.py

An environment is built in .venvs/NAME once, and anew when its file or pyproject.toml changes. Exit code: 0 when all
tests passed, 1 when some did not or an environment could not be built.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TESTS = ROOT / "tests" / "instrumentation"
NEEDED = ["pytest>=9", "pytest-timeout>=2.3", "hypothesis>=6.120", "httpx2"]


def main(names: list[str]) -> int:
    files = sorted(HERE.glob("*.txt"))
    unknown = set(names) - {file.stem for file in files}
    if unknown:
        print(f"There is no test environment {', '.join(sorted(unknown))}; there are:", file=sys.stderr)
        print(*(f"  {file.stem}" for file in files), sep="\n", file=sys.stderr)
        return 1
    ended = {file.stem: _run(file) for file in files if not names or file.stem in names}
    for name, words in ended.items():
        print(f"{name:<12} {words}")
    return 0 if all(words.startswith("passed") for words in ended.values()) else 1


def _run(file: Path) -> str:
    started = time.monotonic()
    python = _built(file)
    if python is None:
        return "could not be built"
    built_s = time.monotonic() - started
    wanted = [path for pattern in _comment(file, "tests") for path in sorted(TESTS.glob(pattern))]
    print(f"== {file.stem}: {len(wanted)} test files", flush=True)
    # Warnings are errors in the main environment; older libraries warn about newer Pythons.
    command = [python, "-m", "pytest", "-q", "-W", "default", *map(str, dict.fromkeys(wanted))]
    failed = subprocess.run(command, cwd=ROOT).returncode
    return (
        f"{'FAILED' if failed else 'passed'} in {time.monotonic() - started - built_s:.0f} s, built in {built_s:.0f} s"
    )


def _built(file: Path) -> str | None:
    home = ROOT / ".venvs" / file.stem
    python = str(home / "bin" / "python")
    state = hashlib.sha256(file.read_bytes() + (ROOT / "pyproject.toml").read_bytes()).hexdigest()
    ready = home / ".ready"
    if ready.exists() and ready.read_text() == state:
        return python
    print(f"Setting up .venvs/{file.stem} ...", flush=True)
    shutil.rmtree(home, ignore_errors=True)
    venv.create(home, with_pip=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if subprocess.run([*pip, "-r", str(file), "--editable", str(ROOT), *NEEDED], cwd=ROOT).returncode:
        return None
    ready.write_text(state)
    return python


def _comment(file: Path, word: str) -> list[str]:
    lines = re.findall(rf"^# {word} (.*)$", file.read_text(), re.MULTILINE)
    return [item for line in lines for item in line.split()]


if __name__ == "__main__":
    os.environ.pop("PYTHONPATH", None)
    sys.exit(main(sys.argv[1:]))
