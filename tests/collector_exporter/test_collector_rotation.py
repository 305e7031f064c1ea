"""Keys are rotated with an overlap, and revoked at once: at the registry, on the command line, and at the door."""

import asyncio
import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest
from collector_samples import MAIN, event, request_of, wait_for

from meterhouse import grants
from meterhouse.settings import Destination
from meterhouse_collector.credentials import Credentials
from meterhouse_collector.refusals import Refused
from meterhouse_store import access, registry, sql
from meterhouse_store.settings import Settings

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)


@pytest.fixture
def engine(tmp_path):
    engine = sql.open_engine(Settings(data=tmp_path, sql_url=f"sqlite:///{tmp_path / 'r.db'}"))
    registry.ensure_namespace(engine, "live")
    yield engine
    engine.dispose()


def taken(engine, key):
    """The id of the credential that the door takes the key for; None where it refuses."""
    try:
        return asyncio.run(Credentials(lambda: access.credentials(engine)).of(f"Bearer {key}")).credential_id
    except Refused:
        return None


def test_a_rotated_key_has_the_same_credential_and_the_old_text_ends_with_the_overlap(engine):
    made, first = access.create_key(engine, "live", "agents", customers=["acme"], grant_key=grants.new_key(), now=NOON)
    changed, second = access.rotate_key(engine, made.credential_id, timedelta(hours=1))
    assert (changed.credential_id, changed.name, changed.customers) == (made.credential_id, "agents", ("acme",))
    assert (changed.valid_from, changed.grant_keys) == (NOON, made.grant_keys)
    assert second != first
    assert taken(engine, first) == taken(engine, second) == made.credential_id
    third = access.rotate_key(engine, made.credential_id, timedelta(0))[1]
    assert [taken(engine, key) for key in (first, second, third)] == [made.credential_id, None, made.credential_id]


def test_agents_know_the_credential_by_every_key_that_it_has_had(engine):
    made, first = access.create_key(engine, "live", "agents")
    second, third = (access.rotate_key(engine, made.credential_id, timedelta(0))[1] for _ in range(2))
    marks = [Destination("http://127.0.0.1:4318", key).mark for key in (first, second, third)]
    assert marks == [made.credential_id.removeprefix("cred_")] * 3
    assert Destination("http://127.0.0.1:4318", access.create_key(engine, "live", "others")[1]).mark not in marks


def test_after_the_overlap_the_old_text_is_refused(engine):
    made, first = access.create_key(engine, "live", "agents", now=NOON)
    second = access.rotate_key(engine, made.credential_id, timedelta(hours=1), now=NOON)[1]
    assert (taken(engine, first), taken(engine, second)) == (None, made.credential_id)


def test_revoking_ends_every_text_of_a_key_and_nothing_rotates_it_back(engine):
    made, first = access.create_key(engine, "live", "agents")
    second = access.rotate_key(engine, made.credential_id, timedelta(hours=1))[1]
    access.revoke_key(engine, made.credential_id)
    assert (taken(engine, first), taken(engine, second)) == (None, None)
    with pytest.raises(registry.RegistryError, match="was revoked"):
        access.rotate_key(engine, made.credential_id, timedelta(hours=1))


@pytest.mark.parametrize("overlap", [timedelta(seconds=-1), timedelta(days=91)])
def test_an_overlap_is_at_most_ninety_days(engine, overlap):
    made, _ = access.create_key(engine, "live", "agents")
    with pytest.raises(registry.RegistryError, match="0 to 90 days"):
        access.rotate_key(engine, made.credential_id, overlap)


def test_a_key_made_elsewhere_is_known_also_after_it_was_rotated_away(engine):
    text = "mh_" + "x" * 40
    made, _ = access.create_key(engine, "live", "from outside", key_text=text)
    access.rotate_key(engine, made.credential_id, timedelta(0))
    assert access.create_key(engine, "live", "from outside", key_text=text)[0].credential_id == made.credential_id
    assert taken(engine, text) is None


def test_from_the_command_line_to_the_list(engine, tmp_path):
    made, first = access.create_key(engine, "live", "agents")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("METERHOUSE_")}
    environment = clean | {"METERHOUSE_DATA": str(tmp_path), "METERHOUSE_SQL_URL": f"sqlite:///{tmp_path / 'r.db'}"}

    def command(*arguments):
        done = subprocess.run(
            [sys.executable, "-c", MAIN, "keys", *arguments], env=environment, capture_output=True, text=True
        )
        return done.returncode, done.stdout + done.stderr

    status, text = command("rotate", made.credential_id, "--overlap", "30m", "--json")
    reply = json.loads(text)
    assert (status, reply["credential_id"]) == (0, made.credential_id)
    left = datetime.fromisoformat(reply["old_key_until"]) - datetime.now(UTC)
    assert timedelta(minutes=28) < left < timedelta(minutes=30)
    assert taken(engine, reply["key"]) == taken(engine, first) == made.credential_id
    status, text = command("list", "--json")
    [shown] = json.loads(text)
    assert shown["old_key_until"] == datetime.fromisoformat(reply["old_key_until"]).isoformat(timespec="seconds")
    assert reply["key"] not in text and first not in text
    assert command("rotate", made.credential_id, "--overlap", "soon")[0] == 2
    assert command("rotate", "cred_none", "--overlap", "0")[0] == 1


def test_a_running_collector_takes_the_new_text_at_once_and_refuses_a_revoked_one_within_seconds(shared_collector):
    made, first = access.create_key(shared_collector.engine, "live", "rotated")
    body = request_of(event(1))
    assert shared_collector.post(body, key=first)[0] == 200
    second = access.rotate_key(shared_collector.engine, made.credential_id, timedelta(seconds=2))[1]
    assert shared_collector.post(body, key=second)[0] == 200
    assert shared_collector.post(body, key=first)[0] == 200
    wait_for(lambda: shared_collector.post(body, key=first)[0] == 401, what="the end of the old text")
    access.revoke_key(shared_collector.engine, made.credential_id)
    revoked = time.monotonic()
    wait_for(lambda: shared_collector.post(body, key=second)[0] == 401, what="the revocation")
    # Two seconds and the reading of the registry; the rest is for machines that do other things, too.
    assert time.monotonic() - revoked < 10
