"""Formulas: what they come to, what they may not say, and that none can take long or do harm."""

import time
from decimal import Decimal

import pytest
from rating_samples import book_with, rated, used

from meterhouse_rating.charges import Before
from meterhouse_rating.formulas import FormulaError, parse

MIXED = """
agents:
  model: formula
  inputs: {tokens: output, calls: input}
  amount: "max(0, tokens - 1000) * 0.002 + calls * 0.01"
"""


def test_a_formula_over_two_metrics_is_one_line_that_shows_its_inputs():
    # (3,500 - 1,000) x 0.002 + 7 x 0.01
    result = rated(book_with(MIXED), used("llm.tokens.output", "3500"), used("llm.tokens.input", "7"))
    (line,) = result.lines
    assert line.amount_minor == 507
    assert line.explanation["steps"] == [
        {
            "formula": "max(0, tokens - 1000) * 0.002 + calls * 0.01",
            "inputs": {"tokens": "3500", "calls": "7"},
            "amount": "5.07",
        }
    ]
    assert line.explanation["meters"] == {"llm.tokens.input": "7", "llm.tokens.output": "3500"}
    assert line.explanation["quantities"] == {"output": "3500", "input": "7"}


def test_what_a_formula_came_to_with_nothing_used_is_not_billed_again_in_the_next_part():
    book = book_with('agents: {model: formula, inputs: {n: input}, amount: "n * 0.10 + 1"}')
    assert rated(book, used("llm.tokens.input", "0")).total_minor == 100
    before = {"agents": Before({"input": Decimal(0)})}
    assert rated(book, used("llm.tokens.input", "3"), before=before).total_minor == 30


def test_of_a_month_in_parts_the_formula_goes_on():
    before = {"agents": Before({"output": Decimal(900), "input": Decimal(1)})}
    # 1,100 tokens and 2 calls so far: 0.20 + 0.02; before: 0.01
    result = rated(book_with(MIXED), used("llm.tokens.output", "200"), used("llm.tokens.input", "1"), before=before)
    assert result.total_minor == 21


def test_a_formula_that_cannot_be_computed_leaves_its_usage_unrated():
    book = book_with('f: {model: formula, inputs: {a: input, b: output}, amount: "a / b"}')
    result = rated(book, used("llm.tokens.input", "5"))
    assert result.lines == ()
    (left,) = result.leftovers
    assert (left.reason, left.quantity) == ("formula_failed", Decimal(5))
    assert "divides by zero" in left.hint


def test_a_formula_that_comes_to_less_than_nothing_leaves_its_usage_unrated():
    book = book_with('f: {model: formula, inputs: {a: input}, amount: "1 - a"}')
    (left,) = rated(book, used("llm.tokens.input", "5")).leftovers
    assert "comes to -4, less than nothing" in left.hint


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("0.1 + 0.2", "0.3"),
        ("0.12345678901234567890 * 1", "0.123456789012345679"),  # eighteen digits after the point, half to even
        ("1 / 3", "0.333333333333333333"),
        ("2 / 3 * 3", "2.000000000000000001"),
        ("x ** 3", "125"),
        ("0 ** 0", "1"),
        ("-x + 7", "2"),
        ("min(x, 3) + max(1, 2, x)", "8"),
        ("floor(2.7) + ceil(2.1) + abs(-3)", "8"),
        ("round(2.345, 2)", "2.34"),
        ("10 if 1 < x <= 5 and not x == 4 else 20", "10"),
        ("10 if x != 5 or x > 9 else 20", "20"),
        ("1_000 * 2", "2000"),
    ],
)
def test_what_a_formula_comes_to(text, result):
    assert parse(text).of({"x": Decimal(5)}) == Decimal(result)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "x.__class__",
        "x[0]",
        "[y for y in x]",
        "lambda: 1",
        "(y := 5)",
        "open('file')",
        "pow(2, 9)",
        "min(*x)",
        "round(x, ndigits=2)",
        "x ** x",
        "x ** 7",
        "x ** -1",
        "x ** 0.5",
        "x % 2",
        "x // 2",
        "~x",
        "x is x",
        "x in x",
        "'a' * 3",
        "1e9",
        "0x10",
        "1j",
        "True",
        "None",
        "f'{x}'",
        "x; y",
        "",
        "1 +",
        "²",
        "x if x",
        "x" * 501,
        "+".join(["x"] * 150),
        "-" * 100 + "x",
        "-" * 40 + "x",
    ],
)
def test_what_is_no_arithmetic_is_refused(text):
    with pytest.raises(FormulaError):
        parse(text)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("x / 0", "divides by zero"),
        ("x < 5", "true or false"),
        ("x + (x < 5)", "true or false where a number is needed"),
        ("1 if x else 2", "a number where true or false is needed"),
        ("((x ** 6) ** 6) ** 6", "more than 60 digits"),
        ("round(x, 0.5)", "0 to 12 digits"),
        ("x * 1" + "0" * 40, "more than 30 digits"),
    ],
)
def test_what_comes_to_no_amount_says_why(text, what):
    with pytest.raises(FormulaError, match=what):
        parse(text).of({"x": Decimal(5)})


def test_no_formula_takes_long():
    text = "**6)**6)**6)**6)**6"
    worst = parse("((((9" + text).of
    began = time.monotonic()
    with pytest.raises(FormulaError):
        worst({})
    assert time.monotonic() - began < 1
