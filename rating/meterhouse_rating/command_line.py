"""What the commands of this package share: options, exit codes, refusals in sentences, the way to the stores."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from meterhouse_rating.world import World
    from meterhouse_store.settings import Settings

FAILED, CALLED_WRONGLY, EXCEPTIONS = 1, 2, 3

Data = Annotated[Path | None, typer.Option(help="Data directory of `up` (METERHOUSE_DATA).")]
Json = Annotated[bool, typer.Option("--json", help="For machines: one JSON document.")]


def print_json(value: Any) -> None:
    """One document, indented; times in ISO 8601."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=_iso))


@contextmanager
def refusals(of_a_book: str = "") -> Iterator[None]:
    """Turns the refusals that a user can do something about into a sentence and an exit code.

    `of_a_book`: what a price book with mistakes comes to.
    """
    from clickhouse_connect.driver.exceptions import ClickHouseError
    from pydantic import ValidationError

    from meterhouse_rating.book import BookRefused
    from meterhouse_rating.costs_book import CostsRefused
    from meterhouse_rating.credit_changes import CreditsRefused
    from meterhouse_rating.layout import counted
    from meterhouse_rating.ledger_books import AdjustmentRefused
    from meterhouse_rating.periods import PeriodError
    from meterhouse_rating.publishing import PublishingRefused
    from meterhouse_rating.run import NotYet
    from meterhouse_rating.settle import WatermarkWentBack
    from meterhouse_rating.versions import NotThere, SecondPersonNeeded
    from meterhouse_store.meters import MetersError
    from meterhouse_store.settings import NoData
    from meterhouse_store.sql import SchemaMismatch
    from meterhouse_store.switches import SwitchedOff
    from meterhouse_store.terminal import told, wrong_settings
    from meterhouse_store.warehouse import WarehouseUnavailable

    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # here, and not at the exit: below is said what to do when nobody reads it
    except BrokenPipeError:
        # Whoever read the output has seen enough (| head). What is left of it goes nowhere, also at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(FAILED) from None
    except BookRefused as refused:
        fail(f"{refused}\n{counted(len(refused.mistakes), 'mistake')}{of_a_book}.")
    except PeriodError as refused:
        fail(str(refused), CALLED_WRONGLY)
    except NotThere as refused:
        fail(str(refused.args[0]))
    except (
        AdjustmentRefused,
        CostsRefused,
        CreditsRefused,
        NoData,
        NotYet,
        PublishingRefused,
        SecondPersonNeeded,
        WatermarkWentBack,
        MetersError,
        SchemaMismatch,
        SwitchedOff,
        WarehouseUnavailable,
    ) as refused:
        fail(str(refused))
    except ValidationError as refused:
        fail(wrong_settings(refused), CALLED_WRONGLY)
    except ClickHouseError as refused:
        fail(f"{type(refused).__name__}: {refused}")
    except OSError as refused:
        fail(told(refused))


def _iso(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def fail(text: str, code: int = FAILED) -> NoReturn:
    """Say what is wrong on stderr and exit."""
    print(text, file=sys.stderr)
    raise typer.Exit(code)


def existing(data: Path | None) -> "Settings":
    """The settings of a Meterhouse that is there. Raises NoData."""
    from meterhouse_store.settings import load_existing

    return load_existing(data)


def engine_of(settings: "Settings") -> "Engine":
    """The SQL database."""
    from meterhouse_store.sql import open_engine

    return open_engine(settings)


def world_of(settings: "Settings", engine: "Engine | None" = None, timeout_s: float = 60) -> "World":
    """All that a run needs; waits so long for the warehouse. Raises WarehouseUnavailable."""
    from meterhouse_rating.world import World
    from meterhouse_store import warehouse
    from meterhouse_store.meters import declared

    client = warehouse.connect(settings, timeout_s=timeout_s)
    return World(engine or engine_of(settings), client, settings.namespace, declared(settings))


def units(settings: "Settings") -> dict[str, str]:
    """The declared meters and their units."""
    from meterhouse_store.meters import declared

    return {name: meter.unit for name, meter in declared(settings).items()}
