"""Whatever arrives late or is taken away, under any book: billed plus corrected is what all of it at once comes to."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from random_books import cases

from meterhouse_rating import engine
from meterhouse_rating.corrections import Closed, correct
from meterhouse_rating.results import line_rows


@settings(max_examples=100, deadline=None)
@given(cases(), st.integers(0, 8), st.integers(0, 8))
def test_billed_and_corrected_twice_is_what_all_of_it_comes_to(case, first, last):
    inputs = replace(case.inputs, credits=(), top_up=None)
    rows = inputs.usage
    closed = rate(inputs, rows[:first])
    once = corrected(inputs, closed, [], rows)
    assert owed(closed.lines) + owed(once) == owed(rate(inputs, rows).lines)
    assert corrected(inputs, closed, once, rows) == ()
    # Then some is taken away, from the front: what came late, what was billed, or both.
    twice = corrected(inputs, closed, once, rows[last:])
    assert owed(closed.lines) + owed(once) + owed(twice) == owed(rate(inputs, rows[last:]).lines)
    assert corrected(inputs, closed, [*once, *twice], rows[last:]) == ()


@settings(max_examples=100, deadline=None)
@given(cases(), st.integers(0, 8))
def test_what_credits_paid_and_what_comes_back_of_it_never_exceeds_what_is_owed(case, last):
    inputs = replace(case.inputs, top_up=None)
    closed = rate(inputs, inputs.usage)
    found = corrected(inputs, closed, [], inputs.usage[last:])
    paid = -sum(line.amount_minor for line in closed.lines if line.kind == "credit_applied")
    back = sum(line.amount_minor for line in found if line.kind == "credit_restored")
    usage = rate(replace(inputs, credits=()), inputs.usage[last:])
    assert 0 <= back <= paid
    # What stays paid by credits is not more than the usage that is left.
    free = sum(line.amount_minor for line in usage.lines if line.kind == "usage" and line.amount_minor > 0)
    assert paid - back <= free
    assert corrected(inputs, closed, found, inputs.usage[last:]) == ()


def owed(lines):
    """Before credits: those of a pack pay a closed rating's late usage where the correction is billed, not at once."""
    return sum(line.amount_minor for line in lines if line.kind not in {"credit_applied", "credit_restored"})


def rate(inputs, rows):
    return engine.rate(replace(inputs, usage=rows))


def corrected(inputs, closed, so_far, rows):
    period = inputs.setting.period
    lines = line_rows("r", inputs.currency, closed)
    earlier = [{**vars(it), "dimensions": dict(it.dimensions), "line_id": f"c{at}"} for at, it in enumerate(so_far)]
    return correct(Closed("r", period, inputs.currency, lines, earlier), replace(inputs, usage=rows))
