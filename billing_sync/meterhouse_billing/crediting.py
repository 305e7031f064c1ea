"""Credit notes as Stripe takes them: which lines of the invoice are credited by how much, and what Stripe shows.

Pure. Corrections are signed and per rated line; Stripe credits lines (`il_`) of a finalised invoice by positive
amounts, never beyond what is left of a line. So what goes up takes away from what goes down, on its own line first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from meterhouse_billing.amounts import to_stripe
from meterhouse_billing.credit_documents import Shown
from meterhouse_billing.documents import CUSTOMER_ID, NAMESPACE, RATING_ID
from meterhouse_billing.gateway import BillingError
from meterhouse_billing.policies import BALANCE, OUTSIDE, REFUND
from meterhouse_rating.layout import money

NOTE_ID: Final = "meterhouse_credit_note_id"
PART_NAMES: Final = {REFUND: "refund_amount", BALANCE: "credit_amount", OUTSIDE: "out_of_band_amount"}


class NotCreditable(BillingError):
    """The corrections do not fit on the invoice that they correct."""


@dataclass(frozen=True)
class Note:
    """A credit note of ours; `total_minor` is positive, `lines` are signed: (rated line or '', minor units)."""

    note_id: str
    namespace: str
    customer_id: str
    rating_id: str
    currency: str
    total_minor: int
    lines: tuple[tuple[str, int], ...]


def allocate(
    note: Note, items: Sequence[tuple[str, int]], place: Mapping[str, str], so_far: Mapping[str, int]
) -> dict[str, int]:
    """Stripe's line -> what is credited of it, in minor units; together the note's total.

    `items` are the invoice's lines in Stripe in their order with their amounts, `place` says on which of them a rated
    line is, `so_far` what was credited of them before. Raises NotCreditable.
    """
    wanted: dict[str, int] = {}
    for line_id, amount in note.lines:
        item = place.get(line_id)
        if item is not None:
            wanted[item] = wanted.get(item, 0) - amount
    left = {item: max(0, amount - so_far.get(item, 0)) for item, amount in items}
    taken = {item: min(max(0, wanted.get(item, 0)), left[item]) for item in left}
    over = sum(taken.values()) - note.total_minor
    for item in reversed(taken):  # what went up elsewhere, the last lines first
        back = min(max(0, over), taken[item])
        taken[item] -= back
        over -= back
    for item in taken:  # what is on no line that has enough left
        more = min(max(0, -over), left[item] - taken[item])
        taken[item] += more
        over += more
    most = min(note.total_minor + over, sum(amount for _, amount in items) - sum(so_far.values()))
    if most < note.total_minor:
        shown = [money(amount, note.currency) for amount in (note.total_minor, most)]
        raise NotCreditable(
            f"a credit note of {shown[0]} {note.currency} does not fit: its invoice has {shown[1]} left to be credited"
        )
    return {item: amount for item, amount in taken.items() if amount}


def with_tax(net: int, amount: int, contained: int) -> int:
    """What comes back of a line of `amount`, of which `contained` is tax, where `net` before tax is credited of it.

    All in Stripe's unit. The tax is the line's in proportion, rounded half up.
    """
    base = amount - contained
    return net + (2 * contained * net + base) // (2 * base) if contained else net


def before_tax(gross: int, amount: int, contained: int) -> int:
    """What is to be credited before tax so that exactly `gross` comes back. Raises NotCreditable where nothing is.

    Stripe takes amounts before tax, of which some with their tax come to no whole number of minor units in between.
    """
    near = gross * (amount - contained) // amount
    for net in (near, near + 1, near - 1):
        if with_tax(net, amount, contained) == gross:
            return net
    raise NotCreditable(
        f"{gross} of a line of {amount}, of which {contained} are tax, cannot be credited to the cent: credit it by "
        "hand, or let this customer's corrections be lines of the next invoice (`meterhouse contracts corrections`)"
    )


def split(post_payment_minor: int, policy: str, refundable_minor: int) -> dict[str, int]:
    """Where the part that was paid already goes (balance, refund, outside -> minor units).

    What was not paid by a charge cannot be refunded: it goes to the balance.
    """
    if policy != REFUND:
        return {policy: post_payment_minor} if post_payment_minor else {}
    refund = min(post_payment_minor, refundable_minor)
    parts = {REFUND: refund, BALANCE: post_payment_minor - refund}
    return {name: amount for name, amount in parts.items() if amount}


def params(note: Note, stripe_invoice_id: str, lines: Mapping[str, int], parts: Mapping[str, int]) -> dict[str, Any]:
    """The note as parameters of `credit_notes.create`. Raises NotPayable for an amount that Stripe cannot take."""
    in_stripe = [
        {"type": "invoice_line_item", "invoice_line_item": item, "amount": to_stripe(amount, note.currency)}
        for item, amount in lines.items()
    ]
    return {
        "invoice": stripe_invoice_id,
        "lines": in_stripe,
        "memo": "Correction of usage",
        "email_type": "none",  # Stripe's own choice would be to send one
        "metadata": {
            NAMESPACE: note.namespace,
            CUSTOMER_ID: note.customer_id,
            RATING_ID: note.rating_id,
            NOTE_ID: note.note_id,
        },
        **{PART_NAMES[name]: to_stripe(amount, note.currency) for name, amount in parts.items()},
    }


def differences(note: Note, shown: Shown, lines: Mapping[str, int]) -> list[str]:
    """Everything in which Stripe's note is not ours, to the minor unit."""
    found = []
    if shown.status != "issued":
        found.append(f"{shown.stripe_credit_note_id} is {shown.status}")
    if shown.metadata.get(NOTE_ID) != note.note_id:
        found.append(f"{shown.stripe_credit_note_id} carries the id of another credit note")
    total = to_stripe(note.total_minor, note.currency)
    if (shown.total - shown.tax.added, shown.currency) != (total, note.currency):
        before = " before tax" if shown.tax.added else ""
        found.append(
            f"Stripe's note is {shown.total - shown.tax.added} {shown.currency}{before}, ours {total} {note.currency}"
        )
    wanted = {item: to_stripe(amount, note.currency) for item, amount in lines.items()}
    # With tax in their prices Stripe shows lines with it or without; the total is compared above.
    equal = wanted.keys() == shown.lines.keys() if shown.tax.contained else dict(shown.lines) == wanted
    if not equal:
        found.append(f"Stripe credits {dict(shown.lines)}, ours {wanted}")
    return found
