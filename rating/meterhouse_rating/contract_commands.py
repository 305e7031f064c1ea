"""`meterhouse contracts`: what a customer agreed to beside its plan. The records are kept by `meterhouse_store`."""

import getpass
import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import typer

from meterhouse_rating.command_line import Data, Json, engine_of, existing, fail, print_json, refusals

contracts = typer.Typer(
    help="Add-ons, own prices, discounts and quantities of customers.", no_args_is_help=True, add_completion=False
)

Customer = Annotated[str, typer.Argument(metavar="CUSTOMER", help="The customer's id.")]
From = Annotated[str | None, typer.Option("--from", metavar="T", help="ISO date or instant; now if not given.")]
Until = Annotated[str | None, typer.Option("--until", metavar="T", help="When it ends; open if not given.")]


@contracts.command("add-on")
def contracts_addon(
    customer: Customer,
    name: Annotated[str, typer.Argument(help="An add-on of the price book.")],
    quantity: Annotated[str, typer.Option(help="How many of it.")] = "1",
    since: From = None,
    until: Until = None,
    data: Data = None,
) -> None:
    """Add an add-on to a customer's plan. May be repeated: the same again changes nothing."""
    from meterhouse_rating import agreeing

    with refusals(), _explained():
        settings = existing(data)
        made = agreeing.add_on(
            engine_of(settings),
            settings.namespace,
            customer,
            name,
            _number(quantity),
            valid_from=_moment(since),
            valid_until=_end(until),
        )
        print(f"{customer} has {_plain(made.quantity)} of the add-on {name} {_span(made)} ({made.agreement_id[:12]}).")


@contracts.command("price")
def contracts_price(
    customer: Customer,
    component: Annotated[str, typer.Argument(help="A component of the customer's plan.")],
    file: Annotated[Path, typer.Argument(help="The component, YAML as in a price book: `model: per_unit` ...")],
    since: From = None,
    until: Until = None,
    data: Data = None,
) -> None:
    """Give a customer a price of its own for one component. It prices months that begin while it holds."""
    from meterhouse_rating import agreeing
    from meterhouse_rating.price_commands import read_text

    with refusals("; nothing was recorded"), _explained():
        settings = existing(data)
        text = read_text(file)
        made = agreeing.own_price(
            engine_of(settings),
            settings.namespace,
            customer,
            component,
            text,
            valid_from=_moment(since),
            valid_until=_end(until),
        )
        print(f"{customer} has a price of its own for {component} {_span(made)} ({made.agreement_id[:12]}).")


@contracts.command("discount")
def contracts_discount(
    customer: Customer,
    name: Annotated[str, typer.Argument(help="What stands on invoices.")],
    percent: Annotated[str | None, typer.Option(help="So many percent off.")] = None,
    amount: Annotated[str | None, typer.Option(help="So much off each month, in the customer's currency.")] = None,
    component: Annotated[
        list[str] | None, typer.Option(help="Only off this component; may be given again. All if not given.")
    ] = None,
    months: Annotated[int | None, typer.Option(help="For so many calendar months, the first included.")] = None,
    before_minimum: Annotated[
        bool, typer.Option("--before-minimum", help="A minimum commitment is compared with what the discount leaves.")
    ] = False,
    since: From = None,
    until: Until = None,
    data: Data = None,
) -> None:
    """Give a customer a discount: a coupon, a promotion, or what it gets for a commitment.

    Discounts apply one after the other as they begin, after the minimum commitment if nothing else is said.
    """
    from meterhouse_rating import agreeing

    with refusals(), _explained():
        settings = existing(data)
        made = agreeing.discount(
            engine_of(settings),
            settings.namespace,
            customer,
            name,
            percent=None if percent is None else _number(percent),
            amount=None if amount is None else _number(amount),
            components=component or (),
            months=months,
            before_minimum=before_minimum,
            valid_from=_moment(since),
            valid_until=_end(until),
        )
        print(f"{customer} has the discount {name} {_span(made)} ({made.agreement_id[:12]}).")


@contracts.command("quantity")
def contracts_quantity(
    customer: Customer,
    name: Annotated[str, typer.Argument(help="What is counted, as the price book names it: seats.")],
    number: Annotated[str, typer.Argument(help="How many from then on.")],
    since: From = None,
    data: Data = None,
) -> None:
    """Say how many of something, such as seats, a customer has from a moment on, where its plan counts that."""
    from meterhouse_rating import agreeing

    with refusals(), _explained():
        settings = existing(data)
        engine = engine_of(settings)
        made = agreeing.quantity(engine, settings.namespace, customer, name, _number(number), valid_from=_moment(since))
        print(f"{customer} has {_plain(made.quantity)} {name} from {_short(made.valid_from)} on.")


@contracts.command("corrections")
def contracts_corrections(
    customer: Customer,
    policy: Annotated[str, typer.Argument(help="next_invoice, credit_note or none.")],
    why: Annotated[str, typer.Option(help="Kept with the record.")] = "",
    data: Data = None,
) -> None:
    """Say what becomes of usage that changes after its period was closed.

    next_invoice (where nothing is said): a line of the next rating, whichever its sign. credit_note: the same, but what
    is in the customer's favour becomes a credit note. none: it is listed and not billed.
    """
    from meterhouse_rating import recorrect
    from meterhouse_store import registry

    if policy not in recorrect.POLICIES:
        fail(f"{policy!r} is no policy: write {', '.join(recorrect.POLICIES)}.", 2)
    with refusals():
        settings = existing(data)
        engine, now = engine_of(settings), datetime.now(UTC)
        if customer not in {it.customer_id for it in registry.customers(engine, settings.namespace)}:
            fail(f"{customer} is not registered: `meterhouse customers add {customer}`")
        who = getpass.getuser()
        new = recorrect.set_policy(engine, settings.namespace, customer, policy, who=who, why=why, now=now)
        print(f"corrections of {customer}: {policy}{'' if new else ', as before'}.")


@contracts.command("end")
def contracts_end(
    agreement: Annotated[str, typer.Argument(metavar="ID", help="The beginning of an id that `show` lists.")],
    on: Annotated[str | None, typer.Option("--on", metavar="T", help="When it ends; now if not given.")] = None,
    data: Data = None,
) -> None:
    """End an add-on, a price of a customer's own, or a discount. The contract itself: `contracts cancel`."""
    from meterhouse_store import agreements

    with refusals(), _explained():
        settings = existing(data)
        made = agreements.end(engine_of(settings), settings.namespace, agreement, _moment(on))
        print(f"{made.agreement_id[:12]} of {made.customer_id} holds {_span(made)}.")


@contracts.command("cancel")
def contracts_cancel(
    customer: Customer,
    at: Annotated[str, typer.Option("--at", metavar="T", help="When it ends: ISO date or instant.")],
    why: Annotated[str, typer.Option(help="Kept with the record.")],
    by: Annotated[str | None, typer.Option(help="Who does it; the account's name if not given.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it comes to; record nothing.")] = False,
    data: Data = None,
) -> None:
    """End a customer's contract. May be repeated; until then `customers withdraw` takes it back.

    It ends at that moment where the price book has plans change `at_once`, else with the month that it falls in. Fees
    and minimums are due up to then, what was paid in advance beyond it comes back, and usage after it has no price.
    """
    from meterhouse_rating import cancelling
    from meterhouse_store import registry

    with refusals(), _explained():
        settings = existing(data)
        engine, moment = engine_of(settings), _moment(at)
        end = cancelling.end_of(engine, settings.namespace, customer, moment)
        if dry_run:
            print(f"The contract of {customer} would end at {_short(end)}.")
            return
        who, now = by or getpass.getuser(), datetime.now(UTC)
        ended, new = registry.end_contract(engine, settings.namespace, customer, moment, who=who, why=why, now=now)
        what = "ends" if new else "ends already"
        print(f"The contract of {customer} on plan {ended.plan} {what} at {_short(end)}.")


@contracts.command("show")
def contracts_show(customer: Customer, data: Data = None, as_json: Json = False) -> None:
    """List what a customer agreed to beside its plan, what has ended too. Times are UTC."""
    from meterhouse_rating.agreeing import words
    from meterhouse_rating.layout import table
    from meterhouse_store import agreements, registry

    with refusals(), _explained():
        settings = existing(data)
        engine, namespace = engine_of(settings), settings.namespace
        every = (agreements.addons, agreements.overrides, agreements.discounts, agreements.quantities)
        found: list[Any] = [it for read in every for it in read(engine, namespace) if it.customer_id == customer]
        if as_json:
            print_json([_json(it) for it in found])
        elif found:
            registered = registry.customer(engine, namespace, customer)
            assert registered is not None, "what is agreed is agreed with a customer"
            rows = [("id", "what", "name", "terms", "holds")]
            told = [(it.agreement_id[:12], *words(it, registered.currency), _span(it)) for it in found]
            print(table(rows + told))
        else:
            print(f"{customer} agreed to nothing beside its plan.")


class _explained:
    """Refusals of the registry end the command with their sentence."""

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: object, error: object, _trace: object) -> None:
        from meterhouse_store.registry import RegistryError

        if isinstance(error, RegistryError):
            print(error, file=sys.stderr)
            raise typer.Exit(1) from None


def _moment(text: str | None) -> datetime:
    from meterhouse_rating.periods import instant

    return datetime.now(UTC) if text is None else instant(text)


def _end(text: str | None) -> datetime | None:
    return None if text is None else _moment(text)


def _number(text: str) -> Decimal:
    from meterhouse_store.numbers import D

    try:
        return D(text.replace("_", ""))
    except ValueError:
        fail(f"{text!r} is no number. Write digits and a point, such as 12.5.", 2)


def _plain(number: Decimal) -> str:
    from meterhouse_store.numbers import plain

    return plain(number)


def _short(moment: datetime) -> str:
    from meterhouse_rating.periods import short

    return short(moment.replace(microsecond=0))


def _span(record: Any) -> str:
    until = getattr(record, "valid_until", None)
    return f"from {_short(record.valid_from)} on" if until is None else f"{_short(record.valid_from)}..{_short(until)}"


def _json(record: Any) -> dict[str, Any]:
    values = {}
    for name, value in vars(record).items():
        if isinstance(value, datetime):
            value = value.isoformat()
        values[name] = _plain(value) if isinstance(value, Decimal) else value
    return values
