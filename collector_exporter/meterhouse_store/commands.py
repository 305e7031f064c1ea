"""The commands `meterhouse up`, `down` and `jobs`. Heavy imports happen inside."""

import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from meterhouse_store.terminal import Data, existing, explained, fail, opened_registry, say, settings_of

if TYPE_CHECKING:
    from meterhouse_store.endpoints import Endpoints
    from meterhouse_store.settings import Settings

DETACH_TIMEOUT_S = 240
DOWN_TIMEOUT_S = 180

up = typer.Typer(
    help="Start Meterhouse: warehouse, collector, portal, webhooks, prices and jobs.", add_completion=False
)
down = typer.Typer(help="Stop the Meterhouse that `up` started in a data directory.", add_completion=False)
jobs = typer.Typer(help="Rate and bill on a schedule.", add_completion=False)


def _seconds(text: str) -> float:
    """Seconds of 90s, 15m, 2h or 1d."""
    found = re.fullmatch(r"(\d+)([smhd])", text)
    if not found or int(found[1]) == 0:
        raise typer.BadParameter("a number above 0 and s, m, h or d: 60s, 15m, 2h")
    return int(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


@up.command()
def _up(
    data: Data = None,
    no_jobs: Annotated[bool, typer.Option("--no-jobs", help="Do not rate and bill on a schedule.")] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Leave usage of customers that are not registered unrated.")
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Return when everything runs; stop with `down`.")] = False,
    stop_after: Annotated[
        float | None, typer.Option(parser=_seconds, metavar="DURATION", help="Stop by itself: 90s, 15m, 2h.")
    ] = None,
) -> None:
    """Start Meterhouse in a data directory, on this host only.

    Warehouse, collector, portal, webhooks, price API and jobs; what is missing in the
    directory is made. A customer seen for the first time is put on the default
    plan of the starter prices, so that a first call shows up priced; --strict
    leaves it unrated until it is registered.
    """
    from meterhouse_store import stack

    settings = settings_of(data)
    with explained():
        if detach:
            _detached(settings, [*(["--no-jobs"] * no_jobs), *(["--strict"] * strict)], stop_after)
            return
        options = stack.Options(jobs=not no_jobs, strict=strict, stop_after_s=stop_after)
        stack.run(settings, options, say, lambda found: _welcome(settings, found, "Ctrl-C stops it."))


@down.command()
def _down(data: Data = None) -> None:
    """Stop what `up` started in a data directory, and wait until it has stopped."""
    import os
    import signal

    from meterhouse_store import stack

    settings = settings_of(data)
    pid = stack.running_pid(settings.data)
    if pid is None:
        print(f"Nothing runs in {settings.data}.")
        return
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + DOWN_TIMEOUT_S
    while stack.running_pid(settings.data) is not None:
        if time.monotonic() > deadline:
            fail(f"process {pid} has not stopped within {DOWN_TIMEOUT_S} s; look at {settings.data / 'logs'}")
        time.sleep(0.1)
    print(f"Stopped. The data stays in {settings.data}.")


@jobs.command()
def _jobs(
    data: Data = None,
    every: Annotated[
        float, typer.Option(parser=_seconds, metavar="DURATION", help="How often a round begins: 60s, 5m, 1h.")
    ] = "60s",  # type: ignore[assignment]  # typer parses the default too
) -> None:
    """Rate what is due, again and again, and bill it where Stripe is configured.

    A round is `rate run --due`, with STRIPE_API_KEY `bill run --due`,
    `credits top-up-due` and `bill sync`, then `notices send`,
    `warehouse rollup` and `portal packs`.
    Beside the rounds runs `budgets watch`.
    """
    from meterhouse_store import jobs as schedule
    from meterhouse_store.stack import meterhouse_command

    settings = existing(data)
    with explained(), opened_registry(settings):
        pass  # the namespace exists from here on, also where no `up` made it
    schedule.run(settings.data, meterhouse_command(), every, say)


def _detached(settings: "Settings", flags: list[str], stop_after: float | None) -> None:
    import shutil
    import subprocess

    from meterhouse_store import endpoints, stack
    from meterhouse_store.supervisor import last_lines

    if (pid := stack.running_pid(settings.data)) is not None:
        raise stack.AlreadyRunning(f"Meterhouse already runs in {settings.data} (process {pid})")
    logs = settings.data / "logs"
    logs.mkdir(parents=True, exist_ok=True, mode=0o700)
    settings.data.chmod(0o700)
    if stop_after is not None:
        flags = [*flags, "--stop-after", f"{stop_after:.0f}s"]
    with open(logs / "up.log", "ab") as log:
        process = subprocess.Popen(
            [*stack.meterhouse_command(), "up", "--data", str(settings.data), *flags],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + DETACH_TIMEOUT_S
    while not stack.is_ready(settings.data):
        if process.poll() is not None or time.monotonic() > deadline:
            process.terminate()
            with open(logs / "up.log", "rb") as log:
                free = shutil.disk_usage(logs).free // 1_000_000
                silent = f"it wrote nothing into {logs / 'up.log'}; of its disk {free:,} MB are free"
                fail(f"Meterhouse did not start:\n{last_lines(log) or silent}")
        time.sleep(0.1)
    found = endpoints.read(settings.data)
    if found is not None:
        _welcome(settings, found, f"`{_command()} down --data {settings.data}` stops it.")


def _command() -> str:
    """What a person types to call this installation, whose environment need not be active."""
    import shutil

    return "meterhouse" if shutil.which("meterhouse") else str(Path(sys.executable).with_name("meterhouse"))


def _welcome(settings: "Settings", found: "Endpoints", how_to_stop: str) -> None:
    from meterhouse_store.stack import read_secrets

    token = read_secrets(settings.data)["portal_token"]
    lines = {
        "portal": f"{found.portal.url}/?token={token}",
        "OTLP": f"{found.collector.http} (HTTP), {found.collector.grpc} (gRPC)",
        "warehouse": f"{found.warehouse.url} (ClickHouse HTTP; users and passwords in run/endpoints.json)",
        "webhooks": found.webhooks.url,
        "prices": f"{found.prices.url}/v1/openapi.json (keys: `meterhouse keys create NAME --role pricing`)",
        "data": found.data,
        "logs": f"{found.data}/logs",
    }
    print(f"Meterhouse runs, namespace {found.namespace}. {how_to_stop}\n")
    for name, value in lines.items():
        print(f"  {name:<10} {value}")
    print(
        "\nThis meters an agent as it is, for the customer acme (without one, its usage waits in suspense).\n"
        "`meterhouse` is the one of the agent's own environment; `pip install` it there:\n\n"
        f"  export METERHOUSE_ENDPOINT={found.collector.http}\n"
        f"  export METERHOUSE_API_KEY={found.collector.api_key}\n"
        "  export METERHOUSE_CUSTOMER=acme\n"
        "  meterhouse run -- python agent.py\n"
    )
    sys.stdout.flush()
