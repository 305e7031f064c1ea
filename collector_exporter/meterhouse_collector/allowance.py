"""`POST /v1/allowance`: may this agent go on for this customer (docs/contracts.md section 5).

The answer is a row of `allowances`, which billing writes; where there is none there is no limit.
"""

import asyncio
import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import Engine, select
from sqlalchemy.exc import SQLAlchemyError

from meterhouse_collector.refusals import FORBIDDEN, MALFORMED, OVERLOADED, Refused
from meterhouse_store import switches, tables
from meterhouse_store.numbers import plain
from meterhouse_store.registry import Credential

LEASE: Final = timedelta(seconds=60)
"""An agent that cannot be reached goes on at most this long with what it was granted."""

_NO_LIMIT: Final[dict[str, Any]] = {
    "decision": "allow",
    "units": None,
    "weights": {},
    "pause_at": "call",
    "on_unreachable": "allow",
    "reason": None,
}


class Allowances:
    """Answers from the SQL database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def answer(self, credential: Credential, body: bytes) -> dict[str, Any]:
        """The reply to a request body. Raises Refused."""
        request = _request(body)
        customer_id, agent_id = request["customer_id"], request.get("agent_id") or ""
        if credential.customers is not None and customer_id not in credential.customers:
            raise Refused(FORBIDDEN, f"this key may not act for customer {customer_id!r}")
        try:
            found = await asyncio.to_thread(self._row, credential.namespace, customer_id, agent_id)
        except SQLAlchemyError as problem:
            raise Refused(OVERLOADED, f"the allowances cannot be read: {type(problem).__name__}") from None
        lease_id = request.get("lease_id") or uuid.uuid4().hex
        expires_at = (datetime.now(UTC) + LEASE).isoformat(timespec="seconds").replace("+00:00", "Z")
        return _NO_LIMIT | found | {"lease_id": lease_id, "expires_at": expires_at}

    def _row(self, namespace: str, customer_id: str, agent_id: str) -> dict[str, Any]:
        """The agent's own allowance, else the one for all agents of the customer; none where pausing is off."""
        if not switches.is_on(self._engine, namespace, switches.PAUSING):
            return {}
        table = tables.allowances
        query = (
            select(table)
            .where(table.c.namespace == namespace, table.c.customer_id == customer_id)
            .where(table.c.agent_id.in_(["", agent_id]))
            .order_by(table.c.agent_id.desc())
            .limit(1)
        )
        with self._engine.connect() as connection:
            row = connection.execute(query).mappings().first()
        if row is None:
            return {}
        units = None if row["units"] is None else plain(row["units"])
        return {name: row[name] for name in _NO_LIMIT} | {"units": units}


def _request(body: bytes) -> dict[str, Any]:
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as problem:
        raise Refused(MALFORMED, f"the body is no JSON: {problem}") from None
    if not isinstance(request, dict):
        raise Refused(MALFORMED, 'the body is a JSON object: {"customer_id": "...", ...}')
    mistakes = [
        f"{name} must be a string of at most 256 bytes of UTF-8"
        for name in ("customer_id", "agent_id", "process_id", "lease_id")
        if not _is_identifier(request.get(name), required=name == "customer_id")
    ]
    if not isinstance(request.get("release", False), bool):
        mistakes.append("release must be true or false")
    if mistakes:
        raise Refused(MALFORMED, "; ".join(mistakes))
    return request


def _is_identifier(value: object, *, required: bool) -> bool:
    if value is None:
        return not required
    if not isinstance(value, str) or (required and not value):
        return False
    try:
        return len(value.encode()) <= 256 and "\0" not in value
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
