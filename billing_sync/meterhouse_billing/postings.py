"""What becomes of an invoice after rating, as ledger postings: paid, void, issued again, refunded.

The receivable of a customer is then what Stripe shows as owed: a void invoice is owed no more, what is issued again is.
Pure; amounts in minor units.
"""

from typing import Final

from meterhouse_rating.ids import digest
from meterhouse_rating.ledger import ADJUSTMENTS, CASH, RECEIVABLE, REVENUE, TAX, Entry, Posting, transaction_id

REFUND: Final = "refund"
DISPUTE, DISPUTE_WON = "dispute", "dispute_won"


def payment_id(namespace: str, stripe_invoice_id: str) -> str:
    """What names the payment of an invoice, and its posting."""
    return digest(["payment", namespace, stripe_invoice_id])


def payment(payment_id: str, name: str, amount_minor: int, currency: str) -> Posting:
    """Money came in for an invoice."""
    sides = (Entry(CASH, amount_minor, currency), Entry(RECEIVABLE, -amount_minor, currency))
    return Posting("payment", payment_id, f"payment of invoice {name}", sides)


def void(stripe_invoice_id: str, name: str, amount_minor: int, currency: str) -> Posting:
    """A finalised invoice is owed no more."""
    sides = (Entry(RECEIVABLE, -amount_minor, currency), Entry(ADJUSTMENTS, amount_minor, currency))
    return Posting("void", digest(["void", stripe_invoice_id]), f"void invoice {name}", sides)


def tax(stripe_invoice_id: str, name: str, added_minor: int, contained_minor: int, currency: str) -> Posting | None:
    """Tax that Stripe computed, None for none: on top of the lines it is owed, too; within them it is no revenue."""
    moved = ((RECEIVABLE, added_minor), (REVENUE, contained_minor), (TAX, -added_minor - contained_minor))
    sides = tuple(Entry(account, amount, currency) for account, amount in moved if amount)
    source = digest(["tax", stripe_invoice_id])
    return Posting("tax", source, f"tax of invoice {name}", sides) if sides else None


def untax(namespace: str, posted: Posting) -> Posting:
    """The tax of an invoice that is void is not owed either."""
    return _reversed(namespace, posted, "void_tax", f"{posted.memo}, which is void")


def reissue(invoice_id: str, issue: int, amount_minor: int, currency: str) -> Posting:
    """A void invoice is issued again, and owed again."""
    sides = (Entry(RECEIVABLE, amount_minor, currency), Entry(ADJUSTMENTS, -amount_minor, currency))
    return Posting("reissue", digest(["reissue", invoice_id, issue]), f"issued again, number {issue}", sides)


def credited_tax(note_id: str, name: str, added_minor: int, contained_minor: int, currency: str) -> Posting | None:
    """The tax on what a credit note takes back is not owed either, nor to the tax office; None for none.

    Tax within a price was taken back with it, from what was earned: it never was.
    """
    moved = ((RECEIVABLE, -added_minor), (REVENUE, -contained_minor), (TAX, added_minor + contained_minor))
    sides = tuple(Entry(account, amount, currency) for account, amount in moved if amount)
    return Posting("credited_tax", note_id, f"tax of credit note {name}", sides) if sides else None


def refund(note_id: str, name: str, amount_minor: int, currency: str) -> Posting:
    """What a credit note on a paid invoice gave back: the note took it off what is owed, the money went out."""
    sides = (Entry(RECEIVABLE, amount_minor, currency), Entry(CASH, -amount_minor, currency))
    return Posting(REFUND, note_id, f"refund of credit note {name}", sides)


def refund_source(stripe_refund_id: str) -> str:
    """What names the posting of a refund that was made by hand."""
    return digest(["refund", stripe_refund_id])


def refund_by_hand(stripe_refund_id: str, name: str, amount_minor: int, currency: str) -> Posting:
    """Money went back in Stripe without a credit note: the invoice stays paid, nobody owes more or less."""
    sides = (Entry(ADJUSTMENTS, amount_minor, currency), Entry(CASH, -amount_minor, currency))
    memo = f"refund of invoice {name}, made in Stripe ({stripe_refund_id})"
    return Posting(REFUND, refund_source(stripe_refund_id), memo, sides)


def disputed(dispute_id: str, name: str, amount_minor: int, currency: str) -> Posting:
    """A bank took a payment back: the invoice stays paid in Stripe, and is owed again here."""
    sides = (Entry(RECEIVABLE, amount_minor, currency), Entry(CASH, -amount_minor, currency))
    return Posting(DISPUTE, digest([DISPUTE, dispute_id]), f"dispute of the payment of invoice {name}", sides)


def dispute_won(namespace: str, taken: Posting) -> Posting:
    """The bank gave it back."""
    return _reversed(namespace, taken, DISPUTE_WON, f"{taken.memo}, which is won")


def _reversed(namespace: str, posted: Posting, kind: str, memo: str) -> Posting:
    sides = tuple(it._replace(amount_minor=-it.amount_minor) for it in posted.entries)
    return Posting(kind, posted.source_id, memo, sides, transaction_id(namespace, posted.kind, posted.source_id))
