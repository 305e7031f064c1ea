"""Hypothesis strategies: random books of every model, random usage, in several currencies."""

from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction

from hypothesis import strategies as st
from rating_samples import at, inputs, used
from simple_rating import MINOR, Used, bill

from meterhouse_rating import engine, ledger, results
from meterhouse_rating.agreements import Agreement, Discount
from meterhouse_rating.book import parse
from meterhouse_rating.charges import Before
from meterhouse_rating.credit_lines import grants_of, used_by
from meterhouse_rating.credits import Grant, TopUp
from meterhouse_rating.rates import rate_at
from meterhouse_rating.shares import Kind, Part, left_in

PRICES = st.decimals(0, 1000, places=6).map(lambda price: format(price, "f"))
FEES = st.integers(0, 500).map(str)
PERS = st.sampled_from(["1", "8", "1000", "1_000_000"])
EDGES = st.lists(st.integers(1, 10**7), min_size=0, max_size=4, unique=True).map(sorted)
# Small and large quantities, whole ones and fractions, and the edges of tiers.
QUANTITIES = st.one_of(
    st.integers(0, 2000).map(str),
    st.decimals(0, 10**12, places=9).map(lambda quantity: format(quantity, "f")),
    st.integers(-3000, -1).map(str),
)
METERS = {
    "one": ["llm.tokens.input", "llm.tokens.cache_write"],
    "two": ["llm.tokens.output"],
    "three": ["tool.calls"],
}
OTHERS = ["llm.requests", "pages.read"]
TENS = st.integers(0, 10**5).map(lambda it: it * 10)
MODELS = ["gpt-5", "gpt-5-mini", "llama", ""]
DECLARED = frozenset({meter for meters in METERS.values() for meter in meters} | {"llm.requests"})


@dataclass(frozen=True)
class Case:
    """A book's text, and what is rated under it."""

    text: str
    inputs: engine.Inputs
    percents: tuple[Fraction, ...]


@st.composite
def components(draw):
    def tiers(fees=True):
        found = []
        for edge in [*draw(EDGES), None]:
            up_to = "" if edge is None else f"up_to: {edge}, "
            flat = f", flat: {draw(FEES)}" if fees and draw(st.booleans()) else ""
            found.append(f"{{{up_to}price: {draw(PRICES)}{flat}}}")
        return f"[{', '.join(found)}]"

    def component(metric):
        per, price = draw(PERS), draw(PRICES)
        rest = draw(st.sampled_from(["none", "1.5"]))
        some, many = draw(st.integers(1, 999)), draw(st.integers(1, 10**6))
        head = f"metric: {metric}, per: {per}"
        priced = f"prices: [{{model: gpt-5*, price: {price}}}]"
        made = {
            "per_unit": lambda: f"{head}, price: {price}",
            "by_model": lambda: f"{head}, by: [model], {priced}, default: {rest}",
            "graduated": lambda: f"{head}, tiers: {tiers()}",
            "volume": lambda: f"{head}, tiers: {tiers()}",
            "package": lambda: f"metric: {metric}, size: {some}, price: {price}, free: {some - 1}",
            "percentage": lambda: f"metric: {metric}, percent: {some % 50}, fixed: {price}, min: {some}",
            "included": lambda: f"{head}, included: {many}, tiers: {tiers(fees=False)}",
            "matrix": lambda: (
                f"{head}, by: [model], default: {rest}, cells: [{{model: gpt-5, tiers: {tiers()}}}, "
                f"{{model: gpt-5*, mode: volume, tiers: {tiers()}}}, {{model: llama, per: 1, price: {price}}}]"
            ),
            "cost_plus": lambda: (
                f"metric: {metric}, markup: {some}, cost: {{by: [model], per: {per}, {priced}, default: none}}"
            ),
            "formula": lambda: f'inputs: {{x: {metric}}}, amount: "max(0, x - 1000) * 0.003 + 1"',
            "flat": lambda: (
                f"price: {some}, included: {{{metric}: {many}}}, "
                f"overage: {{{metric}: {{per: {per}, tiers: {tiers(fees=False)}}}}}"
            ),
        }
        kind = draw(st.sampled_from(sorted(made)))
        return f"{{model: {'per_unit' if kind == 'by_model' else kind}, {made[kind]()}}}"

    parts = {}
    if draw(st.booleans()):
        parts["pack"] = "{model: credit_pack, price: 5, credits: 7}"
    for metric in METERS:
        if draw(st.integers(0, 5)):
            parts[metric] = component(metric)
    if draw(st.booleans()):
        parts["fee"] = f"{{model: recurring, price: {draw(FEES)}}}"
    if draw(st.booleans()) and parts:
        percent = draw(st.integers(0, 50))
        parts["support"] = f"{{model: percentage, of: [{', '.join(sorted(parts))}], percent: {percent}}}"
    if draw(st.booleans()):
        parts["least"] = f"{{model: minimum, amount: {draw(st.integers(1, 10**5))}}}"
    return parts or {"fee": "{model: recurring, price: 1}"}


@st.composite
def cases(draw):
    own = draw(st.sampled_from(["USD", "EUR", "JPY", "KWD"]))
    currency = draw(st.sampled_from([own, own, "USD", "JPY"]))
    rounding = draw(st.sampled_from(["half_even", "half_up", "up", "down"]))
    parts = draw(components())
    count = ", aggregate: count" if draw(st.booleans()) else ""
    metrics = "".join(
        f"  {name}: {{unit: unit, meters: [{', '.join(meters)}]{count if name == 'three' else ''}}}\n"
        for name, meters in METERS.items()
    )
    rate = draw(st.decimals("0.0001", 500, places=4))
    rates = (
        "" if own == currency else f"rates: [{{from: {own}, to: {currency}, rate: {rate:f}, valid_from: 2026-01-01}}]\n"
    )
    body = "".join(f"      {name}: {part}\n" for name, part in parts.items())
    text = (
        f"book: random\ncurrency: {own}\nrounding: {rounding}\n{rates}metrics:\n{metrics}"
        f"unbilled: {{meters: [llm.requests], statuses: [failed]}}\nplans:\n  sample:\n    components:\n{body}"
    )
    book = parse(text)
    dimensions = dict.fromkeys(book.dimensions, "")
    meters = [*(meter for found in METERS.values() for meter in found), *OTHERS]
    rows = [
        used(
            draw(st.sampled_from(meters)),
            draw(QUANTITIES),
            status=draw(st.sampled_from(["ok", "ok", "failed", ""])),
            events=draw(st.integers(1, 50)),
            **{name: draw(st.sampled_from(MODELS)) for name in dimensions},
        )
        for _ in range(draw(st.integers(0, 8)))
    ]
    percents = draw(st.lists(st.integers(1, 100), max_size=2))
    found = tuple(
        Discount(f"d{at_}", f"d{at_}", Decimal(percent), None, (), None, False, at(f"2026-10-0{at_ + 1}"), None)
        for at_, percent in enumerate(percents)
    )
    made = inputs(
        book,
        *rows,
        currency=currency,
        credits=draw(st.lists(grants(), max_size=4, unique_by=lambda it: it.grant_id)),
        top_up=draw(
            st.none() | st.builds(TopUp, TENS, st.integers(1, 10**4).map(lambda it: it * 10), st.integers(1, 3))
        ),
        declared=DECLARED,
        agreement=Agreement(discounts=found),
        rate=None if own == currency else rate_at(book.rates, own, currency, at("2026-10-01")),
    )
    return Case(text, made, tuple(Fraction(percent) for percent in percents))


@st.composite
def grants(draw):
    """A grant that begins and may expire before, in or after October; the same times and priorities come up often."""
    began = draw(st.sampled_from(["2026-08-01", "2026-09-01", "2026-10-31", "2026-11-01"]))
    expires = draw(st.sampled_from([None, "2026-10-01", "2026-10-15", "2026-12-01"]))
    return Grant(
        draw(st.sampled_from("abcdefgh")),
        draw(st.sampled_from(["bought", "promotional"])),
        draw(TENS),
        at(began),
        None if expires is None else at(expires),
        draw(st.integers(0, 2)),
    )


def check(case: Case) -> None:
    """All that has to hold of a case; raises AssertionError."""
    result = engine.rate(case.inputs)
    _conserved(case, result)
    _balanced(case, result)
    _replayed(case, result)
    _agrees(case, result)
    _shared_out(case, result)


def check_in_parts(case: Case, cut: int) -> None:
    """A month rated in two parts uses what one whole month uses, and has no unit on two lines."""
    # A part that is taken out of a whole in the other half of the month is no usage by itself.
    whole = replace(case.inputs, usage=tuple(row for row in case.inputs.usage if row.quantity >= 0))
    first, second = whole.usage[:cut], whole.usage[cut:]
    earlier = engine.rate(replace(whole, usage=first))
    before: dict[str, Before] = {}
    for line in earlier.lines:
        if line.metric is None:
            before.setdefault(line.component, Before(charged=True))
            continue
        known = before.get(line.component, Before())
        quantities = dict(known.quantities) | {
            line.metric: known.quantities.get(line.metric, Decimal(0)) + line.quantity
        }
        key = (line.metric, line.dimensions)
        cells = dict(known.cells) | {key: line.quantity}
        events = {line.metric: line.explanation.get("events", 0)}
        if "quantities" in line.explanation:
            quantities = {name: Decimal(it) for name, it in line.explanation["quantities"].items()}
        before[line.component] = Before(quantities, known.charged, cells, events)
    later = engine.rate(replace(whole, usage=second, before=before))
    usage = [line for line in (*earlier.lines, *later.lines) if line.kind == "usage"]
    once = engine.rate(whole)
    assert sum(Fraction(line.amount_exact) for line in usage) == sum(
        Fraction(line.amount_exact) for line in once.lines if line.kind == "usage"
    )


def _conserved(case: Case, result: engine.Rated) -> None:
    for meter in {row.meter for row in case.inputs.usage}:
        came = sum((Fraction(row.quantity) for row in case.inputs.usage if row.meter == meter), Fraction(0))
        on_lines = sum(Fraction(line.explanation.get("meters", {}).get(meter, "0")) for line in result.lines)
        left = sum((Fraction(it.quantity) for it in result.leftovers if it.meter == meter), Fraction(0))
        assert came == on_lines + left


def _balanced(case: Case, result: engine.Rated) -> None:
    receivable, currency = 0, case.inputs.currency
    for line in result.lines:
        steps = sum(Fraction(step.get("amount", "0")) for step in line.explanation["steps"])
        if line.kind not in ("credit_applied", "discount"):
            priced = line.explanation.get("conversion", {"amount": line.explanation["amount_exact"]})["amount"]
            assert steps == Fraction(priced)
        granted = sum(it.left_minor for it in grants_of(line.explanation, currency))
        entries = ledger.entries(line.kind, line.amount_minor, granted)
        assert sum(amount for _, amount in entries) == 0
        receivable += sum(amount for account, amount in entries if account == ledger.RECEIVABLE)
    assert result.total_minor == sum(line.amount_minor for line in result.lines) == receivable


def _replayed(case: Case, result: engine.Rated) -> None:
    again = replace(case.inputs, usage=tuple(reversed(case.inputs.usage)))
    assert again.sha256() == case.inputs.sha256()
    assert engine.rate(again).sha256() == result.sha256()


def _agrees(case: Case, result: engine.Rated) -> None:
    usage = [
        Used(row.meter, row.status, dict(row.dimensions).get("model", ""), row.events, Fraction(row.quantity))
        for row in case.inputs.usage
        if row.meter in DECLARED
    ]
    credits = [
        {
            "id": it.grant_id, "kind": it.kind, "left": it.left_minor, "priority": it.priority,
            "from": str(it.granted_at)[:10], "until": "9999" if it.expires_at is None else str(it.expires_at)[:10],
        }
        for it in case.inputs.credits
    ]  # fmt: skip
    top_up = None if case.inputs.top_up is None else tuple(vars(case.inputs.top_up).values())
    simple = bill(case.text, usage, case.inputs.currency, credits, list(case.percents), top_up)
    assert case.inputs.currency in MINOR
    lines = {}
    for line in result.lines:
        cell = dict(line.dimensions).get("model", "")
        if line.kind == "usage" and line.description.startswith(f"{line.component}: "):
            cell = line.metric or ""
        if line.kind == "discount":
            cell = line.dimensions[0][1].removeprefix("d")
        component = "" if line.kind in ("discount", "credit_applied") else line.component
        lines[line.kind, component, cell] = line.amount_minor
    assert lines == simple.lines
    assert _used(result, case.inputs.currency) == simple.used
    assert result.total_minor == simple.total


def _used(result: engine.Rated, currency: str) -> dict[str, int]:
    """What was used of each grant; those that the rating made itself by their kind."""
    made = {it.grant_id: f"new {it.kind}" for line in result.lines for it in grants_of(line.explanation, currency)}
    found: dict[str, int] = {}
    for line in result.lines:
        for name, amount in used_by(line.explanation, currency).items():
            name = made.get(name, name)
            found[name] = found.get(name, 0) + amount
    return found


def _shared_out(case: Case, result: engine.Rated) -> None:
    """What single uses cost adds up to what their line comes to, or none of them is said to cost anything."""
    span = case.inputs.setting.period
    left = left_in(results.unrated_rows("live", "a", span, result.leftovers))
    lines = results.line_rows_of("r", case.inputs.currency, result.lines)
    by = (case.inputs.book, case.inputs.plan)
    part = Part(span, "UTC", case.inputs.currency, by, "", lines, left, case.inputs.declared)
    sums: dict[str, Fraction] = {}
    unknown = set()
    for row in case.inputs.usage:
        price = part.unit_price(Kind(row.meter, row.status, row.task, row.dimensions, span.start, span.start))
        if price.each is None:
            unknown.add(price.line)
        else:
            of = row.events if price.of_events else Fraction(row.quantity)
            sums[price.line] = sums.get(price.line, Fraction(0)) + Fraction(price.each) * of
    for line in result.lines:
        if line.kind == "usage" and line.description not in unknown:
            assert abs(sums[line.description] - Fraction(line.amount_exact)) < Fraction(1, 10**12)
