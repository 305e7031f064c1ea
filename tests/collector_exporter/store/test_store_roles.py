"""Roles: once somebody has one, what it is about is theirs alone, whatever the way of the change."""

from datetime import UTC, datetime

import pytest
from sqlalchemy import Engine
from typer.testing import CliRunner

from meterhouse_store import access, audit, audit_book, registry, roles, switches
from meterhouse_store.roles import INVOICING, METERING, PRICING, NotAllowed
from meterhouse_store.settings import Settings
from meterhouse_store.sql import begin_write, open_engine

NOW = datetime(2026, 11, 2, 8, tzinfo=UTC)


@pytest.fixture
def engine(sql_engine: Engine) -> Engine:
    registry.ensure_namespace(sql_engine, "live", now=NOW)
    registry.ensure_namespace(sql_engine, "test", now=NOW)
    return sql_engine


def give(engine: Engine, role: str, person: str, *, who: str = "root", granted: bool = True) -> None:
    with begin_write(engine) as connection:
        roles.change(connection, "live", role, person, granted=granted, who=who, why="agreed", now=NOW)


def held(engine: Engine) -> list[tuple[str, str]]:
    with engine.connect() as connection:
        return [(it.role, it.person) for it in roles.holders(connection, "live")]


def test_a_role_that_nobody_has_is_everybody_s_and_one_that_is_given_is_theirs_alone(engine):
    with audit.acting("ben"):
        made, _ = access.create_key(engine, "live", "agents", now=NOW)
    give(engine, METERING, "Anna")
    give(engine, METERING, "olga@operator.example")
    before = audit_book.verify(engine, "live").sequence
    with audit.acting("ben"):
        with pytest.raises(
            NotAllowed, match=r"ben may not change this: metering of live .* is with anna, olga@operator"
        ):
            access.create_key(engine, "live", "more", now=NOW)
        with pytest.raises(NotAllowed):
            access.revoke_key(engine, made.credential_id, now=NOW)
    # Nothing of it is there, and nothing is in the log.
    assert [it.name for it in access.credentials(engine, "live")] == ["agents"]
    assert audit_book.verify(engine, "live").sequence == before
    for who in ("ANNA", "olga@operator.example"):
        with audit.acting(who):
            access.create_key(engine, "live", who, now=NOW)
    with audit.acting("ben"):
        access.create_key(engine, "test", "of another namespace", now=NOW)
        registry.add_customer(engine, "live", "acme", plan="pay", now=NOW)  # pricing is nobody's
    switches.turn(engine, "live", {"sync": "off"}, who="ben", why="anybody may stop it", now=NOW)


def test_what_registers_itself_goes_on_and_who_prices_decides_the_rest(engine):
    give(engine, PRICING, "anna")
    with audit.acting("ben"):
        registry.add_customer(engine, "live", "seen", plan="pay", origin=registry.AUTO, now=NOW)
        with pytest.raises(NotAllowed, match="pricing"):
            registry.add_customer(engine, "live", "acme", plan="pay", now=NOW)
    assert [it.customer_id for it in registry.customers(engine, "live")] == ["seen"]
    assert audit_book.entries(engine, "live", limit=1)[0].who == "rule"


def test_who_has_administration_gives_and_takes_roles(engine):
    give(engine, "administration", "anna")
    with pytest.raises(NotAllowed):
        give(engine, INVOICING, "ben", who="ben")
    give(engine, INVOICING, "ben", who="anna")
    give(engine, INVOICING, "ben", who="anna", granted=False)
    assert held(engine) == [("administration", "anna")]
    assert [(it.what, it.subject, it.who) for it in audit_book.entries(engine, "live", limit=2)] == [
        ("role", "invoicing ben", "anna")
    ] * 2
    with pytest.raises(ValueError, match="'sales' is no role: choose from metering, pricing, invoicing"):
        give(engine, "sales", "ben", who="anna")
    with pytest.raises(ValueError, match="does not have the role"):
        give(engine, PRICING, "ben", who="anna", granted=False)


def test_the_command_gives_a_role_and_a_command_of_somebody_else_is_refused_in_a_sentence(tmp_path, monkeypatch):
    from meterhouse_store.namespace_commands import namespaces
    from meterhouse_store.registry_commands import keys

    monkeypatch.setenv("LOGNAME", "root")
    settings = Settings(data=tmp_path)
    engine = open_engine(settings)
    registry.ensure_namespace(engine, settings.namespace, now=NOW)
    engine.dispose()
    given = ["roles", "--grant", "metering", "--to", "anna", "--why", "agreed", "--data", str(tmp_path)]
    shown = CliRunner().invoke(namespaces, given)
    assert shown.exit_code == 0 and shown.output.splitlines()[-1].split()[:2] == ["metering", "anna"]
    refused = CliRunner().invoke(keys, ["create", "agents", "--data", str(tmp_path)])
    assert refused.exit_code == 1 and "root may not change this: metering" in refused.output
    monkeypatch.setenv("LOGNAME", "anna")
    assert CliRunner().invoke(keys, ["create", "agents", "--data", str(tmp_path)]).exit_code == 0
