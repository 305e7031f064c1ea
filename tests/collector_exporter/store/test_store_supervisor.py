"""The supervisor with small real child processes, the jobs, and what `up` prepares."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest

from meterhouse_store import jobs, stack, supervisor
from meterhouse_store.settings import Settings
from meterhouse_store.supervisor import Part, PartFailed, Supervisor

HEALTHY = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("content-length", "0"); self.end_headers()
    def log_message(self, *a): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
SLEEPS = "import time; time.sleep(600)"


@pytest.fixture
def said():
    return []


@pytest.fixture
def watched(tmp_path, said):
    found = Supervisor(tmp_path / "logs", tmp_path / "run" / "children.json", said.append)
    yield found
    found.stop_all()


def part(name, program, *arguments, health_url=None):
    return Part(name, (sys.executable, "-c", program, *arguments), health_url)


def pid_of(tmp_path, name):
    return json.loads((tmp_path / "run" / "children.json").read_text())[name]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as status:
        return status.read().rsplit(")", 1)[1].split()[0] != "Z"


def wait_until(condition, within_s=10):
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_a_part_is_started_when_its_health_url_answers(watched, unused_port):
    watched.start(part("web", HEALTHY, str(unused_port), health_url=f"http://127.0.0.1:{unused_port}/"))
    with socket.create_connection(("127.0.0.1", unused_port)):
        pass


def test_a_part_that_dies_at_its_start_is_told_with_the_end_of_its_log(watched):
    with pytest.raises(PartFailed, match=r"(?s)web ended with code 3:.*cannot work like this"):
        watched.start(
            part("web", "import sys; print('cannot work like this'); sys.exit(3)", health_url="http://127.0.0.1:1/")
        )


def test_a_part_that_never_gets_well_is_given_up(watched, monkeypatch):
    monkeypatch.setattr(supervisor, "HEALTH_TIMEOUT_S", 0.3)
    with pytest.raises(PartFailed, match=r"did not answer at http://127\.0\.0\.1:1/ within 0\.3 s"):
        watched.start(part("web", SLEEPS, health_url="http://127.0.0.1:1/"))


def test_a_step_that_fails_is_told(watched):
    watched.run_once(part("fine", "pass"))
    with pytest.raises(PartFailed, match="broken failed with code 1"):
        watched.run_once(part("broken", "raise SystemExit(1)"))


def without_time(line):
    """A line of `up.log` behind its time, which is now, in UTC."""
    at, rest = line.split(" ", 1)
    assert timedelta(0) <= datetime.now(UTC) - datetime.fromisoformat(at) < timedelta(minutes=5)
    return rest


def test_a_killed_part_starts_again(watched, tmp_path, said):
    watched.start(part("sleeper", SLEEPS))
    first = pid_of(tmp_path, "sleeper")
    watching = threading.Thread(target=watched.watch)
    watching.start()
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: pid_of(tmp_path, "sleeper") != first)
    watched.stop.set()
    watching.join()
    assert [without_time(line) for line in said] == ["sleeper ended with code -9, starts again in 0.2 s"]


def test_a_part_that_dies_again_and_again_is_given_up(watched, monkeypatch):
    monkeypatch.setattr(supervisor, "BACKOFF_S", (0.01,))
    monkeypatch.setattr(supervisor, "MAX_DEATHS", 2)
    monkeypatch.setattr(supervisor, "POLL_S", 0.02)
    watched.start(part("dying", "raise SystemExit(5)"))
    with pytest.raises(PartFailed, match="dying died 3 times"):
        watched.watch(time.monotonic() + 20)


def test_parts_stop_in_reverse_order(watched, tmp_path):
    order = tmp_path / "order"
    program = (
        "import signal, sys, time\n"
        "def end(*a):\n"
        "    with open(sys.argv[1], 'a') as f: f.write(sys.argv[2])\n"
        "    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "open(sys.argv[1] + sys.argv[2], 'w').close()\n"
        "time.sleep(600)\n"
    )
    for name in "abc":
        watched.start(part(name, program, str(order), name))
        wait_until((tmp_path / f"order{name}").exists)
    watched.stop_all()
    assert order.read_text() == "cba"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends children with their parent on Linux only")
def test_children_die_with_a_supervisor_that_is_killed(tmp_path):
    program = (
        "import pathlib, sys\n"
        "from meterhouse_store.supervisor import Part, Supervisor\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "s = Supervisor(folder / 'logs', folder / 'run' / 'children.json', print)\n"
        f"s.start(Part('sleeper', (sys.executable, '-c', {SLEEPS!r})))\n"
        "s.watch()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)])
    wait_until((tmp_path / "run" / "children.json").exists)
    child = pid_of(tmp_path, "sleeper")
    assert alive(child)
    parent.kill()
    parent.wait()
    wait_until(lambda: not alive(child))


def test_a_log_does_not_grow_for_ever(watched, tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "MAX_LOG_BYTES", 1000)
    for _ in range(3):
        watched.run_once(part("talker", "print('x' * 2000)"))
    logs = {file.name: file.stat().st_size for file in (tmp_path / "logs").iterdir()}
    assert logs == {"talker.log": 2001, "talker.log.1": 2001}


def test_jobs_run_every_step_and_remember_what_came_of_it(tmp_path, said):
    steps = {
        "rate": (sys.executable, "-c", "print('rated 3')"),
        "bill": (sys.executable, "-c", "print('Stripe is down'); raise SystemExit(1)"),
        "report": (sys.executable, "-c", "raise SystemExit(3)"),
    }
    schedule = jobs.Jobs(steps, tmp_path / "jobs.json", tmp_path / "jobs.alive", said.append)
    schedule.round()
    state = jobs.read_state(tmp_path / "jobs.json")
    assert {name: step["exit_code"] for name, step in state.items()} == {"rate": 0, "bill": 1, "report": 3}
    assert ["succeeded_at" in state[name] for name in ("rate", "bill", "report")] == [True, False, True]
    assert state["bill"]["last_words"] == "Stripe is down"
    assert (tmp_path / "jobs.alive").exists()
    assert [line.split(" ", 1)[1] for line in said if "bill" in line] == ["bill: failed with code 1"]


def test_a_job_that_ends_as_before_is_told_in_one_line(tmp_path, said):
    outcome = tmp_path / "outcome"
    script = f"print(open({str(outcome)!r}).read()); raise SystemExit(3)"
    schedule = jobs.Jobs(
        {"rate": (sys.executable, "-c", script)}, tmp_path / "jobs.json", tmp_path / "jobs.alive", said.append
    )
    lines = []
    for text in (
        "watermark 2026-11-21T04:35:25Z\nacme-1: 9 tokens without a price",
        "watermark 2026-11-21T04:36:25Z\nacme-1: 1,234 tokens without a price",
        "watermark 2026-11-21T04:37:25Z\nacme-2: 1,234 tokens without a price",
    ):
        outcome.write_text(text)
        schedule.round()
        lines.append([line.split(" ", 1)[1] for line in said])
        said.clear()
    assert len(lines[0]) == 2 and "acme-1: 9 tokens" in lines[0][1]
    assert lines[1] == [f"rate: done with exceptions, as before ({tmp_path}/jobs.json has its last words)"]
    assert len(lines[2]) == 2 and "acme-2" in lines[2][1]
    assert jobs.read_state(tmp_path / "jobs.json")["rate"]["last_words"].endswith(
        "acme-2: 1,234 tokens without a price"
    )


def test_jobs_stop_in_the_middle_of_a_step(tmp_path, said):
    schedule = jobs.Jobs(
        {"long": (sys.executable, "-c", SLEEPS)}, tmp_path / "jobs.json", tmp_path / "jobs.alive", said.append
    )
    running = threading.Thread(target=schedule.loop, args=(60,))
    running.start()
    time.sleep(0.3)
    began = time.monotonic()
    schedule.stop.set()
    running.join(10)
    assert not running.is_alive()
    assert time.monotonic() - began < 5


def test_what_runs_beside_the_rounds_is_started_again_and_ends_with_them(tmp_path, said):
    started = tmp_path / "started"
    script = f"import os, time\nopen({str(started)!r}, 'a').write(f'{{os.getpid()}} ')\ntime.sleep(60)"
    beside = jobs.Beside("watch", (sys.executable, "-c", script), said.append)
    schedule = jobs.Jobs({}, tmp_path / "jobs.json", tmp_path / "jobs.alive", said.append, [beside])
    running = threading.Thread(target=schedule.loop, args=(0.05,))
    running.start()
    for number in (1, 2):
        deadline = time.monotonic() + 10
        while not started.exists() or len(started.read_text().split()) < number:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        if number == 1:
            os.kill(int(started.read_text()), signal.SIGKILL)
    schedule.stop.set()
    running.join(10)
    assert beside.process.poll() == -signal.SIGTERM
    assert [without_time(line) for line in said] == ["watch ended with code -9: it is started again"]


def test_secrets_are_made_once_and_only_their_owner_reads_them(tmp_path):
    first = stack._secrets(tmp_path)
    assert stack._secrets(tmp_path) == first
    assert set(first) == {"warehouse_admin", "warehouse_reader", "api_key", "webhook_secret", "portal_token"}
    assert len(set(first.values())) == 5
    assert stat.S_IMODE((tmp_path / "secrets.json").stat().st_mode) == 0o600


def test_ports_are_those_of_the_last_time_unless_they_are_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(stack, "USUAL_PORTS", dict.fromkeys(stack.USUAL_PORTS, 0))
    usual = stack._ports(tmp_path)
    assert set(usual) == {"warehouse", "grpc", "http", "portal", "webhooks", "prices"}
    assert len(set(usual.values())) == 6
    monkeypatch.setattr(stack, "USUAL_PORTS", dict.fromkeys(usual, 1))
    assert stack._ports(tmp_path) == usual
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", usual["portal"]))
        taken.listen()
        again = stack._ports(tmp_path)
    assert again["portal"] not in (usual["portal"], 0)
    assert {name: port for name, port in again.items() if name != "portal"} == {
        name: port for name, port in usual.items() if name != "portal"
    }


def test_only_one_up_has_a_data_directory(tmp_path):
    settings = Settings(data=tmp_path)
    (tmp_path / "run").mkdir()
    with stack._locked(tmp_path):
        assert stack.running_pid(tmp_path) == os.getpid()
        with pytest.raises(stack.AlreadyRunning, match=f"process {os.getpid()}"):
            stack.run(settings, stack.Options(), print, print)
    assert stack.running_pid(tmp_path) is None
