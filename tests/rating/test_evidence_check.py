"""The verifier of evidence packs against rating: it reads the same books, and comes to the same amounts by itself."""

from fractions import Fraction
from importlib.resources import files

import pytest
from hypothesis import HealthCheck, given, settings
from random_books import cases
from rating_samples import BOOK

from meterhouse_rating import document, engine, results, starters
from meterhouse_rating.evidence_check.findings import Findings
from meterhouse_rating.evidence_check.lines import check_rating
from meterhouse_rating.evidence_check.prices import prices_of
from meterhouse_rating.evidence_check.usage import Group
from meterhouse_rating.evidence_check.yaml_subset import Unreadable, read
from meterhouse_store.numbers import plain


def as_facts(case, rated):
    """What a pack tells of a case."""
    rows = results.line_rows("rating", case.inputs.currency, rated)
    return {
        "period_start": "2026-10-01T00:00:00.000000000Z",
        "period_end": "2026-11-01T00:00:00.000000000Z",
        "month": "2026-10-01T00:00:00.000000000Z",
        "zone": "UTC",
        "currency": case.inputs.currency,
        "plan": "sample",
        "overrides": {},
        "addons": {},
        "quantities": {},
        "total_minor": rated.total_minor,
        "lines": [
            row | {"quantity": plain(row["quantity"]), "amount_exact": plain(row["amount_exact"])} for row in rows
        ],
        "left": [
            {"meter": it.meter, "reason": it.reason, "quantity": plain(it.quantity)} for it in rated.leftovers
        ],
        "discounts": [
            {"id": it.agreement_id, "percent": plain(it.percent), "components": [], "before_minimum": False}
            for it in case.inputs.agreement.discounts
        ],
    }  # fmt: skip


def groups_of(usage):
    return [
        Group(it.meter, it.status, it.task, it.trial, dict(it.dimensions), it.events, Fraction(it.quantity))
        for it in usage
    ]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(cases())
def test_the_verifier_comes_to_the_amounts_of_random_books_by_itself(case):
    told = as_facts(case, engine.rate(case.inputs))
    findings = Findings()
    check_rating(told, prices_of(case.text, told), groups_of(case.inputs.usage), [], findings)
    assert findings.problems == []
    # Only where credits came from, and the rule that buys more of them, is not in the book.
    assert all("credits" in it for it in findings.carried), findings.carried
    for line in told["lines"]:
        line["amount_minor"] += 10
    if told["lines"]:
        wrong = Findings()
        check_rating(told, prices_of(case.text, told), groups_of(case.inputs.usage), [], wrong)
        assert len(wrong.problems) >= len(told["lines"])


BOOKS = {name: starters.text(name) for name in starters.names()} | {
    "the starter": (files("meterhouse_rating") / "starter.yaml").read_text(),
    "indented lists, quotes, comments": BOOK % """\
      a:   # a component
        model: "per_unit"
        metric: 'input'      # it's 'quoted'
        by: [ model, attributes.a-b ]
        prices:
        - model: gpt-5*
          price: 1_000.50

        - {model: "a: b, #c", attributes.a-b: 'it''s',
           price: 2}   # over two lines
        default: none
      b: {model: flat, price: 1}""",
}  # fmt: skip


@pytest.mark.parametrize("name", BOOKS)
def test_books_are_read_as_rating_reads_them(name):
    assert same(document.read(BOOKS[name], []), read(BOOKS[name]))


def same(one, other):
    """Whether the trees are the same, to the lines of every value and key."""
    if one.line != other.line:
        return False
    if isinstance(one, document.Scalar):
        return one.text == other.value
    if isinstance(one, document.Sequence):
        return all(same(*it) for it in zip(one.items, other.value, strict=True))
    if list(one.entries) != list(other.value) or one.key_lines != other.keys:
        return False
    return all(same(node, other.value[key]) for key, node in one.entries.items())


@pytest.mark.parametrize(
    "text",
    [
        "a: &x 1\nb: *x", "a: !!str 1", "a: |\n  text", "a: >\n  text", "a: one\n  two", 'a: "b\\n"', "a: {b: 1",
        "a: 1\n b: 2", "a: {b: 1} c", "a: b: c", "a: 1\na: 2", "\ta: 1", "a: [1, 2\nb: 3", "- a\nb: 1", "",
        "? a\n: b", "a: {b: 1, b: 2}",
    ],
)  # fmt: skip
def test_yaml_beyond_that_is_never_guessed(text):
    with pytest.raises(Unreadable):
        read(text)
