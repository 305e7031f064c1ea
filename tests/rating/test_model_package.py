"""Packages: a price for every started package, after the free units."""

from decimal import Decimal

import pytest
from rating_samples import book_with, rated, used

from meterhouse_rating.charges import Before

PACKAGE = "out: {model: package, metric: output, size: 100, price: 5.00, free: 100}"


@pytest.mark.parametrize(
    ("quantity", "minor"),
    [("50", 0), ("100", 0), ("100.000000001", 500), ("101", 500), ("200", 500), ("201", 1000), ("1100", 5000)],
)
def test_every_started_package_is_charged_in_full(quantity, minor):
    (line,) = rated(book_with(PACKAGE), used("llm.tokens.output", quantity)).lines
    assert line.amount_minor == minor


def test_the_arithmetic_says_what_is_free_and_how_many_packages_there_are():
    (line,) = rated(book_with(PACKAGE), used("llm.tokens.output", "250")).lines
    assert line.explanation["steps"] == [
        {"included": "100", "quantity": "100", "amount": "0"},
        {"quantity": "150", "packages": "2", "size": "100", "price": "5", "amount": "10", "book_line": 12},
    ]


def test_a_package_that_an_earlier_part_of_the_month_began_is_filled_first():
    # 250 came before: two packages, of which 50 are left. 50 more are free of charge, 51 begin a third.
    before = {"out": Before({"output": Decimal(250)})}
    book = book_with(PACKAGE)
    assert rated(book, used("llm.tokens.output", "50"), before=before).total_minor == 0
    assert rated(book, used("llm.tokens.output", "51"), before=before).total_minor == 500


def test_a_size_that_does_not_divide_the_quantity_evenly_is_still_exact():
    book = book_with("out: {model: package, metric: output, size: 0.3, price: 1.00}")
    # 1 / 0.3 = 3.33...: three full packages and a started one; 0.9 are exactly three.
    assert rated(book, used("llm.tokens.output", "1")).total_minor == 400
    assert rated(book, used("llm.tokens.output", "0.9")).total_minor == 300
