"""The price list of the installed `genai-prices` as a text that is pinned: the same package gives the same bytes.

genai-prices (https://github.com/pydantic/genai-prices, MIT) knows what providers ask, with effective dates, tiers by
the size of a request, service tiers and cache buckets. Its own updates are never taken: what was imported stays in SQL,
and costs are worked out from that text alone, whatever version of the package is installed later.
"""

from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from importlib.metadata import version
from typing import Any, Final

from meterhouse_rating.ids import canonical
from meterhouse_store.numbers import plain

FORMAT: Final = 1
PACKAGE: Final = "genai-prices"


def of_installed() -> str:
    """The snapshot as canonical JSON (UTF-8 text). Raises ModuleNotFoundError where the package is not installed."""
    from genai_prices import data, data_units

    return canonical(
        {
            "format": FORMAT,
            "package": PACKAGE,
            "version": version(PACKAGE),
            "units": {
                unit.get("price_key", name): {"per": unit["per"], "dimensions": unit["dimensions"]}
                for name, unit in data_units.unit_data.items()
            },
            "providers": [_provider(it) for it in data.providers],
        }
    )


def _provider(it: Any) -> dict[str, Any]:
    found = {
        "id": it.id,
        "provider_match": None if it.provider_match is None else _match(it.provider_match),
        "model_match": None if it.model_match is None else _match(it.model_match),
        "fallback": list(it.fallback_model_providers or ()),
        "models": [_model(model) for model in it.models],
    }
    return {name: value for name, value in found.items() if value}


def _model(it: Any) -> dict[str, Any]:
    prices = it.prices if isinstance(it.prices, list) else None
    found: dict[str, Any] = {"id": it.id, "match": _match(it.match)}
    if prices is None:
        found["prices"] = [{"prices": _prices(it.prices)}]
    else:
        found["prices"] = [_when(each) | {"prices": _prices(each.prices)} for each in prices]
    if it.price_variants:
        found["variants"] = [
            _when(each) | {"context": dict(each.when), "prices": _prices(each.prices)} for each in it.price_variants
        ]
    return found


def _when(priced: Any) -> dict[str, Any]:
    """From which day (UTC), or in which hours of each day (UTC, seconds since midnight), a price applies."""
    constraint = priced.constraint
    if constraint is None:
        return {}
    start = getattr(constraint, "start_date", None)
    if isinstance(start, date):
        return {"from": start.isoformat()}
    return {"hours": [_seconds(constraint.start_time), _seconds(constraint.end_time)]}


def _seconds(clock: Any) -> int:
    offset = clock.utcoffset()
    seconds = clock.hour * 3600 + clock.minute * 60 + clock.second - (0 if offset is None else offset.seconds)
    return int(seconds % 86400)


def _prices(prices: Any) -> dict[str, Any]:
    return {name: _price(value) for name, value in sorted(vars(prices).items()) if value is not None}


def _price(value: Any) -> Any:
    if isinstance(value, Decimal):
        return plain(value)
    return {"base": plain(value.base), "tiers": [[tier.start, plain(tier.price)] for tier in value.tiers]}


def _match(clause: Any) -> Mapping[str, Any]:
    (name, value) = next(iter(vars(clause).items()))
    return {name.rstrip("_"): [_match(it) for it in value] if isinstance(value, list) else value}
