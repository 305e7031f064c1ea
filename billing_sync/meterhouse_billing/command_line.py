"""What the commands of billing share: options, exit codes, refusals in sentences, tables, the way to the stores."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from meterhouse_billing.world import World
    from meterhouse_store.settings import Settings

FAILED, CALLED_WRONGLY, EXCEPTIONS = 1, 2, 3

Data = Annotated[Path | None, typer.Option(help="Data directory of `up` (METERHOUSE_DATA).")]
Json = Annotated[bool, typer.Option("--json", help="For machines: one JSON document.")]


def opened(data: Path | None) -> tuple["Settings", "Engine"]:
    from meterhouse_store.settings import load_existing
    from meterhouse_store.sql import open_engine

    settings = load_existing(data)
    return settings, open_engine(settings)


METERS_KEY = "STRIPE_METERS_API_KEY"
"""The variable with the key of whatever only sends usage to Stripe's meters."""


def world_of(settings: "Settings", engine: "Engine", own_key: str = "") -> "World":
    from meterhouse_billing.gateway import connect
    from meterhouse_billing.world import World
    from meterhouse_store.registry import namespace

    registered = namespace(engine, settings.namespace)
    is_live = registered is not None and registered.kind == "live"
    world = World(engine, connect(os.environ, live=is_live, own_key=own_key), settings.namespace, operator())
    return world.of("")


def operator() -> str:
    """Who is recorded as the one who approved."""
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user often has no name
        return f"uid {os.getuid()}"


def webhook_secret(settings: "Settings") -> str:
    if secret := os.environ.get("STRIPE_WEBHOOK_SECRET"):
        return secret
    file = settings.data / "run" / "secrets.json"
    try:
        return str(json.loads(file.read_text())["webhook_secret"])
    except (OSError, ValueError, KeyError):
        fail(f"There is no signing secret: set STRIPE_WEBHOOK_SECRET (whsec_...); {file} has none either.")


@contextmanager
def refusals() -> Iterator[None]:
    """Turns the refusals that a user can do something about into a sentence and an exit code."""
    from clickhouse_connect.driver.exceptions import ClickHouseError
    from pydantic import ValidationError

    from meterhouse_billing.gateway import BillingError
    from meterhouse_rating.periods import PeriodError
    from meterhouse_store.roles import NotAllowed
    from meterhouse_store.settings import NoData
    from meterhouse_store.sql import SchemaMismatch
    from meterhouse_store.switches import SwitchedOff
    from meterhouse_store.terminal import told, wrong_settings
    from meterhouse_store.warehouse import WarehouseUnavailable

    try:
        yield
    except (NoData, WarehouseUnavailable) as refused:
        fail(str(refused))
    except PeriodError as refused:
        fail(str(refused), CALLED_WRONGLY)
    except NotAllowed as refused:
        fail(str(refused))
    except (BillingError, SchemaMismatch, SwitchedOff) as refused:
        fail(f"{refused}.")
    except ValidationError as refused:
        fail(wrong_settings(refused), CALLED_WRONGLY)
    except OSError as refused:
        fail(told(refused))
    except (ClickHouseError, ValueError) as refused:
        fail(f"{type(refused).__name__}: {refused}")


def fail(text: str, code: int = FAILED) -> NoReturn:
    print(text, file=sys.stderr)
    raise typer.Exit(code)


def print_table(rows: Any, right: tuple[int, ...] = ()) -> None:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def row_json(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A row of SQL for `print_json`."""
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in row.items()}


def say(text: str, as_json: bool) -> None:
    print(text, flush=True, file=sys.stderr if as_json else sys.stdout)
