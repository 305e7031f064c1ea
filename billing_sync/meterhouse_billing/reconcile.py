"""`bill reconcile`: rated = invoiced = in Stripe = in the ledger, per invoice, to the minor unit and the unit."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

from meterhouse_billing import records
from meterhouse_billing.amounts import from_stripe
from meterhouse_billing.documents import KIND, METRIC, QUANTITY, Draft, differences
from meterhouse_billing.gateway import StripeRefused
from meterhouse_billing.world import World
from meterhouse_store.numbers import D


@dataclass(frozen=True)
class Row:
    """One rating. Amounts in minor units, None where there is nothing to compare; units per billable metric."""

    customer_id: str
    invoice_id: str
    stripe_invoice_id: str | None
    state: str
    currency: str
    rated_minor: int
    ledger_minor: int
    stripe_minor: int | None
    rated_units: dict[str, Decimal]
    stripe_units: dict[str, Decimal]
    differences: tuple[str, ...]


def reconcile(world: World, drafts: Iterable[Draft]) -> list[Row]:
    """Compare every closed rating with its invoice, with Stripe's, and with what it posted to the ledger."""
    return [_row(world, draft) for draft in drafts]


def _row(world: World, draft: Draft) -> Row:
    found = []
    posted = records.receivable(world.engine, draft)
    if posted != draft.total_minor:
        found.append(f"the ledger's receivable is {posted}, rated {draft.total_minor}")
    row = records.invoice(world.engine, draft.invoice_id)
    stripe_id = row["stripe_invoice_id"] if row else None
    stripe_minor, units = None, {}
    if row is None or stripe_id is None:
        found.append("not invoiced yet")
    else:
        try:
            shown, lines = world.gateway.invoice(stripe_id), world.gateway.lines(stripe_id)
        except StripeRefused as refused:
            if not refused.missing:
                raise
            found.append(f"{stripe_id} is not in Stripe (any more)")
        else:
            found += differences(draft, shown, lines)
            stripe_minor = from_stripe(shown.total, draft.currency)
            units = _sums(
                (line.metadata.get(METRIC, ""), D(line.metadata.get(QUANTITY, "0")))
                for line in lines
                if line.metadata.get(KIND) == "usage"
            )
    return Row(
        customer_id=draft.customer_id,
        invoice_id=draft.invoice_id,
        stripe_invoice_id=stripe_id,
        state=row["state"] if row else "none",
        currency=draft.currency,
        rated_minor=draft.total_minor,
        ledger_minor=posted,
        stripe_minor=stripe_minor,
        rated_units=_sums((line.metric, line.quantity) for line in draft.lines if line.kind == "usage"),
        stripe_units=units,
        differences=tuple(found),
    )


def _sums(pairs: Iterable[tuple[str, Decimal]]) -> dict[str, Decimal]:
    sums: dict[str, Decimal] = defaultdict(Decimal)
    for name, quantity in pairs:
        sums[name] += quantity
    return dict(sums)
