"""Formulas in a price book: arithmetic on Decimals, parsed by Python's `ast`, of which only a few nodes are let in.

Nothing is evaluated by Python itself: there is no attribute, subscript, call of anything but the functions below, loop
or assignment. Length, nesting, powers and the size of every number on the way are bounded, so that no formula can take
long. `+ - *` are exact; a quotient is rounded half to even at the eighteenth digit after the point.
"""

import ast
import decimal
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal
from typing import Any, Final, cast

from meterhouse_store.numbers import D

MAX_LENGTH: Final = 500
MAX_NODES: Final = 200
MAX_DEPTH: Final = 30
MAX_POWER: Final = 6
MAX_DIGITS: Final = 60
"""Before the point, and as many after it."""

MAX_RESULT: Final = 30
"""Digits before the point of what a formula comes to."""

_QUOTIENT: Final = Decimal("1e-18")
_WIDE = decimal.Context(prec=400, rounding=ROUND_HALF_EVEN, traps=[decimal.InvalidOperation, decimal.DivisionByZero])

_COMPARE: Final[dict[type[ast.cmpop], Callable[[Any, Any], bool]]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_FUNCTIONS: Final[dict[str, tuple[int, int]]] = {
    "min": (1, 20),
    "max": (1, 20),
    "abs": (1, 1),
    "floor": (1, 1),
    "ceil": (1, 1),
    "round": (1, 2),
}
"""Name -> the fewest and the most arguments."""

FUNCTIONS: Final = tuple(_FUNCTIONS)


class FormulaError(ValueError):
    """A formula that cannot be used, or a result that is none; the text says which part and what to do."""


@dataclass(frozen=True)
class Formula:
    """A checked formula; `names` are the inputs that it uses."""

    text: str
    names: frozenset[str]
    _tree: ast.expr = field(repr=False, compare=False)

    def of(self, inputs: Mapping[str, Decimal]) -> Decimal:
        """The result, to the eighteenth digit after the point.

        Raises FormulaError for a division by zero and for numbers beyond all bounds.
        """
        with decimal.localcontext(_WIDE):
            result = _value(self._tree, inputs)
            if isinstance(result, bool):
                raise FormulaError("the formula is true or false, not an amount")
            if result.adjusted() >= MAX_RESULT:
                raise FormulaError(f"comes to a number of more than {MAX_RESULT} digits")
            return D(result.quantize(_QUOTIENT))


def parse(text: str) -> Formula:
    """Check a formula. Raises FormulaError."""
    if len(text) > MAX_LENGTH or not text.isascii():
        raise FormulaError(f"longer than {MAX_LENGTH} characters, or not in ASCII")
    try:
        root = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise FormulaError("no formula: write it as max(0, tokens - 1000) * 0.002") from None
    nodes = list(ast.walk(root))
    if len(nodes) > MAX_NODES:
        raise FormulaError(f"more than {MAX_NODES} parts")
    names: set[str] = set()
    _check(root.body, names, 0, text)
    return Formula(text, frozenset(names), root.body)


def _check(node: ast.AST, names: set[str], depth: int, text: str) -> None:
    """Refuse all that is not listed here, and make the numbers what is written, in place: 0.1 is a tenth."""
    if depth > MAX_DEPTH:
        raise FormulaError("nested too deep")
    if isinstance(node, ast.Constant):
        setattr(node, "value", _number(node, text))  # noqa: B010 (a Decimal is no constant of Python's)
        return
    if isinstance(node, ast.Name):
        names.add(node.id)
        return
    for part in _parts(node, text):
        _check(part, names, depth + 1, text)


def _parts(node: ast.AST, text: str) -> list[ast.expr]:
    """The parts of a node that is let in."""
    match node:
        case ast.BinOp(left, ast.Add() | ast.Sub() | ast.Mult() | ast.Div(), right):
            return [left, right]
        case ast.BinOp(left, ast.Pow(), ast.Constant(value=int() as power)) if power <= MAX_POWER:
            return [left]
        case ast.BinOp(_, ast.Pow(), _):
            raise FormulaError(f"a power is a whole number from 0 to {MAX_POWER}")
        case ast.UnaryOp(ast.UAdd() | ast.USub() | ast.Not(), operand):
            return [operand]
        case ast.Compare(left, operators, rights) if all(type(it) in _COMPARE for it in operators):
            return [left, *rights]
        case ast.BoolOp(_, values):
            return values
        case ast.IfExp(test, body, orelse):
            return [test, body, orelse]
        case ast.Call(ast.Name(id=name), arguments, []) if name in _FUNCTIONS:
            least, most = _FUNCTIONS[name]
            if not least <= len(arguments) <= most or any(isinstance(it, ast.Starred) for it in arguments):
                raise FormulaError(f"{name} takes {least} to {most} numbers")
            return arguments
    shown = ast.get_source_segment(text, node) if isinstance(node, ast.expr) else None
    raise FormulaError(f"`{shown or type(node).__name__}` is not for formulas: use + - * / **, <, if else, {_listed()}")


def _listed() -> str:
    return ", ".join(FUNCTIONS)


def _number(node: ast.Constant, text: str) -> Decimal:
    """The number exactly as it is written: Python would make a float of 0.1."""
    written = (ast.get_source_segment(text, node) or "").replace("_", "")
    if not written.replace(".", "", 1).isdecimal() or not written.isascii() or len(written) > 2 * MAX_DIGITS:
        raise FormulaError(f"`{written}` is no number: write digits and a point, such as 0.25")
    return D(written)


def _value(node: ast.expr, inputs: Mapping[str, Decimal]) -> Any:
    value = _compute(node, inputs)
    if isinstance(value, Decimal):
        _check_size(value)
    return value


def _compute(node: ast.expr, inputs: Mapping[str, Decimal]) -> Any:
    match node:
        case ast.Constant():
            return _constant(node)
        case ast.Name(id=name):
            return inputs[name]
        case ast.BinOp(left, ast.Pow(), ast.Constant(value=power)):
            return _power(_decimal(left, inputs), int(cast("int", power)))
        case ast.BinOp(left, op, right):
            return _binary(op, _decimal(left, inputs), _decimal(right, inputs))
        case ast.UnaryOp(ast.Not(), operand):
            return not _truth(operand, inputs)
        case ast.UnaryOp(op, operand):
            number = _decimal(operand, inputs)
            return -number if isinstance(op, ast.USub) else number
        case ast.Compare(left, operators, rights):
            values = [_decimal(left, inputs), *(_decimal(right, inputs) for right in rights)]
            pairs = zip(operators, values, values[1:], strict=False)
            return all(_COMPARE[type(op)](one, other) for op, one, other in pairs)
        case ast.BoolOp(ast.And(), parts):
            return all(_truth(part, inputs) for part in parts)
        case ast.BoolOp(_, parts):
            return any(_truth(part, inputs) for part in parts)
        case ast.IfExp(test, body, orelse):
            return _value(body if _truth(test, inputs) else orelse, inputs)
        case ast.Call(ast.Name(id=name), arguments, []):
            return _call(name, [_decimal(argument, inputs) for argument in arguments])
    raise AssertionError("parse lets nothing else in")


def _constant(node: ast.Constant) -> Decimal:
    return cast("Decimal", node.value)


def _binary(op: ast.operator, left: Decimal, right: Decimal) -> Decimal:
    match op:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
    if right == 0:
        raise FormulaError("divides by zero")
    return (left / right).quantize(_QUOTIENT)


def _power(base: Decimal, exponent: int) -> Decimal:
    result = Decimal(1)
    for _ in range(exponent):
        result *= base
    return result


def _call(name: str, values: list[Decimal]) -> Decimal:
    match name:
        case "min":
            return min(values)
        case "max":
            return max(values)
        case "abs":
            return abs(values[0])
        case "floor":
            return values[0].to_integral_value(ROUND_FLOOR)
        case "ceil":
            return values[0].to_integral_value(ROUND_CEILING)
    digits = values[1] if len(values) > 1 else Decimal(0)
    if digits != int(digits) or not 0 <= digits <= 12:
        raise FormulaError("round takes 0 to 12 digits after the point")
    return values[0].quantize(Decimal(1).scaleb(-int(digits)), ROUND_HALF_EVEN)


def _decimal(node: ast.expr, inputs: Mapping[str, Decimal]) -> Decimal:
    value = _value(node, inputs)
    if isinstance(value, bool):
        raise FormulaError("true or false where a number is needed")
    return D(value)


def _truth(node: ast.expr, inputs: Mapping[str, Decimal]) -> bool:
    value = _value(node, inputs)
    if not isinstance(value, bool):
        raise FormulaError("a number where true or false is needed: compare it with something")
    return value


def _check_size(value: Decimal) -> None:
    if value.adjusted() >= MAX_DIGITS or -int(value.as_tuple().exponent) > MAX_DIGITS:
        raise FormulaError(f"a number of more than {MAX_DIGITS} digits before or after the point")
