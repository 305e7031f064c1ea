"""Discounts, own prices, add-ons, trials and conversion: what a customer agreed to beside its plan."""

from decimal import Decimal

import pytest
from rating_samples import BOOK, at, book_with, rated, used

from meterhouse_rating import discounts
from meterhouse_rating.agreements import AddOn, Agreement, Discount, Override
from meterhouse_rating.book import BookRefused, check, parse
from meterhouse_rating.effective import AgreementRefused, effective
from meterhouse_rating.periods import parse as period
from meterhouse_rating.rates import rate_at

TWO = """
in: {model: per_unit, metric: input, price: 1.00}
out: {model: per_unit, metric: output, price: 1.00}
"""
COMMITTED = TWO + "least: {model: minimum, amount: 100.00}\n"


def off(
    name="coupon", percent=None, amount=None, *components, months=None, before=False, since="2026-10-01", until=None
):
    return Discount(
        f"id-{name}",
        name,
        None if percent is None else Decimal(percent),
        None if amount is None else Decimal(amount),
        components,
        months,
        before,
        at(since),
        None if until is None else at(until),
    )


def lines_of(components, *found, used_in="30", used_out="20", **more):
    usage = used("llm.tokens.input", used_in), used("llm.tokens.output", used_out)
    result = rated(book_with(components), *usage, agreement=Agreement(discounts=found), **more)
    assert sum(line.amount_minor for line in result.lines) == result.total_minor
    return [(line.description, line.kind, line.amount_minor) for line in result.lines]


def test_a_percentage_off_everything_is_one_line_that_shows_what_it_is_off():
    assert lines_of(TWO, off(percent="15"))[-1] == ("coupon", "discount", -750)


def test_a_percentage_is_rounded_once_over_all_lines():
    # 33.33 % of 0.30 + 0.20 = 0.166650, not 0.10 + 0.07
    assert lines_of(TWO, off(percent="33.33"), used_in="0.30", used_out="0.20")[-1][2] == -17


def test_an_amount_is_taken_off_once_a_month_and_never_below_nothing():
    assert lines_of(TWO, off(amount="12.50"))[-1][2] == -1250
    assert lines_of(TWO, off(amount="80.00"))[-1][2] == -5000


def test_named_components_only():
    assert lines_of(TWO, off("half", "50", None, "out"))[-1] == ("half", "discount", -1000)


def test_a_second_discount_is_off_what_the_first_left():
    # 50.00: 10 % are 5.00; then 10.00 of the 45.00; then 100 % of 35.00
    found = (
        off("all", percent="100", since="2026-10-03"),
        off("ten", percent="10", since="2026-10-01"),
        off("amount", amount="10", since="2026-10-02"),
    )
    assert [(name, minor) for name, kind, minor in lines_of(TWO, *found) if kind == "discount"] == [
        ("ten", -500),
        ("amount", -1000),
        ("all", -3500),
    ]


def test_after_the_minimum_a_discount_is_off_the_true_up_too():
    # 50.00 used, 50.00 trued up; 10 % of 100.00
    assert lines_of(COMMITTED, off(percent="10"))[2:] == [
        ("least", "minimum", 5000),
        ("coupon", "discount", -1000),
    ]


def test_before_the_minimum_the_commitment_is_compared_with_what_the_discount_leaves():
    # 50.00 used, 5.00 off: 55.00 are missing
    assert lines_of(COMMITTED, off(percent="10", before=True))[2:] == [
        ("coupon", "discount", -500),
        ("least", "minimum", 5500),
    ]


def test_credits_pay_what_a_discount_left_and_no_more():
    assert lines_of(TWO, off(percent="50"), credit_minor=10000)[2:] == [
        ("coupon", "discount", -2500),
        ("Credits applied", "credit_applied", -2500),
    ]


@pytest.mark.parametrize(
    ("discount", "month", "holds"),
    [
        (off(percent="1", months=3, since="2026-08-15"), "2026-07", False),
        (off(percent="1", months=3, since="2026-08-15"), "2026-08", True),
        (off(percent="1", months=3, since="2026-08-15"), "2026-10", True),
        (off(percent="1", months=3, since="2026-08-15"), "2026-11", False),
        (off(percent="1", since="2026-08-15"), "2029-11", True),
        (off(percent="1", since="2026-08-15", until="2026-09-15"), "2026-09", True),
        (off(percent="1", since="2026-08-15", until="2026-09-01"), "2026-09", False),
    ],
)
def test_a_discount_holds_for_so_many_calendar_months(discount, month, holds):
    assert discounts.applies(discount, period(month, "UTC"), "UTC") is holds


def test_what_is_shared_out_adds_up_and_stays_within_each_line():
    assert discounts.share_out(100, [333, 333, 334], 1) == [33, 33, 34]
    assert discounts.share_out(5, [1, 1, 1, 1, 1], 1) == [1, 1, 1, 1, 1]
    assert discounts.share_out(20, [15, 5, 20], 10) == [10, 0, 10]


# ---- prices of a customer's own --------------------------------------------------------------------------------------


def own(component, text, since="2026-10-01", until=None):
    return Override("f" * 64, component, text, at(since), None if until is None else at(until))


def test_a_price_of_the_customers_own_takes_the_place_of_the_plans_and_the_line_names_it():
    agreed = Agreement(overrides=(own("in", "{model: per_unit, metric: input, price: 0.25}"),))
    result = rated(book_with(TWO), used("llm.tokens.input", "8"), used("llm.tokens.output", "8"), agreement=agreed)
    assert [line.amount_minor for line in result.lines] == [200, 800]
    assert result.lines[0].explanation["price"]["override"] == "f" * 64
    assert "override" not in result.lines[1].explanation["price"]


@pytest.mark.parametrize(
    ("since", "until", "minor"),
    [("2026-10-02", None, 800), ("2026-09-30", None, 200), ("2026-09-01", "2026-10-01", 800)],
)
def test_it_prices_whole_months_that_begin_while_it_holds(since, until, minor):
    agreed = Agreement(overrides=(own("in", "{model: per_unit, metric: input, price: 0.25}", since, until),))
    assert rated(book_with(TWO), used("llm.tokens.input", "8"), agreement=agreed).total_minor == minor


@pytest.mark.parametrize(
    ("component", "text", "why"),
    [
        ("gone", "{model: flat, price: 1}", "which the plan sample does not have"),
        ("in", "{model: per_unit, metric: input, price: dear}", "`dear` is not a number"),
        ("in", "{model: per_unit, metric: output, price: 1}", "charges llm.tokens.output, and so does"),
    ],
)
def test_one_that_does_not_fit_is_refused_with_what_to_do(component, text, why):
    book = book_with(TWO)
    with pytest.raises(AgreementRefused, match=why):
        effective(book, book.plans["sample"], Agreement(overrides=(own(component, text),)), period("2026-10", "UTC"))


# ---- add-ons ---------------------------------------------------------------------------------------------------------

ADDONS = """
addons:
  desk: {title: Desk, components: {fee: {model: recurring, price: 31.00}}}
  boost: {title: Boost, components: {fee: {model: flat, price: 5.00}}}
  clash: {components: {more: {model: per_unit, metric: input, price: 1}}}
"""


def added(*rows):
    return Agreement(
        addons=tuple(
            AddOn(f"{at_:064d}", name, Decimal(so_many), at(since), None if until is None else at(until))
            for at_, (name, so_many, since, until) in enumerate(rows)
        )
    )


def with_addons(agreed):
    return rated(parse(BOOK % "      in: {model: per_unit, metric: input, price: 1.00}" + ADDONS), agreement=agreed)


def test_an_add_on_is_paid_for_the_days_that_it_is_there_as_often_as_it_is_there():
    # 2 from the 11th (21 days), one more on the 22nd (10 days): 42.00 + 10.00
    result = with_addons(added(("desk", "2", "2026-10-11", None), ("desk", "1", "2026-10-22", None)))
    assert [(line.description, line.amount_minor) for line in result.lines] == [("Desk", 5200)]


def test_an_add_on_ends():
    assert with_addons(added(("desk", "1", "2026-09-01", "2026-10-11"))).total_minor == 1000
    assert with_addons(added(("boost", "2", "2026-09-01", "2026-10-01"))).lines == ()


def test_a_flat_add_on_is_due_in_every_month_that_it_touches():
    assert with_addons(added(("boost", "2", "2026-10-30", None))).total_minor == 1000


def test_an_add_on_that_charges_what_the_plan_charges_is_refused():
    with pytest.raises(AgreementRefused, match=r"clash\.more charges llm\.tokens\.input, and so does in"):
        with_addons(added(("clash", "1", "2026-10-01", None)))


# ---- conversion ------------------------------------------------------------------------------------------------------

RATES = """
rates:
  - {from: USD, to: EUR, rate: 0.92, valid_from: 2026-01-01}
  - {from: USD, to: EUR, rate: 0.9, valid_from: 2026-10-01}
  - {from: USD, to: JPY, rate: 149.37, valid_from: 2026-01-01}
"""


@pytest.mark.parametrize(("currency", "minor"), [("EUR", 900), ("JPY", 1494)])
def test_a_line_is_converted_before_it_is_rounded_and_says_at_which_rate(currency, minor):
    book = parse(BOOK % "      in: {model: per_unit, metric: input, price: 0.001}" + RATES)
    rate = rate_at(book.rates, "USD", currency, at("2026-10-01"))
    (line,) = rated(book, used("llm.tokens.input", "10000"), currency=currency, rate=rate).lines
    assert line.amount_minor == minor
    assert line.explanation["conversion"]["amount"] == "10"
    assert line.explanation["steps"][0]["amount"] == "10"


def test_a_rate_holds_from_its_date_on_and_is_never_turned_round():
    book = parse(BOOK % "      in: {model: per_unit, metric: input, price: 1}" + RATES)
    assert rate_at(book.rates, "USD", "EUR", at("2026-09-30")).rate == Decimal("0.92")
    assert rate_at(book.rates, "USD", "EUR", at("2025-09-30")) is None
    assert rate_at(book.rates, "EUR", "USD", at("2026-10-01")) is None


def test_tax_behaviour_and_codes_are_carried_to_the_lines():
    book = parse(
        BOOK
        % (
            "      in: {model: per_unit, metric: input, price: 1, tax: {code: txcd_1}}\n"
            "      out: {model: per_unit, metric: output, price: 1}"
        )
        + "tax: {behaviour: exclusive, code: txcd_0}\n"
    )
    lines = rated(book, used("llm.tokens.input", "1"), used("llm.tokens.output", "1")).lines
    assert [line.explanation["tax"] for line in lines] == [
        {"behaviour": "exclusive", "code": "txcd_1"},
        {"behaviour": "exclusive", "code": "txcd_0"},
    ]


def test_a_plan_has_prices_with_tax_or_without_but_not_both():
    text = BOOK % (
        "      in: {model: per_unit, metric: input, price: 1}\n"
        "      out: {model: per_unit, metric: output, price: 1, tax: {behaviour: inclusive}}"
    )
    meters = ["input", "cache_write", "output", "reasoning"]
    declared = {f"llm.tokens.{name}": "{token}" for name in meters} | {"llm.requests": "{request}"}
    with pytest.raises(BookRefused, match=r"plans.sample.components: has prices with tax in them .* and without"):
        check(text + "tax: {behaviour: exclusive}\n", declared)
    check(text + "tax: {behaviour: inclusive}\n", declared)
    parse(text + "tax: {behaviour: exclusive}\n")  # what was published before is read as it is


@pytest.mark.parametrize(("rounding", "minor"), [("up", 101), ("down", 100), ("half_up", 101), ("half_even", 100)])
def test_the_book_says_how_lines_are_rounded(rounding, minor):
    text = BOOK.replace("currency: USD", f"currency: USD\nrounding: {{mode: {rounding}, place: line}}")
    book = parse(text % "      in: {model: per_unit, metric: input, price: 1.005}")
    assert rated(book, used("llm.tokens.input", "1")).total_minor == minor
