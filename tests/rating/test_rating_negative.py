"""Parts that arrive before the whole they are taken out of are unrated until it is there: not a credit and not 0."""

from decimal import Decimal

import pytest
from rating_samples import book_with, rated, used

MODELS = {
    "per_unit": "in: {model: per_unit, metric: input, price: 2.00}",
    "graduated": "in: {model: graduated, metric: input, tiers: [{up_to: 50, price: 2.00}, {price: 1.00}]}",
    "volume": "in: {model: volume, metric: input, tiers: [{up_to: 50, price: 2.00}, {price: 1.00}]}",
    "package": "in: {model: package, metric: input, size: 10, price: 2.00}",
    "included": "in: {model: included, metric: input, included: 10, price: 2.00}",
    "flat": "in: {model: flat, price: 5.00, included: {input: 10}, overage: {input: {tiers: [{price: 2.00}]}}}",
}


@pytest.mark.parametrize("model", MODELS)
def test_a_part_without_its_whole_is_unrated_whatever_the_price_model(model):
    # 60 cached of an input that has not arrived: -60 input, 60 cache_read (which the sample book does not price).
    result = rated(book_with(MODELS[model]), used("llm.tokens.input", "-60"))
    assert [line.amount_minor for line in result.lines if line.kind == "usage"] == []
    (left,) = result.leftovers
    assert (left.reason, left.quantity, left.events) == ("negative_quantity", Decimal(-60), 1)
    assert "has not arrived: run again" in left.hint


def test_with_its_whole_it_is_priced_as_what_is_left():
    book = book_with(MODELS["per_unit"])
    result = rated(book, used("llm.tokens.input", "-60"), used("llm.tokens.input", "100"))
    assert [(line.quantity, line.amount_minor) for line in result.lines] == [(Decimal(40), 8000)]
    assert result.leftovers == ()


def test_a_sum_of_exactly_zero_is_usage_of_zero():
    result = rated(book_with(MODELS["per_unit"]), used("llm.tokens.input", "-60"), used("llm.tokens.input", "60"))
    assert [(line.quantity, line.amount_minor) for line in result.lines] == [(Decimal(0), 0)]


def test_each_combination_that_a_price_depends_on_stands_for_itself():
    book = book_with(
        "in: {model: per_unit, metric: input, by: [model], prices: [{model: a, price: 2.00}], default: 1.00}"
    )
    result = rated(
        book,
        used("llm.tokens.input", "-60", model="a"),
        used("llm.tokens.input", "100", model="b"),
    )
    assert [(line.quantity, line.amount_minor) for line in result.lines] == [(Decimal(100), 10000)]
    assert [(it.dimensions, it.quantity) for it in result.leftovers] == [((("model", "a"),), Decimal(-60))]


def test_meters_of_one_metric_are_summed_before_it_is_decided():
    result = rated(
        book_with(MODELS["per_unit"]), used("llm.tokens.input", "-60"), used("llm.tokens.cache_write", "100")
    )
    assert [(line.quantity, line.amount_minor) for line in result.lines] == [(Decimal(40), 8000)]
