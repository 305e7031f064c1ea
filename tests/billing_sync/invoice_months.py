"""Two random months of invoices: crashes before and after any call and at any commit, faults, outages, credit
notes, payments, voids, refunds by hand, disputes, top-ups, and customers whom a connected account sells to for a fee;
news come by polls, or as events out of order and repeated. Whatever happens, in the end Stripe's totals are the
ledger's and the truth's, to the minor unit. Everything follows from the seed; of every fourth one but the order in
which its three threads come.
"""

import json
import math
import random
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from functools import partial
from typing import Any

import stripe
from sqlalchemy.event import listen

from meterhouse_billing import accounts, approvals, credit_records, news, policies, pool, records, top_ups
from meterhouse_billing.gateway import Gateway, StripeUnavailable, connect
from meterhouse_billing.reconcile import reconcile
from meterhouse_billing.world import World
from meterhouse_store import registry, tables

CUSTOMERS = {"acme": "USD", "kaisha": "JPY", "small": "USD", "dinar": "KWD"}
SHOP = "acct_1SHOP0000000000"
"""The connected account that sells to some of the customers."""
FEES = ("2.5%", "0.1%", "33.3%", "100%", "USD=1.50,JPY=30,KWD=0.75")
FIXED = {"USD": 150, "JPY": 30, "KWD": 750}
SMALLEST = {"USD": 1, "JPY": 1, "KWD": 10}
TOP_UP = 5000
PAID_CREDIT = ("balance", "refund", "outside")
KINDS = ("dropped_before", "dropped_after", "409", "429", "saved_500", "saved_500_done")
AT_COMMIT = 0.2
"""How much rarer the process ends at a commit: there are many more of them than of calls and steps."""
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
        for account in ("", SHOP):
            self.mortal(gateway.on(account))
        listen(books.engine, "commit", lambda _connection: self.die(AT_COMMIT))
        self.by_events, self.page, self.forms = self.chance.random() < 0.5, "", 1
        self.fees: dict[str, str] = {}
        self.told: set[str] = set()
        self.world = World(books.engine, gateway, "test", "anna", lambda: self.now)
        self.later(timedelta(0))

    def mortal(self, gateway: Gateway) -> None:
        """The process may end before and after each of its calls."""
        send = gateway.send

        def dying(operation: str, request: Mapping[str, Any], key: str) -> dict[str, Any]:
            self.die()
            answer = send(operation, request, key)
            self.die()
            return answer

        gateway.send = dying  # type: ignore[method-assign]

    def die(self, part: float = 1.0) -> None:
        if self.chance.random() < self.killing * part:
            raise Killed

    def later(self, by: timedelta) -> None:
        """Time passes, here and in Stripe."""
        self.now += by
        self.control("clock", {"now": self.now.timestamp()})

    def control(self, what: str, said: dict[str, Any]) -> None:
        self.post(f"_sandbox/{what}", json.dumps(said).encode())

    def post(self, path: str, body: bytes = b"") -> None:
        """What nobody's program does in Stripe: customers, banks, the clock."""
        try:
            _BROWSER.open(urllib.request.Request(f"{self.url}/{path}", body, method="POST")).close()
        except urllib.error.HTTPError as refused:
            raise AssertionError(f"{path}: {refused}") from None

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
        """Some customers pay, some cards are declined, some bring cash."""
        for account, client in self.clients():
            for invoice in client.v1.invoices.list({"status": "open", "limit": 100}).data:
                if self.chance.random() < 0.6:
                    how = self.chance.choice(["pay"] * 6 + ["fail"] * 2 + ["cash"])
                    if how == "cash":
                        client.v1.invoices.pay(invoice.id, {"paid_out_of_band": True})
                    else:
                        self.post(f"_sandbox/{how}/{invoice.id}?account={account}")

    def take_back(self) -> None:
        """The operator refunds by hand, banks take money back and decide about what they took."""
        for account, client in self.clients():
            for dispute in client.v1.disputes.list({"limit": 100}).data:
                if dispute.status == "needs_response" and self.chance.random() < 0.7:
                    decision = self.chance.choice(["won", "lost", "lost", "under_review"])
                    self.post(f"_sandbox/dispute/{dispute.id}/{decision}?account={account}")
            for payment in _payments(client):
                left = payment.latest_charge.amount - payment.latest_charge.amount_refunded
                if not left or payment.latest_charge.to_dict().get("disputed") or self.chance.random() < 0.3:
                    continue
                if self.chance.random() < 0.5:
                    self.post(f"_sandbox/dispute/{payment.id}?account={account}")
                else:
                    step = SMALLEST[payment.currency.upper()]
                    amount = self.chance.choice([left, self.chance.randint(1, left // step) * step])
                    client.v1.refunds.create({"payment_intent": payment.id, "amount": amount})

    def top_up(self) -> Iterator[Any]:
        """A customer asks for a page on which credits are bought; however often, it is the same until it is over."""
        form = {"who": "anna", "reference": f"form {self.forms}"}
        try:
            page = top_ups.start(self.world, "acme", TOP_UP, "http://127.0.0.1/", **form)
        except top_ups.TopUpRefused:
            self.forms += 1
            yield from self.top_up()
            return
        yield page
        self.page = page.url

    def pay_there(self) -> None:
        if self.chance.random() < 0.8:
            self.post(self.page.removeprefix(f"{self.url}/"))

    def hear(self) -> None:
        """What happened comes as events, in any order and some of it twice, or is asked for."""
        if self.by_events:
            events = [event for _, client in self.clients() for event in client.v1.events.list().auto_paging_iter()]
            new = [event for event in events if event.id not in self.told]
            for event in self.chance.sample(new, len(new)) + self.chance.choices(new, k=len(new) // 4):
                news.receive(self.world.engine, "test", json.dumps(event.to_dict()), self.now)
                self.told.add(event.id)
            self.insist(self.process)
        else:
            self.insist(lambda: news.poll(self.world))

    def process(self) -> Iterator[Any]:
        while said := news.process(self.world):
            yield said

    def void_some(self) -> Iterator[Any]:
        for draft in records.drafts(self.world.engine, "test", period="2026-11"):
            row = records.invoice(self.world.engine, draft.invoice_id)
            if row["state"] in ("finalised", "failed", "void") and draft.customer_id in self.voided:
                yield from approvals.void(self.world, draft, "wrong address", reissue=True)

    def clients(self) -> list[tuple[str, stripe.StripeClient]]:
        """(account, Stripe as that account sees it)"""
        made = partial(stripe.StripeClient, "sk_test_1", base_addresses={"api": self.url})
        return [("", made()), (SHOP, made(stripe_account=SHOP))]


class _Stay(urllib.request.HTTPRedirectHandler):
    def http_error_303(self, _request: Any, reply: Any, *_rest: Any) -> Any:
        return reply  # a page that was paid on leads elsewhere


_BROWSER = urllib.request.build_opener(_Stay)


def _payments(client: stripe.StripeClient) -> list[stripe.PaymentIntent]:
    """Those that succeeded, each with its charge."""
    found = client.v1.payment_intents.list({"limit": 100}).data
    expanded = {"expand": ["latest_charge"]}
    return [client.v1.payment_intents.retrieve(it.id, expanded) for it in found if it.status == "succeeded"]


def check(seed: int, books: Any, url: str) -> list[str]:
    """Live through two months; what is wrong afterwards, nothing if all is right."""
    month = Month(seed, books, url)
    for name in CUSTOMERS:
        registry.add_customer(books.engine, "test", name, currency=CUSTOMERS[name], now=month.now)
        wanted = {"paid-credit": month.chance.choice(PAID_CREDIT), "top-up-amounts": f"USD={TOP_UP // 100}"}
        if month.chance.random() < 0.5:
            month.fees[name] = month.chance.choice(FEES)
            wanted |= {"stripe-account": SHOP, "application-fee": month.fees[name]}
        policies.change(books.engine, "test", name, wanted, who="c", why="w", now=month.now)
    month.rate(10)
    month.insist(month.run)
    month.pay()
    month.hear()
    month.insist(month.top_up)
    month.pay_there()
    month.correct()
    month.take_back()
    month.rate(11)
    month.insist(month.run)
    month.hear()
    month.voided = {name for name in CUSTOMERS if month.chance.random() < 0.5}
    month.insist(month.void_some)
    month.insist(month.run)
    month.correct()
    month.insist(month.run)
    month.pay()
    for _ in range(2):
        month.take_back()
        month.hear()
    month.insist(month.run)
    month.by_events = False  # the daily poll, for what a crash took of the events' work
    month.hear()
    return _wrong(month)


def _wrong(month: Month) -> list[str]:
    found, differing, known = [], 0, []
    for account, client in month.clients():
        for customer in client.v1.customers.list({"limit": 100}).data:
            name = customer.metadata["meterhouse_customer_id"]
            known.append(name)
            if bool(account) != (name in month.fees):
                found.append(f"{name} is in the account {account!r}")
            told, few = _of_customer(month, client, customer, name)
            found += [f"{name}: {text}" for text in told]
            differing += few
    if sorted(known) != sorted(CUSTOMERS):
        found.append(f"customers in Stripe: {known}")
    rows = reconcile(month.world, records.drafts(month.world.engine, "test", every=True))
    said = [one for row in rows for one in row.differences]
    said += [one for account in accounts.compare(month.world, rows) for one in account.differences]
    fees = [one for one in said if one.code == "fee_differs"]
    if len(fees) != differing:
        found.append(f"reconcile: {len(fees)} fees that differ, {differing} do: {[str(one) for one in fees]}")
    return found + [f"reconcile: {one.code}: {one}" for one in said if one not in fees]


def _of_customer(
    month: Month, client: stripe.StripeClient, customer: stripe.Customer, name: str
) -> tuple[list[str], int]:
    """What is wrong of one customer, and of how many invoices that were paid in cash a fee was asked for."""
    found, currency = [], CUSTOMERS[name]
    invoices = [it for it in client.v1.invoices.list({"limit": 100}).data if it.customer == customer.id]
    notes = [it for it in client.v1.credit_notes.list({"limit": 100}).data if it.customer == customer.id]
    payments = [it for it in _payments(client) if it.customer == customer.id]
    disputes = client.v1.disputes.list({"limit": 100}).data
    paid_by = {it.payment.payment_intent: it.invoice for it in client.v1.invoice_payments.list({"limit": 100}).data}
    real = sorted(one.total for one in invoices if one.status != "void")
    if real != sorted(month.invoiced[name]):
        found.append(f"invoices {real}, rated {sorted(month.invoiced[name])}")
    credited = sorted(one.total for one in notes)
    if credited != sorted(month.credited[name]):
        found.append(f"credit notes {credited}, corrected {sorted(month.credited[name])}")
    # What the platform kept, and of that gave back, of each payment.
    kept, taken = 0, {}
    for payment in payments:
        charge, invoice = payment.latest_charge, paid_by.get(payment.id)
        total = next((it.total for it in invoices if it.id == invoice), TOP_UP)
        of_notes = [it for it in notes if it.invoice == invoice]
        by_notes = sum(refund.amount_refunded for it in of_notes for refund in it.refunds)
        back = sum(it.total for it in of_notes) + charge.amount_refunded - by_notes
        back += sum(it.amount for it in disputes if it.payment_intent == payment.id and it.status == "lost")
        fee = min(_fee(month.fees.get(name, "0%"), total, currency), charge.amount)
        given_back = _rounded(Fraction(fee * min(back, total), total), currency)
        taken[invoice], kept = fee, kept + fee - given_back
        there = charge.to_dict().get("application_fee")
        shown = month.clients()[0][1].v1.application_fees.retrieve(there) if there else None
        seen = (shown.amount, shown.amount_refunded) if shown else (0, 0)
        if seen != (fee, given_back):
            found.append(f"fee of {payment.id}: {seen} in Stripe, {(fee, given_back)} it should be")
    asked = {
        it.id: min(_fee(month.fees.get(name, "0%"), it.total, currency), it.amount_paid)
        for it in invoices
        if it.status == "paid"
    }
    # Cash and what is owed.
    held = [it for it in disputes if it.status != "won" and it.payment_intent in {one.id for one in payments}]
    on_invoices = sum(it.amount for it in held if it.payment_intent in paid_by)
    owed = sum(one.amount_remaining for one in invoices if one.status == "open") + customer.balance + on_invoices
    cash = sum(one.amount_paid for one in invoices) + sum(it.amount for it in payments if it.id not in paid_by)
    cash -= sum(it.latest_charge.amount_refunded for it in payments) + sum(it.amount for it in held)
    cash -= sum(one.out_of_band_amount or 0 for one in notes) + kept
    entries = month.books.rows(tables.ledger_entries)
    of = {row["transaction_id"]: row["customer_id"] for row in month.books.rows(tables.ledger_transactions)}
    sums = {
        account: sum(
            row["amount_minor"] for row in entries if row["account"] == account and of[row["transaction_id"]] == name
        )
        for account in ("receivable", "cash", "application_fees")
    }
    if sums != {"receivable": owed, "cash": cash, "application_fees": kept}:
        found.append(f"ledger {sums}, Stripe: owed {owed}, cash {cash}, fees {kept}")
    return found, sum(asked[it] != taken.get(it, 0) for it in asked)


def _fee(said: str, total: int, currency: str) -> int:
    """What is asked for of an invoice or top-up."""
    if total <= 0:
        return 0
    if said.endswith("%"):
        return _rounded(Fraction(said[:-1]) * total / 100, currency)
    return min(total, FIXED[currency])


def _rounded(amount: Fraction, currency: str) -> int:
    """To what Stripe can charge, half up."""
    step = SMALLEST[currency]
    return math.floor(amount / step + Fraction(1, 2)) * step
