"""The command `meterhouse namespaces`. Heavy imports happen inside."""

import getpass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meterhouse_store.terminal import Data, Json, existing, explained, fail, moment, opened_registry, plain, print_table

if TYPE_CHECKING:
    from sqlalchemy import Engine

namespaces = typer.Typer(
    help="Worlds of their own: test or live, and what each may do.", no_args_is_help=True, add_completion=False
)


@namespaces.command("list")
def _list(data: Data = None, as_json: Json = False) -> None:
    """List the namespaces with their kind and switches. Times are UTC."""
    with explained(), opened_registry(existing(data)) as engine:
        found = _found(engine)
    print_table(found, _row, as_json)


@namespaces.command("set")
def _set(
    name: Annotated[str, typer.Argument(help="The namespace.")],
    why: Annotated[str, typer.Option(help="Kept with the change.")],
    data: Data = None,
    rating: Annotated[str | None, typer.Option(metavar="on|off", help="`rate run` and `rate close`.")] = None,
    sync: Annotated[str | None, typer.Option(metavar="on|off", help="Whatever changes something in Stripe.")] = None,
    pausing: Annotated[str | None, typer.Option(metavar="on|off", help="Whether limits stop agents.")] = None,
    as_json: Json = False,
) -> None:
    """Turn something on or off for a namespace; who did it, when and why is kept (`namespaces history`)."""
    from meterhouse_store import switches

    asked = {"rating": rating, "sync": sync, "pausing": pausing}
    states = {switch: state for switch, state in asked.items() if state is not None}
    if not states or not set(states.values()) <= {switches.ON, switches.OFF}:
        raise typer.BadParameter("name --rating, --sync or --pausing, each on or off")
    with explained(), opened_registry(existing(data)) as engine:
        switches.turn(engine, name, states, who=getpass.getuser(), why=why, now=datetime.now(UTC))
        found = [one for one in _found(engine) if one["namespace"] == name]
    print_table(found, _row, as_json)


@namespaces.command("history")
def _history(
    name: Annotated[str, typer.Argument(help="The namespace.")], data: Data = None, as_json: Json = False
) -> None:
    """Show who turned what on or off, when and why. Times are UTC."""
    from meterhouse_store import switches

    with explained(), opened_registry(existing(data)) as engine:
        if name not in {one["namespace"] for one in _found(engine)}:
            fail(f"there is no namespace {name!r}: `meterhouse namespaces list` shows them")
        found = [plain(vars(change)) for change in switches.history(engine, name)]
    print_table(found, _change_row, as_json, f"Nothing was turned on or off in {name}.")


@namespaces.command("roles")
def _roles(
    grant: Annotated[str | None, typer.Option(metavar="ROLE", help="Give --to this role.")] = None,
    revoke: Annotated[str | None, typer.Option(metavar="ROLE", help="Take this role from --to.")] = None,
    to: Annotated[str | None, typer.Option(help="Whom: an account of commands, or an address of the portal.")] = None,
    why: Annotated[str, typer.Option(help="Kept with the change.")] = "",
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Say who may change what: metering, pricing, invoicing, administration; without options, list it.

    A role that nobody has is everybody's. Once somebody has it, others' changes are refused, by commands, pages and
    jobs: give it to the account that `meterhouse jobs` runs as, too, where that is to go on with invoicing.
    """
    from meterhouse_store import roles
    from meterhouse_store.sql import begin_write

    if (grant is not None and revoke is not None) or ((grant or revoke) is None) != (to is None):
        raise typer.BadParameter("name one of --grant and --revoke, and --to")
    settings = existing(data)
    with explained(), opened_registry(settings) as engine:
        if to is not None:
            role, who, now = grant or revoke or "", getpass.getuser(), datetime.now(UTC)
            try:
                with begin_write(engine) as connection:
                    where = connection, settings.namespace
                    roles.change(*where, role, to, granted=grant is not None, who=who, why=why, now=now)
            except ValueError as wrong:
                fail(str(wrong))
        with engine.connect() as connection:
            found = [plain(vars(it)) for it in roles.holders(connection, settings.namespace)]
    print_table(found, _role_row, as_json, "No role is given: everybody may change everything.")


def _role_row(found: dict[str, Any]) -> dict[str, str]:
    return {"role": found["role"], "who": found["person"], "since": moment(found["since"]), "by": found["who"],
            "why": found["why"]}  # fmt: skip


def _found(engine: "Engine") -> list[dict[str, Any]]:
    from meterhouse_store import registry, switches

    rows = []
    for one in registry.namespaces(engine):
        changes = switches.current(engine, one.namespace)
        states = {switch: plain(vars(changes[switch])) if switch in changes else None for switch in switches.SWITCHES}
        rows.append(plain(vars(one)) | states)
    return rows


def _row(found: dict[str, Any]) -> dict[str, str]:
    switches = {name: _state(found[name]) for name in ("rating", "sync", "pausing")}
    return {"namespace": found["namespace"], "kind": found["kind"], **switches}


def _state(change: dict[str, Any] | None) -> str:
    if change is None or change["state"] == "on":
        return "on"
    return f"off: {change['why']}"


def _change_row(change: dict[str, Any]) -> dict[str, str]:
    names = ("switch", "state", "who", "why")
    return {"changed at": moment(change["changed_at"]), **{name: change[name] for name in names}}
