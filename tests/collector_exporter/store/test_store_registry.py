"""The registry on both kinds of database."""

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from sqlalchemy import insert

from meterhouse_store import access, registry
from meterhouse_store.registry import RegistryError
from meterhouse_store.sql import begin_write
from meterhouse_store.tables import ratings, unrated_usage

NOW = datetime(2026, 10, 1, 12, tzinfo=UTC)
LATER = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.fixture
def engine(sql_engine):
    registry.ensure_namespace(sql_engine, "live", default_plan="payg", now=NOW)
    return sql_engine


def test_a_namespace_is_made_once_and_takes_new_defaults(sql_engine):
    first = registry.ensure_namespace(sql_engine, "test-a", default_plan="payg", now=NOW)
    assert (first.kind, first.default_plan, first.created_at) == ("test", "payg", NOW)
    again = registry.ensure_namespace(sql_engine, "test-a", default_plan=None, default_currency="EUR", now=LATER)
    assert (again.default_plan, again.default_currency, again.created_at) == (None, "EUR", NOW)
    assert registry.namespace(sql_engine, "test-a") == again
    assert registry.namespace(sql_engine, "other") is None


def test_adding_a_customer_twice_is_adding_it_once(engine):
    first = registry.add_customer(engine, "live", "acme", name="Acme", plan="team", now=NOW)
    again = registry.add_customer(engine, "live", "acme", name="Acme", plan="team", now=LATER)
    assert first == again
    assert (first.currency, first.time_zone, first.origin) == ("USD", "UTC", "operator")
    assert [(c.plan, c.valid_from) for c in registry.contracts(engine, "live")] == [("team", registry.ALWAYS)]


def test_another_plan_follows_from_now_and_leaves_the_first_contract_alone(engine):
    registry.add_customer(engine, "live", "acme", plan="team", now=NOW)
    registry.add_customer(engine, "live", "acme", plan="prepaid", now=LATER)
    registry.add_customer(engine, "live", "acme", plan="prepaid", now=datetime(2026, 12, 1, tzinfo=UTC))
    found = [(c.plan, c.valid_from) for c in registry.contracts(engine, "live")]
    assert found == [("team", registry.ALWAYS), ("prepaid", LATER)]


def test_two_plans_from_the_same_moment_are_refused(engine):
    registry.add_customer(engine, "live", "acme", plan="team", valid_from=NOW, now=NOW)
    with pytest.raises(RegistryError, match="a contract that has begun is not changed"):
        registry.add_customer(engine, "live", "acme", plan="prepaid", valid_from=NOW, now=LATER)


def test_an_automatic_registration_never_changes_an_operator_s(engine):
    registry.add_customer(engine, "live", "acme", name="Acme", plan="team", now=NOW)
    registry.add_customer(engine, "live", "acme", plan="payg", origin="auto", now=LATER)
    assert registry.customers(engine, "live")[0].origin == "operator"
    assert [c.plan for c in registry.contracts(engine, "live")] == ["team"]


def test_an_operator_takes_over_an_automatic_registration(engine):
    registry.add_customer(engine, "live", "acme", plan="payg", origin="auto", now=NOW)
    taken = registry.add_customer(engine, "live", "acme", name="Acme", currency="EUR", now=LATER)
    assert (taken.origin, taken.name, taken.currency, taken.registered_at) == ("operator", "Acme", "EUR", NOW)


def test_currency_and_time_zone_stay_once_a_period_was_closed(engine):
    registry.add_customer(engine, "live", "acme", now=NOW)
    with begin_write(engine) as connection:
        connection.execute(
            insert(ratings).values(
                rating_id="r", namespace="live", customer_id="acme", period_start=NOW, period_end=LATER, state="closed",
                currency="USD", plan="payg", book_version=1, watermark={}, as_of=NOW, inputs_sha256="",
                result_sha256="", total_minor=0, rated_at=NOW, closed_at=NOW,
            )
        )  # fmt: skip
    with pytest.raises(RegistryError) as refused:
        registry.add_customer(engine, "live", "acme", currency="EUR", time_zone="Europe/Berlin", now=LATER)
    assert str(refused.value).count("a period was closed with it") == 2
    assert "needs a customer of another id" in str(refused.value)
    assert registry.add_customer(engine, "live", "acme", email="a@example.com", now=LATER).email == "a@example.com"


def test_all_mistakes_are_told_at_once(engine):
    with pytest.raises(RegistryError) as refused:
        registry.add_customer(
            engine, "live", "", currency="euro", time_zone="Mars/Base", valid_from=NOW.replace(tzinfo=None)
        )
    for part in ("customer id ''", "'euro'", "'Mars/Base'", "needs a zone", "name the plan"):
        assert part in str(refused.value)


def test_a_customer_needs_its_namespace(engine):
    with pytest.raises(RegistryError, match="no namespace 'other'"):
        registry.add_customer(engine, "other", "acme")


def test_a_key_s_text_is_not_kept(engine):
    made, text = access.create_key(engine, "live", "support", customers=["b", "a"], now=NOW)
    assert text.startswith("mh_") and len(text) == 46
    assert made.customers == ("a", "b")
    assert access.credentials(engine) == [made]
    assert text not in repr(access.credentials(engine))
    assert made.key_sha256 == access.hash_key(text)
    # sha256("abc"), from FIPS 180-2.
    assert access.hash_key("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_registering_the_same_key_again_finds_it(engine):
    text = "mh_" + "x" * 40
    first, _ = access.create_key(engine, "live", "up", key_text=text, now=NOW)
    again, _ = access.create_key(engine, "live", "up", key_text=text, now=LATER)
    assert first == again
    assert first.customers is None


def test_the_first_revocation_stands(engine):
    made, _ = access.create_key(engine, "live", "support", now=NOW)
    assert access.revoke_key(engine, made.credential_id, now=NOW).revoked_at == NOW
    assert access.revoke_key(engine, made.credential_id, now=LATER).revoked_at == NOW
    with pytest.raises(RegistryError, match="no key 'cred_x'"):
        access.revoke_key(engine, "cred_x")


def test_a_key_for_nobody_or_too_short_is_refused(engine):
    with pytest.raises(RegistryError) as refused:
        access.create_key(engine, "live", " ", customers=[], key_text="short")
    for part in ("needs a name", "for nobody", "32 characters"):
        assert part in str(refused.value)


SOON = datetime(2026, 12, 1, tzinfo=UTC)


def test_a_contract_that_has_not_begun_is_replaced_by_another_plan_from_the_same_moment(engine):
    registry.add_customer(engine, "live", "acme", plan="team", now=NOW)
    registry.add_customer(engine, "live", "acme", plan="prepiad", valid_from=SOON, now=NOW)
    registry.add_customer(engine, "live", "acme", plan="prepaid", valid_from=SOON, now=LATER)
    found = [(c.plan, c.valid_from, c.recorded_at) for c in registry.contracts(engine, "live")]
    assert found == [("team", registry.ALWAYS, NOW), ("prepaid", SOON, LATER)]
    with pytest.raises(RegistryError, match="has begun is not changed"):
        registry.add_customer(engine, "live", "acme", plan="other", valid_from=SOON, now=SOON)


def test_a_contract_is_withdrawn_until_it_begins(engine):
    registry.add_customer(engine, "live", "acme", plan="team", now=NOW)
    registry.add_customer(engine, "live", "acme", plan="prepaid", valid_from=SOON, now=NOW)
    with pytest.raises(RegistryError, match="began at 2026-12-01"):
        registry.withdraw_contract(engine, "live", "acme", SOON, now=SOON)
    assert registry.withdraw_contract(engine, "live", "acme", SOON, now=LATER).plan == "prepaid"
    assert [c.plan for c in registry.contracts(engine, "live")] == ["team"]
    with pytest.raises(RegistryError, match="has no contract from 2026-12-01"):
        registry.withdraw_contract(engine, "live", "acme", SOON, now=LATER)


@pytest.mark.parametrize("customer_id", ["we ird", " acme", "acme ", "a\tb", "a\x00b", "a\u00a0b", "a\u200bb"])
def test_an_id_with_a_space_or_control_character_is_refused(engine, customer_id):
    with pytest.raises(RegistryError, match="customer id"):
        registry.add_customer(engine, "live", customer_id)
    assert registry.customers(engine, "live") == []


def test_an_id_with_a_space_that_agents_do_report_can_be_registered(engine):
    with begin_write(engine) as connection:
        connection.execute(
            insert(unrated_usage).values(
                unrated_id="u", namespace="live", customer_id="new co", period_start=NOW, period_end=LATER, meter="m",
                dimensions={}, events=1, quantity=Decimal(1), reason="customer_not_registered", hint="",
            )
        )  # fmt: skip
    assert registry.add_customer(engine, "live", "new co").name == "new co"
    assert registry.add_customer(engine, "live", "seen co", origin="auto").origin == "auto"
