"""What can be agreed with a customer: what fits its plan and the price book, and nothing else."""

from dataclasses import replace
from decimal import Decimal
from types import SimpleNamespace

import pytest
from rating_samples import at

from meterhouse_rating import agreeing
from meterhouse_rating.book import BookRefused
from meterhouse_rating.versions import NotThere
from meterhouse_store import agreements, registry
from meterhouse_store.registry import RegistryError

BOOK = """
book: agreed
currency: USD
metrics:
  input: {unit: token, meters: [llm.tokens.input]}
plans:
  other:
    components:
      in: {model: per_unit, metric: input, price: 7.00}
  pay:
    components:
      seats: {model: recurring, price: 31.00, quantity: seats}
      in:
        model: graduated
        metric: input
        tiers:
          - {up_to: 100, price: 1.00}
          - {price: 0.50}
addons:
  desk: {title: Desk, components: {fee: {model: recurring, price: 31.00}}}
"""
OWN = "model: per_unit\nmetric: input\nprice: 0.50\n"
FROM = {"valid_from": at("2026-10-01"), "valid_until": None}


@pytest.fixture
def acme(sqlite_house):
    house, mine = sqlite_house, SimpleNamespace(engine=sqlite_house.world.engine, house=sqlite_house)

    def discount(*components, customer="acme", months=None, before_minimum=False, amount=None):
        percent = Decimal(10) if amount is None else None
        return agreeing.discount(
            mine.engine, "test", customer, f"on {components}", percent=percent, amount=amount, months=months,
            components=components, before_minimum=before_minimum, **FROM,
        )  # fmt: skip

    mine.discount = discount
    mine.price = lambda component, text: agreeing.own_price(mine.engine, "test", "acme", component, text, **FROM)
    mine.add_on = lambda name: agreeing.add_on(mine.engine, "test", "acme", name, Decimal(2), **FROM)
    house.publish(BOOK)
    house.customer("acme", valid_from=at("2026-09-01"))
    return mine


@pytest.mark.parametrize("component", ["gone", "desk.gone", "gone.fee", "fee"])
def test_a_discount_on_what_there_is_not_is_refused_for_it_would_take_nothing_off(acme, component):
    found = rf"no component {component}, nor has an add-on \(there are seats, in, desk\.fee\)"
    with pytest.raises(RegistryError, match=found):
        acme.discount("in", component)


def test_a_discount_may_be_on_components_of_the_plan_and_of_add_ons(acme):
    assert acme.discount("in", "desk.fee").components == ["desk.fee", "in"]
    assert acme.discount().components == []


@pytest.mark.parametrize("amount", ["0.001", "12.345", "1e40"])
def test_a_discount_of_what_nobody_can_be_charged_is_refused_for_it_would_be_rounded(acme, amount):
    with pytest.raises(RegistryError, match=r"USD is no amount that can be charged: 0\.01 to 10,000,000,000,000"):
        acme.discount(amount=Decimal(amount))
    assert acme.discount(amount=Decimal("12.34")).amount == Decimal("12.34")


def test_an_add_on_is_one_of_the_price_book(acme):
    with pytest.raises(RegistryError, match=r"no add-on seat \(it has desk\)"):
        acme.add_on("seat")
    assert acme.add_on("desk").quantity == 2


def test_a_price_of_ones_own_is_of_a_component_of_ones_plan_and_whole(acme):
    with pytest.raises(RegistryError, match=r"The plan pay of acme has no component fee \(it has seats, in\)"):
        acme.price("fee", OWN)
    with pytest.raises(BookRefused, match="price"):
        acme.price("in", OWN.replace("price: 0.50\n", ""))
    assert acme.price("in", OWN).component == "in"


def test_with_a_customer_of_no_plan_nothing_is_agreed_and_it_is_said_how_it_gets_one(acme):
    house = acme.house
    with pytest.raises(RegistryError, match="nobody has no plan: `meterhouse customers add nobody --plan PLAN`"):
        acme.discount("in", customer="nobody")
    house.customer("gone", valid_from=at("2026-09-01"))
    registry.end_contract(acme.engine, "test", "gone", at("2026-09-15"), who="tests", why="left", now=at("2026-09-10"))
    with pytest.raises(RegistryError, match=r"the contract of gone ended at 2026-09-15.*`meterhouse customers add`"):
        acme.discount("in", customer="gone")
    house.customer("old", plan="legacy", valid_from=at("2026-09-01"))
    with pytest.raises(RegistryError, match="old is on the plan legacy, which price book version 1 does not have"):
        acme.discount("in", customer="old")


def test_a_quantity_is_of_what_the_plan_or_an_own_price_counts(acme):
    agreeing.quantity(acme.engine, "test", "acme", "seats", Decimal(3), valid_from=at("2026-10-01"))
    with pytest.raises(RegistryError, match=r"The plan pay of acme counts no desks \(it counts seats\)"):
        agreeing.quantity(acme.engine, "test", "acme", "desks", Decimal(3), valid_from=at("2026-10-01"))
    acme.price("in", "model: included\nmetric: input\nincluded: 5\neach: desks\nprice: 0.50\n")
    agreeing.quantity(acme.engine, "test", "acme", "desks", Decimal(3), valid_from=at("2026-10-01"))
    assert [it.name for it in agreements.quantities(acme.engine, "test", "acme")] == ["desks", "seats"]


def test_without_a_price_book_nothing_is_agreed(sqlite_house):
    sqlite_house.customer("acme")
    with pytest.raises(NotThere, match="`meterhouse prices publish FILE`"):
        agreeing.terms_at(sqlite_house.world.engine, "test", "acme", at("2026-10-01"))


def test_a_component_is_shown_as_the_book_has_it_to_begin_ones_own_from():
    assert agreeing.written(BOOK, "pay", "in") == (
        "model: graduated\nmetric: input\ntiers:\n  - {up_to: 100, price: 1.00}\n  - {price: 0.50}\n"
    )
    assert agreeing.written(BOOK, "other", "in") == "{model: per_unit, metric: input, price: 7.00}\n"
    assert agreeing.written(BOOK, "other", "seats") == agreeing.written(BOOK, "gone", "in") == ""


def test_what_was_agreed_is_said_with_all_its_terms(acme):
    made = acme.discount("in", "desk.fee", months=3, before_minimum=True)
    assert agreeing.words(made, "EUR")[2] == "10 % of desk.fee, in, 3 months, before the minimum"
    assert agreeing.words(acme.discount(), "EUR")[2] == "10 %"
    by_amount = replace(made, percent=None, amount=Decimal("12.5"), components=(), months=None, before_minimum=False)
    assert agreeing.words(by_amount, "EUR")[2] == "12.50 EUR a month"
    assert agreeing.words(acme.add_on("desk"), "EUR") == ("add-on", "desk", "2")
    assert agreeing.words(acme.price("in", OWN), "EUR") == ("price", "in", "model: per_unit")
