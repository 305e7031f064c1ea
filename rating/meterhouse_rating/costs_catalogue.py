"""What a pinned price list says of a provider's usage: a pure reading of the text that `costs_snapshot` makes.

Providers and models are found by genai-prices' own rules (data_snapshot.py and types.py of genai-prices 0.2.3), and a
token has the price of the most specific unit that is priced and contains it (decompose.py). Where the library answers 0
because it knows no price, the answer here is that the cost is unknown.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Final

from meterhouse_store.numbers import D

NO_CATALOGUE: Final = "no_catalogue"
MODEL_MISSING: Final = "model_missing"
PROVIDER_UNKNOWN: Final = "provider_unknown"
MODEL_UNKNOWN: Final = "model_unknown"
NO_PRICE: Final = "no_price"
TIER_UNPRICED: Final = "service_tier_unpriced"
AMBIGUOUS: Final = "ambiguous_price"

DAY_S: Final = 86_400
CURRENCY: Final = "USD"
"""All of genai-prices' prices are in it."""

STANDARD_TIERS: Final = frozenset({"", "default", "standard", "auto", "on_demand"})
"""How providers call the service tier that has the list price."""

_PROVIDERS: Final = {"azure.ai.openai": "azure", "azure.ai.inference": "azure", "x_ai": "x-ai"}
"""OpenTelemetry's names of providers that genai-prices' rules would take for another provider, or for none."""

_INPUT: Final = {"family": "tokens", "direction": "input"}
_OUTPUT: Final = {"family": "tokens", "direction": "output"}
_UNITS: Final[Mapping[str, Mapping[str, str]]] = {
    "llm.tokens.input": _INPUT,
    "llm.tokens.cache_read": _INPUT | {"token_type": "cache_read"},
    "llm.tokens.cache_write": _INPUT | {"token_type": "cache_write"},
    "llm.tokens.output": _OUTPUT,
    "llm.tokens.reasoning": _OUTPUT | {"token_type": "reasoning"},
    "llm.requests": {"family": "requests"},
    "llm.audio.seconds": {"family": "durations", "direction": "input", "modality": "audio"},
    "llm.web_searches": {"family": "tool_calls", "tool_type": "web_search"},
    "llm.file_searches": {"family": "tool_calls", "tool_type": "storage_search"},
    "llm.code_executions": {"family": "tool_calls", "tool_type": "code_execution"},
    "llm.pages": {"family": "document_pages", "direction": "input"},
    "llm.search_units": {"family": "rerank"},
}
"""What one of a meter is, in genai-prices' dimensions; modality and cache_ttl of the usage are added."""

METERS: Final = frozenset({*_UNITS, "llm.images"})
"""The meters that a catalogue can say anything about."""

CONTEXT_METERS: Final = ("llm.tokens.input", "llm.tokens.cache_read", "llm.tokens.cache_write")
"""Their sum is the size of a request that tiered prices go by."""

_GROQ_MINIMUM_S: Final = Decimal(10)
"""Groq bills at least ten seconds of a transcription (https://groq.com/pricing); genai-prices has it in its code."""


@dataclass(frozen=True)
class Price:
    """So much of `currency` per `per` units. `entry` names where it stands.

    `tiers`: (start, price): where a request's total input is above `start`, all of it has that price. `clock`: (second,
    price): from that second of each UTC day on. `minimum`: a quantity above 0 counts for at least so much. `free`: the
    price is 0 because that was declared, or because the provider asks for something else instead.
    """

    price: Decimal
    per: int
    currency: str
    entry: str
    tiers: tuple[tuple[int, Decimal], ...] = ()
    clock: tuple[tuple[int, Decimal], ...] = ()
    minimum: Decimal = Decimal(0)
    free: bool = False


@dataclass(frozen=True)
class Unknown:
    """Why a cost is not known."""

    reason: str


@dataclass(frozen=True)
class Model:
    """A model of the list: how it is named, and its prices as they stand in the snapshot."""

    id: str
    match: Mapping[str, Any]
    prices: Sequence[Mapping[str, Any]]
    variants: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Provider:
    """A provider of the list; `fallback` are providers whose models it offers too."""

    id: str
    models: Sequence[Model]
    provider_match: Mapping[str, Any] | None = None
    model_match: Mapping[str, Any] | None = None
    fallback: Sequence[str] = ()


@dataclass(frozen=True)
class Asked:
    """The usage that a price is wanted for; empty where the usage says nothing."""

    meter: str
    provider: str
    model: str
    modality: str = ""
    cache_ttl: str = ""
    service_tier: str = ""


@dataclass(frozen=True)
class Catalogue:
    """A pinned price list. `name` begins the names of its prices."""

    name: str
    package: str
    version: str
    units: Mapping[str, tuple[int, Mapping[str, str]]]
    providers: Sequence[Provider]
    _found: dict[tuple[str, str], tuple[Provider, Model] | str] = field(default_factory=dict, compare=False, repr=False)

    def find(self, provider: str, model: str) -> tuple[Provider, Model] | str:
        """The provider and its model, or the reason why there is none (MODEL_MISSING, ...)."""
        key = (provider, model)
        if key not in self._found:
            self._found[key] = self._find(provider, model)
        return self._found[key]

    def starts(self, asked: Asked) -> list[datetime]:
        """The moments at which a price of the model may change."""
        found = self.find(asked.provider, asked.model)
        if isinstance(found, str):
            return []
        days = {it["from"] for it in (*found[1].prices, *found[1].variants) if "from" in it}
        return [datetime.combine(date.fromisoformat(day), datetime.min.time(), UTC) for day in sorted(days)]

    def price(self, asked: Asked, day: date) -> Price | Unknown:
        """What it costs on a UTC day; all of the day has the same prices, but for those that follow the clock."""
        found = self.find(asked.provider, asked.model)
        if isinstance(found, str):
            return Unknown(found)
        provider, model = found
        own = any(model is it for it in provider.models)
        hours = {second for it in (*model.prices, *model.variants) for second in it.get("hours", ())}
        by_clock: list[tuple[int, Price | Unknown]] = []
        for second in sorted({0, *hours}):
            at = self._at(asked, provider, model, day, second, own=own)
            if not by_clock or by_clock[-1][1] != at:
                by_clock.append((second, at))
        if len(by_clock) == 1:
            return by_clock[0][1]
        each = [(second, it) for second, it in by_clock if isinstance(it, Price) and not it.tiers]
        if len(each) != len(by_clock):
            return Unknown(AMBIGUOUS)
        first = each[0][1]
        return Price(
            first.price, first.per, first.currency, first.entry, clock=tuple((at, it.price) for at, it in each)
        )

    def _find(self, provider: str, model: str) -> tuple[Provider, Model] | str:
        if not model:
            return MODEL_MISSING
        name, text = _PROVIDERS.get(provider, provider), model.lower()
        if name.lower() == "litellm" and "/" in text:
            actual, rest = text.split("/", 1)
            if actual and self._provider(actual):
                name, text = actual, rest
        known = self._provider(name) if name and name.lower() != "litellm" else None
        if known is None and (not name or name.lower() == "litellm"):
            known = next((it for it in self.providers if it.model_match and _matches(it.model_match, text)), None)
        if known is None:
            return PROVIDER_UNKNOWN
        found = self._model(known, text) or self._model(known, _with_dashes(text))
        return MODEL_UNKNOWN if found is None else (known, found)

    def _provider(self, name: str) -> Provider | None:
        text = name.lower().strip()
        same = (it for it in self.providers if it.id == text)
        like = (it for it in self.providers if it.provider_match and _matches(it.provider_match, text))
        return next(same, None) or next(like, None)

    def _model(self, provider: Provider, text: str) -> Model | None:
        others = [it for name in provider.fallback for it in self.providers if it.id == name]
        return next((it for at in (provider, *others) for it in at.models if _matches(it.match, text)), None)

    def _at(
        self, asked: Asked, provider: Provider, model: Model, day: date, second: int, *, own: bool
    ) -> Price | Unknown:
        chosen = model.prices[0]
        for each in reversed(model.prices):
            if _active(each, day, second):
                chosen = each
                break
        prices, label = dict(chosen["prices"]), _label(model.id, chosen)
        tier = asked.service_tier.lower()
        if tier not in STANDARD_TIERS:
            context = {"service_tier": tier, **({"processing": "batch"} if tier == "batch" else {})}
            variants = [
                it
                for it in model.variants
                if own
                and _active(it, day, second)
                and all(context.get(name) == value for name, value in it["context"].items())
            ]
            if not variants:
                return Unknown(TIER_UNPRICED)
            for it in reversed(variants):  # the first one counts
                prices |= it["prices"]
            label += f" {tier}"
        return self._of_prices(asked, provider, label, prices)

    def _of_prices(self, asked: Asked, provider: Provider, label: str, prices: Mapping[str, Any]) -> Price | Unknown:
        at = f"{self.name}/{provider.id}/{label}"
        made = any(key.startswith("output") and key.endswith("mtok") for key in prices)
        if asked.meter == "llm.images":
            # Models that make images are asked for tokens; what is priced by the image is not in the list.
            return Price(Decimal(0), 1, CURRENCY, f"{at} by tokens", free=True) if made else Unknown(NO_PRICE)
        wanted = dict(_UNITS[asked.meter])
        if wanted["family"] == "tokens":
            wanted |= {key: it for key, it in (("modality", asked.modality), ("cache_ttl", asked.cache_ttl)) if it}
        inside = [key for key in prices if key in self.units and self.units[key][1].items() <= wanted.items()]
        if not inside:
            if asked.meter == "llm.requests":
                return Price(Decimal(0), 1, CURRENCY, f"{at} none per request", free=True)
            return Unknown(NO_PRICE)
        best = max(inside, key=lambda key: (len(self.units[key][1]), key))
        if any(not self.units[key][1].items() <= self.units[best][1].items() for key in inside):
            return Unknown(AMBIGUOUS)
        price, per = prices[best], self.units[best][0]
        base = D(price["base"]) if isinstance(price, Mapping) else D(price)
        tiers = tuple((start, D(it)) for start, it in price["tiers"]) if isinstance(price, Mapping) else ()
        whisper = provider.id == "groq" and asked.meter == "llm.audio.seconds" and label.startswith("whisper-large-v3")
        minimum = _GROQ_MINIMUM_S if whisper else Decimal(0)
        return Price(base, per, CURRENCY, f"{at} {best}", tuple(sorted(tiers)), minimum=minimum)


def read(name: str, text: str) -> Catalogue:
    """The catalogue of a snapshot's text. Raises ValueError for what is no snapshot."""
    try:
        told = json.loads(text)
        if told["format"] != 1:
            raise ValueError(f"format {told['format']}")
        return Catalogue(
            name,
            str(told["package"]),
            str(told["version"]),
            {key: (int(it["per"]), it["dimensions"]) for key, it in told["units"].items()},
            [_provider_of(it) for it in told["providers"]],
        )
    except (KeyError, TypeError, ValueError) as wrong:
        raise ValueError(f"this is no catalogue of prices ({wrong}): `meterhouse costs import` makes one") from None


def _provider_of(told: Mapping[str, Any]) -> Provider:
    models = [Model(it["id"], it["match"], it["prices"], it.get("variants", ())) for it in told.get("models", ())]
    return Provider(
        told["id"], models, told.get("provider_match"), told.get("model_match"), tuple(told.get("fallback", ()))
    )


def _matches(clause: Mapping[str, Any], text: str) -> bool:
    ((kind, value),) = clause.items()
    text = text.lower()
    match kind:
        case "equals":
            return bool(text == value.lower())
        case "contains":
            return bool(value.lower() in text)
        case "starts_with":
            return text.startswith(str(value).lower())
        case "ends_with":
            return text.endswith(str(value).lower())
        case "regex":
            return re.search(value, text) is not None
        case "or":
            return any(_matches(it, text) for it in value)
        case "and":
            return all(_matches(it, text) for it in value)
    raise ValueError(f"a rule {kind!r} for names is not known")


def _active(priced: Mapping[str, Any], day: date, second: int) -> bool:
    if "from" in priced:
        return day >= date.fromisoformat(priced["from"])
    if "hours" in priced:
        start, end = priced["hours"]
        return bool(start <= second < end if start <= end else second >= start or second < end)
    return True


def _label(model: str, priced: Mapping[str, Any]) -> str:
    return f"{model}@{priced['from']}" if "from" in priced else model


_COMPACT_DATE: Final = re.compile(r"(-)(20\d{2})(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(?=-|:|$)")


def _with_dashes(text: str) -> str:
    """gpt-5.2-20251211, as some gateways write it, is gpt-5.2-2025-12-11."""

    def dashed(found: re.Match[str]) -> str:
        year, month, day = (int(found.group(at)) for at in (2, 3, 4))
        try:
            date(year, month, day)
        except ValueError:
            return found.group(0)
        return f"-{year:04d}-{month:02d}-{day:02d}"

    return _COMPACT_DATE.sub(dashed, text)
