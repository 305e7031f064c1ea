"""The dispatcher: help lists what is installed, a missing extra is named, nothing is imported before it is called."""

import os
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint

import pytest
import typer
from sqlalchemy.exc import DatabaseError, IntegrityError, OperationalError, ProgrammingError

from meterhouse import cli


@dataclass
class Loaded:
    """An entry point whose command is there already."""

    name: str
    command: typer.Typer

    def load(self):
        return self.command


def entry(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, cli.GROUP)


def test_a_command_whose_extra_is_not_installed_says_what_to_install(monkeypatch, capsys):
    missing = entry("rate", "a_package_that_is_not_installed.commands:rate")
    monkeypatch.setattr(cli, "entry_points", lambda group: [missing])
    assert cli.main(["rate", "run"]) == 1
    assert "meterhouse rate needs a_package_that_is_not_installed" in capsys.readouterr().err
    assert "(needs the extra `server`)" in cli._help({"rate": missing})


def failing_with(problem):
    app = typer.Typer()

    @app.command()
    def rate(_what: str = ""):
        raise problem

    return app


@pytest.mark.parametrize(
    ("problem", "told"),
    [
        (
            OperationalError("SELECT 1", {}, sqlite3.OperationalError("disk I/O error")),
            "meterhouse rate: the SQL database cannot be used (disk I/O error): see to its disk, who may write there, "
            "or its server. What was not finished is undone: call the command again then\n",
        ),
        (
            DatabaseError("SELECT 1", {}, sqlite3.DatabaseError("file is not a database")),
            "meterhouse rate: the SQL database is damaged (file is not a database): stop Meterhouse and put a backup "
            "in its place (docs/operations.md)\n",
        ),
        (  # before SQLAlchemy sees it
            sqlite3.DatabaseError("file is not a database"),
            "meterhouse rate: the SQL database is damaged (file is not a database): stop Meterhouse and put a backup "
            "in its place (docs/operations.md)\n",
        ),
        (PermissionError(13, "Permission denied", "/data/x"), "meterhouse rate: /data/x: Permission denied\n"),
    ],
)
def test_what_the_machine_refuses_is_a_sentence_and_exit_code_1(monkeypatch, capsys, problem, told):
    monkeypatch.setattr(cli, "entry_points", lambda group: [Loaded("rate", failing_with(problem))])
    assert cli.main(["rate"]) == 1
    assert capsys.readouterr().err == told


@pytest.mark.parametrize(
    "ours",
    [
        ValueError("x"),
        IntegrityError("INSERT", {}, sqlite3.IntegrityError("UNIQUE")),
        ProgrammingError("", {}, Exception()),
    ],
)
def test_a_mistake_of_ours_is_not_hidden(monkeypatch, ours):
    monkeypatch.setattr(cli, "entry_points", lambda group: [Loaded("rate", failing_with(ours))])
    with pytest.raises(type(ours)):
        cli.main(["rate"])


def test_an_argument_that_is_no_text_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(cli, "entry_points", lambda group: [Loaded("rate", failing_with(AssertionError()))])
    assert cli.main(["rate", "--what", os.fsdecode(b"a\xff")]) == 2
    assert capsys.readouterr().err == "meterhouse rate: an argument is no text in UTF-8\n"


def test_an_unknown_command_is_refused_with_the_known_ones(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["invoice-everybody"])
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("usage: meterhouse COMMAND ...\n")
    assert "there is no command 'invoice-everybody'; there are audit, backup, bill, budgets, collector, " in told


def test_help_names_every_command_with_a_summary(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    for name in ("run", "up", "rate", "bill", "replay", "warehouse"):
        line = next(line for line in text.splitlines() if line.startswith(f"  {name} "))
        assert len(line.split(maxsplit=1)[1]) > 10, line


def test_the_dispatcher_of_an_agent_imports_no_server_package():
    code = (
        "import sys\nfrom meterhouse.cli import main\nmain(['--version'])\n"
        "heavy = ('typer', 'sqlalchemy', 'clickhouse_connect', 'stripe', 'opentelemetry.sdk')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
