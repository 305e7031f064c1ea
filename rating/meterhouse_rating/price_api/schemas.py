"""The JSON schemas of the price API's answers (JSON Schema 2020-12, as OpenAPI 3.1 takes them).

Objects are closed: a key that an answer has and its schema has not is a mistake, which the tests find.
"""

from typing import Any, Final

Schema = dict[str, Any]


def ref(name: str) -> Schema:
    """A schema of `SCHEMAS` by name."""
    return {"$ref": f"#/components/schemas/{name}"}


def _object(**properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _list(of: Schema) -> Schema:
    return {"type": "array", "items": of}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _page(of: Schema) -> Schema:
    return _object(
        items=_list(of),
        next=_or_null({"type": "string", "description": "The address of the next page; null on the last one."}),
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
    "approved_by": _or_null(TEXT | {"description": "The second person, where the book took two."}),
    "valid_from": TIME,
    "recorded_at": TIME,
}
_OFFER: Final[dict[str, Schema]] = {"name": TEXT, "title": TEXT, "currency": CURRENCY}
_UNTIL: Final = _or_null(TIME | {"description": "Exclusive; null: open."})
_COMPONENT: Final[dict[str, Schema]] = {
    "name": TEXT,
    "title": TEXT | {"description": "What invoices call it."},
    "model": TEXT,
    "metrics": _list(TEXT),
    "dimensions": _list(TEXT),
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
    "Tax": _object(
        behaviour=_or_null({"enum": ["exclusive", "inclusive", "unspecified"]}),
        code=_or_null(TEXT),
    ),
    "PriceBookHead": _object(**_HEAD),
    "PriceBookPage": _page(ref("PriceBookHead")),
    "PriceBook": _object(
        **_HEAD,
        rounding={"enum": ["half_even", "half_up", "up", "down"]},
        tax=ref("Tax"),
        metrics=_list(
            _object(
                name=TEXT,
                unit=TEXT,
                meters=_list(TEXT),
                aggregate=TEXT,
                of=_or_null(TEXT),
                terms=TERMS,
            )
        ),
        unbilled=_object(meters=_list(TEXT), statuses=_list(TEXT)),
        rates=_list(_object(**{"from": CURRENCY, "to": CURRENCY, "rate": NUMBER, "valid_from": TIME})),
        plan_changes=_object(apply={"enum": ["at_once", "next_month"]}, usage={"enum": ["restart", "carry_on"]}),
        plans=_list(TEXT),
        addons=_list(TEXT),
    ),
    "OfferHead": _object(**_OFFER),
    "OfferPage": _page(ref("OfferHead")),
    "Component": _object(**_COMPONENT),
    "Offer": _object(**_OFFER, trial_days=COUNT, unbilled=_list(TEXT), components=_list(ref("Component"))),
    "PriceList": _object(
        customer_id=TEXT,
        at=TIME,
        time_zone=TEXT,
        currency=CURRENCY | {"description": "What the customer pays in."},
        period=_object(start=TIME, end=TIME | {"description": "Exclusive."}, state={"enum": ["open", "closed"]}),
        price_book=_object(version=_HEAD["version"], book=TEXT, sha256=SHA256, valid_from=TIME),
        plan=_object(**_OFFER, contract_id=TEXT, valid_from=TIME, trial_until=_or_null(TIME), unbilled=_list(TEXT)),
        conversion=_or_null(
            _object(**{"from": CURRENCY, "to": CURRENCY, "rate": NUMBER, "valid_from": TIME})
            | {"description": "Where the plan is priced in another currency than the customer pays in."}
        ),
        components=_list(
            _object(
                **_COMPONENT,
                own_price=_or_null(TEXT | {"description": "The agreement, where the price is the customer's own."}),
            )
        ),
        addons=_list(
            _object(
                **_OFFER,
                agreement_id=TEXT,
                quantity=NUMBER,
                valid_from=TIME,
                valid_until=_UNTIL,
                components=_list(ref("Component")),
            )
        ),
        discounts=_list(
            _object(
                agreement_id=TEXT,
                name=TEXT,
                percent=_or_null(NUMBER),
                amount=_or_null(NUMBER | {"description": "In major units of the customer's currency, per month."}),
                components=_list(TEXT) | {"description": "Off these; empty: off all."},
                months=_or_null(COUNT),
                before_minimum={"type": "boolean"},
                valid_from=TIME,
                valid_until=_UNTIL,
            )
        ),
        quantities=_list(_object(name=TEXT, quantity=NUMBER, valid_from=TIME)),
        scheduled=_list(
            _object(
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
    "Health": _object(status={"const": "ok"}),
}
