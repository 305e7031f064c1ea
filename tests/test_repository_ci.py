"""What CI relies on: .ci/run fails when a step fails, installs what is missing, and no test is off without a word."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("bash", "cat", "dirname", "env", "mktemp", "rm", "python3", "chromium", "strace")


@pytest.fixture
def machine(tmp_path):
    """A machine of symbolic links, with a make and an apt-get that only write down how they were called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        (folder / tool).symlink_to(shutil.which(tool) or "/bin/true")
    for name, status in (("make", 'case "$FAILS" in "$1") exit 3;; esac'), ("apt-get", "exit 0")):
        script = folder / name
        script.write_text(f'#!/bin/bash\necho "{name} $* CI=${{METERHOUSE_CI:-}}" >>"{tmp_path}/calls"\n{status}\n')
        script.chmod(0o755)
    return folder


def run_ci(machine: Path, fails: str = "") -> tuple[int, list[str]]:
    """The exit code of .ci/run on that machine, and the calls it made but for PostgreSQL's installation."""
    environment = {"PATH": str(machine), "FAILS": fails, "HOME": str(machine)}
    done = subprocess.run([ROOT / ".ci" / "run"], env=environment, capture_output=True, text=True, timeout=60)
    calls = (machine.parent / "calls").read_text().splitlines() if (machine.parent / "calls").exists() else []
    return done.returncode, calls


def test_ci_checks_then_tests_and_lets_no_test_skip_for_a_missing_program(machine):
    code, calls = run_ci(machine)

    assert code == 0
    assert [call for call in calls if call.startswith("make")] == [
        "make check CI=",
        "make test CI=1",
        "make environments ONLY=opentelemetry-oldest CI=",
    ]


@pytest.mark.parametrize("step", ["check", "test", "environments"])
def test_ci_fails_when_a_step_fails(machine, step):
    code, calls = run_ci(machine, fails=step)

    assert code != 0
    assert calls[-1].startswith(f"make {step} ")


@pytest.mark.skipif(os.geteuid() != 0, reason="installs only as root")
def test_ci_installs_what_the_tests_would_otherwise_skip_for(machine):
    (machine / "chromium").unlink()

    code, calls = run_ci(machine)

    assert code == 0
    (install,) = [call for call in calls if "install" in call]
    assert " chromium" in install


SUITE = """
import pytest

def test_one():
    pytest.skip("this machine lacks Node.js")

def test_two():
    pytest.skip("for another reason")
"""


@pytest.mark.parametrize(("ci", "code"), [("", 0), ("0", 0), ("1", 1)])
def test_skips_for_a_missing_program_are_named_and_fail_the_run_in_ci(tmp_path, ci, code):
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_suite.py").write_text(SUITE)

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "METERHOUSE_CI": ci},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert "Node.js: 1 not run (test_suite.py::test_one)" in done.stdout
    assert "test_two" not in done.stdout.partition("skipped because of this machine")[2].partition("===")[0]
    assert done.returncode == code


def test_postgres_url_is_a_database_of_its_own_for_each_test(postgres_url, postgres_server):
    import sqlalchemy

    assert postgres_url != postgres_server
    engine = sqlalchemy.create_engine(postgres_url)
    with engine.connect() as connection:
        tables = connection.execute(sqlalchemy.text("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"))
        assert tables.scalar_one() == 0
    engine.dispose()
