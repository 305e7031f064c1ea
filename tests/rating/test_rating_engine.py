"""The engine: what is free, what is unrated, rounding, currencies, and that the same inputs give the same bytes."""

from decimal import Decimal

import pytest
from rating_samples import BOOK, book_with, inputs, rated, used

from meterhouse_rating import engine
from meterhouse_rating.book import parse
from meterhouse_rating.engine import ConservationError, UsageRow
from meterhouse_rating.money import show, to_minor

ONE_PRICE = "in: {model: per_unit, metric: input, price: %s}"


def reasons(result):
    return {(left.meter, left.reason): left.quantity for left in result.leftovers}


def test_failed_aborted_and_unfinished_calls_are_free_unless_the_book_says_otherwise():
    result = rated(
        book_with(ONE_PRICE % "1"),
        used("llm.tokens.input", "5"),
        used("llm.tokens.input", "7", status="failed"),
        used("llm.tokens.input", "11", status="aborted"),
        used("llm.tokens.input", "13", status="unfinished"),
    )
    assert result.total_minor == 500
    assert sum(left.quantity for left in result.leftovers) == 31
    assert {left.reason for left in result.leftovers} == {"unbilled_status"}


def test_a_book_may_bill_failed_calls():
    text = BOOK.replace("meters: [llm.requests]", "meters: [llm.requests]\n  statuses: [aborted]")
    book = parse(text % ("      " + ONE_PRICE % "1"))
    assert rated(book, used("llm.tokens.input", "7", status="failed")).total_minor == 700


def test_a_status_that_was_never_reported_is_billed():
    assert rated(book_with(ONE_PRICE % "1"), used("llm.tokens.input", "7", status="")).total_minor == 700


def test_each_kind_of_leftover_has_its_reason_and_what_to_do():
    result = rated(
        book_with(ONE_PRICE % "1"),
        used("llm.requests", "3"),
        used("pages.read", "4"),
        used("tool.calls", "5"),
        used("llm.tokens.output", "6"),
    )
    assert reasons(result) == {
        ("llm.requests", "unbilled_meter"): 3,
        ("pages.read", "meter_not_declared"): 4,
        ("tool.calls", "no_price"): 5,
        ("llm.tokens.output", "no_price"): 6,
    }
    hints = {left.meter: left.hint for left in result.leftovers}
    assert 'below `meters:` the line pages.read: {unit: "1"' in hints["pages.read"]
    assert "unbilled: {meters: [tool.calls]}" in hints["tool.calls"]
    assert "metric: output" in hints["llm.tokens.output"]


@pytest.mark.parametrize(
    ("currency", "amount", "half_even", "half_up"),
    [
        ("USD", "0.125", 12, 13),
        ("USD", "0.135", 14, 14),
        ("JPY", "2.5", 2, 3),
        # Stripe takes the fils in tens only: 1.235 KWD could never be charged.
        ("KWD", "0.005", 0, 10),
        ("KWD", "1.235", 1240, 1240),
        ("KWD", "27.786", 27790, 27790),
        ("MGA", "12.50", 1200, 1300),
    ],
)
def test_amounts_are_rounded_to_what_can_be_charged_by_the_books_mode(currency, amount, half_even, half_up):
    assert to_minor(Decimal(amount), currency, "half_even") == half_even
    assert to_minor(Decimal(amount), currency, "half_up") == half_up


def test_amounts_are_shown_in_the_currencys_own_digits():
    assert (show(1234, "USD"), show(1234, "JPY"), show(1234, "KWD"), show(-5, "USD")) == (
        "12.34",
        "1234",
        "1.234",
        "-0.05",
    )


def test_the_total_is_the_sum_of_rounded_lines_and_not_rounded_again():
    # Two lines of 0.005: each rounds to 0.00 (half even), so the total is 0.00 although the exact sum is 0.01.
    book = book_with(
        "in: {model: per_unit, metric: input, price: 0.005}\nout: {model: per_unit, metric: output, price: 0.005}"
    )
    result = rated(book, used("llm.tokens.input", "1"), used("llm.tokens.output", "1"))
    assert [line.amount_minor for line in result.lines] == [0, 0]
    assert result.total_minor == 0


def test_quantities_of_38_digits_lose_nothing():
    quantity = "12345678901234567890123456789.123456789"
    (line,) = rated(book_with(ONE_PRICE % "0.000000000001"), used("llm.tokens.input", quantity)).lines
    assert line.amount_exact == Decimal("12345678901234567.890123456789123456789")


def test_an_explanation_names_version_line_meters_steps_and_rounding():
    (line,) = rated(book_with(ONE_PRICE % "0.0333"), used("llm.tokens.input", "10")).lines
    assert line.explanation == {
        "price": {
            "book": "sample",
            "version": 7,
            "plan": "sample",
            "component": "in",
            "line": 12,
            "contract": "contract",
        },
        "meters": {"llm.tokens.input": "10"},
        "steps": [{"quantity": "10", "price": "0.0333", "per": "1", "amount": "0.333", "book_line": 12}],
        "amount_exact": "0.333",
        "rounding": "half_even to 0.01 USD",
        "amount": "0.33",
    }


def test_the_order_in_which_usage_arrives_changes_nothing():
    book = book_with(ONE_PRICE % "1")
    rows = [used("llm.tokens.input", "1"), used("llm.tokens.cache_write", "2"), used("tool.calls", "3")]
    one, other = inputs(book, *rows), inputs(book, *reversed(rows))
    assert one.sha256() == other.sha256()
    assert engine.rate(one).sha256() == engine.rate(other).sha256()


def test_a_result_has_the_same_bytes_for_ever():
    # A golden value: if it changes, every stored result changes with it, so change it only on purpose.
    result = rated(book_with(ONE_PRICE % "0.0333"), used("llm.tokens.input", "10"), used("tool.calls", "2"))
    assert result.sha256() == "ff2438c11302f0c81980729308d4ac7e18f6592fa7fcafc0722ea69009e87c34"


def test_a_price_model_that_loses_usage_is_found_out(monkeypatch):
    from meterhouse_rating.models.per_unit import PerUnit

    honest = PerUnit.charge
    monkeypatch.setattr(PerUnit, "charge", lambda self, portions, *more: honest(self, portions[:-1], *more))
    with pytest.raises(ConservationError, match=r"llm.tokens.input': '5'"):
        rated(book_with(ONE_PRICE % "1"), used("llm.tokens.input", "5"))


def test_a_price_model_whose_arithmetic_does_not_add_up_is_found_out(monkeypatch):
    from meterhouse_rating.models import per_unit

    monkeypatch.setattr(per_unit, "step", lambda *_: {"quantity": "5", "price": "1", "per": "1", "amount": "4"})
    with pytest.raises(ConservationError, match="the steps of in add up to 4, not to 5"):
        rated(book_with(ONE_PRICE % "1"), used("llm.tokens.input", "5"))


def test_all_usage_of_a_customer_without_a_contract_is_left_with_the_command_to_add_it():
    rows = [UsageRow("tool.calls", "ok", (), 2, Decimal(2)), UsageRow("tool.calls", "failed", (), 1, Decimal(1))]
    (left,) = engine.left_over(rows, engine.NOT_REGISTERED, "meterhouse customers add acme")
    assert (left.events, left.quantity, left.reason) == (3, Decimal(3), "customer_not_registered")
