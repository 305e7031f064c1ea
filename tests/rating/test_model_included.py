"""Usage that is included, and what goes beyond it, without a fee."""

from decimal import Decimal

from rating_samples import book_with, rated, used

from meterhouse_rating.charges import Before

PRICED = "out: {model: included, metric: output, included: 1000, per: 100, price: 1.00}"
TIERED = """
out: {model: included, metric: output, included: 1000, tiers: [{up_to: 500, price: 0.02}, {price: 0.01}]}
"""
PER_SEAT = "out: {model: included, metric: output, included: 1000, each: seats, price: 0.01}"
LIMITED = "out: {model: included, metric: output, included: 1000, beyond: none}"


def test_what_is_included_costs_nothing_and_stands_on_a_line():
    (line,) = rated(book_with(PRICED), used("llm.tokens.output", "1000")).lines
    assert (line.quantity, line.amount_minor) == (Decimal(1000), 0)


def test_beyond_it_each_unit_has_its_price():
    assert rated(book_with(PRICED), used("llm.tokens.output", "1250")).total_minor == 250


def test_tiers_count_from_the_end_of_what_is_included():
    # 700 beyond: 500 x 0.02 + 200 x 0.01
    assert rated(book_with(TIERED), used("llm.tokens.output", "1700")).total_minor == 1200


def test_what_is_included_is_used_up_once_a_month():
    before = {"out": Before({"output": Decimal(900)})}
    assert rated(book_with(PRICED), used("llm.tokens.output", "300"), before=before).total_minor == 200


def test_each_seat_brings_its_own():
    facts = {"seats": [("2026-10-01", "2"), ("2026-10-20", "3")]}
    # Three seats at the end of the month: 3,000 are included, 500 are beyond.
    assert rated(book_with(PER_SEAT), used("llm.tokens.output", "3500"), facts=facts).total_minor == 500


def test_without_a_recorded_quantity_nothing_is_included():
    assert rated(book_with(PER_SEAT), used("llm.tokens.output", "100")).total_minor == 100


def test_where_there_is_nothing_beyond_the_rest_is_left_unrated_with_what_to_do():
    result = rated(
        book_with(LIMITED),
        used("llm.tokens.output", "900", events=9),
        used("llm.tokens.reasoning", "300", events=3),
    )
    (line,) = result.lines
    assert (line.quantity, line.amount_minor) == (Decimal(1000), 0)
    assert line.explanation["meters"] == {"llm.tokens.output": "900", "llm.tokens.reasoning": "100"}
    (left,) = result.leftovers
    assert (left.meter, left.quantity, left.reason) == ("llm.tokens.reasoning", Decimal(200), "no_price")
    assert "includes 1000 a month and has no price beyond" in left.hint


def test_a_limit_that_an_earlier_part_of_the_month_reached_leaves_all_of_it():
    before = {"out": Before({"output": Decimal(1000)})}
    result = rated(book_with(LIMITED), used("llm.tokens.output", "5"), before=before)
    assert result.lines == ()
    assert [left.quantity for left in result.leftovers] == [Decimal(5)]
