"""Costs from SQL to the view `costs`: entries, price lists, what is unknown, and the commands."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import delete, update
from sqlalchemy.exc import DBAPIError
from typer.testing import CliRunner

from meterhouse_rating import catalogues, costs_book, costs_rates
from meterhouse_rating.costs_book import CostsRefused
from meterhouse_rating.costs_commands import costs as costs_app
from meterhouse_rating.costs_entries import DECLARED, NEGOTIATED, Entry
from meterhouse_store import rollups
from meterhouse_store.registry import ALWAYS
from meterhouse_store.tables import cost_entries

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
SONNET = {"provider": "anthropic", "model": "claude-sonnet-4-5-20250929", "usage_source": "reported"}


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def entry(meter: str, price: str, **more: Any) -> Entry:
    said = {"currency": "USD", "valid_from": ALWAYS, "why": "agreed", "who": "test"} | more
    return Entry(meter, Decimal(price), **said)


def imported(house: Any, **more: Any) -> costs_book.Pinned:
    said = {"valid_from": None, "now": NOW, "who": "test", "why": "imported"} | more
    return costs_book.pin(house.world.engine, "test", catalogues.text(), **said)[0]


def put(house: Any, *entries: Entry, now: datetime = NOW) -> list[str]:
    return [it.entry_id for it, _ in costs_book.add(house.world.engine, "test", entries, now)]


def costs(house: Any, columns: str = "cost, currency, cost_status, cost_reason") -> list[tuple[Any, ...]]:
    house.collected()
    costs_rates.refresh(house.world)
    by_day_costs_the_same(house)
    query = f"SELECT {columns} FROM costs WHERE namespace = 'test' ORDER BY event_time, meter, event_id"
    return [tuple(row) for row in house.world.client.query(query).result_rows]


DAILY = "day, billed_customer_id, meter, provider, model, tool, agent_name, step, status, currency, cost_status"


def by_day_costs_the_same(house: Any) -> None:
    """Dashboards read sums of days: they come to what the events cost, of whatever prices."""
    rollups.roll_up(house.world.client, settled_s=0)
    ask = house.world.client.query
    by_day = f"SELECT {DAILY}, sum(events), sum(costing), sum(cost) FROM costs_by_day GROUP BY {DAILY} ORDER BY ALL"
    events = (
        f"SELECT {DAILY.replace('day', 'toDate(event_time) AS day', 1)}, count(), countIf(cost != 0), sum(cost) "
        f"FROM costs GROUP BY {DAILY} ORDER BY ALL"
    )
    assert ask(by_day).result_rows == ask(events).result_rows


def amounts(house: Any) -> list[str]:
    return [
        reason if cost is None else f"{cost.normalize():f} {currency}" for cost, currency, _, reason in costs(house)
    ]


def test_a_call_costs_what_the_price_list_says_of_each_of_its_buckets(sqlite_house: Any) -> None:
    house = sqlite_house
    imported(house)
    call = SONNET | {"call_id": "c1"}
    for meter, quantity, more in (
        ("llm.tokens.input", "1000", {}),
        ("llm.tokens.cache_read", "20000", {}),
        ("llm.tokens.cache_write", "3000", {"cache_ttl": "1h"}),
        ("llm.tokens.output", "500", {}),
        ("llm.tokens.reasoning", "100", {}),
        ("llm.requests", "1", {}),
    ):
        house.event("acme", meter, quantity, "2026-10-20T10:00:00", **call, **more)
    # By meter: free, 20,000 at 0.30, 3,000 at 6, 1,000 at 3, 500 and 100 at 15 per million.
    assert amounts(house) == ["0 USD", "0.006 USD", "0.018 USD", "0.003 USD", "0.0075 USD", "0.0015 USD"]
    assert {status for (status,) in costs(house, "cost_status")} == {"known", "free"}
    named = costs(house, "cost_entry")[1][0]
    assert named.endswith("/anthropic/claude-sonnet-4-5 cache_read_mtok")


def test_sums_of_days_are_exact_to_the_last_digit_also_where_a_quotient_does_not_end(sqlite_house: Any) -> None:
    house = sqlite_house
    put(house, entry("agent.seconds", "0.1", per=3600), entry("api.calls", "0.123456789012345678", per=10**9))
    for hour in ("10", "11"):
        house.event("acme", "agent.seconds", "1", f"2026-10-20T{hour}:00:00")
        house.event("acme", "api.calls", "0.5", f"2026-10-20T{hour}:00:00")
    each, seconds = Decimal("0.000000000061728394506172839"), Decimal("0.000027777777777777777777777777777777")
    assert costs(house, "cost") == [(seconds,), (each,)] * 2  # and by the day twice that
    by_day = "SELECT sum(cost) FROM costs_by_day WHERE meter = 'api.calls'"
    assert house.world.client.query(by_day).first_row == (Decimal("0.000000000123456789012345678"),)


def test_a_request_above_a_tier_costs_more_in_all_of_its_buckets_and_another_one_does_not(sqlite_house: Any) -> None:
    house = sqlite_house
    imported(house)
    for call, read in (("small", "150000"), ("big", "150001")):
        when = {"small": "2026-10-20T10:00:00", "big": "2026-10-20T11:00:00"}[call]
        house.event("acme", "llm.tokens.cache_read", read, when, **SONNET, call_id=call)
        house.event("acme", "llm.tokens.input", "50000", when, **SONNET, call_id=call)
        house.event("acme", "llm.tokens.output", "1000", when, **SONNET, call_id=call)
    # 200,000 tokens: 0.30, 3 and 15 per million; 200,001: 0.60, 6 and 22.50.
    assert amounts(house) == ["0.045 USD", "0.15 USD", "0.015 USD", "0.0900006 USD", "0.3 USD", "0.0225 USD"]


def test_tokens_whose_request_is_not_known_have_no_cost_where_it_depends_on_the_request(sqlite_house: Any) -> None:
    house = sqlite_house
    imported(house)
    loop = SONNET | {"usage_source": "framework"}
    house.event("acme", "llm.tokens.input", "10", "2026-10-20T10:00:00", **SONNET)
    house.event("acme", "llm.tokens.input", "300000", "2026-10-20T11:00:00", **loop, call_id="session")
    house.event("acme", "llm.tokens.input", "200000", "2026-10-20T12:00:00", **loop, call_id="short session")
    house.event(
        "acme", "llm.tokens.input", "10", "2026-10-20T13:00:00", provider="openai", model="gpt-4o-mini"
    )  # which has no tiers
    assert amounts(house) == ["context_unknown", "context_unknown", "0.6 USD", "0.0000015 USD"]


def test_a_call_that_nobody_knows_the_usage_of_has_no_cost_but_a_refused_one_cost_nothing(sqlite_house: Any) -> None:
    house = sqlite_house
    imported(house)
    put(house, entry("llm.requests", "0", source=DECLARED, service_tier="*"))
    lost = {"provider": "openai", "model": "", "usage_source": "none"}
    house.event("acme", "llm.requests", "1", "2026-10-20T10:00:00", **lost, status="unfinished")
    house.event("acme", "llm.requests", "1", "2026-10-20T11:00:00", **lost, status="aborted")
    house.event("acme", "llm.requests", "1", "2026-10-20T12:00:00", **lost, status="failed")
    house.event("acme", "llm.requests", "1", "2026-10-20T13:00:00", provider="openai", model="", status="failed")
    assert amounts(house) == ["usage_unknown", "usage_unknown", "0 USD", "0 USD"]


def test_unknown_costs_are_null_with_a_reason_and_become_known_when_they_are_set(sqlite_house: Any) -> None:
    house = sqlite_house
    house.event("acme", "llm.tokens.input", "1000", "2026-10-20T10:00:00", provider="ollama", model="llama3")
    house.event("acme", "tool.calls", "1", "2026-10-20T11:00:00", tool="search")
    house.event("acme", "tool.calls", "1", "2026-10-20T12:00:00", tool="clock")
    assert amounts(house) == ["no_catalogue", "no_entry", "no_entry"]
    imported(house)
    assert amounts(house) == ["provider_unknown", "no_entry", "no_entry"]
    put(house, entry("tool.calls", "0", source=DECLARED), entry("tool.calls", "5", per=1000, tool="search"))
    put(house, entry("llm.tokens.*", "0.2", per=10**6, provider="ollama", model="llama*"))
    assert amounts(house) == ["0.0002 USD", "0.005 USD", "0 USD"]


def test_usage_that_came_after_the_rates_were_resolved_is_unknown_until_they_are_again(sqlite_house: Any) -> None:
    house = sqlite_house
    put(house, entry("tool.calls", "1"))
    house.event("acme", "tool.calls", "1", "2026-10-20T10:00:00", tool="a")
    assert amounts(house) == ["1 USD"]
    house.event("acme", "tool.calls", "1", "2026-10-20T11:00:00", tool="b", received="2026-11-21T11:59:00")
    query = "SELECT cost, cost_reason FROM costs WHERE tool = 'b'"
    assert house.world.client.query(query).result_rows == [(None, "not_resolved")]
    assert amounts(house) == ["1 USD", "1 USD"]
    # Of a journal that was fetched: received long ago. All usage is looked through again once a day.
    house.event("acme", "tool.calls", "1", "2026-10-20T12:00:00", tool="c")
    assert amounts(house) == ["1 USD", "1 USD", "not_resolved"]
    house.at(NOW + timedelta(days=1))
    assert amounts(house) == ["1 USD", "1 USD", "1 USD"]


def test_a_price_that_changes_within_a_day_is_that_of_each_event(sqlite_house: Any) -> None:
    house = sqlite_house
    put(house, entry("tool.calls", "1"))
    put(house, entry("tool.calls", "3", valid_from=at("2026-10-20T12:00:00")), now=NOW + timedelta(minutes=1))
    for hour in (11, 12, 13):
        house.event("acme", "tool.calls", "1", f"2026-10-20T{hour}:00:00", tool="a")
    house.event("acme", "tool.calls", "1", "2026-10-21T01:00:00", tool="a")
    assert amounts(house) == ["1 USD", "3 USD", "3 USD", "3 USD"]


def test_a_later_entry_supersedes_from_its_time_on_and_a_retraction_takes_it_back(sqlite_house: Any) -> None:
    house = sqlite_house
    house.event("acme", "tool.calls", "1", "2026-10-10T00:00:00")
    house.event("acme", "tool.calls", "1", "2026-10-20T00:00:00")
    put(house, entry("tool.calls", "1"))
    (second,) = put(house, entry("tool.calls", "2", valid_from=at("2026-10-20")), now=NOW + timedelta(minutes=1))
    assert amounts(house) == ["1 USD", "2 USD"]
    assert put(house, entry("tool.calls", "2", valid_from=at("2026-10-20"))) == [second]
    costs_book.retract(house.world.engine, "test", second[:12], now=NOW, who="test", why="wrong")
    assert amounts(house) == ["1 USD", "1 USD"]
    (again,) = put(house, entry("tool.calls", "2", valid_from=at("2026-10-20")), now=NOW + timedelta(minutes=2))
    assert again != second
    assert amounts(house) == ["1 USD", "2 USD"]
    # What was known before: the second entry had not been recorded.
    early = costs_book.read(house.world.engine, "test", NOW)
    assert [it.price for it in early.entries] == [Decimal(1)]


def test_what_names_more_goes_first_whoever_was_recorded_last(sqlite_house: Any) -> None:
    house = sqlite_house
    imported(house)
    for customer, agent in (("acme", "a"), ("acme", "b"), ("other", "a"), ("other", "b")):
        house.event(
            customer, "llm.tokens.output", "1000000", f"2026-10-20T1{'ab'.index(agent)}:00:00",
            provider="openai", model="gpt-4o-mini", agent_id=agent, event_id=customer + agent,
        )  # fmt: skip
    assert amounts(house) == ["0.6 USD"] * 4
    of = {"provider": "openai", "model": "gpt-4o-mini", "source": NEGOTIATED, "per": 10**6}
    put(house, entry("llm.tokens.output", "0.3", customer_id="acme", **of))
    put(house, entry("llm.tokens.output", "0.4", agent_id="b", **of))
    put(house, entry("llm.tokens.*", "0.5", **of), now=NOW + timedelta(minutes=1))
    assert amounts(house) == ["0.3 USD", "0.5 USD", "0.3 USD", "0.4 USD"]


def test_an_entry_of_the_standard_tier_says_nothing_about_batches(sqlite_house: Any) -> None:
    house = sqlite_house
    imported(house)
    put(house, entry("llm.tokens.input", "2", per=10**6, provider="anthropic", source=NEGOTIATED))
    for tier, hour in (("standard", 10), ("batch", 11), ("priority", 12)):
        when = f"2026-10-20T{hour}:00:00"
        house.event("acme", "llm.tokens.input", "1000000", when, **SONNET, call_id=tier, service_tier=tier)
    # The batch of the list, 1.50 and above 200,000 tokens 3.
    assert amounts(house) == ["2 USD", "3 USD", "service_tier_unpriced"]


def test_a_price_by_the_clock_and_a_minimum_per_request_are_kept(sqlite_house: Any) -> None:
    house = sqlite_house
    imported(house)
    chat = {"provider": "deepseek", "model": "deepseek-chat", "call_id": "c"}
    for when in ("00:29:59", "00:30:00", "16:29:59", "16:30:00"):
        house.event("acme", "llm.tokens.input", "1000000", f"2026-10-20T{when}", **chat)
    whisper = {"provider": "groq", "model": "whisper-large-v3"}
    house.event("acme", "llm.audio.seconds", "4", "2026-10-21T00:00:00", **whisper)
    house.event("acme", "llm.audio.seconds", "36", "2026-10-21T01:00:00", **whisper)
    # 0.111 an hour: 4 seconds count for 10, which is 0.000308333...; 36 are a hundredth of an hour.
    assert amounts(house) == [
        "0.135 USD", "0.27 USD", "0.27 USD", "0.135 USD", "0.0003083333333333333333333333333 USD", "0.00111 USD",
    ]  # fmt: skip


def test_a_price_list_that_is_imported_later_does_not_change_what_was_before(sqlite_house: Any) -> None:
    house = sqlite_house
    mini = {"provider": "openai", "model": "gpt-4o-mini"}
    house.event("acme", "llm.tokens.input", "1000000", "2026-10-20T00:00:00", **mini)
    house.event("acme", "llm.tokens.input", "1000000", "2026-11-20T00:00:00", **mini)
    imported(house)
    dearer = catalogues.text().replace('"input_mtok":"0.15"', '"input_mtok":"0.20"')
    later = {"now": NOW, "who": "test", "why": "new list"}
    costs_book.pin(house.world.engine, "test", dearer, valid_from=at("2026-11-01"), **later)
    assert amounts(house) == ["0.15 USD", "0.2 USD"]
    _, new = costs_book.pin(house.world.engine, "test", dearer, valid_from=None, **later)
    assert not new


def test_all_that_is_wrong_with_an_entry_is_said_at_once(sqlite_house: Any) -> None:
    wrong = entry("tool.calls", "-1", per=0, model="a*b", customer_id="ac*", why=" ")
    wrong = replace(wrong, currency="XXX", valid_until=at("1969-01-01"))
    with pytest.raises(CostsRefused) as refused:
        costs_book.add(sqlite_house.world.engine, "test", [wrong], NOW)
    assert str(refused.value).count("\n") == 6
    with pytest.raises(CostsRefused, match="no catalogue of prices"):
        costs_book.pin(sqlite_house.world.engine, "test", "{}", valid_from=None, now=NOW, who="", why="")


def test_costs_are_kept_by_the_database_which_refuses_to_change_or_delete_them(house: Any) -> None:
    put(house, entry("tool.calls", "0.000000000123", per=1000, currency="EUR", valid_until=at("2027-01-01")))
    imported(house)
    engine = house.world.engine
    for statement in (update(cost_entries).values(price=Decimal(9)), delete(cost_entries)):
        with pytest.raises(DBAPIError, match="never"), engine.begin() as connection:
            connection.execute(statement)
    with engine.begin() as connection:  # as the erasure of a customer does
        connection.execute(update(cost_entries).values(customer_id="pseudonym", why="erased"))
    found = costs_book.read(engine, "test")
    assert [(it.price, it.per, it.currency, it.valid_until) for it in found.entries] == [
        (Decimal("0.000000000123"), 1000, "EUR", at("2027-01-01"))
    ]
    assert found.catalogues[0].read().version == "0.2.3"


def command(house: Any, environment: Any, *words: str, code: int = 0) -> str:
    done = CliRunner().invoke(costs_app, words[1:], env=environment(house))
    assert done.exit_code == code, done.output
    return done.output


def test_the_commands_import_set_list_and_say_what_is_unknown(sqlite_house: Any, command_environment: Any) -> None:
    house, run = sqlite_house, command_environment
    house.event("acme", "llm.tokens.input", "1000", "2026-10-20T10:00:00", provider="openai", model="gpt-4o-mini")
    house.event("acme", "tool.calls", "3", "2026-10-20T10:00:00", tool="search")
    house.event("acme", "agent.tasks", "1", "2026-10-20T10:00:00")
    house.collected()
    said = command(house, run, "costs", "import")
    assert "genai-prices-0.2.3" in said
    assert "llm.requests, agent.conversations, agent.tasks" in said
    assert "nothing changed" in command(house, run, "costs", "import")
    told = command(house, run, "costs", "status", "--period", "2026-10", code=3)
    assert "usage cost 0.00015 USD (1 event; 1 event of what is declared or listed to cost nothing)" in told
    assert "no_entry" in told and "search" in told
    said = command(house, run, "costs", "set", "tool.calls", "0.01", "--tool", "search", "--why", "invoice 7")
    assert "tool.calls, tool search: 0.01 USD, from the beginning: recorded" in said
    found = json.loads(command(house, run, "costs", "status", "--period", "2026-10", "--json"))
    assert (found["costs"], found["unknown"]) == ({"USD": "0.03015"}, [])
    listed = json.loads(command(house, run, "costs", "list", "--json"))
    mine = next(it for it in listed["entries"] if it["tool"] == "search")
    command(house, run, "costs", "retract", mine["entry_id"][:10], "--why", "not any more")
    assert "search" not in command(house, run, "costs", "list")
    assert "retracted: not any more" in command(house, run, "costs", "list", "--all")
    assert "of unknown cost" in command(house, run, "costs", "rates", code=3)
    assert "is no number" in command(house, run, "costs", "set", "tool.calls", "x", "--why", "y", code=2)
