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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TESTS = ROOT / "tests" / "instrumentation"
AT_ONCE = 2
"""Environments that are built and run at the same time; each test has its own ports and directories."""
NEEDED = ["pytest>=9", "pytest-timeout>=2.3", "hypothesis>=6.120", "httpx2"]


def main(names: list[str]) -> int:
    files = sorted(HERE.glob("*.txt"))
    unknown = set(names) - {file.stem for file in files}
    if unknown:
        print(f"There is no test environment {', '.join(sorted(unknown))}; there are:", file=sys.stderr)
        print(*(f"  {file.stem}" for file in files), sep="\n", file=sys.stderr)
        return 1
    chosen = [file for file in files if not names or file.stem in names]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        ended = dict(zip(chosen, pool.map(_run, chosen), strict=True))
    for file, words in ended.items():
        print(f"{file.stem:<20} {words}")
    return 0 if all(words.startswith("passed") for words in ended.values()) else 1


def _run(file: Path) -> str:
    started = time.monotonic()
    python, told = _built(file)
    if python is None:
        print(f"== {file.stem}\n{told}", flush=True)
        return "could not be built"
    built_s = time.monotonic() - started
    wanted = [str(path) for pattern in _comment(file, "tests") for path in sorted(TESTS.glob(pattern))]
    # Warnings are errors in the main environment; older libraries warn about newer Pythons.
    options = ["-q", "-W", "default", "-p", "no:cacheprovider"]
    done = _call([python, "-m", "pytest", *options, *dict.fromkeys(wanted)])
    last = done.stdout.strip().rpartition("\n")[2].strip("= ")
    shown = done.stdout if done.returncode else last
    print(f"== {file.stem}: {len(wanted)} test files\n{shown}", flush=True)
    word = "FAILED" if done.returncode else "passed"
    return f"{word} in {time.monotonic() - started - built_s:.0f} s, built in {built_s:.0f} s: {last}"


def _built(file: Path) -> tuple[str | None, str]:
    """The environment's Python, None with what was said where it cannot be built."""
    home = ROOT / ".venvs" / file.stem
    python = str(home / "bin" / "python")
    state = hashlib.sha256(file.read_bytes() + (ROOT / "pyproject.toml").read_bytes()).hexdigest()
    ready = home / ".ready"
    if ready.exists() and ready.read_text() == state:
        return python, ""
    shutil.rmtree(home, ignore_errors=True)
    venv.create(home, with_pip=True)
    wanted = ["-r", str(file), "--editable", str(ROOT), *NEEDED]
    # uv is several times faster; pip, where uv fails, knows the indexes of pip's own configuration.
    uv = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", python]
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = _call([*uv, *wanted])
    if done.returncode:
        done = _call([*pip, *wanted])
    if done.returncode:
        return None, done.stdout
    ready.write_text(state)
    return python, ""


def _call(command: list[str]) -> subprocess.CompletedProcess[str]:
    # Meterhouse's server, where a test needs one, runs in the environment of this program.
    environment = os.environ | {"METERHOUSE_SERVER_PYTHON": sys.executable}
    return subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _comment(file: Path, word: str) -> list[str]:
    lines = re.findall(rf"^# {word} (.*)$", file.read_text(), re.MULTILINE)
    return [item for line in lines for item in line.split()]


if __name__ == "__main__":
    os.environ.pop("PYTHONPATH", None)
    sys.exit(main(sys.argv[1:]))
