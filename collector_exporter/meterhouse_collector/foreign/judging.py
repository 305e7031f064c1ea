"""What is decided of every foreign row from its record alone: customer, grants, times, and how copies rank.

The same rules as in schema/02_inbox.sql, where Meterhouse's own events are judged.
"""

from typing import Final

from meterhouse.vocabulary import (
    REASON_CUSTOMER_FORBIDDEN,
    REASON_CUSTOMER_MISSING,
    REASON_GRANT_EXPIRED,
    REASON_GRANT_MISSING,
)
from meterhouse_collector.records import GRANTS, Record

_DAY_NS: Final = 86_400_000_000_000
_PAST_NS: Final = 400 * _DAY_NS
_FUTURE_NS: Final = _DAY_NS
_LATEST_NS: Final = 9 * 10**18
UNAUTHORISED: Final = (REASON_CUSTOMER_FORBIDDEN, REASON_GRANT_MISSING, REASON_GRANT_EXPIRED)
"""Reasons for which the sender may not report for the customer: such a row decides nothing about others."""


class Judge:
    """Decides about the rows of one record."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self.received_ns: Final = min(record.received_at_ns, _LATEST_NS)
        self._grants: dict[tuple[str, str], int] = {}
        for grant in record.grants:
            key = grant.customer_id, grant.agent_id
            self._grants[key] = max(self._grants.get(key, 0), grant.expires_at_ns)
        self._allowed: Final = frozenset(record.allowed_customers)

    def customer(self, customer_id: str, agent_id: str, time_ns: int) -> str:
        """Why the credential may not report usage of this customer and time; '' when it may."""
        if not customer_id:
            return REASON_CUSTOMER_MISSING
        if self._allowed and customer_id not in self._allowed:
            return REASON_CUSTOMER_FORBIDDEN
        if self._record.customers_from == GRANTS:
            until_ns = max(self._grants.get((customer_id, agent_id), 0), self._grants.get((customer_id, ""), 0))
            if not until_ns:
                return REASON_GRANT_MISSING
            if time_ns > until_ns:
                return REASON_GRANT_EXPIRED
        return ""

    def time_fits(self, time_ns: int) -> bool:
        """400 days back, one day ahead."""
        return self.received_ns - _PAST_NS <= time_ns <= self.received_ns + _FUTURE_NS

    def first(self, reason: str) -> int:
        """The version of the row: the earliest copy is the largest, and no suspended copy displaces one that counts."""
        earliest = 2**64 - 1 - self.received_ns
        return earliest >> 1 if reason else earliest
