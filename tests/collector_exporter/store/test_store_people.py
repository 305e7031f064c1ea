"""Erasing a customer takes out the people who act for it."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from sqlalchemy import insert

from meterhouse_portal import access_keys, members, questions
from meterhouse_store import budgets, privacy, registry, tables
from meterhouse_store.settings import Settings
from meterhouse_store.sql import begin_write, open_engine

NOW = datetime(2026, 11, 21, tzinfo=UTC)
ADDRESSES = ("olga@private.example", "hook.private.example")


@pytest.fixture
def engine(tmp_path):
    engine = open_engine(Settings(data=tmp_path))
    registry.ensure_namespace(engine, "live", now=NOW)
    for name in ("acme", "globex"):
        registry.add_customer(engine, "live", name, plan="pay", now=NOW)
    yield engine
    engine.dispose()


def test_nothing_says_who_acted_for_an_erased_customer_and_others_go_on(engine, tmp_path):
    for name, customer in (("olga@private", "acme"), ("both@agency", "acme"), ("both@agency", "globex")):
        email = f"{name}.example"
        members.set_role(engine, "live", customer, email, "owner", who=email, now=NOW)
    link = members.request_link(engine, "live", "olga@private.example", NOW)
    olga = members.sign_in(engine, "live", link, NOW)
    members.request_link(engine, "live", "olga@private.example", NOW)
    _, key = access_keys.create(engine, "live", "acme", "nightly", who="olga@private.example", now=NOW)
    line = {"rating_id": "r" * 64, "line_id": "a" * 64, "amount_minor": 100, "currency": "EUR"}
    questions.ask(engine, "live", "acme", line, "Why?", who="olga@private.example", now=NOW)
    own = budgets.Budget("acme", "own", budgets.MONEY, Decimal(5), bill_over=True)
    budgets.set_budget(engine, "live", own, who="olga@private.example", why="portal", now=NOW)
    with begin_write(engine) as connection:
        connection.execute(
            insert(tables.notice_channels).values(
                channel_id="c",
                namespace="live",
                customer_id="acme",
                kind="webhook",
                secret="whsec_x",
                kinds=[],
                who="op",
                address="https://hook.private.example",
                recorded_at=NOW,
            )
        )
        connection.execute(
            insert(tables.notices).values(
                notice_id="n",
                namespace="live",
                customer_id="acme",
                kind="paused",
                subject="paused",
                facts={},
                created_at=NOW,
            )
        )
        connection.execute(
            insert(tables.notice_deliveries).values(
                delivery_id="d",
                notice_id="n",
                namespace="live",
                customer_id="acme",
                channel="webhook",
                state="pending",
                address="https://hook.private.example",
                attempts=1,
                next_attempt_at=NOW,
            )
        )
    told = privacy.count(engine, "live", "acme", ids=False)
    names = ("portal_members", "portal_sessions", "line_questions", "notice_deliveries")
    assert [told[name] for name in names] == [2, 1, 1, 1]

    privacy.forget(engine, "e", "live", "acme", who="op", why="asked for", now=NOW + timedelta(days=1))

    assert members.members(engine, "live", "acme") == []
    assert members.visitor(engine, "live", olga, NOW) is None
    assert [it.email for it in members.members(engine, "live", "globex")] == ["both@agency.example"]
    (asked,) = questions.of_customer(engine, "live", "acme")
    assert (asked.question, asked.who) == ("Why?", "erased")
    assert access_keys.customer_of(engine, "live", key) == "acme"  # the customer is still there, without its people
    with engine.connect() as connection:
        delivery = connection.execute(tables.notice_deliveries.select()).mappings().one()
        channel = connection.execute(tables.notice_channels.select()).mappings().one()
    assert (delivery["state"], delivery["address"]) == ("failed", "erased")
    assert (channel["address"], channel["secret"]) == ("erased", None) and channel["removed_at"] is not None
    engine.dispose()
    for address in ADDRESSES:
        for file in tmp_path.glob("meterhouse.db*"):
            assert address.encode() not in file.read_bytes()
