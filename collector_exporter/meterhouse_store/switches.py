"""What a namespace may do: rating, sync (calls to Stripe) and pausing of agents, each on unless it was turned off.

Every change is a row that says who made it and why; the latest one counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import Connection, Engine, bindparam, insert, select

from meterhouse_store.registry import RegistryError
from meterhouse_store.sql import begin_write
from meterhouse_store.tables import namespace_switches, namespaces

RATING: Final = "rating"
SYNC: Final = "sync"
PAUSING: Final = "pausing"
SWITCHES: Final = (RATING, SYNC, PAUSING)
ON: Final = "on"
OFF: Final = "off"
RESTORED: Final = "restored"
"""How the reason begins with which a restore turns sync off."""

_CHANGES: Final = (
    select(namespace_switches)
    .where(namespace_switches.c.namespace == bindparam("namespace"))
    .order_by(namespace_switches.c.changed_at, namespace_switches.c.switch)
)
"""Built once: it is asked for before each call to Stripe."""


@dataclass(frozen=True)
class Change:
    """A switch as somebody set it."""

    namespace: str
    switch: str
    changed_at: datetime
    state: str
    who: str
    why: str


class SwitchedOff(RuntimeError):
    """The namespace does not do this now; the text says who turned it off, when and why, and how to turn it on."""

    def __init__(self, change: Change) -> None:
        super().__init__(
            f"{change.switch} of namespace {change.namespace} is off since {change.changed_at:%Y-%m-%d %H:%M} UTC "
            f"(by {change.who}: {change.why}): "
            f"`meterhouse namespaces set {change.namespace} --{change.switch} on --why ...`"
        )
        self.change = change


def turn(engine: Engine, namespace: str, states: dict[str, str], *, who: str, why: str, now: datetime) -> None:
    """Set switches (name -> on or off) of a namespace, all at once.

    Raises RegistryError where there is no such namespace, or for a reason that says nothing.
    """
    if not why.strip():
        raise RegistryError("say why: it is kept with the change")
    with begin_write(engine) as connection:
        if connection.execute(select(namespaces).where(namespaces.c.namespace == namespace)).first() is None:
            raise RegistryError(f"there is no namespace {namespace!r}: `meterhouse namespaces list` shows them")
        for switch, state in states.items():
            record(connection, namespace, switch, state, who=who, why=why, now=now)


def record(
    connection: Connection, namespace: str, switch: str, state: str, *, who: str, why: str, now: datetime
) -> None:
    """Set one switch in a transaction that writes."""
    latest = _latest(connection, namespace).get(switch)
    if latest is not None:  # in their order, whatever the clock does
        now = max(now, latest.changed_at + timedelta(microseconds=1))
    connection.execute(
        insert(namespace_switches).values(
            namespace=namespace,
            switch=switch,
            changed_at=now.astimezone(UTC),
            state=state,
            who=who[:128],
            why=why[:500],
        )
    )


def current(engine: Engine, namespace: str) -> dict[str, Change]:
    """Switch -> its latest change; a switch that nobody set is not in it, and on."""
    with engine.connect() as connection:
        return _latest(connection, namespace)


def is_on(engine: Engine, namespace: str, switch: str) -> bool:
    """Whether the namespace does this."""
    change = current(engine, namespace).get(switch)
    return change is None or change.state == ON


def require(engine: Engine, namespace: str, switch: str) -> None:
    """Raise SwitchedOff where the namespace does not do this."""
    require_in(history(engine, namespace), switch)


def require_in(found: Sequence[Change], switch: str) -> None:
    """`require` of a namespace whose changes are known."""
    change = {it.switch: it for it in found}.get(switch)
    if change is not None and change.state != ON:
        raise SwitchedOff(change)


def history(engine: Engine, namespace: str) -> list[Change]:
    """All changes of a namespace, oldest first."""
    with engine.connect() as connection:
        return changes(connection, namespace)


def changes(connection: Connection, namespace: str) -> list[Change]:
    """`history` within a transaction."""
    return [Change(**row) for row in connection.execute(_CHANGES, {"namespace": namespace}).mappings()]


def _latest(connection: Connection, namespace: str) -> dict[str, Change]:
    return {it.switch: it for it in changes(connection, namespace)}
