"""`meterhouse bill review|approve|hold|finalise|void|settings`: what persons look at and decide."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
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
    from meterhouse_billing.crediting import Note
    from meterhouse_billing.documents import Draft
    from meterhouse_billing.policies import Policy
    from meterhouse_billing.reviews import Review
    from meterhouse_billing.run import Step
    from meterhouse_billing.world import World

    Verb = Callable[[World, Draft], Iterator[Step]]

Customer = Annotated[str, typer.Argument(help="The customer.")]
Period = Annotated[str, typer.Option(metavar="P", help="2026-10 or START..END, as for `bill run`.")]
Why = Annotated[str, typer.Option(help="Kept with the decision.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; change nothing.")]


def review(data: Data = None, as_json: Json = False) -> None:
    """List the invoices that wait, with what there is to look at. Exit code 3 when one waits for a person.

    Suspense, completeness, usage without a price, lines below zero, prices of zero, an unusual amount (`bill
    settings`), and totals that differ between rating, ledger and Stripe's draft, as `bill run` found them.
    """
    from meterhouse_billing import reviews

    with refusals():
        settings, engine = opened(data)
        found = reviews.waiting(engine, settings.namespace)
        notes = reviews.notes_waiting(engine, settings.namespace)
    if as_json:
        told = [{**vars(note), "state": state} for note, state in notes]
        print_json({"waiting": [_review_json(one) for one in found], "credit_notes": told})
    elif not found and not notes:
        print("Nothing waits: `meterhouse bill status` lists the invoices.")
    else:
        _print_reviews(found, notes)
    if any(one.for_a_person for one in found) or any(state == "waiting" for _, state in notes):
        raise typer.Exit(EXCEPTIONS)


def approve(
    customer: Customer,
    period: Period,
    why: Annotated[
        str, typer.Option(help="Kept with the decision; needed where there is something to look at, or a hold.")
    ] = "",
    dry_run: DryRun = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Approve an invoice in spite of what there is to look at, once it is in Stripe exactly as rated."""
    from meterhouse_billing import approvals

    _decide(customer, period, data, as_json, dry_run, lambda world, draft: approvals.approve(world, draft, why))


def hold(
    customer: Customer, period: Period, why: Why, dry_run: DryRun = False, data: Data = None, as_json: Json = False
) -> None:
    """Have an invoice wait until a person approves it, whatever the rules say."""
    from meterhouse_billing import approvals

    _decide(customer, period, data, as_json, dry_run, lambda world, draft: approvals.hold(world, draft, why))


def finalise(
    customer: Customer,
    period: Period,
    why: Why = "bill finalise",
    dry_run: DryRun = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Finalise an approved invoice. Above the limit of `bill settings` another person than the one who approved."""
    from meterhouse_billing import approvals

    _decide(
        customer, period, data, as_json, dry_run, lambda world, draft: approvals.finalise_approved(world, draft, why)
    )


def void(
    customer: Customer,
    period: Period,
    why: Why,
    reissue: Annotated[bool, typer.Option("--reissue", help="Make a draft of it again, for a new invoice.")] = False,
    dry_run: DryRun = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Void a finalised invoice that is not paid; the ledger says from then on that it is not owed.

    With --reissue it is a draft again, owed again, and `bill run` makes a new invoice of it in Stripe.
    """
    from meterhouse_billing import approvals

    _decide(
        customer,
        period,
        data,
        as_json,
        dry_run,
        lambda world, draft: approvals.void(world, draft, why, reissue=reissue),
    )


def settings(
    customer: Annotated[str | None, typer.Argument(help="Only for this customer; else for the namespace.")] = None,
    approval: Annotated[str | None, typer.Option(metavar="automatic|person", help="Where nothing is found.")] = None,
    two_persons: Annotated[
        str | None,
        typer.Option(metavar="USD=1000,...", help="Above it one approves, another finalises; none: no limit."),
    ] = None,
    unusual_change: Annotated[
        str | None, typer.Option(metavar="FACTOR", help="How far from usual is looked at (2).")
    ] = None,
    days_until_due: Annotated[str | None, typer.Option(metavar="DAYS", help="Payment terms (30).")] = None,
    paid_credit: Annotated[
        str | None,
        typer.Option(metavar="balance|refund|outside", help="Where credit notes on paid invoices go (balance)."),
    ] = None,
    automatic_tax: Annotated[
        str | None, typer.Option(metavar="on|off", help="Whether Stripe computes tax on invoices (off).")
    ] = None,
    top_up_amounts: Annotated[
        str | None,
        typer.Option(metavar="USD=10/50,...", help="What customers may buy of credits at once; none: nothing."),
    ] = None,
    stripe_account: Annotated[
        str | None, typer.Option(metavar="acct_...|none", help="The connected account that sells (none: the key's).")
    ] = None,
    application_fee: Annotated[
        str | None,
        typer.Option(metavar="2.5%|USD=1,...|none", help="What the platform keeps of a connected account's invoices."),
    ] = None,
    meter_stream: Annotated[
        str | None, typer.Option(metavar="on|off|auto", help="Meter events by Stripe's stream; auto: when very many.")
    ] = None,
    why: Annotated[str, typer.Option(help="Kept with the change.")] = "",
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Show or change how invoices are approved and paid; who changed what, when and why is kept."""
    from meterhouse_billing import policies

    given = {
        policies.APPROVAL: approval,
        policies.TWO_PERSONS: two_persons,
        policies.CHANGE: unusual_change,
        policies.TERMS: days_until_due,
        policies.PAID_CREDIT: paid_credit,
        policies.AUTOMATIC_TAX: automatic_tax,
        policies.TOP_UPS: top_up_amounts,
        policies.ACCOUNT: stripe_account,
        policies.FEE: application_fee,
        policies.STREAM: meter_stream,
    }
    wanted = {name: value for name, value in given.items() if value is not None}
    with refusals():
        opened_settings, engine = opened(data)
        namespace = opened_settings.namespace
        if wanted:
            now = datetime.now(UTC)
            policies.change(engine, namespace, customer or "", wanted, who=operator(), why=why, now=now)
        policy = policies.load(engine, namespace, customer or "")
        changes = policies.history(engine, namespace)
    if as_json:
        print_json({"settings": _policy_json(policy), "changes": [_change_json(row) for row in changes]})
    else:
        _print_policy(policy)


# ---- how it is done


def _decide(customer: str, period: str, data: Path | None, as_json: bool, dry_run: bool, verb: "Verb") -> None:
    """Do it to the customer's invoice of the period: each step is printed when it is committed."""
    from meterhouse_billing import mirrors, records
    from meterhouse_billing.states import NotNow

    with refusals():
        found, engine = opened(data)
        drafts = records.drafts(engine, found.namespace, period=period, customer_id=customer)
        if not drafts:
            fail(f"{customer} has no closed period {period} with anything to invoice.")
        if len(drafts) > 1:
            named = ", ".join(draft.asked for draft in drafts)
            fail(f"{customer} has several closed periods in {period}: name one of {named}.", CALLED_WRONGLY)
        row = records.invoice(engine, drafts[0].invoice_id)
        if dry_run:
            _print_dry(drafts[0], row["state"] if row else "no draft yet", as_json)
            return
        try:
            for step in verb(world_of(found, engine), drafts[0]):
                say(str(step), as_json)
        except NotNow as refused:
            fail(f"{customer}: {refused}.")
        if later := mirrors.catch_up(engine, found):
            say(f"note: {later}", as_json)
        row = records.invoice(engine, drafts[0].invoice_id)
    if as_json and row is not None:
        names = ("customer_id", "invoice_id", "state", "currency", "total_minor", "stripe_invoice_id", "number")
        print_json({name: row[name] for name in names})


def _print_dry(draft: "Draft", state: str, as_json: bool) -> None:
    from meterhouse_billing.documents import text
    from meterhouse_rating.layout import money

    if as_json:
        names = ("customer_id", "rating_id", "currency", "total_minor")
        print_json({"state": state, **{name: getattr(draft, name) for name in names}})
        return
    print(f"{draft.customer_id}: {state}; it would be about this invoice, and nothing is done:")
    lines = [(f"  {text(line)}", money(line.amount_minor, draft.currency)) for line in draft.lines]
    print_table([*lines, ("  total", money(draft.total_minor, draft.currency))], right=(1,))


# ---- what is printed


def _review_json(review: "Review") -> dict[str, Any]:
    row = review.invoice
    return {
        "customer_id": row["customer_id"],
        "invoice_id": row["invoice_id"],
        "period_start": row["period_start"].isoformat(),
        "period_end": row["period_end"].isoformat(),
        "state": row["state"],
        "currency": row["currency"],
        "total_minor": row["total_minor"],
        "stripe_invoice_id": row["stripe_invoice_id"],
        "on_hold": review.on_hold,
        "since": review.since["changed_at"].isoformat(),
        "who": review.since["who"],
        "why": review.since["why"],
        "findings": [vars(one) for one in review.findings],
    }


def _print_reviews(found: list["Review"], notes: list[tuple["Note", str]]) -> None:
    from meterhouse_rating import periods
    from meterhouse_rating.layout import money

    table: list[tuple[str, ...]] = [("customer", "period", "state", "total", "currency", "since", "by")]
    for one in found:
        row = one.invoice
        period = periods.shown(periods.Period(row["period_start"], row["period_end"]), row["time_zone"])
        state = f"{row['state']}, on hold" if one.on_hold else row["state"]
        since = f"{one.since['changed_at']:%Y-%m-%d %H:%M}"
        total = money(row["total_minor"], row["currency"])
        table.append((row["customer_id"], period, state, total, row["currency"], since, one.since["who"]))
    if found:
        print_table(table, right=(3,))
    for note, state in notes:
        print(f"{note.customer_id}: credit note of {money(note.total_minor, note.currency)} {note.currency}, {state}")
    for one in found:
        if one.on_hold:
            print(f"! {one.invoice['customer_id']}: on hold, {one.since['why']}")
        for finding in one.findings:
            print(f"! {one.invoice['customer_id']}: {finding.code}: {finding.sentence}")
    print("\nApprove with `meterhouse bill approve CUSTOMER --period P`; `bill run` finalises what is approved.")


def _policy_json(policy: "Policy") -> dict[str, Any]:
    return {
        "approval": "automatic" if policy.automatic else "person",
        "two_persons_above_minor": dict(policy.limits_minor),
        "unusual_change": str(policy.unusual_change),
        "days_until_due": policy.days_until_due,
        "paid_credit": policy.paid_credit,
        "automatic_tax": policy.automatic_tax,
        "top_up_amounts_minor": {currency: list(amounts) for currency, amounts in policy.top_up_amounts.items()},
        "stripe_account": policy.stripe_account or None,
        "application_fee": str(policy.fee),
        "meter_stream": policy.meter_stream,
    }


def _change_json(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "recorded_at": row["recorded_at"].isoformat()}


def _print_policy(policy: "Policy") -> None:
    from meterhouse_rating.money import show

    limits = ", ".join(policy.limit(currency) for currency in sorted(policy.limits_minor))
    offered = [
        f"{' / '.join(show(amount, currency) for amount in amounts)} {currency}"
        for currency, amounts in sorted(policy.top_up_amounts.items())
    ]
    print_table(
        [
            ("approval, where there is nothing to look at", "automatic" if policy.automatic else "a person's"),
            ("two persons above", f"{limits}; other currencies always" if limits else "no limit"),
            ("unusual change", f"{policy.unusual_change} times"),
            ("payment terms", f"{policy.days_until_due} days"),
            ("credit notes on paid invoices", policy.paid_credit),
            ("tax computed by Stripe", "on" if policy.automatic_tax else "off"),
            ("credits that customers may buy at once", ", ".join(offered) or "none"),
            ("Stripe account that sells", policy.stripe_account or "the key's"),
            ("application fee of the platform", str(policy.fee)),
            ("meter events by Stripe's stream", policy.meter_stream),
        ]
    )
