"""Random books of every model x usage x currencies: conserved, balanced, replayed, and as a second implementation says.

`make prove ONLY=rating` runs the same with 10,000 cases.
"""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_books import cases, check, check_in_parts

SLOW_TO_MAKE = [HealthCheck.too_slow, HealthCheck.data_too_large]


@settings(max_examples=200, deadline=None, suppress_health_check=SLOW_TO_MAKE)
@given(cases())
def test_random_books_conserve_quantity_and_money_replay_and_agree_with_a_second_implementation(case):
    check(case)


@settings(max_examples=100, deadline=None, suppress_health_check=SLOW_TO_MAKE)
@given(cases(), st.integers(0, 8))
def test_a_month_in_two_parts_costs_what_the_whole_month_costs(case, cut):
    check_in_parts(case, cut)
