"""Made-up facts of each kind of notice, with everything that may be in them: what templates are tried with.

Texts have what has to be escaped in HTML. `BARE` has the same names with nothing in what may be empty.
"""

from collections.abc import Mapping
from typing import Any, Final

MARK: Final = "<mark>&\"'"
"""In every text of the samples: it appears in HTML only where it is not escaped."""

_PERIOD: Final = {
    "period_start": "2026-10-01T00:00:00+00:00",
    "period_end": "2026-11-01T00:00:00+00:00",
    "time_zone": "UTC",
}
_BUDGET: Final[Mapping[str, Any]] = {
    "budget": f"money {MARK}",
    "measure": "money",
    "of": "",
    "agent_id": f"support {MARK}",
    "unit": "USD",
    "limit": "100",
    "used": "80.5",
    "over": "1.25",
    "hard": True,
    **_PERIOD,
}
_INVOICE: Final[Mapping[str, Any]] = {
    "invoice_id": "9f2c4e6a8b0d",
    "number": f"A-0001 {MARK}",
    "total": "1200.50",
    "currency": "USD",
    **_PERIOD,
    "url": f"https://invoice.example.com/a?{MARK}",
    "look_until": "2026-11-05T00:00:00+00:00",
    "due_at": "2026-12-01T00:00:00+00:00",
    "lines": [{"description": f"Tokens {MARK}", "amount": "1200.00"}, {"description": "Fee", "amount": "0.50"}],
    "more_lines": 3,
    "tax": "228.10",
}
_TOP_UP: Final[Mapping[str, Any]] = {"amount": "50.00", "currency": "USD", "automatic": True, "why": f"declined {MARK}"}

FULL: Final[Mapping[str, Mapping[str, Any]]] = {
    "budget_threshold": {**_BUDGET, "threshold_percent": 80},
    "budget_cap": _BUDGET,
    "over_cap": _BUDGET,
    "paused": {
        "agent_id": f"support {MARK}",
        "reason": "operator",
        "since": "2026-11-02T07:59:00+00:00",
        "why": f"key leaked {MARK}",
        "time_zone": "UTC",
    },
    **dict.fromkeys(("pre_charge", "invoice", "payment_failed", "payment_due", "overdue", "receipt"), _INVOICE),
    **dict.fromkeys(("top_up", "top_up_failed"), _TOP_UP),
}
_MAY_BE_EMPTY: Final[Mapping[str, Any]] = {
    "agent_id": "",
    "url": "",
    "look_until": "",
    "lines": [],
    "more_lines": 0,
    "tax": "",
    "hard": False,
    "automatic": False,
    "why": "",
}
BARE: Final[Mapping[str, Mapping[str, Any]]] = {
    kind: {name: _MAY_BE_EMPTY.get(name, value) for name, value in facts.items()} for kind, facts in FULL.items()
}
