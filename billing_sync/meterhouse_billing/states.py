"""The states of an invoice and which may follow which; nothing here reads or writes anything.

draft -> approved -> finalised -> paid | failed | void, and failed -> paid | void. A state only ever moves forward, so
the order in which news about an invoice arrives does not matter.
"""

from typing import Final

from meterhouse_billing.documents import StripeInvoice

DRAFT: Final = "draft"
APPROVED: Final = "approved"
FINALISED: Final = "finalised"
FAILED: Final = "failed"
PAID: Final = "paid"
VOID: Final = "void"

_NEXT: Final = {
    DRAFT: (APPROVED,),
    APPROVED: (FINALISED,),
    FINALISED: (PAID, FAILED, VOID),
    FAILED: (PAID, VOID),
    PAID: (),
    VOID: (),
}
_RANK: Final = {DRAFT: 0, APPROVED: 1, FINALISED: 2, FAILED: 3, PAID: 4, VOID: 4}

UNSETTLED: Final = (DRAFT, APPROVED, FINALISED, FAILED)
"""States in which news from Stripe can still change something."""


class Contradiction(ValueError):
    """Stripe says something that cannot follow from what was recorded."""


def of(invoice: StripeInvoice) -> str | None:
    """The state that Stripe's invoice stands for; None for a draft, which says nothing about approval here."""
    if invoice.status == "open":
        return FAILED if invoice.attempt_count else FINALISED
    return {"draft": None, "paid": PAID, "void": VOID, "uncollectible": FAILED}[invoice.status]


def path(current: str, wanted: str) -> list[tuple[str, str]]:
    """The transitions from one state to another, each (from, to); empty when `wanted` is old news.

    Raises Contradiction where one final state would follow another.
    """
    if current == wanted or _RANK[wanted] < _RANK[current]:
        return []
    for following in _NEXT[current]:
        if following == wanted:
            return [(current, following)]
    if current in (DRAFT, APPROVED):
        following = _NEXT[current][0]
        return [(current, following), *path(following, wanted)]
    raise Contradiction(f"an invoice that is {current} cannot become {wanted}")
