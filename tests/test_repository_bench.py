"""bench/run.py over groups written for the test: what it prints, writes and answers."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_run", ROOT / "bench" / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_group_s_rows_are_written_and_shown_with_their_baseline(runner, tmp_path, capsys):
    row = {"name": "rating.seconds", "value": 0.5, "unit": "s", "baseline": 2.0}
    (tmp_path / "rating.py").write_text(f"def bench():\n    return [{row!r}]\n")

    assert runner.main(["bench", "--only", "rating"], here=tmp_path) == 0

    assert json.loads((tmp_path / "results.json").read_text()) == [{**row, "ratio": 0.25}]
    shown = capsys.readouterr().out.splitlines()
    assert "name            value  unit  baseline  ratio" in shown
    assert "rating.seconds    0.5  s            2   0.25" in shown


def test_a_group_without_a_file_is_said_to_have_none_yet(runner, tmp_path, capsys):
    assert runner.main(["bench", "--only", "portal"], here=tmp_path) == 0

    assert "portal: none yet" in capsys.readouterr().out
    assert json.loads((tmp_path / "results.json").read_text()) == []


def test_a_violated_proof_ends_with_1_and_is_named(runner, tmp_path, capsys):
    rows = [
        {"name": "collector.kept", "cases": 40, "violations": 0},
        {"name": "collector.once", "cases": 40, "violations": 2},
    ]
    (tmp_path / "collector.py").write_text(f"def prove():\n    return {rows!r}\n")

    assert runner.main(["prove", "--only", "collector"], here=tmp_path) == 1

    assert json.loads((tmp_path / "proofs.json").read_text()) == rows
    assert capsys.readouterr().err == "collector.once: violated\n"


def test_a_group_that_fails_ends_with_1_and_does_not_stop_the_others(runner, tmp_path, capfd):
    (tmp_path / "agent.py").write_text("def prove():\n    raise SystemExit(7)\n")
    (tmp_path / "rating.py").write_text("def prove():\n    return [dict(name='rating.sums', cases=3, violations=0)]\n")

    assert runner.main(["prove"], here=tmp_path) == 1

    assert json.loads((tmp_path / "proofs.json").read_text()) == [{"name": "rating.sums", "cases": 3, "violations": 0}]
    assert "agent: failed with exit code 7" in capfd.readouterr().err


def test_a_row_of_another_shape_is_refused(runner, tmp_path, capsys):
    (tmp_path / "agent.py").write_text("def bench():\n    return [dict(name='agent.cpu', value=1)]\n")

    assert runner.main(["bench", "--only", "agent"], here=tmp_path) == 1

    assert "a row needs baseline, name, unit, value and a name like agent.something" in capsys.readouterr().err
