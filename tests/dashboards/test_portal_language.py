"""The portal in German: every message has its translation, numbers and dates are German, machines' formats stay."""

import csv
import io
import re
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import portal_messages
import pytest
from portal_samples import COLUMNS, NOW, TOKEN, event, form_token, portal_world, row, text_of, visiting
from starlette.testclient import TestClient

from meterhouse_billing import notice_texts
from meterhouse_portal import access_keys, app, members, usage_pages
from meterhouse_portal.billing_pages import _place
from meterhouse_rating.layout import unit_in
from meterhouse_rating.price_api.schemas import SCHEMAS
from meterhouse_store import agreements, language
from meterhouse_store.brand import Brand
from meterhouse_store.language import LANGUAGES, Language, wanted

PLACEHOLDERS = re.compile(r"%\([a-z_]+\)s|%%|%(?![%(])")
SAME_IN_ALL = {"PDF", "CSV", "Parquet", "ok", "python"}


@pytest.fixture(scope="module")
def world(warehouse_address, tmp_path_factory):
    with portal_world(warehouse_address, tmp_path_factory.mktemp("portal") / "data") as made:
        yield made


# ---- the catalogue --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", sorted(set(LANGUAGES) - {"en"}))
def test_every_message_has_each_translation_with_the_same_placeholders(code):
    catalogue, mistakes = language.catalogue(code), []
    for message, where in portal_messages.every().items():
        originals = (message,) if isinstance(message, str) else message
        texts = catalogue.get(originals[0])
        if texts is None:
            mistakes.append(f"{where}: {originals[0]!r} has no {code}")
            continue
        for original, text in zip(originals, (texts,) if isinstance(texts, str) else texts, strict=True):
            if sorted(PLACEHOLDERS.findall(original)) != sorted(PLACEHOLDERS.findall(text)):
                mistakes.append(f"{where}: {original!r} and {text!r} differ in their placeholders")
            if re.search(r'[<>"]', original + text):
                mistakes.append(f"{where}: {text!r} would be markup")
    assert mistakes == []


def test_the_catalogue_has_nothing_that_nobody_says():
    said = {it if isinstance(it, str) else it[0] for it in portal_messages.every()}
    assert set(language.catalogue("de")) - said == set()


def test_no_page_has_text_that_was_not_given_to_the_catalogue():
    """A new page is translated, or stands in NOT_TRANSLATED and is in English."""
    names = {it.name for it in portal_messages.TEMPLATES.iterdir()}
    left = {}
    for name in sorted(names - portal_messages.NOT_TRANSLATED):
        page = (portal_messages.TEMPLATES / name).read_text(encoding="utf-8")
        page = re.sub(
            r"\{#.*?#\}|\{% trans .*?endtrans %\}|\{%.*?%\}|\{\{.*?\}\}|<style.*?</style>", "", page, flags=re.DOTALL
        )
        said = re.findall(r'(?:aria-label|placeholder|title|alt)="([^"]+)"', page)
        text = " ".join([re.sub(r"<[^>]*>", " ", page), *said])
        words = set(re.findall(r"[A-Za-z]{2,}", text)) - SAME_IN_ALL
        if words:
            left[name] = words
    assert left == {}


# ---- formats --------------------------------------------------------------------------------------------------------


def test_numbers_days_and_months_are_those_of_the_language_and_its_country():
    at = datetime(2026, 3, 9, 23, 30, 5, tzinfo=UTC)
    shown = {
        tag: (
            it.number(Decimal("1234567.50")), it.number(-1200), it.fixed(Decimal("1200.5"), 2),
            it.number(Decimal("0.000000000001")), it.time(at, "Europe/Berlin", seconds=True), it.month(at, "UTC"),
        )
        for tag, it in ((tag, Language(tag)) for tag in ("en", "de", "de-CH", "en-GB"))
    }  # fmt: skip
    assert shown == {
        "en": ("1,234,567.5", "-1,200", "1,200.50", "0.000000000001", "2026-03-10 00:30:05 CET", "March 2026"),
        "de": ("1.234.567,5", "-1.200", "1.200,50", "0,000000000001", "10.03.2026 00:30:05 CET", "März 2026"),
        "de-CH": ("1'234'567.5", "-1'200", "1'200.50", "0.000000000001", "10.03.2026 00:30:05 CET", "März 2026"),
        "en-GB": ("1,234,567.5", "-1,200", "1,200.50", "0.000000000001", "10 Mar 2026 00:30:05 CET", "March 2026"),
    }
    assert Language("en").number(Decimal("12345678901234567890123456789012.5")).endswith("789,012.5")


@pytest.mark.parametrize(
    ("accepted", "code"),
    [
        ("de-DE,de;q=0.9,en;q=0.8", "de"), ("en-US,en;q=0.9,de;q=0.8", "en"), ("fr,de;q=0.5,en;q=0.4", "de"),
        ("fr-CH, fr;q=0.9, *;q=0.5", None), ("", None), ("de;q=0,en;q=x", None), ("DE", "de"),
    ],
)  # fmt: skip
def test_the_browser_s_wish_is_read_with_its_weights(accepted, code):
    assert wanted(accepted) == code


def test_a_language_that_nobody_translated_is_refused():
    assert Brand(language="de-AT").language == "de-AT" and Brand(language="").language == "en"
    for wrong in ("fr", "xx", "de-XX-YY-ZZ", "german"):
        with pytest.raises(ValueError, match="is no language: en, de"):
            Brand(language=wrong)


# ---- pages ----------------------------------------------------------------------------------------------------------


def test_a_member_reads_german_where_the_browser_asks_for_it_and_machines_read_what_they_read_before(world):
    key = access_keys.create(world[0].engine, "live", "acme", "tests", who="op", now=NOW)[1]
    with visiting(world, "olga@acme.example") as browser:
        machine = browser.get("/account/usage.csv").text
        api = browser.get("/api/v1/usage?period=2026-11", headers={"Authorization": f"Bearer {key}"}).json()
        browser.headers["Accept-Language"] = "de-DE,de;q=0.9,en;q=0.5"
        page = browser.get("/account").text
        shown = text_of(page)
        assert '<html lang="de">' in page
        assert "Bisher 1.200,50 EUR" in shown and "Erwartet bis 01.12.2026 1.789,60 EUR" in shown
        assert "Wahrscheinlich 1.789,25 – 1.790,29 EUR" in shown and "November 2026" in shown
        assert "Zeiten gelten für Europe/Berlin." in shown and "olga@acme.example, Inhaber" in shown
        assert "20.11.2026 13:00:05 CET" in text_of(browser.get("/account/usage").text)
        assert "602,00 EUR abgeschlossen" in text_of(browser.get("/account/invoices").text)
        assert "Keine solche Seite" in browser.get("/account/lines/" + "0" * 64).text
        again = browser.get("/account/usage.csv").text
        assert sorted(again.splitlines()) == sorted(machine.splitlines())  # a download is in no order
        assert {row["quantity"] for row in csv.DictReader(io.StringIO(again))} == {"30000", "1"}
        asked = browser.get("/api/v1/usage?period=2026-11", headers={"Authorization": f"Bearer {key}"})
        assert asked.json() == api


@pytest.mark.parametrize(
    ("tag", "typed", "meant"),
    [
        ("de", "1.000,50", "1000.50"), ("de", "50,00", "50"), ("de", "1.000", "1000"), ("de", "1.000.000", "1000000"),
        ("de", "1000,5", "1000.5"), ("de", "1500", "1500"), ("de", "1500.50", "1500.5"), ("de", "2,000.50", "2000.5"),
        ("de", " 1 000,50 ", "1000.5"), ("en", "1,000.50", "1000.5"), ("en", "2,000", "2000"), ("en", "50,00", "50"),
        ("en", "1.000,50", "1000.5"), ("en", "0.5", "0.5"), ("de-CH", "1’000.50", "1000.5"), ("de-CH", "1'000", "1000"),
        ("de-AT", "1\u00a0000,50", "1000.5"), ("de-AT", "1.000,50", "1000.5"),
        ("de", "2,000", None), ("de", "0,500", None), ("de", "1.00,50", None), ("de", "1.000.50", None),
        ("de", "1,5,0", None), ("en", "2.000", None), ("en", "1,50,000", None), ("en", "1.234,567", None),
        ("de-CH", "1.000", None), ("de", "", None), ("de", "viel", None), ("de", "-5", None), ("de", "1e3", None),
        ("de", "٥", None),
    ],
)  # fmt: skip
def test_a_typed_amount_is_read_as_the_language_writes_it_or_refused_where_it_may_mean_another(tag, typed, meant):
    language = Language(tag)
    if meant is None:
        with pytest.raises(ValueError, match="is no number"):
            language.read(typed, 2)
    else:
        assert language.read(typed, 2) == Decimal(meant)
        assert language.read(language.fixed(Decimal(meant), 2), 2) == Decimal(meant)  # what is shown can be typed


def test_whole_numbers_with_commas_between_are_no_decimals_to_a_german():
    assert Language("de").read_whole("50, 80,  100") == [50, 80, 100] == Language("en").read_whole("50,80,100")
    for wrong in ("12,5", "50,", "half", "5.5"):
        with pytest.raises(ValueError, match="are no whole numbers"):
            Language("de").read_whole(wrong)


def test_what_is_typed_into_a_form_is_what_the_form_shows_in_each_language(world):
    with visiting(world, "bill@acme.example") as browser:
        browser.headers["Accept-Language"] = "de"
        form = {
            "form": form_token(browser.get("/account/budgets").text),
            "act": "set",
            "thresholds": "50",
            "stop": "no",
        }
        for typed in ("1.500,50", "1500.50"):
            assert browser.post("/account/budgets", data=form | {"amount": typed}).status_code == 303
            page = browser.get("/account/budgets").text
            assert 'value="1.500,5"' in page and "1.200,5 von 1.500,5 EUR" in text_of(page)
        refused = browser.post("/account/budgets", data=form | {"amount": "2,000"})
        assert "Schreiben Sie den Betrag als 1500 oder 1.500,50." in refused.text and 'value="2,000"' in refused.text
        for thresholds in ("0", "1001", "12,5", ", ".join(map(str, range(1, 22)))):
            refused = browser.post("/account/budgets", data=form | {"amount": "50,00", "thresholds": thresholds})
            assert "Schreiben Sie höchstens 20 Schwellen in ganzen Prozent von 1 bis 1000" in text_of(refused.text)
        assert "1.200,5 von 1.500,5 EUR" in text_of(browser.get("/account/budgets").text)
        browser.headers["Accept-Language"] = "en"
        assert 'value="1,500.5"' in browser.get("/account/budgets").text
        browser.post("/account/budgets", data=form | {"amount": "1,600.50"})
        assert "1,200.5 of 1,600.5 EUR" in text_of(browser.get("/account/budgets").text)
        browser.post("/account/budgets", data=form | {"act": "remove"})


def test_what_is_to_change_has_words_in_each_language_and_days_of_the_customer_s_zone(world):
    engine = world[0].engine
    told = {"namespace": "live", "customer_id": "acme", "now": NOW}
    december, february = datetime(2026, 11, 30, 23, tzinfo=UTC), datetime(2027, 1, 31, 23, tzinfo=UTC)
    own = "model: per_unit\nmetric: input_tokens\nper: 1000\nprice: 1.00\n"
    agreements.add_override(engine, component="input", source=own, valid_from=december, valid_until=february, **told)
    agreements.add_discount(engine, name="Launch", percent=Decimal(20), months=1, valid_from=december, **told)
    with visiting(world, "vera@acme.example") as browser:
        shown = text_of(browser.get("/account/prices").text)
        # 23:00 in UTC is the next day in Berlin.
        assert (
            "2026-12-01: your own price of input begins" in shown
            and "2027-02-01: your own price of input ends" in shown
        )
        assert "2026-12-01: discount Launch begins (20 %)" in shown
        browser.headers["Accept-Language"] = "de"
        shown = text_of(browser.get("/account/prices").text)
        assert "01.12.2026: Ihr eigener Preis für input beginnt" in shown
        assert "01.12.2026: Rabatt Launch beginnt (20 %)" in shown and "01.01.2027: Rabatt Launch endet" in shown
        assert "Preisbuch tests, Version 1." in shown


def test_each_kind_of_change_that_a_price_list_tells_of_has_words():
    kinds = SCHEMAS["PriceList"]["properties"]["scheduled"]["items"]["properties"]["kind"]["enum"]
    assert set(usage_pages.CHANGES) == set(kinds)


def test_every_reason_for_which_usage_has_no_price_is_told_to_customers_in_words():
    prices = Path(__file__).parents[2].joinpath("docs/pricing.md").read_text(encoding="utf-8")
    reasons = set(re.findall(r"^\| `([a-z_]+)` \|", prices.partition("| reason | what to do |")[2], re.MULTILINE))
    assert {"cost_unknown", "negative_quantity", "amount_too_large"} <= reasons
    assert reasons - set(usage_pages.MEANINGS) == set()


def test_where_a_correction_stands_is_told_in_days_of_the_customer_s_zone_and_words():
    german, english = language.Language("de"), language.Language("en")
    span = "2026-09-30T22:00:00Z..2026-10-31T23:00:00Z"
    assert _place(f"{span} (closed)", "Europe/Berlin", german) == "01.10.2026 bis 01.11.2026, abgeschlossen"
    assert _place("credit note 3f2a", "UTC", german) == "Gutschrift 3f2a"
    assert _place(f"{span} (open)", "Europe/Berlin", english) == "2026-10-01 to 2026-11-01, under way"


@pytest.mark.parametrize("query", ["period=zz", "period=2026-13", "period=2026-01-01..2026-12-01", "period=9999-12"])
def test_a_period_that_is_none_is_said_in_the_visitor_s_language(world, query):
    with visiting(world, "vera@acme.example") as browser:
        refused = browser.get(f"/account/usage?{query}")
        assert refused.status_code == 422
        assert "That is no period: write a month (2026-10), or days (2026-10-01..2026-10-15)" in text_of(refused.text)
        browser.headers["Accept-Language"] = "de"
        shown = text_of(browser.get(f"/account/usage?{query}").text)
        assert "Das ist kein Zeitraum: Schreiben Sie einen Monat (2026-10) oder Tage (2026-10-01..2026-10-15)" in shown
        assert "kennt den Parameter 'page' nicht" in browser.get("/account?page=2").text.replace("&#39;", "'")


def test_what_is_not_there_and_a_link_that_was_used_are_said_in_the_visitor_s_language(world):
    with visiting(world) as browser:
        used = browser.post("/sign-in/used")
        assert used.status_code == 410 and "That link was used, or is too old. Ask for a new one." in used.text
        assert "Customers begin at /account, operators at /operator." in text_of(browser.get("/nowhere").text)
        browser.headers["Accept-Language"] = "de"
        assert "Dieser Link wurde schon benutzt oder ist zu alt." in browser.post("/sign-in/used").text
        missing, wrong = browser.get("/account/nowhere"), browser.post("/account")
        assert (missing.status_code, wrong.status_code) == (404, 405)
        assert "Keine solche Seite Kunden beginnen bei /account, Betreiber bei /operator." in text_of(missing.text)
        assert "Diese Seite wird nicht so angefragt." in text_of(wrong.text) and "GET" in wrong.headers["allow"]


def test_days_of_the_chart_units_and_how_usage_is_known_are_german(world):
    at = world[0]
    at.client.command(
        f"INSERT INTO events ({COLUMNS}, usage_source, modality) VALUES "
        + row(900, event("globex", "tool.calls", "2026-11-08 10:00:00", 2, call="c-told"))[:-1]
        + ", 'reported', 'image')"
    )
    with visiting(world, "gus@globex.example") as browser:
        chart = browser.get("/account?meter=tool.calls").text
        assert ">11-01</text>" in chart and "2026-11-08, (none): 2 calls" in chart
        browser.headers["Accept-Language"] = "de"
        chart = browser.get("/account?meter=tool.calls").text
        assert ">01.11.</text>" in chart and ">11-01<" not in chart
        assert "08.11.2026, (none): 2 Aufrufe" in chart and '<th scope="row">08.11.2026</th>' in chart
        opened = browser.get("/account/actions?id=c-told&at=2026-11-08T10:00:00%2B00:00")
        assert "Bild, vom Anbieter gemeldet" in opened.text
    with visiting(world, "bill@acme.example") as browser:
        invoice = re.search(r'href="(/account/invoices/[0-9a-f]{64})"', browser.get("/account/invoices").text).group(1)
        assert "300,000 tokens 600.00 EUR" in text_of(browser.get(invoice).text)
        browser.headers["Accept-Language"] = "de"
        shown = text_of(browser.get(invoice).text)
        assert "300.000 Token 600,00 EUR" in shown and "4 Aufrufe 2,00 EUR" in shown


def test_units_of_a_document_are_those_of_its_language():
    german, english = Language("de"), Language("en")
    for name, count, words in (
        ("{call}", 1, ("1 call", "1 Aufruf")), ("call", 2, ("2 calls", "2 Aufrufe")), ("GB", 2, ("2 GB", "2 GB")),
        ("token", 1000, ("1,000 tokens", "1.000 Token")), ("seat", 2, ("2 seats", "2 seat")),  # the book's own word
    ):  # fmt: skip
        assert tuple(f"{it.number(count)} {unit_in(it, name, Decimal(count))}" for it in (english, german)) == words


def test_the_choice_of_a_member_goes_before_the_browser_s_and_the_browser_s_before_the_brand_s(world, monkeypatch):
    monkeypatch.setenv("METERHOUSE_BRAND_LANGUAGE", "de-AT")
    with visiting(world, "vera@acme.example") as browser:
        page = browser.get("/account").text
        assert '<html lang="de-AT">' in page and "Bisher 1.200,50 EUR" in text_of(page)
        assert '<a href="/language/en" lang="en" hreflang="en">English</a>' in page
        browser.headers["Accept-Language"] = "en-GB"
        assert "So far 1,200.50 EUR" in text_of(browser.get("/account").text)
        chosen = browser.get("/language/de")
        assert (chosen.status_code, chosen.headers["location"]) == (303, "/account")
        assert "Bisher" in browser.get("/account").text
        assert browser.get("/language/fr").status_code == 404
        assert "Bisher" in browser.get("/account").text


def test_the_link_to_sign_in_comes_in_the_language_of_the_page_that_asked_for_it(world, monkeypatch):
    sent = []
    monkeypatch.setenv("METERHOUSE_SMTP_URL", "smtp://127.0.0.1:1")
    monkeypatch.setenv("METERHOUSE_MAIL_FROM", "billing@acme.example")
    monkeypatch.setattr("meterhouse_store.mail.send", lambda _, made: sent.append(made))
    members.set_role(world[0].engine, "live", "acme", "deutsch@acme.example", "viewer", who="tests", now=NOW)
    with TestClient(app.build(world[1], TOKEN, now=lambda: NOW), headers={"Accept-Language": "de"}) as browser:
        assert "Sehen Sie in Ihre Post" in browser.post("/sign-in", data={"email": "deutsch@acme.example"}).text
    (made,) = sent
    assert made["Subject"] == "Anmelden bei Meterhouse"
    assert "Der Link gilt einmal, 15 Minuten lang." in made.get_body(("plain",)).get_content()


def test_the_first_page_is_small_in_german_too(world):
    with visiting(world, "vera@acme.example") as browser:
        browser.headers["Accept-Language"] = "de"
        assert len(browser.get("/account").content) + len(browser.get("/account.css").content) < 100_000


# ---- notices --------------------------------------------------------------------------------------------------------

MONTH = {
    "period_start": "2026-10-31T23:00:00+00:00", "period_end": "2026-11-30T23:00:00+00:00",
    "time_zone": "Europe/Berlin",
}  # fmt: skip
BUDGET = {"budget": "own", "used": "1200.5", "limit": "1500", "unit": "EUR", "agent_id": ""} | MONTH
INVOICE = {
    "number": "R-7", "total": "1200.50", "currency": "EUR", "url": "", "due_at": "2026-12-20T23:30:00+00:00",
    "lines": [{"description": "input", "amount": "1200.50"}], "more_lines": 3,
} | MONTH  # fmt: skip


def test_notices_are_written_in_the_brand_s_language():
    told = notice_texts.of("invoice", "acme", "", INVOICE, Brand(name="KI GmbH", language="de", support="hilfe@ki.de"))
    assert told.subject == "KI GmbH: Rechnung R-7: 1.200,50 EUR"
    assert told.text == (
        "Rechnung R-7: 1.200,50 EUR\n\n"
        "Rechnung R-7 an acme für 01.11.2026 bis 01.12.2026 Europe/Berlin, fällig am 21.12.2026.\n\n"
        "input  1.200,50\n...    3 weitere Posten\nSumme  1.200,50 EUR\n\n"
        "Fragen? Schreiben Sie an hilfe@ki.de.\n\n-- \nKI GmbH\n"
    )
    assert '<html lang="de">' in told.html
    english = notice_texts.of("invoice", "acme", "", INVOICE, Brand()).text
    assert "Invoice R-7 to acme for 2026-11-01 to 2026-12-01 Europe/Berlin, due on 2026-12-21." in english
    facts = BUDGET | {"threshold_percent": 80, "hard": True}
    told = notice_texts.of("budget_threshold", "acme", "", facts, Brand(language="de")).text
    assert "acme hat 80 % davon verbraucht. Modellaufrufe werden angehalten, wenn es aufgebraucht ist." in told
    assert "Verbraucht" not in told and "Genutzt   1.200,5 EUR" in told


def test_the_page_of_budgets_tells_its_notices_in_the_visitor_s_language():
    facts = BUDGET | {"threshold_percent": 80, "hard": False}
    kept = "acme has used 80 % of its budget own"
    told = {it: notice_texts.heading("budget_threshold", "acme", kept, facts, Language(it)) for it in ("en", "de")}
    assert told == {"en": kept, "de": "80 % eines Budgets sind verbraucht"}
