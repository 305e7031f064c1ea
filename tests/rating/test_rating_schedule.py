"""Scheduled rating: what is kept of its runs, what Prometheus sees, the bar on a terminal, and the samples."""

import os
import pty
import re
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import commands
import pytest
import typer
import yaml
from rating_samples import at
from starlette.testclient import TestClient
from typer.main import get_command

from meterhouse_portal.app import build
from meterhouse_rating.commands import rate
from meterhouse_store import registry
from meterhouse_store.last_runs import last_runs, prometheus, recorded
from meterhouse_store.settings import Settings
from meterhouse_store.sql import open_engine

METERHOUSE = str(Path(sys.executable).with_name("meterhouse"))
SCHEDULE = Path(__file__).resolve().parents[2] / "examples" / "schedule"
BOOK = """
book: own
currency: USD
metrics:
  input: {unit: token, meters: [llm.tokens.input]}
plans:
  pay:
    components:
      in: {model: per_unit, metric: input, per: 1000, price: 2.00}
"""
STAMP = 'meterhouse_command_last_{}_timestamp_seconds{{namespace="live",command="rate run --due"}} {}'


@pytest.fixture
def settings(tmp_path):
    return Settings(data=tmp_path, sql_url=f"sqlite:///{tmp_path / 'meterhouse.db'}")


@pytest.fixture
def engine(settings):
    engine = open_engine(settings)
    yield engine
    engine.dispose()


def ended(engine, code, began, seconds=2):
    clock = iter((at(began), at(began) + timedelta(seconds=seconds)))
    with recorded(engine, "live", "rate run --due", lambda: next(clock)):
        if code:
            raise typer.Exit(code)


def run_of(engine):
    (found,) = last_runs(engine, "live")
    return found


def test_the_last_success_survives_a_later_failure_and_exceptions_to_look_at_are_a_success(engine):
    with pytest.raises(typer.Exit):
        ended(engine, 3, "2026-10-01T00:00:00")
    with pytest.raises(typer.Exit):
        ended(engine, 1, "2026-10-01T00:10:00")
    found = run_of(engine)
    assert (found.exit_code, found.succeeded_at, found.finished_at, found.unfinished) == (
        1,
        at("2026-10-01T00:00:02"),
        at("2026-10-01T00:10:02"),
        False,
    )
    lines = prometheus([found]).splitlines()
    # 2026-10-01T00:00:00Z is 1,790,812,800 seconds after 1970
    assert STAMP.format("success", "1790812802.000") in lines
    assert STAMP.format("end", "1790813402.000") in lines
    assert 'meterhouse_command_last_exit_code{namespace="live",command="rate run --due"} 1' in lines


def test_a_run_that_breaks_is_no_success_and_one_that_was_killed_has_no_end(engine):
    with pytest.raises(ZeroDivisionError), recorded(engine, "live", "rate run --due", lambda: at("2026-10-01")):
        _ = 1 / 0
    assert (run_of(engine).exit_code, run_of(engine).succeeded_at) == (1, None)
    assert "last_success_timestamp_seconds{" not in prometheus([run_of(engine)])
    killed = recorded(engine, "live", "rate run --due", lambda: at("2026-10-02"))
    killed.__enter__()
    assert run_of(engine).unfinished and run_of(engine).started_at == at("2026-10-02")
    killed.__exit__(None, None, None)
    assert not run_of(engine).unfinished


def test_the_portal_serves_the_metrics_without_a_token_and_503_without_a_database(engine, settings):
    ended(engine, 0, "2026-10-01T00:00:00")
    with TestClient(build(settings, "a-token-of-more-than-16-characters")) as client:
        answer = client.get("/metrics")
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert STAMP.format("success", "1790812802.000") in answer.text.splitlines()
    with engine.begin() as connection:  # a newer Meterhouse was here
        connection.exec_driver_sql("UPDATE schema_version SET version = 99")
    with TestClient(build(settings, "a-token-of-more-than-16-characters")) as client:
        assert client.get("/metrics").status_code == 503


# ---- the commands ---------------------------------------------------------------------------------------------------


@pytest.fixture
def call(sqlite_house, command_environment):
    environment = command_environment(sqlite_house)

    def meterhouse(*arguments):
        done = commands.run(arguments, env=environment)
        return done.returncode, done.stdout, done.stderr

    return meterhouse


def test_status_and_the_textfile_show_the_last_runs_of_the_whole_namespace(sqlite_house, call, tmp_path):
    house, began = sqlite_house, datetime.now(UTC) - timedelta(seconds=1)
    assert call("rate", "run", "--due")[0] == 1  # there is no price book yet
    house.publish(BOOK)
    house.customer("acme")
    house.event("acme", "llm.tokens.input", "1500000", "2026-10-03T00:00:00")
    house.event("stranger", "llm.tokens.input", "5", "2026-10-03T00:00:00")
    house.collected()
    assert "rate run --due" in call("rate", "status")[1]
    (failed,) = last_runs(house.world.engine)
    assert (failed.exit_code, failed.succeeded_at) == (1, None)
    assert call("rate", "run", "--due")[0] == 3  # the stranger's usage has no price
    assert call("rate", "run", "--period", "2026-10", "--dry-run")[0] == 3  # writes nothing
    assert call("rate", "run", "--period", "2026-10", "--customer", "acme")[0] == 0  # only one customer
    (done,) = last_runs(house.world.engine)
    assert (done.command, done.exit_code, done.namespace) == ("rate run --due", 3, "test")
    assert began < done.succeeded_at < datetime.now(UTC)
    out = call("rate", "status")[1]
    head, row = out.splitlines()[-2:]
    assert head.split() == ["Last", "runs", "began", "ended", "exit", "code", "succeeded"]
    assert row.split()[:3] == ["rate", "run", "--due"] and row.split()[9] == "3"
    file = tmp_path / "meterhouse.prom"
    file.write_text("older")
    assert call("rate", "metrics", "--textfile", str(file)) == (0, "", "")
    assert file.read_text() == call("rate", "metrics")[1] == prometheus([done])
    assert [it.name for it in tmp_path.iterdir() if "prom" in it.name] == ["meterhouse.prom"]


def test_a_killed_run_is_shown_as_not_ended_and_the_next_one_makes_it_good(house, command_environment):
    house.publish(BOOK)
    registry.add_customer(house.world.engine, "test", "acme", plan="pay")
    house.event("acme", "llm.tokens.input", "1500000", "2026-10-03T00:00:00")
    house.collected()
    command = [METERHOUSE, "rate", "run", "--due"]
    environment = command_environment(house)
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("watermark ")
        process.send_signal(signal.SIGKILL)
    assert last_runs(house.world.engine)[0].unfinished
    assert subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False).returncode == 0
    (found,) = last_runs(house.world.engine)
    assert not found.unfinished and found.exit_code == 0


def test_a_terminal_sees_a_bar_of_the_customers_and_a_pipe_sees_lines_only(sqlite_house, command_environment, call):
    house = sqlite_house
    house.publish(BOOK)
    for name in ("acme", "beta"):
        house.customer(name)
        house.event(name, "llm.tokens.input", "1500000", "2026-10-03T00:00:00")
    house.collected()
    command = ("rate", "run", "--period", "2026-10")
    theirs, ours = pty.openpty()
    environment = command_environment(house) | {"TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen([METERHOUSE, *command], env=environment, stdout=ours, stderr=ours) as process:
        os.close(ours)
        seen = b""
        while True:
            try:
                chunk = os.read(theirs, 65536)
            except OSError:  # the terminal's other end is closed
                break
            if not chunk:
                break
            seen += chunk
        assert process.wait(60) == 0
    os.close(theirs)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
    assert "2/2" in shown and "2026-10-01..2026-11-01" in shown
    assert "rated acme 3000.00 USD 2026-10-01..2026-11-01\r\n" in shown
    assert "\x1b" not in call(*command)[1]


# ---- the samples ----------------------------------------------------------------------------------------------------


def sample_calls():
    """Every call of `meterhouse` in the samples, as words, with the file it is in."""
    found = []
    for file in sorted(SCHEDULE.iterdir()):
        for line in file.read_text().splitlines():
            text = line.replace("%i", "run")
            if line.startswith("#"):
                continue
            for part in re.findall(r"(?:^|[\s='/;])meterhouse (rate [^;'>]*)", text):
                found.append((file.name, part.split()))
    return found


def test_every_command_of_the_samples_exists_with_its_options():
    calls = sample_calls()
    assert len(calls) == 8
    commands = get_command(rate).commands
    for file, (_, name, *words) in calls:
        options = {option for parameter in commands[name].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, (file, name, words)


@pytest.mark.parametrize("name", ["run", "close", "metrics"])
def test_each_of_them_answers_its_help(name):
    done = subprocess.run([METERHOUSE, "rate", name, "--help"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and "Usage:" in done.stdout


def test_the_cron_jobs_are_complete_and_take_exit_code_3_for_a_success():
    jobs = list(yaml.safe_load_all((SCHEDULE / "cronjob.yaml").read_text()))
    assert [job["metadata"]["name"] for job in jobs] == ["meterhouse-rate-run", "meterhouse-rate-close"]
    for job in jobs:
        assert (job["apiVersion"], job["kind"]) == ("batch/v1", "CronJob")
        pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert {it["name"] for it in container["volumeMounts"]} <= {it["name"] for it in pod["volumes"]}
        shell, option, text = container["command"]
        for code, expected in ((0, 0), (1, 1), (2, 2), (3, 0)):
            script = re.sub(r"meterhouse rate [^;]*", f"(exit {code})", text)
            assert subprocess.run([shell, option, script], check=False, timeout=10).returncode == expected


def test_each_timer_starts_the_service_and_a_line_of_the_crontab_has_its_user():
    services = {path.name for path in SCHEDULE.glob("*.service")}
    assert services == {"meterhouse-rate@.service"}
    for timer in SCHEDULE.glob("*.timer"):
        unit = re.search(r"^Unit=meterhouse-rate@(\w+)\.service$", timer.read_text(), re.MULTILINE)
        assert unit and unit[1] in ("run", "close")
    lines = [
        line.split()
        for line in (SCHEDULE / "crontab").read_text().splitlines()
        if line and not re.match(r"#|[A-Z_]+=", line)
    ]
    assert [words[5:9] for words in lines] == [
        ["meterhouse", "meterhouse", "rate", "run"],
        ["meterhouse", "meterhouse", "rate", "close"],
    ]
