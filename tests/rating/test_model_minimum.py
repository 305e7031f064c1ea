"""A minimum commitment: what the other components fall short of it is charged."""

from rating_samples import book_with, rated, used

MINIMUM = """
in: {model: per_unit, metric: input, price: 0.0333}
out: {model: per_unit, metric: output, price: 1.00}
commitment: {model: minimum, amount: 100.00}
"""
OF_INPUT = MINIMUM.replace("amount: 100.00", "amount: 100.00, of: [in]")


def lines_of(result):
    return [(line.description, line.kind, line.amount_minor) for line in result.lines]


def test_a_month_that_falls_short_is_trued_up_to_the_minimum_exactly():
    # in: 1,000 x 0.0333 = 33.30; out: 20.00; 46.70 are missing
    result = rated(book_with(MINIMUM), used("llm.tokens.input", "1000"), used("llm.tokens.output", "20"))
    assert lines_of(result) == [("in", "usage", 3330), ("out", "usage", 2000), ("commitment", "minimum", 4670)]
    assert result.total_minor == 10000
    assert result.lines[-1].explanation["steps"] == [
        {"minimum": "100", "amount": "100"},
        {"spent": "53.3", "amount": "-53.3"},
    ]


def test_it_is_compared_with_rounded_lines_so_that_the_invoice_comes_to_the_minimum():
    # in: 1 x 0.0333 = 0.03 on its line
    assert rated(book_with(MINIMUM), used("llm.tokens.input", "1")).total_minor == 10000


def test_a_month_without_usage_pays_the_minimum():
    assert lines_of(rated(book_with(MINIMUM))) == [("commitment", "minimum", 10000)]


def test_a_month_that_reaches_the_minimum_has_no_line_for_it():
    assert lines_of(rated(book_with(MINIMUM), used("llm.tokens.output", "100"))) == [("out", "usage", 10000)]


def test_only_the_named_components_count_towards_it():
    result = rated(book_with(OF_INPUT), used("llm.tokens.input", "1000"), used("llm.tokens.output", "500"))
    assert lines_of(result)[-1] == ("commitment", "minimum", 6670)


def test_a_month_that_the_contract_covers_in_part_is_committed_in_part():
    # 16 of 31 days from the 16th on: 51.612903...
    result = rated(book_with(MINIMUM), since="2026-10-16")
    assert (result.total_minor, result.lines[0].explanation["steps"][0]) == (
        5161,
        {"minimum": "100", "amount": "51.612903225806", "share": "16/31 days"},
    )


def test_of_a_month_in_parts_the_last_is_trued_up_with_what_the_earlier_came_to():
    book = book_with(MINIMUM)
    assert rated(book, used("llm.tokens.output", "20"), rated_period="2026-10-01..2026-10-16").total_minor == 2000
    rest = rated(book, used("llm.tokens.output", "30"), rated_period="2026-10-16..2026-11-01", earlier={"out": "20.00"})
    assert lines_of(rest) == [("out", "usage", 3000), ("commitment", "minimum", 5000)]


def test_credits_pay_usage_and_never_the_minimum():
    result = rated(book_with(MINIMUM), used("llm.tokens.output", "20"), credit_minor=50000)
    assert lines_of(result)[-1] == ("Credits applied", "credit_applied", -2000)
    assert result.total_minor == 8000
