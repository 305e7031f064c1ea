"""A price that is to change on 16 October, from the public commands to the month's invoice, written out by hand.

The rule: one book prices a whole period. So the new price waits for November; or the month is rated in two parts, and
the second goes on in the tiers where the first ended, at its own prices.
"""

import json

import pytest
from typer.testing import CliRunner

from meterhouse_rating.commands import prices, rate

BOOK = """
book: shop
currency: USD
metrics:
  calls: {unit: call, meters: [tool.calls]}
plans:
  pay:
    components:
      base: {model: recurring, price: 31.00, prorate: day}
      calls: {model: graduated, metric: calls, tiers: [{up_to: 1000, price: %s}, {price: %s}]}
      least: {model: minimum, amount: 62.00}
"""


@pytest.fixture
def call(sqlite_house, monkeypatch, command_environment):
    for name, value in command_environment(sqlite_house).items():
        monkeypatch.setenv(name, value)

    def called(app, *arguments):
        done = CliRunner().invoke(app, list(arguments))
        assert done.exit_code == 0, done.output
        return done.output

    return called


@pytest.fixture
def house(sqlite_house, call, tmp_path):
    """800 calls on 5 October and 700 on the 20th; from the 16th on calls are to cost half as much again."""
    (tmp_path / "old.yaml").write_text(BOOK % ("0.10", "0.04"))
    (tmp_path / "new.yaml").write_text(BOOK % ("0.15", "0.06"))
    call(prices, "publish", str(tmp_path / "old.yaml"))
    call(prices, "publish", str(tmp_path / "new.yaml"), "--valid-from", "2026-10-16")
    sqlite_house.customer("acme", plan="pay")
    sqlite_house.event("acme", "tool.calls", "800", "2026-10-05T00:00:00")
    sqlite_house.event("acme", "tool.calls", "700", "2026-10-20T00:00:00")
    sqlite_house.event("acme", "tool.calls", "100", "2026-11-03T00:00:00")
    sqlite_house.collected()
    return sqlite_house


def invoice(call, period):
    """The lines of a period as the command tells them."""
    [rating] = json.loads(call(rate, "status", "--period", period, "--json"))["ratings"]
    return [(line["component"], line["amount"]) for line in rating["lines"]], rating["total"]


def test_the_month_stays_on_the_price_that_it_began_with(house, call):
    call(rate, "run", "--period", "2026-10")
    call(rate, "run", "--period", "2026-11")
    # 1000 x 0.10 + 500 x 0.04, all of it at the old price, and the base fee; 62.00 at least is reached.
    assert invoice(call, "2026-10") == ([("base", "31.00"), ("calls", "120.00")], "151.00")
    # 100 x 0.15 at the new one; 62.00 - 31.00 - 15.00.
    lines = [("base", "31.00"), ("calls", "15.00"), ("least", "16.00")]
    assert invoice(call, "2026-11") == (lines, "62.00")


def test_rated_in_two_parts_the_price_changes_on_the_day_and_the_tiers_go_on(house, call):
    first, second = "2026-10-01..2026-10-16", "2026-10-16..2026-11-01"
    call(rate, "close", "--period", first)
    call(rate, "close", "--period", second)
    # 15 of 31 days of the base fee; 800 x 0.10. The minimum is compared in the last part.
    assert invoice(call, first) == ([("base", "15.00"), ("calls", "80.00")], "95.00")
    # 16 days; of 700 calls 200 are left in the first tier, 200 x 0.15, and 500 are in the second, 500 x 0.06.
    assert invoice(call, second) == ([("base", "16.00"), ("calls", "60.00")], "76.00")
