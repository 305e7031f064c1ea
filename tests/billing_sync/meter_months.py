"""A random month of the meter driver: usage that comes late and is taken back, faults, outages, crashes at any step.

Whatever happens, in the end Stripe's summary of each customer and meter has to be the usage, and what Stripe's price
formula makes of it the rated amount. Everything follows from the seed.
"""

import random
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from metered import BOOK, NOVEMBER, OCTOBER, Metered
from simple_amounts import rated_cents

from meterhouse_billing import meter_records, meter_sync
from meterhouse_billing.gateway import StripeUnavailable
from meterhouse_rating.book import parse
from meterhouse_sandbox import stripe_prices
from meterhouse_store import registry
from meterhouse_store.settings import Settings
from meterhouse_store.sql import open_engine

CUSTOMERS = ("acme", "globex")
METRICS = ("documents", "operations")
FAULTS = ("dropped_before", "dropped_after", "409", "429", "saved_500", "saved_500_done")
ROUNDS = 12
PRICE = {"billing_scheme": "per_unit", "unit_amount_decimal": "2"}


class Killed(BaseException):
    """The process ends here."""


def check(seed: int, folder: Path, url: str, sql_url: str = "") -> list[str]:
    """Live through a month against the sandbox at `url`; what is wrong afterwards, nothing if all is right."""
    chance = random.Random(seed)
    engine = open_engine(Settings(data=folder, namespace="test", sql_url=sql_url))
    registry.ensure_namespace(engine, "test", now=OCTOBER)
    metered = Metered(engine, url, workers=2)
    for name in CUSTOMERS:
        metered.customer(name)
    lost = {"dropped_before": 0.1, "dropped_after": 0.1, "429": 0.1}  # a customer's kept 500 lasts for a day
    metered.control("faults", {"seed": seed, "rates": lost})
    _insist(metered.setup)
    outage_until = OCTOBER
    for now in sorted(OCTOBER + chance.random() * (NOVEMBER - OCTOBER) for _ in range(ROUNDS)):
        metered.at(max(now, OCTOBER + timedelta(hours=1)))
        _live(chance, metered)
        if now >= outage_until and chance.random() < 0.15:
            outage_until = now + timedelta(hours=30)
        metered.control("faults", {"down": True} if now < outage_until else _faults(chance, seed + now.hour))
        _round(chance, metered)
        if chance.random() < 0.5:  # and once more, hours later
            metered.at(metered.truth.now + chance.random() * timedelta(hours=40))
            metered.control("faults", {"down": True} if metered.truth.now < outage_until else {})
            _round(chance, metered)
    metered.control("faults", {})
    # The last hours of the month are told of in the next one.
    metered.truth.use("acme", "documents", NOVEMBER - timedelta(seconds=1), 3)
    metered.at(max(metered.truth.now, NOVEMBER + chance.random() * timedelta(hours=30)))
    _insist(metered.sync)
    metered.at(metered.truth.now + timedelta(hours=2))
    _insist(metered.sync)
    wrong = _differences(metered) + [str(step) for step in metered.exceptions()]
    states = {state for found in meter_records.counts(engine, "test").values() for state in found}
    if not states <= {"delivered", "superseded"}:
        wrong.append("something was not delivered")
    if len(meter_records.frozen(engine, "test")) != len(CUSTOMERS) * len(METRICS):
        wrong.append("the month was not compared")
    engine.dispose()
    return [f"seed {seed}: {text}" for text in wrong]


def _faults(chance: random.Random, seed: int) -> dict[str, Any]:
    rates = {kind: chance.random() * 0.12 for kind in chance.sample(FAULTS, 3)}
    return {"seed": seed, "rates": rates}


def _live(chance: random.Random, metered: Metered) -> None:
    """Usage of the hours before, some of it late, some of what was there taken back."""
    now, truth = metered.truth.now, metered.truth
    for _ in range(chance.randrange(1, 5)):
        ago = timedelta(hours=chance.choice((0, 0, 1, 2, 30, 80)) + chance.random())
        at = max(OCTOBER, now - ago)
        truth.use(chance.choice(CUSTOMERS), chance.choice(METRICS), at, chance.randrange(1, 1000))
    if truth.used and chance.random() < 0.3:
        key = chance.choice(sorted(truth.used))
        if chance.random() < 0.5:
            del truth.used[key]
        else:
            truth.used[key] = chance.randrange(truth.used[key] + 1)


def _round(chance: random.Random, metered: Metered) -> None:
    """A run that may be killed: before or after any call, before an outcome is written down, between any two steps."""
    run, end = metered.run(), chance.choice(("none", "none", "before", "after", "unwritten", "step"))
    left = chance.randrange(4)
    send, written = run.gateway.send, meter_records.delivered

    def sending(event: Any, attempts: int) -> None:
        nonlocal left
        left -= 1
        if left < 0 and end == "before":
            raise Killed
        send(event, attempts)
        if left < 0 and end == "after":
            raise Killed

    def unwritten(*_arguments: Any) -> None:
        raise Killed

    if end in ("before", "after"):
        run.gateway.send = sending  # type: ignore[method-assign]
    if end == "unwritten":
        meter_records.delivered = unwritten  # type: ignore[assignment]
    try:
        for _ in meter_sync.plan(run):
            if end == "step" and left < 2:
                return
        for _ in meter_sync.deliver(run):
            if end == "step":
                return
    except (Killed, StripeUnavailable):
        pass
    finally:
        meter_records.delivered = written


def _insist(action: Any) -> None:
    for _ in range(40):
        try:
            action()
        except StripeUnavailable:
            continue
        return
    raise AssertionError("the faults never ended")


def _differences(metered: Metered) -> list[str]:
    book, wrong = parse(BOOK), []
    for name in CUSTOMERS:
        for metric in METRICS:
            used, there = metered.truth.total(name, metric), int(metered.in_stripe(name, metric))
            if used != there:
                wrong.append(f"{name} used {used} {metric}, Stripe has {there}")
        billed = sum(
            amount
            for metric in METRICS
            for _, _, amount in stripe_prices.lines(PRICE, Decimal(metered.in_stripe(name, metric)))
        )
        rated = sum(rated_cents(book, metered.truth.total(name, metric), metric) for metric in METRICS)
        if billed != rated:
            wrong.append(f"{name} is rated {rated} cents, by Stripe's formula {billed}")
    return wrong
