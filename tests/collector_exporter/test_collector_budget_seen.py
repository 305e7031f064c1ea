"""A customer's own cap, hit by a running agent: seen in a browser, and the agent goes on when the customer says so."""

import os
import threading
from datetime import UTC, datetime
from pathlib import Path

import collector_samples as samples
import pytest
import uvicorn
from agent_programs import provider, starting, talker

from meterhouse_billing import budget_round
from meterhouse_billing.budget_round import Watch
from meterhouse_portal import app, members
from meterhouse_rating import versions
from meterhouse_rating.world import World
from meterhouse_store import registry
from meterhouse_store.meters import declared

BOOK = """
book: tests
currency: EUR
metrics:
  calls: {unit: call, meters: [llm.requests]}
unbilled:
  meters: [llm.tokens.input, llm.tokens.output, llm.tokens.cache_read, llm.tokens.cache_write, llm.tokens.reasoning,
           agent.conversations, agent.seconds, agent.tasks, api.calls, tool.calls]
plans:
  pay: {components: {calls: {model: per_unit, metric: calls, price: 1.00}}}
"""
SCREENS = {
    "desktop-light": (1280, 900, "light"), "desktop-dark": (1280, 900, "dark"),
    "phone-light": (390, 844, "light"), "phone-dark": (390, 844, "dark"),
}  # fmt: skip
PICTURES = os.environ.get("METERHOUSE_PICTURES")
"""A directory for pictures, for whoever wants to look at them."""


@pytest.fixture
def world(collector, database):
    made = World(collector.engine, database, "live", declared(collector.settings), lambda: datetime.now(UTC))
    units = {name: it.unit for name, it in made.meters.items()}
    versions.publish(made.engine, "live", BOOK, units, author="tests")
    registry.add_customer(made.engine, "live", "solo", name="Solo & Sons", currency="EUR", plan="pay")
    members.set_role(made.engine, "live", "solo", "olga@solo.example", "owner", who="tests", now=datetime.now(UTC))
    return made


@pytest.fixture
def portal(collector, world):
    """The address of a portal beside `meterhouse budgets watch`, as `meterhouse jobs` runs it, only more often."""
    port, ended = samples.free_port(), threading.Event()
    built = app.build(collector.settings, "a-token-of-more-than-16-characters")
    server = uvicorn.Server(uvicorn.Config(built, host="127.0.0.1", port=port, log_level="error"))
    watch = Watch(world)

    def watching():
        while not ended.wait(0.3):
            watch.due()

    threads = [threading.Thread(target=server.run), threading.Thread(target=watching)]
    for one in threads:
        one.start()
    samples.wait_for(lambda: server.started, what="the portal")
    yield f"http://127.0.0.1:{port}"
    ended.set()
    server.should_exit = True
    for one in threads:
        one.join()


@pytest.mark.long
def test_a_cap_that_a_running_agent_hits_is_seen_raised_and_acknowledged(world, collector, portal, chromium, tmp_path):
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    with starting(collector, tmp_path) as start, sync_playwright() as playwright:
        url, calls = provider(start, tmp_path)
        call = talker(start, url)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        pages = {}
        for name, (width, height, scheme) in SCREENS.items():
            size = {"width": width, "height": height}
            page = browser.new_context(viewport=size, color_scheme=scheme, bypass_csp=True).new_page()
            token = members.request_link(world.engine, "live", "olga@solo.example", datetime.now(UTC))
            page.goto(f"{portal}/sign-in/{token}")
            page.get_by_role("button", name="Sign in").click()
            page.wait_for_url("**/account")
            pages[name] = page
        olga = pages["phone-dark"]

        def looked_at(what):
            for name, page in pages.items():
                page.goto(f"{portal}/account/budgets")
                assert page.evaluate("document.documentElement.scrollWidth") <= SCREENS[name][0], name
                assert Axe().run(page).violations_count == 0, name
                if PICTURES:
                    page.screenshot(path=Path(PICTURES) / f"{what}-{name}.png", full_page=True)

        olga.goto(f"{portal}/account/budgets")
        olga.get_by_label("EUR a month").fill("2")
        olga.get_by_role("button", name="Save").click()
        assert olga.get_by_text("0 of 2 EUR", exact=True).is_visible()

        assert [call(20)[0] for _ in range(2)] == ["called", "called"]
        samples.wait_for(lambda: call(0)[0] == "hard_cap", within_s=30, what="the agent's pause at the cap")
        assert calls() == 2  # the third call never reached the provider
        looked_at("stopped")
        assert olga.get_by_text("2 of 2 EUR", exact=True).is_visible()
        assert olga.get_by_text("Agents are stopped at this limit").is_visible()

        olga.get_by_label("EUR a month").fill("3")
        olga.get_by_role("button", name="Raise to this amount, this month only").click()
        said, took_s = call(20)
        assert said == "called" and took_s < 5 and calls() == 3
        samples.wait_for(lambda: call(0)[0] == "hard_cap", within_s=30, what="the pause at the raised cap")

        olga.goto(f"{portal}/account/budgets")
        olga.get_by_role("button", name="Go on this month, and bill it").click()
        said, took_s = call(20)
        assert said == "called" and took_s < 5 and calls() == 4
        samples.wait_for(lambda: budget_round.run(world, "solo", write=False).states[0].used == 4, what="its usage")
        looked_at("released")
        assert olga.get_by_text("4 of 3 EUR", exact=True).is_visible()
        assert olga.get_by_text("Agents are stopped at this limit").count() == 0
        browser.close()
