"""The one module that talks to Stripe: keys, hosts, retries, and the few calls that invoices need."""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Final, TypeVar, cast
from urllib.parse import quote, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import stripe
import urllib3

from meterhouse_billing.credit_documents import Shown, read_note
from meterhouse_billing.documents import StripeInvoice, StripeLine, read_invoice, read_line
from meterhouse_billing.pace import TEST, Limits, Pacer
from meterhouse_store.settings import is_address

TIMEOUT_S: Final = 30
ATTEMPTS: Final = 5
FIRST_DELAY_S: Final = 0.5
MAX_DELAY_S: Final = 8.0
MAX_WAIT_S: Final = 60.0
"""The longest that an answer's Retry-After is followed."""
PAGE: Final = 100
KEPT_STATUS: Final = 500
MAX_CONNECTIONS: Final = 256
"""So many stay open to be used again; more threads than that have to connect anew for each call."""

_NONE: Final[Mapping[str, Any]] = {}
_INVOICE: Final = "/v1/invoices/{on}"

Answer = TypeVar("Answer")


class BillingError(RuntimeError):
    """Something about Stripe that a person has to look at; the text says what."""


class NoStripeKey(BillingError):
    """There is no key to talk to Stripe with."""


class WrongSetting(BillingError):
    """A variable of the environment that cannot be used; the text names it."""


class LiveKeyRefused(BillingError):
    """A live key where only test keys are allowed."""


class StripeUnavailable(BillingError):
    """Stripe did not answer, or not usefully, in all attempts: whether it did what was asked is unknown.

    `kept`: it answered with a 500, which it keeps under the idempotency key and repeats for a day.
    """

    kept = False


class StripeRefused(BillingError):
    """Stripe understood and said no: repeating the same request does not help."""

    def __init__(self, text: str, *, code: str | None, status: int | None) -> None:
        super().__init__(text)
        self.missing = code == "resource_missing" or status == 404
        self.exists = code == "resource_already_exists"


def connect(environment: Mapping[str, str], *, live: bool, own_key: str = "") -> "Gateway":
    """Stripe as the environment describes it: STRIPE_API_KEY or STRIPE_SECRET_KEY, METERHOUSE_STRIPE_URL.

    `own_key` names a variable whose key comes before these, where it is set: one that may do less.

    Calls keep to Stripe's published limits, those of test mode with a test key; a local Stripe (METERHOUSE_STRIPE_URL)
    is not waited for. METERHOUSE_STRIPE_PER_S says otherwise: so many calls a second in all.

    `live` allows live keys. Raises NoStripeKey or LiveKeyRefused, WrongSetting for an unusable URL or number.
    """
    key = environment.get(own_key) or environment.get("STRIPE_API_KEY") or environment.get("STRIPE_SECRET_KEY")
    if not key:
        raise NoStripeKey("there is no Stripe key: set STRIPE_API_KEY (sk_test_... to try)")
    url = environment.get("METERHOUSE_STRIPE_URL") or None
    if not key.startswith(("sk_test_", "rk_test_")):
        if not key.startswith(("sk_live_", "rk_live_")):
            raise NoStripeKey(
                "STRIPE_API_KEY is no secret key: it begins with sk_test_, rk_test_, sk_live_ or rk_live_"
            )
        if url:
            raise LiveKeyRefused("a live key is never sent to METERHOUSE_STRIPE_URL: unset one of the two")
        if not live:
            raise LiveKeyRefused(
                "this is a live key and the namespace is a test one, which never uses it: set a test key (sk_test_...)"
            )
    if url and not is_address(url, ("http", "https")):
        raise WrongSetting("METERHOUSE_STRIPE_URL must look like http://127.0.0.1:12111")
    pacer = _pacer(environment.get("METERHOUSE_STRIPE_PER_S"), test="_test_" in key, local=bool(url))
    # Otherwise the SDK writes an id file into the home directory and reports timings.
    stripe.enable_telemetry = False
    http = _Client(pacer)

    def make(account: str) -> stripe.StripeClient:
        return stripe.StripeClient(
            key,
            base_addresses={"api": url.rstrip("/"), "meter_events": url.rstrip("/")} if url else {},
            http_client=http,
            max_network_retries=0,  # the SDK does not retry 429; the retries are here
            stripe_account=account or None,
        )

    return Gateway(make(""), make=make)


def _pacer(said: str | None, *, test: bool, local: bool) -> Pacer | None:
    if said is None:
        return None if local else Pacer(TEST if test else Limits())
    if not said.isascii() or not said.isdigit() or not int(said):
        raise WrongSetting("METERHOUSE_STRIPE_PER_S is a number of calls a second, such as 100")
    # A local Stripe has the limits of live mode (`sandbox stripe --limits`).
    return Pacer(replace(TEST if test and not local else Limits(), overall=int(said)))


class _Client(stripe.HTTPClient):
    """What every attempt and every page passes: the one place where calls wait for their turn. Shared by threads.

    urllib3 by itself: with requests between, which the SDK would use, a call takes twice the processor time.
    """

    name = "urllib3"

    def __init__(self, pacer: Pacer | None) -> None:
        super().__init__()
        self._pacer = pacer
        self._pools: dict[str, urllib3.PoolManager] = {}

    def request(
        self, method: str, url: str, headers: Mapping[str, str] | None, post_data: Any = None, **_named: Any
    ) -> Any:
        parts = urlsplit(url)
        if self._pacer is not None:
            self._pacer.wait(method, parts.path)
        try:
            if parts.netloc not in self._pools:
                self._pools[parts.netloc] = _pools(parts.scheme, parts.hostname or "")
            answer = self._pools[parts.netloc].request(
                method.upper(), url, body=post_data, headers=headers, redirect=False, retries=False
            )
        except urllib3.exceptions.HTTPError as problem:
            raise stripe.APIConnectionError(str(problem)) from problem  # type: ignore[no-untyped-call]
        return answer.data, answer.status, answer.headers


def _pools(scheme: str, host: str) -> urllib3.PoolManager:
    """Connections to a host, through the proxy that the environment names for it (HTTPS_PROXY, NO_PROXY, ...)."""
    options: dict[str, Any] = {
        "timeout": urllib3.Timeout(connect=TIMEOUT_S, read=TIMEOUT_S),
        "ca_certs": stripe.ca_bundle_path,
        "maxsize": MAX_CONNECTIONS,
    }
    proxies = getproxies()
    proxy = proxies.get(scheme) or proxies.get("all")
    if not proxy or proxy_bypass(host):
        return urllib3.PoolManager(**options)
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    said = urlsplit(proxy)
    if said.username is not None:
        signed_in = f"{unquote(said.username)}:{unquote(said.password or '')}"
        options["proxy_headers"] = urllib3.make_headers(proxy_basic_auth=signed_in)
    return urllib3.ProxyManager(proxy, **options)


class Gateway:
    """Stripe, as far as invoices need it. Every method raises StripeUnavailable or StripeRefused."""

    def __init__(
        self,
        client: stripe.StripeClient,
        sleep: Callable[[float], None] = time.sleep,
        make: Callable[[str], stripe.StripeClient] | None = None,
    ) -> None:
        """`client` is the key's own account's; `make` gives one for a connected account."""
        self._client, self._sleep = client, sleep
        self._make = make or (lambda account: client)
        self._accounts: dict[str, Gateway] = {"": self}

    def on(self, account: str) -> "Gateway":
        """The same Stripe, every call about a connected account (`acct_...`), or ('') about the key's own."""
        if account not in self._accounts:
            made = Gateway(self._make(account), self._wait, self._make)
            made._accounts = self._accounts
            self._accounts[account] = made
        return self._accounts[account]

    def _wait(self, seconds: float) -> None:
        self._sleep(seconds)

    def call(self, ask: Callable[[stripe.StripeClient], Answer]) -> Answer:
        """What Stripe answers, after as many attempts as it takes up to ATTEMPTS."""
        return self._call(lambda: ask(self._client))

    def once(self, ask: Callable[[stripe.StripeClient], Answer]) -> Answer:
        """What Stripe answers to one attempt. Raises the SDK's StripeError."""
        return ask(self._client)

    def pause(self, attempt: int, asked_s: float = 0.0) -> None:
        """Wait after an attempt (1, 2, ...) that failed, for as long as Stripe asked for (Retry-After) at least."""
        # Half of the delay is random, so that several processes do not come back at the same moment.
        delay = min(MAX_DELAY_S, FIRST_DELAY_S * 2 ** (attempt - 1)) * (0.5 + random.random() / 2)
        self._sleep(max(delay, min(asked_s, MAX_WAIT_S)))

    def send(self, operation: str, request: Mapping[str, Any], key: str) -> dict[str, Any]:
        """One call that changes something, with its idempotency key; the answer as plain JSON.

        `request` is {"params": ..., "on": id of the object, if any}. An operation is an entry of `_OPERATIONS`.
        """
        method, path = _OPERATIONS[operation]
        return self._raw(method, path, request.get("on", ""), request["params"], idempotency_key=key)

    def invoice(self, stripe_invoice_id: str) -> StripeInvoice:
        """The invoice as it is now."""
        return read_invoice(self._raw("get", _INVOICE, stripe_invoice_id))

    def whole(
        self, stripe_invoice_id: str, answer: Mapping[str, Any] | None = None
    ) -> tuple[StripeInvoice, list[StripeLine]]:
        """The invoice as it is now, with all of its lines; where Stripe just `answer`ed with all that, as it did.

        Stripe's invoices carry their first lines, so most of them take one call.
        """
        if answer is None or "lines" not in answer:
            answer = self._raw("get", _INVOICE, stripe_invoice_id)
        listed = answer["lines"]
        lines = self.lines(stripe_invoice_id) if listed["has_more"] else [read_line(line) for line in listed["data"]]
        return read_invoice(answer), lines

    def lines(self, stripe_invoice_id: str) -> list[StripeLine]:
        """All lines of an invoice, page by page."""

        def every() -> list[stripe.InvoiceLineItem]:
            page = self._client.v1.invoices.line_items.list(stripe_invoice_id, {"limit": PAGE})
            return list(page.auto_paging_iter())

        return [read_line(line.to_dict()) for line in self._call(every)]

    def credit_note(self, stripe_credit_note_id: str) -> Shown:
        """The credit note as it is now, with all of its lines."""
        body = self._call(lambda: self._client.v1.credit_notes.retrieve(stripe_credit_note_id)).to_dict()
        return read_note(body, self._note_lines(stripe_credit_note_id))

    def credited_with_tax(self, params: Mapping[str, Any]) -> int:
        """What a credit note (invoice, lines) would come to, with the tax that goes back, in Stripe's unit."""
        asked = {"invoice": params["invoice"], "lines": params["lines"]}
        previewed = self._call(lambda: self._client.v1.credit_notes.preview(cast(Any, asked)))
        return int(previewed.to_dict()["total"])

    def credit_notes(self, stripe_invoice_id: str) -> list[Shown]:
        """All credit notes of an invoice."""

        def every() -> list[stripe.CreditNote]:
            page = self._client.v1.credit_notes.list({"invoice": stripe_invoice_id, "limit": PAGE})
            return list(page.auto_paging_iter())

        return [read_note(note.to_dict(), self._note_lines(note.id)) for note in self._call(every)]

    def _note_lines(self, stripe_credit_note_id: str) -> list[dict[str, Any]]:
        def every() -> list[stripe.CreditNoteLineItem]:
            page = self._client.v1.credit_notes.line_items.list(stripe_credit_note_id, {"limit": PAGE})
            return list(page.auto_paging_iter())

        return [line.to_dict() for line in self._call(every)]

    def invoices_of(self, stripe_customer_id: str) -> list[StripeInvoice]:
        """All invoices of a customer."""

        def every() -> list[stripe.Invoice]:
            page = self._client.v1.invoices.list({"customer": stripe_customer_id, "limit": PAGE})
            return list(page.auto_paging_iter())

        return [read_invoice(invoice.to_dict()) for invoice in self._call(every)]

    def pending_items(self, stripe_customer_id: str) -> list[dict[str, Any]]:
        """The customer's invoice items that are on no invoice."""

        def every() -> list[stripe.InvoiceItem]:
            page = self._client.v1.invoice_items.list({"customer": stripe_customer_id, "pending": True, "limit": PAGE})
            return list(page.auto_paging_iter())

        return [item.to_dict() for item in self._call(every)]

    def balance(self, stripe_customer_id: str) -> int:
        """What the customer owes beside invoices (below 0: has left), in Stripe's unit."""
        customer = self._call(lambda: self._client.v1.customers.retrieve(stripe_customer_id)).to_dict()
        return int(customer.get("balance") or 0)

    def payment(self, payment_intent: str) -> dict[str, Any]:
        """A payment as Stripe shows it now, with its `latest_charge`."""

        def one() -> stripe.PaymentIntent:
            return self._client.v1.payment_intents.retrieve(payment_intent, {"expand": ["latest_charge"]})

        return self._call(one).to_dict()

    def refunds(self, since: datetime) -> list[dict[str, Any]]:
        """All refunds that were created since then."""

        def every() -> list[stripe.Refund]:
            page = self._client.v1.refunds.list({"created": {"gte": int(since.timestamp())}, "limit": PAGE})
            return list(page.auto_paging_iter())

        return [refund.to_dict() for refund in self._call(every)]

    def invoice_of(self, payment_intent: str) -> str | None:
        """The invoice that a payment was for; None where it was for none."""
        payment: Any = {"type": "payment_intent", "payment_intent": payment_intent}
        found = self._call(lambda: self._client.v1.invoice_payments.list({"payment": payment, "limit": 1})).data
        return str(found[0].to_dict()["invoice"]) if found else None

    def payment_of(self, stripe_invoice_id: str) -> dict[str, Any] | None:
        """The payment of an invoice, with its `latest_charge`; None where it was paid elsewhere."""
        asked: Any = {"invoice": stripe_invoice_id, "status": "paid", "limit": PAGE}
        paid = self._call(lambda: self._client.v1.invoice_payments.list(asked)).data
        intents = (one.to_dict()["payment"].get("payment_intent") for one in paid)
        return next((self.payment(intent) for intent in intents if intent is not None), None)

    def disputes_of(self, payment_intent: str) -> list[dict[str, Any]]:
        """All disputes of a payment."""

        def every() -> list[stripe.Dispute]:
            page = self._client.v1.disputes.list({"payment_intent": payment_intent, "limit": PAGE})
            return list(page.auto_paging_iter())

        return [dispute.to_dict() for dispute in self._call(every)]

    def find_customer(self, metadata: Mapping[str, str]) -> dict[str, Any] | None:
        """The customer that carries the metadata. Stripe's search lags behind by about a minute."""
        query = " AND ".join(f"metadata['{_quoted(key)}']:'{_quoted(value)}'" for key, value in metadata.items())
        found = self._call(lambda: self._client.v1.customers.search({"query": query, "limit": 1})).data
        return found[0].to_dict() if found else None

    def find_invoice(self, stripe_customer_id: str, metadata: Mapping[str, str]) -> dict[str, Any] | None:
        """The customer's invoice that carries the metadata."""

        def every() -> list[stripe.Invoice]:
            page = self._client.v1.invoices.list({"customer": stripe_customer_id, "limit": PAGE})
            return list(page.auto_paging_iter())

        bodies = (invoice.to_dict() for invoice in self._call(every))
        return next((body for body in bodies if metadata.items() <= (body["metadata"] or {}).items()), None)

    def _raw(
        self, method: str, path: str, on: str, params: Mapping[str, Any] = _NONE, **options: str
    ) -> dict[str, Any]:
        """The answer as JSON; to make the SDK's objects of it takes as much processor time as the call does."""
        url = path.format(on=quote(on, safe=""))
        answer = self.call(lambda client: client.raw_request(method, url, **params, **options))
        return cast(dict[str, Any], answer.data)

    def _call(self, call: Callable[[], Answer]) -> Answer:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return call()
            except stripe.StripeError as problem:
                status = problem.http_status
                if not may_pass(problem):
                    raise StripeRefused(sentence(problem), code=problem.code, status=status) from problem
                if attempt == ATTEMPTS:
                    unavailable = StripeUnavailable(f"Stripe gave no answer in {ATTEMPTS} attempts: {problem}")
                    unavailable.kept = problem.http_status == KEPT_STATUS
                    raise unavailable from problem
                self.pause(attempt, asked_to_wait_s(problem))
        raise AssertionError("unreachable: the last attempt returns or raises")


_OPERATIONS: Final = {
    "customer.create": ("post", "/v1/customers"),
    "customer.update": ("post", "/v1/customers/{on}"),
    "invoice.create": ("post", "/v1/invoices"),
    "invoice.add_lines": ("post", "/v1/invoices/{on}/add_lines"),
    "invoice.update": ("post", _INVOICE),
    "invoice.delete": ("delete", _INVOICE),
    "invoice.finalise": ("post", "/v1/invoices/{on}/finalize"),
    "invoice.void": ("post", "/v1/invoices/{on}/void"),
    "credit_note.create": ("post", "/v1/credit_notes"),
    "product.create": ("post", "/v1/products"),
    "price.create": ("post", "/v1/prices"),
    "meter.create": ("post", "/v1/billing/meters"),
    "subscription.create": ("post", "/v1/subscriptions"),
    "subscription.update": ("post", "/v1/subscriptions/{on}"),
    "subscription.cancel": ("delete", "/v1/subscriptions/{on}"),
    "checkout.create": ("post", "/v1/checkout/sessions"),
    "payment_intent.create": ("post", "/v1/payment_intents"),
    "application_fee.refund": ("post", "/v1/application_fees/{on}/refunds"),
}
"""Method and path, as in https://docs.stripe.com/api."""


def may_pass(problem: stripe.StripeError) -> bool:
    """Whether the same request may succeed later."""
    status = problem.http_status or 0
    return isinstance(problem, stripe.APIConnectionError) or status in (409, 429) or status >= 500


def asked_to_wait_s(problem: stripe.StripeError) -> float:
    """The seconds of the answer's Retry-After; 0 where it has none."""
    said = {name.lower(): value for name, value in (problem.headers or {}).items()}.get("retry-after", "")
    return float(said) if said.isascii() and said.isdigit() else 0.0


def sentence(problem: stripe.StripeError) -> str:
    request = f" (request {problem.request_id})" if problem.request_id else ""
    return f"Stripe refused: {problem.user_message or problem}{request}"


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "\\'")
