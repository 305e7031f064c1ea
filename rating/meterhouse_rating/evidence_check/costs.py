"""What the provider asked for events, from the dated costs in the pack; and whether those stand in what they name."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Final

from .findings import Findings, Refused, number, parse_json, sha256, whole

KIND: Final = ("provider", "model", "modality", "cache_ttl", "service_tier", "tool")
_CONTEXT: Final = ("llm.tokens.input", "llm.tokens.cache_read", "llm.tokens.cache_write")
_SEVERAL: Final = ("framework", "sdk_loop")
_MATCHED: Final = (
    "customer_id", "agent_id", "tool", "service_tier", "cache_ttl", "modality", "model", "provider", "meter",
)  # fmt: skip
_CURRENCY: Final = "USD"
_SHORT: Final = 12

Price = tuple[str, Fraction, int, str]
"""What says so, price, per how many, currency."""


@dataclass
class Costs:
    """The dated costs of one rating's usage, and how large the requests are that some prices go by."""

    dated: dict[tuple[str, ...], list[Mapping[str, Any]]] = field(default_factory=dict)
    sizes: dict[tuple[str, ...], Fraction] = field(default_factory=dict)
    tiered: set[tuple[str, str]] = field(default_factory=set)

    @classmethod
    def of(cls, rating: Mapping[str, Any]) -> "Costs":
        """As a rating tells them."""
        made = cls()
        for it in rating["costs"]:
            what = it["what"]
            key = (it["meter"], *(what.get(name, "") for name in KIND))
            key = (*key, what.get("agent_id", ""), what.get("customer_id", ""))
            made.dated.setdefault(key, []).append(it)
            if it.get("tiers"):
                made.tiered.add((what.get("provider", ""), what.get("model", "")))
        for found in made.dated.values():
            found.sort(key=lambda it: str(it["valid_from"]))
        return made

    def look(self, event: Mapping[str, Any]) -> None:
        """Count the event to the size of its request; all events are looked at before any cost is asked for."""
        said = event.get("dimensions", {})
        model = (said.get("provider", ""), said.get("model", ""))
        if model in self.tiered and event["meter"] in _CONTEXT:
            key = (event["time"], *model, _request(event))
            self.sizes[key] = self.sizes.get(key, Fraction(0)) + number(event["quantity"])

    def ask(self, event: Mapping[str, Any], customer: str) -> tuple[Price, Fraction] | None:
        """The price of an event, and of how many units; None where it is not known."""
        said, quantity = event.get("dimensions", {}), number(event["quantity"])
        source = said.get("usage_source", "")
        if event["meter"] == "llm.requests" and source == "none" and event["status"] != "failed":
            return None
        it = self._dated(event, said, customer)
        if it is None or "reason" in it:
            return None
        price = number(it["price"])
        if it.get("tiers"):
            key = (event["time"], said.get("provider", ""), said.get("model", ""), _request(event))
            size = self.sizes.get(key, Fraction(0))
            above = [number(price) for start, price in it["tiers"] if size > whole(start)]
            if not _request(event) or (above and source in _SEVERAL):
                return None
            price = above[-1] if above else price
        elif it.get("clock"):
            second = _second(event["time"])
            price = [number(price) for start, price in it["clock"] if whole(start) <= second][-1]
        least = number(it.get("minimum", "0"))
        units = least if least and 0 < quantity < least else quantity
        return (it["entry"], price, whole(it["per"]), it["currency"]), units

    def _dated(self, event: Mapping[str, Any], said: Mapping[str, str], customer: str) -> Mapping[str, Any] | None:
        """The cost that holds at the event's time: one that names the agent or the customer goes before."""
        kind = (event["meter"], *(said.get(name, "") for name in KIND))
        agent = said.get("agent_id", "")
        for key in ((agent, customer), (agent, ""), ("", customer), ("", "")):
            found = self.dated.get((*kind, *key))
            if found is not None:
                return next((it for it in reversed(found) if it["valid_from"] <= event["time"]), None)
        return None


def amount_of(asked: Mapping[Price, Fraction], rates: Mapping[str, Fraction]) -> Fraction:
    """What units at their prices come to, each converted by the rate of its currency."""
    total = Fraction(0)
    for (_, price, per, currency), units in asked.items():
        cost = units * price / per
        rest = per
        for prime in (2, 5):
            while rest % prime == 0:
                rest //= prime
        total += (cost if rest == 1 else Fraction(round(cost * 10**12), 10**12)) * rates[currency]
    return total


def check_costs(
    told: Mapping[str, Any], ratings: Iterable[Mapping[str, Any]], texts: Mapping[str, str], findings: Findings
) -> None:
    """Whether the dated costs are what the entries and the price lists in the pack say.

    `told`: costs.json; `texts`: the price lists by their SHA-256.
    """
    namespace = told["namespace"]
    entries = {}
    for it in told["entries"]:
        findings.equal(f"the name of the cost {it['entry_id'][:_SHORT]}", it["entry_id"], _entry_name(namespace, it))
        findings.done("costs of one's own, by the hash that names them")
        entries[it["entry_id"]] = it
    lists = {}
    for it in told["catalogues"]:
        text = texts.get(it["sha256"], "")
        if findings.equal("the SHA-256 of a price list", it["sha256"], hashlib.sha256(text.encode()).hexdigest()):
            findings.done("texts of price lists, by the hash they were pinned under")
        said = parse_json(text.encode(), "a price list")
        lists[f"{said['package']}-{said['version']}:{it['sha256'][:_SHORT]}"] = said
    for rate in {json.dumps(it, sort_keys=True): it for rating in ratings for it in rating.get("costs", ())}.values():
        if "reason" not in rate:
            _check_rate(rate, entries, lists, findings)


def _check_rate(
    rate: Mapping[str, Any], entries: Mapping[str, Any], lists: Mapping[str, Any], findings: Findings
) -> None:
    name = f"the cost of {rate['meter']} by {rate['entry']}"
    entry = entries.get(rate["entry"])
    if entry is not None:
        said = (entry["price"], entry["per"], entry["currency"])
        if findings.equal(name, (rate["price"], rate["per"], rate["currency"]), said):
            findings.done("dated costs, from one's own costs")
        return
    which, _, rest = rate["entry"].partition("/")
    provider, _, label = rest.partition("/")
    listing = lists.get(which)
    found = None if listing is None else _of_list(listing, provider, label)
    if found is None:
        findings.wrong(f"{name}: what it names is not in the pack")
        return
    prices = [
        number(it) for it in (rate["price"], *(price for _, price in (*rate.get("tiers", ()), *rate.get("clock", ()))))
    ]
    wrong = [it for it in prices if it not in found.prices]
    if wrong or (rate["per"], rate["currency"]) != (found.per, _CURRENCY):
        findings.wrong(f"{name}: the price list does not say so")
        return
    findings.done("dated costs, from the text of the price list")
    findings.carry("which model of the price list usage is of, by the names that the list has for it")
    if rate.get("minimum", "0") != "0":
        findings.carry("least quantities of a provider: they are not in the price list")


@dataclass(frozen=True)
class _Listed:
    prices: Sequence[Fraction]
    per: int


def _of_list(said: Mapping[str, Any], provider: str, label: str) -> _Listed | None:
    """All that a price list says at a place: `gpt-5@2026-01-01 batch input_mtok`, or that it is free."""
    by_id = {it["id"]: it for it in said["providers"]}
    mine = by_id.get(provider)
    if mine is None:
        return None
    models = [
        it
        for at in (mine, *(by_id[name] for name in mine.get("fallback", ()) if name in by_id))
        for it in at.get("models", ())
    ]
    named = [it for it in models if label.startswith((f"{it['id']}@", f"{it['id']} "))]
    if not named:
        return None
    model = max(named, key=lambda it: len(it["id"]))
    rest = label[len(model["id"]) :]
    if rest.endswith((" by tokens", " none per request")):
        return _Listed([Fraction(0)], 1)
    first, *more, key = rest.split(" ")
    since = first.removeprefix("@") or None
    listed = [it for it in model["prices"] if it.get("from") == since]
    listed += [it for it in model.get("variants", ()) if more]
    found: list[Fraction] = []
    for it in listed:
        price = it["prices"].get(key)
        if isinstance(price, dict):
            found += [number(price["base"]), *(number(value) for _, value in price["tiers"])]
        elif price is not None:
            found.append(number(price))
    unit = said["units"].get(key)
    return _Listed(found, whole(unit["per"])) if unit is not None and found else None


def _entry_name(namespace: str, it: Mapping[str, Any]) -> str:
    said = [it[name] for name in _MATCHED]
    money = [it["price"], it["per"], it["currency"], it["valid_from"], it["valid_until"], it["source"]]
    return sha256(["cost entry", namespace, said, money, it["retracted_before"]])


def _request(event: Mapping[str, Any]) -> str:
    """What tells a request apart from others."""
    if event.get("call_id"):
        return str(event["call_id"])
    return str(event["id"]) if event.get("dimensions", {}).get("source") == "otel.span" else ""


def _second(time: str) -> int:
    """The second of the UTC day."""
    hours, minutes, seconds = time[11:19].split(":")
    if not (hours + minutes + seconds).isdigit():
        raise Refused(f"{time!r:.40} is no time")
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds)
