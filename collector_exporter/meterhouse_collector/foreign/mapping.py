"""The mapping file: which meter and customer the metrics and spans of other sources are.

    metrics:
      - metric: shop.pages.*          # a name, or a pattern with * and ?; the first rule that fits counts
        meter: pages.read             # default: the metric's own name
        customer: tenant.id           # attribute of the point, else of the resource; default: customer.id
        attributes: {model: llm.model}   # column of usage <- attribute
        value: count                  # of a histogram: sum (default) or count
        scale: "0.001"                # what the value is multiplied by
    spans:
      customer: traceloop.association.properties.customer_id

The rules that concern a request are written into its record, so that a replay decides the same after the file changed.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import Any, Final

import yaml

from meterhouse_store.numbers import D, plain

MAX_BYTES: Final = 1_000_000
MAX_RULES: Final = 1000
COLUMNS: Final = (
    "agent_id",
    "agent_name",
    "provider",
    "model",
    "operation",
    "tool",
    "modality",
    "cache_ttl",
    "service_tier",
    "status",
)
"""Columns of `usage` that a rule may fill from an attribute."""
_RULE_FIELDS: Final = ("metric", "meter", "customer", "attributes", "value", "scale")
_MAX_SCALE: Final = Decimal(10**9)


@dataclass(frozen=True, slots=True)
class Rule:
    """What the metrics of a name or pattern are; `meter` '': their own name, `customer` '': the usual attribute."""

    metric: str
    meter: str = ""
    customer: str = ""
    attributes: dict[str, str] = field(default_factory=dict)
    value: str = "sum"
    scale: Decimal = Decimal(1)


@dataclass(frozen=True, slots=True)
class Mapping:
    """The rules in the order of the file; `span_customer`: the attribute that names a span's customer, or ''."""

    rules: tuple[Rule, ...] = ()
    span_customer: str = ""

    def rule_for(self, metric: str) -> Rule | None:
        """The first rule that fits the name."""
        return next((rule for rule in self.rules if fnmatchcase(metric, rule.metric)), None)

    def for_record(self, metrics: Collection[str]) -> str:
        """What a record of these metrics says of the mapping; '' for nothing. Of a record of spans: no metrics."""
        rules = [rule for rule in self.rules if any(fnmatchcase(name, rule.metric) for name in metrics)]
        found: dict[str, Any] = {}
        if rules:
            found["metrics"] = [_plain(rule) for rule in rules]
        if self.span_customer and not metrics:
            found["spans"] = {"customer": self.span_customer}
        return json.dumps(found, sort_keys=True, separators=(",", ":")) if found else ""

    @property
    def span_attributes(self) -> frozenset[str]:
        """Attributes of spans that have to be kept for it."""
        return frozenset({self.span_customer} - {""})


NONE: Final = Mapping()


class MappingError(ValueError):
    """A mapping file has mistakes; the text lists all of them, each with its line."""


def from_record(text: str) -> Mapping:
    """The mapping that `for_record` wrote."""
    found = json.loads(text)
    rules = tuple(Rule(**rule | {"scale": D(rule.get("scale", "1"))}) for rule in found.get("metrics", ()))
    return Mapping(rules, found.get("spans", {}).get("customer", ""))


def parse(text: str, source: str) -> Mapping:
    """The mapping of a YAML text; mistakes are reported under `source`. Raises MappingError with all of them."""
    if len(text) > MAX_BYTES:
        raise MappingError(f"{source}: a mapping file has at most {MAX_BYTES} characters")
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as problem:
        raise MappingError(f"{source}: not YAML: {problem}") from None
    reader = _Reader()
    top = reader.entries(root, "the file", ("metrics", "spans")) if root is not None else {}
    rules: list[Rule] = []
    if "metrics" in top:
        rules = reader.rules(top["metrics"])
    span_customer = ""
    if "spans" in top:
        span_customer = reader.text(reader.entries(top["spans"], "spans", ("customer",)), "customer")
    if reader.mistakes:
        raise MappingError("\n".join(f"{source}: {mistake}" for mistake in reader.mistakes))
    return Mapping(tuple(rules), span_customer)


class _Reader:
    """Reads the nodes of a file and collects the mistakes."""

    def __init__(self) -> None:
        self.mistakes: list[str] = []

    def rules(self, node: yaml.Node) -> list[Rule]:
        if not isinstance(node, yaml.SequenceNode):
            self._say(node, "`metrics` must be a list of rules (- metric: NAME)")
            return []
        if len(node.value) > MAX_RULES:
            self._say(node, f"at most {MAX_RULES} rules")
        return [self._rule(rule) for rule in node.value[:MAX_RULES]]

    def _rule(self, node: yaml.Node) -> Rule:
        fields = self.entries(node, "a rule", _RULE_FIELDS)
        metric = self.text(fields, "metric")
        if "metric" not in fields:
            self._say(node, "a rule needs `metric`: a name, or a pattern with * and ?")
        meter = self.text(fields, "meter")
        if meter and not (len(meter) <= 128 and meter.isascii() and all(it.isidentifier() for it in meter.split("."))):
            self._say(fields["meter"], f"meter {meter!r}: names separated by dots, such as pages.read")
        attributes = self.entries(fields["attributes"], "attributes", COLUMNS) if "attributes" in fields else {}
        value = self.text(fields, "value") or "sum"
        if value not in ("sum", "count"):
            self._say(fields["value"], f"`value` is sum or count, not {value!r}")
        return Rule(
            metric,
            meter,
            self.text(fields, "customer"),
            {column: self.text(attributes, column) for column in attributes},
            value,
            self._scale(fields),
        )

    def _scale(self, fields: dict[str, yaml.Node]) -> Decimal:
        text = self.text(fields, "scale") or "1"
        try:
            scale = D(text)
        except ValueError:
            scale = Decimal(0)
        if not 0 < scale <= _MAX_SCALE or int(scale.as_tuple().exponent) < -9:
            self._say(fields["scale"], f"`scale` is a number above 0 with at most nine decimals, not {text!r}")
            return Decimal(1)
        return scale

    def entries(self, node: yaml.Node, what: str, known: Collection[str]) -> dict[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            self._say(node, f"{what} must be a mapping (name: value)")
            return {}
        found: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else repr(key.value)
            if name not in known:
                self._say(key, f"{name!r} is not known in {what}; it has {', '.join(known)}")
            elif name in found:
                self._say(key, f"{name!r} stands twice in {what}")  # YAML itself would take the last
            else:
                found[name] = value
        return found

    def text(self, fields: dict[str, yaml.Node], name: str) -> str:
        node = fields.get(name)
        if node is None:
            return ""
        if not isinstance(node, yaml.ScalarNode) or not node.value.strip() or len(node.value.encode()) > 256:
            self._say(node, f"`{name}` must be a text of 1 to 256 bytes")
            return ""
        return str(node.value.strip())

    def _say(self, node: yaml.Node, mistake: str) -> None:
        self.mistakes.append(f"line {node.start_mark.line + 1}: {mistake}")


def _plain(rule: Rule) -> dict[str, Any]:
    """A rule as JSON: what is not the default."""
    found: dict[str, Any] = {"metric": rule.metric}
    for name in "meter", "customer", "attributes":
        if value := getattr(rule, name):
            found[name] = value
    if rule.value != "sum":
        found["value"] = rule.value
    if rule.scale != 1:
        found["scale"] = plain(rule.scale)
    return found
