"""What each report is: a view, what it may be grouped by, and what is summed. Nothing here reads or writes.

Every report is one SELECT, so that a table, a file of Parquet and a notebook get the same rows. Money is grouped by its
currency always, and usage by its meter; the last two columns say as of when a row is known and whether it is closed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from meterhouse_rating.credit_book import EXPIRED, GRANTED, REFUNDED, REVOKED
from meterhouse_store.currencies import minor_units

WITHIN: Final = "accounted_at >= {start:DateTime64(6, 'UTC')} AND accounted_at < {end:DateTime64(6, 'UTC')}"
UNTIL: Final = "accounted_at < {end:DateTime64(6, 'UTC')}"


class CannotBe(ValueError):
    """A report that cannot be made so; the text says how it can."""


@dataclass(frozen=True)
class Report:
    """`dimensions` and `measures` map a column to its SQL over `source`; `by` is what it is grouped by unasked.

    `apart` is what it is grouped by always, as a sum over it means nothing: dollars and yen, tokens and calls. Where it
    is the currency, measures are amounts but for `counts`. `times` bounds `accounted_at`.
    `daily`: a faster source that has the same in days of UTC, without the dimensions `within_days`.
    `unknown`: measures that are not known where they are NULL, and have no total then.
    """

    name: str
    about: str
    source: str
    dimensions: Mapping[str, str]
    measures: Mapping[str, str]
    by: tuple[str, ...]
    where: str = "1"
    times: str = WITHIN
    apart: str = "currency"
    counts: frozenset[str] = frozenset()
    having: str = ""
    daily: str = ""
    within_days: frozenset[str] = frozenset()
    unknown: frozenset[str] = frozenset()

    def columns(self, by: Sequence[str]) -> tuple[str, ...]:
        """The columns when it is grouped so."""
        return (*by, *(() if self.apart in by else (self.apart,)), *self.measures, "as_of", "closed")

    def amounts(self) -> frozenset[str]:
        """The columns that are money, in major units."""
        return frozenset(self.measures) - self.counts if self.apart == "currency" else frozenset()

    def sql(self, by: Sequence[str], customer: str | None = None, *, whole_days: bool = False) -> str:
        """The SELECT, with the parameters namespace, start, end and, where one is named, customer.

        `whole_days`: start and end are days of UTC. Raises CannotBe for a dimension that the report does not have.
        """
        strange = [name for name in by if name not in self.dimensions]
        if strange:
            raise CannotBe(
                f"{self.name} cannot be grouped by {strange[0]!r}: it has {', '.join(sorted(self.dimensions))}"
            )
        if len(set(by)) != len(by):
            raise CannotBe("a report is grouped by each column once")
        keys = {name: self.dimensions[name] for name in by}
        keys.setdefault(self.apart, self.dimensions.get(self.apart, self.apart))
        sums = {**self.measures, "as_of": "max(as_of)", "closed": "toBool(min(is_closed))"}
        shown = ", ".join(f"{expression} AS `{name}`" for name, expression in (keys | sums).items())
        source = self.daily if self.daily and whole_days and self.within_days.isdisjoint(by) else self.source
        of_one = " AND customer_id = {customer:String}" if customer is not None else ""
        grouped = f" GROUP BY {', '.join(keys.values())}"
        ordered = f" ORDER BY {', '.join(f'`{name}`' for name in keys)}"
        return (
            f"SELECT {shown} FROM {source} "  # noqa: S608 - all of it is written here; values are parameters
            f"WHERE namespace = {{namespace:String}} AND {self.times} AND {self.where}{of_one}{grouped}"
            f"{f' HAVING {self.having}' if self.having else ''}{ordered}"
        )


_NEAR: Final = (
    "day >= toDate({start:DateTime64(6, 'UTC')} - toIntervalDay(40)) "
    "AND day <= toDate({end:DateTime64(6, 'UTC')} + toIntervalDay(40))"
)
_IN_PERIOD: Final = "accounted_at >= {start:DateTime64(6, 'UTC')}"
_ENTRY: Final = {
    "month": "month",
    "customer": "customer_id",
    "plan": "plan",
    "kind": "kind",
    "component": "component",
    "metric": "metric",
    "description": "description",
}


def _moved(*kinds: str) -> str:
    named = ", ".join(f"'{kind}'" for kind in kinds)
    return f"-sumIf(amount, {_IN_PERIOD} AND kind IN ({named}))"


_DEFERRED: Final = {
    "sold": ("credit_pack",),
    "granted": (GRANTED,),
    "used": ("credit_applied",),
    "given_back": ("credit_restored",),
    "expired": (EXPIRED,),
    "refunded": (REFUNDED, REVOKED),
}
_KNOWN_MOVES: Final = tuple(kind for kinds in _DEFERRED.values() for kind in kinds)


def _major(minor: str) -> str:
    return f"toDecimal128({minor}, 3) / {minor_units('currency')}"


# What an invoice that went out still had open at the end of the period, by its age then; beside it the whole ledger.
_AGEING: Final = """(
    SELECT namespace, customer_id, accounted_at, currency, amount,
        if(kind IN ('dispute', 'dispute_won'), 'disputed', 'ledger') AS age, as_of, is_closed
    FROM finance_entries
    WHERE account = 'receivable'
    UNION ALL
    SELECT
        namespace, customer_id, toDateTime64(finalised_at, 6, 'UTC') AS accounted_at, currency,
        AMOUNT AS amount,
        multiIf(days <= 30, 'd30', days <= 60, 'd60', days <= 90, 'd90', 'older') AS age, as_of, is_closed
    FROM (
        SELECT
            invoice.*, paid.paid_then AS paid_then,
            dateDiff('day', invoice.finalised_at, {end:DateTime64(6, 'UTC')}) AS days
        FROM finance_invoices AS invoice
        LEFT JOIN (
            SELECT invoice_id, sum(amount_minor) AS paid_then
            FROM payments
            WHERE namespace = {namespace:String} AND paid_at < {end:DateTime64(6, 'UTC')}
            GROUP BY invoice_id
        ) AS paid ON invoice.invoice_id = paid.invoice_id
        WHERE invoice.finalised_at IS NOT NULL AND invoice.state != 'void'
    )
)""".replace("AMOUNT", _major("total_minor + tax_added_minor - credited_minor - ifNull(paid_then, 0)"))


_MARGINS: Final = """(
    SELECT
        namespace, customer_id, currency, state, revenue AS earned, cost AS spent, cost_not_ok AS spent_not_ok,
        events AS used, unknown_events AS unpriced, now64(6, 'UTC') AS as_of, state = 'closed' AS is_closed,
        period_start + toIntervalSecond(intDiv(dateDiff('second', period_start, period_end), 2)) AS accounted_at,
        toStartOfMonth(accounted_at) AS month
    FROM margins
)"""

# What came again of a top-up may be a refund that failed, too: what is reversed names it.
_DISPUTES: Final = (
    "kind IN ('dispute', 'dispute_won', 'credit_disputed') "
    "OR kind = 'credit_reinstated' AND startsWith(description, 'dp_')"
)

_ALL: Final = (
    Report(
        "revenue",
        "What was earned: the ledger's account revenue, of closed periods.",
        "finance_entries",
        _ENTRY,
        {"amount": "-sum(amount)", "entries": "count()"},
        ("month", "customer"),
        where="account = 'revenue'",
        counts=frozenset({"entries"}),
    ),
    Report(
        "usage",
        "What was used: quantities and events of the view usage.",
        "finance_usage",
        {
            "month": "month",
            "day": "day",
            "customer": "customer_id",
            "meter": "meter",
            "provider": "provider",
            "model": "model",
            "agent": "agent",
            "tool": "tool",
            "conversation": "conversation_id",
            "status": "status",
            "source": "source",
        },
        {"quantity": "sum(quantity)", "events": "sum(events)"},
        ("month", "customer", "meter"),
        where=_NEAR,
        apart="meter",
        counts=frozenset({"events"}),
        daily="finance_usage_by_day",
        within_days=frozenset({"conversation"}),
    ),
    Report(
        "unbilled",
        "What is rated and on no invoice that went out, open periods included (provisional).",
        "finance_unbilled",
        _ENTRY | {"stage": "stage"},
        {"amount": "sum(amount)", "lines": "count()"},
        ("customer", "stage"),
        counts=frozenset({"lines"}),
    ),
    Report(
        "margin",
        "Revenue beside cost, for each rating (`meterhouse margin` goes finer); unknown costs are told, and never 0.",
        _MARGINS,
        {"month": "month", "customer": "customer_id", "state": "state"},
        {
            "revenue": "sum(earned)",
            "cost": "sum(spent)",
            "cost_not_ok": "sum(spent_not_ok)",
            "margin": "if(sum(unpriced) > 0, NULL, sum(earned) - sum(spent))",
            "events": "sum(used)",
            "unknown": "sum(unpriced)",
        },
        ("month", "customer"),
        counts=frozenset({"events", "unknown"}),
        unknown=frozenset({"margin"}),
    ),
    Report(
        "deferred",
        "Credits that customers have: what was there, what came and went in the period, what is left.",
        "finance_entries",
        {"customer": "customer_id"},
        {
            "opening": f"-sumIf(amount, NOT ({_IN_PERIOD}))",
            **{name: _moved(*kinds) for name, kinds in _DEFERRED.items()},
            "other": f"-sumIf(amount, {_IN_PERIOD} AND kind NOT IN ({', '.join(map(repr, _KNOWN_MOVES))}))",
            "closing": "-sum(amount)",
        },
        ("customer",),
        where="account = 'deferred_credits'",
        times=UNTIL,
    ),
    Report(
        "ageing",
        "What customers owe at the end of the period, by the age of the invoice; equals the ledger's receivable.",
        _AGEING,
        {"customer": "customer_id"},
        {
            "not_invoiced": "sumIf(amount, age = 'ledger') - sumIf(amount, age NOT IN ('ledger', 'disputed'))",
            "days_0_30": "sumIf(amount, age = 'd30')",
            "days_31_60": "sumIf(amount, age = 'd60')",
            "days_61_90": "sumIf(amount, age = 'd90')",
            "older": "sumIf(amount, age = 'older')",
            "disputed": "sumIf(amount, age = 'disputed')",
            "receivable": "sumIf(amount, age IN ('ledger', 'disputed'))",
        },
        ("customer",),
        times=UNTIL,
        having="receivable != 0 OR disputed != 0 OR days_0_30 != 0 OR days_31_60 != 0 OR days_61_90 != 0 OR older != 0",
    ),
    Report(
        "disputes",
        "What customers' banks took back of payments, and what came again; Stripe's fees for it are not in it.",
        "finance_entries",
        {"month": "month", "customer": "customer_id", "kind": "kind", "description": "description"},
        {
            "taken": "-sumIf(amount, amount < 0)",
            "returned": "sumIf(amount, amount > 0)",
            "entries": "count()",
        },
        ("month", "customer"),
        where=f"account = 'cash' AND ({_DISPUTES})",
        counts=frozenset({"entries"}),
    ),
    Report(
        "tax",
        "Tax that was charged: the ledger's account tax.",
        "finance_entries",
        _ENTRY,
        {"amount": "-sum(amount)", "entries": "count()"},
        ("month", "customer"),
        where="account = 'tax'",
        counts=frozenset({"entries"}),
    ),
    Report(
        "corrections",
        "What closed periods were corrected by, and what was adjusted by hand.",
        "finance_entries",
        _ENTRY | {"corrects": "corrects"},
        {"amount": "sum(amount)", "entries": "count()"},
        ("month", "customer", "kind", "description"),
        where="account = 'receivable' AND kind IN ('correction', 'credit_restored', 'adjustment')",
        counts=frozenset({"entries"}),
    ),
    Report(
        "reconciliation",
        "Each closed rating from its lines to the payment; `differs` names the stations that do not agree.",
        "finance_reconciliation",
        {
            "month": "month",
            "customer": "customer_id",
            "period_start": "period_start",
            "state": "state",
            "number": "number",
            "differs": "differs",
        },
        {name: f"sum({_major(f'{name}_minor')})" for name in ("rated", "lines", "ledger", "invoice", "stripe", "paid")},
        ("customer", "period_start", "state", "differs"),
    ),
)

REPORTS: Final[Mapping[str, Report]] = {one.name: one for one in _ALL}
