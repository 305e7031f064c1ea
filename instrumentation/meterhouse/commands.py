"""The commands that an agent's machine needs: `run` and `drain`."""

import argparse
import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import NoReturn

from meterhouse.vocabulary import ENV_JOURNAL_DIR


def run(argv: list[str]) -> int:
    """Run a Python program with metering on: meterhouse run -- python agent.py"""
    parser = argparse.ArgumentParser(
        prog="meterhouse run",
        description="Run a Python program with metering on, as `opentelemetry-instrument` does it.",
        epilog="Usage goes to METERHOUSE_ENDPOINT with METERHOUSE_API_KEY, or to the `meterhouse up` of this "
        "directory; without either it is kept in the process journal for `meterhouse drain`.",
    )
    parser.add_argument("--customer", metavar="ID", help="whom the work is for, where the program does not say")
    parser.add_argument("--agent", metavar="NAME", help="the agent's name, where the program does not say")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND ...", help="the program to run")
    arguments = parser.parse_args(argv)
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if not command:
        parser.error("say what to run, e.g. meterhouse run -- python agent.py")
    if shutil.which(command[0]) is None:
        a_file = os.path.isfile(command[0])
        hint = f"; it is a file: meterhouse run -- python {shlex.join(command)}" if a_file else ""
        print(f"meterhouse run: there is no program {command[0]!r}{hint}", file=sys.stderr)
        return 1
    environment = dict(os.environ)
    environment["PYTHONPATH"] = _python_path()
    if arguments.customer:
        environment["METERHOUSE_CUSTOMER"] = arguments.customer
    if arguments.agent:
        environment["METERHOUSE_AGENT"] = arguments.agent
    sys.stdout.flush()
    return _become(command, environment)


def _become(command: list[str], environment: dict[str, str]) -> NoReturn:
    os.execvpe(command[0], command, environment)  # no child: signals and the exit code are the program's own


def _python_path() -> str:
    """PYTHONPATH with OpenTelemetry's sitecustomize first: what loads the instrumentors in the child."""
    from opentelemetry.instrumentation import auto_instrumentation

    hook = str(Path(auto_instrumentation.__file__).resolve().parent)
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != hook]
    if os.getcwd() not in others:
        others.insert(0, os.getcwd())
    return os.pathsep.join([hook, *others])


def drain(argv: list[str]) -> int:
    """Deliver the usage that dead processes left in their journals"""
    parser = argparse.ArgumentParser(
        prog="meterhouse drain",
        description="Deliver the usage that processes left behind: crashed, killed, or without a server.",
        epilog="Run it before a machine goes away. Exit codes: 0 all delivered; 1 nothing could be done; "
        "3 something is left, was refused, lost, or cannot be read.",
    )
    parser.add_argument("--journal-dir", type=Path, metavar="D", help=f"default: {ENV_JOURNAL_DIR}, else the user's")
    parser.add_argument("--json", action="store_true", help="For machines: one JSON document.")
    parser.add_argument(
        "--refused", action="store_true", help="also send again what the collector refused, after its cause was mended"
    )
    parser.add_argument(
        "--any-key",
        action="store_true",
        help="also deliver, with this key, what processes with a key of another credential left: after that one was "
        "revoked. Usage of another collector or namespace would be billed here",
    )
    arguments = parser.parse_args(argv)
    if arguments.journal_dir is not None:
        if not arguments.journal_dir.is_dir():
            print(f"meterhouse drain: {arguments.journal_dir} is no directory", file=sys.stderr)
            return 1
        os.environ[ENV_JOURNAL_DIR] = str(arguments.journal_dir)
    try:
        return _drain(as_json=arguments.json, refused_too=arguments.refused, any_key=arguments.any_key)
    except OSError as error:
        print(f"meterhouse drain: {error}; name the journals with --journal-dir", file=sys.stderr)
        return 1


_SHOWN = {
    "delivered": "events delivered",
    "refused_events": "events refused now",
    "left": "events left",
    "lost": "events lost",
    "unfinished": "calls that never ended",
    "unreadable_lines": "unreadable lines",
    "failed": "journals that failed",
    "elsewhere": "of other credentials",
}
"""What `drain` found -> what a person reads. Delivered, refused and left are all events that there were."""


def _drain(*, as_json: bool, refused_too: bool, any_key: bool) -> int:
    from meterhouse import refused
    from meterhouse.adoption import damaged
    from meterhouse.exporter import drain_now
    from meterhouse.settings import destination, journal_directory, why_nowhere

    directory = journal_directory()
    drained = drain_now(directory, refused_too=refused_too, any_key=any_key)
    if drained is None:
        print(
            f"meterhouse drain: nowhere to send usage to: {why_nowhere()}. Set METERHOUSE_ENDPOINT and "
            f"METERHOUSE_API_KEY, or METERHOUSE_DATA. The journals in {directory} are kept.",
            file=sys.stderr,
        )
        return 1
    goal = destination()
    still_refused = [str(path) for path in refused.files(directory)]
    unreadable = [str(path) for path in damaged(directory)]
    found = {
        "journal_dir": str(directory),
        "endpoint": goal.endpoint if goal else None,
        "journals": drained.journals,
        "delivered": drained.events,
        "unfinished": drained.unfinished,
        "refused_events": drained.refused,
        "left": drained.left,
        "lost": drained.lost,
        "unreadable_lines": drained.unreadable_lines,
        "failed": drained.failed,
        "elsewhere": drained.elsewhere,
        "refused": still_refused,
        "damaged": unreadable,
    }
    if as_json:
        print(json.dumps(found))
    else:
        plural = "" if drained.journals == 1 else "s"
        print(f"{drained.journals} journal{plural} of ended processes in {directory}")
        for what, name in _SHOWN.items():
            print(f"  {name:<24}{found[what]:>8}")
        if drained.elsewhere:
            print("  what other credentials left is delivered by `meterhouse drain` with a key of theirs, or --any-key")
        for path in still_refused:
            print(f"  refused by the collector, kept in {path}")
        if still_refused and not refused_too:
            print("  once the cause is mended, `meterhouse drain --refused` sends it again")
        for path in unreadable:
            print(f"  has lines that cannot be read: repair and rename it to *.journal, or remove it: {path}")
    kept = drained.left or drained.failed or drained.elsewhere or still_refused or unreadable
    bad = kept or drained.lost or drained.unreadable_lines
    return 3 if bad else 0
