"""The command `meterhouse namespaces`. Heavy imports happen inside."""

import getpass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meterhouse_store.terminal import Data, Json, existing, explained, moment, opened_registry, plain, print_table

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
        found = [plain(vars(change)) for change in switches.history(engine, name)]
    print_table(found, _change_row, as_json, f"Nothing was turned on or off in {name}.")


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
