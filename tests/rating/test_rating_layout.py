"""Text for people: tables, thousands, plurals, and a line's explanation in sentences."""

from decimal import Decimal

import pytest
from rating_samples import at, book_with, rated, used

from meterhouse_rating import explain, layout
from meterhouse_rating.charges import Before
from meterhouse_rating.results import line_rows


def test_columns_line_up_and_no_line_ends_in_spaces():
    assert layout.table([("a", "1", ""), ("long", "1,000", "x")], right={1}) == "  a         1\n  long  1,000  x"


def test_a_row_stays_a_line_and_steers_no_terminal_whatever_it_names():
    rows = [("a\nTotal  0.00", "1"), ("b\x1b[2J\u2028", "20"), ("Straße", "3")]
    assert layout.table(rows, right={1}).splitlines() == [
        "  a\\nTotal  0.00   1",
        "  b\\x1b[2J\\u2028  20",
        "  Straße           3",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [("2779487", "2,779,487"), ("1234567.500", "1,234,567.5"), ("-0.25", "-0.25"), ("-1234", "-1,234"), ("0", "0")],
)
def test_thousands_stand_in_groups(value, text):
    assert layout.number(Decimal(value)) == text


def test_money_keeps_the_digits_of_its_currency():
    assert (layout.money(123456789, "USD"), layout.money(1234, "JPY")) == ("1,234,567.89", "1,234")


@pytest.mark.parametrize(
    ("count", "word", "text"),
    [
        (1, "mistake", "1 mistake"),
        (2, "event", "2 events"),
        (1000, "query", "1,000 queries"),
        (0, "search", "0 searches"),
    ],
)
def test_words_are_in_the_right_number(count, word, text):
    assert layout.counted(count, word) == text


def test_a_unit_that_is_a_symbol_has_no_plural():
    units = [layout.unit(unit, Decimal(11)) for unit in ("call", "GB", "s", "min", "{call}", "seats", "process")]
    wanted = ["calls", "GB", "s", "min", "{call}", "seats", "processes"]
    assert (units, layout.unit("call", Decimal(1))) == (wanted, "call")


def sentences(lines, number=0):
    rating = {"customer_id": "acme", "period_start": at("2026-10-01"), "period_end": at("2026-11-01"), "state": "open"}
    row = line_rows("r", "USD", lines)[number] | rating
    return [line for line in explain.as_text(row).splitlines() if not line.startswith("  Line ")]


def test_tiers_included_usage_and_rounding_are_explained_in_sentences():
    book = book_with("""
        fee:
          model: flat
          price: 49.00
          included: {output: 2_000_000}
          overage:
            output: {per: 1_000_000, tiers: [{up_to: 1_000_000, price: 4.00}, {price: 3.00}]}
    """)
    usage = used("llm.tokens.output", "3500000"), used("llm.tokens.reasoning", "1")
    # 4 * 1 + 3 * 0.500001 = 5.500003
    assert sentences(rated(book, *usage), 1) == [
        "fee: output: 3,500,001 tokens, 5.50 USD",
        "  of acme for 2026-10-01..2026-11-01, open.",
        "  Priced by fee of the plan sample: price book sample, version 7, line 17.",
        "  3,500,000 of it are llm.tokens.output.",
        "  1 of it is llm.tokens.reasoning.",
        "  2,000,000 are within the included 2,000,000: 0 USD.",
        "  1,000,000 at 4 USD per 1,000,000, beyond 0 up to 1,000,000: 4 USD (line 17).",
        "  500,001 at 3 USD per 1,000,000, beyond 1,000,000: 1.500003 USD (line 17).",
        "  Exactly 5.500003 USD, rounded half to even, to 0.01 USD: 5.50.",
    ]


def test_credits_are_explained_in_sentences():
    book = book_with("""
        pack: {model: credit_pack, price: 20.00, credits: 25.00}
        in: {model: per_unit, metric: input, per: 1000, price: 2.00}
    """)
    lines = rated(book, used("llm.tokens.input", "7000"), before={"pack": Before(charged=True)}, credit_minor=100000)
    assert sentences(lines, 1) == [
        "Credits applied: -14.00 USD",
        "  of acme for 2026-10-01..2026-11-01, open.",
        "  Credits before: 1,000 USD.",
        "  Pays 14.00 USD of in.",
        "  Credits left: 986 USD.",
    ]
    bought = sentences(rated(book, used("llm.tokens.input", "1")))
    assert bought[0] == "pack: 1 pack, 20.00 USD" and "  Grants credits of 25 USD." in bought
