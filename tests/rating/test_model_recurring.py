"""Recurring fees: in arrears and in advance, of dated quantities, prorated; every amount worked out by hand."""

from decimal import Decimal

import pytest
from rating_samples import book_with, rated

from meterhouse_rating.charges import Before

SEATS = "seats: {model: recurring, price: 31.00, quantity: seats, unit: seat%s}"
OCTOBER, NOVEMBER = "2026-10-01..2026-11-01", "2026-11-01..2026-12-01"


def lines_of(result):
    return [(line.description, line.quantity, line.amount_minor) for line in result.lines]


def test_a_fee_for_a_whole_month():
    book = book_with("fee: {model: recurring, price: 49.00}")
    assert lines_of(rated(book)) == [("fee", Decimal(1), 4900)]


def test_a_contract_that_begins_within_the_month_pays_for_its_days():
    # From the 11th on: 21 of 31 days of 31.00
    book = book_with("fee: {model: recurring, price: 31.00}")
    assert lines_of(rated(book, since="2026-10-11")) == [("fee", Decimal(1), 2100)]


def test_a_contract_that_ends_within_the_month_pays_up_to_its_end():
    book = book_with("fee: {model: recurring, price: 31.00}")
    assert lines_of(rated(book, until="2026-10-11")) == [("fee", Decimal(1), 1000)]


def test_by_the_second_half_a_day_is_half_a_day():
    # From noon of the 11th: 20.5 of 31 days
    book = book_with("fee: {model: recurring, price: 31.00, prorate: second}")
    assert lines_of(rated(book, since="2026-10-11T12:00:00")) == [("fee", Decimal(1), 2050)]


def test_by_the_day_the_day_on_which_it_begins_counts_in_full():
    book = book_with("fee: {model: recurring, price: 31.00}")
    assert lines_of(rated(book, since="2026-10-11T12:00:00")) == [("fee", Decimal(1), 2100)]


def test_without_proration_a_begun_month_is_paid_in_full():
    book = book_with("fee: {model: recurring, price: 31.00, prorate: none}")
    assert lines_of(rated(book, since="2026-10-31")) == [("fee", Decimal(1), 3100)]


def test_seats_that_change_within_the_month_are_paid_for_as_long_as_they_are_there():
    # 5 seats for 10 days, 8 for 11, 6 for 10: 50 + 88 + 60 seat days at 1.00
    facts = {"seats": [("2026-01-01", "5"), ("2026-10-11", "8"), ("2026-10-22", "6")]}
    (line,) = rated(book_with(SEATS % ""), facts=facts).lines
    assert (line.quantity, line.amount_minor, line.unit) == (Decimal(6), 19800, "seat")
    assert [(step["quantity"], step["share"], step["amount"]) for step in line.explanation["steps"]] == [
        ("5", "10/31 days", "50"),
        ("8", "11/31 days", "88"),
        ("6", "10/31 days", "60"),
    ]


def test_thirds_of_a_fee_add_up_to_the_whole_month():
    # Three times 10 of 30 days of 1.00: each third has no end, and the steps still add up to 1.00 exactly.
    facts = {"seats": [("2026-01-01", "1"), ("2026-11-11", "1"), ("2026-11-21", "1")]}
    book = book_with("seats: {model: recurring, price: 1.00, quantity: seats}")
    (line,) = rated(book, rated_period="2026-11", facts=facts).lines
    assert line.amount_exact == 1
    shown = [step["amount"] for step in line.explanation["steps"]]
    assert shown == ["0.333333333333", "0.333333333334", "0.333333333333"]


def test_two_changes_on_one_day_count_as_the_last_of_them():
    facts = {"seats": [("2026-10-01", "1"), ("2026-10-11T08:00", "9"), ("2026-10-11T09:00", "2")]}
    # 10 days of one seat, 21 of two
    assert rated(book_with(SEATS % ""), facts=facts).total_minor == 5200


def test_a_quantity_that_nobody_recorded_is_a_line_that_says_so_and_never_silence():
    (line,) = rated(book_with(SEATS % "")).lines
    assert (line.amount_minor, line.explanation["steps"]) == (0, [{"no_quantity": "seats", "amount": "0"}])


def test_in_advance_the_first_rating_has_the_month_and_the_next():
    facts = {"seats": [("2026-01-01", "2")]}
    book = book_with(SEATS % ", pay: advance")
    assert lines_of(rated(book, facts=facts)) == [
        (f"seats ({OCTOBER})", Decimal(2), 6200),
        (f"seats ({NOVEMBER})", Decimal(2), 6200),
    ]


def test_in_advance_a_month_that_was_billed_is_not_billed_again():
    facts = {"seats": [("2026-01-01", "2")]}
    before = {"seats": Before(charged=True, billed={OCTOBER: Decimal(62)})}
    assert lines_of(rated(book_with(SEATS % ", pay: advance"), facts=facts, before=before)) == [
        (f"seats ({NOVEMBER})", Decimal(2), 6200)
    ]


def test_in_advance_what_changed_since_is_made_up_for():
    # Billed for 2 seats; one is added on the 22nd: 10 of 31 days at 31.00
    facts = {"seats": [("2026-01-01", "2"), ("2026-10-22", "3")]}
    before = {"seats": Before(charged=True, billed={OCTOBER: Decimal(62)})}
    result = rated(book_with(SEATS % ", pay: advance"), facts=facts, before=before)
    assert lines_of(result) == [(f"seats ({OCTOBER})", Decimal(3), 1000), (f"seats ({NOVEMBER})", Decimal(3), 9300)]
    assert result.lines[0].explanation["steps"][-1] == {"billed_before": OCTOBER, "amount": "-62"}


def test_in_advance_seats_that_are_removed_are_given_back():
    facts = {"seats": [("2026-01-01", "2"), ("2026-10-22", "1")]}
    before = {"seats": Before(charged=True, billed={OCTOBER: Decimal(62)})}
    assert [
        line.amount_minor for line in rated(book_with(SEATS % ", pay: advance"), facts=facts, before=before).lines
    ] == [
        -1000,
        3100,
    ]


def test_in_advance_nothing_is_billed_for_a_month_that_the_contract_does_not_reach():
    facts = {"seats": [("2026-01-01", "2")]}
    before = {"seats": Before(charged=True, billed={OCTOBER: Decimal(62)})}
    assert rated(book_with(SEATS % ", pay: advance"), facts=facts, before=before, until="2026-11-01").lines == ()


@pytest.mark.parametrize("cut", ["2026-10-11", "2026-10-16", "2026-10-31"])
def test_a_month_that_is_rated_in_parts_pays_its_fee_once(cut):
    book = book_with("fee: {model: recurring, price: 31.00}")
    first = rated(book, rated_period=f"2026-10-01..{cut}")
    paid = first.lines[0].amount_exact
    before = {"fee": Before(charged=True, billed={OCTOBER: paid})}
    second = rated(book, rated_period=f"{cut}..2026-11-01", before=before)
    assert first.total_minor + second.total_minor == 3100


def test_a_part_of_a_month_is_due_its_days_whether_or_not_the_later_part_was_billed_first():
    book = book_with("fee: {model: recurring, price: 31.00}")
    later = {"fee": Before(charged=True, billed={OCTOBER: Decimal(21)})}
    assert lines_of(rated(book, rated_period="2026-10-01..2026-10-11", before=later)) == [("fee", Decimal(1), 1000)]


def test_a_part_of_a_month_is_due_at_its_own_price():
    # 15 of 31 days of 31.00 are billed; the other 16 cost 62.00 a month.
    book = book_with("fee: {model: recurring, price: 62.00}")
    earlier = {"fee": Before(charged=True, billed={OCTOBER: Decimal(15)})}
    assert lines_of(rated(book, rated_period="2026-10-16..2026-11-01", before=earlier)) == [("fee", Decimal(1), 3200)]


def test_without_proration_the_last_part_of_a_month_is_due_the_month():
    facts = {"seats": [("2026-01-01", "5"), ("2026-10-21", "8")]}
    book = book_with(SEATS % ", prorate: none")
    assert lines_of(rated(book, rated_period="2026-10-01..2026-10-11", facts=facts)) == []
    assert lines_of(rated(book, rated_period="2026-10-11..2026-11-01", facts=facts)) == [("seats", Decimal(8), 24800)]
    ended = rated(book, rated_period="2026-10-01..2026-10-11", facts=facts, until="2026-10-11")
    assert lines_of(ended) == [("seats", Decimal(5), 15500)]


@pytest.mark.parametrize("prorate", ["day", "second", "none"])
def test_what_was_billed_in_advance_by_an_earlier_book_is_taken_off_once(prorate):
    book = book_with(f"fee: {{model: recurring, price: 31.00, prorate: {prorate}}}")
    ahead = {OCTOBER: Decimal(31)}
    before = {"fee": Before(charged=True, billed=ahead, billed_ahead=ahead)}
    assert rated(book, before=before).total_minor == 0
    whole = 0
    for span in ("2026-10-11..2026-11-01", "2026-10-01..2026-10-11"):
        part = rated(book, rated_period=span, before=before)
        whole += part.total_minor
        billed = {OCTOBER: 31 + sum((line.amount_exact for line in part.lines), Decimal(0))}
        before = {"fee": Before(charged=True, billed=billed, billed_ahead=ahead)}
    assert whole == 0


def test_parts_of_a_month_that_are_cut_within_a_second_are_due_all_of_its_seconds():
    book = book_with("fee: {model: recurring, price: 26784.00, prorate: second}")  # 0.01 a second
    parts = ("2026-10-01..2026-10-11T00:00:00.500000", "2026-10-11T00:00:00.500000..2026-11-01")
    assert sum(rated(book, rated_period=it).total_minor for it in parts) == 2678400
