"""`meterhouse bill`: what is printed, and the exit codes; the work is done elsewhere."""

import sys
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meterhouse_billing import meter_commands, reconcile_commands, review_commands
from meterhouse_billing.command_line import (
    CALLED_WRONGLY,
    EXCEPTIONS,
    Data,
    Json,
    fail,
    opened,
    print_json,
    print_table,
    refusals,
    row_json,
    say,
    webhook_secret,
    world_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Engine

    from meterhouse_billing.crediting import Note
    from meterhouse_billing.documents import Draft

bill = typer.Typer(help="Turn closed ratings into Stripe invoices.", no_args_is_help=True, add_completion=False)
for _command in (
    review_commands.review,
    review_commands.approve,
    review_commands.hold,
    review_commands.finalise,
    review_commands.void,
    review_commands.settings,
    reconcile_commands.reconcile,
):
    bill.command()(_command)
meter_commands.register(bill)

CustomerOption = Annotated[str | None, typer.Option(help="Only this customer.")]
PeriodOption = Annotated[
    str | None,
    typer.Option(metavar="P", help="2026-10 (a month in the customer's time zone) or START..END (half-open)."),
]


@bill.command()
def run(
    period: PeriodOption = None,
    due: Annotated[bool, typer.Option("--due", help="Every closed rating that has no finalised invoice.")] = False,
    customer: CustomerOption = None,
    approve: Annotated[bool, typer.Option("--approve", help="Finalise what is in Stripe exactly as rated.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be invoiced; change nothing.")] = False,
    workers: Annotated[int, typer.Option(help="So many customers at once.", min=1, max=256)] = 32,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Make Stripe drafts of closed ratings, compare them to the minor unit and, with --approve, finalise them.

    What there is to look at (`bill review`) waits for `bill approve`; --approve is a person's approval of all of them,
    but of none that is on hold, a credit, or for two persons. Carries the credit notes that wait to Stripe, too.

    Works for several customers at once, as fast as Stripe's published limits let it, and prints what was done customer
    by customer; how far it is goes to standard error. May be stopped anywhere and run again: the same invoices come
    out, once. Exit code 3 when an invoice needs a person; it is left as a draft. With --due and without a Stripe key,
    or with sync turned off (`meterhouse namespaces set`), nothing is done, exit code 0.
    """
    from meterhouse_billing import credit_records, mirrors, pool, records
    from meterhouse_billing.gateway import NoStripeKey
    from meterhouse_store import switches
    from meterhouse_store.progress import counting

    if (period is None) == (not due):
        fail("Name a --period, or --due for all that is due.", CALLED_WRONGLY)
    with refusals():
        settings, engine = opened(data)
        drafts = records.drafts(engine, settings.namespace, period=period, customer_id=customer)
        notes = credit_records.notes(engine, settings.namespace, customer, only_open=True)
        if dry_run:
            _print_drafts(engine, drafts, notes, as_json)
            return
        try:
            switches.require(engine, settings.namespace, switches.SYNC)
            world = world_of(settings, engine)
        except (NoStripeKey, switches.SwitchedOff) as missing:
            if not due:
                raise
            waiting = "1 closed rating waits" if len(drafts) == 1 else f"{len(drafts)} closed ratings wait"
            say(f"Nothing is invoiced, {waiting}: {missing}.", as_json)
            return
        exceptions = []
        todo = pool.jobs(world, drafts, notes, approve=approve)
        try:
            with counting(len(todo), "customers", sys.stderr) as advance:
                for step in pool.work(todo, workers, advance):
                    # Flushed line by line: whoever watches, or stops the run, knows what is committed.
                    say(str(step), as_json)
                    if step.failed:
                        exceptions.append({"customer_id": step.customer_id, "text": step.text})
        finally:  # what is committed is reported, also where Stripe does not answer
            if later := mirrors.catch_up(engine, settings):
                say(f"note: {later}", as_json)
        if as_json:
            names = {draft.invoice_id for draft in drafts}
            rows = [row for row in _invoices(engine, settings.namespace) if row["invoice_id"] in names]
            print_json({"invoices": rows, "exceptions": exceptions})
        elif not drafts and not notes:
            print("Nothing to invoice: no closed rating is waiting (`meterhouse rate close` closes a period).")
    if exceptions:
        raise typer.Exit(EXCEPTIONS)


@bill.command()
def status(data: Data = None, as_json: Json = False) -> None:
    """List the invoices with their states, and disputes of payments; asks nobody but our own records."""
    from meterhouse_billing import disputes

    with refusals():
        settings, engine = opened(data)
        rows = _invoices(engine, settings.namespace)
        disputed = disputes.listed(engine, settings.namespace)
    if as_json:
        print_json({"invoices": rows, "disputes": [row_json(row) for row in disputed]})
        return
    if not rows:
        print("No invoices yet: `meterhouse bill run --period P`.")
    else:
        _print_invoices(rows)
    if disputed:
        _print_disputes(disputed)


@bill.command()
def poll(data: Data = None) -> None:
    """Ask Stripe about every invoice that may still change, for webhooks that never came; works off the inbox too."""
    from meterhouse_billing import mirrors, news
    from meterhouse_billing.gateway import NoStripeKey
    from meterhouse_rating.layout import counted

    with refusals():
        settings, engine = opened(data)
        try:
            world = world_of(settings, engine)
        except NoStripeKey as missing:
            print(f"Nothing to ask: {missing}.")
            return
        while done := news.process(world):
            for line in done:
                print(line, flush=True)
        changed = news.poll(world)
        for line in changed:
            print(line, flush=True)
        print(f"{counted(len(changed), 'change')}.")
        if later := mirrors.catch_up(engine, settings):
            print(f"note: {later}")


@bill.command()
def fees(data: Data = None, as_json: Json = False) -> None:
    """What the platform kept of payments to connected accounts, per account and currency: its revenue from them."""
    from meterhouse_billing import fee_records, policies
    from meterhouse_rating.layout import money

    with refusals():
        settings, engine = opened(data)
        found: dict[tuple[str, str], int] = {}
        for customer_id, currency, amount in fee_records.sums(engine, settings.namespace):
            account = policies.load(engine, settings.namespace, customer_id).stripe_account
            found[account, currency] = found.get((account, currency), 0) + amount
    rows = [(*key, amount) for key, amount in sorted(found.items())]
    if as_json:
        print_json({"fees": [dict(zip(("stripe_account", "currency", "kept_minor"), it, strict=True)) for it in rows]})
    elif not rows:
        print("Nothing was kept yet: `meterhouse bill settings --stripe-account acct_... --application-fee 2.5%`.")
    else:
        print_table([(account, money(amount, currency), currency) for account, currency, amount in rows], right=(1,))


@bill.command()
def webhooks(
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8081,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    data: Data = None,
) -> None:
    """Serve POST /webhooks/stripe: checks the signature, stores the event, answers, and works afterwards.

    The signing secret is STRIPE_WEBHOOK_SECRET, else the one that `meterhouse up` made. Without a Stripe key events are
    stored and wait.
    """
    import uvicorn

    from meterhouse_billing import mirrors, news
    from meterhouse_billing.gateway import NoStripeKey
    from meterhouse_billing.webhooks import application

    with refusals():
        settings, engine = opened(data)
        secret = webhook_secret(settings)
        try:
            world = world_of(settings, engine)
        except NoStripeKey as missing:
            print(f"Events are stored and wait: {missing}.", flush=True)
            world = None

    def work() -> None:
        while world is not None and (done := news.process(world)):
            for line in done:
                print(line, flush=True)
            if later := mirrors.catch_up(engine, settings):
                print(f"note: {later}", flush=True)

    app = application(engine, settings.namespace, secret, work)
    uvicorn.run(app, host=host, port=port, log_level="warning", access_log=False, timeout_graceful_shutdown=5)


# ---- what is printed


def _invoices(engine: "Engine", namespace: str) -> list[dict[str, Any]]:
    from meterhouse_billing import records, tax_records
    from meterhouse_rating.money import show

    stated, taxes = records.statements(engine, namespace), tax_records.of_invoices(engine, namespace)
    return [
        {
            "customer_id": row["customer_id"],
            "invoice_id": row["invoice_id"],
            "rating_id": row["rating_id"],
            "period_start": row["period_start"].isoformat(),
            "period_end": row["period_end"].isoformat(),
            "time_zone": row["time_zone"],
            "state": row["state"],
            "currency": row["currency"],
            "total_minor": row["total_minor"],
            "total": show(row["total_minor"], row["currency"]),
            "stripe_invoice_id": row["stripe_invoice_id"],
            "stripe_total_minor": row["stripe_total_minor"],
            "tax_minor": sum(taxes.get(row["stripe_invoice_id"], (0, 0))),
            "number": row["number"],
            "hosted_url": row["hosted_url"],
            "completeness": stated[row["rating_id"]]["statement"] if row["rating_id"] in stated else None,
        }
        for row in records.all_invoices(engine, namespace)
    ]


def _print_invoices(rows: list[dict[str, Any]]) -> None:
    from meterhouse_rating import periods
    from meterhouse_rating.layout import money

    table: list[tuple[str, ...]] = [("customer", "period", "state", "total", "currency", "number", "Stripe invoice")]
    for row in rows:
        period = periods.Period(*(datetime.fromisoformat(row[name]) for name in ("period_start", "period_end")))
        total = money(row["total_minor"], row["currency"])
        named = [row[name] or "" for name in ("number", "stripe_invoice_id")]
        table.append(
            (row["customer_id"], periods.shown(period, row["time_zone"]), row["state"], total, row["currency"], *named)
        )
    print_table(table, right=(3,))
    # Beside the table: Stripe's addresses are longer than any column.
    pages = [(row["number"] or row["stripe_invoice_id"], row["hosted_url"]) for row in rows if row["hosted_url"]]
    if pages:
        print("\nThe customers' pages")
        print_table(pages)
    stated = [(row["customer_id"], row["completeness"]) for row in rows if row["completeness"]]
    if stated:
        print("\nTheir usage, when it was closed")
        print_table([(name, statement["verdict"]) for name, statement in stated])
        for name, statement in stated:
            for exception in statement["exceptions"]:
                print(f"! {name}: {exception}")


def _print_disputes(rows: "Sequence[Mapping[Any, Any]]") -> None:
    from meterhouse_rating.layout import money

    print("\nPayments that banks took back or ask about")
    table: list[tuple[str, ...]] = [("customer", "of", "amount", "currency", "since", "reason", "status")]
    for row in rows:
        amount, since = money(row["amount_minor"], row["currency"]), f"{row['disputed_at']:%Y-%m-%d}"
        of = row["number"] or "top-up"
        table.append((row["customer_id"], of, amount, row["currency"], since, row["reason"], row["status"]))
    print_table(table, right=(2,))


def _print_drafts(engine: "Engine", drafts: list["Draft"], notes: list["Note"], as_json: bool) -> None:
    from meterhouse_billing import fee_records, policies
    from meterhouse_billing.documents import text
    from meterhouse_rating.layout import money

    of = {draft.customer_id: policies.load(engine, draft.namespace, draft.customer_id) for draft in drafts}
    if as_json:
        found = [
            {
                "customer_id": draft.customer_id,
                "rating_id": draft.rating_id,
                "currency": draft.currency,
                "total_minor": draft.total_minor,
                "stripe_account": of[draft.customer_id].stripe_account or None,
                "application_fee_minor": fee_records.of_draft(draft, of[draft.customer_id]),
                "completeness": draft.completeness or None,
                "lines": [{"description": text(line), "amount_minor": line.amount_minor} for line in draft.lines],
            }
            for draft in drafts
        ]
        print_json({"drafts": found, "credit_notes": [vars(note) for note in notes]})
        return
    for draft in drafts:
        print(f"{draft.customer_id}, {draft.period}, {draft.currency}")
        lines = [(f"  {text(line)}", money(line.amount_minor, draft.currency)) for line in draft.lines]
        print_table([*lines, ("  total", money(draft.total_minor, draft.currency))], right=(1,))
        if account := of[draft.customer_id].stripe_account:
            fee = money(fee_records.of_draft(draft, of[draft.customer_id]), draft.currency)
            print(f"  sold by {account}, the platform keeps {fee}")
        if draft.completeness:
            print(f"  {draft.completeness}")
    for note in notes:
        print(f"{note.customer_id}: credit note of {money(note.total_minor, note.currency)} {note.currency}")
    if not drafts and not notes:
        print("Nothing to invoice.")
