"""What operators change of a customer beside its plan: add-ons, own prices, discounts, quantities.

They are recorded as `meterhouse contracts` does it, and ended, never changed. A price of the customer's own is looked
at first, as a price book is: its mistakes, what it changes, and what the customer's last month would have come to.
"""

import difflib
from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from starlette.responses import Response

from meterhouse_portal.operator_change import MAX_PRICE, Asked, Verb, always, since, there
from meterhouse_portal.operator_visit import OperatorPage, OperatorVisit
from meterhouse_portal.stores import NoWarehouse
from meterhouse_portal.visit import NotShown, WrongField
from meterhouse_rating import agreeing, periods, publishing, simulate
from meterhouse_rating.book import BookRefused
from meterhouse_rating.periods import PeriodError
from meterhouse_rating.simulate import Simulation
from meterhouse_rating.versions import NotThere
from meterhouse_rating.world import World
from meterhouse_store import agreements, meters, registry
from meterhouse_store.registry import Customer, RegistryError

OF: Final = "of-"
"""What the names of the boxes begin with that say which components a discount is off."""

BEFORE_MINIMUM: Final = "before_minimum"

_EVERY: Final = (agreements.addons, agreements.overrides, agreements.discounts, agreements.quantities)


def _add_on(it: Asked) -> str:
    """Add an add-on of the price book."""
    number = it.number("quantity")
    made = agreeing.add_on(
        it.visit.engine, it.visit.namespace, it.customer_id, it.needed("addon", "which add-on"),
        Decimal(1) if number is None else number, valid_from=it.began(), valid_until=it.moment("valid_until"),
        now=it.visit.clock(),
    )  # fmt: skip
    return f"It has the add-on {made.addon}{_span(made, it.zone)}."


def _price(it: Asked) -> str:
    """Give it a price of its own for a component of its plan."""
    made = agreeing.own_price(
        it.visit.engine, it.visit.namespace, it.customer_id, it.needed("component", "of what"),
        _lines(it.needed("text", "the price")), valid_from=it.began(), valid_until=it.moment("valid_until"),
        now=it.visit.clock(),
    )  # fmt: skip
    return f"It has a price of its own for {made.component}{_span(made, it.zone)}."


def _discount(it: Asked) -> str:
    """Give it a discount: a coupon, a promotion, or what it gets for a commitment."""
    months = it.number("months")
    if months is not None and months != int(months):
        raise RegistryError(f"{it.text('months')!r} months: write a whole number, or none.")
    made = agreeing.discount(
        it.visit.engine, it.visit.namespace, it.customer_id, it.needed("title", "what stands on invoices"),
        percent=it.number("percent"), amount=it.number("amount"),
        components=[name.removeprefix(OF) for name in it.form if name.startswith(OF)],
        months=None if months is None else int(months), before_minimum=it.text(BEFORE_MINIMUM) is not None,
        valid_from=it.began(), valid_until=it.moment("valid_until"), now=it.visit.clock(),
    )  # fmt: skip
    return f"It has the discount {made.name}{_span(made, it.zone)}."


def _quantity(it: Asked) -> str:
    """Say how many of something, such as seats, it has from a day on."""
    number = it.number("quantity")
    if number is None:
        raise RegistryError("Say how many.")
    name, began = it.needed("counted", "of what"), it.began()
    try:
        made = agreeing.quantity(
            it.visit.engine, it.visit.namespace, it.customer_id, name, number, valid_from=began, now=it.visit.clock()
        )
    except RegistryError as refused:
        raise WrongField("counted", str(refused)) from None
    return f"It has {it.text('quantity')} {made.name}{since(made.valid_from, it.zone)}."


def _end(it: Asked) -> str:
    """End an add-on, a price of its own, or a discount."""
    name, at = it.needed("agreement", "which of them"), it.moment("at")
    if at is None:
        raise RegistryError("Say when it ends.")
    if name not in {one.agreement_id for one in _agreed(it.visit, it.customer_id)}:
        raise RegistryError("There is no such agreement of this customer.")
    made = agreements.end(it.visit.engine, it.visit.namespace, name, at)
    return f"It holds{_span(made, it.zone)}."


_SPAN: Final = ("valid_from", "valid_until")
VERBS: Final[Mapping[str, Verb]] = {
    "add-on": Verb(_add_on, ("addon", "quantity", *_SPAN), always),
    "price": Verb(_price, ("component", "text", *_SPAN), always, longest=MAX_PRICE),
    "discount": Verb(_discount, ("title", "percent", "amount", "months", BEFORE_MINIMUM, *_SPAN), always, more=OF),
    "quantity": Verb(_quantity, ("counted", "quantity", "valid_from"), always),
    "end": Verb(_end, ("agreement", "at"), always),
}


def shown(visit: OperatorVisit, customer: Customer) -> dict[str, Any]:
    """What the customer's page shows of it, the latest first, and what can be chosen in the forms."""
    zone, name = customer.time_zone, customer.customer_id
    agreed = sorted(_agreed(visit, name), key=lambda it: (it.valid_from, it.agreement_id), reverse=True)
    rows = [(*_words(it, customer.currency), _span(it, zone).strip()) for it in agreed]
    running = [
        (it.agreement_id, " ".join(agreeing.words(it, customer.currency)[:2]))
        for it in agreed
        if getattr(it, "valid_until", it.valid_from) is None
    ]
    try:
        book, plan, _ = agreeing.terms_at(visit.engine, visit.namespace, name, visit.clock())
        components = [(part.name, plan.options[part.name].title) for part in plan.components]
        addons = [(one.name, one.title) for one in book.addons.values()]
        counted = agreeing.counted(visit.engine, visit.namespace, name, book, plan, visit.clock())
    except (NotThere, RegistryError, BookRefused):
        components, addons, counted = [], [], ()
    return {"agreed": rows, "running": running, "components": components, "addons": addons, "counted": counted}


def _words(record: Any, currency: str) -> tuple[str, str, str]:
    """Kind, name and terms; of a price of its own all that is written."""
    kind, name, terms = agreeing.words(record, currency)
    return kind, name, record.source.strip() if isinstance(record, agreements.Override) else terms


# ---- a price of its own ---------------------------------------------------------------------------------------------


def show_price(visit: OperatorVisit) -> Response:
    """The price that a component has now, to be changed for this customer alone."""
    customer, component, now = *_whose(visit), visit.clock()
    own = [
        it
        for it in agreements.overrides(visit.engine, visit.namespace, customer.customer_id)
        if it.component == component and it.valid_from <= now and (it.valid_until is None or it.valid_until > now)
    ]
    return _draft(visit, customer, component, own[-1].source if own else _listed(visit, customer, component))


def check_price(visit: OperatorVisit) -> Response:
    """Look at a price: its mistakes, what it changes, and what the last month would have come to."""
    customer, component = _whose(visit)
    text = _lines(visit.form.get("text", ""))
    asked = Asked(visit, customer.customer_id, visit.form, visit.visitor.email, "")
    try:
        VERBS["price"].told(visit.form)
        agreeing.check_own_price(visit.engine, visit.namespace, customer.customer_id, component, text, asked.began())
    except BookRefused as refused:
        return _draft(visit, customer, component, text, "The price has mistakes.", mistakes=refused.mistakes)
    except (RegistryError, NotThere, PeriodError) as wrong:
        return _draft(visit, customer, component, text, str(wrong))
    last = f"{periods.month_of(visit.clock(), customer.time_zone).start - timedelta(days=1):%Y-%m}"
    made, trouble = None, ""
    try:
        with visit.stores.warehouse() as client:
            world = World(visit.engine, client, visit.namespace, meters.declared(visit.settings), now=visit.clock)
            made = simulate.simulate_own_price(world, customer.customer_id, component, text, [last], costs=False)
    except (NotThere, PeriodError, NoWarehouse) as wrong:
        trouble = f"{last} cannot be simulated: {wrong}"
    return _draft(visit, customer, component, text, checked=True, made=made, month=last, trouble=trouble)


def _draft(
    visit: OperatorVisit,
    customer: Customer,
    component: str,
    text: str,
    problem: str = "",
    *,
    mistakes: list[Any] | None = None,
    checked: bool = False,
    made: Simulation | None = None,
    month: str = "",
    trouble: str = "",
) -> Response:
    listed = _listed(visit, customer, component)
    unified = list(difflib.unified_diff(listed.splitlines(), text.splitlines(), lineterm="", n=3))[2:]
    return visit.page(
        "operator_price.html", problem=problem, customer=customer, component=component, text=text,
        mistakes=mistakes or [], checked=checked, made=made, month=month, trouble=trouble, unified=unified,
        form=visit.form, next_month=periods.month_of(visit.clock(), customer.time_zone).end, longest=MAX_PRICE,
        two_persons=publishing.two_persons(visit.engine, visit.namespace),
    )  # fmt: skip


def _whose(visit: OperatorVisit) -> tuple[Customer, str]:
    """The customer and the component of its plan. Raises NotShown."""
    told: Mapping[str, str] = visit.form or visit.request.query_params
    name, component = told.get("customer", ""), told.get("component", "")
    customer = registry.customer(visit.engine, visit.namespace, name)
    if customer is None:
        raise NotShown(name)
    try:
        _, plan, _ = agreeing.terms_at(visit.engine, visit.namespace, name, visit.clock())
    except (NotThere, RegistryError):
        raise NotShown(component) from None
    if component not in {part.name for part in plan.components}:
        raise NotShown(component)
    return customer, component


def _listed(visit: OperatorVisit, customer: Customer, component: str) -> str:
    """The price of the component as the price book has it."""
    _, plan, source = agreeing.terms_at(visit.engine, visit.namespace, customer.customer_id, visit.clock())
    return agreeing.written(source, plan.name, component)


def _agreed(visit: OperatorVisit, customer_id: str) -> list[Any]:
    return [it for read in _EVERY for it in read(visit.engine, visit.namespace, customer_id)]


def _lines(text: str) -> str:
    """As files have it: browsers send other ends of lines."""
    return text.replace("\r\n", "\n").strip() + "\n"


def _span(record: Any, zone: str) -> str:
    until: datetime | None = getattr(record, "valid_until", None)
    if until is None:
        return since(record.valid_from, zone)
    return f" {there(record.valid_from, zone)} to {there(until, zone)} ({zone})"


PAGES: Final = (
    OperatorPage("GET", "/operator/price", show_price),
    OperatorPage("POST", "/operator/price", check_price),
)
