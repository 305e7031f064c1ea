"""The states of an invoice and which may follow which; nothing here reads or writes anything.

    open -> draft -> in review -> approved -> finalised -> paid | failed | void, and failed -> paid | void

`open` is the period that is not closed: there is no invoice yet. What Stripe tells (`path`) only ever moves a state
forward, so the order in which news about an invoice arrives does not matter. What is decided here (`check`) may also go
back: from approved to review or to a draft, and from void to a draft when it is issued again.
"""

from typing import Final

from meterhouse_billing.documents import StripeInvoice

OPEN: Final = "open"
DRAFT: Final = "draft"
IN_REVIEW: Final = "in review"
APPROVED: Final = "approved"
FINALISED: Final = "finalised"
FAILED: Final = "failed"
PAID: Final = "paid"
VOID: Final = "void"

_NEWS: Final = {
    DRAFT: (APPROVED,),
    IN_REVIEW: (APPROVED,),
    APPROVED: (FINALISED,),
    FINALISED: (PAID, FAILED, VOID),
    FAILED: (PAID, VOID),
    PAID: (),
    VOID: (),
}
_DECISIONS: Final = {
    OPEN: (DRAFT,),
    DRAFT: (IN_REVIEW, APPROVED, DRAFT),
    IN_REVIEW: (IN_REVIEW, APPROVED, DRAFT),
    APPROVED: (IN_REVIEW, DRAFT),
    VOID: (DRAFT,),
}
_RANK: Final = {DRAFT: 0, IN_REVIEW: 0, APPROVED: 1, FINALISED: 2, FAILED: 3, PAID: 4, VOID: 4}

PENDING: Final = (DRAFT, IN_REVIEW, APPROVED)
"""States in which the invoice can still be changed."""

UNSETTLED: Final = (*PENDING, FINALISED, FAILED)
"""States in which news from Stripe can still change something."""


class Contradiction(ValueError):
    """Stripe says something that cannot follow from what was recorded."""


class NotNow(ValueError):
    """Somebody wants what the invoice's state does not allow."""


def of(invoice: StripeInvoice) -> str | None:
    """The state that Stripe's invoice stands for; None for a draft, which says nothing about approval here."""
    if invoice.status == "open":
        return FAILED if invoice.attempt_count else FINALISED
    return {"draft": None, "paid": PAID, "void": VOID, "uncollectible": FAILED}[invoice.status]


def is_old(current: str, shown: str) -> bool:
    """Whether what Stripe showed is from before the state that is known: it was asked for earlier, and came later."""
    return _RANK[shown] < _RANK[current]


def path(current: str, wanted: str) -> list[tuple[str, str]]:
    """The transitions from one state to another, each (from, to); empty when `wanted` is old news.

    Raises Contradiction where one final state would follow another.
    """
    if current == wanted or is_old(current, wanted):
        return []
    for following in _NEWS[current]:
        if following == wanted:
            return [(current, following)]
    if current in PENDING:
        following = _NEWS[current][0]
        return [(current, following), *path(following, wanted)]
    raise Contradiction(f"an invoice that is {current} cannot become {wanted}")


def check(current: str, wanted: str) -> None:
    """Raises NotNow where a decision may not take the invoice from one state to the other."""
    if wanted not in _DECISIONS.get(current, ()):
        raise NotNow(f"the invoice is {current}, and cannot become {wanted}")
