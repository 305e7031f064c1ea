"""What matters most of invoices is on a phone's screen without scrolling sideways, also where lines have long names."""

import os
from pathlib import Path

import pytest
from portal_samples import BOOK, NOW, TOKEN, portal_world, serving

from meterhouse_portal import app, members

LONG = BOOK.replace(
    "{model: per_unit, metric: input_tokens, per: 1000, price: 2.00}",
    "{model: per_unit, title: Input tokens, metric: input_tokens, per: 1000, by: [model, agent_name], "
    "prices: [{model: gpt-5*, agent_name: help*, price: 2.00}], default: 3.00}",
)
WIDTH = 390
PICTURES = os.environ.get("METERHOUSE_PICTURES")


@pytest.fixture(scope="module")
def portal(warehouse_address, tmp_path_factory):
    """The address of a served portal whose invoices have a line for each model and agent, and its world."""
    data = tmp_path_factory.mktemp("portal") / "data"
    with (
        portal_world(warehouse_address, data, book=LONG) as (world, settings),
        serving(app.build(settings, TOKEN, now=lambda: NOW)) as address,
    ):
        yield address, world


@pytest.mark.parametrize(
    ("locale", "amounts", "total", "state"),
    [
        ("en-US", ["600.00 EUR", "2.00 EUR"], "602.00 EUR", "closed"),
        ("de-DE", ["600,00 EUR", "2,00 EUR"], "602,00 EUR", "abgeschlossen"),
    ],
)
def test_amounts_and_states_of_invoices_are_seen_on_a_phone(portal, browser, locale, amounts, total, state):
    from axe_playwright_python.sync_playwright import Axe

    address, world = portal
    context = browser.new_context(viewport={"width": WIDTH, "height": 844}, locale=locale, bypass_csp=True)
    page = context.new_page()
    page.goto(f"{address}/sign-in/{members.request_link(world.engine, 'live', 'olga@acme.example', NOW)}")
    page.locator("main button").click()
    page.wait_for_url("**/account")

    def assert_seen(found):
        box = found.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= WIDTH, f"{found.inner_text()}: {box}"

    def look_at(name):
        assert page.evaluate("document.querySelector('.scroll').scrollWidth") <= WIDTH
        if PICTURES:
            page.screenshot(path=Path(PICTURES) / f"long-{locale}-{name}.png", full_page=True)
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()

    page.goto(f"{address}/account/invoices")
    listed = page.locator("main tbody tr")
    assert_seen(listed.get_by_text(total))
    assert_seen(listed.get_by_text(state))
    look_at("invoices")
    page.locator("main tbody a").first.click()
    page.wait_for_load_state()
    names = page.locator("main tbody th")
    assert any(len(it) > 25 for it in names.all_inner_texts())
    for found in names.all():
        assert_seen(found)
    for row, amount in zip(page.locator("main tbody tr").all(), amounts, strict=True):
        assert_seen(row.get_by_text(amount, exact=True))
    assert_seen(page.locator("main tfoot").get_by_text(total))
    look_at("invoice")
    context.close()
