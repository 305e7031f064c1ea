"""`meterhouse credits`: what rating knows of credits, and the top-ups that Stripe is asked to collect."""

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
    row_json,
    say,
    world_of,
)
from meterhouse_rating.command_line import refusals as credit_refusals
from meterhouse_rating.credit_commands import credits

if TYPE_CHECKING:
    from meterhouse_billing.charge_rules import Rule

__all__ = ["credits"]

Customer = Annotated[str, typer.Argument(metavar="CUSTOMER", help="The customer's id.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show exactly what would be sent; change nothing.")]


@credits.command("top-up")
def _top_up(
    customer: Customer,
    amount: Annotated[str, typer.Option(help="One of `bill settings --top-up-amounts`, in the customer's currency.")],
    return_url: Annotated[
        str | None, typer.Option(help="Where Stripe sends the customer afterwards; the portal's address if not given.")
    ] = None,
    reference: Annotated[str, typer.Option(help="A name of yours: with it, it is the same page again.")] = "",
    dry_run: DryRun = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Print the address of a page of Stripe on which the customer pays for credits; it is good for a day.

    The credits are granted when Stripe has the money (a webhook, or `meterhouse bill poll`), once, and taken back when
    that is refunded or disputed.
    """
    from meterhouse_billing import top_ups
    from meterhouse_billing.stripe_customers import registered
    from meterhouse_rating.ledger_books import minor_of

    with refusals(), credit_refusals():
        settings, engine = opened(data)
        world = world_of(settings, engine)
        amount_minor = minor_of(amount, str(registered(world, customer)["currency"]))
        back = return_url or settings.public_url
        if not back:
            fail("Name a --return-url (https://...): METERHOUSE_PUBLIC_URL is not set.", CALLED_WRONGLY)
        asked = (world, customer, amount_minor, back)
        if dry_run:
            _, params = top_ups.request(*asked, who=operator(), reference=reference)
            print_json({"operation": "checkout.create", "params": params})
            return
        made = top_ups.start(*asked, who=operator(), reference=reference)
    if as_json:
        print_json(vars(made))
    else:
        print(made.url)


@credits.command("top-up-rule")
def _top_up_rule(
    customer: Annotated[str | None, typer.Argument(help="Whose; without it all rules are listed.")] = None,
    below: Annotated[str | None, typer.Option(help="Whenever less than this is left.")] = None,
    amount: Annotated[str | None, typer.Option(help="What is bought each time.")] = None,
    per_day: Annotated[int, typer.Option(help="So many charges a day at most, in the customer's time zone.")] = 1,
    per_month: Annotated[int, typer.Option(help="And so many a month.")] = 10,
    off: Annotated[bool, typer.Option("--off", help="Buy nothing automatically any more.")] = False,
    why: Annotated[str, typer.Option(help="Kept with the change.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing.")] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Show or set when a customer's default payment method is charged for more credits, without it being there.

    `meterhouse credits top-up-due`, which `meterhouse jobs` runs, makes the charges. One that fails turns the rule off
    and is told (docs/notices.md).
    """
    from meterhouse_billing import charge_rules
    from meterhouse_billing.charge_rules import Rule
    from meterhouse_rating.credit_changes import customer_currency

    with refusals(), credit_refusals():
        settings, engine = opened(data)
        namespace = settings.namespace
        if customer is not None and (off or below is not None or amount is not None):
            if not off and (below is None or amount is None):
                fail("Give both --below and --amount, or --off.", CALLED_WRONGLY)
            with engine.connect() as connection:
                currency = customer_currency(connection, namespace, customer)
            bought = 0 if off else _minor(amount, currency)
            limits = (0 if off else _minor(below, currency), bought, per_day, per_month)
            rule = Rule(customer, *limits, currency, operator(), why, datetime.now(UTC))
            charge_rules.put(engine, namespace, rule, write=not dry_run)
        elif customer is not None and why:
            fail("Give --below and --amount, or --off.", CALLED_WRONGLY)
        found = [it for it in charge_rules.rules(engine, namespace) if customer in (None, it.customer_id)]
        if dry_run:
            found = [rule]
    if as_json:
        print_json({"rules": [_rule_json(it) for it in found]})
    elif not found:
        print("No rules: `meterhouse credits top-up-rule CUSTOMER --below 10 --amount 50 --why ...`.")
    else:
        head = ("customer", "buys", "below", "a day", "a month", "by", "why")
        print_table([head, *(_rule_row(it) for it in found)], right=(1, 2, 3, 4))


@credits.command("top-up-due")
def _top_up_due(
    customer: Annotated[str | None, typer.Option(help="Only this customer.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show who would be charged; change nothing.")] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Charge the customers whose rules ask for it; `meterhouse jobs` does it every round.

    May be stopped anywhere and run again: nobody is charged twice for one need. Without a Stripe key, or with sync
    turned off, nothing is done, exit code 0. Exit code 3 when a charge failed or cannot be made.
    """
    from meterhouse_billing import mirrors, top_up_charges
    from meterhouse_billing.gateway import NoStripeKey
    from meterhouse_store import switches

    with refusals(), credit_refusals():
        settings, engine = opened(data)
        done = []
        try:
            switches.require(engine, settings.namespace, switches.SYNC)
            world = world_of(settings, engine)
        except (NoStripeKey, switches.SwitchedOff) as missing:
            say(f"Nobody is charged: {missing}.", as_json)
            return
        for step in top_up_charges.charge_due(world, customer, dry_run=dry_run):
            done.append(step)
            say(str(step), as_json)
        if later := mirrors.catch_up(engine, settings):
            say(f"note: {later}", as_json)
        if as_json:
            print_json({"steps": [vars(step) for step in done]})
        elif not done:
            print("Nobody is charged: no rule asks for it.")
    if any(step.failed for step in done):
        raise typer.Exit(EXCEPTIONS)


@credits.command("top-ups")
def _top_ups(
    customer: Annotated[str | None, typer.Option(help="Only this customer's.")] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """List what customers bought through Stripe, and disputes. Exit code 3 where Stripe shows another amount."""
    from meterhouse_billing import disputes, purchases

    with refusals(), credit_refusals():
        settings, engine = opened(data)
        found = purchases.listed(engine, settings.namespace, customer)
        disputed = [
            row for row in disputes.listed(engine, settings.namespace, customer) if row["stripe_invoice_id"] is None
        ]
    wrong = [row for row in found if row["problem"] and row["state"] == purchases.OPEN]
    if as_json:
        print_json({"top_ups": [row_json(row) for row in found], "disputes": [row_json(row) for row in disputed]})
    elif not found:
        print("No top-ups yet: `meterhouse credits top-up CUSTOMER --amount A`.")
    else:
        _print_top_ups(found, disputed)
    if wrong:
        raise typer.Exit(EXCEPTIONS)


# ---- what is printed


def _print_top_ups(found: Any, disputed: Any) -> None:
    from meterhouse_rating.layout import money

    rows = [("customer", "asked for", "how", "amount", "", "state", "Stripe")]
    for row in found:
        named = row["payment_intent"] or row["stripe_id"] or ""
        amount = money(row["amount_minor"], row["currency"])
        asked = f"{row['created_at']:%Y-%m-%d %H:%M}"
        rows.append((row["customer_id"], asked, row["how"], amount, row["currency"], row["state"], named))
    print_table(rows, right=(3,))
    for row in found:
        if row["problem"]:
            print(f"! {row['customer_id']}: {row['problem']}")
    for row in disputed:
        amount = f"{money(row['amount_minor'], row['currency'])} {row['currency']}"
        told = f"disputed on {row['disputed_at']:%Y-%m-%d} ({row['reason']}): {row['status']}"
        print(f"! {row['customer_id']}: {amount} of {row['payment_intent']} {told}")


def _rule_row(rule: "Rule") -> tuple[str, ...]:
    from meterhouse_rating.layout import money

    buys = f"{money(rule.amount_minor, rule.currency)} {rule.currency}" if rule.is_on else "off"
    below = money(rule.below_minor, rule.currency)
    return rule.customer_id, buys, below, str(rule.per_day), str(rule.per_month), rule.who, rule.why


def _rule_json(rule: "Rule") -> dict[str, Any]:
    return vars(rule) | {"is_on": rule.is_on, "recorded_at": rule.recorded_at.isoformat()}


def _minor(amount: str | None, currency: str) -> int:
    from meterhouse_rating.ledger_books import minor_of

    text = amount or ""
    return 0 if text and not text.strip("0.") else minor_of(text, currency)
