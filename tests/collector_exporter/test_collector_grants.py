"""A key that is bound to grants reports only for customers that a signed grant names, up to its expiry."""

import json
import struct
from datetime import UTC, datetime

import pytest
from collector_samples import DAY_NS, RECEIVED_NS, Collector, attributes, event, request_of, wait_for, wait_projected
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue

from meterhouse import grants
from meterhouse_collector.grants import REQUEST_GRANTS, Verifier, tokens
from meterhouse_collector.inbox import Inbox
from meterhouse_collector.records import Granted, Record, decode, encode, frames
from meterhouse_collector.refusals import Refused
from meterhouse_store import access, registry, sql
from meterhouse_store.settings import Settings

NOW_S = RECEIVED_NS // 10**9
KEY = grants.new_key()


def signed(customer, *, key=KEY, agent=None, expires_in_s=3600, now_s=NOW_S):
    return grants.sign(customer, key=str(key), agent=agent, expires_in_s=expires_in_s, now_s=now_s)


def carrying(request, *found):
    """The request with these grants on its scope, as agents send them."""
    values = ArrayValue(values=[AnyValue(string_value=one) for one in found])
    scope = request.resource_metrics[0].scope_metrics[0].scope
    scope.attributes.append(KeyValue(key="meterhouse.grants", value=AnyValue(array_value=values)))
    return request


def bound_record(request, number, *granted, received_ns=RECEIVED_NS):
    raw = request.SerializeToString()
    return encode(
        Record("key-1", "live", (), received_ns, f"{number:032x}", "a-00000001.seg", raw, tuple(granted), "grants")
    )


def rows(client):
    both = "SELECT event_id, reason FROM suspense UNION ALL SELECT event_id, '' AS reason FROM usage"
    query = f"SELECT * FROM ({both}) ORDER BY ALL"
    return client.query(query).result_rows


def at(seconds, event_id, customer="acme", agent=None):
    point = {"customer.id": customer} | ({} if agent is None else {"gen_ai.agent.id": agent})
    return request_of(event(1, event_id, RECEIVED_NS + seconds * 10**9), point=point)


def test_what_counts_is_a_matter_of_the_record_alone(database):
    acme = Granted("acme", "", RECEIVED_NS + 60 * 10**9)
    support = Granted("globex", "support", RECEIVED_NS + 60 * 10**9)
    records = [
        bound_record(at(0, "a-in-time"), 1, acme, support),
        bound_record(at(60, "b-at-its-expiry"), 2, acme),
        bound_record(at(61, "c-too-late"), 3, acme),
        bound_record(at(0, "d-no-grant"), 4),
        bound_record(at(0, "e-another-customer", "umbrella"), 5, acme, support),
        bound_record(at(0, "f-its-agent", "globex", "support"), 6, acme, support),
        bound_record(at(0, "g-another-agent", "globex", "billing"), 7, acme, support),
        bound_record(at(0, "h-no-customer", ""), 8, acme),
        bound_record(at(0, "i-read-late"), 9, acme, received_ns=RECEIVED_NS + 9 * DAY_NS),
    ]
    Inbox(database).post(b"".join(records))
    assert rows(database) == [
        ("a-in-time", ""),
        ("b-at-its-expiry", ""),
        ("c-too-late", "grant_expired"),
        ("d-no-grant", "grant_missing"),
        ("e-another-customer", "grant_missing"),
        ("f-its-agent", ""),
        ("g-another-agent", "grant_missing"),
        ("h-no-customer", "customer_missing"),
        ("i-read-late", ""),
    ]


def test_a_credential_without_grants_reports_as_ever(database):
    raw = at(0, "a").SerializeToString()
    Inbox(database).post(encode(Record("key-1", "live", (), RECEIVED_NS, "0" * 32, "s.seg", raw)))
    assert rows(database) == [("a", "")]


def test_a_record_with_grants_reads_back_and_one_without_is_what_it_always_was():
    granted = (Granted("acmé", "", 7), Granted("globex", "support", 2**63))
    full = Record("key-1", "live", ("acme",), 5, "0" * 32, "s", b"\x0a\x00", granted, "grants")
    plain = Record("key-1", "live", (), 5, "0" * 32, "s", b"\x0a\x00")
    for one in (full, plain):
        (frame,) = frames(encode(one), "s")
        assert decode(encode(one)[frame.body : frame.end]) == one
    assert b"\x4a" + bytes([2 + 5 + 9]) + b"\x0a\x05" + "acmé".encode() + b"\x19" + struct.pack("<Q", 7) in encode(full)


def test_the_verifier_takes_what_was_signed_with_a_key_of_the_credential_and_nothing_else():
    other, ed = grants.new_key(), grants.new_key(grants.ED25519)
    good, forged = signed("acme"), signed("globex", key=other)
    same_id = grants.Key(grants.HMAC, KEY.key_id, other.material)
    changed = good.split(".")
    changed[1] = signed("umbrella").split(".")[1]
    keys = (str(KEY), str(ed.verifying()))
    found = Verifier().granted(
        keys,
        {
            good,
            forged,
            signed("initech", key=same_id),
            ".".join(changed),
            "rubbish",
            "",
            good[:-2],
            signed("e", key=ed),
        },
    )
    expires_at_ns = (NOW_S + 3600) * 10**9
    assert found == (Granted("acme", "", expires_at_ns), Granted("e", "", expires_at_ns))
    assert str(ed) not in keys and grants.Key.parse(keys[1]).kind == "ed25519-public"


def test_of_several_grants_for_one_customer_the_longest_holds_and_a_revoked_key_s_are_worth_nothing():
    verifier = Verifier()
    found = {
        signed("acme", expires_in_s=60),
        signed("acme", expires_in_s=7200),
        signed("acme", agent="a", expires_in_s=9),
    }
    assert [(one.agent_id, one.expires_at_ns // 10**9 - NOW_S) for one in verifier.granted([str(KEY)], found)] == [
        ("", 7200),
        ("a", 9),
    ]
    assert verifier.granted([], found) == ()


def test_a_grant_is_verified_once(monkeypatch):
    verified = []
    monkeypatch.setattr(grants, "is_genuine", lambda token, key: verified.append(token) or True)
    verifier, token = Verifier(), signed("acme")
    for _ in range(3):
        assert len(verifier.granted([str(KEY)], [token])) == 1
    assert verified == [token]


def test_too_many_grants_are_refused_with_what_to_do():
    request = carrying(at(0, "a"), *(f"mhg.{number}.x" for number in range(REQUEST_GRANTS + 1)))
    with pytest.raises(Refused, match="at most 1000 grants: send smaller batches"):
        tokens(request.resource_metrics)


def test_the_registry_keeps_what_verifies_and_a_credential_stays_bound(tmp_path):
    engine = sql.open_engine(Settings(data=tmp_path))
    registry.ensure_namespace(engine, "live")
    free, _ = access.create_key(engine, "live", "free")
    ed = grants.new_key(grants.ED25519)
    bound, _ = access.create_key(engine, "live", "bound", grant_key=ed)
    assert access.add_grant_key(engine, bound.credential_id, KEY).grant_keys == (str(ed.verifying()), str(KEY))
    assert access.add_grant_key(engine, bound.credential_id, KEY).grant_keys == (str(ed.verifying()), str(KEY))
    access.revoke_grant_key(engine, bound.credential_id, KEY.key_id)
    access.revoke_grant_key(engine, bound.credential_id, ed.key_id, now=datetime(2026, 1, 1, tzinfo=UTC))
    found = {one.name: one for one in access.credentials(engine)}
    assert (found["free"].grant_keys, found["bound"].grant_keys) == (None, ())
    assert str(KEY) not in repr(found)
    with pytest.raises(registry.RegistryError, match="has no grant key"):
        access.revoke_grant_key(engine, free.credential_id, "0" * 16)
    with pytest.raises(registry.RegistryError, match="there is no key"):
        access.add_grant_key(engine, "cred_none", KEY)
    engine.dispose()


def test_a_database_of_before_grants_gets_their_table(tmp_path):
    engine = sql.open_engine(Settings(data=tmp_path))
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE grant_keys")
    engine.dispose()
    engine = sql.open_engine(Settings(data=tmp_path))
    assert access.credentials(engine) == []
    engine.dispose()


@pytest.mark.parametrize("kind", [[], ["--ed25519"]], ids=["hmac", "ed25519"])
def test_from_the_command_line_to_the_warehouse(shared_collector: Collector, shared_database, kind):
    made = json.loads(shared_collector.command("keys", "create", "many", "--grants", *kind, "--json").stdout)
    token = grants.sign("granted", key=made["grant_key"])
    name = "by-hmac" if not kind else "by-ed25519"  # no beginning of what others send here: their ids are hexadecimal
    now_ns = int(datetime.now(UTC).timestamp() * 10**9)

    def request(event_id, customer):
        return request_of(event(1, event_id, now_ns), point={"customer.id": customer})

    for body in (
        carrying(request(f"{name}-ok", "granted"), token),
        carrying(request(f"{name}-other", "other"), token),
        request(f"{name}-none", "granted"),
    ):
        assert shared_collector.post(body, key=made["key"])[0] == 200
    wait_projected(shared_database)
    found = wait_for(
        lambda: len(found := [row for row in rows(shared_database) if row[0].startswith(name)]) == 3 and found
    )
    assert found == [(f"{name}-none", "grant_missing"), (f"{name}-ok", ""), (f"{name}-other", "grant_missing")]
    listed = shared_collector.command("keys", "list", "--json").stdout
    key_id = grants.Key.parse(made["grant_key"]).key_id
    assert key_id in listed and made["grant_key"].rpartition(".")[2] not in listed
    left = shared_collector.command("keys", "revoke", made["credential_id"], "--grant-key", key_id)
    assert left.stdout == f"{made['credential_id']} takes no grants of {key_id} any more; 0 keys are left.\n"


def test_a_second_front_end_key_is_added_and_one_key_serves_two_credentials(shared_collector):
    one = json.loads(shared_collector.command("keys", "create", "one", "--json").stdout)["credential_id"]
    two = json.loads(shared_collector.command("keys", "create", "two", "--json").stdout)["credential_id"]
    made = json.loads(shared_collector.command("keys", "grant-key", one, "--json").stdout)
    taken = shared_collector.command("keys", "grant-key", two, "--take", made["grant_key"])
    assert taken.stdout == f"{two} (two) takes grants of {made['grant_key_id']}.\n"
    refused = shared_collector.command("keys", "grant-key", two, "--take", "nonsense")
    assert refused.returncode == 1 and "this is no grant key" in refused.stderr
    weak = grants.Key(grants.ED25519_PUBLIC, "0123456789abcdef", (1).to_bytes(32, "little"))
    refused = shared_collector.command("keys", "grant-key", two, "--take", str(weak))
    assert refused.returncode == 1 and "anybody can sign" in refused.stderr


def test_attributes_of_scopes_cost_nothing_in_the_warehouse(database):
    request = carrying(at(0, "a"), signed("acme"))
    request.resource_metrics[0].scope_metrics[0].scope.attributes.extend(attributes({"x": 1}))
    Inbox(database).post(bound_record(request, 1, Granted("acme", "", RECEIVED_NS + 1)))
    assert database.query("SELECT attributes FROM usage").first_row == ({},)
