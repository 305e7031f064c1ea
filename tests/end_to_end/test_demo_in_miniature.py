"""The whole way in miniature: the demo itself, run as a user runs it, and its proof read by other arithmetic."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOKENS = (
    "llm.tokens.input",
    "llm.tokens.cache_read",
    "llm.tokens.cache_write",
    "llm.tokens.output",
    "llm.tokens.reasoning",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data directory of a finished run; `proof.json` beside it."""
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "examples/demo.py", "--mini", "--stop", "--data", str(folder / "data")]
    env = {
        name: value for name, value in os.environ.items() if not name.startswith(("STRIPE_", "METERHOUSE_", "OTEL_"))
    }
    command += ["--json", str(folder / "proof.json")]
    try:
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=500)
    except subprocess.TimeoutExpired:  # what it left running would disturb every test after it
        down = [str(Path(sys.executable).with_name("meterhouse")), "down", "--data", str(folder / "data")]
        subprocess.run(down, cwd=ROOT, env=env, check=False, timeout=60)
        raise
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "screen.txt").write_text(done.stdout)
    return folder


def test_every_unit_of_the_provider_and_the_trace_is_on_an_invoice_or_free_by_choice(run):
    proof = json.loads((run / "proof.json").read_text())
    served = [json.loads(line) for line in (run / "data" / "provider.jsonl").read_text().splitlines()]
    rows = list(csv.DictReader((run / "data" / "trace.csv").read_text().splitlines()))
    meters = {row["meter"]: row for row in proof["meters"]}
    lost = {item["request_id"] for item in proof["unfinished"]}

    assert proof["differences"] == []
    assert len(rows) == 200
    replayed = {"llm.tokens.input": sum(int(r["ContextTokens"]) for r in rows)}
    replayed["llm.tokens.output"] = sum(int(r["GeneratedTokens"]) for r in rows)
    for meter in TOKENS:
        read = sum(a["units"].get(meter, 0) for a in served if a["request_id"] not in lost)
        assert int(meters[meter]["invoiced"]) + int(meters[meter]["unbilled"]) == read + replayed.get(meter, 0), meter
    # A request is one logical call, however often the SDK tried it; requests are free in the price book.
    calls = len({attempt["request_id"] for attempt in served})
    assert int(meters["llm.requests"]["unbilled"]) == calls + 200
    # Every tool call id once: the MCP server's, handed back as well, and those that run in the agents' own loops.
    log = [json.loads(line) for line in (run / "data" / "provider.jsonl").read_text().splitlines()]
    over_mcp = (run / "data" / "tool-server.jsonl").read_text().splitlines()
    executed = {tool_call_id for attempt in log for tool_call_id in attempt["tool_results"]}
    assert int(meters["tool.calls"]["stored"]) == len(executed) > len(over_mcp) > 0


def test_the_killed_call_is_the_one_unfinished_call(run):
    proof = json.loads((run / "proof.json").read_text())
    served = [json.loads(line) for line in (run / "data" / "provider.jsonl").read_text().splitlines()]
    cut_off = [attempt["request_id"] for attempt in served if attempt["outcome"] == "cut_off"]
    assert [item["request_id"] for item in proof["unfinished"]] == cut_off
    assert len(cut_off) == 1
    assert {item["customer"] for item in proof["unfinished"]} == {"acme"}
    assert any(attempt["status"] in (429, 500) for attempt in served)


def test_three_customers_paid_what_stripe_asked_and_a_second_run_changed_nothing(run):
    proof = json.loads((run / "proof.json").read_text())
    assert {invoice["customer"] for invoice in proof["invoices"]} == {"acme", "globex", "initech"}
    assert {invoice["state"] for invoice in proof["invoices"]} == {"paid"}
    assert all(invoice["total_minor"] == invoice["stripe_total_minor"] for invoice in proof["invoices"])
    assert proof["repeat_changes_nothing"] is True


def test_what_it_says_is_for_people_and_has_no_trailing_spaces(run):
    screen = (run / "screen.txt").read_text()
    assert "it refuses 8 % of the attempts" in screen
    assert "Version 1 is the starter book" in screen
    assert "llm.tokens.input" in screen
    assert [line for line in screen.splitlines() if line != line.rstrip()] == []


def processes_that_name(data: bytes) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = process.read_bytes()
        except OSError:  # it has ended
            continue
        if data in command:
            found.append(command.replace(b"\0", b" ").decode(errors="replace"))
    return found


def test_it_leaves_no_process_behind(run):
    assert not (run / "data" / "run" / "endpoints.json").exists()
    data = os.fsencode(run / "data")
    until = time.monotonic() + 20  # a process that has been told to end takes a moment on a slow machine
    while (left := processes_that_name(data)) and time.monotonic() < until:
        time.sleep(0.2)
    assert left == []


def test_a_data_directory_of_somebody_else_is_refused(tmp_path):
    (tmp_path / "precious").touch()
    command = [sys.executable, "examples/demo.py", "--data", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "is not a demo's" in done.stderr
    assert (tmp_path / "precious").exists()


def test_live_without_keys_is_refused_before_anything_starts(tmp_path):
    command = [sys.executable, "examples/demo.py", "--live", "--data", str(tmp_path / "data")]
    env = {name: value for name, value in os.environ.items() if name not in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY")}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "OPENAI_API_KEY and ANTHROPIC_API_KEY" in done.stderr
    assert not (tmp_path / "data").exists()
