"""Brings to the warehouse how budgets stand, who is paused and which notices wait, for Grafana."""

from collections.abc import Iterator
from decimal import Context, Decimal
from typing import Any, Final

from sqlalchemy import Engine, func, select

from meterhouse_billing import notices
from meterhouse_billing.budget_output import word
from meterhouse_billing.budget_round import Round
from meterhouse_rating.world import World
from meterhouse_store import standing, tables
from meterhouse_store.budgets import UNITS

_STEP: Final = Decimal(1).scaleb(-9)
_WIDE: Final = Context(prec=60)


def copy(world: World, done: Round) -> None:
    """Copy what a round of all customers found. Errors of the warehouse pass through: the next round copies it."""
    now = world.now()
    standing.keep(world.client, standing.BUDGETS, world.namespace, _budgets(done), now)
    standing.keep(world.client, standing.PAUSES, world.namespace, (vars(it) for it in done.pauses), now)
    standing.keep(world.client, standing.NOTICES_DUE, world.namespace, _due(world.engine, world.namespace), now)


def _budgets(done: Round) -> Iterator[dict[str, Any]]:
    for state in done.states:
        it = state.budget
        yield {
            "customer_id": it.customer_id,
            "budget": it.name,
            "agent_id": it.agent_id,
            "measure": it.measure,
            "unit": it.of if it.measure == UNITS else state.currency,
            "per": it.per,
            "is_hard": it.hard,
            "cap": _stored(state.limit),
            "used": _stored(state.used),
            "reserved": _stored(done.reserved(state)),
            "state": word(done, state),
            "trouble": state.trouble,
            "period_start": state.period.start,
            "period_end": state.period.end,
        }


def _due(engine: Engine, namespace: str) -> list[dict[str, Any]]:
    """Deliveries that are not sent, by customer, notice, channel and state."""
    told, sent = tables.notices, tables.notice_deliveries
    by = (sent.c.customer_id, told.c.kind, sent.c.channel, sent.c.state)
    query = (
        select(
            *by,
            func.count().label("deliveries"),
            func.min(told.c.created_at).label("oldest_at"),
            func.min(sent.c.next_attempt_at).label("next_attempt_at"),
        )
        .join(told, told.c.notice_id == sent.c.notice_id)
        .where(sent.c.namespace == namespace, sent.c.state.in_((notices.PENDING, notices.FAILED)))
        .group_by(*by)
    )
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(query).mappings()]


def _stored(amount: Decimal) -> Decimal:
    return amount.quantize(_STEP, context=_WIDE)
