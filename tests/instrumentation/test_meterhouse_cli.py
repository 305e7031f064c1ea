"""The dispatcher: help lists what is installed, a missing extra is named, nothing is imported before it is called."""

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from meterhouse import cli


def entry(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, cli.GROUP)


def test_a_command_whose_extra_is_not_installed_says_what_to_install(monkeypatch, capsys):
    missing = entry("rate", "a_package_that_is_not_installed.commands:rate")
    monkeypatch.setattr(cli, "entry_points", lambda group: [missing])
    assert cli.main(["rate", "run"]) == 1
    assert "meterhouse rate needs a_package_that_is_not_installed" in capsys.readouterr().err
    assert "(needs the extra `server`)" in cli._help({"rate": missing})


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
