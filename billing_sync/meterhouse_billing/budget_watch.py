"""Rounds of budgets, one after the other, for as long as the process lives."""

import signal
import sys
import threading
from collections.abc import Callable
from typing import Final

from clickhouse_connect.driver.exceptions import ClickHouseError
from sqlalchemy.exc import SQLAlchemyError

from meterhouse_billing import budget_mirror, payment_pauses
from meterhouse_billing.budget_round import Round, TooBusy, Watch
from meterhouse_billing.payment_pauses import PauseSettings
from meterhouse_rating.command_line import engine_of, world_of
from meterhouse_store.settings import Settings
from meterhouse_store.warehouse import WarehouseUnavailable

_CONNECT_S: Final = 5.0
"""Not longer, or whoever stops this would have to wait."""
_AGAIN_S: Final = 30.0
"""After a round that failed: a store that is away is not asked every few seconds."""


def watch(settings: Settings, every_s: float, tell: Callable[[Round], None]) -> None:
    """Look every `every_s` seconds until SIGTERM or SIGINT, and tell of rounds that wrote notices.

    A store that is away is waited for: what agents hold stays reserved meanwhile, and is granted as before.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    pauses = PauseSettings()
    engine = engine_of(settings)
    watching: Watch | None = None
    told = ""
    while not stop.is_set():
        wait_s = every_s
        try:
            watching = watching or Watch(world_of(settings, engine, timeout_s=_CONNECT_S))
            for said in payment_pauses.follow(engine, settings.namespace, pauses, watching.world.now()):
                print(said, flush=True)
            done = watching.due()
            if done is not None:
                if done.notices:
                    tell(done)
                budget_mirror.copy(watching.world, done)
            told = ""
        except (ClickHouseError, SQLAlchemyError, WarehouseUnavailable, TooBusy, OSError, ArithmeticError) as problem:
            words = f"budgets wait: {type(problem).__name__}: {problem}"
            if words != told:
                print(words, file=sys.stderr, flush=True)
            watching, told, wait_s = None, words, _AGAIN_S
        stop.wait(wait_s)
    engine.dispose()
