"""What a rating was priced by, read from the texts in the pack: its price book, and the customer's own prices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

from .findings import Refused, number, whole
from .yaml_subset import Node, read

_STATUSES: Final = ("ok", "failed", "aborted", "unfinished")
LATEST: Final = "latest"
TIME_WEIGHTED: Final = "time_weighted"
_MEASURED: Final = ("max", "unique", LATEST, TIME_WEIGHTED)


@dataclass(frozen=True)
class Part:
    """A component of the customer's plan: its text, its line, how often an add-on is there (1 of the plan's own)."""

    name: str
    node: Node
    line: int
    times: Fraction
    currency: str
    addon: str = ""

    @property
    def model(self) -> str:
        return self.node.text("model")

    @property
    def by(self) -> list[str]:
        """The dimensions that its lines are apart by."""
        cost = self.node.get("cost")
        listed = cost is not None and not isinstance(cost.value, str)
        return (cost.texts("by") if cost is not None and listed else []) or self.node.texts("by")

    @property
    def marks_up_costs(self) -> bool:
        """Whether it marks up what usage cost by the costs that were known, and not by a list of the book."""
        cost = self.node.get("cost")
        return self.model == "cost_plus" and (cost is None or isinstance(cost.value, str))

    def metrics(self) -> list[str]:
        """The metrics it charges for."""
        if self.model == "flat":
            overage = self.node.get("overage")
            return [] if overage is None else list(overage.items())
        if self.model == "formula":
            inputs = self.node.get("inputs")
            return [] if inputs is None else [str(it.value) for it in inputs.items().values()]
        metric = self.node.text("metric")
        return [metric] if metric else []

    def amount(self, key: str, default: str = "0") -> Fraction:
        """A number at a key. Raises Refused."""
        return written(self.node.text(key, default))


@dataclass(frozen=True)
class Prices:
    """The plan of one rating; `parts` by name. `terms` is the rating as the pack tells it."""

    book: Node
    plan: Node
    parts: Mapping[str, Part]
    terms: Mapping[str, Any]

    @property
    def rounding(self) -> str:
        found = self.book.get("rounding")
        mode = "" if found is None else found.value if isinstance(found.value, str) else found.text("mode")
        return str(mode) or "half_even"

    def meters(self, metric: str) -> list[str]:
        return self._metric(metric).texts("meters")

    def aggregate(self, metric: str) -> str:
        return self._metric(metric).text("aggregate", "sum")

    def of(self, metric: str) -> str:
        return self._metric(metric).text("of")

    def per(self, metric: str) -> str:
        """In what a level's time is counted."""
        return self._metric(metric).text("per")

    def measured(self, metric: str) -> bool:
        return self.aggregate(metric) in _MEASURED

    def unbilled_meters(self) -> set[str]:
        unbilled = self.book.get("unbilled")
        return {*(unbilled.texts("meters") if unbilled is not None else []), *self.plan.texts("unbilled")}

    def free_statuses(self, metric: str | None, part: Part | None) -> list[str]:
        """The statuses that are not billed: what the component says, else the metric, else the book."""
        for node in (part.node if part is not None else None, self._metric(metric) if metric else None):
            if node is not None and node.get("statuses") is not None:
                return [status for status in _STATUSES if status not in node.texts("statuses")]
        unbilled = self.book.get("unbilled")
        if unbilled is not None and unbilled.get("statuses") is not None:
            return unbilled.texts("statuses")
        return [status for status in _STATUSES if status != "ok"]

    def tasks(self, metric: str, part: Part) -> str:
        return part.node.text("tasks") or self._metric(metric).text("tasks") or "all"

    def of_meter(self, meter: str) -> tuple[Part, str] | None:
        """The component and metric that charge a meter."""
        for part in self.parts.values():
            for metric in part.metrics():
                if meter in self.meters(metric):
                    return part, metric
        return None

    def rate(self, source: str, target: str, line: int) -> Fraction | None:
        """The book's conversion rate on that line between the currencies."""
        for it in self.book.entries("rates"):
            if it.line == line and (it.text("from"), it.text("to")) == (source, target):
                return written(it.text("rate"))
        return None

    def rates_to(self, currency: str, steps: Sequence[Mapping[str, Any]]) -> dict[str, Fraction]:
        """What converts costs to a currency: the book's rates on the lines that the steps name. Raises Refused."""
        found = {currency: Fraction(1)}
        for step in steps:
            if "rate_line" in step:
                at, source = whole(step["rate_line"]), str(step["currency"])
                lines = [it for it in self.book.entries("rates") if it.line == at]
                if not any((it.text("from"), it.text("to")) == (source, currency) for it in lines):
                    raise Refused(f"the price book has no rate from {source} to {currency} on line {at}")
                found[source] = written(lines[0].text("rate"))
        return found

    def converts(self, source: str, currency: str) -> bool:
        """Whether the book has a rate for it."""
        return any((it.text("from"), it.text("to")) == (source, currency) for it in self.book.entries("rates"))

    def quantity_at(self, name: str, moment: str, *, before: bool) -> Fraction:
        """A dated quantity (seats, add-ons) at a moment, or just before it: the last that was recorded for it."""
        found = Fraction(0)
        for valid_from, quantity in self.terms["quantities"].get(name, []):
            if valid_from < moment or (not before and valid_from == moment):
                found = number(quantity)
        return found

    def metrics(self) -> list[str]:
        """The names of the book's metrics."""
        found = self.book.get("metrics")
        return [] if found is None else list(found.items())

    def each(self, part: Part) -> Fraction:
        """How many times the included usage is there."""
        each = part.node.text("each")
        number_of = self.quantity_at(each, self.terms["period_end"], before=True) if each else Fraction(1)
        return number_of * (max(part.times, Fraction(1)) if part.model == "included" else 1)

    def _metric(self, name: str) -> Node:
        metrics = self.book.get("metrics")
        found = None if metrics is None else metrics.get(name)
        if found is None:
            raise Refused(f"the price book has no metric {name}")
        return found


def prices_of(book_text: str, terms: Mapping[str, Any]) -> Prices:
    """The customer's plan as the book and its agreements have it. Raises Refused, and Unreadable for strange YAML."""
    book = read(book_text)
    # After the end of a contract there is none: such a rating has corrections alone.
    plan = _below(book, "plans", terms["plan"]) if terms["plan"] else Node(0, {}, {})
    own = plan.text("currency", book.text("currency"))
    parts: dict[str, Part] = {}
    for name, node, line in _components(plan):
        parts[name] = Part(name, node, line, Fraction(1), own)
    for name, said in terms["overrides"].items():
        node = read(said["text"])
        parts[name] = Part(name, node, 1, Fraction(1), own)
    for addon, said in terms["addons"].items():
        offer = _below(book, "addons", addon)
        currency = offer.text("currency", book.text("currency"))
        for name, node, line in _components(offer):
            for short, times in (
                said["packs"].items() if node.text("model") == "credit_pack" else [("", said["number"])]
            ):
                full = f"{addon}.{name}{f'.{short}' if short else ''}"
                parts[full] = Part(full, node, line, number(times), currency, addon)
    return Prices(book, plan, parts, terms)


def written(text: str) -> Fraction:
    """A number as price books write it: 1_000_000, 0.25."""
    return number(text.replace("_", ""))


def matches(patterns: list[str], values: list[str]) -> bool:
    """Whether values fit: the same, or the beginning before a * at the end."""
    pairs = zip(patterns, values, strict=True)
    return all(value.startswith(one[:-1]) if one.endswith("*") else value == one for one, value in pairs)


def _below(book: Node, key: str, name: str) -> Node:
    group = book.get(key)
    found = None if group is None else group.get(name)
    if found is None:
        raise Refused(f"the price book has no {name} among its {key}")
    return found


def _components(offer: Node) -> list[tuple[str, Node, int]]:
    """The components of a plan or add-on by name, with the line of the name."""
    found = offer.get("components")
    return [] if found is None else [(name, node, found.keys[name]) for name, node in found.items().items()]
