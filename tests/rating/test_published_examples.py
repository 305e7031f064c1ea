"""Worked examples that other billing systems publish, rated here: the amounts are theirs.

Stripe: https://docs.stripe.com/subscriptions/pricing-models/tiered-pricing (fonts by tiers of 1-5, 6-10, 11+).
Lago: https://getlago.com/docs/guide/plans/charges/charge-models/package, .../volume, .../graduated,
https://getlago.com/docs/guide/plans/charges/spending-minimum, https://getlago.com/docs/guide/lago-cloud/contract-billing.
Zuplo (on OpenMeter): https://zuplo.com/docs/articles/monetization/pricing-models.
Autumn: https://docs.useautumn.com/documentation/modelling-pricing/graduated-pricing, .../proration.
Flexprice: https://docs.flexprice.io/docs/product-catalogue/plans/billing-models/tiered.
"""

from decimal import Decimal

import pytest
from rating_samples import book_with, rated, used

from meterhouse_rating.charges import Before

FONTS = "out: {model: %s, metric: output, tiers: [{up_to: 5, price: 7}, {up_to: 10, price: 6.5}, {price: 6}]}"
ZUPLO = (
    "out: {model: %s, metric: output, tiers: [{up_to: 1000, price: 0.10}, {up_to: 10000, price: 0.05}, {price: 0.01}]}"
)


def total(components, quantity):
    return rated(book_with(components), used("llm.tokens.output", quantity)).total_minor


@pytest.mark.parametrize(("fonts", "minor"), [("1", 700), ("5", 3500), ("6", 3900), ("20", 12000), ("25", 15000)])
def test_stripe_volume_based_pricing(fonts, minor):
    assert total(FONTS % "volume", fonts) == minor


@pytest.mark.parametrize(
    ("fonts", "minor"),
    [
        ("5", 3500),  # "5 fonts result in the same charge as volume-based pricing: 35 USD"
        ("6", 4150),  # 5 x 7 + 1 x 6.5
        ("20", 12750),  # 5 x 7 + 5 x 6.5 + 10 x 6
        ("25", 15750),
    ],
)
def test_stripe_graduated_pricing(fonts, minor):
    assert total(FONTS % "graduated", fonts) == minor


def test_zuplo_graduated_15_000_units_are_600_dollars_and_volume_150():
    assert total(ZUPLO % "graduated", "15000") == 60000
    assert total(ZUPLO % "volume", "15000") == 15000


def test_zuplo_per_unit_100_000_calls_at_a_tenth_of_a_cent_are_100_dollars():
    assert total("out: {model: per_unit, metric: output, price: 0.001}", "100000") == 10000


def test_lago_volume_65_000_calls_with_a_fixed_fee_are_49_dollars():
    tiers = (
        "[{up_to: 10000, price: 0.0010, flat: 10}, {up_to: 50000, price: 0.0008, flat: 10}, "
        "{up_to: 100000, price: 0.0006, flat: 10}, {price: 0.0004, flat: 10}]"
    )
    assert total(f"out: {{model: volume, metric: output, tiers: {tiers}}}", "65000") == 4900


def test_lago_graduated_a_dollar_then_half_then_a_tenth():
    tiers = "[{up_to: 100, price: 1}, {up_to: 200, price: 0.50}, {price: 0.10}]"
    # $1 for the first 100 units, $0.50 for the next 100, $0.10 for any further: 100 + 50 + 5 for 250
    assert total(f"out: {{model: graduated, metric: output, tiers: {tiers}}}", "250") == 15500


def test_lago_package_201_units_at_5_dollars_per_100_with_100_free_are_10_dollars():
    assert total("out: {model: package, metric: output, size: 100, price: 5, free: 100}", "201") == 1000


def test_lago_spending_minimum_of_100_dollars_with_50_spent_is_trued_up_by_50():
    book = book_with(
        "out: {model: per_unit, metric: output, price: 0.010}\nleast: {model: minimum, amount: 100, of: [out]}"
    )
    lines = rated(book, used("llm.tokens.output", "5000")).lines
    assert [line.amount_minor for line in lines] == [5000, 5000]


@pytest.mark.parametrize(("usage", "minor"), [("800", [80000, 20000]), ("1300", [130000])])
def test_lago_negotiated_contract_with_a_minimum_of_1_000_dollars(usage, minor):
    book = book_with("out: {model: per_unit, metric: output, price: 1}\nleast: {model: minimum, amount: 1000}")
    assert [line.amount_minor for line in rated(book, used("llm.tokens.output", usage)).lines] == minor


def test_autumn_graduated_15_000_requests_are_107_dollars():
    tiers = "[{up_to: 1000, price: 0.01}, {up_to: 10000, price: 0.008}, {price: 0.005}]"
    assert total(f"out: {{model: graduated, metric: output, tiers: {tiers}}}", "15000") == 10700


def test_autumn_an_upgrade_from_20_to_50_dollars_halfway_costs_15_more():
    # Here the quantity of a fee of 10 goes from 2 to 5 on the 16th of a month of 30 days, which was billed in advance.
    book = book_with("fee: {model: recurring, price: 10, quantity: seats, pay: advance}")
    month = "2026-11-01..2026-12-01"
    before = {"fee": Before(charged=True, billed={month: Decimal(20)})}
    facts = {"seats": [("2026-01-01", "2"), ("2026-11-16", "5")]}
    lines = rated(book, rated_period="2026-11", facts=facts, before=before, until="2026-12-01").lines
    assert [line.amount_minor for line in lines] == [1500]


def test_flexprice_volume_65_000_calls_are_39_dollars():
    tiers = "[{up_to: 50000, price: 0.0008}, {up_to: 100000, price: 0.0006}, {price: 0.0004}]"
    assert total(f"out: {{model: volume, metric: output, tiers: {tiers}}}", "65000") == 3900


def test_flexprice_4_500_calls_make_five_packages_of_a_thousand():
    assert total("out: {model: package, metric: output, size: 1000, price: 1.00}", "4500") == 500
