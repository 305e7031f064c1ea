"""Run the measurements or the long proofs and write what came out.

    python bench/run.py bench [--only GROUP]      writes bench/results.json: [{name, value, unit, baseline, ratio}]
    python bench/run.py prove [--only GROUP]      writes bench/proofs.json:  [{name, cases, violations}]

A group is the file bench/GROUP.py with the functions `bench() -> list[dict]` and `prove() -> list[dict]`; it runs in a
process of its own, so that one group's caches, threads and memory do not disturb the next. `ratio` is value / baseline.
A row of bench may also say what its baseline is (`baseline_is`) and whether a `higher` or `lower` value is the better
one (`better`): the table shows both, the file does not have them.

Exit codes: 0 done; 1 a proof was violated or a group failed; 2 called wrongly.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
GROUPS = ("collector", "agent", "rating", "reports", "billing", "portal", "suite")
COLUMNS = {"bench": ("name", "value", "unit", "baseline", "ratio"), "prove": ("name", "cases", "violations")}
NAMED = {"collector": ("collector", "warehouse"), "reports": ("reports", "grafana")}
"""What names of a group begin with, where that is more than the group's own."""
COMPUTED = {"ratio"}
NOTES = ("better", "baseline_is")
BETTER = ("higher", "lower")
OUTPUT = {"bench": "results.json", "prove": "proofs.json"}
TIME_LIMIT_S = {"bench": 90 * 60, "prove": 4 * 3600}

Row = dict[str, Any]


class GroupFailed(Exception):
    """A group raised, took too long or returned something other than its rows; the message says which."""


def main(argv: list[str] | None = None, *, here: Path = HERE) -> int:
    """Run `bench` or `prove` over the groups in the directory `here`; returns the exit code."""
    parser = argparse.ArgumentParser(prog="bench/run.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=sorted(COLUMNS))
    parser.add_argument("--only", choices=GROUPS, metavar="GROUP", help=f"one of {', '.join(GROUPS)}")
    arguments = parser.parse_args(argv)
    what: str = arguments.what
    rows: list[Row] = []
    failures: list[str] = []
    for group in [arguments.only] if arguments.only else GROUPS:
        if not (here / f"{group}.py").exists():
            print(f"{group}: none yet (no bench/{group}.py)")
            continue
        print(f"{group}: running ...", flush=True)
        try:
            rows += in_own_process(what, group, here)
        except GroupFailed as failure:
            failures.append(f"{group}: {failure}")
    written = [{column: row[column] for column in COLUMNS[what]} for row in rows]
    (here / OUTPUT[what]).write_text(json.dumps(written, indent=2) + "\n")
    shown = (*COLUMNS[what], *(note for note in NOTES if any(note in row for row in rows)))
    print("\n" + table(rows, shown) if rows else f"\nNothing in {what} yet.")
    print(f"\nWritten to {here / OUTPUT[what]}")
    violated = [row["name"] for row in rows if row.get("violations")]
    failures += [f"{name}: violated" for name in violated]
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def in_own_process(what: str, group: str, here: Path) -> list[Row]:
    """The rows of one group, checked; raises GroupFailed."""
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch) / "rows.json"
        command = [
            sys.executable,
            str(Path(__file__).resolve()),
            "--child",
            what,
            str(here / f"{group}.py"),
            str(answer),
        ]
        try:
            ended = subprocess.run(command, timeout=TIME_LIMIT_S[what], check=False)
        except subprocess.TimeoutExpired:
            raise GroupFailed(f"took longer than {TIME_LIMIT_S[what]} s and was stopped") from None
        if ended.returncode != 0:
            raise GroupFailed(f"failed with exit code {ended.returncode}; what it printed stands above")
        rows: list[Row] = json.loads(answer.read_text())
    needed = set(COLUMNS[what]) - COMPUTED
    for row in rows:
        if (
            set(row) - COMPUTED - set(NOTES) != needed
            or row.get("better", BETTER[0]) not in BETTER
            or str(row["name"]).partition(".")[0] not in NAMED.get(group, (group,))
        ):
            raise GroupFailed(
                f"a row needs {', '.join(sorted(needed))} and a name like {group}.something; `better` is one of "
                f"{', '.join(BETTER)}: not {json.dumps(row)}"
            )
        if what == "bench":
            # Computed here, so that it means the same in every group.
            row["ratio"] = round(row["value"] / row["baseline"], 3) if row["baseline"] else None
    return rows


def child(what: str, file: Path, answer: Path) -> None:
    """Inside the group's own process: call its function and write the rows to `answer`."""
    sys.path.insert(0, str(file.parent))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    function: Callable[[], list[Row]] | None = getattr(module, what, None)
    if function is None:
        print(f"bench/{file.name} has no {what}() yet")
    answer.write_text(json.dumps(function() if function else []))


def table(rows: list[Row], columns: tuple[str, ...]) -> str:
    """The rows as lines of text whose columns line up; numbers to the right."""
    cells = [columns, *(tuple(_shown(row.get(column)) for column in columns) for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    numeric = [all(isinstance(row.get(column), int | float | None) for row in rows) for column in columns]
    return "\n".join(
        "  ".join(
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in cells
    )


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
    else:
        sys.exit(main())
