"""The table of bench/run.py says what a baseline is and which direction is better; its file keeps its five columns."""

import importlib.util
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def runner():
    spec = importlib.util.spec_from_file_location("bench_run_notes", ROOT / "bench" / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def bench(folder, *rows):
    (folder / "rating.py").write_text(f"def bench():\n    return {list(rows)!r}\n")
    return runner().main(["bench", "--only", "rating"], here=folder)


def test_what_the_baseline_is_and_which_direction_is_better_is_shown_and_not_written(tmp_path, capsys):
    told = {"name": "rating.s", "value": 0.5, "unit": "s", "baseline": 2.0, "better": "lower", "baseline_is": "a loop"}
    bare = {"name": "rating.n", "value": 3, "unit": "n", "baseline": 1}
    assert bench(tmp_path, told, bare) == 0
    shown = capsys.readouterr().out.splitlines()
    assert "name      value  unit  baseline  ratio  better  baseline_is" in shown
    assert "rating.s    0.5  s            2   0.25  lower   a loop" in shown
    assert "rating.n      3  n            1      3  -       -" in shown
    columns = {tuple(row) for row in json.loads((tmp_path / "results.json").read_text())}
    assert columns == {("name", "value", "unit", "baseline", "ratio")}


def test_a_direction_that_is_none_is_refused(tmp_path, capsys):
    row = {"name": "rating.s", "value": 0.5, "unit": "s", "baseline": 2.0, "better": "faster"}
    assert bench(tmp_path, row) == 1
    assert "`better` is one of higher, lower" in capsys.readouterr().err
