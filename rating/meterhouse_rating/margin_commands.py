"""`meterhouse margin`: what customers pay beside what their usage costs."""

from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meterhouse_rating.command_line import EXCEPTIONS, Data, Json, existing, print_json, refusals, world_of

if TYPE_CHECKING:
    from meterhouse_rating.margin import Margins, Share

margin = typer.Typer(help="What customers pay beside what their usage costs.", add_completion=False)


@margin.command()
def margin_show(
    period: Annotated[
        str, typer.Option(metavar="P", help="2026-10 (a month in the customer's time zone) or START..END (half-open).")
    ],
    by: Annotated[
        str,
        typer.Option(
            help="Comma-separated: customer, agent, step, model, provider, source, tool, conversation, meter, period."
        ),
    ] = "customer",
    customer: Annotated[str | None, typer.Option(help="Only this customer.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Show so many groups, those of the highest cost.")] = 100,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Show revenue, cost and margin of a period, of its open and closed ratings.

    Exit code 3 where the cost of some usage is unknown, or in a currency that no rate converts.
    """  # fmt: skip
    from meterhouse_rating import costs_rates
    from meterhouse_rating.margin import margins

    with refusals():
        settings = existing(data)
        world = world_of(settings)
        costs_rates.refresh(world)
        names = [name.strip() for name in by.split(",") if name.strip()]
        found = margins(world, period, names, customer)
        if as_json:
            print_json(as_json_document(found))
        else:
            print(as_text(found, limit))
        if not found.certain:
            raise typer.Exit(EXCEPTIONS)


def as_json_document(found: "Margins") -> dict[str, Any]:
    """One document; exact amounts are text, minor units integers. A margin that is not certain is null."""
    from meterhouse_store.numbers import plain

    return {
        "period": found.period,
        "by": list(found.by),
        "margins": [
            dict(zip(found.by, it.values, strict=True))
            | {
                "currency": it.currency,
                "revenue_minor": it.revenue_minor,
                "revenue": plain(it.revenue),
                "cost": plain(it.cost),
                "cost_of_calls_not_ok": plain(it.not_ok),
                "margin": plain(it.margin) if it.certain else None,
                "margin_at_most": plain(it.margin),
                "events": it.events,
                "events_of_unknown_cost": it.unknown,
                "cost_not_converted": {name: plain(cost) for name, cost in sorted(it.foreign.items())},
            }
            for it in found.shares
        ],
        "calls_not_ok": [
            {
                "status": it.status,
                "currency": it.currency or None,
                "events": it.events,
                "events_of_unknown_cost": it.unknown,
                "cost": plain(it.cost),
            }
            for it in found.not_ok
        ],
    }


def as_text(found: "Margins", limit: int) -> str:
    """Tables that line up: the groups, their total, and what calls cost that did not end well."""
    from meterhouse_rating.layout import counted, table

    if not found.shares:
        return f"Nothing is rated and nothing was used in {found.period}."
    rows = [(*found.by, "revenue", "cost", "margin", "", "", "unknown cost")]
    shown = sorted(found.shares, key=lambda it: -it.cost)[:limit]
    rows += [
        (*_named(it), *_money(it))
        for it in (found.shares if len(found.shares) <= limit else sorted(shown, key=lambda it: it.values))
    ]
    for currency in sorted({it.currency for it in found.shares}):
        rows.append((*_padded("Total", len(found.by)), *_money(_total(found.shares, currency))))
    right = set(range(len(found.by), len(found.by) + 3)) | {len(found.by) + 4}
    blocks = [table(rows, right=right)]
    if len(found.shares) > limit:
        blocks.append(
            f"  {limit:,} of {len(found.shares):,} groups are shown, those of the highest cost; --limit, --json"
        )
    if found.not_ok:
        lines = [("calls that are", "events", "cost", "", "unknown cost")]
        lines += [
            (it.status, f"{it.events:,}", _shown(it.cost), it.currency, f"{it.unknown:,}" if it.unknown else "")
            for it in found.not_ok
        ]
        blocks.append(table(lines, right={1, 2, 4}))
    notes = []
    if found.unknown:
        notes.append(
            f"Of {counted(found.unknown, 'event')} the cost is unknown: such margins are at most what is shown "
            "(`meterhouse costs status`)."
        )
    foreign = sorted({f"{name} to {it.currency}" for it in found.shares for name in it.foreign})
    if foreign:
        notes.append(
            f"Cost that no rate converts is left out ({', '.join(foreign)}): add it to the price book's `rates`."
        )
    return "\n\n".join([*blocks, *notes])


def _named(it: "Share") -> tuple[str, ...]:
    return tuple(value or "-" for value in it.values)


def _padded(word: str, length: int) -> tuple[str, ...]:
    return (word, *("",) * (length - 1)) if length else ()


def _money(it: "Share") -> tuple[str, ...]:
    from meterhouse_rating.layout import money

    percent = f"{it.margin * 100 / it.revenue:.1f} %" if it.revenue else ""
    sign = "" if it.certain else "<="
    unknown = f"{it.unknown:,} of {it.events:,} events" if it.unknown else ""
    foreign = " + ".join(f"{_shown(cost)} {name}" for name, cost in sorted(it.foreign.items()))
    return (
        money(it.revenue_minor, it.currency),
        _shown(it.cost),
        f"{sign} {_shown(it.margin)}".strip(),
        it.currency,
        f"{sign} {percent}".strip() if percent else "",
        ", ".join(text for text in (unknown, f"and {foreign}" if foreign else "") if text),
    )


def _shown(amount: Decimal) -> str:
    """Two decimals, and up to six where the amount is less than one."""
    if abs(amount) >= 1:
        return f"{amount:,.2f}"
    whole, _, rest = f"{amount:.6f}".partition(".")
    return f"{whole}.{rest.rstrip('0').ljust(2, '0')}"


def _total(shares: Any, currency: str) -> "Share":
    from meterhouse_rating.margin import Share

    total = Share((), currency)
    for it in shares:
        if it.currency == currency:
            total.revenue_minor += it.revenue_minor
            total.cost += it.cost
            total.not_ok += it.not_ok
            total.events += it.events
            total.unknown += it.unknown
            for name, cost in it.foreign.items():
                total.foreign[name] = total.foreign.get(name, Decimal(0)) + cost
    return total
