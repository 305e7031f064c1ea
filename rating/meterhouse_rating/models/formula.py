"""A formula of one's own over declared inputs; see formulas.py for what it may say.

model: formula
inputs: {tokens: output_tokens, calls: tool_calls}        # name in the formula: metric
amount: max(0, tokens - 1000) * 0.002 + calls * 0.01      # in major units of the plan's currency

It is computed of the calendar month so far, less what it comes to for the month's earlier part. Where it cannot be
computed (a division by zero) or is negative, the usage is left unrated, with the reason `formula_failed`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from meterhouse_rating.charges import (
    FORMULA_FAILED,
    Before,
    Charge,
    Charged,
    Portion,
    Setting,
    Unpriced,
    by_meter,
    total,
)
from meterhouse_rating.document import Block
from meterhouse_rating.formulas import FUNCTIONS, Formula, FormulaError, parse
from meterhouse_rating.models.reading import Scope
from meterhouse_rating.models.volume import taken_off
from meterhouse_store.numbers import plain


@dataclass(frozen=True)
class Custom:
    name: str
    line: int
    inputs: tuple[tuple[str, str], ...]
    formula: Formula
    dimensions: tuple[str, ...] = ()
    memory: str = "month"
    depends_on: tuple[str, ...] | None = ()

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(metric for _, metric in self.inputs)

    def charge(self, portions: Sequence[Portion], before: Before, setting: Setting) -> Charged:
        """One charge for all the metrics together."""
        if not portions:
            return Charged(())
        now = {metric: total(it for it in portions if it.metric == metric) for metric in self.metrics}
        start = {metric: before.quantities.get(metric, Decimal(0)) for metric in self.metrics}
        try:
            amount, steps = self._come_to({metric: start[metric] + now[metric] for metric in now})
            if before.quantities.keys() & now.keys():  # of nothing used, too, a formula may come to something
                earlier, _ = self._come_to(start)
                amount -= earlier
                steps.append(taken_off(sum(start.values(), Decimal(0)), earlier))
        except FormulaError as failed:
            hint = f"the formula of {self.name} (line {self.line}): {failed}. Mend it and publish the book again"
            return Charged((), tuple(Unpriced(portion, hint, FORMULA_FAILED) for portion in portions))
        charge = Charge(
            kind="usage",
            description=self.name,
            quantity=Decimal(1),
            unit="",
            amount=amount,
            steps=tuple(steps),
            book_line=self.line,
            metric=self.metrics[0],
            meters=by_meter(portions),
            quantities=now,
        )
        return Charged((charge,))

    def _come_to(self, quantities: Mapping[str, Decimal]) -> tuple[Decimal, list[Mapping[str, Any]]]:
        values = {name: quantities[metric] for name, metric in self.inputs}
        result = self.formula.of(values)
        if result < 0:
            raise FormulaError(f"comes to {plain(result)}, less than nothing: write max(0, ...)")
        shown = {name: plain(value) for name, value in values.items()}
        return result, [{"formula": self.formula.text, "inputs": shown, "amount": plain(result)}]


def read(name: str, block: Block, scope: Scope) -> Custom | None:
    """The component, or None when it cannot be made; mistakes are collected by the block."""
    inputs = block.mapping("inputs")
    for key, metric in inputs.items():
        if metric not in scope.metrics:
            block.wrong(f"`{metric}` is no metric", f"Choose from: {', '.join(scope.metrics)}.", key="inputs")
        if not key.isidentifier() or not key.isascii() or key in FUNCTIONS:
            block.wrong(f"`{key}` is no name for an input", "Use letters, digits and _, a letter first.", key="inputs")
    if len(set(inputs.values())) < len(inputs):
        block.wrong("names a metric twice", "Keep one of the two.", key="inputs")
    text = block.text("amount")
    if text is None:
        return None
    try:
        formula = parse(text)
    except FormulaError as wrong:
        block.wrong(str(wrong), "See docs/pricing.md for what formulas may say.", key="amount")
        return None
    strange = sorted(formula.names - set(inputs))
    unused = sorted(set(inputs) - formula.names)
    if strange:
        known = ", ".join(inputs) or "none"
        block.wrong(f"`{strange[0]}` is no input", f"Declare it below `inputs` (there: {known}).", key="amount")
    if unused:
        block.wrong(f"the input `{unused[0]}` is not used", "Use it, or its usage would be free.", key="inputs")
    known_metrics = all(metric in scope.metrics for metric in inputs.values())
    if strange or unused or not inputs or not known_metrics:
        return None
    return Custom(name, block.line, tuple(inputs.items()), formula)
