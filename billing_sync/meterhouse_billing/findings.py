"""What makes an invoice wait for a person: pure rules over what is known of it, each finding a code and a sentence."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from statistics import median
from typing import Any, Final

from meterhouse_billing.documents import Draft, text
from meterhouse_billing.policies import Policy
from meterhouse_rating.layout import money
from meterhouse_store.numbers import plain

HISTORY: Final = 3
"""How many of the customer's latest invoices are the usual: their median is what a new one is compared with."""

_GIVEN_ON_PURPOSE: Final = frozenset({"credit_applied", "discount"})
"""Lines that are negative because of what was agreed."""


@dataclass(frozen=True)
class Finding:
    """`code` for machines, `sentence` for people."""

    code: str
    sentence: str


@dataclass(frozen=True)
class Evidence:
    """What is known of an invoice that may go out; amounts in minor units.

    `statement` is the completeness of its usage when it was closed (None: nobody asked), `unrated` the usage of its
    period without a price, `earlier_minor` the customer's earlier invoices of the same currency, the latest first.
    """

    draft: Draft
    policy: Policy
    statement: Mapping[str, Any] | None
    unrated: Sequence[Mapping[str, Any]]
    posted_minor: int
    earlier_minor: Sequence[int]
    in_stripe: Sequence[str] = ()
    """Everything in which Stripe's draft is not the rated one."""


def assess(evidence: Evidence) -> list[Finding]:
    """All findings, the gravest first."""
    return [*_totals(evidence), *_usage(evidence), *_lines(evidence.draft), *_amount(evidence)]


def _totals(it: Evidence) -> Iterator[Finding]:
    for sentence in it.in_stripe:
        yield Finding("stripe_differs", sentence)
    if it.posted_minor != it.draft.total_minor:
        shown = [money(amount, it.draft.currency) for amount in (it.posted_minor, it.draft.total_minor)]
        yield Finding("ledger_differs", f"the ledger's receivable is {shown[0]}, rated {shown[1]} {it.draft.currency}")


def _usage(it: Evidence) -> Iterator[Finding]:
    if it.statement is None:
        yield Finding("completeness", "nobody asked whether the usage was complete when the period was closed")
    else:
        held = sum(int(one["rows"]) for one in it.statement.get("held", ()))
        if held:
            yield Finding("suspense", f"{held} rows that may be the customer's were in suspense at the close")
        for sentence in it.statement.get("exceptions", ()):
            if " in suspense " not in sentence:
                yield Finding("completeness", sentence)
    for row in it.unrated:
        yield Finding(
            "unrated", f"{plain(row['quantity'])} of {row['meter']} have no price ({row['reason']}): {row['hint']}"
        )


def _lines(draft: Draft) -> Iterator[Finding]:
    for line in draft.lines:
        if line.amount_minor < 0 and line.kind not in _GIVEN_ON_PURPOSE:
            yield Finding("negative_line", f"{text(line)} is {money(line.amount_minor, draft.currency)}")
        if line.kind == "usage" and line.quantity > 0 and not line.amount_exact and not line.included:
            yield Finding("zero_price", f"{text(line)} costs nothing")


def _amount(it: Evidence) -> Iterator[Finding]:
    total, currency, policy = it.draft.total_minor, it.draft.currency, it.policy
    shown = f"{money(total, currency)} {currency}"
    if total < 0:
        yield Finding("negative_total", f"{shown} would become a credit on the customer's balance")
    usual = _usual(it.earlier_minor)
    if usual is not None and not usual / policy.unusual_change <= total <= usual * policy.unusual_change:
        factor = plain(policy.unusual_change)
        yield Finding(
            "unusual_change",
            f"{shown} is more than {factor} times away from the usual {money(int(usual), currency)} "
            f"(the median of the latest {min(len(it.earlier_minor), HISTORY)})",
        )
    if policy.needs_two(total, currency):
        yield Finding("above_limit", f"{shown} is above {policy.limit(currency)}: one approves, another finalises")


def _usual(earlier_minor: Sequence[int]) -> Decimal | None:
    latest = [Decimal(amount) for amount in earlier_minor[:HISTORY]]
    return median(latest) if latest else None
