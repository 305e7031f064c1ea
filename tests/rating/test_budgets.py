"""Budgets from the registry to what the collector serves: how they stand, notices, pauses, raises, plan limits."""

import json
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import insert, update
from sqlalchemy.exc import DBAPIError
from typer.testing import CliRunner

from meterhouse_billing import budget_mirror, budget_output, budget_round, notice_texts, notices
from meterhouse_billing.budget_commands import budgets as command
from meterhouse_billing.budget_periods import period_of
from meterhouse_rating import costs_book, credit_changes
from meterhouse_rating.costs_entries import Entry
from meterhouse_rating.credits import BOUGHT, Grant
from meterhouse_rating.explain import sentences
from meterhouse_store import budgets, tables
from meterhouse_store.brand import Brand
from meterhouse_store.budgets import MONEY, PREPAID, UNITS, Budget, Policy
from meterhouse_store.registry import ALWAYS, RegistryError

D = Decimal
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
BOOK = """
book: own
currency: USD
metrics:
  tokens: {unit: token, meters: [llm.tokens.input, llm.tokens.output]}
  talks: {unit: conversation, meters: [agent.conversations]}
unbilled: {meters: [llm.requests]}
plans:
  pay:
    components:
      fee: {model: recurring, price: 49.00}
      tokens: {model: per_unit, metric: tokens, per: 1000, price: 2.00}
      talks: {model: per_unit, metric: talks, price: 0.50}
  free:
    components:
      talks: {model: included, metric: talks, included: 100, beyond: none}
      tokens: {model: graduated, metric: tokens, per: 1000, tiers: [{up_to: 1000, price: 3.00}, {price: 1.00}]}
"""


@pytest.fixture(params=["sqlite_house"])
def acme(request):
    """A house with customer acme on plan pay; everything up to now is in the warehouse."""
    return _acme(request.getfixturevalue(request.param))


def _acme(house):
    house.publish(BOOK, valid_from=datetime(2026, 1, 1, tzinfo=UTC))
    house.customer("acme", "pay")
    house.collected("2026-11-21T12:00:00")
    return house


def put(house, now=NOW, **terms):
    budget = Budget("acme", **({"name": "b", "measure": UNITS, "limit": D(100), "of": "agent.conversations"} | terms))
    budgets.set_budget(house.world.engine, "test", budget, who="ann", why="agreed", now=now)
    return budget


def talks(house, number, when="2026-11-20T10:00:00", **more):
    house.event("acme", "agent.conversations", str(number), when, **more)


def apply(house):
    return budget_round.run(house.world)


def limits(house):
    (row,) = house.rows(tables.allowances)
    return {it["name"]: (it["left"], it["weights"], it["reason"]) for it in row["limits"]}


def kinds(house):
    found = sorted(house.rows(tables.notices), key=lambda row: (row["kind"], row["facts"].get("threshold_percent", 0)))
    return [(row["kind"], row["facts"].get("threshold_percent")) for row in found]


def test_units_are_served_and_each_threshold_is_told_once(house):
    acme = _acme(house)
    put(acme)
    talks(acme, 79)
    talks(acme, 5, status="failed")  # the book does not bill them
    talks(acme, 50, "2026-10-31T23:00:00")  # last month's
    assert apply(acme).notices == 1 and kinds(acme) == [("budget_threshold", 50)]
    assert limits(acme) == {"b": ("21.000000000", {"agent.conversations": "1"}, "hard_cap")}
    talks(acme, 21)
    assert apply(acme).notices == 3 and apply(acme).notices == 0
    assert kinds(acme) == [("budget_cap", None), *[("budget_threshold", percent) for percent in (50, 80, 100)]]
    (cap,) = [row for row in acme.rows(tables.notices) if row["kind"] == "budget_cap"]
    assert cap["subject"] == (
        "acme is at its cap b (100 of 100 agent.conversations, 2026-11-01..2026-12-01): model calls are paused"
    )
    talks(acme, 1)
    apply(acme)
    (over,) = [row for row in acme.rows(tables.notices) if row["kind"] == "over_cap"]
    assert (over["facts"]["over"], "that is not billed, unless" in over["subject"]) == ("1", True)


def test_what_a_customer_in_tokyo_is_told_has_the_dates_and_the_name_of_its_zone(acme):
    acme.customer("acme", time_zone="Asia/Tokyo")
    put(acme, per="day", bill_over=True)
    talks(acme, 100, "2026-11-20T15:30:00")  # 21 November in Tokyo
    budgets.pause(acme.world.engine, "test", "acme", who="ann", why="w", now=NOW)
    apply(acme)
    told = {row["kind"]: row for row in acme.rows(tables.notices)}
    day = "2026-11-21..2026-11-22 Asia/Tokyo"
    assert told["budget_cap"]["subject"].endswith(f"(100 of 100 agent.conversations, {day}): model calls are paused")
    said = notice_texts.of("budget_cap", "acme", "", told["budget_cap"]["facts"], Brand()).text
    assert "Period  2026-11-21 to 2026-11-22 Asia/Tokyo\n" in said
    said = notice_texts.of("paused", "acme", "", told["paused"]["facts"], Brand()).text
    assert "paused since 2026-11-21 21:00 Asia/Tokyo." in said


def test_money_is_what_the_month_s_usage_costs_now_and_is_served_at_the_highest_price(acme):
    put(acme, name="money", measure=MONEY, limit=D(100), of="")
    acme.event("acme", "llm.tokens.input", "30000", "2026-11-20T10:00:00")  # 60.00
    talks(acme, 20)  # 10.00
    (state,) = apply(acme).states
    assert (state.used, state.limit, state.currency) == (D(70), D(100), "USD")  # the fee of 49.00 is no usage
    prices = {"llm.tokens.input": "0.002", "llm.tokens.output": "0.002", "agent.conversations": "0.5"}
    assert {name: D(it) for name, it in limits(acme)["money"][1].items()} == {k: D(v) for k, v in prices.items()}
    assert kinds(acme) == [("budget_threshold", 50)]


def test_money_of_a_month_of_which_a_part_was_closed_by_hand_is_that_part_s_and_the_rest_s(acme):
    put(acme, name="money", measure=MONEY, limit=D(100), of="")
    talks(acme, 8, "2026-10-15T10:00:00")  # of the month before, which is not closed
    talks(acme, 30, "2026-10-25T10:00:00")  # 15.00: closed with what lies across the edge, and counts where that ends
    talks(acme, 20, "2026-11-05T10:00:00")  # 10.00
    acme.close("2026-10-20T00:00:00Z..2026-11-10T00:00:00Z")
    talks(acme, 40, "2026-11-20T10:00:00")  # 20.00, of the rest
    (state,) = apply(acme).states
    assert (state.used, state.trouble) == (D(45), "")
    acme.close("2026-11-10T00:00:00Z..2026-11-21T00:00:00Z")
    assert apply(acme).states[0].used == D(45)


MARKED_UP = """
book: markup
currency: USD
metrics:
  tools: {unit: call, meters: [tool.calls]}
  pages: {unit: page, meters: [llm.pages]}
  audio: {unit: second, meters: [llm.audio.seconds]}
unbilled: {meters: [llm.requests]}
plans:
  pay:
    components:
      tools: {model: cost_plus, metric: tools, markup: 50, fee: 0.001}
      pages: {model: formula, inputs: {p: pages}, amount: "p * 0.05"}
      audio: {model: cost_plus, metric: audio, markup: 100}
"""


def test_money_of_a_month_in_parts_goes_on_from_part_to_part(sqlite_house):
    """On plan free since September, on plan pay from 11 November on, whose talks go on where those of free ended."""
    house = sqlite_house
    carry_on = "currency: USD\nplan_changes: {apply: at_once, usage: carry_on}"
    tiers = "talks: {model: graduated, metric: talks, tiers: [{up_to: 100, price: 0.50}, {price: 0.20}]}"
    book = BOOK.replace("currency: USD", carry_on).replace(
        "talks: {model: per_unit, metric: talks, price: 0.50}", tiers
    )
    house.publish(book, valid_from=datetime(2026, 1, 1, tzinfo=UTC))
    house.customer("acme", "free", valid_from=datetime(2026, 9, 1, tzinfo=UTC))
    house.customer("acme", "pay", valid_from=datetime(2026, 11, 11, tzinfo=UTC))
    house.collected("2026-11-21T12:00:00")
    put(house, measure=MONEY, limit=D(100), of="")
    talks(house, 90, "2026-11-05T10:00:00")  # included
    talks(house, 30)  # 10 at 0.50, 20 at 0.20
    apply(house)
    assert D(limits(house)["b"][0]) == 91


def test_what_a_provider_asks_next_is_not_known_and_said_to_be_so(sqlite_house, capsys):
    """Three tools cost 0.01 to 0.04 a call: the dearest is 0.04 x 1.5 + 0.001 = 0.061 to the customer, and 2 x 0.05 of
    what was used of pages is 0.10. Nobody used audio."""
    house = sqlite_house
    house.publish(MARKED_UP, valid_from=datetime(2026, 1, 1, tzinfo=UTC))
    house.customer("acme", "pay")
    for tool, price in (("echo", "0.02"), ("fetch", "0.04"), ("search", "0.01"), ("never", "5")):
        entry = Entry("tool.calls", D(price), currency="USD", valid_from=ALWAYS, why="agreed", who="ann", tool=tool)
        costs_book.add(house.world.engine, "test", [entry], datetime(2026, 10, 1, tzinfo=UTC))
    for tool, number in (("echo", "1"), ("fetch", "1"), ("search", "100")):
        house.event("acme", "tool.calls", number, "2026-11-20T10:00:00", tool=tool)
    house.event("acme", "llm.pages", "10", "2026-11-20T10:00:00")
    house.collected("2026-11-21T12:00:00")
    put(house, name="money", measure=MONEY, limit=D(100), of="")
    done = apply(house)
    weights = {"tool.calls": D("0.061"), "llm.pages": D("0.1")}
    assert {name: D(it) for name, it in limits(house)["money"][1].items()} == weights
    assert budget_output.as_json(done)["budgets"][0]["not_known_ahead"] == {
        "llm.audio.seconds": "nothing, until it has cost something",
        "llm.pages": "twice what it cost so far this month",
        "tool.calls": "the most that a provider asked for it this month, marked up",
    }
    budget_output.print_round(done, {"acme": "UTC"})
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("! acme, money: ")]
    assert len(told) == 3
    assert told[2] == (
        "! acme, money: what one more unit of tool.calls costs is not known before it is used. Agents are granted it "
        "at the most that a provider asked for it this month, marked up, and may pass the cap by what it costs more. "
        "To hold it, add a budget of units (--units N --of METER)"
    )


def test_a_day_s_money_and_an_agent_s_are_what_the_month_costs_more_with_them(acme):
    acme.customer("globex", "free")
    for name, terms in {
        "day": {"per": "day"},
        "agent": {"agent_id": "bot"},
        "both": {"per": "day", "agent_id": "bot"},
    }.items():
        budget = Budget("globex", name, MONEY, D(50), bill_over=True, **terms)
        budgets.set_budget(acme.world.engine, "test", budget, who="ann", why="agreed", now=NOW)
    for tokens, when, agent in (
        ("800", "2026-11-20", "bot"),
        ("1200", "2026-11-21", ""),
        ("2000", "2026-11-21", "bot"),
    ):
        acme.event("globex", "llm.tokens.input", tokens, f"{when}T10:00:00", agent_id=agent)
    # 4000 tokens: 3.00 for the first thousand, 3.00 for the rest; 2.40 up to yesterday, 3.20 without the bot; without
    # what the bot used today, 4.00.
    used = {it.budget.name: it.used for it in apply(acme).states if it.budget.measure == MONEY}
    assert used == {"day": D("3.6"), "agent": D("2.8"), "both": D(2)}


def test_a_plan_without_more_stops_at_what_it_includes_until_it_is_raised_or_acknowledged(acme):
    acme.customer("globex", "free")
    acme.event("globex", "agent.conversations", "100", "2026-11-20T10:00:00")
    (state,) = apply(acme).states
    assert (state.budget.name, state.limit, state.left, state.caps) == ("plan:talks", D(100), D(0), True)
    who = {"who": "ann", "why": "a good customer", "now": NOW}
    budgets.raise_limit(acme.world.engine, "test", state.budget, D(150), state.period.start, **who)
    (state,) = apply(acme).states
    assert (state.left, limits(acme)["plan:talks"][0]) == (D(50), "50.000000000")
    budgets.acknowledge(acme.world.engine, "test", state.budget, state.period.start, **who)
    (state,) = apply(acme).states
    assert not state.caps and acme.rows(tables.allowances)[0]["limits"] == []
    acme.at(datetime(2026, 12, 2, tzinfo=UTC))
    (state,) = apply(acme).states
    assert (state.limit, state.used, state.caps) == (D(100), D(0), True)  # a new month has neither


def test_a_prepaid_balance_is_what_is_there_of_credits(acme):
    grant = Grant("", BOUGHT, 2500, datetime(2026, 11, 1, tzinfo=UTC), None, 0, 0)
    credit_changes.grant(
        acme.world.engine, "test", "acme", grant, "USD", reference="", who="ann", why="paid", now=NOW, write=True
    )
    put(acme, name="prepaid", measure=PREPAID, limit=D(0), of="")
    talks(acme, 30)  # 15.00 of 25.00
    (state,) = apply(acme).states
    assert (state.limit, state.used, state.left) == (D(25), D(15), D(10))
    talks(acme, 20)
    (state,) = apply(acme).states
    assert (state.left, limits(acme)["prepaid"][2]) == (D(0), "prepaid_used")


def test_one_reason_s_pause_leaves_the_others_and_is_served_at_once(acme):
    engine, who = acme.world.engine, {"who": "ann", "why": "card declined", "now": NOW}
    assert budgets.pause(engine, "test", "acme", budgets.PAYMENT_FAILED, **who)
    assert not budgets.pause(engine, "test", "acme", budgets.PAYMENT_FAILED, **who)
    assert budgets.pause(engine, "test", "acme", **who)
    both = [{"agent_id": "", "reason": "operator"}, {"agent_id": "", "reason": "payment_failed"}]
    assert acme.rows(tables.allowances)[0]["pauses"] == both
    assert budgets.lift(engine, "test", "acme", budgets.PAYMENT_FAILED, **who)
    assert acme.rows(tables.allowances)[0]["pauses"] == both[:1]
    apply(acme)
    assert acme.rows(tables.allowances)[0]["pauses"] == both[:1]
    assert [row["facts"]["reason"] for row in acme.rows(tables.notices)] == ["operator"]
    assert budgets.lift(engine, "test", "acme", **who) and not budgets.lift(engine, "test", "acme", **who)
    apply(acme)
    assert acme.rows(tables.allowances) == []
    with pytest.raises(RegistryError, match="say why"):
        budgets.pause(engine, "test", "acme", who="ann", why=" ", now=NOW)
    with pytest.raises(DBAPIError, match="rows are never changed"), engine.begin() as connection:
        connection.execute(update(tables.pause_changes).values(state="off"))


def test_what_arrived_of_a_lease_is_used_and_no_longer_reserved(acme):
    put(acme)
    lease = {"namespace": "test", "customer_id": "acme", "agent_id": "", "process_id": "p"}
    lease |= {"granted_at": datetime(2026, 11, 1, tzinfo=UTC)}
    lease |= {"lease_id": "lease-1", "granted": {"b": "10"}, "used": {"agent.conversations": "30"}, "arrived": {}}
    with acme.world.engine.begin() as connection:
        connection.execute(insert(tables.leases).values(**lease, expires_at=NOW + timedelta(seconds=60)))
    done = apply(acme)
    assert (done.states[0].used, done.reserved(done.states[0])) == (0, 40)
    talks(acme, 25, "2026-11-21T11:00:00", lease_id="lease-1")
    talks(acme, 3, "2026-10-31T23:59:59", lease_id="lease-1")  # of the month before: arrived, and not this month's
    done = apply(acme)
    assert (done.states[0].used, done.reserved(done.states[0])) == (25, 12)
    acme.at(NOW + timedelta(minutes=17))
    assert apply(acme).states[0].used == 25 and acme.rows(tables.leases) == []


def test_an_earlier_round_never_replaces_what_a_later_one_wrote(acme):
    put(acme)
    talks(acme, 60)
    later = apply(acme)
    acme.at(later.now - timedelta(seconds=5))
    acme.world.client.command("TRUNCATE TABLE events")
    apply(acme)
    assert limits(acme)["b"][0] == "40.000000000"


def test_a_budget_that_cannot_be_worked_out_stops_nobody_and_says_why(acme):
    put(acme, of="pages")
    (state,) = apply(acme).states
    assert state.trouble == "pages is neither a meter nor a metric of the price book" and not state.caps
    with pytest.raises(RegistryError, match=r"day, week or month; .*above 0; units are of a meter.*--bill-over"):
        put(acme, per="year", limit=D(0), of="")


def october(house, **terms):
    """October closed, with a cap: the discounts of its invoice, and its total."""
    put(house, datetime(2026, 10, 5, tzinfo=UTC), **terms)
    house.collected("2026-11-05T00:00:00")
    house.run()
    (rating,) = house.rows(tables.ratings)
    lines = [row for row in house.rows(tables.rated_lines) if row["kind"] == "discount"]
    return [(row["description"], row["amount_minor"]) for row in lines], rating["total_minor"]


def test_units_above_a_hard_cap_are_not_billed_as_if_usage_had_ended_there(acme):
    acme.event("acme", "agent.conversations", "130", "2026-10-10T00:00:00")
    found, total = october(acme)
    assert found == [("Above the cap of 100 agent.conversations: not billed", -1500)]  # 30 at 0.50
    assert total == 4900 + 5000
    acme.customer("acme", "free", valid_from=datetime(2026, 9, 1, tzinfo=UTC))
    acme.event("acme", "llm.tokens.input", "900", "2026-10-10T00:00:00", model="a")
    acme.event("acme", "llm.tokens.output", "600", "2026-10-10T00:00:00", model="b")
    put(acme, datetime(2026, 10, 5, tzinfo=UTC), name="tokens", of="tokens", limit=D(1200))
    acme.run()
    (rating,) = acme.rows(tables.ratings)
    # 1500 tokens are 3.00 and 0.50; 1200 are 3.00 and 0.20. Conversations: 100 are included, the rest is unrated.
    assert rating["total_minor"] == 320
    assert [row["amount_minor"] for row in acme.rows(tables.rated_lines) if row["kind"] == "discount"] == [-30]


def test_a_cap_of_one_metric_takes_nothing_off_the_lines_of_another_and_names_its_budget(acme):
    acme.event("acme", "agent.conversations", "130", "2026-10-10T00:00:00")  # 65.00
    acme.event("acme", "llm.tokens.input", "30000", "2026-10-10T00:00:00")  # 60.00
    found, total = october(acme, name="talks")
    assert (found, total) == ([("Above the cap of 100 agent.conversations: not billed", -1500)], 4900 + 5000 + 6000)
    (line,) = [row for row in acme.rows(tables.rated_lines) if row["kind"] == "discount"]
    assert line["explanation"]["steps"] == [{"off": "talks", "amount": "-15.00"}]
    (rating,) = acme.rows(tables.ratings)
    said = sentences(line | rating)
    assert "Off talks: -15 USD." in said
    assert (
        "Taken off before the minimum commitment, by the cap of the budget talks (`meterhouse budgets show CUSTOMER`)."
        in said
    )
    # A cap of money is of all that has usage, and says what of each: 25.00 of 125.00, as 60 to 65.
    put(acme, datetime(2026, 10, 5, tzinfo=UTC), name="talks", limit=D(1000))
    put(acme, datetime(2026, 10, 5, tzinfo=UTC), name="money", measure=MONEY, limit=D(100), of="")
    acme.run()
    (line,) = [row for row in acme.rows(tables.rated_lines) if row["kind"] == "discount"]
    assert line["explanation"]["steps"] == [
        {"off": "tokens", "amount": "-12.00"}, {"off": "talks", "amount": "-13.00"},
    ]  # fmt: skip


def test_a_cap_says_nothing_of_months_before_it_was_set_or_set_anew(acme):
    talks(acme, 130, "2026-10-10T00:00:00")  # 65.00
    cap = {"name": "money", "measure": MONEY, "limit": D(10), "of": ""}
    put(acme, datetime(2026, 11, 1, tzinfo=UTC), **cap)
    acme.run()
    assert acme.rows(tables.ratings)[0]["total_minor"] == 4900 + 6500
    put(acme, datetime(2026, 10, 31, 23, 59, tzinfo=UTC), **cap | {"name": "units", "limit": D(60)})
    put(acme, datetime(2026, 11, 2, tzinfo=UTC), **cap | {"name": "units", "limit": D(20)})
    acme.run()
    assert acme.rows(tables.ratings)[0]["total_minor"] == 4900 + 6000


def test_money_above_a_hard_cap_is_not_billed_unless_the_cap_says_so_or_it_is_acknowledged(acme):
    talks(acme, 130, "2026-10-10T00:00:00")  # 65.00
    cap = {"name": "money", "measure": MONEY, "limit": D("50.005"), "of": ""}
    found, total = october(acme, **cap)
    assert found == [("Above the cap of 50.005 USD: not billed", -1500)]  # the cap is 50.00 in whole cents
    assert total == 4900 + 5000
    acme.run()
    assert acme.rows(tables.ratings)[0]["total_minor"] == 9900
    october_start = datetime(2026, 10, 1, tzinfo=UTC)
    budget = budgets.standing(budgets.changes(acme.world.engine, "test"))[0]
    who = {"who": "ann", "why": "wanted", "now": NOW}
    budgets.raise_limit(acme.world.engine, "test", budget, D(60), october_start, **who)
    acme.run()
    assert acme.rows(tables.ratings)[0]["total_minor"] == 4900 + 6000
    budgets.acknowledge(acme.world.engine, "test", budget, october_start, **who)
    acme.run()
    assert acme.rows(tables.ratings)[0]["total_minor"] == 4900 + 6500
    put(acme, datetime(2026, 10, 31, tzinfo=UTC), **cap | {"bill_over": True})
    acme.close()
    (rating,) = acme.rows(tables.ratings)
    assert (rating["state"], rating["total_minor"]) == ("closed", 11400)


def test_periods_are_the_customer_s_own_also_where_clocks_change():
    moment = datetime(2026, 10, 25, 12, tzinfo=UTC)
    found = {per: period_of(moment, per, "Europe/Berlin") for per in ("day", "week", "month")}
    assert {per: str(it) for per, it in found.items()} == {
        "day": "2026-10-24T22:00:00Z..2026-10-25T23:00:00Z",
        "week": "2026-10-18T22:00:00Z..2026-10-25T23:00:00Z",
        "month": "2026-09-30T22:00:00Z..2026-10-31T23:00:00Z",
    }


def test_the_commands_set_show_raise_acknowledge_pause_and_remove(acme, command_environment, monkeypatch):
    for name, value in command_environment(acme).items():
        monkeypatch.setenv(name, value)
    acme.customer("acme", time_zone="Asia/Tokyo")
    tokyo = datetime.now(ZoneInfo("Asia/Tokyo"))
    talks(acme, 90, f"{tokyo.replace(day=1, hour=0, minute=0, second=0).astimezone(UTC):%Y-%m-%dT%H:%M:%S}")
    acme.collected(datetime.now(UTC).replace(tzinfo=None).isoformat(), position=2000)

    def call(*arguments, code=0):
        done = CliRunner().invoke(command, list(arguments))
        assert done.exit_code == code, done.output
        return done.stdout

    why = ("--why", "agreed", "--by", "ann")
    talk = ("acme", "--units", "100", "--of", "agent.conversations")
    assert json.loads(call("set", *talk, *why, "--dry-run", "--json"))["budgets"][0]["left"] == "10"
    for wrong in (("set", "acme", "--amount=-1"), ("set", "acme", "--amount=5", "--thresholds", "0")):
        call(*wrong, *why, "--dry-run", code=1)
    assert "No budgets" in call("list")
    assert "90     0    100  agent.conversations  90 %  open" in call("set", *talk, *why)
    found = json.loads(call("raise", "acme", "agent.conversations", "--to", "200", *why, "--json"))
    assert (found["budgets"][0]["limit"], found["budgets"][0]["left"], found["dry_run"]) == ("200", "110", False)
    call("raise", "acme", "agent.conversations", "--to", "150", *why, "--dry-run", code=1)
    assert "acknowledged" in call("acknowledge", "acme", "agent.conversations", *why)
    assert "acme is paused: operator (agreed)" in call("pause", "acme", *why)
    shown = call("show", "acme")
    assert f"{tokyo:%Y-%m}-01.." in shown and re.search(r"acme is paused since \S+ \S+ Asia/Tokyo:", shown)
    # The changes, on the customer's clocks and not as they are stored.
    assert len(re.findall(r"20\d\d-\d\d-\d\d \d\d:\d\d Asia/Tokyo  agent.conv.* ann ", shown)) == 3
    assert "+00:00" not in shown
    for unknown in (("show", "nosuch"), ("list", "--customer", "nosuch")):
        call(*unknown, code=1)
    assert "acme is not paused" in call("unpause", "acme", *why)
    assert "acme: pauses at a task; pause while" in call(
        "policy", "acme", "--pause-at", "task", "--on-unreachable", "pause", *why
    )
    (row,) = acme.rows(tables.allowances)
    assert (row["pause_at"], row["on_unreachable"], row["limits"]) == ("task", "pause", [])
    assert "No budgets" in call("remove", "acme", "agent.conversations", *why)
    call("raise", "acme", "agent.conversations", "--to", "9", *why, code=1)
    call("set", "acme", *why, code=2)
    with pytest.raises(RegistryError, match="pause_at is call or task"):
        budgets.set_policy(acme.world.engine, "test", "acme", Policy("never"), who="a", why="b", now=NOW)


def in_the_warehouse(house, view, *columns):
    answer = house.world.client.query(f"SELECT {', '.join(columns)} FROM {view} ORDER BY ALL")
    return [tuple(row) for row in answer.result_rows]


def test_the_warehouse_has_budgets_pauses_and_notices_as_the_last_round_found_them(house):
    acme = _acme(house)
    put(acme)
    put(acme, name="money", measure=MONEY, limit=D(10), of="", hard=False)
    budgets.pause(acme.world.engine, "test", "acme", who="ann", why="key leaked", now=NOW)
    notices.add_channel(acme.world.engine, "test", "", "ops@example.com", [], who="ann", now=NOW)
    talks(acme, 40)
    held = {"lease_id": "l", "customer_id": "acme", "agent_id": "", "process_id": "p", "used": {}, "arrived": {}}
    held |= {"namespace": "test", "granted_at": NOW, "expires_at": NOW + timedelta(seconds=60)}
    with acme.world.engine.begin() as connection:
        connection.execute(insert(tables.leases).values(**held, granted={"b": "12.5"}))
    budget_mirror.copy(acme.world, apply(acme))
    shown = "budget", "unit", "cap", "used", "reserved", "left", "share", "state"
    assert in_the_warehouse(acme, "budgets", *shown) == [
        ("b", "agent.conversations", D(100), D(40), D("12.5"), D("47.5"), 0.4, "open"),
        ("money", "USD", D(10), D(20), D(0), D(0), 2.0, "over"),
    ]
    assert in_the_warehouse(acme, "pauses", "customer_id", "reason", "why") == [("acme", "operator", "key leaked")]
    # 50, 80 and 100 per cent of the money, and the pause.
    assert in_the_warehouse(acme, "notices_due", "kind", "channel", "state", "deliveries") == [
        ("budget_threshold", "email", "pending", 3), ("paused", "email", "pending", 1),
    ]  # fmt: skip
    # What holds no longer is gone, and nothing else is written again so soon.
    acme.at(NOW + timedelta(seconds=10))
    budgets.remove(acme.world.engine, "test", Budget("acme", "money", MONEY, D(10)), who="ann", why="w", now=NOW)
    budgets.lift(acme.world.engine, "test", "acme", who="ann", why="replaced", now=NOW + timedelta(seconds=5))
    budget_mirror.copy(acme.world, apply(acme))
    assert in_the_warehouse(acme, "budgets", "budget", "looked_at") == [("b", NOW.replace(tzinfo=None))]
    assert in_the_warehouse(acme, "pauses", "reason") == []
    acme.at(NOW + timedelta(seconds=40))
    budget_mirror.copy(acme.world, apply(acme))
    seen = (NOW + timedelta(seconds=40)).replace(tzinfo=None)
    assert in_the_warehouse(acme, "budgets", "budget", "looked_at") == [("b", seen)]
