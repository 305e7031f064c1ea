"""What a quantity costs by the price book's text: each model again, in fractions, from what is written there."""

import ast
from collections.abc import Mapping
from fractions import Fraction
from typing import Final

from .findings import Refused
from .prices import Part, matches, written
from .yaml_subset import Node

_DIGITS_12: Final = 10**12
_DIGITS_18: Final = 10**18
_MAX_FORMULA: Final = 500
_MAX_BITS: Final = 4000
"""Of a number within a formula: rating refuses what has more than 60 digits, and nobody may keep a verifier busy."""


class Carried(Exception):
    """An amount that cannot be worked out from the book and the events alone; the text says what it depends on."""


def usage_amount(
    part: Part,
    metric: str,
    dimensions: Mapping[str, str],
    quantity: Fraction,
    start: Fraction,
    events: int,
    each: Fraction,
) -> Fraction:
    """The exact amount of a usage line, in the plan's currency. Raises Carried.

    `start`: how much of the month is on earlier lines; `each`: how many there are of what included usage is for.
    """
    node, per = part.node, part.amount("per", "1")
    match part.model:
        case "per_unit":
            return quantity * _price(node, "prices", dimensions) / per
        case "graduated":
            return graduated(start + quantity, _tiers(node), per) - graduated(start, _tiers(node), per)
        case "volume":
            return volume(start + quantity, _tiers(node), per) - volume(start, _tiers(node), per)
        case "matrix":
            cell = _cell(part, dimensions)
            per = written(cell.text("per")) if cell.get("per") is not None else per
            how = volume if cell.text("mode") == "volume" else graduated
            return how(start + quantity, _tiers(cell), per) - how(start, _tiers(cell), per)
        case "included":
            return _beyond(part.amount("included") * each, node, quantity, start, per)
        case "flat":
            return _of_flat(node, metric, quantity, start)
        case "package":
            return _packages(part, start + quantity) - _packages(part, start)
        case "percentage":
            return percentage(part, quantity, events)
        case "cost_plus":
            cost = node.get("cost")
            assert cost is not None, "what marks up known costs is not worked out here"
            own = _price(cost, "prices", dimensions) * quantity / written(cost.text("per", "1"))
            return own * (100 + part.amount("markup")) / 100 + quantity * part.amount("fee") / per
    raise Carried(f"the model {part.model}")


def graduated(quantity: Fraction, tiers: list[Node], per: Fraction) -> Fraction:
    """Each unit at the price of the tier it falls in; a tier's flat fee with its first unit."""
    amount, lower = Fraction(0), Fraction(0)
    for tier in tiers:
        upper = written(tier.text("up_to")) if tier.get("up_to") is not None else max(quantity, lower)
        if quantity > lower:
            amount += written(tier.text("flat", "0"))
            amount += (min(quantity, upper) - lower) * written(tier.text("price", "0")) / per
        lower = upper
    return amount


def volume(quantity: Fraction, tiers: list[Node], per: Fraction) -> Fraction:
    """All units at the price of the tier that the last of them reaches."""
    for tier in tiers:
        if tier.get("up_to") is None or quantity <= written(tier.text("up_to")):
            price = written(tier.text("price", "0"))
            return written(tier.text("flat", "0")) + quantity * price / per if quantity > 0 else Fraction(0)
    raise Refused("the last tier of the price book ends")


def percentage(part: Part, money: Fraction, times: int) -> Fraction:
    """A share of money, so much for each time, within bounds; nothing for no times."""
    if not times:
        return Fraction(0)
    amount = max(Fraction(0), money - part.amount("free")) * part.amount("percent") / 100
    amount = max(amount + part.amount("fixed") * times, part.amount("min"))
    return amount if part.node.get("max") is None else min(amount, part.amount("max"))


def twelve_digits(value: Fraction) -> Fraction:
    """Rounded half to even at the twelfth digit after the point, where quotients are cut."""
    return Fraction(round(value * _DIGITS_12), _DIGITS_12)


def formula(text: str, inputs: Mapping[str, Fraction]) -> Fraction:
    """What a formula of the book comes to, to its eighteenth digit. Raises Refused for what is none."""
    if len(text) > _MAX_FORMULA:
        raise Refused("a formula of the price book is too long")
    try:
        value = _value(ast.parse(text, mode="eval").body, inputs, text)
    except (SyntaxError, ValueError, RecursionError, MemoryError, ZeroDivisionError):
        raise Refused(f"{text!r:.80} is no formula") from None
    return _eighteen(value)


def _value(node: ast.expr, inputs: Mapping[str, Fraction], text: str) -> Fraction:
    value = _computed(node, inputs, text)
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > _MAX_BITS:
        raise ValueError
    return value


def _computed(node: ast.expr, inputs: Mapping[str, Fraction], text: str) -> Fraction:
    match node:
        case ast.Constant():
            return written(ast.get_source_segment(text, node) or "")
        case ast.Name(id=name) if name in inputs:
            return inputs[name]
        case ast.UnaryOp(ast.USub(), operand):
            return -_value(operand, inputs, text)
        case ast.UnaryOp(ast.UAdd(), operand):
            return _value(operand, inputs, text)
        case ast.BinOp(left, ast.Pow(), ast.Constant(value=int() as power)) if 0 <= power <= 6:
            return Fraction(_value(left, inputs, text) ** power)
        case ast.BinOp(left, operator, right):
            one, other = _value(left, inputs, text), _value(right, inputs, text)
            match operator:
                case ast.Add():
                    return one + other
                case ast.Sub():
                    return one - other
                case ast.Mult():
                    return one * other
                case ast.Div():
                    return _eighteen(one / other)
        case ast.IfExp(test, body, orelse):
            return _value(body if _truth(test, inputs, text) else orelse, inputs, text)
        case ast.Call(ast.Name(id=name), arguments, []):
            return _call(name, [_value(it, inputs, text) for it in arguments])
    raise ValueError


def _truth(node: ast.expr, inputs: Mapping[str, Fraction], text: str) -> bool:
    match node:
        case ast.Compare(left, operators, rights):
            values = [_value(it, inputs, text) for it in (left, *rights)]
            return all(_holds(*it) for it in zip(operators, values, values[1:], strict=False))
        case ast.BoolOp(ast.And(), parts):
            return all(_truth(it, inputs, text) for it in parts)
        case ast.BoolOp(ast.Or(), parts):
            return any(_truth(it, inputs, text) for it in parts)
        case ast.UnaryOp(ast.Not(), operand):
            return not _truth(operand, inputs, text)
    raise ValueError


def _holds(operator: ast.cmpop, one: Fraction, other: Fraction) -> bool:
    match operator:
        case ast.Lt():
            return one < other
        case ast.LtE():
            return one <= other
        case ast.Gt():
            return one > other
        case ast.GtE():
            return one >= other
        case ast.Eq():
            return one == other
        case ast.NotEq():
            return one != other
    raise ValueError


def _call(name: str, values: list[Fraction]) -> Fraction:
    match name:
        case "min":
            return min(values)
        case "max":
            return max(values)
        case "abs":
            return abs(values[0])
        case "floor":
            return Fraction(values[0].numerator // values[0].denominator)
        case "ceil":
            return Fraction(-(-values[0].numerator // values[0].denominator))
        case "round":
            return Fraction(round(values[0], int(values[1]) if len(values) > 1 else 0))
    raise ValueError


def _eighteen(value: Fraction) -> Fraction:
    return Fraction(round(value * _DIGITS_18), _DIGITS_18)


def _tiers(node: Node) -> list[Node]:
    """The tiers, or one without an end for a single price."""
    price = node.get("price")
    return node.entries("tiers") if price is None else [Node(price.line, {"price": price})]


def _price(node: Node, key: str, dimensions: Mapping[str, str]) -> Fraction:
    """The price of the first entry that fits the dimensions, or the default."""
    if not dimensions:
        return written(node.text("price"))
    for entry in node.entries(key):
        if matches([entry.text(name, "*") for name in dimensions], list(dimensions.values())):
            return written(entry.text("price"))
    return written(node.text("default"))


def _cell(part: Part, dimensions: Mapping[str, str]) -> Node:
    """The cell whose patterns are the line's dimensions."""
    for cell in part.node.entries("cells"):
        if [cell.text(name, "*") for name in part.by] == list(dimensions.values()):
            return cell
    rest = part.node.get("default")
    if rest is None:
        raise Refused(f"the price book has no cell {', '.join(dimensions.values())}")
    return Node(rest.line, {"price": rest})


def _beyond(included: Fraction, node: Node, quantity: Fraction, start: Fraction, per: Fraction) -> Fraction:
    """What goes beyond an included quantity of the month, by tiers that count from there."""
    if node.text("beyond") == "none":
        return Fraction(0)
    first, last = max(Fraction(0), start - included), max(Fraction(0), start + quantity - included)
    return graduated(last, _tiers(node), per) - graduated(first, _tiers(node), per)


def _of_flat(node: Node, metric: str, quantity: Fraction, start: Fraction) -> Fraction:
    overage, included = node.get("overage"), node.get("included")
    terms = None if overage is None else overage.get(metric)
    if terms is None:
        raise Refused(f"the price book has no overage of {metric}")
    free = written(included.text(metric, "0")) if included is not None else Fraction(0)
    return _beyond(free, terms, quantity, start, written(terms.text("per", "1")))


def _packages(part: Part, quantity: Fraction) -> Fraction:
    beyond = quantity - min(quantity, part.amount("free"))
    return -(-beyond // part.amount("size")) * part.amount("price")
