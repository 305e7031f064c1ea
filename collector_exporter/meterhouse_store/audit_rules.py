"""Which tables the audit log is about, and what of a row tells who changed what, when and why.

Every table that people's decisions end in is here; what machines work out (ratings, outbox, leases, notices) is not,
and the ledger has a chain of its own.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Rule:
    """`what` is changed, named by the columns `subject`. Of columns that are not there: the process's user, no reason.

    `hidden` columns are never shown: secrets, long texts whose hash is there, what says who a person is. `of`: the
    table in which a row's namespace and customer are found, and the column by which. `role`: who may do it (roles.py).
    `kept`: rows are added and never changed, so each has to be as the log says for as long as it is there.
    """

    what: str
    subject: str = ""
    who: str = "who"
    why: str = "why"
    at: str = "recorded_at"
    hidden: str = ""
    of: tuple[str, str] | None = None
    role: str = ""
    kept: bool = False


_KEY: Final = ("credentials", "credential_id")
_INVOICE: Final = ("invoices", "invoice_id")
_NOTE: Final = ("credit_notes", "credit_note_id")

RULES: Final[dict[str, Rule]] = {
    "namespaces": Rule("namespace", "namespace", at="created_at"),
    "namespace_switches": Rule("switch", "switch", at="changed_at", kept=True),
    "operator_roles": Rule("role", "role person", kept=True),
    "customers": Rule("customer", at="registered_at", hidden="name email reference"),
    "erasures": Rule("erasure", at="begun_at", hidden="former_id erasure_id"),
    # Terms
    "contracts": Rule("contract", "plan", hidden="contract_id", role="pricing"),
    "contract_ends": Rule("contract end", hidden="contract_id", role="pricing", kept=True),
    "customer_addons": Rule("add-on", "addon", hidden="agreement_id", role="pricing"),
    "price_overrides": Rule("own price", "component", hidden="agreement_id", role="pricing"),
    "customer_discounts": Rule("discount", "name", hidden="agreement_id", role="pricing"),
    "customer_quantities": Rule("quantity", "name", hidden="agreement_id", role="pricing"),
    "credit_grants": Rule("credits", "kind", hidden="grant_id source_id"),
    "credit_top_ups": Rule("top-up", at="recorded_at"),
    "credit_charge_rules": Rule("charge for credits"),
    "credit_purchases": Rule("credits bought", "how", at="created_at", hidden="purchase_id url grant_id"),
    "correction_policies": Rule("corrections", "policy", role="pricing", kept=True),
    "operator_changes": Rule(
        "change in the portal", "what", "decided_by", "decided_why", at="asked_at", hidden="change_id form"
    ),
    # Prices and costs
    "price_books": Rule("price book", "version", who="author", hidden="source", role="pricing", kept=True),
    "cost_catalogues": Rule("cost catalogue", "version", hidden="snapshot catalogue_id", role="pricing", kept=True),
    "cost_entries": Rule("cost", "meter", hidden="entry_id", role="pricing", kept=True),
    "cost_retractions": Rule("cost taken back", "retracted_id", role="pricing", kept=True),
    # Keys and people
    "credentials": Rule("key", "credential_id", at="valid_from", hidden="key_sha256", role="metering"),
    "retired_keys": Rule("key replaced", "credential_id", at="", hidden="key_sha256", of=_KEY, role="metering"),
    "grant_keys": Rule("grant key", "credential_id", at="valid_from", hidden="key", of=_KEY, role="metering"),
    "portal_operators": Rule("operator", "email", at="changed_at", role="administration", kept=True),
    "portal_members": Rule("member", "email", at="changed_at"),
    "portal_keys": Rule("portal key", "key_id", at="created_at", hidden="key_sha256"),
    "portal_embed_keys": Rule("embedding key", "key_id", at="created_at", hidden="key"),
    "notice_channels": Rule("notice channel", "kind", hidden="address secret channel_id"),
    # Usage
    "decisions": Rule("usage", "event_id", at="decided_at", hidden="decision_id row_id follows", role="metering"),
    # Invoices
    "invoice_transitions": Rule(
        "invoice", "invoice_id", at="changed_at", hidden="transition_id", of=_INVOICE, role="invoicing", kept=True
    ),
    "credit_note_transitions": Rule(
        "credit note", "credit_note_id", at="changed_at", hidden="transition_id", of=_NOTE, role="invoicing", kept=True
    ),
    "billing_settings": Rule("billing setting", "setting", role="invoicing", kept=True),
    "billing_drivers": Rule("billing driver", "driver", role="invoicing", kept=True),
    "line_questions": Rule(
        "question", "line_id", "answered_by", "answer", at="asked_at", hidden="question_id", role="invoicing"
    ),
    # Budgets
    "budget_changes": Rule("budget", "name", kept=True),
    "budget_policies": Rule("pausing", "pause_at", kept=True),
    "pause_changes": Rule("pause", "reason", kept=True),
}
"""Name of a table -> its rule."""

# What has no table of its own and stands in the log (`audit.note`).
PRICE_DECISION: Final = "price decision"
"""What was decided about proposals of prices."""
METER_DIFFERENCE: Final = "meter difference"
"""That a difference between a month's usage and what Stripe's meters have is seen to."""
