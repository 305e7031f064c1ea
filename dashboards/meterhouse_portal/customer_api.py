"""A customer's own figures over HTTP: what the pages show, for programs. Read only, one key is one customer.

One table makes the routes and the OpenAPI document. Numbers are exact decimals, as text; times are UTC.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from importlib.metadata import version
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from meterhouse_portal import access_keys, account, usage_log
from meterhouse_portal.account import Account
from meterhouse_portal.stores import UNREADABLE, NoWarehouse, Stores
from meterhouse_portal.usage_log import CURSOR
from meterhouse_portal.use_prices import UsePrice
from meterhouse_rating.money import show
from meterhouse_rating.periods import PeriodError
from meterhouse_rating.price_api.app import Problem, refused
from meterhouse_rating.price_api.operations import PROBLEM
from meterhouse_rating.price_api.schemas import Schema, list_of, object_of, or_null
from meterhouse_rating.settle import WatermarkWentBack
from meterhouse_rating.shares import AVERAGE, EXACT, FREE
from meterhouse_rating.versions import NotThere
from meterhouse_store import meters
from meterhouse_store.numbers import plain
from meterhouse_store.settings import Settings

_TEXT: Final[Schema] = {"type": "string"}
_NUMBER: Final[Schema] = {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]+)?$", "description": "An exact decimal."}
_TIME: Final[Schema] = {"type": "string", "format": "date-time"}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}


_SPAN: Final[dict[str, Schema]] = {"period_start": _TIME, "period_end": _TIME}
_RATING: Final[dict[str, Schema]] = {
    "id": _TEXT, **_SPAN, "state": {"enum": ["open", "closed"]}, "plan": _TEXT, "currency": _TEXT, "total": _NUMBER,
    "rated_at": _TIME, "invoice_state": or_null(_TEXT), "invoice_number": or_null(_TEXT),
    "invoice_url": or_null(_TEXT), "invoice_total": or_null(_NUMBER),
}  # fmt: skip
_LINE: Final = object_of(
    id=_TEXT, kind=_TEXT, description=_TEXT, quantity=_NUMBER, unit=_TEXT,
    dimensions={"type": "object", "additionalProperties": _TEXT}, amount=_NUMBER, currency=_TEXT,
    explanation={"type": "object"},
)  # fmt: skip
_ACTION: Final = object_of(
    id=_TEXT, event_time=_TIME, agent=_TEXT, model=_TEXT, tool=_TEXT, operation=_TEXT, status=_TEXT,
    conversation=_TEXT, task=_TEXT, trace_id=_TEXT, used={"type": "object", "additionalProperties": _NUMBER},
    price=or_null(_NUMBER), currency=or_null(_TEXT),
    price_is={
        "enum": ["exact", "average", "free", "unknown"],
        "description": "average: of the lines that it is on, which moves until the month is closed; free: by the price "
        "list; unknown: `unpriced` says why. Before discounts, minimums, fees, credits and taxes.",
    },
    unpriced={"type": "object", "additionalProperties": _TEXT, "description": "Meter: why it has no price."},
    lines={"type": "array", "items": _TEXT, "description": "The lines that it is on, as the invoice calls them."},
)  # fmt: skip

_MONTH: Final = r"^(19[7-9][0-9]|2[01][0-9]{2})-(0[1-9]|1[0-2])$"
_SPAN_OF_TIME: Final = r"^[0-9].{7,39}\.\.[0-9].{7,39}$"
_PERIOD: Final[dict[str, Schema]] = {
    "period": _TEXT
    | {
        "maxLength": 80,
        "description": "2026-11, or 2026-11-01..2026-11-15 with instants or dates of at most a month in between; "
        "unsaid or empty: the month of now.",
        "anyOf": [{"maxLength": 0}, {"pattern": _MONTH}, {"pattern": _SPAN_OF_TIME}],
    }
}
_AFTER: Final[Schema] = _TEXT | {
    "maxLength": 300, "pattern": f"^$|{CURSOR}", "description": "`next` of the last page; empty: from the beginning.",
}  # fmt: skip
_FILTERS: Final[dict[str, Schema]] = {
    name: _TEXT | {"maxLength": 256, "description": f"Only of this {name}."} for name in usage_log.FILTERS
}


@dataclass(frozen=True)
class Operation:
    """One GET; `name` is that of the method that answers it."""

    name: str
    path: str
    summary: str
    answer: Schema
    parameters: Mapping[str, Schema] = field(default_factory=dict)
    problems: tuple[int, ...] = ()
    open: bool = False


OPERATIONS: Final = (
    Operation("get_usage", "/api/v1/usage", "What was used in a period, by meter.",
              object_of(**_SPAN, items=list_of(object_of(meter=_TEXT, quantity=_NUMBER, events=_COUNT))), _PERIOD),
    Operation("list_actions", "/api/v1/actions", "The usage log: one entry per call or other use, latest first.",
              object_of(items=list_of(_ACTION), next=or_null(_TEXT | {"description": "For `after`; null at the end."})),
              {**_PERIOD, **_FILTERS, "after": _AFTER}),
    Operation("get_bill", "/api/v1/bill", "What the month under way comes to so far, and is expected to.",
              object_of(**_SPAN, currency=or_null(_TEXT), so_far=or_null(_NUMBER), expected=or_null(_NUMBER),
                      low=or_null(_NUMBER), high=or_null(_NUMBER)), problems=(409,)),
    Operation("list_invoices", "/api/v1/invoices", "The rated periods with their invoices, latest first.",
              object_of(items=list_of(object_of(**_RATING)))),
    Operation("get_invoice", "/api/v1/invoices/{id}", "One rated period with its lines, explained.",
              object_of(**_RATING, lines=list_of(_LINE)), problems=(404,)),
    Operation("get_openapi", "/api/v1/openapi.json", "This document.", {"type": "object"}, open=True),
)  # fmt: skip

_STATUSES: Final = {
    400: "A parameter that is not known or cannot be read.",
    401: "The key is missing, unknown or revoked.",
    404: "There is no such thing, or it is not yours.",
    409: "It cannot be worked out now: the detail says why.",
    503: "A store does not answer: ask again.",
}


def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Meterhouse usage",
            "version": "1.0.0",
            "summary": "A customer's own usage and invoices, read-only.",
            "description": f"Served by Meterhouse {version('meterhouse')}.",
        },
        "paths": {it.path: {"get": _described(it)} for it in OPERATIONS},
        "components": {
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "A key of the portal's page API keys."}
            }
        },
        "security": [{"key": []}],
    }


def _described(it: Operation) -> dict[str, Any]:
    problem = object_of(type=_TEXT, title=_TEXT, status={"type": "integer"}, detail=_TEXT, code=_TEXT)
    answers: dict[str, Any] = {
        "200": {"description": it.summary, "content": {"application/json": {"schema": it.answer}}}
    }
    for status in sorted({400, *(() if it.open else (401, 503)), *it.problems}):
        answers[str(status)] = {"description": _STATUSES[status], "content": {PROBLEM: {"schema": problem}}}
    path = [_parameter("path", "id", _TEXT | {"description": "Of the rated period."})] if "{id}" in it.path else []
    query = [_parameter("query", name, schema) for name, schema in it.parameters.items()]
    found = {"operationId": it.name, "summary": it.summary, "parameters": path + query, "responses": answers}
    return found | ({"security": []} if it.open else {})


def _parameter(where: str, name: str, schema: Schema) -> dict[str, Any]:
    said = {key: value for key, value in schema.items() if key != "description"}
    return {
        "name": name, "in": where, "required": where == "path", "description": schema["description"], "schema": said,
    }  # fmt: skip


class CustomerApi:
    """Everything under `/api/v1`."""

    def __init__(self, settings: Settings, stores: Stores, now: Callable[[], datetime]) -> None:
        self._settings, self._stores, self._now = settings, stores, now
        self._document = document()

    def routes(self) -> list[Route]:
        """One for each operation."""
        return [Route(it.path, self._endpoint(it), methods=["GET"], name=it.name) for it in OPERATIONS]

    def get_usage(self, mine: Account, query: Mapping[str, str], _: str) -> Any:
        period = account.month(query.get("period"), mine.customer().time_zone, mine.now)
        items = [
            {"meter": meter, "quantity": plain(quantity), "events": events}
            for meter, quantity, events in mine.soonest(lambda it: it.totals(period))
        ]
        return {"period_start": _utc(period.start), "period_end": _utc(period.end), "items": items}

    def list_actions(self, mine: Account, query: Mapping[str, str], _: str) -> Any:
        period = account.month(query.get("period"), mine.customer().time_zone, mine.now)
        wanted = {name: query[name] for name in usage_log.FILTERS if query.get(name)}
        try:
            log = usage_log.page(mine, period, wanted, query.get("after"))
        except ValueError:
            raise Problem(400, "bad_parameter", "after takes what `next` of the page before has") from None
        items = [
            {
                "id": it.action_id, "event_time": _utc(it.event_time), "agent": it.agent, "model": it.model,
                "tool": it.tool, "operation": it.operation, "status": it.status, "conversation": it.conversation,
                "task": it.task, "trace_id": it.trace_id, "used": {meter: plain(part) for meter, part in it.used},
                **_price(it.price),
            }
            for it in log.actions
        ]  # fmt: skip
        return {"items": items, "next": log.next}

    def get_bill(self, mine: Account, _query: Mapping[str, str], _: str) -> Any:
        try:
            found = mine.outlook()
        except (NotThere, WatermarkWentBack):
            raise Problem(409, "not_known", "there are no prices yet, or the warehouse is being made anew") from None
        currency, ahead = found.currency, found.ahead

        def amount(minor: int | None) -> str | None:
            return None if minor is None or currency is None else show(minor, currency)

        return {
            "period_start": _utc(found.month.start), "period_end": _utc(found.month.end), "currency": currency,
            "so_far": amount(found.so_far_minor), "expected": amount(ahead.expected if ahead else None),
            "low": amount(ahead.low if ahead else None), "high": amount(ahead.high if ahead else None),
        }  # fmt: skip

    def list_invoices(self, mine: Account, _query: Mapping[str, str], _: str) -> Any:
        return {"items": [_rating(it) for it in mine.ratings()]}

    def get_invoice(self, mine: Account, _query: Mapping[str, str], name: str) -> Any:
        found = mine.rating(name)
        if found is None:
            raise Problem(404, "not_found", "there is no such period: /api/v1/invoices lists yours")
        rating, lines = found
        return _rating(rating) | {
            "lines": [
                {
                    "id": it["line_id"], "kind": it["kind"], "description": it["description"],
                    "quantity": plain(it["quantity"]), "unit": it["unit"], "dimensions": it["dimensions"],
                    "amount": show(it["amount_minor"], it["currency"]), "currency": it["currency"],
                    "explanation": it["explanation"],
                }
                for it in lines
            ]
        }  # fmt: skip

    def get_openapi(self, _mine: Account | None, _query: Mapping[str, str], _: str) -> Any:
        return self._document

    def _endpoint(self, it: Operation) -> Callable[[Request], Response]:
        answer: Callable[..., Any] = getattr(self, it.name)

        def endpoint(request: Request) -> Response:
            try:
                query, name = _query(request, it), str(request.path_params.get("id", ""))
                if it.open:
                    return _json(answer(None, query, name))
                customer_id = self._customer(request.headers.get("authorization", ""))
                with self._stores.warehouse_when_asked() as connect:
                    mine = Account(
                        self._stores.engine(), connect, self._settings.namespace, customer_id,
                        meters.declared(self._settings), self._now(),
                    )  # fmt: skip
                    return _json(answer(mine, query, name))
            except Problem as problem:
                return refused(problem)
            except PeriodError as wrong:
                return refused(Problem(400, "bad_parameter", str(wrong)))
            except (NoWarehouse, *UNREADABLE):
                return refused(Problem(503, "unavailable", "a store does not answer: ask again", {"Retry-After": "1"}))

        return endpoint

    def _customer(self, authorization: str) -> str:
        scheme, _, text = authorization.partition(" ")
        found = None
        if scheme.lower() == "bearer" and len(text) <= 256:
            found = access_keys.customer_of(self._stores.engine(), self._settings.namespace, text.strip())
        if found is None:
            asks = {"WWW-Authenticate": 'Bearer realm="meterhouse usage"'}
            what = "send the header `Authorization: Bearer mhc_...` with a key of the portal that was not revoked"
            raise Problem(401, "unauthenticated", what, asks)
        return found


def _query(request: Request, it: Operation) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in it.parameters or name in found:
            raise Problem(400, "bad_parameter", f"{name[:64]!r} is no parameter here, or is given twice")
        if len(value) > it.parameters[name]["maxLength"]:
            raise Problem(400, "bad_parameter", f"{name} has at most {it.parameters[name]['maxLength']} characters")
        found[name] = value
    return {name: value for name, value in found.items() if value}


def _rating(it: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": it["rating_id"], "period_start": _utc(it["period_start"]), "period_end": _utc(it["period_end"]),
        "state": it["state"], "plan": it["plan"], "currency": it["currency"],
        "total": show(it["total_minor"], it["currency"]), "rated_at": _utc(it["rated_at"]),
        "invoice_state": it["invoice_state"], "invoice_number": it["number"], "invoice_url": it["hosted_url"],
        "invoice_total": None if it["finalised_at"] is None else show(it["amount_minor"], it["currency"]),
    }  # fmt: skip


def _price(it: UsePrice) -> dict[str, Any]:
    return {
        "price": None if it.amount is None else plain(it.amount), "currency": it.currency or None,
        "price_is": it.how if it.how in (EXACT, AVERAGE, FREE) else "unknown", "unpriced": dict(it.unpriced),
        "lines": list(it.lines),
    }  # fmt: skip


def _utc(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def _json(value: Any) -> Response:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_exact)
    return Response(text, media_type="application/json")


def _exact(value: object) -> str:
    if isinstance(value, Decimal):
        return plain(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")
