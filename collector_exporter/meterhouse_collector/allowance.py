"""`POST /v1/allowance`: may this agent go on for this customer (docs/contracts.md section 5).

What a customer may use is a row of `allowances`, which billing writes; where there is none there is no limit. What an
agent is granted of it is a row of `leases`, which is on disk before the agent knows of it.
"""

import asyncio
import json
import uuid
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import Engine, insert, select, update
from sqlalchemy.exc import SQLAlchemyError

from meterhouse_collector.foreign.attributes import printed
from meterhouse_collector.refusals import FORBIDDEN, MALFORMED, OVERLOADED, Refused
from meterhouse_store import reservations, switches, tables
from meterhouse_store.access import Credential
from meterhouse_store.numbers import D, plain
from meterhouse_store.reservations import Answer, Held, Limit, decide
from meterhouse_store.sql import begin_write

METERS: Final = 200
"""So many meters an agent may say that it used."""
MOST: Final = 10**18

_IDENTIFIERS: Final = ("customer_id", "agent_id", "process_id", "lease_id")
_NO_LIMIT: Final[dict[str, Any]] = {"pauses": [], "limits": [], "pause_at": "call", "on_unreachable": "allow"}


class Allowances:
    """Answers from the SQL database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def answer(self, credential: Credential, body: bytes) -> dict[str, Any]:
        """The reply to a request body. Raises Refused."""
        request = _request(body)
        customer_id = request["customer_id"]
        if credential.customers is not None and customer_id not in credential.customers:
            raise Refused(FORBIDDEN, f"this key may not act for customer {customer_id!r}")
        try:
            return await asyncio.to_thread(self._answer, credential.namespace, request, datetime.now(UTC))
        except SQLAlchemyError as problem:
            raise Refused(OVERLOADED, f"the allowances cannot be read: {type(problem).__name__}") from None

    def _answer(self, namespace: str, request: dict[str, Any], now: datetime) -> dict[str, Any]:
        row, agent_id = self._row(namespace, request["customer_id"]), request.get("agent_id") or ""
        limits = [it for found in row["limits"] if (it := Limit.of_json(found)).is_about(agent_id)]
        paused = next((it["reason"] for it in row["pauses"] if it["agent_id"] in ("", agent_id)), None)
        lease_id, answer = request.get("lease_id") or uuid.uuid4().hex, Answer(paused is None, paused)
        if limits:
            lease_id, answer = self._reserve(namespace, request, agent_id, paused, now)
        lasts = reservations.LASTS if answer.allowed else reservations.PAUSE_LASTS
        return {
            "decision": "allow" if answer.allowed else "pause",
            "lease_id": lease_id,
            "expires_at": (now + lasts).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "units": None if answer.units is None else plain(answer.units),
            "weights": {meter: plain(weight) for meter, weight in answer.weights.items()},
            "pause_at": row["pause_at"],
            "on_unreachable": row["on_unreachable"],
            "reason": answer.reason,
        }

    def _row(self, namespace: str, customer_id: str) -> Mapping[str, Any]:
        """The customer's allowance; no limit where there is none, or where pausing is off."""
        if not switches.is_on(self._engine, namespace, switches.PAUSING):
            return _NO_LIMIT
        table = tables.allowances
        query = select(table).where(table.c.namespace == namespace, table.c.customer_id == customer_id)
        with self._engine.connect() as connection:
            found = connection.execute(query).mappings().first()
        return _NO_LIMIT if found is None else dict(found)

    def _reserve(
        self, namespace: str, request: dict[str, Any], agent_id: str, paused: str | None, now: datetime
    ) -> tuple[str, Answer]:
        """Decide, and write what is granted before anybody knows of it. The customer's questions come one by one."""
        allowances, leases, customer_id = tables.allowances, tables.leases, request["customer_id"]
        with begin_write(self._engine) as connection:
            # On SQLite the transaction is the only one that writes; on PostgreSQL the customer's row is the lock.
            is_it = (allowances.c.namespace == namespace) & (allowances.c.customer_id == customer_id)
            row = connection.execute(select(allowances).where(is_it).with_for_update()).mappings().first()
            limits = [Limit.of_json(it) for it in (row["limits"] if row else ())]
            query = select(leases).where(leases.c.namespace == namespace, leases.c.customer_id == customer_id)
            held = {it["lease_id"]: Held.of_row(dict(it)) for it in connection.execute(query).mappings()}
            known = held.get(request.get("lease_id") or "")
            # A lease of before there was a limit is not gone on with: it does not say what was used since.
            mine, keeps = Held(uuid.uuid4().hex, agent_id, now), {}
            if known is not None and known.agent_id == agent_id:
                told = {meter: Decimal(quantity) for meter, quantity in request.get("used", {}).items()}
                # A question that was overtaken by a later one does not make less of what was used.
                used = {**known.used} | {meter: max(it, known.used.get(meter, it)) for meter, it in told.items()}
                mine, keeps = replace(known, used=used, granted={}), reservations.kept(limits, known, used)
            answer = Answer(False, paused)
            if request.get("release", False):
                answer = Answer(True)
            elif paused is None:
                others = [it for it in held.values() if it.lease_id != mine.lease_id]
                answer = decide([it for it in limits if it.is_about(agent_id)], [*others, mine], now, keeps)
            # What is not granted ends now: from here on only its usage has to arrive.
            mine = replace(mine, granted=answer.granted, expires_at=now + reservations.LASTS if answer.granted else now)
            written = {"granted": _texts(mine.granted), "used": _texts(mine.used), "expires_at": mine.expires_at}
            named = {"namespace": namespace, "lease_id": mine.lease_id}
            if mine.lease_id in held:
                connection.execute(update(leases).filter_by(**named).values(**written))
            elif answer.granted:
                who = {"customer_id": customer_id, "agent_id": agent_id, "process_id": request.get("process_id") or ""}
                connection.execute(insert(leases).values(**named, **who, **written, arrived={}, granted_at=now))
        return mine.lease_id, answer


def _texts(numbers: Mapping[str, Decimal]) -> dict[str, str]:
    return {name: plain(number) for name, number in numbers.items()}


def _request(body: bytes) -> dict[str, Any]:
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as problem:
        raise Refused(MALFORMED, f"the body is no JSON: {problem}") from None
    if not isinstance(request, dict):
        raise Refused(MALFORMED, 'the body is a JSON object: {"customer_id": "...", ...}')
    mistakes = [
        f"{name} must be a string of at most 256 bytes of UTF-8"
        for name in _IDENTIFIERS
        if not _is_identifier(request.get(name), required=name == "customer_id")
    ]
    if not isinstance(request.get("release", False), bool):
        mistakes.append("release must be true or false")
    if not _are_quantities(request.get("used", {})):
        mistakes.append(f"used must be an object of at most {METERS} meters, each with a quantity as a string")
    if mistakes:
        raise Refused(MALFORMED, "; ".join(mistakes))
    # As usage is stored: limits are for the customers and agents that stand there.
    return request | {name: printed(request[name]) for name in _IDENTIFIERS if request.get(name)}


def _is_identifier(value: object, *, required: bool) -> bool:
    if value is None:
        return not required
    if not isinstance(value, str) or (required and not value):
        return False
    try:
        return len(value.encode()) <= 256
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def _are_quantities(value: object) -> bool:
    if not isinstance(value, dict) or len(value) > METERS:
        return False
    for meter, quantity in value.items():
        if (
            not _is_identifier(meter, required=True)
            or "\0" in meter
            or not isinstance(quantity, str)
            or len(quantity) > 64
        ):
            return False
        try:
            if not 0 <= D(quantity) <= MOST:
                return False
        except ValueError:
            return False
    return True
