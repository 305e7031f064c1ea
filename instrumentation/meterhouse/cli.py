"""The `meterhouse` command: finds the commands of all installed packages by entry point and calls one.

An entry of the group `meterhouse.commands` is either a function `(argv: list[str]) -> int` or a typer app. Its first
docstring line (or the app's help) is what `meterhouse --help` shows. Nothing is imported before it is needed, so that
an agent's `meterhouse run` costs no more than this file.

Exit codes: 0 done; 1 failed; 2 called wrongly; 3 done, with exceptions to look at.
"""

import argparse
import codecs
import io
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points, version
from typing import Any

GROUP = "meterhouse.commands"

# The order of a user's way through the system; a command that is not named here comes last, by name.
ORDER = (
    ("Meter an agent", ("run", "drain", "replay")),
    ("Run the system", ("up", "down", "collector", "warehouse", "portal", "jobs", "sandbox")),
    ("Look after it", ("customers", "keys", "suspense")),
    ("Charge for it", ("prices", "rate", "bill")),
)


def main(argv: list[str] | None = None) -> int:
    """Call the command that `argv` names; returns its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    commands = {entry.name: entry for entry in entry_points(group=GROUP)}
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help(commands))
        return 0
    if arguments[0] == "--version":
        print(f"meterhouse {version('meterhouse')}")
        return 0
    name = arguments[0]
    if name not in commands:
        parser = argparse.ArgumentParser(prog="meterhouse", usage="meterhouse COMMAND ...", add_help=False)
        parser.error(f"there is no command {name!r}; there are {', '.join(sorted(commands))}")
    try:
        command = commands[name].load()
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.split(".")[0] == "meterhouse":
            raise
        print(
            f"meterhouse {name} needs {missing.name}, which comes with the extra `server`: install Meterhouse with it "
            "from where you have it, e.g. pip install '/path/to/meterhouse[server]'",
            file=sys.stderr,
        )
        return 1
    return _call(command, name, arguments[1:])


def _call(command: Any, name: str, arguments: list[str]) -> int:
    if hasattr(command, "registered_commands"):  # a typer app
        # Docstrings are paragraphs: in the default mode every line break of the source would stay one in the help.
        command.rich_markup_mode = "markdown"
        if isinstance(sys.stdout, io.TextIOWrapper):
            codecs.register_error("meterhouse.escaped", _escaped)
            sys.stdout.reconfigure(errors="meterhouse.escaped")
        try:
            "".join(arguments).encode()
            return int(command(arguments, prog_name=f"meterhouse {name}") or 0)
        except Exception as problem:
            if (failed := _of_the_environment(problem)) is None:
                raise
            code, sentence = failed
            print(f"meterhouse {name}: {sentence}", file=sys.stderr)
            return code
    function: Callable[[list[str]], int] = command
    return function(arguments)


def _escaped(problem: UnicodeError) -> tuple[str, int]:
    """What the encoding of a terminal or a pipe lacks, as JSON escapes it: so `--json` is JSON there, too."""
    if not isinstance(problem, UnicodeEncodeError):
        raise problem
    lacking = problem.object[problem.start : problem.end]
    units = lacking.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4)), problem.end


def _of_the_environment(problem: Exception) -> tuple[int, str] | None:
    """Exit code and sentence for what is no mistake of ours; a command that knows more has said it before."""
    if isinstance(problem, UnicodeEncodeError) and problem.reason == "surrogates not allowed":
        return 2, "an argument is no text in UTF-8"
    if isinstance(problem, OSError) and problem.strerror:
        return 1, f"{problem.filename}: {problem.strerror}" if problem.filename else problem.strerror
    # Imported by whoever raised one of their errors, and by no agent.
    for errors in (sys.modules.get(name) for name in ("sqlalchemy.exc", "sqlite3")):
        if errors is None or not isinstance(problem, errors.DatabaseError):
            continue
        said = str(getattr(problem, "orig", problem)).strip()
        if type(problem) is errors.DatabaseError:  # what SQLite says of a file that it cannot read
            what = "stop Meterhouse and put a backup in its place (docs/operations.md)"
            return 1, f"the SQL database is damaged ({said}): {what}"
        if isinstance(problem, errors.OperationalError):
            return 1, (
                f"the SQL database cannot be used ({said}): see to its disk, who may write there, or its server. What "
                "was not finished is undone: call the command again then"
            )
    return None


def _help(commands: dict[str, EntryPoint]) -> str:
    lines = [
        "usage: meterhouse COMMAND ...",
        "",
        "Meters, rates and bills AI agents over OpenTelemetry.",
    ]
    known = {name for _, names in ORDER for name in names}
    groups = [*ORDER, ("More", tuple(sorted(set(commands) - known)))]
    for title, names in groups:
        present = [name for name in names if name in commands]
        if present:
            lines += ["", f"{title}:"]
            lines += [f"  {name:<11} {_summary(commands[name])}" for name in present]
    lines += [
        "",
        "`meterhouse COMMAND --help` says more.",
        "Exit codes: 0 done, 1 failed, 2 called wrongly, 3 done with exceptions to look at.",
    ]
    return "\n".join(lines)


def _summary(entry: EntryPoint) -> str:
    try:
        command = entry.load()
    except ModuleNotFoundError:
        return "(needs the extra `server`)"
    text = getattr(getattr(command, "info", None), "help", None) or command.__doc__ or ""
    return str(text).strip().partition("\n")[0]
