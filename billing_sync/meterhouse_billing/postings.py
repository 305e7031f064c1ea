"""What becomes of an invoice after rating, as ledger postings: paid, void, issued again, refunded.

The receivable of a customer is then what Stripe shows as owed: a void invoice is owed no more, what is issued again is.
Pure; amounts in minor units.
"""

from meterhouse_rating.ids import digest
from meterhouse_rating.ledger import ADJUSTMENTS, CASH, RECEIVABLE, Entry, Posting


def payment(payment_id: str, name: str, amount_minor: int, currency: str) -> Posting:
    """Money came in for an invoice."""
    sides = (Entry(CASH, amount_minor, currency), Entry(RECEIVABLE, -amount_minor, currency))
    return Posting("payment", payment_id, f"payment of invoice {name}", sides)


def void(stripe_invoice_id: str, name: str, amount_minor: int, currency: str) -> Posting:
    """A finalised invoice is owed no more."""
    sides = (Entry(RECEIVABLE, -amount_minor, currency), Entry(ADJUSTMENTS, amount_minor, currency))
    return Posting("void", digest(["void", stripe_invoice_id]), f"void invoice {name}", sides)


def reissue(invoice_id: str, issue: int, amount_minor: int, currency: str) -> Posting:
    """A void invoice is issued again, and owed again."""
    sides = (Entry(RECEIVABLE, amount_minor, currency), Entry(ADJUSTMENTS, -amount_minor, currency))
    return Posting("reissue", digest(["reissue", invoice_id, issue]), f"issued again, number {issue}", sides)


def refund(note_id: str, name: str, amount_minor: int, currency: str) -> Posting:
    """What a credit note on a paid invoice gave back: the note took it off what is owed, the money went out."""
    sides = (Entry(RECEIVABLE, amount_minor, currency), Entry(CASH, -amount_minor, currency))
    return Posting("refund", note_id, f"refund of credit note {name}", sides)
