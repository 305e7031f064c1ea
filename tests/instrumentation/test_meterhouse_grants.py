"""Signed grants in an agent: whom they are for, and how they travel with the usage until the collector has them."""

import asyncio
import base64
import json
import signal

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

import meterhouse
from meterhouse import grants
from meterhouse.attribution import current
from meterhouse.middleware import GrantFromHeader, WSGIGrantFromHeader

KEY = "mhgk.hmac.0123456789abcdef.AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"  # the bytes 0 to 31
# printf 'mhg.%s' "$payload" | openssl dgst -sha256 -mac HMAC -macopt hexkey:000102...1e1f -binary | basenc --base64url
TOKEN = (
    "mhg.eyJrIjoiMDEyMzQ1Njc4OWFiY2RlZiIsImMiOiJhY21lIiwiZSI6MTc5MzQ5NDgwMH0."
    "7j5OnjDFaFddC9Lu7J1BZj8yBr7fdgnT_Iw8y46oOPo"
)


def signed(customer="acme", **more):
    return grants.sign(customer, key=KEY, **more)


def carried(sink):
    """The grants on the scopes of each request, in order."""
    found = []
    for _, body in sink.requests:
        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            for scope in resource.scope_metrics:
                attributes = {one.key: one.value for one in scope.scope.attributes}
                values = attributes["meterhouse.grants"].array_value.values if attributes else []
                found.append([one.string_value for one in values])
    return found


def test_a_token_is_what_openssl_signs():
    assert grants.sign("acme", key=KEY, expires_in_s=3600, now_s=1793491200) == TOKEN
    assert grants.read(TOKEN) == grants.Grant("0123456789abcdef", "acme", None, 1793494800)
    assert grants.is_genuine(TOKEN, grants.Key.parse(KEY))
    assert not grants.is_genuine(TOKEN[:-1] + ("A" if TOKEN[-1] != "A" else "Q"), grants.Key.parse(KEY))


def test_ed25519_signs_with_the_private_and_verifies_with_the_public_key():
    key = grants.new_key(grants.ED25519)
    token = grants.sign("acme", key=str(key), agent="support")
    public = grants.Key.parse(str(key.verifying()))
    assert grants.is_genuine(token, public) and not grants.is_genuine(token + "A", public)
    with pytest.raises(ValueError, match="the private one signs"):
        grants.sign("acme", key=str(public))


ORDER_8 = int("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05", 16).to_bytes(32, "big")
P = 2**255 - 19


@pytest.mark.parametrize(
    "point",
    [one.to_bytes(32, "little") for one in (0, 1, P - 1, P, P + 1, 2**255 + 1, 2**255)] + [ORDER_8],
)
def test_a_public_key_for_which_anybody_can_sign_verifies_nothing(point):
    key = grants.Key(grants.ED25519_PUBLIC, "0123456789abcdef", point)
    assert key.is_weak
    for nonce in (1, 0, P - 1):
        for attempt in range(16):  # what is signed decides which of the eight points the signature has to name
            payload = grants._encoded(json.dumps({"k": key.key_id, "c": f"victim-{attempt}", "e": 2**32}).encode())
            forged = f"mhg.{payload}.{grants._encoded(nonce.to_bytes(32, 'little') + bytes(32))}"
            assert not grants.is_genuine(forged, key)


def test_no_key_that_was_made_is_weak():
    assert not any(grants.new_key(kind).verifying().is_weak for kind in (grants.HMAC, grants.ED25519))
    assert not grants.Key(grants.HMAC, "0123456789abcdef", bytes(32)).is_weak


def test_a_grant_says_for_whom_and_of_which_agent(monkeypatch):
    monkeypatch.setenv("METERHOUSE_GRANT_KEY", KEY)
    with meterhouse.grant(grants.sign("acme", agent="support")):
        assert (current().customer, current().agent_id) == ("acme", "support")
    with meterhouse.agent("own"), meterhouse.grant(grants.sign("globex")):
        assert (current().customer, current().agent_id) == ("globex", "own")
    assert current().grant is None


@pytest.mark.parametrize(
    "bad", ["", "mhg.a.b", "mhg." + "A" * 2000, TOKEN.replace("mhg.", "xyz."), "mhg.bnVsbA.x", None, 7, TOKEN + ".x"]
)
def test_what_is_no_grant_is_refused_without_showing_it(bad):
    with pytest.raises(ValueError, match="grant") as raised:
        meterhouse.grant(bad)
    assert TOKEN[10:40] not in str(raised.value)


@pytest.mark.parametrize("bad", ["", KEY[:-1], KEY.replace("hmac", "rsa")])
def test_a_bad_key_is_refused_without_showing_it(bad):
    with pytest.raises(ValueError, match="this is no grant key") as raised:
        grants.sign("acme", key=bad)
    assert "AAEC" not in str(raised.value) + repr(grants.Key.parse(KEY))
    with pytest.raises(ValueError, match="expires in the future"):
        signed(expires_in_s=0)


def test_each_grant_travels_once_per_request_and_never_with_the_events(metering, sink):
    one, two = sorted([signed("acme"), signed("globex")])
    for token in (one, two, one):
        with meterhouse.grant(token), meterhouse.conversation("c-1"):
            meterhouse.meter("pages").add(1)
    meterhouse.meter("pages").add(1)
    events = metering.flush()
    assert carried(sink) == [[one, two]]
    assert len(events) == 6 and not any(token in str(event) for event in events for token in (one, two))


def test_without_grants_a_request_is_what_it_was(metering, sink):
    meterhouse.meter("pages").add(1)
    metering.flush()
    assert carried(sink) == [[]]


def test_a_grant_survives_a_failed_export_and_the_carrier_to_another_process(metering, sink):
    token = signed()
    with meterhouse.grant(token):
        message = meterhouse.carrier()
    sink.answers.append((503, (), b"not now"))
    with meterhouse.carried(message):
        assert current().customer == "acme"
        meterhouse.meter("pages").add(1)
    metering.flush()
    assert carried(sink) == [[token]]
    with pytest.raises(ValueError, match="grant"):
        meterhouse.carried({**message, "meterhouse.grant": "x"})


DIES = """
import os, signal, sys, meterhouse
with meterhouse.grant(sys.argv[1]):
    meterhouse.meter("pages").add(1)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_grant_survives_the_death_of_its_process(agent, sink, metering, nowhere):
    from meterhouse.exporter import drain_now

    token = signed()
    process = agent(DIES, token, METERHOUSE_ENDPOINT=nowhere)
    assert process.wait(30) == -signal.SIGKILL
    assert drain_now(metering.journals).events == 1
    assert carried(sink) == [[token]] and sink.events[0].point["customer.id"] == "acme"


def test_the_middleware_takes_the_grant_from_a_header():
    seen = []

    async def app(scope, receive, send):
        seen.append((current().customer, current().grant))

    async def request(*headers):
        await GrantFromHeader(app)({"type": "http", "headers": list(headers)}, None, None)

    token = signed()
    asyncio.run(request((b"x-usage-grant", token.encode())))
    asyncio.run(request((b"x-usage-grant", b"mhg.rubbish")))
    asyncio.run(request((b"x-customer-id", b"acme")))
    WSGIGrantFromHeader(lambda *_: seen.append((current().customer, current().grant)) or [])(
        {"HTTP_X_USAGE_GRANT": token}, None
    )
    assert seen == [("acme", token), (None, None), (None, None), ("acme", token)]


@pytest.mark.parametrize("said", [{"c": "\ud800"}, {"a": "\udfff"}, {"k": "\ud800"}])
def test_half_an_emoji_is_no_grant(said):
    payload = {"k": "0" * 16, "c": "acme", "e": 2**31} | said
    encoded = base64.urlsafe_b64encode(json.dumps(payload).encode()).decode().rstrip("=")
    with pytest.raises(ValueError, match=r"surrogate|bytes of UTF-8"):
        grants.read(f"mhg.{encoded}.AAAA")
