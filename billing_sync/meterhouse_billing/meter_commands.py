"""`meterhouse bill driver`, `setup`, `sync`, `meters`, `link`: billing by Stripe's own meters."""

import time
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meterhouse_billing.command_line import (
    CALLED_WRONGLY,
    EXCEPTIONS,
    METERS_KEY,
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

    from meterhouse_billing import meter_sync
    from meterhouse_store.settings import Settings

CustomerOption = Annotated[str | None, typer.Option(help="Only this customer.")]


def register(bill: typer.Typer) -> None:
    """Add the commands to `meterhouse bill`."""
    for command in (driver, setup, sync, meters, link):
        bill.command()(command)


def driver(
    customer: Annotated[str | None, typer.Argument(help="Whose; without it all that were switched are listed.")] = None,
    to: Annotated[str | None, typer.Argument(metavar="[invoices|meters]", help="The driver from then on.")] = None,
    since: Annotated[
        str | None, typer.Option("--from", metavar="MONTH", help="2026-12; the default is the next month.")
    ] = None,
    why: Annotated[str, typer.Option(help="Kept with the change.")] = "",
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Show or change how a customer is billed: `invoices` of Meterhouse (the default), or Stripe's `meters`.

    A customer has one of the two, and changes at the edge of a month: what is billed already is never billed again.
    Afterwards `meterhouse bill setup` makes what the meters need in Stripe.
    """
    from meterhouse_billing import drivers
    from meterhouse_rating import periods
    from meterhouse_store import registry

    with refusals():
        settings, engine = opened(data)
        if customer is None:
            _print_drivers(drivers.drivers(engine, settings.namespace), as_json)
            return
        if to is None:
            fail(f"Name the driver: {' or '.join(drivers.DRIVERS)}.", CALLED_WRONGLY)
        zones = {it.customer_id: it.time_zone for it in registry.customers(engine, settings.namespace)}
        start = None if since is None else periods.parse(since, zones.get(customer, "UTC")).start
        changed = drivers.switch(
            engine, settings.namespace, customer, to, valid_from=start, who=operator(), why=why, now=_now()
        )
        if as_json:
            print_json(_driver_json(changed))
            return
        print(f"{customer} is billed by {changed.driver} from {periods.short(changed.valid_from)} on.")
        if changed.driver == drivers.METERS:
            print(f"Next: meterhouse bill setup --customer {customer}")
        else:
            print("A subscription that it has in Stripe ends there: the next `meterhouse bill sync` tells Stripe.")


def setup(
    customer: CustomerOption = None,
    map_: Annotated[
        list[str] | None, typer.Option("--map", metavar="CUSTOMER=cus_...", help="Adopt this customer of Stripe.")
    ] = None,
    new: Annotated[
        list[str] | None, typer.Option(metavar="CUSTOMER", help="Make another one although its e-mail is in Stripe.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be sent; change nothing.")] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Make what customers on the meters need in Stripe: products, prices, meters, customers, subscriptions.

    What is there is found and kept; run twice, it makes nothing. A plan that Stripe's prices cannot express to the cent
    is refused, with the reasons. Exit code 3 when a customer could not be set up.
    """
    from meterhouse_billing.meter_setup import Choice
    from meterhouse_billing.meter_setup import setup as steps
    from meterhouse_store import switches
    from meterhouse_store.meters import declared

    with refusals():
        settings, engine = opened(data)
        mapped = dict(_pair(it) for it in map_ or ())
        if not dry_run:
            switches.require(engine, settings.namespace, switches.SYNC)
        world = world_of(settings, engine)
        choice = Choice(mapped, frozenset(new or ()))
        done = []
        for step in steps(world, declared(settings), choice, only=customer, dry_run=dry_run):
            done.append(step)
            say(str(step), as_json)
            if step.request is not None and not as_json:
                print_json(step.request)
        if as_json:
            print_json({"steps": [vars(step) for step in done]})
        elif not done:
            print("Nothing to do: every customer on the meters has all it needs in Stripe.")
    if any(step.failed for step in done):
        raise typer.Exit(EXCEPTIONS)


def sync(
    customer: Annotated[str | None, typer.Option(help="With --repair: whose month.")] = None,
    sealed: Annotated[bool, typer.Option("--sealed", help="Leave the hour under way out: fewest events.")] = False,
    watch: Annotated[
        int | None, typer.Option(metavar="SECONDS", help="Go on, a round every so many seconds.", min=1)
    ] = None,
    repair: Annotated[
        str | None, typer.Option(metavar="MONTH", help="Send the hours anew that differ in Stripe; with --customer.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what waits to be sent; change nothing.")] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Bring the usage of customers on the meters to Stripe, hour by hour, and compare the months that are over.

    Repeatable at any time: totals are absolute, and each is written down before it is sent. Schedule it every minute,
    or use --watch. Without such customers or without a Stripe key it does nothing, exit code 0. Exit code 3 when
    something needs a person; `meterhouse bill meters` lists it.
    """
    from meterhouse_billing import drivers
    from meterhouse_billing.gateway import NoStripeKey, StripeUnavailable
    from meterhouse_billing.meter_lock import Busy
    from meterhouse_store import switches
    from meterhouse_store.warehouse import WarehouseUnavailable

    if (repair is None) != (customer is None):
        fail("--repair and --customer go together.", CALLED_WRONGLY)
    with refusals():
        settings, engine = opened(data)
        if dry_run:
            _print_waiting(settings, engine, as_json)
            return
        while True:
            steps: list[meter_sync.Step] = []
            try:
                switches.require(engine, settings.namespace, switches.SYNC)
                if not any(
                    it.driver == drivers.METERS
                    for found in drivers.drivers(engine, settings.namespace).values()
                    for it in found
                ):
                    say("Nothing to do: no customer is billed by Stripe's meters (`meterhouse bill driver`).", as_json)
                else:
                    for step in _round(settings, engine, sealed, repair, customer):
                        steps.append(step)
                        say(str(step), as_json)
            except (NoStripeKey, switches.SwitchedOff) as missing:
                say(f"Nothing is sent: {missing}.", as_json)
            except (StripeUnavailable, Busy, WarehouseUnavailable) as problem:
                if watch is None:
                    raise
                say(f"{problem}; tried again in {watch} s", as_json)
            if watch is None:
                break
            time.sleep(watch)
        if as_json:
            print_json({"steps": [vars(step) for step in steps]})
    if any(step.failed for step in steps):
        raise typer.Exit(EXCEPTIONS)


def meters(
    customer: Annotated[str | None, typer.Option(help="With --handled: whose month.")] = None,
    handled: Annotated[
        str | None,
        typer.Option(
            metavar="MONTH", help="What differs in it is seen to: list it no more; with --customer and --why."
        ),
    ] = None,
    why: Annotated[str, typer.Option(help="With --handled: what was done. Kept in the audit log.")] = "",
    data: Data = None,
    as_json: Json = False,
) -> None:
    """List, per customer and meter, what was sent to Stripe, and everything that needs a person; asks nobody.

    A difference in a month that is over is listed until it is mended, or until --handled says that somebody saw to it,
    by a credit note in Stripe for instance; it is listed again when it changes. Exit code 3 when something is listed.
    """
    from meterhouse_billing import meter_close, meter_records
    from meterhouse_billing.drivers import drivers
    from meterhouse_rating import periods

    if (handled is None) != (customer is None) or (handled is None and why):
        fail("--handled, --customer and --why go together.", CALLED_WRONGLY)
    with refusals():
        settings, engine = opened(data)
        namespace = settings.namespace
        if handled is not None and customer is not None:
            month = periods.parse(handled, "UTC")
            done = meter_close.handle(engine, namespace, month, customer, who=operator(), why=why, now=_now())
            for it in done:
                say(f"{customer}: {handled}: what differs of {it.event_name} is seen to", as_json)
        counts = meter_records.counts(engine, namespace)
        frozen = meter_records.frozen(engine, namespace)
        subscriptions = meter_records.subscriptions(engine, namespace)
        found = list(meter_close.exceptions(engine, namespace, drivers(engine, namespace), subscriptions))
    if as_json:
        print_json(
            {
                "meters": [
                    {"customer_id": lane[0], "event_name": lane[1], **states} for lane, states in counts.items()
                ],
                "months": [
                    {
                        "customer_id": it.customer_id,
                        "event_name": it.event_name,
                        "month": f"{it.period.start:%Y-%m}",
                        "ours": str(it.ours),
                        "stripes": str(it.stripes),
                        "later": str(it.later),
                        "frozen_at": it.frozen_at.isoformat(),
                        "handled_at": None if it.handled_at is None else it.handled_at.isoformat(),
                    }
                    for it in frozen
                ],
                "exceptions": [vars(step) for step in found],
            }
        )
    else:
        _print_meters(counts, frozen)
        for step in found:
            print(f"! {step}")
    if found:
        raise typer.Exit(EXCEPTIONS)


def link(
    customer: Annotated[str, typer.Argument(help="Whose.")],
    return_url: Annotated[str, typer.Option(help="Where Stripe sends the customer afterwards (https://...).")],
    data: Data = None,
) -> None:
    """Print the address of a page of Stripe on which the customer leaves a way to pay. It is good for a day."""
    from meterhouse_billing.meter_setup import payment_link

    with refusals():
        settings, engine = opened(data)
        print(payment_link(world_of(settings, engine), customer, return_url))


# ---- what is done and printed


def _round(
    settings: "Settings", engine: "Engine", sealed: bool, repair: str | None, customer: str | None
) -> Iterator["meter_sync.Step"]:
    from meterhouse_billing import meter_close, meter_end, meter_sync, policies
    from meterhouse_billing.meter_gateway import MeterGateway
    from meterhouse_billing.meter_lock import alone
    from meterhouse_billing.meter_usage import Warehouse
    from meterhouse_rating import periods
    from meterhouse_rating.command_line import world_of as rating_world

    world = world_of(settings, engine, METERS_KEY)
    source = Warehouse(rating_world(settings, engine))
    with alone(engine, settings.namespace):
        stream = policies.load(engine, settings.namespace).meter_stream
        run = meter_sync.Sync(world, source, MeterGateway(world.gateway), sealed, stream=stream)
        if repair is not None and customer is not None:
            yield from meter_close.repair(run, periods.parse(repair, "UTC"), customer)
        yield from meter_end.end(run)
        yield from meter_sync.plan(run)
        yield from meter_sync.deliver(run)
        yield from meter_close.freeze(run)
        yield from meter_close.exceptions(engine, settings.namespace, run.known, run.subscriptions)


def _print_waiting(settings: "Settings", engine: "Engine", as_json: bool) -> None:
    """What is written down and not sent. What the next run adds it finds in the warehouse itself."""
    from meterhouse_billing import meter_records
    from meterhouse_billing.meter_gateway import stamp

    lanes = meter_records.pending(engine, settings.namespace)
    waiting = [
        {
            "event_name": event.event_name,
            "identifier": event.identifier,
            "timestamp": stamp(event),
            "payload": {"stripe_customer_id": event.stripe_customer_id, "value": str(event.total)},
        }
        for events in lanes.values()
        for event in events
    ]
    if as_json:
        print_json({"meter_events": waiting})
    elif waiting:
        for one in waiting:
            print_json(one)
    else:
        print("Nothing waits to be sent; usage since the last run is looked up by the next one.")


def _print_drivers(found: Any, as_json: bool) -> None:
    every = [it for changes in found.values() for it in changes]
    if as_json:
        print_json({"drivers": [_driver_json(it) for it in every]})
    elif not every:
        print("All customers are billed by invoices (`meterhouse bill driver CUSTOMER meters` changes that).")
    else:
        rows = [("customer", "from", "driver", "by", "why")]
        rows += [(it.customer_id, f"{it.valid_from:%Y-%m-%d}", it.driver, it.who, it.why) for it in every]
        print_table(rows)


def _driver_json(it: Any) -> dict[str, Any]:
    return {**vars(it), "valid_from": it.valid_from.isoformat()}


def _print_meters(counts: Any, frozen: Any) -> None:
    from meterhouse_rating.layout import number

    if not counts and not frozen:
        print("Nothing was sent to Stripe's meters yet: `meterhouse bill sync`.")
    if counts:
        states = ("delivered", "pending", "rejected")
        rows = [("customer", "meter", *states)]
        for (customer_id, event_name), found in sorted(counts.items()):
            rows.append((customer_id, event_name, *(f"{found.get(state, 0):,}" for state in states)))
        print_table(rows, right=(2, 3, 4))
    if frozen:
        print("\nMonths that were compared")
        compared = [("customer", "month", "meter", "used", "Stripe", "")]
        for it in frozen:
            equal = "equal" if it.ours == it.stripes else "differs"
            if it.differs and it.handled_at is not None:
                equal += ", seen to"
            month = f"{it.period.start:%Y-%m}"
            compared.append((it.customer_id, month, it.event_name, number(it.ours), number(it.stripes), equal))
        print_table(compared, right=(3, 4))


def _pair(text: str) -> tuple[str, str]:
    name, equals, stripe_id = text.rpartition("=")
    if not equals or not name or not stripe_id.startswith("cus_"):
        fail(f"--map {text}: write CUSTOMER=cus_...", CALLED_WRONGLY)
    return name, stripe_id


def _now() -> datetime:
    from datetime import UTC

    return datetime.now(UTC)
