"""What a route of the sandbox's Stripe is made of: the call, pages of lists, objects by their names."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from meterhouse_sandbox.stripe_contract import StripeRefusal
from meterhouse_sandbox.stripe_invoices import Context

Given = dict[str, Any]
Handler = Callable[[Context, str, Given], dict[str, Any]]
MAX_PAGE: Final = 100
DEFAULT_PAGE: Final = 10


@dataclass(frozen=True)
class Call:
    """One route. `params` names the SDK's parameter class; `supported` what of it is acted upon."""

    method: str
    path: str  # {id} stands for the object's name
    params: str
    handle: Handler
    supported: frozenset[str]
    required: frozenset[str]


def call(method: str, path: str, params: str, handle: Handler, supported: str = "", required: str = "") -> Call:
    return Call(method, path, params, handle, frozenset(supported.split()), frozenset(required.split()))


def new(create: Callable[[Context, Given], dict[str, Any]]) -> Handler:
    return lambda context, _name, given: create(context, given)


def retrieve(kind: str) -> Handler:
    return lambda context, name, _given: context.find(kind, name)


def page(found: list[dict[str, Any]], given: Given, url: str) -> dict[str, Any]:
    limit = given.get("limit", DEFAULT_PAGE)
    if not 1 <= limit <= MAX_PAGE:
        raise StripeRefusal("This value must be from 1 to 100.", code="parameter_invalid_integer", param="limit")
    start = 0
    if after := given.get("starting_after"):
        names = [one["id"] for one in found]
        if after not in names:
            raise StripeRefusal(f"No such object: '{after}'", code="resource_missing", param="starting_after")
        start = names.index(after) + 1
    return {"object": "list", "data": found[start : start + limit], "has_more": len(found) > start + limit, "url": url}
