"""When scheduled commands ran last, and how they ended: kept in SQL, shown to people and to Prometheus."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import typer
from sqlalchemy import Engine, insert, select, update
from sqlalchemy.exc import IntegrityError

from meterhouse_store.sql import begin_write
from meterhouse_store.tables import command_runs

SUCCESSES: Final = (0, 3)
"""Exit codes of a run that did its work: done, and done with exceptions to look at."""

_GAUGES: Final = (
    ("last_start", "When the command was last started, in Unix seconds.", "started_at"),
    ("last_end", "When the command last ended, in Unix seconds.", "finished_at"),
    ("last_success", "When the command last ended with exit code 0 or 3, in Unix seconds.", "succeeded_at"),
)


@dataclass(frozen=True)
class LastRun:
    """A command's last start and last end; `succeeded_at`: its last end with exit code 0 or 3."""

    namespace: str
    command: str
    started_at: datetime
    finished_at: datetime | None
    exit_code: int | None
    succeeded_at: datetime | None

    @property
    def unfinished(self) -> bool:
        """Whether the run that began last has not ended: it is under way, or it was killed."""
        return self.finished_at is None or self.finished_at < self.started_at


@contextmanager
def recorded(engine: Engine, namespace: str, command: str, now: Callable[[], datetime]) -> Iterator[None]:
    """Keep when the command began, and when and with which exit code it ended, also where it fails."""
    _keep(engine, namespace, command, started_at=now())
    code = 1
    try:
        yield
        code = 0
    except typer.Exit as ended:
        code = ended.exit_code
        raise
    finally:
        end: dict[str, Any] = {"finished_at": now(), "exit_code": code}
        if code in SUCCESSES:
            end["succeeded_at"] = end["finished_at"]
        _keep(engine, namespace, command, **end)


def last_runs(engine: Engine, namespace: str | None = None) -> list[LastRun]:
    """What ran, of one namespace or of all, by namespace and command."""
    query = select(command_runs).order_by(command_runs.c.namespace, command_runs.c.command)
    if namespace is not None:
        query = query.where(command_runs.c.namespace == namespace)
    with engine.connect() as connection:
        return [LastRun(**row) for row in connection.execute(query).mappings()]


def prometheus(runs: Iterable[LastRun]) -> str:
    """Prometheus text format 0.0.4. What never happened has no sample: `absent()` is an alarm of its own."""
    found = list(runs)
    lines = []
    for name, meaning, column in _GAUGES:
        known = [(it, getattr(it, column)) for it in found if getattr(it, column) is not None]
        full = f"meterhouse_command_{name}_timestamp_seconds"
        lines += _gauge(full, meaning, [(it, f"{moment.timestamp():.3f}") for it, moment in known])
    codes = [(it, str(it.exit_code)) for it in found if it.exit_code is not None]
    lines += _gauge("meterhouse_command_last_exit_code", "The exit code of the run that ended last.", codes)
    return "".join(f"{line}\n" for line in lines)


def _gauge(name: str, meaning: str, samples: list[tuple[LastRun, str]]) -> list[str]:
    labels = 'namespace="{}",command="{}"'
    points = [f"{name}{{{labels.format(it.namespace, it.command)}}} {value}" for it, value in samples]
    return [f"# HELP {name} {meaning}", f"# TYPE {name} gauge", *points]


def _keep(engine: Engine, namespace: str, command: str, **values: Any) -> None:
    table = command_runs
    mine = update(table).where(table.c.namespace == namespace, table.c.command == command)
    with begin_write(engine) as connection:
        if connection.execute(mine.values(**values)).rowcount:
            return
    try:
        with begin_write(engine) as connection:
            connection.execute(insert(table).values(namespace=namespace, command=command, **values))
    except IntegrityError:  # another run was first
        with begin_write(engine) as connection:
            connection.execute(mine.values(**values))
