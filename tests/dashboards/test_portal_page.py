"""The portal's page as text: what it says in each state, and that nothing from outside becomes HTML."""

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from html import escape

import pytest

from meterhouse_portal.overview import Cost, CustomerMonth, FromWarehouse, MeterUsage, Month, Overview, Unrated
from meterhouse_portal.page import Address, message_page, overview_page
from meterhouse_rating.late import LateUsage
from meterhouse_rating.periods import Period
from meterhouse_store.meters import Meter
from meterhouse_store.reasons import SENTENCES

NOW = datetime(2026, 11, 21, 3, 30, tzinfo=UTC)
START, END = datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC)
METERS = {"llm.tokens.input": Meter("llm.tokens.input", "{token}", "input tokens", "integer", Decimal(1))}


def page(
    *customers: CustomerMonth,
    warehouse: FromWarehouse | None = None,
    unrated=(),
    unrated_elsewhere=0,
    not_shown=0,
    down=False,
) -> str:
    found = warehouse or FromWarehouse({row.customer_id: list(row.usage) for row in customers if row.usage})
    content = Overview(
        "live", Month(2026, 11), NOW, customers, not_shown, unrated, unrated_elsewhere, None if down else found
    )
    addresses = [
        Address("Health", "http://127.0.0.1:8080/healthz", is_page=True),
        Address("OTLP over HTTP", "http://127.0.0.1:4318"),
    ]
    return overview_page(content, METERS, addresses)


def text_of(html: str) -> str:
    """What a reader sees: one space between words."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html.replace("<wbr>", "")))


def customer(customer_id="acme", name="Acme GmbH", plan="payg", usage=(), costs=(), unpriced=0) -> CustomerMonth:
    return CustomerMonth(customer_id, name, plan, tuple(usage), tuple(costs), unpriced)


def cost(total_minor=1_234_567, currency="USD", start=START, end=END, state="open", invoice=None) -> Cost:
    return Cost(start, end, state, total_minor, currency, NOW, invoice)


def test_a_customer_s_usage_and_cost_stand_together():
    shown = text_of(page(customer(usage=[MeterUsage("llm.tokens.input", Decimal("182341922"), 18000)], costs=[cost()])))

    assert "Acme GmbH acme payg 12,345.67 USD so far, rated 2026-11-21 03:30 UTC" in shown
    assert "llm.tokens.input 182,341,922 token" in shown
    assert "Customers with usage 1" in shown
    assert "Usage events 18,000" in shown


def test_quantities_keep_all_their_decimals():
    shown = text_of(page(customer(usage=[MeterUsage("agent.seconds", Decimal("1234.125000000"), 2)])))

    assert "agent.seconds 1,234.125" in shown


@pytest.mark.parametrize(
    ("currency", "minor", "shown"),
    [("USD", 5, "0.05 USD"), ("JPY", 1500, "1,500 JPY"), ("KWD", 1500, "1.500 KWD"), ("EUR", -123456, "-1,234.56 EUR")],
)
def test_an_amount_has_the_digits_of_its_currency(currency, minor, shown):
    assert shown in text_of(page(customer(costs=[cost(minor, currency)])))


def test_a_period_that_is_no_calendar_month_says_its_dates():
    middle = datetime(2026, 11, 15, tzinfo=UTC)
    shown = text_of(page(customer(costs=[cost(end=middle, state="closed", invoice="finalised"), cost(start=middle)])))

    assert "2026-11-01 to 2026-11-15, invoice finalised" in shown
    assert "2026-11-15 to 2026-12-01, so far" in shown


def test_a_month_in_the_customer_s_zone_needs_no_dates():
    hour = timedelta(hours=1)
    shown = text_of(page(customer(costs=[cost(start=START - hour, end=END - hour)])))

    assert "12,345.67 USD so far, rated" in shown


def test_a_meter_that_is_not_declared_and_a_customer_who_is_not_registered_are_marked():
    shown = text_of(page(customer("initech", None, None, usage=[MeterUsage("pages.read", Decimal(12), 12)])))

    assert "initech not registered not rated yet" in shown
    assert "pages.read 12 not declared" in shown


def test_names_from_outside_stay_text():
    evil = '<script>alert(1)</script>"&'
    html = page(
        customer(evil, None, None, usage=[MeterUsage(evil, Decimal(1), 1)]),
        customer("b", evil, evil, usage=[MeterUsage("llm.requests", Decimal(1), 1)]),
        warehouse=FromWarehouse({evil: [MeterUsage(evil, Decimal(1), 1)]}, {evil: 1}),
        unrated=(Unrated(evil, evil, 1),),
    )

    assert "<script" not in html
    assert html.count("&lt;script&gt;") == 9  # of each customer three, one reason, one hint with its reason


def test_suspense_is_listed_by_reason_and_summed_above():
    shown = text_of(page(customer(), warehouse=FromWarehouse({}, {"customer_missing": 12, "bad_quantity": 1})))

    assert "In suspense 13" in shown
    assert "customer_missing nobody says which customer it was for 12" in shown
    assert "meterhouse suspense list" in shown


def test_every_reason_of_suspense_is_named_in_a_sentence_on_the_page():
    shown = text_of(page(customer(), warehouse=FromWarehouse({}, dict.fromkeys(SENTENCES, 3))))

    for code, sentence in SENTENCES.items():
        assert f"{code} {escape(sentence)} 3" in shown


def test_usage_without_a_price_comes_with_the_line_to_add():
    shown = text_of(page(unrated=(Unrated("no_price", "add llm.images to plan team", 7),)))

    assert "Without a price 7" in shown
    assert "add llm.images to plan team no_price 7" in shown


def test_a_customer_whose_usage_has_no_price_is_not_called_not_rated():
    usage = [MeterUsage("llm.requests", Decimal(7), 7)]

    assert "payg no price 7 events without a price" in text_of(page(customer(usage=usage, unpriced=7)))
    assert "payg not rated yet Used in" in text_of(page(customer(usage=usage)))


def test_a_part_without_a_price_is_marked_beside_the_amount():
    shown = text_of(page(customer(costs=[cost()], unpriced=1)))

    assert "12,345.67 USD so far, rated 2026-11-21 03:30 UTC 1 event without a price" in shown


def test_usage_that_came_too_late_is_shown_with_what_becomes_of_it():
    late = (LateUsage("acme", Period(START, END), "llm.requests", 1200, Decimal(1200)),)
    usage = [MeterUsage("llm.requests", Decimal(1201), 1201)]
    shown = text_of(
        page(customer(usage=usage, costs=[cost(state="closed")]), warehouse=FromWarehouse({"acme": usage}, late=late))
    )

    assert "Arrived too late 1,200" in shown
    assert "1,200 events too late for their invoice" in shown
    assert "acme llm.requests 1,200 It came after its period was closed" in shown


def test_what_concerns_other_months_is_only_counted():
    shown = text_of(page(customer(), warehouse=FromWarehouse({}, suspense_elsewhere=12), unrated_elsewhere=1))

    assert "Nothing of this month is held back. Of other months: 12 events." in shown
    assert "All rated usage of this month has a price. Of other months: 1 event." in shown
    assert "In suspense 0" in shown
    assert "Without a price 0" in shown


def test_a_command_in_a_hint_is_code_whose_options_do_not_break():
    html = page(unrated=(Unrated("no_price", "add it, then `meterhouse prices publish F --valid-from 2026-11-01`", 7),))

    assert '<code>meterhouse prices publish F <span class="option">--valid-from</span> 2026-11-01</code>' in html


def test_only_an_address_that_is_a_page_is_a_link():
    html = page(customer())

    assert '<a href="http://127.0.0.1:8080/healthz">' in html
    assert "<code>http://127.0.0.1:4318</code>" in html
    assert 'href="http://127.0.0.1:4318' not in html


@pytest.mark.parametrize(
    ("seconds", "shown", "warns"), [(2, "2 s", False), (60, "60 s", False), (61, "61 s", True), (7300, "2 h", True)]
)
def test_the_watermark_s_age_warns_when_the_warehouse_is_behind(seconds, shown, warns):
    html = page(customer(), warehouse=FromWarehouse({}, projected_through=NOW - timedelta(seconds=seconds)))

    assert f"Warehouse is behind by {shown}" in text_of(html)
    assert ('<div class="warn"><dt>Warehouse is behind by' in html) == warns


def test_an_empty_system_tells_how_to_meter_the_first_agent():
    assert "meterhouse run -- python agent.py" in text_of(page())


def test_an_empty_month_points_to_the_month_with_the_latest_usage():
    html = page(customer(), warehouse=FromWarehouse({}, latest_event_time=datetime(2026, 9, 30, 23, tzinfo=UTC)))

    assert 'href="/?period=2026-09"' in html
    assert "No usage in November 2026. The latest usage event is from September 2026" in text_of(html)


def test_a_warehouse_that_is_down_makes_usage_unknown_and_never_nought():
    shown = text_of(page(customer(costs=[cost()]), down=True))

    assert "The warehouse does not answer." in shown
    assert "Usage events unknown" in shown
    assert "In suspense unknown" in shown
    assert "12,345.67 USD so far" in shown
    assert "usage unknown" in shown


def test_customers_beyond_the_page_are_counted():
    assert "1,200 more, with fewer events: meterhouse rate status --period 2026-11" in text_of(
        page(customer(usage=[MeterUsage("llm.requests", Decimal(1), 1)]), not_shown=1200)
    )


def test_a_message_shows_commands_as_code():
    assert "Run <code>meterhouse up</code> &lt;now&gt;." in message_page("Title", "Run `meterhouse up` <now>.")


def test_the_page_is_usable_without_sight_and_loads_nothing_from_elsewhere():
    html = page(customer(usage=[MeterUsage("llm.requests", Decimal(1), 1)]))

    assert '<html lang="en">' in html
    assert html.count("<h1>") == 1
    assert "<caption" in html
    assert html.count('scope="col"') >= 3
    assert '<nav aria-label="Months">' in html
    assert "<script" not in html
    assert re.findall(r'<link[^>]*href="([^"]*)"', html) == ["/style.css", "data:,"]


@pytest.mark.parametrize("text", ["2026-13", "2026-1", "11-2026", "1999-12", "2026-10..2026-11", "", "٢026-10"])
def test_a_period_that_is_no_month_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="a month like 2026-11"):
        Month.parse(text)


def test_months_follow_each_other_over_the_year_s_end():
    assert str(Month(2026, 12).shifted(1)) == "2027-01"
    assert str(Month(2026, 1).shifted(-1)) == "2025-12"
