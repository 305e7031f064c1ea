"""What billing passes around: drafts of rated invoices, invoices and lines as Stripe shows them, their comparison."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from meterhouse_billing import taxes
from meterhouse_billing.amounts import to_stripe
from meterhouse_billing.items import Item, items
from meterhouse_billing.lines import UNSAID, Line, Tax
from meterhouse_rating import periods
from meterhouse_rating.ids import digest
from meterhouse_rating.periods import Period
from meterhouse_store.numbers import plain

# Metadata that leads from Stripe's objects back to ours.
LINE_ID = "meterhouse_line_id"
INVOICE_ID = "meterhouse_invoice_id"
NAMESPACE = "meterhouse_namespace"
CUSTOMER_ID = "meterhouse_customer_id"
RATING_ID = "meterhouse_rating_id"
RESULT = "meterhouse_result_sha256"
ISSUE = "meterhouse_issue"
LINES = "meterhouse_lines"
COMPLETENESS = "meterhouse_completeness"
MAX_METADATA = 500
"""Characters of a value: https://docs.stripe.com/api/metadata"""
KIND, METRIC, QUANTITY, UNIT = "kind", "metric", "quantity", "unit"


@dataclass(frozen=True)
class Draft:
    """A closed rating to be invoiced; the period is half-open, the currency upper case.

    `completeness` says in a sentence whether the usage was all there when it was closed; '' where nobody asked then.
    `automatic_tax`: Stripe computes tax on it. `time_zone` is the customer's.
    """

    rating_id: str
    namespace: str
    customer_id: str
    period_start: datetime
    period_end: datetime
    currency: str
    total_minor: int
    result_sha256: str
    lines: tuple[Line, ...]
    completeness: str = ""
    automatic_tax: bool = False
    time_zone: str = "UTC"

    @property
    def period(self) -> str:
        """The period for people, in the customer's time zone."""
        return periods.shown(Period(self.period_start, self.period_end), self.time_zone)

    @property
    def asked(self) -> str:
        """The period as `--period` takes it."""
        return periods.asked(Period(self.period_start, self.period_end), self.time_zone)

    @cached_property
    def invoice_id(self) -> str:
        return digest(["invoice", self.rating_id])

    @cached_property
    def items(self) -> tuple[Item, ...]:
        """The lines as they are put on Stripe's invoice. Raises NotTaxable where automatic tax cannot be computed."""
        if not self.automatic_tax:
            return items(self.lines)
        return items(self.lines, self.currency, taxes.net(self.lines, self.currency))

    @cached_property
    def products(self) -> tuple[Tax, ...]:
        """The tax of the items that say any: their products have to be in Stripe."""
        return tuple(sorted({item.tax for item in self.items if _is_taxed(item)}, key=lambda tax: tax.product))

    @cached_property
    def content_sha256(self) -> str:
        """What the invoice says: another one after the period was rated anew."""
        lines = [
            [line.line_id, text(line), plain(line.quantity), line.amount_minor, line.tax.behaviour, line.tax.code]
            for line in self.lines
        ]
        return digest([self.result_sha256, self.currency, self.total_minor, lines, self.automatic_tax])

    def metadata(self, issue: int) -> dict[str, str]:
        """What Stripe's invoice carries to be found again."""
        named = {NAMESPACE: self.namespace, INVOICE_ID: self.invoice_id, CUSTOMER_ID: self.customer_id}
        return named | {ISSUE: str(issue)}

    def described(self, issue: int) -> dict[str, str]:
        """All metadata of Stripe's invoice: to be found, where it comes from, how complete its usage was."""
        stated = {COMPLETENESS: self.completeness[:MAX_METADATA]} if self.completeness else {}
        return self.metadata(issue) | {RATING_ID: self.rating_id, RESULT: self.result_sha256} | stated

    def stripe_lines(self) -> list[dict[str, Any]]:
        """The lines as parameters of `add_lines`. Raises NotPayable for an amount that Stripe cannot take."""
        # Stripe's line periods include both ends, ours the first only.
        period = {"start": int(self.period_start.timestamp()), "end": int(self.period_end.timestamp()) - 1}
        return [
            {
                **self._price(item),
                "description": item.text,
                "discountable": False,
                "period": period,
                "metadata": {
                    LINE_ID: item.item_id,
                    LINES: str(len(item.line_ids)),
                    KIND: item.kind,
                    METRIC: item.metric,
                    QUANTITY: plain(item.quantity),
                    UNIT: item.unit,
                },
            }
            for item in self.items
        ]

    def _price(self, item: Item) -> dict[str, Any]:
        """An amount or, where the book says how it is taxed, a price of one: amounts alone carry no tax in Stripe."""
        amount, currency = to_stripe(item.amount_minor, self.currency), self.currency.lower()
        if not _is_taxed(item):
            return {"amount": amount}
        price: dict[str, Any] = {"currency": currency, "product": item.tax.product, "unit_amount": amount}
        if item.tax.behaviour:
            price["tax_behavior"] = item.tax.behaviour
        return {"price_data": price, "quantity": 1}


def _is_taxed(item: Item) -> bool:
    return item.amount_minor >= 0 and item.tax != UNSAID


@dataclass(frozen=True)
class StripeLine:
    """A line as Stripe shows it; amounts in Stripe's unit, the currency upper case."""

    line_item_id: str
    amount: int
    currency: str
    metadata: Mapping[str, str]
    contained: int = 0
    """Tax within the amount."""
    description: str = ""
    period_start: datetime | None = None


@dataclass(frozen=True)
class StripeInvoice:
    """An invoice as Stripe shows it; amounts in Stripe's unit, the currency upper case."""

    stripe_invoice_id: str
    status: str
    currency: str
    total: int
    amount_paid: int
    amount_remaining: int
    credited: int
    attempt_count: int
    customer: str
    metadata: Mapping[str, str]
    number: str | None
    hosted_url: str | None
    finalised_at: datetime | None
    paid_at: datetime | None
    tax: taxes.Charged = taxes.NONE
    automatic_tax: bool = False
    tax_status: str | None = None
    """Of automatic tax: complete, failed or requires_location_inputs."""
    subscription: str | None = None
    """Of an invoice that Stripe made of a subscription, as is the period."""
    period_start: datetime | None = None
    period_end: datetime | None = None
    due_at: datetime | None = None


def text(line: Line) -> str:
    """What the customer reads of a line: `Output tokens (model gpt-5-mini): 1,234 tokens`."""
    return items([line])[0].text


def differences(draft: Draft, invoice: StripeInvoice, lines: Sequence[StripeLine]) -> list[str]:
    """Everything in which Stripe's invoice is not the rated one, to the minor unit; empty when it is."""
    found = []
    if invoice.metadata.get(INVOICE_ID) != draft.invoice_id:
        found.append(f"{invoice.stripe_invoice_id} carries the id of another invoice")
    if invoice.currency != draft.currency:
        found.append(f"the invoice is in {invoice.currency}, rated in {draft.currency}")
    total = to_stripe(draft.total_minor, draft.currency)
    if sum(line.amount_minor for line in draft.lines) != draft.total_minor:
        found.append(f"the rated lines do not add up to the rated total of {draft.total_minor}")
    if invoice.total - invoice.tax.added != total:
        before = " before tax" if invoice.tax.added else ""
        found.append(f"Stripe's total is {invoice.total - invoice.tax.added}{before}, rated {total}")
    return found + _tax_differences(draft, invoice) + _line_differences(draft, lines)


def _tax_differences(draft: Draft, invoice: StripeInvoice) -> list[str]:
    if invoice.automatic_tax != draft.automatic_tax:
        asked = "is asked for and" if draft.automatic_tax else "is not asked for, and"
        return [f"automatic tax {asked} {'on' if invoice.automatic_tax else 'off'} in Stripe"]
    if not draft.automatic_tax and invoice.tax != taxes.NONE:
        return [f"tax of {invoice.tax.added + invoice.tax.contained} was put on it in Stripe, which nobody asked for"]
    if draft.automatic_tax and invoice.tax_status != "complete":
        return [
            f"Stripe could not compute the tax ({invoice.tax_status}): give {invoice.customer} an address in Stripe, "
            "and see that tax is set up there"
        ]
    return []


def _line_differences(draft: Draft, lines: Sequence[StripeLine]) -> list[str]:
    found = []
    if len(lines) != len(draft.items):
        found.append(f"Stripe has {len(lines)} lines, rated {len(draft.items)}")
    missing = {item.item_id: item for item in draft.items}
    for shown in lines:
        item = missing.pop(shown.metadata.get(LINE_ID, ""), None)
        if item is None:
            found.append(f"line {shown.line_item_id} ({shown.amount}) in Stripe is none of the rated lines")
            continue
        wanted = (to_stripe(item.amount_minor, draft.currency), draft.currency, plain(item.quantity))
        if (shown.amount, shown.currency, shown.metadata.get(QUANTITY)) != wanted:
            found.append(f"line {shown.line_item_id} is {shown.amount} {shown.currency}, rated {wanted[0]} {wanted[1]}")
    return found + [f"rated line {name} is not in Stripe" for name in missing]


def read_invoice(body: Mapping[str, Any]) -> StripeInvoice:
    """Stripe's invoice object (https://docs.stripe.com/api/invoices/object)."""
    moments = body["status_transitions"]
    return StripeInvoice(
        stripe_invoice_id=body["id"],
        status=body["status"],
        currency=body["currency"].upper(),
        total=body["total"],
        amount_paid=body["amount_paid"],
        amount_remaining=body["amount_remaining"],
        credited=body["pre_payment_credit_notes_amount"] + body["post_payment_credit_notes_amount"],
        attempt_count=body["attempt_count"],
        customer=body["customer"],
        metadata=body["metadata"] or {},
        number=body["number"],
        hosted_url=body["hosted_invoice_url"],
        finalised_at=_moment(moments["finalized_at"]),
        paid_at=_moment(moments["paid_at"]),
        tax=taxes.charged(body.get("total_taxes")),
        automatic_tax=body["automatic_tax"]["enabled"],
        tax_status=body["automatic_tax"]["status"],
        subscription=((body.get("parent") or {}).get("subscription_details") or {}).get("subscription"),
        period_start=_moment(body["period_start"]),
        period_end=_moment(body["period_end"]),
        due_at=_moment(body["due_date"]),
    )


def read_line(body: Mapping[str, Any]) -> StripeLine:
    """Stripe's line item object (https://docs.stripe.com/api/invoice-line-item/object)."""
    tax = taxes.charged(body.get("taxes"))
    return StripeLine(
        line_item_id=body["id"],
        amount=body["amount"],
        currency=body["currency"].upper(),
        metadata=body["metadata"] or {},
        contained=tax.contained,
        description=body["description"] or "",
        period_start=_moment(body["period"]["start"]),
    )


def _moment(seconds: int | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
