"""Credit notes as Stripe shows them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from meterhouse_billing.taxes import Charged, charged


@dataclass(frozen=True)
class Shown:
    """A credit note as Stripe shows it; amounts in Stripe's unit, the currency upper case."""

    stripe_credit_note_id: str
    status: str
    number: str
    currency: str
    total: int
    pre_payment: int
    refunded: int
    refund_ids: tuple[str, ...]
    outside: int
    balance: int
    tax: Charged
    metadata: Mapping[str, str]
    lines: Mapping[str, int]


def read_note(body: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> Shown:
    """Stripe's credit note object (https://docs.stripe.com/api/credit_notes/object) with all of its lines."""
    refunded = sum(refund["amount_refunded"] for refund in body["refunds"])
    outside = body["out_of_band_amount"] or 0
    credited: dict[str, int] = {}
    for line in lines:
        item = line["invoice_line_item"] or ""
        credited[item] = credited.get(item, 0) + line["amount"]
    return Shown(
        stripe_credit_note_id=body["id"],
        status=body["status"],
        number=body["number"],
        currency=body["currency"].upper(),
        total=body["total"],
        pre_payment=body["pre_payment_amount"],
        refunded=refunded,
        refund_ids=tuple(refund["refund"] for refund in body["refunds"] if refund.get("refund")),
        outside=outside,
        balance=body["post_payment_amount"] - refunded - outside,
        tax=charged(body["total_taxes"]),
        metadata=body["metadata"] or {},
        lines=credited,
    )
