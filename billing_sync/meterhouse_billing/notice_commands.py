"""`meterhouse notices`: what is printed, and the exit codes."""

import json
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meterhouse_billing.command_line import EXCEPTIONS, FAILED, Data, Json, fail, opened, operator, refusals

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from meterhouse_billing.notice_templates import Templates

notices = typer.Typer(
    help="What customers and operators are told, and how far it got.", no_args_is_help=True, add_completion=False
)
Customer = Annotated[str | None, typer.Option(help="Only this customer's.")]
Of = Annotated[str, typer.Option("--customer", help="One customer's notices; of all customers if not given.")]
Address = Annotated[str, typer.Argument(metavar="ADDRESS", help="An e-mail address, or the URL of a webhook.")]


@notices.command("list")
def _list(
    customer: Customer = None,
    state: Annotated[str | None, typer.Option(help="With a delivery that is pending, sent or failed.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="So many, the latest first.")] = 50,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """List notices with where they went. Exit code 3 where a delivery failed. Times are UTC."""
    from meterhouse_billing import notices as rows

    with _opened(data) as (engine, namespace):
        found = rows.listed(engine, namespace, customer, state, limit)
    if as_json:
        _print_json({"notices": found})
    elif not found:
        print("No notices.")
    for row in found if not as_json else ():
        print(f"{row['created_at']:%Y-%m-%d %H:%M}  {row['kind']}  {row['subject']}")
        for it in row["deliveries"]:
            print(f"  {it['delivery_id'][:12]}  {it['state']}  {it['address']}{_why(it)}")
        if not row["deliveries"]:
            print("  nobody to send it to: `meterhouse notices add ADDRESS`")
    if any(it["state"] == rows.FAILED for row in found for it in row["deliveries"]):
        raise typer.Exit(EXCEPTIONS)


@notices.command("send")
def _send(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be sent; write nothing.")] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Find what invoices ask to be told, and send what is due; `meterhouse jobs` does it every round.

    Each attempt is on record before it is made. What was not taken is sent again after 1, 5 and 30 minutes, 2, 6, 12
    and 24 hours, and has failed then (exit code 3).
    """
    from meterhouse_billing import notice_sending
    from meterhouse_billing.notice_sending import Sender, Sent
    from meterhouse_billing.notices import FAILED, SENT
    from meterhouse_store.brand import Brand
    from meterhouse_store.mail import MailSettings

    now = datetime.now(UTC)
    with _opened(data) as (engine, namespace):
        sender = Sender(engine, namespace, MailSettings(), Brand(), _templates())
        if dry_run:
            waiting, unsent = notice_sending.due(sender, now), notice_sending.without_mail(sender, now)
            if as_json:
                shown = [{name: it[name] for name in _SHOWN} for it in waiting]
                _print_json({"would_send": shown, "without_mail_server": unsent})
                return
            for row in waiting:
                print(f"would go to {row['address']}: {row['subject']}")
            if not waiting and not unsent:
                print("Nothing is due.")
            _print_unsent(unsent)
            return
        _find(engine, namespace, now)
        done: list[Sent] = []
        for sent in notice_sending.send(sender, now):
            done.append(sent)
            if not as_json:
                print(sent, flush=True)
        unsent = notice_sending.without_mail(sender, now)
        if as_json:
            _print_json({"deliveries": [vars(it) for it in done], "without_mail_server": unsent})
        elif not done and not unsent:
            print("Nothing was due.")
        elif done and all(it.state == SENT for it in done):
            print(f"{len(done)} sent.")
        if not as_json:
            _print_unsent(unsent)
    if any(it.state == FAILED for it in done):
        raise typer.Exit(EXCEPTIONS)


@notices.command("check")
def _check(as_json: Json = False) -> None:
    """Try the operator's own texts (METERHOUSE_NOTICE_TEMPLATES) with made-up facts; exit code 1 where one is wrong.

    Each file is rendered with everything there may be in a notice and with nothing of what may be missing. A name that
    the notice does not have, a value that is not escaped, and a text without its HTML are refused.
    """
    from meterhouse_store.brand import Brand

    with refusals():
        templates = _templates()
        wrong = list(templates.check(Brand()))
    if as_json:
        _print_json({"templates": templates.folder and str(templates.folder), "wrong": wrong})
    elif templates.folder is None:
        print("METERHOUSE_NOTICE_TEMPLATES is not set: all notices have the built-in texts.")
    elif not wrong:
        print(f"The templates in {templates.folder} can be used.")
    for sentence in wrong if not as_json else ():
        print(f"! {sentence}")
    if wrong:
        raise typer.Exit(FAILED)


def _templates() -> "Templates":
    from meterhouse_billing.notice_templates import Templates, TemplateSettings

    return Templates(TemplateSettings().notice_templates)


@notices.command("retry")
def _retry(
    delivery: Annotated[
        str, typer.Argument(metavar="DELIVERY", help="The beginning of a failed delivery's id; or all of them.")
    ] = "all",
    data: Data = None,
) -> None:
    """Begin anew with failed deliveries, under their old ids: the next `send` makes them."""
    from meterhouse_billing import notices as rows

    with _opened(data) as (engine, namespace):
        again = rows.retry(engine, namespace, "" if delivery == "all" else delivery, datetime.now(UTC))
    print(f"{len(again)} will be sent again.")


@notices.command("channels")
def _channels(data: Data = None, as_json: Json = False) -> None:
    """List where notices go beside the customers' own e-mail addresses (`meterhouse customers add --email`)."""
    from meterhouse_billing import notices as rows

    with _opened(data) as (engine, namespace), engine.connect() as connection:
        found = rows.channels(connection, namespace)
    if as_json:
        shown = [{name: value for name, value in vars(it).items() if name != "secret"} for it in found]
        _print_json({"channels": shown})
        return
    for it in found:
        print(f"{it.customer_id or 'all customers'}  {it.kind}  {it.address}  {', '.join(it.kinds) or 'all notices'}")
    if not found:
        print("No channels: `meterhouse notices add ADDRESS`.")


@notices.command("add")
def _add(
    address: Address,
    customer: Of = "",
    kinds: Annotated[str, typer.Option(help="Only these notices: budget_cap,paused.")] = "",
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Send notices there from now on. A webhook's secret is shown once; what it gets is signed with it."""
    from meterhouse_billing import notices as rows

    wanted = [it.strip() for it in kinds.split(",") if it.strip()]
    with _opened(data) as (engine, namespace):
        made = rows.add_channel(engine, namespace, customer, address, wanted, who=operator(), now=datetime.now(UTC))
    if as_json:
        _print_json(vars(made))
        return
    print(f"{address} gets {', '.join(wanted) or 'all notices'} of {customer or 'all customers'}.")
    if made.secret:
        print(f"Its secret, shown this once: {made.secret}")


@notices.command("remove")
def _remove(address: Address, customer: Of = "", data: Data = None) -> None:
    """Send nothing new there."""
    from meterhouse_billing import notices as rows

    with _opened(data) as (engine, namespace):
        rows.remove_channel(engine, namespace, customer, address, datetime.now(UTC))
    print(f"{address} gets nothing new.")


def _print_unsent(emails: int) -> None:
    from meterhouse_rating.layout import counted

    if emails:
        print(f"{counted(emails, 'e-mail')} due and not sent: METERHOUSE_SMTP_URL names no mail server.")


_SHOWN = ("delivery_id", "customer_id", "kind", "channel", "address", "subject", "attempts", "facts")


def _find(engine: "Engine", namespace: str, now: datetime) -> None:
    """Write the notices that invoices ask for."""
    from meterhouse_billing import invoice_notices
    from meterhouse_billing import notices as rows
    from meterhouse_store.sql import begin_write

    found = invoice_notices.of_invoices(engine, namespace, invoice_notices.NoticeSettings(), now)
    with begin_write(engine) as connection:
        rows.keep(connection, found, now)


@contextmanager
def _opened(data: Any) -> "Iterator[tuple[Engine, str]]":
    from meterhouse_store.registry import RegistryError

    with refusals():
        settings, engine = opened(data)
        try:
            yield engine, settings.namespace
        except RegistryError as refused:
            fail(f"{refused}.")


def _why(delivery: dict[str, Any]) -> str:
    if delivery["state"] == "sent" or not delivery["last_error"]:
        return ""
    return f"  after {delivery['attempts']} attempts: {delivery['last_error']}"


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False, default=lambda it: it.isoformat()))
