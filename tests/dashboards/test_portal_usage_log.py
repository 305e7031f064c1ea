"""The usage log that customers see, page by page and as downloads: every use once, of the customer alone."""

import asyncio
import csv
import io
import re
from datetime import datetime
from decimal import Decimal

import pytest
from clickhouse_connect.driver.httpclient import HttpClient
from portal_samples import portal_world, text_of, visiting
from starlette.requests import ClientDisconnect

from meterhouse_portal.exports import Exports


@pytest.fixture(scope="module")
def world(warehouse_address, tmp_path_factory):
    with portal_world(warehouse_address, tmp_path_factory.mktemp("portal") / "data") as made:
        yield made


def test_the_log_has_a_row_per_call_opens_to_its_events_and_can_be_narrowed(world):
    with visiting(world, "vera@acme.example") as browser:
        shown = text_of(browser.get("/account/usage").text)
        assert "2026-11-20 13:00:00 CET 60.00 EUR helper gpt-5 1 llm.requests 30,000 llm.tokens.input ok" in shown
        assert "c-oct" not in shown and shown.count("CET 60.00 EUR helper gpt-5") == 20
        only = browser.get("/account/usage?conversation=talk-7").text
        assert only.count("/account/actions?") == 1
        opened = browser.get(re.search(r'href="(/account/actions\?[^"]+)"', only).group(1).replace("&amp;", "&"))
        assert opened.status_code == 200
        assert "talk-7" in opened.text and "e23" in opened.text and "llm.<wbr>requests" in opened.text
        assert "Nothing in this period is like that." in browser.get("/account/usage?model=gpt-6").text
        october = text_of(browser.get("/account/usage?period=2026-10").text)
        assert "2026-10-31 23:30:00 CET" in october and "2026-11-01 00:30:00" not in october


@pytest.mark.sampled(2)
@pytest.mark.parametrize("size", [2, 6])  # of which the last days have one, or not
@pytest.mark.parametrize(("few", "latest"), [(20_000, 2_000), (2, 2), (2, 20)])
def test_pages_of_the_log_have_every_call_once(world, monkeypatch, few, latest, size):
    monkeypatch.setattr("meterhouse_portal.usage_log.PAGE", size)
    monkeypatch.setattr("meterhouse_portal.usage_log._FEW", few)  # beyond which it looks back span by span
    monkeypatch.setattr("meterhouse_portal.usage_log._LATEST", latest)  # of which a page is made, if they are enough
    with visiting(world, "vera@acme.example") as browser:
        seen, path = [], "/account/usage"
        while path:
            page = browser.get(path).text
            seen += re.findall(r"/account/actions\?id=([^&]+)&", page)
            following = re.search(r'rel="next" href="([^"]+)"', page)
            path = following and following.group(1).replace("&amp;", "&")
    # The tool call has no call id, so that it goes by its event's.
    assert seen == ["e24", *(f"c-{day}" for day in range(20, 1, -1)), "c-nov-0"]


@pytest.mark.parametrize(
    ("page", "size", "most"), [("/account", 50, 1), ("/account/usage", 2, 2), ("/account/usage", 50, 3)]
)
def test_a_page_asks_the_view_of_usage_as_seldom_as_it_can(world, monkeypatch, page, size, most):
    asked, query = [], HttpClient.query
    monkeypatch.setattr("meterhouse_portal.usage_log.PAGE", size)  # the last days have 2 calls, not 50
    monkeypatch.setattr(
        HttpClient, "query", lambda self, text, *more, **named: asked.append(text) or query(self, text, *more, **named)
    )
    with visiting(world, "vera@acme.example") as browser:
        assert browser.get(page).status_code == 200
    # What is known up to the watermark is in conflict already, if it is: so only then is it looked up whether any is.
    positions = [
        next(at for at, text in enumerate(asked) if name in text) for name in ("FROM watermark", "usage_apart")
    ]
    assert positions == sorted(positions)
    # The engine takes longer to plan a question of it than to answer it.
    assert sum(len(re.findall(r"FROM usage(?:_plain)? ", text)) for text in asked) == most


@pytest.mark.parametrize(
    ("query", "field", "told"),
    [
        ("period=tomorrow", "period", "That is no period"),
        ("from=2026-11-20", "to", "Say both days"),
        ("from=2026-11-20&to=yesterday", "to", "Say both days"),
        ("from=2026-11-20&to=2026-11-19", "to", "The last day is before the first."),
        ("from=2026-09-20&to=2026-11-19", "to", "At most a month is shown at once"),
        ("from=0001-01-01&to=0001-01-02", "from", "Say both days"),
        ("from=9999-12-31&to=9999-12-31", "from", "Say both days"),
    ],
)
def test_a_period_that_is_none_is_said_beside_its_field_and_the_form_keeps_what_was_typed(world, query, field, told):
    with visiting(world, "vera@acme.example") as browser:
        refused = browser.get(f"/account/usage?{query}&meter=tool.calls")
    assert refused.status_code == 422
    assert f'aria-describedby="wrong-{field}"' in refused.text
    assert told in text_of(re.search(f'id="wrong-{field}".*?</p>', refused.text)[0])
    for name, value in (part.split("=") for part in query.split("&")):
        assert f'value="{value}"' in refused.text, name
    assert "<option selected>tool.calls</option>" in refused.text and "<h1>Usage</h1>" in refused.text


def test_the_log_offers_the_months_there_are_and_days_of_the_customer_s_zone(world):
    with visiting(world, "vera@acme.example") as browser:
        page = browser.get("/account/usage").text
        # Registered on 22 September.
        months = re.search(r'<select name="period">(.*?)</select>', page)[1]
        assert re.findall(r">([^<]+)</option>", months) == ["November 2026", "October 2026", "September 2026"]
        # At 23:30 in UTC on 31 October it is 1 November in Berlin; the 2nd is not asked for.
        one = browser.get("/account/usage?from=2026-11-01&to=2026-11-01").text
        assert one.count("/account/actions?id=") == 1 and "c-nov-0" in one
        assert "2026-11-01 00:00 CET to 2026-11-02 00:00 CET" in text_of(one)
        exported = browser.get("/account/usage.csv?from=2026-11-01&to=2026-11-01").text
        assert exported.count("c-nov-0") == 1 and len(exported.splitlines()) == 2
        assert 'href="/account/usage.csv?from=2026-11-01&amp;to=2026-11-01"' in one


@pytest.mark.parametrize("period", ["9999-12", "0001-01", "9999-12-31..9999-12-31T23:59:59", "２０２６-１０"])
def test_periods_beyond_the_calendar_are_refused_in_a_sentence(world, period):
    with visiting(world, "vera@acme.example") as browser:
        assert browser.get("/account/usage", params={"period": period}).status_code == 422
        assert browser.get("/account/usage.csv", params={"period": period}).status_code == 400
        assert browser.get("/account/actions?id=x&at=9999-12-31T23:59:59").status_code == 404


@pytest.mark.parametrize(
    "query", ["after=x", "after=9999999999999999999999-a", "after=9300000000000000000-a", "page=2"]
)
def test_what_the_log_cannot_be_asked_is_said(world, query):
    with visiting(world, "vera@acme.example") as browser:
        assert browser.get(f"/account/usage?{query}").status_code == 400


def test_the_export_has_all_events_and_no_formula(world):
    with visiting(world, "vera@acme.example") as browser:
        answer = browser.get("/account/usage.csv")
        rows = list(csv.DictReader(io.StringIO(answer.text)))
        parquet = browser.get("/account/usage.parquet?meter=tool.calls").content
    assert 'filename="usage-2026-10-31-2026-11-30.csv"' in answer.headers["content-disposition"]
    assert len(rows) == 22 and {row["meter"] for row in rows} == {"llm.tokens.input", "llm.requests", "tool.calls"}
    assert sum(Decimal(row["quantity"]) for row in rows if row["meter"] == "llm.tokens.input") == 600_000
    assert [row["tool"] for row in rows if row["tool"]] == ['\'=HYPERLINK("http://evil")']
    assert parquet[:4] == b"PAR1"
    assert "globex" not in answer.text and "secret-model" not in answer.text


@pytest.mark.parametrize("sorted_at_once", [1, 3, 200_000])
def test_a_csv_has_every_event_once_in_the_order_of_its_time_which_says_its_zone(world, monkeypatch, sorted_at_once):
    monkeypatch.setattr("meterhouse_portal.usage_log._SORTED", sorted_at_once)
    with visiting(world, "vera@acme.example") as browser:
        rows = list(csv.DictReader(io.StringIO(browser.get("/account/usage.csv").text)))
        nothing = browser.get("/account/usage.csv?tool=none").text
    times = [row["event_time"] for row in rows]
    assert times == sorted(times) and len({row["event_id"] for row in rows}) == len(rows) == 22
    assert (times[0], times[-1]) == ("2026-10-31T23:30:00.000000000Z", "2026-11-20T12:00:05.000000000Z")
    assert all(datetime.fromisoformat(row["received_at"]).tzinfo is not None for row in rows)
    assert nothing.startswith('"event_time",') and len(nothing.splitlines()) == 1


def test_a_download_that_nobody_reads_on_lets_the_next_one_in(world):
    released = []

    def blocks():
        try:
            while True:
                yield b"x" * 1000
        finally:
            released.append(True)

    async def gone(_message):
        raise OSError("the client is gone")

    async def nothing():
        return {"type": "http.disconnect"}

    exports = Exports()
    first = exports.begin("acme", blocks(), {}, "text/csv")
    assert exports.begin("acme", blocks(), {}, "text/csv") is None
    scope = {"type": "http", "method": "GET", "asgi": {"spec_version": "2.4"}}
    with pytest.raises(ClientDisconnect):
        asyncio.run(first(scope, nothing, gone))
    assert released == [True]
    second = exports.begin("acme", blocks(), {}, "text/csv")
    assert second is not None
