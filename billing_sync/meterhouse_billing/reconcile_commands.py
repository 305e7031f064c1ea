"""`meterhouse bill reconcile`: what is printed of the comparison, and the end of the freeze after a restore."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meterhouse_billing.command_line import (
    CALLED_WRONGLY,
    EXCEPTIONS,
    Data,
    Json,
    fail,
    opened,
    operator,
    print_json,
    print_table,
    refusals,
    say,
    world_of,
)

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from meterhouse_billing.accounts import Account
    from meterhouse_billing.reconcile import Difference, Row


def reconcile(
    period: Annotated[
        str | None, typer.Option(metavar="P", help="Only this period, as for `bill run`; else all, and accounts.")
    ] = None,
    customer: Annotated[str | None, typer.Option(help="Only this customer.")] = None,
    unfreeze: Annotated[
        bool, typer.Option("--unfreeze", help="Turn sync on again after a restore, where nothing speaks against it.")
    ] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Compare, per invoice: rated = ledger = Stripe; lines, units, credit notes and payments included. Reads only.

    Without --period also what each customer owes here and in Stripe, and what Stripe has that is not known here. Each
    difference has a cause and a next step. Exit code 3 on any difference.
    """
    from meterhouse_billing import accounts, drivers, meter_reconcile, records
    from meterhouse_billing import reconcile as comparison

    if unfreeze and (period is not None or customer is not None):
        fail("--unfreeze compares everything: leave --period and --customer out.", CALLED_WRONGLY)
    with refusals():
        settings, engine = opened(data)
        world = world_of(settings, engine)
        which: dict[str, Any] = {"period": period, "customer_id": customer, "every": period is None}
        rows = comparison.reconcile(world, records.drafts(engine, settings.namespace, **which))
        metered = records.drafts(engine, settings.namespace, **which, driver=drivers.METERS)
        rows += meter_reconcile.reconcile(world, metered, customer, every=period is None)
        compared = [] if period is not None else accounts.compare(world, rows, customer)
    found = [(row.customer_id, one) for row in rows for one in row.differences]
    found += [(account.customer_id, one) for account in compared for one in account.differences]
    if as_json:
        print_json(
            {
                "period": period,
                "equal": not found,
                "invoices": [comparison.as_json(row) for row in rows],
                "accounts": [
                    {**vars(account), "differences": [vars(one) for one in account.differences]} for account in compared
                ],
            }
        )
    else:
        _print(rows, compared, found, period)
    if unfreeze:
        _unfreeze(engine, settings.namespace, len(rows), found, as_json)
    if found:
        raise typer.Exit(EXCEPTIONS)


def _unfreeze(
    engine: "Engine", namespace: str, compared: int, found: list[tuple[str, "Difference"]], as_json: bool
) -> None:
    """Sync is turned on where every difference is one that a run or a poll settles by itself."""
    from meterhouse_rating.layout import counted
    from meterhouse_store import switches

    if switches.is_on(engine, namespace, switches.SYNC):
        say("Sync is on already.", as_json)
        return
    if stopping := [one for _, one in found if not one.waits]:
        fail(f"Sync stays off: {counted(len(stopping), 'difference')} a person has to settle first.", EXCEPTIONS)
    why = f"reconciled: {counted(compared, 'invoice')}, {counted(len(found), 'difference')} that runs settle"
    states = {switches.SYNC: switches.ON}
    switches.turn(engine, namespace, states, who=operator(), why=why, now=datetime.now(UTC))
    say(f"Sync of {namespace} is on again: {why}.", as_json)


def _print(
    rows: list["Row"], compared: list["Account"], found: list[tuple[str, "Difference"]], period: str | None
) -> None:
    from meterhouse_rating.layout import money

    if not rows:
        named = f"of {period} " if period else ""
        option = f" --period {period}" if period else ""
        print(
            f"Nothing to compare: no rating {named}is closed. `meterhouse rate status{option}` shows what is rated, "
            f"`meterhouse rate close{option}` closes it."
        )
    else:
        _print_invoices(rows)
    if compared:
        print("\nWhat customers owe")
        sums = ("ledger", "open", "balance", "not final", "notes", "by hand", "disputed", "ahead")
        table: list[tuple[str, ...]] = [("customer", "currency", *sums, "")]
        for one in compared:
            amounts = [
                one.ledger_minor,
                one.open_minor,
                one.balance_minor,
                one.not_finalised_minor,
                -one.notes_waiting_minor,
                one.adjusted_minor,
                one.disputed_minor,
                -one.ahead_minor,
            ]
            shown = [money(amount, one.currency) for amount in amounts]
            table.append((one.customer_id, one.currency, *shown, "differs" if one.differences else "equal"))
        print_table(table, right=(2, 3, 4, 5, 6, 7, 8, 9))
    for customer_id, difference in found:
        print(f"{customer_id}: {difference.cause}\n  -> {difference.next_step}")


def _print_invoices(rows: list["Row"]) -> None:
    from meterhouse_rating.layout import money

    table: list[tuple[str, ...]] = [
        ("customer", "state", "currency", "rated", "ledger", "Stripe", "credited", "paid", "")
    ]
    for row in rows:
        amounts = [row.rated_minor, row.ledger_minor, row.stripe_minor, row.credited_minor, row.stripe_paid_minor]
        shown = ["-" if amount is None else money(amount, row.currency) for amount in amounts]
        quiet = "billed ahead" if row.ahead_minor else "equal"
        table.append((row.customer_id, row.state, row.currency, *shown, "differs" if row.differences else quiet))
    print_table(table, right=(3, 4, 5, 6, 7))
