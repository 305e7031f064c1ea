"""`meterhouse credits`: grants, balances, refunds, revocations and top-up rules of customers."""

import getpass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meterhouse_rating.command_line import Data, Json, engine_of, existing, print_json, refusals

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from meterhouse_rating.credit_changes import Change
    from meterhouse_rating.credits import Grant

credits = typer.Typer(help="Prepaid and promotional credits of customers.", no_args_is_help=True, add_completion=False)

Customer = Annotated[str, typer.Argument(metavar="CUSTOMER", help="The customer's id.")]
GrantId = Annotated[str, typer.Argument(metavar="GRANT", help="The beginning of an id that `credits list` shows.")]
Why = Annotated[str, typer.Option(help="Kept with the transaction.")]
By = Annotated[str | None, typer.Option(help="Who; the user of this machine if not given.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Write nothing.")]
Part = Annotated[str | None, typer.Option("--amount", help="A part; all that is left if not given.")]
From = Annotated[str | None, typer.Option("--from", metavar="T", help="ISO date or instant; now if not given.")]


@credits.command("grant")
def credits_grant(
    customer: Customer,
    amount: Annotated[str, typer.Argument(help="In the customer's currency: 50.00.")],
    why: Why,
    bought: Annotated[bool, typer.Option("--bought/--promotional", help="Paid for already, or given away.")] = False,
    since: From = None,
    expires: Annotated[str | None, typer.Option(metavar="T", help="When it expires; never if not given.")] = None,
    priority: Annotated[int, typer.Option(min=0, max=10_000, help="Lower ones are used first.")] = 0,
    rollover: Annotated[
        str | None, typer.Option(help="Up to so much of what is left is carried over when it expires.")
    ] = None,
    reference: Annotated[
        str, typer.Option(help="A name of yours; granting with it a second time changes nothing.")
    ] = "",
    by: By = None,
    dry_run: DryRun = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Grant credits. They pay usage of the periods in which they hold, never fees."""
    from meterhouse_rating import credit_changes
    from meterhouse_rating.credits import BOUGHT, PROMOTIONAL, Grant
    from meterhouse_rating.periods import instant

    with refusals():
        settings = existing(data)
        engine, now = engine_of(settings), datetime.now(UTC)
        currency = _currency(engine, settings.namespace, customer)
        wanted = Grant(
            "",
            BOUGHT if bought else PROMOTIONAL,
            _minor(amount, currency),
            now if since is None else instant(since),
            None if expires is None else instant(expires),
            priority,
            0 if rollover is None else _minor(rollover, currency),
        )
        made = credit_changes.grant(
            engine, settings.namespace, customer, wanted, currency,
            reference=reference, who=by or getpass.getuser(), why=why, now=now, write=not dry_run,
        )  # fmt: skip
        _print_change(made, "granted", dry_run, as_json)


@credits.command("list")
def credits_list(
    customer: Annotated[str | None, typer.Option(help="Only this customer.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Those that are used up, too.")] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """List grants and what is left of them; what open ratings use counts as used. Times are UTC."""
    from meterhouse_rating import credit_changes
    from meterhouse_rating.layout import money, table
    from meterhouse_rating.periods import short

    with refusals():
        settings = existing(data)
        rows = credit_changes.listed(engine_of(settings), settings.namespace, customer)
        rows = [row for row in rows if every or row["left_minor"]]
        if as_json:
            print_json([dict(row) for row in rows])
            return
        shown = [
            (
                row["grant_id"][:12],
                row["customer_id"],
                row["kind"],
                money(row["left_minor"], row["currency"]),
                money(row["amount_minor"], row["currency"]),
                row["currency"],
                str(row["priority"]),
                short(row["granted_at"].replace(microsecond=0)),
                "never" if row["expires_at"] is None else short(row["expires_at"].replace(microsecond=0)),
            )
            for row in rows
        ]
        head = ("id", "customer", "kind", "left", "of", "", "priority", "from", "expires")
        print(table([head, *shown], right={3, 4, 6}) if shown else "No credits are left.")


@credits.command("balance")
def credits_balance(
    customer: Customer,
    at: Annotated[str | None, typer.Option("--at", metavar="T", help="As posted up to an ISO date or instant.")] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """The credits of a customer in the order in which they are used: now, with what open ratings use; or at a time."""
    from meterhouse_rating import credit_changes
    from meterhouse_rating.layout import money, table
    from meterhouse_rating.money import show
    from meterhouse_rating.periods import instant, short

    with refusals():
        settings = existing(data)
        moment = datetime.now(UTC) if at is None else instant(at)
        currency, grants = credit_changes.balance(
            engine_of(settings), settings.namespace, customer, moment, with_open=at is None
        )
        total = sum(it.left_minor for it in grants)
        if as_json:
            told = [_grant_json(it, currency) for it in grants]
            balance = {"customer_id": customer, "currency": currency, "at": moment.isoformat()}
            print_json(balance | {"balance_minor": total, "balance": show(total, currency), "grants": told})
            return
        rows = [
            (
                it.kind,
                money(it.left_minor, currency),
                currency,
                "" if it.expires_at is None else f"until {short(it.expires_at.replace(microsecond=0))}",
                it.grant_id[:12],
            )
            for it in grants
        ]
        print(table([*rows, ("Total", money(total, currency), currency, "", "")], right={1}))


@credits.command("refund")
def credits_refund(
    grant: GrantId,
    why: Why,
    amount: Part = None,
    by: By = None,
    dry_run: DryRun = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Refund the unused rest of bought credits: it is posted against cash, the money is yours to send."""
    from meterhouse_rating.credit_changes import REFUNDED

    _give_back(grant, REFUNDED, "refunded", amount, why, by, dry_run, data, as_json)


@credits.command("revoke")
def credits_revoke(
    grant: GrantId,
    why: Why,
    amount: Part = None,
    by: By = None,
    dry_run: DryRun = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Take back the unused rest of promotional credits."""
    from meterhouse_rating.credit_changes import REVOKED

    _give_back(grant, REVOKED, "revoked", amount, why, by, dry_run, data, as_json)


@credits.command("top-up-on-invoice")
def credits_top_up_on_invoice(
    customer: Customer,
    amount: Annotated[str, typer.Argument(help="What is bought each time; 0 ends the rule.")],
    below: Annotated[str, typer.Option(help="Whenever less than this would be left.")] = "0",
    times: Annotated[int, typer.Option(min=1, max=1000, help="At most so often in a period.")] = 10,
    since: From = None,
    by: By = None,
    dry_run: DryRun = False,
    data: Data = None,
) -> None:
    """Let credits be bought whenever a period's usage needs them: a line of its rating, and of the invoice."""
    from meterhouse_rating import credit_changes
    from meterhouse_rating.periods import instant

    with refusals():
        settings = existing(data)
        engine, now = engine_of(settings), datetime.now(UTC)
        currency = _currency(engine, settings.namespace, customer)
        new = credit_changes.set_top_up(
            engine,
            settings.namespace,
            customer,
            below_minor=_minor(below, currency, zero=True),
            amount_minor=_minor(amount, currency, zero=True),
            times=times,
            valid_from=now if since is None else instant(since),
            who=by or getpass.getuser(),
            now=now,
            write=not dry_run,
        )
        done = "would be recorded (dry run)" if dry_run else "recorded" if new else "was recorded already"
        print(f"{customer}: top-up of {amount} {currency} below {below} {currency}, {times} times a period: {done}.")


def _give_back(
    grant: str,
    kind: str,
    word: str,
    amount: str | None,
    why: str,
    by: str | None,
    dry_run: bool,
    data: Any,
    as_json: bool,
) -> None:
    from meterhouse_rating import credit_changes

    with refusals():
        settings = existing(data)
        engine = engine_of(settings)
        currencies = {
            row["currency"]
            for row in credit_changes.listed(engine, settings.namespace, None)
            if row["grant_id"].startswith(grant)
        }
        part = None if amount is None or len(currencies) != 1 else _minor(amount, currencies.pop())
        made = credit_changes.give_back(
            engine, settings.namespace, grant, kind,
            amount_minor=part, who=by or getpass.getuser(), why=why, now=datetime.now(UTC), write=not dry_run,
        )  # fmt: skip
        _print_change(made, word, dry_run, as_json)


def _currency(engine: "Engine", namespace: str, customer: str) -> str:
    from meterhouse_rating.credit_changes import customer_currency

    with engine.connect() as connection:
        return customer_currency(connection, namespace, customer)


def _minor(amount: str, currency: str, *, zero: bool = False) -> int:
    from meterhouse_rating.ledger_books import minor_of

    return 0 if zero and not amount.strip("0.") else minor_of(amount, currency)


def _print_change(made: "Change", word: str, dry_run: bool, as_json: bool) -> None:
    from meterhouse_rating.money import show

    if as_json:
        amounts = {"amount": show(made.amount_minor, made.currency), "left": show(made.left_minor, made.currency)}
        print_json(vars(made) | amounts | {"dry_run": dry_run})
        return
    done = f"would be {word} (dry run)" if dry_run else word if made.new else f"{word} already"
    amount, left = show(made.amount_minor, made.currency), show(made.left_minor, made.currency)
    print(f"{made.customer_id}: {amount} {made.currency} of {made.kind} credits {done}; {left} are left.")
    print(f"grant {made.grant_id}")


def _grant_json(grant: "Grant", currency: str) -> dict[str, Any]:
    from meterhouse_rating.money import show

    return vars(grant) | {"left": show(grant.left_minor, currency)}
