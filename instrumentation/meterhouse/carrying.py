"""Taking the attribution along where Python does not: into threads, executors, other processes and queues."""

from collections.abc import Mapping
from typing import Any

from meterhouse import forks
from meterhouse.attribution import Function, Scope, Stack, current, hinted, identifier, said
from meterhouse.vocabulary import AGENT_ID, AGENT_NAME, CONVERSATION_ID, CUSTOMER_ID, GRANT, STEP, TASK_ID

_FIELDS = {
    CUSTOMER_ID: "customer",
    AGENT_ID: "agent_id",
    AGENT_NAME: "agent_name",
    CONVERSATION_ID: "conversation",
    STEP: "step",
    TASK_ID: "task",
    GRANT: "grant",
}


def carry(function: Function) -> Function:
    """`function`, which wherever it is called runs under the attribution of now.

        threading.Thread(target=meterhouse.carry(work)).start()
        pool.map(meterhouse.carry(work), pages)
        await loop.run_in_executor(None, meterhouse.carry(work), page)

    It may run in several threads at once, after this scope has ended too. For another process see `carrier`.
    """
    return _Snapshot(said.get(), hinted.get())(function)


def carrier() -> dict[str, str]:
    """The attribution of now for another process or a queue: strings only, an empty dict where nothing is known."""
    known = current()
    found = {name: getattr(known, field) for name, field in _FIELDS.items()}
    return {name: value for name, value in found.items() if value}


def carried(mapping: Mapping[str, Any] | None) -> Scope:
    """A scope with what `carrier` gave elsewhere; other keys are passed over, so that it may be a message's headers,
    None where the message has none.

    Raises ValueError for a value that is no identifier, or no grant.
    """
    changes = {}
    mapping = mapping or {}
    for name, field in _FIELDS.items():
        if mapping.get(name) is not None:
            value = mapping[name]
            changes[field] = _grant(value) if name == GRANT else identifier(value, name)
    return Scope(**changes)


def _grant(value: object) -> str:
    with forks.lock:
        from meterhouse import grants
    grants.read(value)
    return str(value)


class _Snapshot(Scope):
    """Both stacks as they were; one object per run, because it keeps what it replaced."""

    def __init__(self, stack: Stack, hints: Stack) -> None:
        super().__init__()
        self._taken = stack, hints
        self._before: tuple[Stack, Stack] = ((), ())

    def fresh(self) -> "_Snapshot":
        return _Snapshot(*self._taken)

    def _push(self) -> None:
        self._before = said.get(), hinted.get()
        said.set(self._taken[0])
        hinted.set(self._taken[1])

    def _pop(self) -> None:
        said.set(self._before[0])
        hinted.set(self._before[1])
