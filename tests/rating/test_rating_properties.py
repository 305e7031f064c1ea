"""Money and quantities under random books and usage: nothing is lost, nothing is rounded twice, books balance."""

from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st
from rating_samples import book_with, inputs, used

from meterhouse_rating import engine, ledger
from meterhouse_rating.charges import Before
from meterhouse_rating.credit_lines import grants_of

PRICES = st.decimals(0, 1000, places=6).map(lambda price: format(price, "f"))
PERS = st.sampled_from(["1", "8", "1000", "1_000_000"])
EDGES = st.lists(st.integers(1, 10**7), min_size=0, max_size=4, unique=True).map(sorted)
QUANTITIES = st.decimals(0, 10**15, places=9).map(lambda quantity: format(quantity, "f"))
METERS = ["llm.tokens.input", "llm.tokens.cache_write", "llm.tokens.output", "llm.requests", "tool.calls", "pages.read"]


@st.composite
def components(draw):
    def tiers():
        edges = [f"{{up_to: {edge}, price: {draw(PRICES)}}}" for edge in draw(EDGES)]
        return f"[{', '.join([*edges, f'{{price: {draw(PRICES)}}}'])}]"

    parts = []
    if draw(st.booleans()):
        parts.append("pack: {model: credit_pack, price: 5.00, credits: 7.50}")
    for metric in ("input", "output"):
        kind = draw(st.sampled_from(["per_unit", "by_model", "graduated", "flat", "nothing"]))
        per = draw(PERS)
        if kind == "per_unit":
            parts.append(f"{metric}: {{model: per_unit, metric: {metric}, per: {per}, price: {draw(PRICES)}}}")
        elif kind == "by_model":
            default = draw(st.sampled_from(["none", "1.5"]))
            parts.append(
                f"{metric}: {{model: per_unit, metric: {metric}, per: {per}, by: [model], "
                f"prices: [{{model: a*, price: {draw(PRICES)}}}], default: {default}}}"
            )
        elif kind == "graduated":
            parts.append(f"{metric}: {{model: graduated, metric: {metric}, per: {per}, tiers: {tiers()}}}")
        elif kind == "flat":
            included = draw(st.integers(0, 10**6))
            parts.append(
                f"{metric}: {{model: flat, price: 9.99, included: {{{metric}: {included}}}, "
                f"overage: {{{metric}: {{per: {per}, tiers: {tiers()}}}}}}}"
            )
    return "\n".join(parts or ["pack: {model: credit_pack, price: 5.00, credits: 5.00}"])


@st.composite
def cases(draw):
    book = book_with(draw(components()))
    dimensions = dict.fromkeys(book.dimensions, "")
    rows = [
        used(
            draw(st.sampled_from(METERS)),
            draw(QUANTITIES),
            status=draw(st.sampled_from(["ok", "ok", "failed", ""])),
            **{name: draw(st.sampled_from(["a1", "b"])) for name in dimensions},
        )
        for _ in range(draw(st.integers(0, 8)))
    ]
    before = {
        component.name: Before(
            {metric: Decimal(draw(st.integers(0, 10**7))) for metric in component.metrics}, charged=True
        )
        for component in book.plans["sample"].components
        if draw(st.booleans())
    }
    return inputs(book, *rows, before=before, credit_minor=draw(st.integers(0, 10**6)))


@settings(max_examples=200, deadline=None)
@given(cases())
def test_rating_conserves_quantity_and_money(case):
    result = engine.rate(case)
    # Quantity: per meter, what came in is on lines or left, counted here without the engine's own bookkeeping.
    for meter in METERS:
        came = sum((Fraction(row.quantity) for row in case.usage if row.meter == meter), Fraction(0))
        on_lines = sum(Fraction(line.explanation.get("meters", {}).get(meter, "0")) for line in result.lines)
        left = sum((Fraction(it.quantity) for it in result.leftovers if it.meter == meter), Fraction(0))
        assert came == on_lines + left
    # Money: the steps add up to the exact amount, which is rounded once, and the total is the sum of the lines.
    for line in result.lines:
        if line.kind != "credit_applied":
            steps = sum(Fraction(step.get("amount", "0")) for step in line.explanation["steps"])
            assert steps == Fraction(line.amount_exact)
            assert line.amount_minor == round_once(line.amount_exact)
    assert result.total_minor == sum(line.amount_minor for line in result.lines)


def granted(line, currency):
    return sum(it.left_minor for it in grants_of(line.explanation, currency))


def round_once(amount: Decimal) -> int:
    scaled = Fraction(amount) * 100
    low = scaled.numerator // scaled.denominator
    rest = scaled - low
    if rest == Fraction(1, 2):
        return low + low % 2
    return low + (rest > Fraction(1, 2))


@settings(max_examples=200, deadline=None)
@given(cases())
def test_credits_are_spent_in_order_and_never_beyond_the_balance(case):
    lines = engine.rate(case).lines
    bought = sum(granted(line, "USD") for line in lines)
    usage = sum(line.amount_minor for line in lines if line.kind == "usage")
    spent = -sum(line.amount_minor for line in lines if line.kind == "credit_applied")
    assert spent == min(usage, sum(it.left_minor for it in case.credits) + bought)


@settings(max_examples=100, deadline=None)
@given(cases())
def test_ledger_transactions_sum_to_zero_and_receivable_is_the_total(case):
    result = engine.rate(case)
    receivable = 0
    for line in result.lines:
        accounts = ledger.entries(line.kind, line.amount_minor, granted(line, "USD"))
        assert sum(amount for _, amount in accounts) == 0
        assert all(amount for _, amount in accounts)
        receivable += sum(amount for account, amount in accounts if account == ledger.RECEIVABLE)
    assert receivable == result.total_minor


@settings(max_examples=50, deadline=None)
@given(cases(), st.randoms(use_true_random=False))
def test_a_replay_gives_identical_bytes_in_any_order_of_usage(case, random):
    shuffled = list(case.usage)
    random.shuffle(shuffled)
    again = engine.Inputs(**{**vars(case), "usage": tuple(shuffled)})
    assert again.sha256() == case.sha256()
    assert engine.rate(again).sha256() == engine.rate(case).sha256()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 10**6), min_size=1, max_size=3, unique=True).map(sorted),
    st.integers(0, 3 * 10**6),
    st.integers(0, 10**6),
)
def test_graduated_agrees_with_pricing_the_whole_and_taking_the_first_part_away(edges, first, second):
    from meterhouse_rating.tiers import Tier, graduate

    tiers = [Tier(Decimal(edge), Decimal(10 - index), 1) for index, edge in enumerate(edges)]
    tiers.append(Tier(None, Decimal("0.5"), 1))

    def simple(quantity):  # unit by unit would take too long: an independent closed form
        return sum(
            (Fraction(tier.price) * max(0, min(quantity, upper) - lower))
            for tier, lower, upper in zip(tiers, [0, *edges], [*edges, 10**9], strict=True)
        )

    amount, _ = graduate(Decimal(first), Decimal(second), tiers, Decimal(1))
    assert Fraction(amount) == simple(first + second) - simple(first)


def test_half_even_is_what_the_property_above_assumes():
    assert [round_once(Decimal(text)) for text in ("0.005", "0.015", "0.025", "-0.005")] == [0, 2, 2, 0]
    assert Decimal("0.025").quantize(Decimal("0.01"), ROUND_HALF_EVEN) == Decimal("0.02")
