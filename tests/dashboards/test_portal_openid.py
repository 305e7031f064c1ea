"""Signing in with an OpenID provider: members and operators get in, and every wrong answer is refused."""

import hashlib
import hmac
import re
import urllib.parse
from datetime import UTC, datetime, timedelta

import httpx
import openid_provider
import pytest
from portal_samples import TOKEN
from starlette.testclient import TestClient

from meterhouse_portal import app, members
from meterhouse_portal.customer_pages import COOKIE
from meterhouse_portal.openid import OpenIdSettings
from meterhouse_store import registry, sql
from meterhouse_store.settings import Settings

NOW = datetime(2026, 11, 21, 3, 30, tzinfo=UTC)
PORTAL = "https://usage.acme.example"


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """Olga is a member, Anna an operator, and nobody else may sign in."""
    settings = Settings(data=tmp_path_factory.mktemp("portal"))
    engine = sql.open_engine(settings)
    registry.ensure_namespace(engine, "live", now=NOW)
    registry.add_customer(engine, "live", "acme", plan="pay", now=NOW)
    members.set_role(engine, "live", "acme", "olga@acme.example", "owner", who="tests", now=NOW)
    members.set_operator(engine, "live", "anna@operator.example", True, who="tests", now=NOW)
    yield engine, settings
    engine.dispose()


@pytest.fixture
def provider():
    with openid_provider.serving(f"{PORTAL}/openid/callback", lambda: NOW) as provider:
        yield provider


@pytest.fixture
def browser(engine, provider, monkeypatch):
    monkeypatch.setenv("METERHOUSE_OIDC_ISSUER", provider.issuer)
    monkeypatch.setenv("METERHOUSE_OIDC_CLIENT_ID", openid_provider.CLIENT)
    monkeypatch.setenv("METERHOUSE_OIDC_CLIENT_SECRET", openid_provider.SECRET)
    monkeypatch.setenv("METERHOUSE_OIDC_NAME", "Acme Login")
    built = app.build(engine[1], TOKEN, public_url=PORTAL, now=lambda: NOW)
    with TestClient(built, base_url=PORTAL, follow_redirects=False) as browser:
        yield browser


def asked(browser):
    """The way to the provider and back: the address that the browser comes back to."""
    there = browser.get("/openid")
    assert there.status_code == 303, there.text
    return httpx.get(there.headers["location"]).headers["location"].removeprefix(PORTAL)


def signed_in(browser):
    return browser.get(asked(browser))


def refused(browser, answer, caplog):
    """The reason, of an answer that signed nobody in."""
    assert (answer.status_code, COOKIE in browser.cookies) == (403, False), answer.text
    assert 'begin again.</p>\n<p><a href="/sign-in">Sign in</a></p>' in answer.text
    return caplog.records[-1].getMessage().removeprefix("a sign-in with the OpenID provider was refused: ")


def test_a_member_and_an_operator_sign_in_and_get_the_session_that_a_link_gives(browser, engine, provider):
    assert 'href="/openid">Sign in with Acme Login</a>' in browser.get("/sign-in").text
    answer = signed_in(browser)
    assert (answer.status_code, answer.headers["location"]) == (303, "/account")
    given = next(it for it in answer.headers.get_list("set-cookie") if it.startswith(COOKIE))
    assert all(it in given for it in ("HttpOnly", "SameSite=lax", "Secure", "Max-Age=604800"))
    visitor = members.visitor(engine[0], "live", browser.cookies[COOKIE], NOW)
    assert (visitor.email, visitor.role) == ("olga@acme.example", "owner")
    provider.person = {"sub": "u-2", "email": "Anna@Operator.example", "email_verified": True}
    assert signed_in(browser).headers["location"] == "/operator"
    assert provider.asked.count("/jwks") == 1  # known for an hour


def test_where_the_id_token_has_no_address_the_user_info_is_asked(browser, provider, caplog):
    provider.in_token = False
    provider.user_info = {"sub": "u-2"}
    assert "about somebody else" in refused(browser, signed_in(browser), caplog)
    provider.user_info = {"email_verified": "true"}
    assert "does not vouch" in refused(browser, signed_in(browser), caplog)
    provider.user_info = {}
    assert signed_in(browser).status_code == 303


def test_nobody_is_let_in_who_was_not_invited(browser, engine, provider):
    provider.person |= {"email": "new@acme.example"}
    answer = signed_in(browser)
    assert (answer.status_code, COOKIE in browser.cookies) == (403, False)
    assert "new@acme.example is no member here" in answer.text
    assert [it.email for it in members.members(engine[0], "live", "acme")] == ["olga@acme.example"]


AT = int(NOW.timestamp())


@pytest.mark.parametrize(
    ("claims", "said"),
    [
        ({"nonce": "of another attempt"}, "nonce"),
        ({"nonce": None}, "nonce"),
        ({"aud": "another client"}, "aud"),
        ({"aud": [openid_provider.CLIENT, "another client"]}, "for others, too"),
        ({"azp": "another client"}, "azp"),
        ({"iss": "https://evil.example"}, "iss"),
        ({"exp": AT - 60}, "expired"),
        ({"exp": None}, "exp"),
        ({"iat": AT + 61}, "issued in the future"),
        ({"email_verified": False}, "does not vouch"),
        ({"email_verified": "true"}, "does not vouch"),
        ({"email": ["olga@acme.example"]}, "no e-mail address"),
    ],
    ids=str,
)
def test_a_wrong_id_token_signs_nobody_in(browser, provider, caplog, claims, said):
    provider.claims = claims
    assert said in refused(browser, signed_in(browser), caplog)


def test_a_token_that_the_provider_s_key_did_not_sign_signs_nobody_in(browser, provider, caplog):
    provider.header, provider.sign = {"alg": "none"}, lambda _: b""
    assert "none" in refused(browser, signed_in(browser), caplog)
    # The public key as an HMAC secret, which everybody has.
    public = provider.jwks()["keys"][0]["n"].encode()
    provider.header, provider.sign = {"alg": "HS256"}, lambda it: hmac.digest(public, it, hashlib.sha256)
    assert "HS256" in refused(browser, signed_in(browser), caplog)
    provider.header, provider.sign = {}, lambda it: provider.signed_by_key(it + b"x")
    assert "bad_signature" in refused(browser, signed_in(browser), caplog)
    provider.header, provider.sign = {"kid": "unknown"}, provider.signed_by_key
    assert "kid" in refused(browser, signed_in(browser), caplog)


def test_a_new_key_of_the_provider_is_fetched_but_not_for_everybody_who_asks(engine, provider, monkeypatch):
    clock = [NOW]
    monkeypatch.setenv("METERHOUSE_OIDC_ISSUER", provider.issuer)
    monkeypatch.setenv("METERHOUSE_OIDC_CLIENT_ID", openid_provider.CLIENT)
    monkeypatch.setenv("METERHOUSE_OIDC_CLIENT_SECRET", openid_provider.SECRET)
    built = app.build(engine[1], TOKEN, public_url=PORTAL, now=lambda: clock[0])
    with TestClient(built, base_url=PORTAL, follow_redirects=False) as browser:
        assert signed_in(browser).status_code == 303
        provider.turn_key()
        assert [signed_in(browser).status_code for _ in range(2)] == [403, 403]
        assert provider.asked.count("/jwks") == 1
        clock[0] += timedelta(seconds=60)
        assert signed_in(browser).status_code == 303
        assert provider.asked.count("/jwks") == 2


def test_an_answer_is_good_once_and_only_in_the_browser_that_asked(browser, engine, provider, caplog):
    back = asked(browser)
    cookie = browser.cookies["__Host-meterhouse_openid"]
    with TestClient(browser.app, base_url=PORTAL, follow_redirects=False) as other:
        assert "no sign-in is under way" in refused(other, other.get(back), caplog)
        other.get("/openid")  # with an attempt of its own
        assert "the state is not this browser's" in refused(other, other.get(back), caplog)
    assert browser.get(back).status_code == 303
    assert "__Host-meterhouse_openid" not in browser.cookies
    browser.cookies.clear()
    assert "no sign-in is under way" in refused(browser, browser.get(back), caplog)
    browser.cookies.set("__Host-meterhouse_openid", cookie)
    assert "invalid_grant" in refused(browser, browser.get(back), caplog)  # the provider's word
    # A provider that takes a code twice: the portal takes no answer twice.
    provider.codes[dict(urllib.parse.parse_qsl(back))["/openid/callback?code"]] = {
        "redirect_uri": f"{PORTAL}/openid/callback",
        **dict(urllib.parse.parse_qsl(re.search(r"\?(.*)", address_of(cookie, provider)).group(1))),
    }
    browser.cookies.set("__Host-meterhouse_openid", cookie)
    assert "used already" in refused(browser, browser.get(back), caplog)


def address_of(secret, provider):
    from meterhouse_portal.openid import Attempt, OpenId

    settings = OpenIdSettings(issuer=provider.issuer, client_id=openid_provider.CLIENT)
    return OpenId(settings, f"{PORTAL}/openid/callback", lambda: NOW).address(Attempt(secret))


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({"iss": "https://evil.example"}, "the answer is from 'https://evil.example'"),  # mix-up, RFC 9207
        ({"iss": None}, "does not say which provider"),
        ({"state": "x" * 43}, "state"),
        ({"code": None}, "no code"),
        ({"error": "access_denied"}, "access_denied"),
        ({"code": "an invented one"}, "invalid_grant"),
    ],
    ids=str,
)
def test_a_wrong_answer_in_the_browser_signs_nobody_in(browser, provider, caplog, answers, said):
    provider.answers = answers
    assert said in refused(browser, signed_in(browser), caplog)
    if said != "invalid_grant":
        assert "/token" not in provider.asked  # nothing of it was sent anywhere


def test_a_code_without_its_verifier_is_worth_nothing(browser, provider, caplog, monkeypatch):
    back = asked(browser)
    monkeypatch.setattr("meterhouse_portal.openid.Attempt.verifier", "v" * 43)
    assert "invalid_grant" in refused(browser, browser.get(back), caplog)


@pytest.mark.parametrize(
    "metadata",
    [
        {"issuer": "https://evil.example"},
        {"authorization_endpoint": "http://evil.example/authorize"},
        {"authorization_endpoint": None},
    ],
    ids=str,
)
def test_a_provider_that_is_not_what_was_set_is_not_gone_to_and_links_go_on(browser, provider, metadata):
    provider.metadata = metadata
    assert browser.get("/openid").status_code == 503
    assert "You sign in with a link" in browser.get("/sign-in").text


def test_a_provider_that_does_not_answer_is_asked_by_one_and_nobody_may_ask_for_ever(browser, monkeypatch):
    asked = []

    def silent(request, timeout):
        asked.append(request.full_url)
        raise OSError("timed out")

    monkeypatch.setattr("meterhouse_portal.openid._opener.open", silent)
    assert [browser.get("/openid").status_code for _ in range(121)] == [503] * 120 + [429]
    assert len(asked) == 1


def test_without_settings_there_is_no_such_way_and_wrong_ones_are_refused_at_the_start(engine, monkeypatch, tmp_path):
    with TestClient(app.build(engine[1], TOKEN, public_url=PORTAL), base_url=PORTAL) as browser:
        assert browser.get("/openid").status_code == 404
        assert "/openid" not in browser.get("/sign-in").text
    with pytest.raises(ValueError, match="it is an https:// address"):
        OpenIdSettings(issuer="http://login.example.com", client_id="x").checked()
    with pytest.raises(ValueError, match="METERHOUSE_OIDC_CLIENT_ID"):
        OpenIdSettings(issuer="https://login.example.com").checked()
    known = {"issuer": "https://login.example.com", "client_id": "x"}
    with pytest.raises(ValueError, match=r"METERHOUSE_OIDC_CLIENT_SECRET_FILE: .*/none: No such file"):
        OpenIdSettings(**known, client_secret_file=tmp_path / "none").checked()
    (tmp_path / "secret").write_text("from a file\n")
    assert OpenIdSettings(client_secret_file=tmp_path / "secret").secret() == "from a file"
