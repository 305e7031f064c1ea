"""The commands `meterhouse up`, `down`, `jobs`, `customers` and `keys`. Heavy imports happen inside."""

import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from meterhouse.grants import Key
    from meterhouse_store.endpoints import Endpoints
    from meterhouse_store.settings import Settings

DETACH_TIMEOUT_S = 240
DOWN_TIMEOUT_S = 180
PIPED_WIDTH = 100
"""Columns of a table that does not go to a terminal."""

up = typer.Typer(help="Start Meterhouse: warehouse, collector, portal, webhooks and jobs.", add_completion=False)
down = typer.Typer(help="Stop the Meterhouse that `up` started in a data directory.", add_completion=False)
jobs = typer.Typer(help="Rate and bill on a schedule.", add_completion=False)
customers = typer.Typer(help="Register customers and their plans.", no_args_is_help=True, add_completion=False)
keys = typer.Typer(help="Make and revoke the keys that agents report with.", no_args_is_help=True, add_completion=False)

Data = Annotated[Path | None, typer.Option(help="Data directory of `up` (METERHOUSE_DATA).")]
Json = Annotated[bool, typer.Option("--json", help="For machines: one JSON document.")]
Ed25519 = Annotated[
    bool, typer.Option("--ed25519", help="Grants are signed with Ed25519: the collector keeps the public key only.")
]


def _seconds(text: str) -> float:
    """Seconds of 90s, 15m, 2h or 1d."""
    found = re.fullmatch(r"(\d+)([smhd])", text)
    if not found or int(found[1]) == 0:
        raise typer.BadParameter("a number above 0 and s, m, h or d: 60s, 15m, 2h")
    return int(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


def _instant(text: str) -> datetime:
    """An aware time of an ISO date or instant; UTC where it names no zone."""
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter("an ISO date or instant: 2026-10-01 or 2026-10-01T00:00:00+02:00") from None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


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

    Warehouse, collector, portal, webhooks and jobs; what is missing in the
    directory is made. A customer seen for the first time is put on the default
    plan of the starter prices, so that a first call shows up priced; --strict
    leaves it unrated until it is registered.
    """
    from meterhouse_store import stack

    settings = _settings(data)
    with _explained():
        if detach:
            _detached(settings, [*(["--no-jobs"] * no_jobs), *(["--strict"] * strict)], stop_after)
            return
        options = stack.Options(jobs=not no_jobs, strict=strict, stop_after_s=stop_after)
        stack.run(settings, options, _say, lambda found: _welcome(settings, found, "Ctrl-C stops it."))


@down.command()
def _down(data: Data = None) -> None:
    """Stop what `up` started in a data directory, and wait until it has stopped."""
    import os
    import signal

    from meterhouse_store import stack

    settings = _settings(data)
    pid = stack.running_pid(settings.data)
    if pid is None:
        print(f"Nothing runs in {settings.data}.")
        return
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + DOWN_TIMEOUT_S
    while stack.running_pid(settings.data) is not None:
        if time.monotonic() > deadline:
            _fail(f"process {pid} has not stopped within {DOWN_TIMEOUT_S} s; look at {settings.data / 'logs'}")
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

    A round is `rate run --due` and, with STRIPE_API_KEY, `bill run --due`.
    """
    from meterhouse_store import jobs as schedule
    from meterhouse_store.stack import meterhouse_command

    settings = _existing(data)
    with _explained(), _registry(settings):
        pass  # the namespace exists from here on, also where no `up` made it
    schedule.run(settings.data, meterhouse_command(), every, _say)


@customers.command("add")
def _customers_add(
    customer_id: Annotated[str, typer.Argument(metavar="ID", help="The id that agents report, customer.id.")],
    data: Data = None,
    name: Annotated[str | None, typer.Option(help="What stands on invoices; the id where it is not given.")] = None,
    plan: Annotated[str | None, typer.Option(help="A plan of the price book.")] = None,
    currency: Annotated[str | None, typer.Option(help="ISO 4217, such as USD. [the plan's]")] = None,
    time_zone: Annotated[str | None, typer.Option(help="IANA name; the customer's months end there. [UTC]")] = None,
    email: Annotated[str | None, typer.Option(help="Where invoices go.")] = None,
    valid_from: Annotated[
        datetime | None,
        typer.Option(
            parser=_instant,
            metavar="T",
            help="Since when the plan holds: 2026-11-01 or 2026-11-01T00:00:00+01:00, UTC where it names no zone. A "
            "first plan holds from the beginning, a later one from now.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Register a customer, or change what is given of one that is there. May be repeated.

    The plan is one of the price book in force. A contract that has not begun
    yet is replaced by another plan with the same --valid-from.
    """
    from meterhouse_store import registry

    settings = _existing(data)
    with _explained(), _registry(settings) as engine:
        currency = _checked_currency(engine, settings.namespace, customer_id, plan, currency, valid_from)
        customer = registry.add_customer(
            engine,
            settings.namespace,
            customer_id,
            name=name,
            plan=plan,
            currency=currency,
            time_zone=time_zone,
            email=email,
            valid_from=valid_from,
        )
        found = _customers(engine, settings.namespace, customer.customer_id)
    _print(found, _customer_row, as_json)
    if not found[0]["contracts"] and not as_json:
        print(f"No plan yet: usage of {customer_id} stays unrated until `customers add {customer_id} --plan ...`.")


def _checked_currency(
    engine: "Engine",
    namespace: str,
    customer_id: str,
    plan: str | None,
    currency: str | None,
    valid_from: datetime | None,
) -> str | None:
    """The currency that the customer has on its plan; `currency` as it is where there is nothing to compare with.

    The plan is the one given, else the one that the customer is on. Raises PlanRefused where it does not fit.
    """
    from meterhouse_store import plans, registry

    at = valid_from or datetime.now(UTC)
    offer = plans.offered(engine, namespace, at)
    if offer is None or (plan is None and currency is None):
        return currency
    if plan is None:
        begun = [
            contract.plan
            for contract in registry.contracts(engine, namespace)
            if contract.customer_id == customer_id and contract.valid_from <= at
        ]
        if not begun or begun[-1] not in offer.currencies:
            return currency
        plan = begun[-1]
    if currency is None:
        known = [one for one in registry.customers(engine, namespace) if one.customer_id == customer_id]
        currency = known[0].currency if known else None
    return plans.check(offer, customer_id, plan, currency)


@customers.command("withdraw")
def _customers_withdraw(
    customer_id: Annotated[str, typer.Argument(metavar="ID", help="The customer's id.")],
    valid_from: Annotated[
        datetime, typer.Option(parser=_instant, metavar="T", help="When the contract would begin, as `list` shows it.")
    ],
    data: Data = None,
) -> None:
    """Take back a contract that has not begun yet."""
    from meterhouse_store import registry

    settings = _existing(data)
    with _explained(), _registry(settings) as engine:
        gone = registry.withdraw_contract(engine, settings.namespace, customer_id, valid_from)
    print(f"{customer_id} does not go on plan {gone.plan} from {_moment(gone.valid_from.isoformat())}.")


@customers.command("list")
def _customers_list(data: Data = None, as_json: Json = False) -> None:
    """List the customers with their plans. Times are UTC."""
    settings = _existing(data)
    with _explained(), _registry(settings) as engine:
        found = _customers(engine, settings.namespace)
    _print(found, _customer_row, as_json, "No customers yet: `meterhouse customers add ID --plan PLAN`.")


@keys.command("create")
def _keys_create(
    name: Annotated[str, typer.Argument(help="What the key is for, such as support-agent.")],
    data: Data = None,
    for_customers: Annotated[
        str | None,
        typer.Option("--customers", metavar="A,B", help="The only customers it may report for; any if not given."),
    ] = None,
    grants: Annotated[
        bool, typer.Option("--grants", help="It may report only for customers of signed grants; makes a key for them.")
    ] = False,
    ed25519: Ed25519 = False,
    as_json: Json = False,
) -> None:
    """Make a key. Its text is shown now and never again."""
    from meterhouse_store import registry

    settings = _existing(data)
    allowed = None if for_customers is None else [part.strip() for part in for_customers.split(",") if part.strip()]
    with _explained(), _registry(settings) as engine:
        own = _new_grant_key(ed25519) if grants or ed25519 else None
        made, text = registry.create_key(engine, settings.namespace, name, customers=allowed, grant_key=own)
    if as_json:
        signs = {} if own is None else {"grant_key": str(own)}
        print(json.dumps({"credential_id": made.credential_id, "key": text} | signs))
        return
    whom = "any customer" if own is None else "the customers of its grants"
    print(f"{made.credential_id} ({made.name}): for {', '.join(made.customers) if made.customers else whom}")
    print(f"\nexport METERHOUSE_API_KEY={text}")
    if own is not None:
        print(f"\nFor the front end that signs the grants, and for nobody else:\n\nexport METERHOUSE_GRANT_KEY={own}")
    print("\nThis is the only time it is shown.")


@keys.command("grant-key")
def _keys_grant_key(
    credential_id: Annotated[str, typer.Argument(metavar="KEY", help="The id that `keys list` shows.")],
    data: Data = None,
    ed25519: Ed25519 = False,
    take: Annotated[
        str | None,
        typer.Option("--take", metavar="TEXT", help="A grant key that exists: for several keys, one front end."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a key that signs grants, one more where there is one. From now on KEY reports only for their customers."""
    from meterhouse_store import registry

    with _explained(), _registry(_existing(data)) as engine:
        own = _new_grant_key(ed25519) if take is None else _taken_grant_key(take)
        bound = registry.add_grant_key(engine, credential_id, own)
    if as_json:
        signs = {} if own.kind == "ed25519-public" else {"grant_key": str(own)}
        print(json.dumps({"credential_id": credential_id, "grant_key_id": own.key_id} | signs))
        return
    print(f"{credential_id} ({bound.name}) takes grants of {', '.join(_grant_key_ids(bound.grant_keys))}.")
    if take is None:
        print(f"\nexport METERHOUSE_GRANT_KEY={own}\n\nThis is the only time it is shown.")


@keys.command("list")
def _keys_list(data: Data = None, as_json: Json = False) -> None:
    """List the keys, without their text. Times are UTC."""
    from meterhouse_store import registry

    settings = _existing(data)
    with _explained(), _registry(settings) as engine:
        found = [_plain(vars(credential)) for credential in registry.credentials(engine, settings.namespace)]
    for credential in found:
        del credential["key_sha256"]
        bound = credential.pop("grant_keys")
        credential["grant_keys"] = None if bound is None else _grant_key_ids(bound)
    _print(found, _key_row, as_json, "No keys yet: `meterhouse keys create NAME`.")


@keys.command("revoke")
def _keys_revoke(
    credential_id: Annotated[str, typer.Argument(metavar="KEY", help="The id that `keys list` shows.")],
    data: Data = None,
    grant_key: Annotated[
        str | None, typer.Option("--grant-key", metavar="ID", help="Only this one of its grant keys.")
    ] = None,
) -> None:
    """Revoke a key: what is sent with it from now on is refused."""
    from meterhouse_store import registry

    with _explained(), _registry(_existing(data)) as engine:
        if grant_key is not None:
            left = registry.revoke_grant_key(engine, credential_id, grant_key)
            print(
                f"{credential_id} takes no grants of {grant_key} any more; {len(left.grant_keys or ())} keys are left."
            )
            return
        revoked = registry.revoke_key(engine, credential_id)
    print(f"{revoked.credential_id} ({revoked.name}) is revoked since {revoked.revoked_at:%Y-%m-%d %H:%M:%S} UTC.")


def _new_grant_key(ed25519: bool) -> "Key":
    from meterhouse import grants
    from meterhouse_store.registry import RegistryError

    made = grants.new_key(grants.ED25519 if ed25519 else grants.HMAC)
    try:
        made.verifying()
    except ValueError as problem:
        raise RegistryError(str(problem)) from None
    return made


def _taken_grant_key(text: str) -> "Key":
    from meterhouse.grants import Key
    from meterhouse_store.registry import RegistryError

    try:
        return Key.parse(text)
    except ValueError as problem:
        raise RegistryError(str(problem)) from None


def _grant_key_ids(keys: Iterable[str] | None) -> list[str]:
    """Their ids; the keys themselves are not shown."""
    from meterhouse.grants import Key

    return [Key.parse(text).key_id for text in keys or ()]


def _customers(engine: "Engine", namespace: str, only: str | None = None) -> list[dict[str, Any]]:
    from meterhouse_store import registry

    contracts: dict[str, list[dict[str, Any]]] = {}
    for contract in registry.contracts(engine, namespace):
        contracts.setdefault(contract.customer_id, []).append(_plain(vars(contract)))
    return [
        _plain(vars(customer)) | {"contracts": contracts.get(customer.customer_id, [])}
        for customer in registry.customers(engine, namespace)
        if only is None or customer.customer_id == only
    ]


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    """For JSON: times in ISO 8601, UTC."""
    return {
        name: value.isoformat(timespec="seconds") if isinstance(value, datetime) else value
        for name, value in record.items()
    }


def _customer_row(customer: dict[str, Any]) -> dict[str, str]:
    plans = []
    for contract in customer["contracts"]:
        always = contract["valid_from"].startswith("1970-01-01")
        plans.append(contract["plan"] if always else f"{contract['plan']} from {_moment(contract['valid_from'])}")
    return {
        "customer": customer["customer_id"],
        "name": customer["name"],
        "plans": "\n".join(plans) or "none",
        "currency": customer["currency"],
        "time zone": customer["time_zone"],
        "email": customer["email"] or "",
        "registered by": customer["origin"],
    }


def _key_row(credential: dict[str, Any]) -> dict[str, str]:
    return {
        "key": credential["credential_id"],
        "name": credential["name"],
        "customers": "any" if credential["customers"] is None else ", ".join(credential["customers"]),
        "grants of": "" if credential["grant_keys"] is None else ", ".join(credential["grant_keys"]) or "nobody",
        "valid from": _moment(credential["valid_from"]),
        "revoked at": _moment(credential["revoked_at"] or ""),
    }


def _moment(iso: str) -> str:
    """A UTC time as people write it: the date, and the time of day where it is not midnight."""
    return iso[:16].replace("T", " ").removesuffix(" 00:00")


def _detached(settings: "Settings", flags: list[str], stop_after: float | None) -> None:
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
                _fail(f"Meterhouse did not start:\n{last_lines(log)}")
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
        "data": found.data,
        "logs": f"{found.data}/logs",
    }
    print(f"Meterhouse runs, namespace {found.namespace}. {how_to_stop}\n")
    for name, value in lines.items():
        print(f"  {name:<10} {value}")
    print(
        "\nThis meters an agent as it is, for the customer acme (without one, its usage waits in suspense):\n\n"
        f"  export METERHOUSE_ENDPOINT={found.collector.http}\n"
        f"  export METERHOUSE_API_KEY={found.collector.api_key}\n"
        "  export METERHOUSE_CUSTOMER=acme\n"
        f"  {_command()} run -- python agent.py\n"
    )
    sys.stdout.flush()


def _existing(data: Path | None) -> "Settings":
    """The settings of a Meterhouse that is there; ends the command where there is none."""
    from meterhouse_store.settings import NoData, load_existing

    settings = _settings(data)
    try:
        load_existing(data)
    except NoData as problem:
        _fail(str(problem))
    return settings


def _settings(data: Path | None) -> "Settings":
    from pydantic import ValidationError

    from meterhouse_store.settings import load

    try:
        return load(data)
    except ValidationError as problem:
        for error in problem.errors():
            print(f"METERHOUSE_{'_'.join(map(str, error['loc'])).upper()}: {error['msg']}", file=sys.stderr)
        raise typer.Exit(2) from None


@contextmanager
def _registry(settings: "Settings") -> "Iterator[Engine]":
    """The SQL database with the namespace in it: strict, where nothing made it before."""
    from meterhouse_store import registry
    from meterhouse_store.sql import open_engine

    engine = open_engine(settings)
    try:
        if registry.namespace(engine, settings.namespace) is None:
            registry.ensure_namespace(engine, settings.namespace)
        yield engine
    finally:
        engine.dispose()


@contextmanager
def _explained() -> Iterator[None]:
    """Errors that have a sentence for the person end the command with it."""
    from sqlalchemy.exc import OperationalError

    from meterhouse_store.plans import PlanRefused
    from meterhouse_store.registry import RegistryError
    from meterhouse_store.sql import SchemaMismatch
    from meterhouse_store.stack import AlreadyRunning
    from meterhouse_store.supervisor import PartFailed

    try:
        yield
    except (RegistryError, PlanRefused, SchemaMismatch, AlreadyRunning, PartFailed) as problem:
        _fail(str(problem))
    except OperationalError as problem:
        _fail(f"the SQL database cannot be used: {problem.orig}")


def _fail(sentence: str) -> None:
    print(sentence, file=sys.stderr)
    raise typer.Exit(1)


def _say(line: str) -> None:
    print(line, flush=True)


def _print(
    found: list[dict[str, Any]],
    row_of: Callable[[dict[str, Any]], dict[str, str]],
    as_json: bool,
    when_empty: str = "",
) -> None:
    if as_json:
        print(json.dumps(found, indent=2))
        return
    if not found:
        print(when_empty)
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    rows = [row_of(one) for one in found]
    for heading in rows[0]:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*row.values())
    console = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH)
    with console.capture() as drawn:
        console.print(table)
    print("\n".join(line.rstrip() for line in drawn.get().splitlines() if line.strip()))
