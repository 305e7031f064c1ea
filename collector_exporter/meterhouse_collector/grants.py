"""The usage grants of a request (meterhouse/grants.py): verified once each at the door, and remembered."""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, Final

from meterhouse import grants
from meterhouse.vocabulary import GRANTS
from meterhouse_collector.records import Granted
from meterhouse_collector.refusals import TOO_LARGE, Refused

REQUEST_GRANTS: Final = 1000
REMEMBERED: Final = 50_000


def tokens(resources: Any) -> set[str]:
    """The grants that a request carries, on the scopes of its ResourceMetrics or ResourceSpans.

    Raises Refused for too many.
    """
    found: set[str] = set()
    for resource in resources:
        for scope in resource.scope_metrics if hasattr(resource, "scope_metrics") else resource.scope_spans:
            for attribute in scope.scope.attributes:
                if attribute.key == GRANTS:
                    found.update(value.string_value for value in attribute.value.array_value.values)
            if len(found) > REQUEST_GRANTS:
                raise Refused(TOO_LARGE, f"a request has at most {REQUEST_GRANTS} grants: send smaller batches")
    return found


class Verifier:
    """Knows what it has verified, good or bad. Used by several threads: at worst one verifies again."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str], bool] = OrderedDict()

    def granted(self, keys: Iterable[str], found: Iterable[str]) -> tuple[Granted, ...]:
        """Whom these tokens let report for, verified with these keys; of several the one that holds longest.

        What cannot be verified allows nothing. Whether an event was in time is decided by its own time, later.
        """
        by_id = {key.key_id: key for key in map(grants.Key.parse, keys)}
        longest: dict[tuple[str, str], Granted] = {}
        for token in found:
            granted = self._verified(by_id, token)
            if granted is None:
                continue
            of = granted.customer_id, granted.agent_id
            if of not in longest or longest[of].expires_at_ns < granted.expires_at_ns:
                longest[of] = granted
        return tuple(longest[of] for of in sorted(longest))

    def _verified(self, keys: dict[str, grants.Key], token: str) -> Granted | None:
        try:
            read = grants.read(token)
        except ValueError:
            return None
        key = keys.get(read.key_id)
        if key is None:
            return None
        name = str(key), token
        genuine = self._known.get(name)
        if genuine is None:
            genuine = self._known[name] = grants.is_genuine(token, key)
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return Granted(read.customer, read.agent or "", read.expires_at_s * 10**9) if genuine else None
