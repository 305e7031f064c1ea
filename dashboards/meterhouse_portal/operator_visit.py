"""A request of an operator who is signed in, and what every page of the operators' does with one."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Engine
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from meterhouse_billing import gateway
from meterhouse_billing.world import World
from meterhouse_portal.members import Visitor
from meterhouse_portal.rendering import Rendering
from meterhouse_portal.stores import Stores
from meterhouse_portal.visit import Refused, field_of
from meterhouse_rating.publishing import Person
from meterhouse_store import meters, registry
from meterhouse_store.settings import Settings

ROWS: Final = 100
MAX_FORM: Final = 64 * 1024

BillingWorld = Callable[[Engine, str, str, Callable[[], datetime]], World]
"""(SQL, namespace, who, clock) -> what billing works with. Raises BillingError where Stripe cannot be reached."""


def billing_world(engine: Engine, namespace: str, who: str, now: Callable[[], datetime]) -> World:
    """Billing with the Stripe key of the environment."""
    registered = registry.namespace(engine, namespace)
    is_live = registered is not None and registered.kind == "live"
    return World(engine, gateway.connect(os.environ, live=is_live), namespace, who, now)


@dataclass(frozen=True)
class OperatorVisit:
    """An operator's request, and the stores."""

    request: Request
    visitor: Visitor
    settings: Settings
    stores: Stores
    form: Mapping[str, str]
    drawn_by: Rendering
    clock: Callable[[], datetime]
    billing: BillingWorld

    @property
    def engine(self) -> Engine:
        return self.stores.engine()

    @property
    def namespace(self) -> str:
        return self.settings.namespace

    @property
    def person(self) -> Person:
        """Who decides about price books."""
        return Person(self.visitor.email, "portal")

    @property
    def units(self) -> dict[str, str]:
        """The declared meters with their units."""
        return {name: it.unit for name, it in meters.declared(self.settings).items()}

    @property
    def why(self) -> str:
        """The reason, which every decision has. Raises Refused."""
        said = self.form.get("why", "").strip()
        if not 1 <= len(said) <= 400:
            raise Refused("Say why, in at most 400 characters: it is kept with the decision.")
        return said

    def page(
        self, template: str, *, problem: str = "", refusal: Exception | None = None, **values: Any
    ) -> HTMLResponse:
        """The template, filled; with a problem, or with why the form that was sent is refused, and what it has."""
        problem = problem or ("" if refusal is None else str(refusal))
        told = {"visitor": self.visitor, "path": self.request.url.path, "zone": "UTC", "problem": problem}
        told |= {"field": field_of(refusal), "refused": "" if refusal is None else self.form.get("act", "")}
        typed = {} if refusal is None else self.form
        return HTMLResponse(self.drawn_by.page(template, typed=typed, **told, **values), 422 if problem else 200)


Handler = Callable[[OperatorVisit], Response]


@dataclass(frozen=True)
class OperatorPage:
    """One page of the operators'; `max_form`: the bytes that what is sent to it may have."""

    method: str
    path: str
    handler: Handler
    max_form: int = MAX_FORM
