"""Two random months of invoices: crashes before and after any call and between any two steps, faults, outages, credit
notes, payments, voids. Whatever happens, in the end Stripe's totals are the ledger's and the truth's, to the minor
unit. Everything follows from the seed; of every fourth one but the order in which its three threads come.
"""

import json
import random
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import stripe

from meterhouse_billing import accounts, approvals, credit_records, news, policies, pool, records
from meterhouse_billing.gateway import StripeUnavailable, connect
from meterhouse_billing.reconcile import reconcile
from meterhouse_billing.world import World
from meterhouse_store import registry, tables

CUSTOMERS = {"acme": "USD", "kaisha": "JPY", "small": "USD", "dinar": "KWD"}
PAID_CREDIT = ("balance", "refund", "outside")
KINDS = ("dropped_before", "dropped_after", "409", "429", "saved_500", "saved_500_done")
ROUNDS = 40
"""Attempts at one thing, of which the later ones meet no faults."""


class Killed(BaseException):
    """The process ends here."""


class Month:
    """The books, the sandbox at `url`, one clock for both, and what ought to come out."""

    def __init__(self, seed: int, books: Any, url: str) -> None:
        self.chance, self.books, self.url = random.Random(seed), books, url
        self.now = datetime(2026, 11, 2, 8, tzinfo=UTC)
        self.invoiced: dict[str, list[int]] = {name: [] for name in CUSTOMERS}
        self.credited: dict[str, list[int]] = {name: [] for name in CUSTOMERS}
        self.killing = 0.0
        self.workers = 1 if seed % 4 else 3
        gateway = connect({"STRIPE_API_KEY": "sk_test_1", "METERHOUSE_STRIPE_URL": url}, live=False)
        gateway._sleep = lambda _seconds: None
        send = gateway.send

        def dying(operation: str, request: Mapping[str, Any], key: str) -> dict[str, Any]:
            self.die()
            answer = send(operation, request, key)
            self.die()
            return answer

        gateway.send = dying  # type: ignore[method-assign]
        self.world = World(books.engine, gateway, "test", "anna", lambda: self.now)
        self.later(timedelta(0))

    def die(self) -> None:
        if self.chance.random() < self.killing:
            raise Killed

    def later(self, by: timedelta) -> None:
        """Time passes, here and in Stripe."""
        self.now += by
        self.control("clock", {"now": self.now.timestamp()})

    def control(self, what: str, said: dict[str, Any]) -> None:
        body = json.dumps(said).encode()
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/_sandbox/{what}", body, method="POST")).close()

    def insist(self, act: Callable[[], Iterator[Any] | list[Any]]) -> None:
        """Do it again until it was done undisturbed."""
        for attempt in range(ROUNDS):
            calm = attempt > ROUNDS // 2
            self.killing = 0.0 if calm else 0.12
            rate = 0.0 if calm else 0.03
            seed = self.chance.randrange(1 << 30)
            self.control("faults", {"seed": seed, "rates": dict.fromkeys(KINDS, rate)} if rate else {})
            try:
                for _ in act():
                    self.die()  # between two steps
                return
            except (Killed, StripeUnavailable):
                if self.chance.random() < 0.3 or calm:  # back within the day, or when Stripe has forgotten the keys
                    self.later(self.chance.choice([timedelta(minutes=5), timedelta(hours=30)]))
            finally:
                self.killing = 0.0
                self.control("faults", {})
        raise AssertionError(f"not done after {ROUNDS} attempts")

    # ---- what is done

    def rate(self, month: int) -> None:
        for name, currency in CUSTOMERS.items():
            step = 10 if currency == "KWD" else 1
            few = (
                [30] if name == "small" else [self.chance.randrange(60, 9000) for _ in range(self.chance.randint(1, 4))]
            )
            lines = [("usage", f"metric-{n}", "5", amount * step) for n, amount in enumerate(few)]
            if self.chance.random() < 0.3 and name != "small":
                lines.append(("credit_applied", "", "1", -few[0] * step // (2 * step) * step))
            self.books.rating(name, lines, currency=currency, month=month)
            self.invoiced[name].append(sum(line[3] for line in lines))

    def run(self) -> Iterator[Any]:
        world = self.world
        drafts = records.drafts(world.engine, "test")
        notes = credit_records.notes(world.engine, "test", only_open=True)
        yield from pool.work(pool.jobs(world, drafts, notes, approve=True), self.workers)

    def correct(self) -> None:
        """Late usage: something of the first line of some invoices of October goes back."""
        for name in ("acme", "kaisha", "dinar"):
            for _ in range(self.chance.randint(0, 2)):
                step = 10 if name == "dinar" else 1
                most = self.invoiced[name][0] // step // 8  # four of them are never more than the invoice
                amount = self.chance.randint(1, max(1, most)) * step
                self.books.correction(f"rating-{name}", [(0, -amount)], f"note-{name}-{len(self.credited[name])}")
                self.credited[name].append(amount)

    def pay(self) -> None:
        """Some customers pay, some cards are declined."""
        for invoice in self.stripe.v1.invoices.list({"status": "open", "limit": 100}).data:
            if self.chance.random() < 0.6:
                how = self.chance.choice(["pay", "pay", "fail"])
                urllib.request.urlopen(
                    urllib.request.Request(f"{self.url}/_sandbox/{how}/{invoice.id}", b"", method="POST")
                ).close()

    def void_some(self) -> Iterator[Any]:
        for draft in records.drafts(self.world.engine, "test", period="2026-11"):
            row = records.invoice(self.world.engine, draft.invoice_id)
            if row["state"] in ("finalised", "failed", "void") and draft.customer_id in self.voided:
                yield from approvals.void(self.world, draft, "wrong address", reissue=True)

    @property
    def stripe(self) -> stripe.StripeClient:
        return stripe.StripeClient("sk_test_1", base_addresses={"api": self.url})


def check(seed: int, books: Any, url: str) -> list[str]:
    """Live through two months; what is wrong afterwards, nothing if all is right."""
    month = Month(seed, books, url)
    for name in CUSTOMERS:
        registry.add_customer(books.engine, "test", name, currency=CUSTOMERS[name], now=month.now)
        wanted = {"paid-credit": month.chance.choice(PAID_CREDIT)}
        policies.change(books.engine, "test", name, wanted, who="c", why="w", now=month.now)
    month.rate(10)
    month.insist(month.run)
    month.pay()
    month.insist(lambda: news.poll(month.world))
    month.correct()
    month.rate(11)
    month.insist(month.run)
    month.voided = {name for name in CUSTOMERS if month.chance.random() < 0.5}
    month.insist(month.void_some)
    month.insist(month.run)
    month.correct()
    month.insist(month.run)
    month.pay()
    month.insist(lambda: news.poll(month.world))
    month.insist(month.run)
    return _wrong(month)


def _wrong(month: Month) -> list[str]:
    found = []
    world, v1 = month.world, month.stripe.v1
    invoices = list(v1.invoices.list({"limit": 100}).auto_paging_iter())
    notes = list(v1.credit_notes.list({"limit": 100}).auto_paging_iter())
    customers = v1.customers.list({"limit": 100}).data
    if len(customers) != len(CUSTOMERS):
        found.append(f"{len(customers)} customers in Stripe")
    entries = month.books.rows(tables.ledger_entries)
    of = {row["transaction_id"]: row["customer_id"] for row in month.books.rows(tables.ledger_transactions)}
    for customer in customers:
        name = customer.metadata["meterhouse_customer_id"]
        mine = [one for one in invoices if one.customer == customer.id]
        real = sorted(one.total for one in mine if one.status != "void")
        if real != sorted(month.invoiced[name]):
            found.append(f"{name}: invoices {real}, rated {sorted(month.invoiced[name])}")
        credited = sorted(one.total for one in notes if one.customer == customer.id)
        if credited != sorted(month.credited[name]):
            found.append(f"{name}: credit notes {credited}, corrected {sorted(month.credited[name])}")
        owed = sum(one.amount_remaining for one in mine if one.status == "open") + customer.balance
        refunded = sum(
            refund.amount_refunded for one in notes if one.customer == customer.id for refund in one.refunds
        ) + sum(one.out_of_band_amount or 0 for one in notes if one.customer == customer.id)
        paid = sum(one.amount_paid for one in mine) - refunded
        sums = {
            account: sum(
                row["amount_minor"]
                for row in entries
                if row["account"] == account and of[row["transaction_id"]] == name
            )
            for account in ("receivable", "cash")
        }
        if sums != {"receivable": owed, "cash": paid}:
            found.append(f"{name}: ledger {sums}, Stripe: owed {owed}, paid {paid}")
    rows = reconcile(world, records.drafts(world.engine, "test", every=True))
    told = [one for row in rows for one in row.differences]
    told += [one for account in accounts.compare(world, rows) for one in account.differences]
    return found + [f"reconcile: {one.code}: {one}" for one in told]
