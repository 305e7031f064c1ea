"""A second implementation of pricing, deliberately simple: fractions, whole months, no shared code with the first.

It reads the book with PyYAML's plainest loader (all scalars are text), works with `Fraction`, and knows nothing of
portions, steps or earlier ratings: the whole month's quantities go in, amounts per line come out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import yaml

DIGITS = {"USD": 2, "EUR": 2, "JPY": 0, "KWD": 2}  # what can be charged
MINOR = {"USD": 100, "EUR": 100, "JPY": 1, "KWD": 1000}


@dataclass
class Used:
    meter: str
    status: str
    model: str
    events: int
    quantity: Fraction


@dataclass(frozen=True)
class Later:
    """The plan, none where it is empty, that a customer is on after `share` of the month, and its usage from then on.

    Where `carry_on`, its tiers and included usage go on from what was used before.
    """

    plan: str
    used: list[Used]
    share: Fraction
    carry_on: bool


@dataclass
class Bill:
    """Amounts per (kind, component, model or cell) in minor units, and quantities per meter that are on no line."""

    lines: dict = field(default_factory=dict)
    left: dict = field(default_factory=dict)
    used: dict = field(default_factory=dict)
    total: int = 0


def bill(
    text: str,
    used: list[Used],
    currency: str,
    credits: list,
    percents: list[Fraction],
    top_up: tuple,
    plan_name: str = "sample",
    amounts_off: tuple[Fraction, ...] = (),
    cap: tuple[str, Fraction] | None = None,
    later: Later | None = None,
) -> Bill:
    """`amounts_off` a month come after the percentages; `cap` is of a metric, or of money where that is empty (then
    alone there may be a `later` plan).
    """
    book = yaml.load(text, Loader=yaml.BaseLoader)
    free = book.get("unbilled", {}).get("statuses", ["failed", "aborted", "unfinished"])
    mode = book.get("rounding", "half_even")
    own = book["currency"]
    rate = Fraction(1)
    for it in book.get("rates", []):
        if (it["from"], it["to"]) == (own, currency):
            rate = number(it["rate"])
    result = Bill()
    order: list[tuple] = []
    taken: list[Used] = []
    on_plans = [(plan_name, used, Fraction(1) if later is None else later.share, [])]
    if later is not None and later.plan:
        on_plans.append((later.plan, later.used, 1 - later.share, used if later.carry_on else []))
    amounts: dict[str, dict[str, Fraction]] = {name: {} for name, *_ in on_plans}

    def put(kind, plan, component, cell, exact):
        key = (kind, component if plan == plan_name else f"{plan} {component}", cell)
        result.lines[key] = to_minor(exact * rate, currency, mode)
        order.append(key)
        amount = Fraction(to_minor(exact, own, mode), MINOR[own])
        amounts[plan][component] = amounts[plan].get(component, Fraction(0)) + amount
        return result.lines[key]

    for plan, on_it, share, before in on_plans:
        for name, part in book["plans"][plan]["components"].items():
            model = part["model"]
            if model == "minimum":
                continue
            if model in ("flat", "recurring"):
                put("flat", plan, name, "", number(part["price"]) * (share if model == "recurring" else 1))
            if model == "credit_pack":
                price = put("credit_pack", plan, name, "", number(part["price"]))
                worth = to_minor(number(part["credits"]) * rate, currency, mode)
                paid = min(worth, price)
                of = "" if plan == plan_name else f" {plan}"
                credits = [*credits, new(f"bought{of}", paid), new(f"promotional{of}", worth - paid)]
            metrics = (
                [part["metric"]] if "metric" in part else list(part.get("overage", part.get("inputs", {}).values()))
            )
            for metric in metrics:
                meters = book["metrics"][metric]["meters"]
                mine = [it for it in on_it if it.meter in meters and it.status not in free]
                counted = book["metrics"][metric].get("aggregate") == "count"
                if not counted:
                    mine = without_negative(part, mine)
                for cell, group, price in cells(part, mine):
                    if price is None:
                        continue
                    taken += group
                    quantity = sum((Fraction(it.events) if counted else it.quantity for it in group), Fraction(0))
                    events = sum(it.events for it in group)
                    so_far = sum((it.quantity for it in before if it.meter in meters), Fraction(0))
                    exact = priced(part, metric, price, so_far + quantity, events)
                    exact -= priced(part, metric, price, so_far, 0) if so_far else 0
                    put("usage", plan, name, metric if model == "flat" else cell, exact)
            if model == "percentage" and "of" in part:
                base = sum((amounts[plan].get(one, Fraction(0)) for one in part["of"]), Fraction(0))
                if base:
                    put("flat", plan, name, "", priced(part, "", part, base, 1))
    above = 0 if cap is None else above_cap(text, book, used, currency, plan_name, result, *cap)
    for plan, _, share, _ in on_plans:
        for name, part in book["plans"][plan]["components"].items():
            if part["model"] == "minimum":
                missing = number(part["amount"]) * share - sum(amounts[plan].values(), Fraction(0))
                missing += Fraction(above, MINOR[own])
                if missing > 0:
                    put("minimum", plan, name, "", missing)
    left = {key: result.lines[key] for key in order}
    if above:
        result.lines["discount", "", "cap"] = -above
        left = spread(left, above, currency)
    for at, (percent, amount) in enumerate([*((it, None) for it in percents), *((None, it) for it in amounts_off)]):
        base = sum(amount for amount in left.values() if amount > 0)
        exact = amount if percent is None else Fraction(base, MINOR[currency]) * percent / 100
        off = min(base, to_minor(exact, currency, mode)) if base > 0 else 0
        if off <= 0:
            continue
        result.lines["discount", "", str(at)] = -off
        # Which line it is off matters for credits only: they are compared in sum, where no line is left out.
        left = spread(left, off, currency)
    pay(result, [amount for (kind, _, _), amount in left.items() if kind == "usage"], credits, top_up)
    for it in used:
        if not any(it is one for one in taken):
            result.left[it.meter] = result.left.get(it.meter, Fraction(0)) + it.quantity
    result.total = sum(result.lines.values())
    return result


def above_cap(
    text: str, book: dict, used: list[Used], currency: str, name: str, result: Bill, of: str, limit: Fraction
) -> int:
    """What lines come to beyond a cap of money; or beyond what they do where the metric's usage ends at the cap."""
    if not of:
        lines = [amount for (kind, _, _), amount in result.lines.items() if kind == "usage"]
        return max(0, sum(lines) - to_minor(limit, currency, "half_even"))
    room, kept = limit, []
    for it in used:
        mine = it.meter in book["metrics"][of]["meters"]
        kept.append(Used(it.meter, it.status, it.model, it.events, min(it.quantity, room)) if mine else it)
        room -= kept[-1].quantity if mine else 0
    less = bill(text, kept, currency, [], [], None, name).lines
    return sum(result.lines.values()) - sum(amount for (kind, _, _), amount in less.items() if kind != "minimum")


def without_negative(part: Mapping, mine: list[Used]) -> list[Used]:
    """What is left when models (where the price depends on them) that sum to less than zero are left out."""
    by_model = "by" in part or (isinstance(part.get("cost"), dict) and "by" in part["cost"])
    groups = [[it for it in mine if it.model == model] for model in {it.model for it in mine}] if by_model else [mine]
    fine = [it for group in groups if sum(it.quantity for it in group) >= 0 for it in group]
    return [it for it in mine if any(it is one for one in fine)]


def new(kind: str, amount: int) -> dict:
    return {"id": f"new {kind}", "kind": kind, "left": amount, "priority": 0, "from": "2026-10-01", "until": "9999"}


def pay(result: Bill, amounts: list[int], credits: list, top_up: tuple) -> None:
    """Credits pay the amounts one after the other: always by the grant that comes first of those with a rest."""
    held = [dict(it) for it in credits if it["from"] < "2026-11-01" and it["until"] > "2026-10-01" and it["left"] > 0]
    open_amounts = [amount for amount in amounts if amount > 0]
    bought = 0
    if top_up:
        below, each, limit = top_up
        while bought < limit and sum(it["left"] for it in held) - sum(open_amounts) < below:
            held.append(new("bought", each))
            bought += 1
    if bought:
        result.lines["credit_pack", "top_up", ""] = bought * top_up[1]
    for amount in open_amounts:
        while amount and any(it["left"] for it in held):
            first = min(
                (it for it in held if it["left"]),
                key=lambda it: (it["priority"], it["until"], it["kind"].startswith("bought"), it["from"], it["id"]),
            )
            paid = min(amount, first["left"])
            first["left"] -= paid
            amount -= paid
            result.used[first["id"]] = result.used.get(first["id"], 0) + paid
    if result.used:
        result.lines["credit_applied", "", ""] = -sum(result.used.values())


def cells(part: Mapping, mine: list[Used]):
    """(name of the cell, its usage, its price or None) of a component's usage."""
    if not mine:
        return []
    if part["model"] == "matrix":
        groups: dict = {}
        for it in mine:
            for index, cell in enumerate(part["cells"]):
                if matches(cell["model"], it.model):
                    groups.setdefault((index, cell["model"]), []).append(it)
                    break
            else:
                groups.setdefault((99, "*"), []).append(it)
        found = []
        for (index, pattern), group in sorted(groups.items()):
            rest = None if part["default"] == "none" else {"price": part["default"]}
            found.append((pattern, group, part["cells"][index] if index < 99 else rest))
        return found
    by = part["cost"] if isinstance(part.get("cost"), dict) else part
    if "by" not in by:
        return [("", mine, by)]
    found = []
    for model in sorted({it.model for it in mine}):
        price = next((line["price"] for line in by["prices"] if matches(line["model"], model)), by["default"])
        found.append((model, [it for it in mine if it.model == model], None if price == "none" else {"price": price}))
    return found


def priced(part: Mapping, metric: str, price: Mapping, quantity: Fraction, events: int) -> Fraction:
    model = part["model"]
    if model == "package":
        beyond = max(Fraction(0), quantity - number(part.get("free", "0")))
        return -(-beyond // number(part["size"])) * number(part["price"])
    if model == "percentage":
        amount = quantity * number(part["percent"]) / 100 + events * number(part.get("fixed", "0"))
        return max(amount, number(part.get("min", "0")))
    if model == "cost_plus":
        cost = quantity * number(price["price"]) / number(part["cost"].get("per", "1"))
        return cost * (100 + number(part["markup"])) / 100
    if model == "formula":
        return max(Fraction(0), quantity - 1000) * Fraction(3, 1000) + 1
    terms, per = price, number(price.get("per", part.get("per", "1")))
    included = number(part.get("included", "0")) if model == "included" else Fraction(0)
    if model == "flat":
        terms = part["overage"][metric]
        included, per = number(part["included"][metric]), number(terms.get("per", "1"))
    beyond = max(Fraction(0), quantity - included)
    tiers = terms.get("tiers", [{"price": terms.get("price", "0")}])
    mode = "volume" if model == "volume" else price.get("mode", "graduated")
    return by_volume(beyond, tiers, per) if mode == "volume" else graduated(beyond, tiers, per)


def graduated(quantity: Fraction, tiers: list, per: Fraction) -> Fraction:
    amount, lower = Fraction(0), Fraction(0)
    for tier in tiers:
        upper = number(tier["up_to"]) if "up_to" in tier else max(quantity, lower)
        if quantity > lower:
            amount += number(tier.get("flat", "0"))
            amount += (min(quantity, upper) - lower) * number(tier.get("price", "0")) / per
        lower = upper
    return amount


def by_volume(quantity: Fraction, tiers: list, per: Fraction) -> Fraction:
    for tier in tiers:
        if "up_to" not in tier or quantity <= number(tier["up_to"]):
            return (number(tier.get("flat", "0")) + quantity * number(tier["price"]) / per) if quantity else Fraction(0)
    raise AssertionError("the last tier has no end")


def spread(left: dict, off: int, currency: str) -> dict:
    """What a discount leaves of each line: by largest remainder, in units that can be charged."""
    unit = MINOR[currency] // 10 ** DIGITS[currency]
    base = sum(amount for amount in left.values() if amount > 0)
    shares = {key: (off * amount // base) // unit * unit if amount > 0 else 0 for key, amount in left.items()}
    keys = list(left)
    order = sorted(keys, key=lambda key: (-(off * max(left[key], 0) - shares[key] * base), keys.index(key)))
    rest = off - sum(shares.values())
    while rest:
        for key in order:
            step = min(unit, rest, max(left[key], 0) - shares[key])
            shares[key] += step
            rest -= step
    return {key: amount - shares[key] for key, amount in left.items()}


def to_minor(amount: Fraction, currency: str, mode: str) -> int:
    scaled = amount * 10 ** DIGITS[currency]
    low = scaled.numerator // scaled.denominator
    rest = scaled - low
    up = {
        "half_even": rest > Fraction(1, 2) or (rest == Fraction(1, 2) and low % 2 == 1),
        "half_up": rest > Fraction(1, 2) or (rest == Fraction(1, 2) and low >= 0),
        "up": rest > 0 and low >= 0,
        "down": rest > 0 and low < 0,
    }[mode]
    return (low + up) * (MINOR[currency] // 10 ** DIGITS[currency])


def number(text: str) -> Fraction:
    return Fraction(text.replace("_", ""))


def matches(pattern: str, value: str) -> bool:
    return value.startswith(pattern[:-1]) if pattern.endswith("*") else value == pattern
