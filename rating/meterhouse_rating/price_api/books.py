"""Published price books as JSON: heads, whole books, their plans and add-ons."""

from collections.abc import Mapping
from typing import Any

from meterhouse_rating.book import Book, Options, Plan
from meterhouse_rating.charges import Component
from meterhouse_rating.metrics import Metric
from meterhouse_rating.price_api.written import tree
from meterhouse_rating.versions import Version
from meterhouse_store.numbers import plain

PLANS, ADDONS = "plans", "addons"


def head(version: Version, approved_by: str | None) -> dict[str, Any]:
    """What a list of versions says of one."""
    return {
        "version": version.version,
        "book": version.book.name,
        "currency": version.book.currency,
        "sha256": version.sha256,
        "author": version.author,
        "approved_by": approved_by,
        "valid_from": version.valid_from.isoformat(),
        "recorded_at": version.recorded_at.isoformat(),
    }


def whole(version: Version, approved_by: str | None) -> dict[str, Any]:
    """A version without the terms of its plans and add-ons, which have addresses of their own."""
    book = version.book
    changes = book.plan_changes
    return head(version, approved_by) | {
        "rounding": book.rounding,
        "tax": {"behaviour": book.tax.behaviour, "code": book.tax.code},
        "metrics": [_metric(it, tree(version.source)["metrics"][it.name]) for it in book.metrics.values()],
        "unbilled": {"meters": sorted(book.unbilled_meters), "statuses": sorted(book.unbilled_statuses)},
        "rates": [
            {
                "from": it.source,
                "to": it.target,
                "rate": plain(it.rate),
                "valid_from": it.valid_from.isoformat(),
            }
            for it in book.rates
        ],
        "plan_changes": {
            "apply": "at_once" if changes.at_once else "next_month",
            "usage": "carry_on" if changes.carry_on else "restart",
        },
        "plans": list(book.plans),
        "addons": list(book.addons),
    }


def offers(version: Version, kind: str) -> Mapping[str, Plan]:
    """The plans, or the add-ons, of a version by name, in the book's order."""
    return version.book.plans if kind == PLANS else version.book.addons


def summary(offer: Plan) -> dict[str, Any]:
    """What a list says of a plan or an add-on."""
    return {"name": offer.name, "title": offer.title, "currency": offer.currency}


def offer(version: Version, kind: str, found: Plan) -> dict[str, Any]:
    """A plan or an add-on with the terms of its components."""
    return summary(found) | {
        "trial_days": found.trial_days,
        "unbilled": sorted(found.unbilled),
        "components": components(version, kind, found),
    }


def components(version: Version, kind: str, found: Plan) -> list[dict[str, Any]]:
    """The components as the book has them."""
    book, written = version.book, tree(version.source)[kind][found.name]["components"]
    return [component(book, it, found.options[it.name], written[it.name]) for it in found.components]


def component(book: Book, found: Component, options: Options, terms: Mapping[str, Any]) -> dict[str, Any]:
    """One priced part; `terms` are the keys as they are written, numbers as exact text."""
    return {
        "name": found.name,
        "title": options.title,
        "model": terms["model"],
        "metrics": list(found.metrics),
        "dimensions": list(found.dimensions),
        "tax": {
            "behaviour": options.tax.behaviour or book.tax.behaviour,
            "code": options.tax.code or book.tax.code,
        },
        "terms": dict(terms),
    }


def _metric(found: Metric, terms: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": found.name,
        "unit": found.unit,
        "meters": list(found.meters),
        "aggregate": found.aggregate,
        "of": found.of,
        "terms": dict(terms),
    }
