"""Credits by hand: in which order grants are used, what a top-up buys, what becomes of a rest."""

from dataclasses import replace

import pytest
from rating_samples import at, book_with, credits_of, rated, used

from meterhouse_rating.book import BookRefused
from meterhouse_rating.credit_lines import grants_of, used_by
from meterhouse_rating.credits import Grant, TopUp, burn, carried_over, endings, order, usable
from meterhouse_rating.periods import parse

OCTOBER = parse("2026-10", "UTC")
PER_TOKEN = "in: {model: per_unit, metric: input, price: 1.00}\nfee: {model: recurring, price: 7.00}"


def grant(name, left=100, kind="bought", since="2026-09-01", until=None, priority=0, rollover=0):
    return Grant(name, kind, left, at(since), None if until is None else at(until), priority, rollover)


def names(grants):
    return [it.grant_id for it in grants]


def test_priority_comes_before_all_else_then_expiry_then_promotional_then_age_then_the_id():
    first = grant("first", priority=1, until="2026-11-05")
    expected = [
        grant("z0", priority=0),
        first,
        grant("p2", priority=1, until="2026-12-01", kind="promotional"),
        grant("b1", priority=1, until="2026-12-01", since="2026-08-01"),
        grant("b2", priority=1, until="2026-12-01", since="2026-08-02"),
        grant("b3", priority=1, until="2026-12-01", since="2026-08-02"),
        grant("p9", priority=1, kind="promotional"),
        grant("b9", priority=1),
        grant("a", priority=2, until="2026-10-02", kind="promotional"),
    ]
    assert names(order(reversed(expected))) == names(expected)


def test_a_grant_pays_for_every_period_in_which_it_holds_for_a_moment():
    grants = [
        grant("before", until="2026-10-01"),
        grant("into", until="2026-10-01T00:00:00.000001"),
        grant("from", since="2026-10-31T23:59:59"),
        grant("after", since="2026-11-01"),
        grant("empty", left=0),
    ]
    assert names(usable(grants, OCTOBER)) == ["into", "from"]


def test_credits_pay_the_lines_one_after_the_other_and_never_more_than_there_is():
    uses = burn([grant("a", 30), grant("b", 50)], [20, 0, -10, 25, 100])
    assert uses == [(0, "a", 20), (3, "a", 10), (3, "b", 15), (4, "b", 35)]
    assert burn([], [20]) == [] and burn([grant("a")], []) == []


def test_a_rating_tells_which_grant_paid_what_and_fees_are_not_paid():
    grants = [grant("old", 250, until="2026-12-01"), grant("gift", 100, "promotional", until="2026-12-01")]
    result = rated(book_with(PER_TOKEN), used("llm.tokens.input", "5"), credits=grants)
    applied = result.lines[-1]
    assert (applied.kind, applied.amount_minor, result.total_minor) == ("credit_applied", -350, 500 + 700 - 350)
    assert used_by(applied.explanation, "USD") == {"gift": 100, "old": 250}
    assert (applied.explanation["balance_before"], applied.explanation["balance_after"]) == ("3.50", "0.00")


@pytest.mark.parametrize(
    ("below", "each", "limit", "usable_minor", "payable", "times"),
    [
        (0, 100, 5, 100, 100, 0),  # exactly used up
        (0, 100, 5, 100, 101, 1),
        (0, 100, 5, 0, 500, 5),
        (0, 100, 5, 0, 501, 5),  # the limit: 0.01 is owed
        (50, 100, 5, 149, 100, 1),
        (50, 100, 5, 150, 100, 0),
        (50, 100, 5, 0, 0, 1),
    ],
)
def test_a_top_up_buys_until_enough_is_left(below, each, limit, usable_minor, payable, times):
    assert TopUp(below, each, limit).times(usable_minor, payable) == times


def test_a_top_up_is_a_line_that_grants_what_it_costs():
    result = rated(
        book_with(PER_TOKEN), used("llm.tokens.input", "25"), credits=[grant("a", 400)], top_up=TopUp(500, 1000, 10)
    )
    # 25.00 of usage, 4.00 there: 3 times 10.00 leave 9.00, 2 times would leave 4.00 owed
    line = next(line for line in result.lines if line.kind == "credit_pack")
    assert (line.description, line.quantity, line.amount_minor) == ("Credit top-up", 3, 3000)
    assert [(it.kind, it.left_minor) for it in grants_of(line.explanation, "USD")] == [("bought", 3000)]
    assert result.lines[-1].amount_minor == -2500 and result.total_minor == 2500 + 700 + 3000 - 2500


def test_a_rest_is_lost_at_its_end_or_carried_over_once():
    lost = grant("lost", 40, until="2026-10-15")
    carried = grant("kept", 90, since="2026-09-15", until="2026-10-15", rollover=50)
    later = grant("later", 10, until="2026-11-02")
    found = endings([lost, carried, later, grant("used", 0, until="2026-10-15")], OCTOBER.end)
    assert [(it.grant.grant_id, it.lost_minor) for it in found] == [("lost", 40), ("kept", 40)]
    (following,) = [it.carried for it in found if it.carried]
    assert (following.left_minor, following.granted_at, following.expires_at, following.rollover_minor) == (
        50, at("2026-10-15"), at("2026-11-14"), 0,
    )  # fmt: skip
    assert carried_over([carried, later], at("2026-11-01")) == [later, following]
    assert carried_over([carried, later], at("2026-12-01")) == []


def test_a_pack_says_when_its_credits_expire_and_what_they_come_after():
    book = book_with("pack: {model: credit_pack, price: 5.00, credits: 8.00, expires_days: 45, priority: 3}")
    (line,) = rated(book).lines
    assert [(it.kind, it.left_minor, it.expires_at, it.priority) for it in grants_of(line.explanation, "USD")] == [
        ("bought", 500, at("2026-11-15"), 3),
        ("promotional", 300, at("2026-11-15"), 3),
    ]


@pytest.mark.parametrize("wrong", ["expires_days: 0", "expires_days: 1.5", "priority: 10001"])
def test_a_pack_with_an_impossible_rule_is_refused(wrong):
    with pytest.raises(BookRefused, match="is no whole number from"):
        book_with(f"pack: {{model: credit_pack, price: 5.00, credits: 8.00, {wrong}}}")


def test_every_rule_of_a_grant_is_an_input_of_the_rating():
    from rating_samples import inputs

    book = book_with(PER_TOKEN)
    one = credits_of(100)[0]
    changed = [
        replace(one, grant_id="other"),
        replace(one, kind="promotional"),
        replace(one, left_minor=101),
        replace(one, granted_at=at("2026-01-02")),
        replace(one, expires_at=at("2027-01-01")),
        replace(one, priority=1),
        replace(one, rollover_minor=1),
    ]
    hashes = {inputs(book, credits=[it]).sha256() for it in [one, *changed]}
    hashes.add(inputs(book, credits=[one], top_up=TopUp(1, 1, 1)).sha256())
    assert len(hashes) == 9
