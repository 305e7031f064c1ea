"""Quantities that a host gives, as the numbers that OTLP carries. Pure."""

from decimal import Context, Decimal

_EXACT = Context(prec=40, traps=[])
"""The host's own context may round, or raise."""
_NINE_DECIMALS = Decimal("1e-9")


def exactly(quantity: int | Decimal | float) -> int | float:
    """The number that OTLP carries, exactly the one that was given."""
    if isinstance(quantity, int) and not isinstance(quantity, bool) and 0 <= quantity <= 10**15:
        return quantity
    number = isinstance(quantity, int | float | Decimal) and not isinstance(quantity, bool)
    exact = Decimal(str(quantity)) if number else Decimal("NaN")
    if not exact.is_finite() or not 0 <= exact <= 10**15:
        raise ValueError(f"a quantity is a number from 0 to 10^15, not {quantity!r:.80}")
    if exact != exact.quantize(_NINE_DECIMALS, context=_EXACT) or Decimal(repr(float(exact))) != exact:
        raise ValueError(f"a quantity has at most nine decimals and 15 digits, not {quantity!r:.80}")
    return float(exact)
