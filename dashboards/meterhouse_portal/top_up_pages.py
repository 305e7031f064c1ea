"""Buying credits: amounts to choose from, and the way to the page of Stripe on which they are paid."""

import logging
import re
import secrets
from datetime import datetime, timedelta
from typing import Final

from starlette.responses import Response

from meterhouse_billing import purchases, top_ups
from meterhouse_billing.gateway import BillingError
from meterhouse_billing.top_ups import Started
from meterhouse_portal.members import BILLING
from meterhouse_portal.rates import Bucket
from meterhouse_portal.visit import Page, Visit, WrongField
from meterhouse_store.registry import RegistryError

PATH: Final = "/account/top-up"
SHOWN: Final = 20
_REFERENCE: Final = re.compile(r"[A-Za-z0-9_-]{16,64}")
_WRONG_AMOUNT: Final = WrongField("amount", "Choose one of the amounts.")
_STARTS: Final = Bucket(20, timedelta(hours=1))

_log = logging.getLogger(__name__)


def show(visit: Visit, wrong: RegistryError | None = None, started: Started | None = None) -> Response:
    """What can be bought, and what was bought before."""
    visit.query(set())
    mine = visit.account
    try:
        offer = top_ups.offer(visit.billing(), mine.customer_id)
    except BillingError as problem:
        _log.warning("no credits can be bought in the portal: %s", problem)
        offer = None
    if offer is not None and offer.refusal:
        _log.warning("%s cannot buy credits in the portal: %s", mine.customer_id, offer.refusal)
    bought = [
        it for it in purchases.listed(mine.engine, mine.namespace, mine.customer_id) if it["how"] == purchases.PAGE
    ]
    return visit.page(
        "top_up.html", wrong=wrong, offer=offer, started=started, reference=secrets.token_urlsafe(24),
        bought=[(it, _open_page(visit, it["state"], it["created_at"], it["url"])) for it in bought[:SHOWN]],
    )  # fmt: skip


def buy(visit: Visit) -> Response:
    """A page of Stripe for one of the amounts; a form that is sent twice leads to the same one.

    Stripe's address is a link on the page that answers: what a form leads to has to be ours (`form-action 'self'`).
    """
    mine, form = visit.account, visit.form
    amount, reference = form.get("amount", ""), form.get("reference", "")
    if not re.fullmatch(r"[0-9]{1,12}", amount) or not _REFERENCE.fullmatch(reference):
        return show(visit, _WRONG_AMOUNT)
    if not _STARTS.take(mine.customer_id, mine.now):
        return show(visit, RegistryError("That was often: try again in an hour."))
    try:
        started = top_ups.start(
            visit.billing(), mine.customer_id, int(amount), f"{visit.public_url}{PATH}", who=visit.visitor.email,
            reference=f"{reference} {amount}",
        )  # fmt: skip
    except top_ups.TopUpRefused as refused:
        _log.warning("a top-up of %s was refused: %s", mine.customer_id, refused)
        return show(visit, _WRONG_AMOUNT)
    except BillingError as problem:
        _log.error("a top-up of %s could not be started: %s", mine.customer_id, problem)
        later = "Payments cannot be reached now: try again in a minute. Nothing was charged."
        return show(visit, RegistryError(later))
    return show(visit, started=started)


PAGES: Final = (
    Page("GET", PATH, BILLING, lambda visit: show(visit)),
    Page("POST", PATH, BILLING, buy),
)


def _open_page(visit: Visit, state: str, created_at: datetime, url: str | None) -> str:
    """Where it can still be paid; '' where it cannot."""
    is_open = state == purchases.OPEN and created_at > visit.account.now - top_ups.PAGE_LIFE
    return url if is_open and url else ""
