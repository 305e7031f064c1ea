"""Whatever is late of whichever part of a month, closed in whichever order: it comes to what the month comes to.

With METERHOUSE_PROVE=1, as `make prove ONLY=rating` does it, 1,000 months and more on SQLite, and some on PostgreSQL.
"""

import os

import pytest
from random_months import live

EVERY = os.environ.get("METERHOUSE_PROVE") == "1"
SEEDS, CUSTOMERS = (range(1, 17), 100) if EVERY else (range(1, 2), 12)


@pytest.mark.parametrize("seed", SEEDS)
def test_months_in_parts_with_late_usage_come_to_what_the_second_implementation_says(sqlite_house, seed):
    wrong = live(sqlite_house, seed, CUSTOMERS)
    assert not wrong, "\n".join(wrong)


def test_and_so_they_do_on_both_databases(house):
    wrong = live(house, 0, CUSTOMERS)
    assert not wrong, "\n".join(wrong)
