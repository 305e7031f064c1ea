"""Reading price books: every mistake is found at once, with its line and path, and no file can do harm."""

import re
from pathlib import Path

import pytest
from rating_samples import BOOK

from meterhouse_rating.book import BookRefused, check, parse
from meterhouse_rating.versions import starter
from meterhouse_store.meters import declared
from meterhouse_store.settings import Settings

EXAMPLE = (Path(__file__).parents[2] / "examples" / "pricebook.yaml").read_text(encoding="utf-8")


def units():
    return {name: meter.unit for name, meter in declared(Settings()).items()}


def refusals(text, meters=None):
    with pytest.raises(BookRefused) as refused:
        check(text, meters)
    return [(mistake.line, mistake.path, mistake.what) for mistake in refused.value.mistakes]


@pytest.mark.parametrize("text", [starter(), EXAMPLE], ids=["starter", "example"])
def test_the_books_that_ship_have_no_mistakes_and_leave_nothing_unrated(text):
    assert check(text, units()).notes == ()


def test_the_starter_has_the_plan_that_newcomers_are_put_on():
    assert list(parse(starter()).plans) == ["pay-as-you-go"]


def test_the_example_shows_the_three_kinds_of_plan_and_is_priced_by_model():
    book = parse(EXAMPLE)
    assert list(book.plans) == ["pay-as-you-go", "team", "prepaid"]
    assert book.dimensions == ("model",)


def test_all_mistakes_are_listed_together_with_line_and_path():
    text = """\
book: wrong
currency: USDD
rounding: bankers
metrics:
  input: {unit: token, meters: [llm.tokens.inptu], colour: red}
  mixed: {unit: token, meters: [llm.tokens.output, agent.seconds]}
  input: {unit: token, meters: [llm.tokens.input]}
unbilled:
  statuses: [ok]
plans:
  a:
    components:
      one: {model: per_unti, metric: input}
      two: {model: per_unit, metric: mixed, per: 3, price: 1e3}
      three:
        model: graduated
        metric: nothing
        tiers:
          - {up_to: 10, price: 1}
          - {up_to: 10, price: -2}
          - {up_to: 30, price: 3}
"""
    assert refusals(text, units()) == [
        (2, "currency", "`USDD` is not known"),
        (3, "rounding", "`bankers` is not known"),
        (5, "metrics.input.colour", "not a known key"),
        (5, "metrics.input.meters", "the meter llm.tokens.inptu is not declared"),
        (6, "metrics.mixed.meters", "adds up different units (s, {token})"),
        (7, "metrics.input", "written twice, first on line 5"),
        (9, "unbilled.statuses", "`ok` cannot be free"),
        (13, "plans.a.components.one.model", "`per_unti` is not known"),
        (14, "plans.a.components.two.per", "a price per 3 has no exact decimal value"),
        (14, "plans.a.components.two.price", "`1e3` is not a number"),
        (17, "plans.a.components.three.metric", "`nothing` is not known"),
        (20, "plans.a.components.three.tiers[1].price", "-2 is too small"),
        (20, "plans.a.components.three.tiers[1].up_to", "ends at 10, the tier before it at 10"),
        (21, "plans.a.components.three.tiers[2].up_to", "the last tier ends"),
    ]


def test_every_mistake_says_what_to_do():
    with pytest.raises(BookRefused) as refused:
        check("book: x\n", None)
    assert [(m.what, m.remedy) for m in refused.value.mistakes] == [
        ("`currency` is missing", "Add `currency: ...`."),
        ("`metrics` is missing", "Add `metrics: ...`."),
        ("`plans` is missing", "Add `plans: ...`."),
    ]


def test_a_dimension_that_is_mistyped_is_one_mistake_and_not_one_per_price():
    components = (
        "a: {model: per_unit, metric: input, by: [modle], prices: [{model: x, price: 1}, {model: y, price: 1}], "
        "default: none}"
    )
    with pytest.raises(BookRefused) as refused:
        check(BOOK % ("      " + components), None)
    assert [(mistake.what, mistake.remedy) for mistake in refused.value.mistakes] == [
        ("`modle` is no dimension of usage", "Did you mean model?")
    ]


def test_tiers_that_end_too_soon_are_found_together_with_a_last_tier_that_ends():
    tiers = "a: {model: graduated, metric: input, tiers: [{up_to: 100, price: 2}, {up_to: 50, price: 1}]}"
    assert [what for _, _, what in refusals(BOOK % ("      " + tiers))] == [
        "ends at 50, the tier before it at 100",
        "the last tier ends",
    ]


@pytest.mark.parametrize(
    ("currency", "remedy"),
    [
        ("DOLLAR", "Write the three letters of ISO 4217, such as USD, EUR or JPY."),
        ("USDD", "Choose one of: USD."),
    ],
)
def test_a_currency_that_is_none_is_answered_with_what_to_write(currency, remedy):
    with pytest.raises(BookRefused) as refused:
        check(EXAMPLE.replace("currency: USD ", f"currency: {currency} "), None)
    assert [mistake.remedy for mistake in refused.value.mistakes] == [remedy]


@pytest.mark.parametrize(
    ("components", "what"),
    [
        (
            "a: {model: per_unit, metric: input, price: 1}\n"
            "      b: {model: graduated, metric: input, tiers: [{price: 1}]}",
            "charges llm.tokens.input twice, by a and by b",
        ),
        ("a: {model: per_unit, metric: input}", "`price` is missing"),
        ("a: {model: per_unit, metric: input, by: [model], prices: [{model: x, price: 1}]}", "`default` is missing"),
        (
            "a: {model: per_unit, metric: input, by: [colour], prices: [{colour: x, price: 1}], default: none}",
            "`colour` is no dimension of usage",
        ),
        (
            "a: {model: per_unit, metric: input, by: [model], prices: [{model: g*, price: 1}, {model: gpt, price: 2}], "
            "default: none}",
            "never reached: line 12 matches first",
        ),
        (
            "a: {model: flat, price: 1, included: {input: 5}}",
            "`input` is included, but what goes beyond it has no price",
        ),
        ("a: {model: credit_pack, price: 20, credits: 10}", "fewer credits than they cost"),
        ("a: {model: credit_pack, price: 20.005, credits: 30}", "20.005 is no amount of USD"),
        ("a: {model: per_unit, metric: input, price: 0.1234567890123}", "more than 12 digits after the point"),
        ("a: {model: per_unit, metric: input, price: .inf}", "`.inf` is not a number"),
        ("a: {model: per_unit, metric: input, price: ١}", "`١` is not a number"),
        ("a: {model: per_unit, metric: input, price: 1__0}", "`1__0` is not a number"),
        ("a: {model: per_unit, metric: input, price: 1_}", "`1_` is not a number"),
        ("a: {model: flat, price: 49.001}", "49.001 is no amount of USD"),
        ("a: {model: flat, price: 10000000000001}", "10000000000001 is no amount of USD"),
        ("a: {model: per_unit, metric: input, price: [1]}", "a list or mapping is not a number"),
    ],
)
def test_a_plan_that_cannot_be_priced_exactly_is_refused(components, what):
    assert what in [found for _, _, found in refusals(BOOK % ("      " + components))]


def test_a_meter_cannot_be_charged_and_free_at_once():
    text = BOOK.replace("[llm.requests]", "[llm.tokens.input]") % "      a: {model: per_unit, metric: input, price: 1}"
    assert refusals(text) == [
        (11, "plans.sample.components", "charges llm.tokens.input by a, but llm.tokens.input is listed as unbilled")
    ]


def test_usage_that_a_book_would_leave_unrated_is_noted_but_allowed():
    notes = check(BOOK % "      a: {model: per_unit, metric: input, price: 1}", {
        "llm.tokens.input": "{token}", "llm.tokens.cache_write": "{token}", "llm.tokens.output": "{token}",
        "llm.tokens.reasoning": "{token}", "llm.requests": "{request}", "tool.calls": "{call}",
    }).notes  # fmt: skip
    assert [note.what for note in notes] == [
        "tool.calls is in no metric and not unbilled: its usage will be unrated",
        "no price for output (llm.tokens.output, llm.tokens.reasoning): its usage will be unrated",
    ]


@pytest.mark.parametrize(
    ("pay", "of", "noted"),
    [
        ("advance", "", True),
        ("advance", ", of: [a, fee]", True),
        ("advance", ", of: [a]", False),
        ("arrears", "", False),
    ],
)
def test_a_minimum_that_counts_the_next_months_fee_is_noted(pay, of, noted):
    notes = check(
        BOOK
        % (
            "      a: {model: per_unit, metric: input, price: 1}\n"
            f"      fee: {{model: recurring, price: 31, quantity: 1, pay: {pay}}}\n"
            f"      least: {{model: minimum, amount: 100{of}}}"
        ),
        units(),
    ).notes
    told = [str(it) for it in notes if "least" in it.path]
    assert len(told) == noted
    assert all("least compares what is on a month's invoice: of fee that is the next month's fee" in it for it in told)


def test_a_price_of_a_tenth_is_exactly_a_tenth():
    book = parse(BOOK % "      a: {model: per_unit, metric: input, price: 0.1}")
    assert str(book.plans["sample"].components[0].prices[0].price) == "0.1"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a: [", "not YAML"),
        ("- 1", "not a mapping"),
        ("a: &x [1]\nb: *x", "the alias *x"),
        ("book: x\n---\nbook: y", "a second document begins"),
        ("? [1]\n: 2", "a key that is no plain text"),
        ("a: " + "[" * 50 + "]" * 50, "nested too deep or too many values"),
        ("a: [" + "1, " * 100_001 + "]", "nested too deep or too many values"),
        ("#" * 1_000_001, "longer than 1000000 bytes"),
        ("a: !!python/object/apply:os.system [true]", "`book` is missing"),
        ("", "not a mapping"),
        ("a: \x00", "not YAML"),
    ],
)
def test_text_that_is_no_price_book_or_means_harm_is_refused_quickly(text, what):
    assert any(found.startswith(what) for _, _, found in refusals(text))


def test_a_refusal_reads_as_one_line_per_mistake():
    with pytest.raises(BookRefused) as refused:
        check(EXAMPLE.replace("half_even  ", "half_odd  "), None)
    assert re.fullmatch(
        r"line 9: rounding: `half_odd` is not known\. Choose one of: half_even, half_up, up, down\.", str(refused.value)
    )
