"""The demo's proof: what providers served against what was stored, rated and invoiced. Pure: figures in, findings out.

The left side is computed here from the model provider's own log and from the CSV that was replayed, by arithmetic that
shares nothing with Meterhouse. Everything else is what Meterhouse and Stripe say. Units are exact decimals.
"""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, TypeVar

K = TypeVar("K")

INPUT, OUTPUT = "llm.tokens.input", "llm.tokens.output"
REQUESTS, TOOLS = "llm.requests", "tool.calls"

Units = Mapping[str, Decimal]
ZERO = Decimal(0)


@dataclass(frozen=True)
class ServedCall:
    """One logical call in the provider's log: all attempts with one request id, and the units that were served."""

    request_id: str
    customer: str
    model: str
    attempts: int
    cut_off: bool
    units: Units


@dataclass(frozen=True)
class StoredUnits:
    """Usage in the store: one customer, request id (empty for replayed rows and tools), meter and status."""

    customer: str
    request_id: str
    meter: str
    status: str
    quantity: Decimal


@dataclass(frozen=True)
class Invoice:
    """One invoice, ours beside Stripe's, in the currency's minor unit; `units` are its lines' units by meter."""

    customer: str
    number: str
    currency: str
    total_minor: int
    stripe_total_minor: int | None
    state: str
    units: Units
    wrong_lines: tuple[str, ...] = ()  # lines whose quantity at Stripe is not the rated one, each in a sentence


@dataclass(frozen=True)
class MeterRow:
    """One line of the table. The provider's figure is None where its log is not at hand (`--live`)."""

    meter: str
    served: Decimal | None
    replayed: Decimal
    stored: Decimal
    unfinished: Decimal
    rated: Decimal
    unbilled: Decimal
    invoiced: Decimal


@dataclass(frozen=True)
class Proof:
    """The table, the calls that were killed before they could read their answer, and every difference in a sentence."""

    rows: tuple[MeterRow, ...]
    unfinished: tuple[ServedCall, ...]
    differences: tuple[str, ...]


@dataclass(frozen=True)
class Evidence:
    """All figures of a run. `served` None: there is no log of the provider, only what it told the agents."""

    served: Sequence[ServedCall] | None
    tools: int
    replayed: Mapping[tuple[str, str], Decimal]  # (customer, meter)
    stored: Sequence[StoredUnits]
    rated: Units
    unbilled: Units
    unrated: Units
    suspended: int
    invoices: Sequence[Invoice] = field(default=())


def summed(parts: Iterable[tuple[K, Decimal]]) -> dict[K, Decimal]:
    """The sum of the quantities of each key."""
    totals: dict[K, Decimal] = {}
    for key, quantity in parts:
        totals[key] = totals.get(key, ZERO) + quantity
    return totals


# ---- the truth ------------------------------------------------------------------------------------------------------


def served_calls(lines: Iterable[str]) -> list[ServedCall]:
    """The provider's log as logical calls, in the order of their first attempts.

    An attempt without a request id stays a call of its own, named `(none) N`: nothing stored can match it.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        attempt = json.loads(line)
        groups.setdefault(attempt["request_id"] or f"(none) {attempt['number']}", []).append(attempt)
    return [_call(request_id, attempts) for request_id, attempts in groups.items()]


def executed_tools(lines: Iterable[str]) -> int:
    """Tools whose results agents handed back, once per tool call id, as the provider's log has them."""
    return len({tool_call_id for line in lines for tool_call_id in json.loads(line)["tool_results"]})


def _call(request_id: str, attempts: Sequence[Mapping[str, Any]]) -> ServedCall:
    return ServedCall(
        request_id,
        customer=attempts[0]["end_user"],
        model=attempts[-1]["model"],
        attempts=len(attempts),
        cut_off=any(attempt["outcome"] == "cut_off" for attempt in attempts),
        units=summed((meter, Decimal(count)) for attempt in attempts for meter, count in attempt["units"].items()),
    )


def replayed_units(trace: Iterable[str], customers: Sequence[str]) -> dict[tuple[str, str], Decimal]:
    """Units by customer and meter of a CSV of requests: row n (0, 1, 2, ...) belongs to customer n modulo their number.

    A row is one request with its context tokens as input and its generated tokens as output.
    """
    parts: list[tuple[tuple[str, str], Decimal]] = []
    for number, row in enumerate(csv.DictReader(trace)):
        customer = customers[number % len(customers)]
        parts += [
            ((customer, INPUT), Decimal(row["ContextTokens"])),
            ((customer, OUTPUT), Decimal(row["GeneratedTokens"])),
            ((customer, REQUESTS), Decimal(1)),
        ]
    return summed(parts)


# ---- the comparison -------------------------------------------------------------------------------------------------


def prove(evidence: Evidence) -> Proof:
    """Compare all figures; `differences` is empty when everything agrees to the unit and to the minor unit."""
    unfinished = _unfinished(evidence)
    rows = tuple(_row(meter, evidence, unfinished) for meter in _meters(evidence))
    differences = [
        *_call_differences(evidence),
        *_history_differences(evidence),
        *(difference for row in rows for difference in _row_differences(row)),
        *_money_differences(evidence.invoices),
    ]
    differences += [f"{meter}: {units} units have no price" for meter, units in evidence.unrated.items() if units]
    if evidence.suspended:
        differences.append(f"{evidence.suspended} events are in suspense: meterhouse suspense list")
    return Proof(rows, tuple(unfinished), tuple(differences))


def _meters(evidence: Evidence) -> list[str]:
    served = {meter for call in evidence.served or () for meter in call.units}
    stored = {row.meter for row in evidence.stored}
    invoiced = {meter for invoice in evidence.invoices for meter in invoice.units}
    return sorted(served | stored | invoiced | {meter for _, meter in evidence.replayed} | {*evidence.rated})


def _unfinished(evidence: Evidence) -> list[ServedCall]:
    """Calls that the store knows only as unfinished; without a log their units are unknown and not in the table."""
    dead = {row.request_id: row for row in evidence.stored if row.status == "unfinished"}
    if evidence.served is None:
        return [ServedCall(name, row.customer, "", 1, False, {}) for name, row in dead.items()]
    return [call for call in evidence.served if call.request_id in dead]


def _row(meter: str, evidence: Evidence, unfinished: Sequence[ServedCall]) -> MeterRow:
    served = None
    if evidence.served is not None:
        served = {REQUESTS: Decimal(len(evidence.served)), TOOLS: Decimal(evidence.tools)}.get(
            meter, sum((call.units.get(meter, ZERO) for call in evidence.served), ZERO)
        )
    return MeterRow(
        meter,
        served,
        replayed=sum((units for (_, name), units in evidence.replayed.items() if name == meter), ZERO),
        stored=sum((row.quantity for row in evidence.stored if row.meter == meter), ZERO),
        # The request itself is stored, as one event of status unfinished; what it would have told is not.
        unfinished=sum((call.units.get(meter, ZERO) for call in unfinished), ZERO),
        rated=evidence.rated.get(meter, ZERO),
        unbilled=evidence.unbilled.get(meter, ZERO),
        invoiced=sum((invoice.units.get(meter, ZERO) for invoice in evidence.invoices), ZERO),
    )


def _row_differences(row: MeterRow) -> list[str]:
    found = []
    if row.served is not None and row.served + row.replayed != row.stored + row.unfinished:
        found.append(
            f"{row.meter}: served {row.served} + replayed {row.replayed} is not stored {row.stored} + "
            f"unfinished {row.unfinished}"
        )
    if row.stored != row.rated + row.unbilled:
        found.append(f"{row.meter}: stored {row.stored} is not rated {row.rated} + unbilled {row.unbilled}")
    if row.rated != row.invoiced:
        found.append(f"{row.meter}: rated {row.rated} is not {row.invoiced} on invoice lines")
    return found


def _call_differences(evidence: Evidence) -> list[str]:
    """Every call of the provider's log against the events with its request id: customer, request, every meter."""
    if evidence.served is None:
        return []
    stored: dict[str, list[StoredUnits]] = {}
    for row in evidence.stored:
        if row.request_id and row.meter != TOOLS:
            stored.setdefault(row.request_id, []).append(row)
    found = [f"request {name} is stored and was never served" for name in stored.keys() - _names(evidence.served)]
    for call in evidence.served:
        found += _one_call(call, stored.get(call.request_id, []))
    return sorted(found)


def _names(calls: Iterable[ServedCall]) -> set[str]:
    return {call.request_id for call in calls}


def _one_call(call: ServedCall, rows: Sequence[StoredUnits]) -> list[str]:
    name = f"request {call.request_id} of {call.customer}"
    if not rows:
        return [f"{name} was served and is not stored"]
    found = [f"{name} is stored for {row.customer}" for row in rows if row.customer != call.customer]
    units = summed((row.meter, row.quantity) for row in rows)
    expected = {REQUESTS: Decimal(1)} if _is_unfinished(rows) else {**call.units, REQUESTS: Decimal(1)}
    for meter in sorted(units.keys() | expected.keys()):
        if units.get(meter, ZERO) != expected.get(meter, ZERO):
            found.append(f"{name}: {meter} served {expected.get(meter, ZERO)}, stored {units.get(meter, ZERO)}")
    return found


def _is_unfinished(rows: Iterable[StoredUnits]) -> bool:
    return any(row.status == "unfinished" for row in rows)


def _history_differences(evidence: Evidence) -> list[str]:
    """Replayed units per customer and meter against the events that belong to no request."""
    stored = summed(
        ((row.customer, row.meter), row.quantity)
        for row in evidence.stored
        if not row.request_id and row.meter != TOOLS
    )
    found = []
    for key in sorted(stored.keys() | evidence.replayed.keys()):
        expected = evidence.replayed.get(key, ZERO)
        if stored.get(key, ZERO) != expected:
            found.append(f"history of {key[0]}: {key[1]} replayed {expected}, stored {stored.get(key, ZERO)}")
    return found


def _money_differences(invoices: Iterable[Invoice]) -> list[str]:
    found = []
    for invoice in invoices:
        found += [f"invoice {invoice.number} of {invoice.customer}: {line}" for line in invoice.wrong_lines]
        if invoice.stripe_total_minor != invoice.total_minor:
            found.append(
                f"invoice {invoice.number} of {invoice.customer}: {invoice.total_minor} here, "
                f"{invoice.stripe_total_minor} at Stripe (minor units)"
            )
        if invoice.state != "paid":
            found.append(f"invoice {invoice.number} of {invoice.customer} is {invoice.state}, not paid")
    return found
