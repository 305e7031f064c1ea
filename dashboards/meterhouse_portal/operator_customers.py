"""Operators' pages of customers: who they are, their agents and keys, plans and how they are billed; all changed here.

Every change goes through the functions that the commands use, and is kept with who and why. Where a price book takes
two persons, so does what a customer pays: such a change waits until another operator approves it.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from starlette.responses import RedirectResponse, Response

from meterhouse_billing import budget_round, drivers
from meterhouse_billing.gateway import BillingError
from meterhouse_portal import operator_agreements
from meterhouse_portal.operator_change import Asked, Verb, always, rehearse, since, there
from meterhouse_portal.operator_visit import ROWS, OperatorPage, OperatorVisit
from meterhouse_portal.stores import NoWarehouse
from meterhouse_portal.visit import NotShown, WrongField
from meterhouse_rating import cancelling, publishing
from meterhouse_rating.book import BookRefused
from meterhouse_rating.periods import PeriodError, month_of
from meterhouse_rating.versions import NotThere, versions
from meterhouse_rating.world import World
from meterhouse_store import access, audit, budgets, meters, operator_changes, plans, registry
from meterhouse_store.currencies import MINOR_DIGITS
from meterhouse_store.operator_changes import REJECTED
from meterhouse_store.plans import CurrencyRefused, PlanRefused
from meterhouse_store.registry import ALWAYS, ENDED, RegistryError

REFUSED: Final = (RegistryError, PlanRefused, BillingError, PeriodError, NotThere, BookRefused)
"""What a change may be refused by; the text says what to do."""
AGENT_DAYS: Final = 30
_AGENTS: Final = (
    "SELECT agent_id, any(agent_name), count(), max(event_time) FROM usage WHERE namespace = {namespace:String} "
    "AND billed_customer_id = {customer:String} AND event_time >= fromUnixTimestamp64Nano({start_ns:Int64}, 'UTC') "
    "GROUP BY agent_id ORDER BY max(event_time) DESC LIMIT 100"
)


def _add(it: Asked) -> str:
    """Register a customer, with its plan where one is chosen."""
    if registry.customer(it.visit.engine, it.visit.namespace, it.customer_id) is not None:
        raise RegistryError(f"{it.customer_id} is registered already: open it to change it.")
    return _put(it, plan=it.text("plan"), began=it.moment("valid_from"))


def _edit(it: Asked) -> str:
    """Change what is written of name, e-mail, reference, currency and time zone."""
    return _put(it)


def _plan(it: Asked) -> str:
    """Put a customer on a plan from a day on."""
    return _put(it, plan=it.needed("plan", "which plan"), began=it.moment("valid_from"))


def _put(it: Asked, plan: str | None = None, began: datetime | None = None) -> str:
    engine, namespace = it.visit.engine, it.visit.namespace
    currency = it.text("currency")
    if currency is not None and currency not in MINOR_DIGITS:
        told = f"{currency!r} is no currency: write the three letters of ISO 4217, such as USD or EUR."
        raise WrongField("currency", told)
    try:
        currency = plans.currency_on(engine, namespace, it.customer_id, plan, currency, began)
    except CurrencyRefused as refused:
        field = "currency" if "currency" in it.form else "plan"
        raise WrongField(field, refused.plain) from None
    registry.add_customer(
        engine, namespace, it.customer_id, name=it.text("name"), currency=currency, time_zone=it.text("time_zone"),
        email=it.text("email"), reference=it.text("reference"), plan=plan, valid_from=began, now=it.visit.clock(),
    )  # fmt: skip
    return "Saved." if plan is None else f"{it.customer_id} is on the plan {plan}{since(began, it.zone)}."


def _cancel(it: Asked) -> str:
    """End the contract at a day, or at the end of its month, as the price book has it."""
    at, engine, namespace = it.moment("at"), it.visit.engine, it.visit.namespace
    if at is None:
        raise RegistryError("Say when it ends.")
    end = cancelling.end_of(engine, namespace, it.customer_id, at)
    registry.end_contract(engine, namespace, it.customer_id, at, who=it.who, why=it.why, now=it.visit.clock())
    return f"The contract ends at the beginning of {there(end, it.zone)} ({it.zone})."


def _withdraw(it: Asked) -> str:
    """Take back a contract that has not begun yet."""
    began = it.moment("valid_from")
    if began is None:
        raise RegistryError("Say which contract.")
    registry.withdraw_contract(it.visit.engine, it.visit.namespace, it.customer_id, began, now=it.visit.clock())
    return "It is taken back: the contract before it goes on."


def _driver(it: Asked) -> str:
    """Bill by invoices made here, or by Stripe's meters, from the next month on."""
    made = drivers.switch(
        it.visit.engine, it.visit.namespace, it.customer_id, it.needed("driver", "how it is billed"),
        valid_from=it.moment("valid_from"), who=it.who, why=it.why, now=it.visit.clock(),
    )  # fmt: skip
    return f"It is billed by {made.driver}{since(made.valid_from, it.zone)}."


def _pause(it: Asked) -> str:
    """Stop the calls of the customer's agents, or of one."""
    agent = it.form.get("agent", "")
    made = budgets.pause(
        it.visit.engine, it.visit.namespace, it.customer_id, agent_id=agent, who=it.who, why=it.why,
        now=it.visit.clock(),
    )  # fmt: skip
    return _served(it, "Calls stop when agents ask next." if made else "It is paused already.")


def _unpause(it: Asked) -> str:
    """Let agents that an operator stopped go on."""
    agent = it.form.get("agent", "")
    made = budgets.lift(
        it.visit.engine, it.visit.namespace, it.customer_id, agent_id=agent, who=it.who, why=it.why,
        now=it.visit.clock(),
    )  # fmt: skip
    return _served(it, "Calls go on." if made else "Nothing is paused by an operator.")


def _served(it: Asked, sentence: str) -> str:
    """What the collector serves follows at once."""
    with it.visit.stores.warehouse() as client:
        declared = meters.declared(it.visit.settings)
        world = World(it.visit.engine, client, it.visit.namespace, declared, now=it.visit.clock)
        budget_round.run(world, it.customer_id)
    return sentence


def _key(it: Asked) -> str:
    """A key with which agents report for this customer alone. Its text is in the answer, and nowhere else."""
    _, text = access.create_key(
        it.visit.engine, it.visit.namespace, it.needed("name", "what the key is for"), customers=[it.customer_id],
        now=it.visit.clock(),
    )  # fmt: skip
    return text


def _revoke(it: Asked) -> str:
    """Revoke a key of this customer's."""
    if it.form.get("key", "") not in {one.credential_id for one in _keys_of(it.visit, it.customer_id)}:
        raise RegistryError("There is no such key of this customer.")
    access.revoke_key(it.visit.engine, it.form["key"], now=it.visit.clock())
    return "The key is revoked."


VERBS: Final[Mapping[str, Verb]] = {
    "add": Verb(
        _add, ("name", "currency", "time_zone", "email", "reference", "plan", "valid_from"), lambda it: "plan" in it
    ),
    "edit": Verb(_edit, ("name", "currency", "time_zone", "email", "reference"), lambda it: "currency" in it),
    "plan": Verb(_plan, ("plan", "valid_from"), always),
    "cancel": Verb(_cancel, ("at",), always),
    "withdraw": Verb(_withdraw, ("valid_from",), always),
    "driver": Verb(_driver, ("driver", "valid_from"), always),
    "pause": Verb(_pause, ("agent",)),
    "unpause": Verb(_unpause, ("agent",)),
    "key": Verb(_key, ("name",)),
    "revoke": Verb(_revoke, ("key",)),
    **operator_agreements.VERBS,
}


# ---- pages ----------------------------------------------------------------------------------------------------------


def show_customers(visit: OperatorVisit, refusal: Exception | None = None, said: str = "") -> Response:
    """The customers, those that a word is in, and changes that wait."""
    wanted = visit.request.query_params.get("q", "").strip().casefold()[:256]
    every = registry.customers(visit.engine, visit.namespace)
    found = [it for it in every if wanted in f"{it.customer_id} {it.name} {it.email or ''}".casefold()]
    on = _plans(visit)
    return visit.page(
        "operator_customers.html", refusal=refusal, said=said, q=wanted, customers=found[:ROWS], total=len(found),
        plan_of={it.customer_id: on.get(it.customer_id, "") for it in found[:ROWS]}, offered=_offered(visit),
        waiting=operator_changes.latest(visit.engine, visit.namespace, ROWS, waiting=True), form=visit.form,
        words=words,
    )  # fmt: skip


def show_customer(visit: OperatorVisit, refusal: Exception | None = None, said: str = "", key: str = "") -> Response:
    """One customer with all that can be changed of it."""
    name = visit.form.get("customer") or visit.request.query_params.get("id", "")
    found = registry.customer(visit.engine, visit.namespace, name)
    if found is None:
        raise NotShown(name)
    engine, namespace = visit.engine, visit.namespace
    contracts, known = registry.contracts(engine, namespace, name), versions(engine, namespace)
    ends = {
        it.contract_id: cancelling.takes_effect(known, found.time_zone, it.valid_from)
        for it in contracts
        if it.plan == ENDED
    }
    return visit.page(
        "operator_customer.html", refusal=refusal, said=said, key=key, customer=found, contracts=contracts[::-1],
        ends=ends, always=ALWAYS, offered=_offered(visit), agents=_agents(visit, name),
        driver=drivers.driver_at(drivers.drivers(engine, namespace), name, visit.clock()),
        drivers=drivers.DRIVERS, keys=_keys_of(visit, name), pauses=budgets.pauses(engine, namespace, name),
        changes=operator_changes.latest(engine, namespace, ROWS, customer_id=name), words=words,
        **operator_agreements.shown(visit, found),
        now=visit.clock(), next_month=month_of(visit.clock(), found.time_zone).end,
        two_persons=publishing.two_persons(engine, namespace),
    )  # fmt: skip


def change(visit: OperatorVisit) -> Response:
    """Change one customer, or ask another operator to approve the change."""
    verb, name = VERBS.get(visit.form.get("act", "")), visit.form.get("customer", "").strip()
    if verb is None:
        raise NotShown(visit.form.get("act", ""))
    act, adds = visit.form["act"], visit.form["act"] == "add"
    if not adds and registry.customer(visit.engine, visit.namespace, name) is None:
        raise NotShown(name)
    why = visit.why
    kept: dict[str, Any] = {"who": visit.visitor.email, "why": why, "now": visit.clock()}
    show = show_customers if adds else show_customer
    try:
        form = _told(visit, verb, name)
        asked = Asked(visit, name, form, visit.visitor.email, why)
        if verb.pays(form) and publishing.two_persons(visit.engine, visit.namespace):
            rehearse(verb, asked)
            operator_changes.keep(visit.engine, visit.namespace, name, act, form, **kept)
            return show(visit, said="It waits for another operator, who finds it under Customers.")
        with audit.acting(asked.who):
            said = verb.make(asked)
    except REFUSED as wrong:
        return show(visit, wrong)
    if act == "key":
        operator_changes.keep(visit.engine, visit.namespace, name, act, form, outcome="made", **kept)
        return show_customer(visit, key=said)
    operator_changes.keep(visit.engine, visit.namespace, name, act, form, outcome=said, **kept)
    return show_customer(visit, said=said)


def decide(visit: OperatorVisit) -> Response:
    """Approve or reject a change that waits."""
    act = visit.form.get("act", "")
    if act not in ("approve", "reject"):
        raise NotShown(act)
    who, why = visit.visitor.email, visit.why
    try:
        found = operator_changes.to_decide(
            visit.engine, visit.namespace, visit.form.get("change", ""), who=who, reject=act == "reject"
        )
        outcome = REJECTED
        if act == "approve":
            with audit.acting(found.who):
                outcome = VERBS[found.what].make(Asked(visit, found.customer_id, found.form, found.who, found.why))
    except REFUSED as wrong:
        return show_customers(visit, wrong)
    operator_changes.decide(visit.engine, found, outcome, who=who, why=why, now=visit.clock())
    return RedirectResponse("/operator/customers", 303)


PAGES: Final = (
    OperatorPage("GET", "/operator/customers", lambda visit: show_customers(visit)),
    OperatorPage("GET", "/operator/customer", lambda visit: show_customer(visit)),
    OperatorPage("POST", "/operator/customers", change),
    OperatorPage("POST", "/operator/changes", decide),
    *operator_agreements.PAGES,
)


def words(change: operator_changes.Change) -> str:
    """A change in words: `plan: plan pro, valid from 2026-12-01`."""
    told = []
    for name, value in change.form.items():
        if name == operator_agreements.BEFORE_MINIMUM:
            told.append(name.replace("_", " the "))
        elif not name.startswith(operator_agreements.OF) and name != "text":  # which stands below, line by line
            told.append(f"{name.replace('_', ' ')} {value}")
    parts = [it.removeprefix(operator_agreements.OF) for it in change.form if it.startswith(operator_agreements.OF)]
    if parts:
        told.append(f"off {' and '.join(parts)} only")
    return f"{change.what}: {', '.join(told)}" if told else change.what


def _told(visit: OperatorVisit, verb: Verb, customer_id: str) -> dict[str, str]:
    """What was written in the verb's fields, without what is so already."""
    said = verb.told(visit.form)
    found = registry.customer(visit.engine, visit.namespace, customer_id)
    if found is not None and verb is VERBS["edit"]:
        said = {name: text for name, text in said.items() if text != (getattr(found, name) or "")}
    if verb in (VERBS["plan"], VERBS["cancel"]) and not {"valid_from", "at"} & set(said):
        said |= {"valid_from" if verb is VERBS["plan"] else "at": visit.clock().isoformat(timespec="seconds")}
    return said


def _offered(visit: OperatorVisit) -> Sequence[str]:
    found = plans.offered(visit.engine, visit.namespace, visit.clock())
    return [] if found is None else list(found.currencies)


def _plans(visit: OperatorVisit) -> dict[str, str]:
    """Customer -> the plan that it is on now."""
    now = visit.clock()
    return {it.customer_id: it.plan for it in registry.contracts(visit.engine, visit.namespace) if it.valid_from <= now}


def _keys_of(visit: OperatorVisit, customer_id: str) -> list[access.Credential]:
    """The keys that are for this customer alone."""
    return [it for it in access.credentials(visit.engine, visit.namespace) if it.customers == (customer_id,)]


def _agents(visit: OperatorVisit, customer_id: str) -> list[tuple[str, str, int, datetime]] | None:
    """Agents of late: id, name, events, when last; None where the warehouse does not answer."""
    since = visit.clock() - timedelta(days=AGENT_DAYS)
    bound = {"namespace": visit.namespace, "customer": customer_id, "start_ns": int(since.timestamp()) * 10**9}
    try:
        with visit.stores.warehouse() as client:
            rows = client.query(_AGENTS, parameters=bound).result_rows
    except NoWarehouse:
        return None
    return [(name, called, int(events), last.replace(tzinfo=UTC)) for name, called, events, last in rows]
