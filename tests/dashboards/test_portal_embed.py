"""The customers' pages in a frame of a host application: what opens it, what it shows, and that it changes nothing."""

import base64
import hashlib
import hmac
import json
import re
import socket
import sys
import threading
import time
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
import uvicorn
from portal_samples import NOW, TOKEN, portal_world, text_of, visiting
from starlette.routing import Route
from starlette.testclient import TestClient

from meterhouse_portal import app, customer_pages, embedding, members
from meterhouse_portal.embed_pages import COOKIE
from meterhouse_portal.embedding import EmbedSettings
from meterhouse_store import registry, sql
from meterhouse_store.settings import Settings

PORTAL, HOST = "https://usage.example.com", "https://app.example.com"
AT = int(NOW.timestamp())
sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "embed"))


@pytest.fixture(scope="module")
def world(warehouse_address, tmp_path_factory):
    with portal_world(warehouse_address, tmp_path_factory.mktemp("portal") / "data") as made:
        yield made


@pytest.fixture(scope="module")
def key(world):
    """The text of a key that can show everybody."""
    return embedding.create_key(world[0].engine, "live", "the host", None, who="op", now=NOW)[1]


@pytest.fixture(autouse=True)
def origins(monkeypatch):
    monkeypatch.setenv("METERHOUSE_EMBED_ORIGINS", f"{HOST}, https://console.example.com:8443")


@contextmanager
def framing(world, token=None, now=NOW):
    """A browser that shows the portal in a frame; with a token it opened the frame."""
    built = app.build(world[1], TOKEN, public_url=PORTAL, now=lambda: now)
    with TestClient(built, base_url=PORTAL, follow_redirects=False) as browser:
        if token:
            assert browser.get("/embed", params={"token": token}).status_code == 303
        yield browser


def base64url(raw):
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


JTI = iter(range(10**6))


def sealed(key, header, claims):
    """Two JSON texts, whatever they are, signed with the key."""
    content = f"{base64url(header.encode())}.{base64url(claims.encode())}"
    return f"{content}.{base64url(hmac.digest(key.encode(), content.encode(), hashlib.sha256))}"


def signed(key, header=None, **claims):
    """A token as a host makes it, of what RFC 7515 says."""
    claims = {
        "aud": "meterhouse-embed", "sub": "acme", "iat": AT, "exp": AT + 60, "jti": f"number {next(JTI):016}",
    } | claims  # fmt: skip
    header = {"alg": "HS256", "typ": "JWT", "kid": key.partition(".")[0]} | (header or {})
    parts = ({name: it for name, it in each.items() if it is not None} for each in (header, claims))
    return sealed(key, *map(json.dumps, parts))


# ---- what opens a frame ---------------------------------------------------------------------------------------------


def test_the_example_s_address_opens_the_usage_of_its_customer_and_links_stay_in_the_frame(world, key, monkeypatch):
    import host

    monkeypatch.setattr("time.time", lambda: float(AT))
    address = host.frame_address(PORTAL, key, "acme").removeprefix(PORTAL)
    with framing(world) as browser:
        answer = browser.get(address, headers={"Sec-Fetch-Dest": "iframe"})
        assert (answer.status_code, answer.headers["location"]) == (303, "/embed/account")
        cookie = answer.headers["set-cookie"]
        assert cookie.startswith("__Host-meterhouse_embed=") and "Max-Age=3600; Path=/; Secure; HttpOnly" in cookie
        assert cookie.endswith("SameSite=None; Partitioned")
        page = browser.get("/embed/account").text
        assert "So far 1,200.50 EUR" in text_of(page)
        assert 'href="/embed/account/usage"' in page and 'action="/embed/account"' in page
        assert '"/account' not in page.replace('href="/account.css', "")
        assert 'href="/embed/account" aria-current="page"' in page
        usage = browser.get("/embed/account/usage").text
        assert browser.get(re.search(r'href="(/embed/account/usage\.csv[^"]*)"', usage).group(1)).status_code == 200


def test_a_token_opens_once_and_what_was_open_before_closes_with_a_refusal(world, key):
    token = signed(key)
    with framing(world, token) as browser:
        assert browser.get("/embed/account").status_code == 200
        again = browser.get("/embed", params={"token": token})
        assert (again.status_code, "the token was used" in again.text) == (403, True)
        assert browser.get("/embed/account").status_code == 401


@pytest.mark.parametrize(
    ("header", "claims", "said"),
    [
        ({}, {"exp": AT - 61}, "expired"),
        ({}, {"exp": AT + 301}, "longer than 300 seconds"),
        ({}, {"iat": AT + 61, "exp": AT + 120}, "issued in the future"),
        ({}, {"iat": None}, "iat"),
        ({}, {"exp": None}, "exp"),
        ({}, {"jti": None}, "jti"),
        ({}, {"jti": "short"}, "16 to 128"),
        ({}, {"aud": "another service"}, "aud"),
        ({}, {"role": "owner"}, "role"),
        ({}, {"sub": "initech"}, "cannot show a customer"),
        ({}, {"sub": "ac\0me"}, "a customer&#39;s id"),
        ({"alg": "none"}, {}, "none"),
        ({"alg": "HS512"}, {}, "HS512"),
        ({"kid": "ek_unknown"}, {}, "no key in use"),
        ({"kid": None}, {}, "no `kid`"),
        ({"crit": 5}, {}, "the token: "),
        ({}, {"jti": "\ud800" * 16}, "16 to 128"),
    ],
    ids=str,
)
def test_a_wrong_token_opens_nothing(world, key, header, claims, said):
    with framing(world) as browser:
        answer = browser.get("/embed", params={"token": signed(key, header, **claims)})
        assert (answer.status_code, COOKIE in browser.cookies) == (403, False)
        assert said in answer.text


def test_a_token_that_was_changed_opens_nothing(world, key):
    header, claims, signature = signed(key).split(".")
    other = signed(key, sub="globex").split(".")[1]
    with framing(world) as browser:
        for token in (f"{header}.{other}.{signature}", f"{header}.{claims}.", "", "x", "x" * 5000):
            assert browser.get("/embed", params={"token": token}).status_code == 403


def test_a_token_of_no_claims_opens_nothing_though_the_key_signed_it(world, key):
    header = json.dumps({"alg": "HS256", "typ": "JWT", "kid": key.partition(".")[0]})
    with framing(world) as browser:
        for claims in ("[" * 2000, "[]", "1", "x", ""):
            answer = browser.get("/embed", params={"token": sealed(key, header, claims)})
            assert (answer.status_code, COOKIE in browser.cookies) == (403, False), claims


def test_asking_for_the_head_of_an_address_does_not_use_it_up(world, key):
    token = signed(key)
    with framing(world) as browser:
        answer = browser.head("/embed", params={"token": token})
        assert (answer.status_code, answer.headers["allow"], COOKIE in browser.cookies) == (405, "GET", False)
        assert browser.get("/embed", params={"token": token}).status_code == 303
        assert browser.head("/embed", params={"token": token}).status_code == 405
        assert browser.get("/embed/account").status_code == 200  # a used one closes what is open: not by its head


@pytest.mark.parametrize("store", ["sqlite", "postgresql"])
def test_keys_overlap_end_at_once_with_what_they_opened_and_may_be_bound_to_a_customer(store, tmp_path, request):
    more = {"sql_url": request.getfixturevalue("postgres_url")} if store == "postgresql" else {}
    engine = sql.open_engine(Settings(data=tmp_path, **more))
    for name in ("live", "test"):
        registry.ensure_namespace(engine, name, now=NOW)
        registry.add_customer(engine, name, "acme", plan="pay", now=NOW)
    registry.add_customer(engine, "live", "globex", plan="pay", now=NOW)
    old, text = embedding.create_key(engine, "live", "host", None, who="op", now=NOW)
    new, text_of_new = embedding.create_key(engine, "live", "host", "acme", who="op", now=NOW)
    first, second = (embedding.begin(engine, "live", signed(it), NOW) for it in (text, text_of_new))
    assert embedding.visitor(engine, "live", first, NOW).role == "viewer"
    with pytest.raises(embedding.EmbedRefused, match="cannot show a customer 'globex'"):
        embedding.begin(engine, "live", signed(text_of_new, sub="globex"), NOW)
    embedding.revoke_key(engine, "live", old.key_id, NOW)
    with pytest.raises(registry.RegistryError, match="there is no key"):
        embedding.revoke_key(engine, "live", old.key_id, NOW)
    assert embedding.visitor(engine, "live", first, NOW) is None
    assert embedding.visitor(engine, "live", second, NOW + timedelta(minutes=59)).customer_id == "acme"
    assert embedding.visitor(engine, "live", second, NOW + timedelta(hours=1)) is None
    for namespace, token in (("live", signed(text)), ("test", signed(text_of_new))):
        with pytest.raises(embedding.EmbedRefused, match="no key in use"):
            embedding.begin(engine, namespace, token, NOW)
    assert embedding.keys(engine, "live") == [new]
    used = signed(text_of_new)
    embedding.begin(engine, "live", used, NOW)
    with pytest.raises(embedding.EmbedRefused, match="was used"):
        embedding.begin(engine, "live", used, NOW)
    engine.dispose()


# ---- what a frame may do --------------------------------------------------------------------------------------------


def routes(world):
    """Every route of a frame, from the routing table."""
    from meterhouse_portal.rendering import Rendering
    from meterhouse_portal.stores import Stores
    from meterhouse_store.brand import Brand
    from meterhouse_store.mail import MailSettings

    pages = customer_pages.CustomerPages(
        world[1], Stores(world[1]), Rendering(Brand()), MailSettings(), PORTAL, lambda: NOW, app.billing_world,
        frame_origins=(HOST,),
    )  # fmt: skip
    return [it for it in pages.routes() if isinstance(it, Route) and it.name == "embed"]


OBJECTS = {  # mine, another's, nobody's
    "/embed/account/actions": (
        "?id=c-20&at=2026-11-20T12:00:00%2B00:00", "?id=c-globex-2&at=2026-11-07T10:00:00%2B00:00",
        "?id=c-none&at=2026-11-07T10:00:00%2B00:00",
    ),
}  # fmt: skip
WITHOUT_OBJECT = {
    "/embed/account", "/embed/account/usage", "/embed/account/usage.csv", "/embed/account/usage.parquet",
    "/embed/account/prices",
}  # fmt: skip
CLOSED = {"/embed", "/embed/{rest:path}"}


def test_every_route_of_a_frame_reads_what_viewers_read_of_one_customer_and_changes_nothing(world, key):
    paths = {it.path for it in routes(world)}
    assert paths == WITHOUT_OBJECT | set(OBJECTS) | CLOSED, "a route is in no matrix: add it here"
    policy = f"frame-ancestors {HOST} https://console.example.com:8443"
    with framing(world, signed(key)) as browser:
        for path in sorted(paths - CLOSED):
            mine, theirs, none = (path + it for it in OBJECTS.get(path, ("",) * 3))
            answer = browser.get(mine)
            assert answer.status_code == 200, path
            assert answer.headers["content-security-policy"].endswith(policy), path
            assert 'method="post"' not in answer.text and "globex" not in answer.text, path
            if theirs != mine:
                assert browser.get(theirs).status_code == 404
                assert browser.get(theirs).text == browser.get(none).text
            for method in ("POST", "PUT", "PATCH", "DELETE"):
                assert browser.request(method, mine).status_code == 405, (method, path)
        # What other roles have is not there, and nothing says whether it exists.
        others = {it.path for it in customer_pages.PAGES} - {it.removeprefix("/embed") for it in paths}
        for path in {it.replace("{id}", "0" * 64) for it in others} | {"/nothing", "/operator", "/customers"}:
            answer = browser.get(f"/embed{path}")
            assert (answer.status_code, "It is not shown here." in answer.text) == (404, True), path
            assert answer.headers["content-security-policy"].endswith(policy)


def test_a_frame_s_session_and_a_member_s_are_worth_nothing_in_each_other_s_place(world, key):
    with framing(world, signed(key)) as browser:
        assert browser.get("/account").headers["location"] == "/sign-in"
        session = browser.cookies[COOKIE]
        browser.cookies.set(customer_pages.COOKIE, session)
        assert browser.get("/account").headers["location"] == "/sign-in"
        assert browser.post("/account/keys", data={"name": "x"}).headers["location"] == "/sign-in"
        assert "frame-ancestors 'none'" in browser.get("/account").headers["content-security-policy"]
    at = world[0]
    token = members.request_link(at.engine, "live", "olga@acme.example", NOW)
    with framing(world) as browser:
        browser.post(f"/sign-in/{token}")
        assert browser.get("/account").status_code == 200
        assert browser.get("/embed/account").status_code == 401
        browser.cookies.set(COOKIE, browser.cookies[customer_pages.COOKIE])
        assert browser.get("/embed/account").status_code == 401


def test_a_signed_address_is_of_no_use_outside_of_a_frame(world, key):
    token = signed(key)
    with framing(world) as browser:
        answer = browser.get("/embed", params={"token": token}, headers={"Sec-Fetch-Dest": "document"})
        assert (answer.status_code, COOKIE in browser.cookies) == (403, False)
        assert browser.get("/embed", params={"token": token}).status_code == 303  # it was not used up


def test_without_origins_there_are_no_frames_and_wrong_ones_are_refused_at_the_start(world, monkeypatch):
    monkeypatch.delenv("METERHOUSE_EMBED_ORIGINS")
    with visiting(world) as browser:
        assert browser.get("/embed").status_code == 404
    for wrong in (
        "app.example.com", "http://app.example.com", "https://*.example.com", "https://a.example/", "*", "'self'",
        "https://a.example/x", "https://a b", "https://a.example;script-src", "https://A.example", "https://a:x",
    ):  # fmt: skip
        with pytest.raises(ValueError, match="an origin is https://"):
            EmbedSettings(origins=wrong).checked(PORTAL)
    with pytest.raises(ValueError, match="needs https://"):
        EmbedSettings(origins=HOST).checked("http://usage.example.com")
    local = EmbedSettings(origins="http://localhost:3000").checked("http://127.0.0.1:8080")
    assert local == ("http://localhost:3000",)


# ---- in a browser ---------------------------------------------------------------------------------------------------


class Quiet(WSGIRequestHandler):
    def log_message(self, *_):
        pass


def test_a_browser_shows_the_pages_in_the_host_s_frame_and_not_in_another_s(
    world, key, chromium, monkeypatch, tmp_path
):
    import os

    import host
    from playwright.sync_api import sync_playwright

    with make_server("127.0.0.1", 0, host.page, handler_class=Quiet) as server, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        # `localhost` and `127.0.0.1` are two sites, so that its cookies are a third party's.
        monkeypatch.setenv("METERHOUSE_EMBED_ORIGINS", f"http://localhost:{server.server_port}")
        monkeypatch.setenv("METERHOUSE_PUBLIC_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("METERHOUSE_EMBED_KEY", key)
        built = app.build(world[1], TOKEN, public_url=f"http://127.0.0.1:{port}", now=lambda: NOW)
        portal = uvicorn.Server(uvicorn.Config(built, host="127.0.0.1", port=port, log_level="error"))
        threads = [threading.Thread(target=it) for it in (portal.run, server.serve_forever)]
        for it in threads:
            it.start()
        while not portal.started:
            time.sleep(0.02)
        monkeypatch.setattr("host.time.time", lambda: float(AT))
        try:
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
                pictures = os.environ.get("METERHOUSE_PICTURES")
                for name, width, scheme in (("desktop", 1280, "light"), ("phone", 390, "dark")):
                    viewport = {"width": width, "height": 900}
                    page = browser.new_context(viewport=viewport, color_scheme=scheme).new_page()
                    page.goto(f"http://localhost:{server.server_port}/")
                    frame = page.frame_locator("iframe")
                    assert frame.get_by_text("1,200.50 EUR").is_visible()
                    frame.get_by_role("link", name="Usage", exact=True).click()
                    frame.get_by_role("heading", name="Usage").wait_for()
                    if pictures:
                        page.screenshot(path=Path(pictures) / f"{name}-embed.png")
                elsewhere = browser.new_page()
                said = []
                elsewhere.on("console", lambda it: said.append(it.text))
                elsewhere.goto(f"http://127.0.0.1:{server.server_port}/")
                elsewhere.wait_for_timeout(300)
                assert any("frame-ancestors" in it for it in said), said
                browser.close()
        finally:
            portal.should_exit = True
            server.shutdown()
            for it in threads:
                it.join()
