"""What the price API offers: one table, of which both the routes and the OpenAPI document are made."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Final

from meterhouse_rating.price_api.schemas import SCHEMAS, Schema, ref

JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"
YAML: Final = "application/yaml"
MAX_PAGE: Final = 100
USUAL_PAGE: Final = 50
MAX_VERSION: Final = 2**31 - 1


@dataclass(frozen=True)
class Operation:
    """One GET; `name` is that of the method that answers it, and its operationId.

    `parameters`: name -> schema with its description, of the query. `problems`: statuses that it may answer with,
    beside those of every operation. `open`: it takes no key.
    """

    name: str
    path: str
    summary: str
    answer: Schema
    media: str = JSON
    parameters: Mapping[str, Schema] = field(default_factory=dict)
    problems: tuple[int, ...] = ()
    immutable: bool = False
    open: bool = False

    @property
    def route(self) -> str:
        """The path as Starlette takes it: a version is a number, and a customer's id may have slashes in it."""
        return self.path.replace("{version}", "{version:int}").replace("{customer_id}", "{customer_id:path}")


_PAGE: Final[dict[str, Schema]] = {
    "limit": {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": USUAL_PAGE, "description": "So many."},
    "after": {"type": "string", "maxLength": 64, "description": "As `next` of the page before has it."},
}
_AT: Final[dict[str, Schema]] = {
    "at": {
        "type": "string",
        "maxLength": 40,
        "description": "An ISO date or instant, UTC where it names no zone; now where it is not given.",
    }
}
_PATH: Final[dict[str, Schema]] = {
    "version": {"type": "integer", "minimum": 1, "maximum": MAX_VERSION, "description": "Of the price book."},
    "plan": {"type": "string", "maxLength": 64, "description": "A plan of the book."},
    "addon": {"type": "string", "maxLength": 64, "description": "An add-on of the book."},
    "customer_id": {"type": "string", "maxLength": 256, "description": "As agents report it, percent-encoded."},
}

OPERATIONS: Final = (
    Operation("list_price_books", "/v1/price-books", "The published versions, oldest first.", ref("PriceBookPage"),
              parameters=_PAGE),
    Operation("get_price_book", "/v1/price-books/{version}", "One version; it never changes.", ref("PriceBook"),
              problems=(404,), immutable=True),
    Operation("get_price_book_source", "/v1/price-books/{version}/source", "Its text, byte for byte.",
              {"type": "string"}, media=YAML, problems=(404,), immutable=True),
    Operation("list_plans", "/v1/price-books/{version}/plans", "Its plans, in the book's order.", ref("OfferPage"),
              parameters=_PAGE, problems=(404,), immutable=True),
    Operation("get_plan", "/v1/price-books/{version}/plans/{plan}", "One plan with the terms of its components.",
              ref("Offer"), problems=(404,), immutable=True),
    Operation("list_addons", "/v1/price-books/{version}/addons", "Its add-ons, in the book's order.",
              ref("OfferPage"), parameters=_PAGE, problems=(404,), immutable=True),
    Operation("get_addon", "/v1/price-books/{version}/addons/{addon}", "One add-on with the terms of its components.",
              ref("Offer"), problems=(404,), immutable=True),
    Operation("get_customer_prices", "/v1/customers/{customer_id}/prices",
              "The price list that applies to a customer at a moment, and what is to change after it.",
              ref("PriceList"), parameters=_AT, problems=(404, 409)),
    Operation("get_openapi", "/v1/openapi.json", "This document.", {"type": "object"}, open=True),
    Operation("get_health", "/healthz", "Whether the API answers.", ref("Health"), open=True),
)  # fmt: skip

_PROBLEMS: Final = {
    400: "A parameter that is not known or cannot be read.",
    401: "The key is missing, unknown or revoked.",
    403: "The key is not for this: it has another role, or is for other customers.",
    404: "There is no such thing.",
    409: "The customer has no price list then: the detail says why.",
    414: "The address is too long.",
    503: "The SQL database does not answer: ask again.",
}


def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Meterhouse prices",
            "version": "1.0.0",
            "summary": "Price books and the price lists of customers, read-only.",
            "description": f"Served by Meterhouse {version('meterhouse')}. Numbers are exact decimals, as text.",
        },
        "paths": {it.path: {"get": _get(it)} for it in OPERATIONS},
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A key of the role `pricing`: `meterhouse keys create NAME --role pricing`.",
                }
            },
        },
        "security": [{"key": []}],
    }


def _get(operation: Operation) -> dict[str, Any]:
    path = [part[1:-1] for part in operation.path.split("/") if part.startswith("{")]
    parameters = [_parameter("path", name, _PATH[name]) for name in path]
    parameters += [_parameter("query", name, schema) for name, schema in operation.parameters.items()]
    headers = {"ETag": {"schema": {"type": "string"}, "description": "Send it back as If-None-Match."}}
    found: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": parameters,
        "responses": {
            "200": {
                "description": operation.summary,
                "headers": headers,
                "content": {operation.media: {"schema": operation.answer}},
            },
            "304": {"description": "What If-None-Match names is still so.", "headers": headers},
        },
    }
    always = (400, 414) if operation.open else (400, 401, 403, 414, 503)
    for status in sorted({*always, *operation.problems}):
        content = {PROBLEM: {"schema": ref("Problem")}}
        found["responses"][str(status)] = {"description": _PROBLEMS[status], "content": content}
    return found | ({"security": []} if operation.open else {})


def _parameter(where: str, name: str, schema: Schema) -> dict[str, Any]:
    described = {key: value for key, value in schema.items() if key != "description"}
    return {
        "name": name,
        "in": where,
        "required": where == "path",
        "description": schema["description"],
        "schema": described,
    }
