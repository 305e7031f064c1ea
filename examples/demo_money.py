"""The demo's last part: prices, rating, Stripe invoices; and reading all figures back for the proof.

Figures come through public faces only: the commands' JSON, the warehouse's views, Stripe's API over HTTP.
"""

import json
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from demo_proof import Invoice, StoredUnits, summed
from demo_system import DemoError, System, until

HERE = Path(__file__).parent
PLANS = {"acme": "pay-as-you-go", "globex": "team", "initech": "prepaid"}
SETTLED_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Stripe:
    """Where Stripe's API is, and the key."""

    url: str
    key: str

    def get(self, path: str) -> Any:
        return self._call(urllib.request.Request(f"{self.url}{path}"))

    def post(self, path: str, fields: Mapping[str, str]) -> Any:
        data = urllib.parse.urlencode(fields).encode()
        return self._call(urllib.request.Request(f"{self.url}{path}", data, method="POST"))

    def _call(self, request: urllib.request.Request) -> Any:
        request.add_header("Authorization", f"Bearer {self.key}")
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                return json.loads(reply.read())
        except OSError as problem:
            raise DemoError(f"Stripe, {request.method or 'GET'} {request.full_url}: {problem}") from problem


# ---- reading figures ------------------------------------------------------------------------------------------------


def stored_units(system: System) -> list[StoredUnits]:
    """All that is in the view `usage`, by customer, request, meter and status."""
    rows = system.query(
        "SELECT billed_customer_id, request_id, meter, status, toString(sum(quantity)) AS units FROM usage "
        "GROUP BY billed_customer_id, request_id, meter, status"
    )
    return [
        StoredUnits(row["billed_customer_id"], row["request_id"], row["meter"], row["status"], Decimal(row["units"]))
        for row in rows
    ]


def left_over(rating: Any, *, by_choice: bool) -> dict[str, Decimal]:
    """Units by meter that rating put on no line, by the price book's choice or for want of a price."""
    return summed(
        (item["meter"], Decimal(item["quantity"]))
        for item in rating["unrated"]
        if item["reason"].startswith("unbilled_") == by_choice
    )


def suspended(system: System) -> int:
    """The number of events in suspense."""
    return int(system.query("SELECT toString(count()) AS n FROM suspense")[0]["n"])


def rated_lines(system: System) -> dict[str, dict[str, Decimal]]:
    """Units by meter of each rated line, by line id, as the line's explanation has them."""
    rows = system.query("SELECT line_id, explanation FROM rated_lines")
    return {
        row["line_id"]: {
            meter: Decimal(units) for meter, units in json.loads(row["explanation"]).get("meters", {}).items()
        }
        for row in rows
    }


def invoices(system: System, stripe: Stripe) -> list[Invoice]:
    """Our invoices, each beside what Stripe says of it; units are those of the lines that stand on Stripe's."""
    rated = rated_lines(system)
    rows = system.query(
        "SELECT customer_id, number, currency, toString(total_minor) AS total, state, stripe_invoice_id "
        "FROM invoices ORDER BY customer_id, period_start"
    )
    found = []
    for row in rows:
        theirs = stripe.get(f"/v1/invoices/{row['stripe_invoice_id']}")
        lines = _usage_lines(stripe, row["stripe_invoice_id"])
        found.append(
            Invoice(
                row["customer_id"],
                row["number"],
                row["currency"],
                total_minor=int(row["total"]),
                stripe_total_minor=theirs["total"],
                state=row["state"],
                units=summed(part for line_id in lines for part in rated.get(line_id, {}).items()),
                wrong_lines=tuple(
                    f"line {line_id} says {quantity} units, rated {sum(rated.get(line_id, {}).values())}"
                    for line_id, quantity in lines.items()
                    if quantity != sum(rated.get(line_id, {}).values())
                ),
            )
        )
    return found


def _usage_lines(stripe: Stripe, invoice: str) -> dict[str, Decimal]:
    """Our line id and the quantity of each usage line on a Stripe invoice, from the line's metadata there."""
    found: dict[str, Decimal] = {}
    after = ""
    while True:
        page = stripe.get(f"/v1/invoices/{invoice}/lines?limit=100{after}")
        for line in page["data"]:
            if line["metadata"]["kind"] == "usage":
                found[line["metadata"]["meterhouse_line_id"]] = Decimal(line["metadata"]["quantity"])
        if not page["has_more"]:
            return found
        after = f"&starting_after={page['data'][-1]['id']}"


def fingerprint(system: System) -> list[list[str]]:
    """All money there is, row by row: the same before and after a repeated run."""
    queries = (
        "SELECT line_id, toString(quantity) AS quantity, toString(amount_minor) AS amount FROM rated_lines",
        "SELECT transaction_id, toString(position) AS n, toString(amount_minor) AS amount FROM ledger_entries",
        "SELECT invoice_id, state, toString(total_minor) AS total, stripe_invoice_id, number FROM invoices",
        "SELECT payment_id, toString(amount_minor) AS amount FROM payments",
    )
    return [sorted(json.dumps(row, sort_keys=True) for row in system.query(query)) for query in queries]


def wait_for_warehouse(system: System, moment: datetime) -> None:
    """Until everything that the collector received before the moment is in the warehouse."""
    query = "SELECT toString(toUnixTimestamp64Micro(min(projected_through))) AS us, count() > 0 AS any FROM watermark"

    def complete() -> bool:
        row = system.query(query)[0]
        return bool(row["any"]) and int(row["us"]) >= int(moment.timestamp() * 1_000_000)

    until("the warehouse's being complete", complete, SETTLED_TIMEOUT_S, pause_s=0.5)


# ---- doing it -------------------------------------------------------------------------------------------------------


def pay_all(system: System, stripe: Stripe, sandbox: bool) -> None:
    """Pay every open invoice as its customer would, and wait until we know of it.

    The sandbox's webhooks tell us; Stripe's test mode cannot reach this machine, so there we ask.
    """
    for row in system.query("SELECT stripe_invoice_id FROM invoices"):
        theirs = stripe.get(f"/v1/invoices/{row['stripe_invoice_id']}")
        if theirs["status"] != "open":
            continue
        if sandbox:
            stripe.post(f"/_sandbox/pay/{theirs['id']}", {})
        else:
            card = stripe.post("/v1/payment_methods/pm_card_visa/attach", {"customer": theirs["customer"]})
            stripe.post(f"/v1/invoices/{theirs['id']}/pay", {"payment_method": card["id"]})
    if not sandbox:
        system.meterhouse("bill", "poll")
    until("the payment of all invoices", lambda: _all_paid(system), SETTLED_TIMEOUT_S, pause_s=0.5)


def _all_paid(system: System) -> bool:
    return all(row["state"] == "paid" for row in system.query("SELECT state FROM invoices"))
