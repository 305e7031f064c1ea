"""Decimal is the only number for money and usage, and `D` is the one door to it."""

from decimal import Decimal


def D(value: str | int | Decimal) -> Decimal:
    """A finite Decimal from text, an integer or a Decimal.

    Raises TypeError for a float (0.1 is not a tenth) and a bool, ValueError for text that is no finite number.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | Decimal):
        raise TypeError(f"a Decimal is made from text, an integer or a Decimal, not from {type(value).__name__}")
    try:
        number = Decimal(value)
    except ArithmeticError:
        raise ValueError(f"{value!r} is not a number") from None
    if not number.is_finite():
        raise ValueError(f"{value!r} is not a finite number")
    return number


def plain(number: Decimal) -> str:
    """The number without exponent and without trailing zeros: 1000, 0.25, -3."""
    text = format(number, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text
