"""What a run goes by: the registry, price books and agreements, as they are or as a closing knew them."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime

from meterhouse_rating import costs_book, usage
from meterhouse_rating.agreed import agreed_in
from meterhouse_rating.periods import Period
from meterhouse_rating.queries import USAGE, Names, Whom
from meterhouse_rating.sums import Sums
from meterhouse_rating.terms import Terms
from meterhouse_rating.usage import Found
from meterhouse_rating.versions import NotThere, versions
from meterhouse_rating.world import World
from meterhouse_store import registry


def terms(
    world: World, known_at: datetime | None = None, book_version: int | None = None, only: str | None = None
) -> Terms:
    """The terms of a namespace, or what was recorded of them up to a moment and a version of the price book.

    `only`: with nobody else's contracts and agreements, for what is asked about one customer.

    Raises NotThere without a price book.
    """
    # First what refers to the next: who is registered meanwhile is not known yet, or with contract, prices and plan.
    customers = {it.customer_id: it for it in registry.customers(world.engine, world.namespace, only)}
    recorded = registry.contracts(world.engine, world.namespace, only)
    agreed = agreed_in(world.engine, world.namespace, known_at, only)
    published = versions(world.engine, world.namespace)
    if book_version is not None:
        # A version that was published later, for a time before, is not what was rated by.
        published = [it for it in published if it.version <= book_version]
    if not published:
        raise NotThere("no price book is published: `meterhouse prices publish FILE`, or --starter instead of a file")
    every: dict[str, list[registry.Contract]] = {}
    for contract in recorded:
        every.setdefault(contract.customer_id, []).append(contract)
    contracts = every
    if known_at is not None:
        # A customer that a run registers itself has its contract a moment after the run began.
        contracts = {
            name: [it for it in found if it.recorded_at <= known_at] or found[:1] for name, found in every.items()
        }
    books = {version.version: version.book for version in published}
    costs = costs_book.read(world.engine, world.namespace, known_at)
    return Terms(world.namespace, customers, contracts, published, books, frozenset(world.meters), agreed, costs)


def gather(
    world: World,
    found_by: Terms,
    period: Period,
    as_of: datetime,
    only: Whom,
    source: str = USAGE,
    finer: tuple[str, ...] = (),
    sums: Sums | None = None,
) -> dict[str, Found]:
    """The usage of a period, that of trials marked; of customers whose trial ends in it, before and after that.

    `source` and `sums` as in usage.gather; `finer`: dimensions beside those that prices depend on.
    """
    client, namespace, wanted = world.client, world.namespace, found_by.wanted(period)
    if finer:
        wanted = replace(wanted, dimensions=tuple(sorted({*wanted.dimensions, *finer})))
    found = usage.gather(client, namespace, period, wanted, as_of=as_of, customers=only, source=source, sums=sums)
    ends: dict[datetime, list[str]] = {}
    for name in _among(found_by, only):
        end = found_by.trial_end(name, period)
        if end is not None:
            ends.setdefault(min(end, period.end), []).append(name)
    unmeasured = replace(wanted, measurements=())
    for end, names in sorted(ends.items()):
        first, rest = Period(period.start, end), Period(end, period.end)
        trial = usage.gather(
            client, namespace, first, unmeasured, as_of=as_of, customers=names, source=source, sums=sums
        )
        after = {}
        if rest.start < rest.end:
            after = usage.gather(
                client, namespace, rest, wanted, as_of=as_of, customers=names, source=source, sums=sums
            )
        for name in names:
            if name in trial or name in after:
                found[name] = after.get(name, Found()).joined(trial.get(name, Found()))
    return found


def _among(found_by: Terms, only: Whom) -> Iterable[str]:
    if isinstance(only, Names):
        return [name for name in found_by.customers if name in only]
    return found_by.customers if only is None else only
