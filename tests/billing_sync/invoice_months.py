"""Two random months of invoices: crashes before and after any call and at any commit, faults, outages, credit
notes, payments, voids, refunds by hand, disputes, top-ups, and customers whom a connected account sells to for a fee;
customers with automatic tax beside ones without, drafts that are rated anew or taxed otherwise before they go out,
prepaid credits that a rule buys more of; news come by polls, or as events out of order and repeated. Whatever happens,
in the end (invoice_checks.py) Stripe's totals are the ledger's and the truth's (invoice_truth.py), to the minor unit.
Everything follows from the seed; of every fourth one but the order in which its three threads come.
"""

import json
import random
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import stripe
from invoice_checks import gone, is_of, succeeded, wrong
from invoice_truth import CUSTOMERS, FEES, PREPAID, SHOP, SMALLEST, Credits, Due
from sqlalchemy.event import listen

from meterhouse_billing import (
    approvals,
    charge_rules,
    credit_records,
    news,
    policies,
    pool,
    records,
    top_up_charges,
    top_ups,
)
from meterhouse_billing.charge_rules import Rule
from meterhouse_billing.gateway import Gateway, StripeUnavailable, connect
from meterhouse_billing.world import World
from meterhouse_rating import credit_changes
from meterhouse_rating.credits import PROMOTIONAL, Grant
from meterhouse_store import registry, tables

BEHAVIOURS = {"brot": "exclusive", "tea": "inclusive", "acme": "exclusive"}
"""What the lines of these customers say of tax; only the first two have it computed."""
TAXED = ("brot", "tea")
COUNTRIES = {"brot": ("DE", "FR", "IE"), "tea": ("GB", "FR"), "acme": ("DE",), "prepaid": ("DE",)}
GOOD, DECLINED = "pm_card_visa", "pm_card_chargeDeclined"
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
        self.due: dict[str, list[Due]] = {name: [] for name in CUSTOMERS}
        self.credited: dict[str, list[int]] = {name: [] for name in CUSTOMERS}
        self.killing, self.at_commit = 0.0, AT_COMMIT
        self.workers = 1 if seed % 4 else 3
        gateway = connect({"STRIPE_API_KEY": "sk_test_1", "METERHOUSE_STRIPE_URL": url}, live=False)
        gateway._sleep = lambda _seconds: None
        for account in ("", SHOP):
            self.mortal(gateway.on(account))
        listen(books.engine, "commit", lambda _connection: self.die(self.at_commit))
        self.by_events, self.page, self.forms = self.chance.random() < 0.5, "", 1
        self.fees: dict[str, str] = {}
        self.countries = {name: self.chance.choice(few) for name, few in COUNTRIES.items()}
        self.taxed = {name: self.chance.random() < 0.7 for name in TAXED}
        self.credits = Credits(2000, self.chance.choice([2000, 3000, 7000]), self.chance.choice([1, 2, 20]), 1500)
        self.coming: dict[str, list[tuple[Any, ...]]] = {}
        self.wrong: list[str] = []
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
            step = SMALLEST[currency]
            few = (
                [30] if name == "small" else [self.chance.randrange(60, 9000) for _ in range(self.chance.randint(1, 4))]
            )
            due = Due([amount * step for amount in few], country=self.countries.get(name, ""))
            due.behaviour = BEHAVIOURS[name] if self.taxed.get(name) else ""
            lines = [self.line(name, n, amount) for n, amount in enumerate(due.lines)]
            if name == PREPAID:
                lines += self.pay_with_credits(due)
            elif self.chance.random() < 0.3 and name not in ("small", "tea"):
                due.credit = few[0] // 2 * step
                lines.append(("credit_applied", "", "1", -due.credit, _pays(due.credit, currency)))
            more_comes = name != "small" and self.chance.random() < 0.5
            rating_id = self.books.rating(name, lines, currency=currency, month=month, posted=not more_comes)
            self.due[name].append(due)
            if more_comes:
                self.coming[rating_id] = lines

    def line(self, name: str, number: int, amount: int) -> tuple[Any, ...]:
        code = f"txcd_1000000{number % 2}"
        taxed = {"tax": {"behaviour": BEHAVIOURS[name], "code": code}} if name in BEHAVIOURS else {}
        return ("usage", f"metric-{number}", "5", amount, taxed)

    def pay_with_credits(self, due: Due) -> list[tuple[Any, ...]]:
        """Credits pay what they can of the first line, from several grants."""
        used: dict[str, int] = {}
        for grant, left in self.left_of_grants().items():
            if amount := min(left, due.lines[0] - due.credit):
                used[grant] = amount
                due.credit += amount
                self.credits.used[grant] = self.credits.used.get(grant, 0) + amount
        told = _pays(due.credit, "USD") | {"used": {grant: _shown(amount, "USD") for grant, amount in used.items()}}
        return [("credit_applied", "", "1", -due.credit, told)] if due.credit else []

    def left_of_grants(self) -> dict[str, int]:
        """Of the prepaid customer's grants what is not used, refunded or held by a bank: Stripe has the money of it."""
        bought = {it["payment_intent"]: it["grant_id"] for it in self.books.rows(tables.credit_purchases)}
        [given] = [it["grant_id"] for it in self.books.rows(tables.credit_grants) if it["kind"] == PROMOTIONAL]
        left = {given: self.credits.given - self.credits.used.get(given, 0)}
        client = self.client_of(PREPAID)
        for payment in succeeded(client):
            grant = bought.get(payment.id)
            if grant is not None and is_of(payment, PREPAID):
                rest = payment.amount - gone(client, payment) - self.credits.used.get(grant, 0)
                left[grant] = max(0, rest)
        return left

    def change_drafts(self) -> None:
        """Before they are finalised tax is turned on or off, and drafts are rated anew, because usage comes after all.

        Such ratings are posted when they are as they stay.
        """
        for draft in records.drafts(self.world.engine, "test"):
            name, due = draft.customer_id, self.due[draft.customer_id][-1]
            if name in TAXED and self.chance.random() < 0.3:
                self.taxed[name] = not self.taxed[name]
                self.set(name, {"automatic-tax": "on" if self.taxed[name] else "off"})
                due.behaviour = BEHAVIOURS[name] if self.taxed[name] else ""
            elif name not in TAXED and self.chance.random() < 0.2:
                self.insist(partial(approvals.approve, self.world, draft, "looked at"))
            lines = self.coming.pop(draft.rating_id, None)
            if lines is not None:
                for _ in range(self.chance.randint(0, 2)):
                    self.use_more(name, due, lines)
                    self.books.rated_anew(draft.rating_id, lines)
                    if self.chance.random() < 0.3:
                        self.insist(self.draft)
                self.books.post(draft.rating_id)

    def use_more(self, name: str, due: Due, lines: list[tuple[Any, ...]]) -> None:
        """More of something, or something that was not used before."""
        more, position = self.chance.randint(1, 500) * SMALLEST[CUSTOMERS[name]], self.chance.randint(0, len(due.lines))
        if position == len(due.lines):
            due.lines.append(more)
            lines.append(self.line(name, position, more))
        else:
            due.lines[position] += more
            [at] = [at for at, line in enumerate(lines) if line[1] == f"metric-{position}"]
            lines[at] = self.line(name, position, due.lines[position])

    def set(self, name: str, wanted: dict[str, str]) -> None:
        policies.change(self.books.engine, "test", name, wanted, who="c", why="w", now=self.now)

    def move_in(self) -> None:
        """Everybody gets an address in Stripe, and the prepaid customer leaves a card."""
        for _, client in self.clients():
            for customer in client.v1.customers.list({"limit": 100}).data:
                name = customer.metadata["meterhouse_customer_id"]
                if name in self.countries:
                    client.v1.customers.update(customer.id, {"address": {"country": self.countries[name]}})
        self.leave_card(GOOD)
        self.later(timedelta(hours=2))  # tax that could not be computed is asked for again in another hour

    def leave_card(self, method: str) -> None:
        self.credits.card_is_good = method == GOOD
        client = self.client_of(PREPAID)
        for customer in client.v1.customers.list({"limit": 100}).data:
            if customer.metadata["meterhouse_customer_id"] == PREPAID:
                client.v1.customers.update(customer.id, {"invoice_settings": {"default_payment_method": method}})

    def put_rule(self) -> None:
        about = {"below_minor": self.credits.below, "amount_minor": self.credits.amount}
        often = {"per_day": min(24, self.credits.per_month), "per_month": self.credits.per_month}
        rule = Rule(PREPAID, **about, **often, currency="USD", who="anna", why="order 7", recorded_at=self.now)
        charge_rules.put(self.books.engine, "test", rule)
        self.credits.is_on = True

    def charge(self) -> None:
        """One round of automatic top-ups: whatever crashes, as many charges as the rule asks for, and no other."""
        credits = self.credits
        if not credits.is_on and self.chance.random() < 0.4:
            self.leave_card(GOOD)
            self.put_rule()
        elif self.chance.random() < 0.2:
            self.leave_card(DECLINED)
        before = self.now
        left, seen = sum(self.left_of_grants().values()), self.charges()
        self.at_commit = 1.0  # there are few of them
        self.insist(lambda: top_up_charges.charge_due(self.world))
        self.at_commit = AT_COMMIT
        allowed = credits.asks(left, before, self.now)
        new = [it for it in self.charges() if it not in seen]
        if len(new) not in allowed:
            self.wrong.append(f"{left} of credits were left: {len(new)} charges, {allowed} were due")
        if any(it[1:] != (credits.amount, credits.card_is_good) for it in new):
            self.wrong.append(f"charges {new}, of {credits.amount} with a card that is good: {credits.card_is_good}")
        credits.charges += [(before, self.now)] * len(new)
        credits.is_on = credits.is_on and (credits.card_is_good or not new)

    def charges(self) -> list[tuple[str, int, bool]]:
        """(payment, its amount, whether the money came) of all that the rule had charged, as Stripe shows them."""
        found = self.client_of(PREPAID).v1.payment_intents.list({"limit": 100}).data
        return [(it.id, it.amount, it.status == "succeeded") for it in found if is_of(it, PREPAID)]

    def client_of(self, name: str) -> stripe.StripeClient:
        return dict(self.clients())[SHOP if name in self.fees else ""]

    def draft(self) -> Iterator[Any]:
        """A run that approves nothing."""
        yield from pool.work(
            pool.jobs(self.world, records.drafts(self.world.engine, "test"), [], approve=False), self.workers
        )

    def run(self) -> Iterator[Any]:
        world = self.world
        drafts = records.drafts(world.engine, "test")
        notes = credit_records.notes(world.engine, "test", only_open=True)
        yield from pool.work(pool.jobs(world, drafts, notes, approve=True), self.workers)

    def bill(self) -> None:
        """Run until no invoice waits for its tax: where Stripe failed when it was asked for, the next hour asks again.

        Else the tax of what waits is that of the settings of a later month.
        """
        for _ in range(5):
            self.insist(self.run)
            drafts = {draft.customer_id for draft in records.drafts(self.world.engine, "test")}
            if not any(self.taxed.get(name) for name in drafts):
                return
            self.later(timedelta(hours=2))
        raise AssertionError("an invoice waits for its tax for ever")

    def correct(self) -> None:
        """Late usage: something of the first line of some invoices of October goes back."""
        for name in ("acme", "kaisha", "dinar", "brot", "tea"):
            due, step = self.due[name][0], SMALLEST[CUSTOMERS[name]]
            for _ in range(self.chance.randint(0, 2)):
                # Four of them are never more than the invoice, or than its first line with tax in it.
                most = (due.lines[0] if name == "tea" else due.rated) // step // 8
                amount = self.chance.choice(due.creditable(max(1, most))) * step
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
            for payment in succeeded(client):
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


def _pays(amount: int, currency: str) -> dict[str, Any]:
    """The explanation of credits that pay so much of the first line."""
    return {"steps": [{"pays": "usage metric-0", "amount": _shown(amount, currency), "grant": "some"}]}


def _shown(amount: int, currency: str) -> str:
    digits = {"JPY": 0, "KWD": 3}.get(currency, 2)
    return f"{Decimal(amount).scaleb(-digits):f}"


class _Stay(urllib.request.HTTPRedirectHandler):
    def http_error_303(self, _request: Any, reply: Any, *_rest: Any) -> Any:
        return reply  # a page that was paid on leads elsewhere


_BROWSER = urllib.request.build_opener(_Stay)


def check(seed: int, books: Any, url: str) -> list[str]:
    """Live through two months; what is wrong afterwards, nothing if all is right."""
    month = Month(seed, books, url)
    for name in CUSTOMERS:
        registry.add_customer(books.engine, "test", name, currency=CUSTOMERS[name], now=month.now)
        wanted = {"paid-credit": month.chance.choice(PAID_CREDIT), "top-up-amounts": f"USD={TOP_UP // 100}"}
        if month.chance.random() < 0.5:
            month.fees[name] = month.chance.choice(FEES)
            wanted |= {"stripe-account": SHOP, "application-fee": month.fees[name]}
        if name in TAXED and month.taxed[name]:
            wanted["automatic-tax"] = "on"
        month.set(name, wanted)
    given = {"reference": "welcome", "who": "anna", "why": "welcome", "now": month.now}
    grant = Grant("", PROMOTIONAL, month.credits.given, month.now - timedelta(days=1))
    credit_changes.grant(books.engine, "test", PREPAID, grant, "USD", **given)
    month.put_rule()
    month.rate(10)
    month.insist(month.draft)
    month.move_in()
    month.change_drafts()
    month.charge()
    month.bill()
    month.pay()
    month.hear()
    month.insist(month.top_up)
    month.pay_there()
    month.correct()
    month.take_back()
    month.rate(11)
    month.insist(month.draft)
    month.change_drafts()
    month.bill()
    month.hear()
    month.charge()
    month.voided = {name for name in CUSTOMERS if month.chance.random() < 0.5}
    month.insist(month.void_some)
    month.insist(month.run)
    month.correct()
    month.insist(month.run)
    month.pay()
    for _ in range(2):
        month.take_back()
        month.hear()
        month.charge()
    month.insist(month.run)
    month.by_events = False  # the daily poll, for what a crash took of the events' work
    month.hear()
    return month.wrong + wrong(month)
