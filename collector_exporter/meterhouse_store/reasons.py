"""Why a row is in suspense, in a sentence for people; what to do about each is in docs/operations.md."""

from typing import Final

from meterhouse import vocabulary

SENTENCES: Final = {
    vocabulary.REASON_CUSTOMER_MISSING: "nobody says which customer it was for",
    vocabulary.REASON_CUSTOMER_FORBIDDEN: "its key may not report for this customer",
    vocabulary.REASON_GRANT_MISSING: "no valid grant for this customer came with it",
    vocabulary.REASON_GRANT_EXPIRED: "the customer's grant had expired when it happened",
    vocabulary.REASON_EVENT_ID_MISSING: "it has no id, so it cannot be told from its own copies",
    vocabulary.REASON_BAD_QUANTITY: "its quantity is no number that can be counted",
    vocabulary.REASON_FRACTION: "part of a unit of a meter that counts whole ones: report whole ones, or another meter",
    vocabulary.REASON_BAD_IDENTIFIER: "an identifier is no text, too long or given twice, or meterhouse.once no truth",
    vocabulary.REASON_TIME_OUT_OF_RANGE: "its time is more than 400 days before or a day after its receipt",
    vocabulary.REASON_EXEMPLARS_MISSING: "events were taken out of a sum on the way: this is what they add up to",
    vocabulary.REASON_OVERFLOW: "the sender had more series than it kept apart",
    vocabulary.REASON_SOURCE_UNSUPPORTED: "a metric that names no customer, or cannot be counted",
    vocabulary.REASON_CONFLICT: "the same event came before with another quantity, which counts",
    vocabulary.REASON_CUMULATIVE_FALL: "a running total fell without a new start",
    vocabulary.REASON_CUMULATIVE_CONFLICT: "a running total came with two values for one time; the first counts",
    vocabulary.REASON_SPAN_AMBIGUOUS: "spans of two traces, or spans that contain each other: one call, or two",
    vocabulary.REASON_UNREADABLE: "a stored request that the warehouse cannot read",
}


def sentence(reason: str) -> str:
    """The sentence of a reason code; '' for one that is not known here."""
    return SENTENCES.get(reason, "")
