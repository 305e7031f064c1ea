"""The collector package's commands where there is nothing to work on: a sentence, an exit code, and nothing made."""

import pytest
from typer.testing import CliRunner

from meterhouse_collector.commands import suspense, warehouse
from meterhouse_collector.replay_command import app as replay

WINDOW = ["--customers", "acme", "--from", "2026-10-01", "--to", "2026-11-01"]
TRACE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:00.0000000,100,10\n"


@pytest.fixture(autouse=True)
def nothing_from_outside(monkeypatch):
    for name in ("METERHOUSE_DATA", "METERHOUSE_ENDPOINT", "METERHOUSE_API_KEY", "METERHOUSE_WAREHOUSE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("app", "arguments"),
    [
        (warehouse, ["status"]),
        (warehouse, ["query", "SELECT 1"]),
        (warehouse, ["rebuild"]),
        (suspense, ["list"]),
    ],
    ids=["status", "query", "rebuild", "suspense"],
)
def test_in_a_wrong_directory_it_says_so_and_makes_nothing(app, arguments, tmp_path):
    wrong = tmp_path / "wrong"
    result = CliRunner().invoke(app, [*arguments, "--data", str(wrong)])

    assert result.exit_code == 1
    assert result.stderr.startswith(f"there is no Meterhouse in {wrong}")
    assert not wrong.exists()


@pytest.mark.parametrize("damaged", ["", '{"pid": 1', "[]"])
def test_damaged_addresses_of_what_runs_are_said_with_what_to_do(damaged, tmp_path):
    (tmp_path / "meterhouse.db").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "endpoints.json").write_text(damaged)
    result = CliRunner().invoke(suspense, ["list", "--data", str(tmp_path)])

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"{tmp_path / 'run' / 'endpoints.json'} is damaged (")
    assert result.stderr.endswith("): stop Meterhouse, delete the file, start again\n")


def test_a_warehouse_that_the_environment_names_needs_no_data_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("METERHOUSE_WAREHOUSE_URL", "http://nobody:secret@127.0.0.1:1")
    monkeypatch.setattr("meterhouse_store.warehouse.connect", _refuse)
    result = CliRunner().invoke(warehouse, ["status", "--data", str(tmp_path / "none")])

    assert (result.exit_code, result.stderr) == (1, "the warehouse was asked\n")


def _refuse(*_args, **_options):
    from meterhouse_store.warehouse import WarehouseUnavailable

    raise WarehouseUnavailable("the warehouse was asked")


def test_replay_into_a_wrong_directory_names_both_ways_to_a_collector(tmp_path):
    file, wrong = tmp_path / "trace.csv", tmp_path / "wrong"
    file.write_text(TRACE)
    result = CliRunner().invoke(replay, [str(file), *WINDOW, "--data", str(wrong)])

    assert result.exit_code == 1
    assert f"there is no Meterhouse in {wrong}" in result.stderr
    assert "METERHOUSE_ENDPOINT and METERHOUSE_API_KEY" in result.stderr
    assert not wrong.exists()


def test_a_file_that_cannot_be_replayed_is_named_in_a_sentence(tmp_path):
    (tmp_path / "picture.csv").write_bytes(b"\xff\xfe\x00")

    def said(name):
        result = CliRunner().invoke(replay, [str(tmp_path / name), *WINDOW])
        return result.exit_code, result.stderr.strip()

    assert said("none.csv") == (2, f"there is no file {tmp_path}/none.csv")
    assert said("") == (2, f"{tmp_path} is a directory: name a CSV file in it")
    assert said("picture.csv") == (2, f"{tmp_path}/picture.csv is not a text file in UTF-8")
