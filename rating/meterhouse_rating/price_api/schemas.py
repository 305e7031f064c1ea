"""The JSON schemas of the price API's answers (JSON Schema 2020-12, as OpenAPI 3.1 takes them).

Objects are closed: a key that an answer has and its schema has not is a mistake, which the tests find.
"""

from typing import Any, Final

Schema = dict[str, Any]


def ref(name: str) -> Schema:
    """A schema of `SCHEMAS` by name."""
    return {"$ref": f"#/components/schemas/{name}"}


def object_of(**properties: Schema) -> Schema:
    """A closed object with all of these keys."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def list_of(of: Schema) -> Schema:
    """An array."""
    return {"type": "array", "items": of}


def or_null(schema: Schema) -> Schema:
    """That, or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def _page(of: Schema) -> Schema:
    return object_of(
        items=list_of(of),
        next=or_null({"type": "string", "description": "The address of the next page; null on the last one."}),
    )


TEXT: Final[Schema] = {"type": "string"}
COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
NUMBER: Final[Schema] = {
    "type": "string",
    "pattern": r"^-?[0-9]+(\.[0-9]+)?$",
    "description": "An exact decimal number. Read it as a decimal, never as a binary fraction.",
}
TIME: Final[Schema] = {"type": "string", "format": "date-time", "description": "An instant, UTC."}
CURRENCY: Final[Schema] = {"type": "string", "pattern": "^[A-Z]{3}$", "description": "ISO 4217."}
SHA256: Final[Schema] = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
TERMS: Final[Schema] = {
    "type": "object",
    "description": "The keys as they are written in the book (docs/pricing.md, Price models). Numbers are exact text, "
    "without separators.",
}
_HEAD: Final[dict[str, Schema]] = {
    "version": {"type": "integer", "minimum": 1},
    "book": TEXT,
    "currency": CURRENCY,
    "sha256": SHA256 | {"description": "Of the text of the book."},
    "author": TEXT,
    "approved_by": or_null(TEXT | {"description": "The second person, where the book took two."}),
    "valid_from": TIME,
    "recorded_at": TIME,
}
_OFFER: Final[dict[str, Schema]] = {"name": TEXT, "title": TEXT, "currency": CURRENCY}
_UNTIL: Final = or_null(TIME | {"description": "Exclusive; null: open."})
_COMPONENT: Final[dict[str, Schema]] = {
    "name": TEXT,
    "title": TEXT | {"description": "What invoices call it."},
    "model": TEXT,
    "metrics": list_of(TEXT),
    "dimensions": list_of(TEXT),
    "tax": ref("Tax"),
    "terms": TERMS,
}

SCHEMAS: Final[dict[str, Schema]] = {
    "Problem": {
        "type": "object",
        "description": "RFC 9457.",
        "properties": {
            "type": TEXT,
            "title": TEXT,
            "status": {"type": "integer", "minimum": 400, "maximum": 599},
            "detail": TEXT | {"description": "What is wrong, and what to do."},
            "code": TEXT | {"description": "What is wrong, for programs; it does not change."},
        },
        "required": ["type", "title", "status", "detail", "code"],
        "additionalProperties": False,
    },
    "Tax": object_of(
        behaviour=or_null({"enum": ["exclusive", "inclusive", "unspecified"]}),
        code=or_null(TEXT),
    ),
    "PriceBookHead": object_of(**_HEAD),
    "PriceBookPage": _page(ref("PriceBookHead")),
    "PriceBook": object_of(
        **_HEAD,
        rounding={"enum": ["half_even", "half_up", "up", "down"]},
        tax=ref("Tax"),
        metrics=list_of(
            object_of(
                name=TEXT,
                unit=TEXT,
                meters=list_of(TEXT),
                aggregate=TEXT,
                of=or_null(TEXT),
                terms=TERMS,
            )
        ),
        unbilled=object_of(meters=list_of(TEXT), statuses=list_of(TEXT)),
        rates=list_of(object_of(**{"from": CURRENCY, "to": CURRENCY, "rate": NUMBER, "valid_from": TIME})),
        plan_changes=object_of(apply={"enum": ["at_once", "next_month"]}, usage={"enum": ["restart", "carry_on"]}),
        plans=list_of(TEXT),
        addons=list_of(TEXT),
    ),
    "OfferHead": object_of(**_OFFER),
    "OfferPage": _page(ref("OfferHead")),
    "Component": object_of(**_COMPONENT),
    "Offer": object_of(**_OFFER, trial_days=COUNT, unbilled=list_of(TEXT), components=list_of(ref("Component"))),
    "PriceList": object_of(
        customer_id=TEXT,
        at=TIME,
        time_zone=TEXT,
        currency=CURRENCY | {"description": "What the customer pays in."},
        period=object_of(start=TIME, end=TIME | {"description": "Exclusive."}, state={"enum": ["open", "closed"]}),
        price_book=object_of(version=_HEAD["version"], book=TEXT, sha256=SHA256, valid_from=TIME),
        plan=object_of(**_OFFER, contract_id=TEXT, valid_from=TIME, trial_until=or_null(TIME), unbilled=list_of(TEXT)),
        conversion=or_null(
            object_of(**{"from": CURRENCY, "to": CURRENCY, "rate": NUMBER, "valid_from": TIME})
            | {"description": "Where the plan is priced in another currency than the customer pays in."}
        ),
        components=list_of(
            object_of(
                **_COMPONENT,
                own_price=or_null(TEXT | {"description": "The agreement, where the price is the customer's own."}),
            )
        ),
        addons=list_of(
            object_of(
                **_OFFER,
                agreement_id=TEXT,
                quantity=NUMBER,
                valid_from=TIME,
                valid_until=_UNTIL,
                components=list_of(ref("Component")),
            )
        ),
        discounts=list_of(
            object_of(
                agreement_id=TEXT,
                name=TEXT,
                percent=or_null(NUMBER),
                amount=or_null(NUMBER | {"description": "In major units of the customer's currency, per month."}),
                components=list_of(TEXT) | {"description": "Off these; empty: off all."},
                months=or_null(COUNT),
                before_minimum={"type": "boolean"},
                valid_from=TIME,
                valid_until=_UNTIL,
            )
        ),
        quantities=list_of(object_of(name=TEXT, quantity=NUMBER, valid_from=TIME)),
        scheduled=list_of(
            object_of(
                applies_from=TIME,
                kind={
                    "enum": [
                        "plan",
                        "contract_ends",
                        "price_book",
                        "addon_begins",
                        "addon_ends",
                        "own_price_begins",
                        "own_price_ends",
                        "discount_begins",
                        "discount_ends",
                        "quantity",
                        "trial_ends",
                    ]
                },
                name=TEXT,
                detail=TEXT,
            )
        )
        | {"description": "What is known to change after `at`, by when it does."},
    ),
    "Health": object_of(status={"const": "ok"}),
}
