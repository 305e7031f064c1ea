"""The customers' pages in a real browser: nothing wider than the screen, nothing axe complains of, no script needed."""

import io
import os
import re
from pathlib import Path

import pytest
from portal_samples import BOOK, NOW, TOKEN, portal_world, serving
from sqlalchemy import delete

from meterhouse_billing import policies, records
from meterhouse_billing.gateway import connect
from meterhouse_billing.world import World
from meterhouse_portal import app, members, packs
from meterhouse_rating import publishing
from meterhouse_rating.evidence_check.main import verify
from meterhouse_store import tables
from meterhouse_store.sql import begin_write

PAGES = (
    "/account", "/account?meter=tool.calls&by=tool", "/account/usage", "/account/actions", "/account/invoices",
    "/account/invoices/{id}", "/account/lines/{id}", "/account/questions", "/account/credits", "/account/budgets",
    "/account/prices", "/account/top-up", "/account/members",
    "/account/keys",
)  # fmt: skip
SCREENS = {"desktop": (1280, 900, "light"), "phone": (390, 844, "dark")}
PICTURES = os.environ.get("METERHOUSE_PICTURES")
"""A directory for pictures of every page, for whoever wants to look at them."""


def without_stripe(engine, namespace, who, now):
    environment = {"STRIPE_API_KEY": "sk_test_123", "METERHOUSE_STRIPE_URL": "http://127.0.0.1:1"}
    return World(engine, connect(environment, live=False), namespace, who, now)


@pytest.fixture(scope="module")
def portal(warehouse_address, tmp_path_factory):
    """The address of a served portal, and its world."""
    with portal_world(warehouse_address, tmp_path_factory.mktemp("portal") / "data") as (world, settings):
        wanted = {policies.TOP_UPS: "EUR=10/50/200"}
        policies.change(world.engine, "live", "", wanted, who="op", why="we sell credits", now=NOW)
        with serving(app.build(settings, TOKEN, now=lambda: NOW, billing=without_stripe)) as address:
            yield address, world


@pytest.mark.parametrize("screen", SCREENS)
def test_every_page_fits_its_screen_is_accessible_and_works_without_scripts(portal, browser, screen, tmp_path):
    from axe_playwright_python.sync_playwright import Axe

    address, world = portal
    width, height, scheme = SCREENS[screen]
    # The page's own scripts would be refused anyway; axe is one, so that it needs to get past the page's policy.
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, bypass_csp=True)
    complaints = []
    page = context.new_page()
    page.on("console", lambda it: complaints.append(it.text) if it.type in ("error", "warning") else None)
    page.on("response", lambda it: complaints.append(f"{it.status} {it.url}") if it.status >= 400 else None)

    def looked_at(name):
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, f"{name} is {wide} wide"
        found = Axe().run(page)
        assert found.violations_count == 0, f"{name}: {found.generate_report()}"
        if PICTURES:
            file = re.sub(r"[^a-z]+", "-", name.strip("/")) or "sign-in"
            page.screenshot(path=Path(PICTURES) / f"{screen}-{file}.png", full_page=True)

    page.goto(f"{address}/account")
    page.wait_for_url("**/sign-in")
    looked_at("sign-in")
    page.goto(f"{address}/sign-in/{members.request_link(world.engine, 'live', 'olga@acme.example', NOW)}")
    looked_at("sign-in-button")
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/account")

    paths = {"/account/actions": "/account/usage", "/account/invoices/{id}": "/account/invoices"}
    for name in PAGES:
        if name == "/account/lines/{id}":
            page.goto(f"{address}/account/invoices")
            page.locator("main tbody a").first.click()
        elif name in paths:
            page.goto(f"{address}{paths[name]}")
        if name in paths or name == "/account/lines/{id}":
            page.locator("main tbody a").first.click()
            page.wait_for_load_state()
        else:
            page.goto(f"{address}{name}")
        looked_at(name)

    page.goto(f"{address}/account/usage?from=2026-11-20&to=2026-11-01")
    assert page.get_by_text("The last day is before the first.").is_visible()
    complaints[:] = [it for it in complaints if "422" not in it]  # what is asked for
    looked_at("days-refused")
    page.goto(f"{address}/account/budgets")
    page.get_by_label("EUR a month").fill("1500")
    page.get_by_role("button", name="Save").click()
    assert page.get_by_text("1,200.5 of 1,500 EUR").is_visible()
    looked_at("budget-set")
    page.goto(f"{address}/account/keys")
    page.get_by_label("What it is for").fill(f"nightly {screen}")
    page.get_by_role("button", name="Make a key").click()
    assert page.locator("pre").inner_text().startswith("mhc_")
    looked_at("key-made")
    page.goto(f"{address}/account/invoices")
    page.locator("main tbody a").first.click()
    page.get_by_role("button", name="Ask for the evidence pack").click()
    assert page.get_by_text("It takes a few minutes.").is_visible()
    looked_at("evidence-asked")
    assert [it.state for it in packs.make_asked(world, tmp_path)] == ["made"]
    page.get_by_role("link", name="Look again").click()
    with page.expect_download() as download:
        page.get_by_role("link", name="evidence-2026-10-01-2026-11-01.zip").click()
    assert verify(Path(download.value.path())).verified
    looked_at("evidence-made")
    with begin_write(world.engine) as connection:
        connection.execute(delete(tables.evidence_packs))
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/sign-in")

    members.set_operator(world.engine, "live", "anna@operator.example", True, who="tests", now=NOW)
    page.goto(f"{address}/sign-in/{members.request_link(world.engine, 'live', 'anna@operator.example', NOW)}")
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/operator")
    for name in ("", "/customers", "/customer?id=acme", "/questions", "/suspense", "/prices", "/draft", "/record"):
        page.goto(f"{address}/operator{name}")
        looked_at(f"operator{name}")
    for draft in records.drafts(world.engine, "live"):
        records.record(world.engine, draft, who="tests", now=NOW)
    page.goto(f"{address}/operator")
    page.locator("summary").first.click()
    assert page.get_by_role("cell", name="600.00 EUR", exact=True).is_visible()
    looked_at("operator/lines")
    page.goto(f"{address}/operator/customer?id=acme")
    for summary in page.locator("summary").all():
        summary.click()
    looked_at("operator/customer-open")
    page.get_by_label("What stands on invoices").fill("Launch coupon")
    page.get_by_label("Percent off").fill("10")
    page.get_by_role("checkbox", name="input").check()
    form = page.locator("form", has=page.get_by_label("Percent off"))
    form.get_by_label("Why").fill("for the launch")
    form.get_by_role("button", name="Save").click()
    said = page.get_by_role("status").inner_text()
    assert said == "It has the discount Launch coupon from 2026-12-01 (Europe/Berlin) on."
    looked_at("operator/discount-given")
    page.get_by_text("Give it a price of its own").click()
    page.get_by_role("button", name="Write the price").click()
    page.get_by_label("YAML").fill("model: per_unit\nmetric: input_tokens\nper: 1000\nprice: cheap\n")
    page.get_by_role("button", name="Check and simulate").click()
    assert page.get_by_role("heading", name="Mistakes").is_visible()
    complaints[:] = [it for it in complaints if "422" not in it]  # what was just refused, and is asked for
    looked_at("operator/price-refused")
    page.get_by_label("YAML").fill("model: per_unit\nmetric: input_tokens\nper: 1000\nprice: 1.00\n")
    page.get_by_role("button", name="Check and simulate").click()
    assert page.get_by_text("302.00 EUR", exact=True).is_visible()
    looked_at("operator/price-simulated")
    page.get_by_label("Why").fill("agreed by telephone")
    page.get_by_role("button", name="Save").click()
    said = page.get_by_role("status").inner_text()
    assert said == "It has a price of its own for input from 2026-12-01 (Europe/Berlin) on."
    looked_at("operator/price-saved")
    page.goto(f"{address}/operator/draft")
    page.get_by_label("input, price").fill("2.50")
    page.get_by_role("button", name="Check and simulate").click()
    assert page.get_by_text("+388.50 EUR").is_visible()
    looked_at("operator/draft-simulated")
    page.get_by_label("YAML").fill("book: tests\nplans: {}\n")
    complaints_before = list(complaints)
    page.get_by_role("button", name="Check and simulate").click()
    assert page.get_by_role("heading", name="Mistakes").is_visible()
    looked_at("operator/draft-refused")
    page.goto(f"{address}/operator/draft")
    page.get_by_label("input, price").fill("2.50")
    page.get_by_label("YAML").fill("book: mine\n")
    page.get_by_role("button", name="Check and simulate").click()
    assert page.get_by_label("YAML").input_value() == "book: mine\n"
    assert page.get_by_label("input, price").input_value() == "2.50"
    looked_at("operator/draft-mixed")
    units = {name: it.unit for name, it in world.meters.items()}
    for price in ("2.50", "1.50"):
        publishing.propose(
            world.engine, "live", BOOK.replace("2.00", price), units,
            by=publishing.Person("carol", "root"), valid_from=None, now=NOW,
        )  # fmt: skip
    page.goto(f"{address}/operator/prices")
    looked_at("operator/prices-proposed")
    seen = set()
    for at in (0, 1):
        page.goto(f"{address}/operator/prices")
        page.get_by_role("link", name="Simulate 2026-10 with it, and decide").nth(at).click()
        seen |= {it for it in ("-388.50 EUR", "+388.50 EUR") if page.get_by_text(it).is_visible()}
        looked_at(f"operator/prices-looked-at-{at}")
    assert len(seen) == 2
    complaints[:] = complaints_before  # that a draft is refused is answered with 422
    assert complaints == []
    context.close()


def test_german_fits_a_phone_too(portal, browser):
    address, world = portal
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark", locale="de-DE")
    page = context.new_page()
    page.goto(f"{address}/sign-in/{members.request_link(world.engine, 'live', 'olga@acme.example', NOW)}")
    page.get_by_role("button", name="Anmelden").click()
    page.wait_for_url("**/account")
    for name in (it for it in PAGES if "{" not in it and "actions" not in it):
        page.goto(f"{address}{name}")
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 390, f"{name} is {wide} wide in German"
        if PICTURES:
            page.screenshot(path=Path(PICTURES) / f"phone-de{re.sub(r'[^a-z]+', '-', name)}.png", full_page=True)
    context.close()


def test_the_keyboard_reaches_the_content_first_and_then_every_page(portal, browser):
    address, world = portal
    context = browser.new_context(java_script_enabled=True)
    page = context.new_page()
    page.goto(f"{address}/sign-in/{members.request_link(world.engine, 'live', 'bill@acme.example', NOW)}")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url("**/account")
    reached = []
    for _ in range(6):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.innerText"))
    assert reached == ["Skip to the content", "Overview", "Usage", "Prices", "Invoices", "Budgets"]
    context.close()


@pytest.mark.parametrize("locale", ["en-US", "de-DE"])
def test_the_owner_s_pages_are_in_one_line_on_a_desktop(portal, browser, locale):
    address, world = portal
    context = browser.new_context(viewport={"width": 1280, "height": 900}, locale=locale)
    page = context.new_page()
    page.goto(f"{address}/sign-in/{members.request_link(world.engine, 'live', 'olga@acme.example', NOW)}")
    page.locator("main button").click()
    page.wait_for_url("**/account")
    places = [it.bounding_box()["y"] for it in page.locator(".top nav a").all()]
    assert len(places) == 9 and len(set(places)) == 1
    context.close()


def test_a_table_that_goes_on_beyond_a_phone_shows_it_and_the_keyboard_moves_it(portal, browser):
    from PIL import Image

    address, world = portal
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="light", bypass_csp=True)
    page = context.new_page()
    page.goto(f"{address}/sign-in/{members.request_link(world.engine, 'live', 'olga@acme.example', NOW)}")
    page.locator("main button").click()
    page.wait_for_url("**/account")
    page.goto(f"{address}/account/usage")  # whose uses are blocks there, and go on to no side
    assert page.evaluate("document.querySelector('.scroll').scrollWidth") <= 390
    assert page.locator(".blocks tbody tr").first.get_by_text("ok").is_visible()
    page.goto(f"{address}/account/members")
    table = page.locator(".scroll")

    def edges():
        """How light the sides of the table's head are."""
        with Image.open(io.BytesIO(table.screenshot())) as picture:
            grey = picture.convert("L")
            return [grey.getpixel((at, 6)) for at in (3, grey.width - 4)]

    before = edges()
    assert before[0] > 250 and before[1] < 220  # more to the right, and nothing to the left
    table.focus()
    for _ in range(40):
        page.keyboard.press("ArrowRight")
    page.wait_for_function(
        "(it => it.scrollLeft + it.clientWidth >= it.scrollWidth - 2)(document.querySelector('.scroll'))"
    )
    after = edges()
    assert after[0] < 220 and after[1] > 250
    context.close()
