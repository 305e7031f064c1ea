"""The customers' pages on real stores: what a customer sees, and that nobody sees another's."""

import hashlib
import html
import json
import re
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest
from portal_samples import COLUMNS, NOW, TOKEN, event, form_token, portal_world, row, text_of, visiting
from sqlalchemy import Engine, delete, select
from sqlalchemy import event as event_hook
from starlette.routing import Route
from starlette.testclient import TestClient

from meterhouse_billing import states
from meterhouse_portal import access_keys, app, members, packs, questions
from meterhouse_portal.account import Account
from meterhouse_portal.addresses import is_safe
from meterhouse_portal.customer_api import _rating
from meterhouse_portal.customer_pages import COOKIE
from meterhouse_portal.rendering import STATES
from meterhouse_rating import ledger
from meterhouse_rating.ledger import Entry, Posting
from meterhouse_store import budgets, registry, tables
from meterhouse_store.sql import begin_write


@pytest.fixture(scope="module")
def world(warehouse_address, tmp_path_factory):
    with portal_world(warehouse_address, tmp_path_factory.mktemp("portal") / "data") as made:
        yield made


def field_in(page, name, kind="input"):
    """The tag of a form's field, and what stands right behind it."""
    found = re.search(
        rf'<{kind} id="[^>]*\bname="{name}"[^>]*>(.*?)(?=<label|<button|<p class="buttons"|</form>)', page, re.DOTALL
    )
    return found.group(0).partition(">")[0], text_of(found.group(1))


@pytest.mark.parametrize(
    ("page", "sent", "wrong", "kind", "told"),
    [
        ("/account/budgets", {"act": "set", "amount": "1.500", "thresholds": "60, 90", "stop": "no"}, "amount",
         "input",
         "Write the amount as 1500"),
        ("/account/budgets", {"act": "set", "amount": "77", "thresholds": "half", "stop": "no"}, "thresholds", "input",
         "Write at most 20 thresholds in whole per cent"),
        ("/account/members", {"email": "ann at acme", "role": "billing"}, "email", "input", "Write the address as"),
        ("/account/keys", {"name": "k" * 129}, "name", "input", "Give the key a name of at most 128 characters"),
        ("line", {"question": "why? " * 401}, "question", "textarea", "in at most 2,000 characters"),
        ("/sign-in", {"email": "ann <at> acme"}, "email", "input", "Write the address as"),
    ],
)  # fmt: skip
def test_a_refused_form_keeps_what_was_typed_and_says_why_beside_the_field(
    world, monkeypatch, page, sent, wrong, kind, told
):
    monkeypatch.setenv("METERHOUSE_SMTP_URL", "smtp://127.0.0.1:1")
    with visiting(world, "olga@acme.example") as browser:
        if page == "line":
            invoice = re.search(
                r'href="(/account/invoices/[0-9a-f]{64})"', browser.get("/account/invoices").text
            ).group(1)
            page = re.search(r'href="(/account/lines/[0-9a-f]{64})"', browser.get(invoice).text).group(1)
        token = form_token(browser.get("/account").text)
        answer = browser.post(page, data=sent | {"form": token})
        untouched = browser.get(page).text
    assert answer.status_code == 422
    tag, behind = field_in(answer.text, wrong, kind)
    assert 'aria-invalid="true"' in tag and f'aria-describedby="wrong-{wrong}"' in tag
    assert told in behind and f'id="wrong-{wrong}"' in answer.text and answer.text.count('role="alert"') == 1
    assert "aria-invalid" not in untouched
    for name, value in sent.items():
        if name in ("stop", "role"):
            assert f'<option value="{value}" selected>' in answer.text
        elif name != "act":
            assert html.escape(value) in answer.text, name


# ---- signing in -----------------------------------------------------------------------------------------------------


def test_without_signing_in_every_page_leads_to_the_form(world):
    with visiting(world) as browser:
        for path in ("/account", "/account/usage", "/account/invoices", "/account/keys", "/customers"):
            answer = browser.get(path)
            assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")


def test_the_form_answers_the_same_for_members_and_strangers_and_says_what_is_no_address(world, monkeypatch):
    monkeypatch.setenv("METERHOUSE_SMTP_URL", "smtp://127.0.0.1:1")
    with visiting(world) as browser:
        known, unknown = (
            browser.post("/sign-in", data={"email": it}).text.replace(it, "X")
            for it in ("vera@acme.example", "nobody@acme.example")
        )
        assert known == unknown
        assert "a link is on its way" in text_of(known)
        assert browser.post("/sign-in", data={"email": "no address"}).status_code == 422


def test_without_mail_no_link_is_promised_and_none_is_used_up_whoever_asks(world):
    email = "unmailed@acme.example"
    members.set_role(world[0].engine, "live", "acme", email, "viewer", who="tests", now=NOW)
    with visiting(world) as browser:
        form = browser.get("/sign-in")
        assert "<input" not in form.text and "no e-mail can be sent from here" in text_of(form.text)
        for who in (email, "nobody@acme.example", "no address"):
            answer = browser.post("/sign-in", data={"email": who})
            assert (answer.status_code, answer.text) == (503, form.text)
    # Those that operators make by hand are all left.
    assert all(members.request_link(world[0].engine, "live", email, NOW) for _ in range(members.MAX_LINKS))


WANTED = "/account/usage?meter=tool.calls&period=2026-10"


def signed_in_after(world, first, email="olga@acme.example", remembered=None):
    """Where a browser is led that asked for a page first, and then followed its link."""
    with visiting(world) as browser:
        assert browser.get(first).headers["location"] == "/sign-in"
        token, headers = members.request_link(world[0].engine, "live", email, NOW), {}
        if remembered is not None:
            browser.cookies.clear()  # what another site of the domain put there, instead
            headers = {"Cookie": f"meterhouse_wanted={remembered}"}
        answer = browser.post(f"/sign-in/{token}", headers=headers)
        return answer.headers["location"], browser


def test_signing_in_leads_to_the_page_that_was_asked_for_once(world):
    where, browser = signed_in_after(world, WANTED)
    assert where == WANTED and "meterhouse_wanted" not in browser.cookies
    assert signed_in_after(world, "/account/keys")[0] == "/account/keys"
    # Somebody with several customers chooses one first.
    where, browser = signed_in_after(world, "/account/prices", "both@example.com")
    assert where == "/account/prices"
    assert browser.get(where).headers["location"] == "/customers"
    chosen = {"form": form_token(browser.get("/customers").text), "customer": "globex"}
    assert browser.post("/customers", data=chosen).headers["location"] == "/account/prices"


@pytest.mark.parametrize(
    "remembered",
    ["//evil.example", "https://evil.example/account", "/\\evil.example", "/account@evil.example", "javascript:1",
     "/accounts", "/account/../../x", "%2F%2Fevil.example", "/account%0D%0ASet-Cookie:x=y", "/operator", "/sign-out",
     ""],
)  # fmt: skip
def test_no_remembered_address_leads_away_or_where_nobody_may_go(world, remembered):
    assert signed_in_after(world, "/account", remembered="/account/keys")[0] == "/account/keys"
    assert signed_in_after(world, "/account", remembered=remembered)[0] == "/account"


def test_a_form_that_was_sent_without_a_session_is_not_an_address_to_go_to(world):
    with visiting(world) as browser:
        assert browser.post("/account/keys", data={"name": "x"}).headers["location"] == "/sign-in"
        assert "meterhouse_wanted" not in browser.cookies


def test_a_link_signs_in_once_by_its_button_and_not_by_being_looked_at(world):
    at, _ = world
    token = members.request_link(at.engine, "live", "Olga@Acme.example", NOW)
    with visiting(world) as browser:
        assert browser.get(f"/sign-in/{token}").status_code == 200  # what scans mails does this
        answer = browser.post(f"/sign-in/{token}")
        assert answer.headers["location"] == "/account"
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=lax" in cookie
        assert "olga@acme.example, owner" in text_of(browser.get("/account").text)
    with visiting(world) as browser:
        answer = browser.post(f"/sign-in/{token}")
        assert (answer.status_code, "set-cookie" in answer.headers) == (410, False)


def test_a_link_is_good_for_a_quarter_of_an_hour_and_five_are_under_way_at_most(world):
    at, _ = world
    email = "late@acme.example"
    members.set_role(at.engine, "live", "acme", email, "viewer", who="tests", now=NOW)
    tokens = [members.request_link(at.engine, "live", email, NOW) for _ in range(6)]
    assert tokens[5] is None and all(tokens[:5])
    assert members.sign_in(at.engine, "live", tokens[0], NOW + timedelta(minutes=15)) is None
    assert members.sign_in(at.engine, "live", tokens[1], NOW + timedelta(minutes=14)) is not None
    assert members.sign_in(at.engine, "test", tokens[2], NOW) is None  # another namespace's portal


def test_the_link_comes_by_mail_in_the_operator_s_name(world, monkeypatch):
    sent = []
    monkeypatch.setenv("METERHOUSE_SMTP_URL", "smtp://127.0.0.1:1")
    monkeypatch.setenv("METERHOUSE_MAIL_FROM", "billing@acme.example")
    monkeypatch.setenv("METERHOUSE_BRAND_NAME", "Example AI")
    monkeypatch.setattr("meterhouse_store.mail.send", lambda _, made: sent.append(made))
    at, settings = world
    members.set_role(at.engine, "live", "acme", "mailed@acme.example", "viewer", who="tests", now=NOW)
    built = app.build(settings, TOKEN, public_url="https://usage.example.com", now=lambda: NOW)
    with TestClient(built, base_url="https://testserver", follow_redirects=False) as browser:
        browser.post("/sign-in", data={"email": "nobody@acme.example"})
        browser.post("/sign-in", data={"email": "mailed@acme.example"})
        (made,) = sent
        assert (made["To"], made["Subject"]) == ("mailed@acme.example", "Sign in to Example AI")
        link = re.search(r"https://usage\.example\.com(/sign-in/\S+)", made.get_body(("plain",)).get_content())
        answer = browser.post(link.group(1))
        assert "Secure" in answer.headers["set-cookie"]
        assert "Example AI" in browser.get("/account").text


def test_a_session_ends_with_signing_out_with_its_week_and_with_the_membership(world):
    at, _ = world
    email = "gone@acme.example"
    members.set_role(at.engine, "live", "acme", email, "viewer", who="tests", now=NOW)
    with visiting(world, email) as browser:
        page = browser.get("/account")
        assert page.status_code == 200
        browser.post("/sign-out", data={"form": "0" * 64})
        assert browser.get("/account").status_code == 200  # another site cannot sign somebody out
        session = browser.cookies[COOKIE]
        browser.post("/sign-out", data={"form": form_token(page.text)})
        browser.cookies.set(COOKIE, session)
        assert browser.get("/account").status_code == 303
    with visiting(world, email) as browser:
        session = browser.cookies[COOKIE]
    with visiting(world, now=NOW + timedelta(days=7)) as browser:
        browser.cookies.set(COOKIE, session)
        assert browser.get("/account").status_code == 303
    members.set_role(at.engine, "live", "acme", email, None, who="tests", now=NOW)
    with visiting(world) as browser:
        browser.cookies.set(COOKIE, session)
        assert browser.get("/account").status_code == 303
        members.set_role(at.engine, "live", "acme", email, "owner", who="tests", now=NOW)
        assert browser.get("/account").status_code == 303  # the old session is not that of the new member


def test_another_site_cannot_sign_somebody_in(world):
    at, _ = world
    with visiting(world, "vera@acme.example") as browser:
        token = members.request_link(at.engine, "live", "gus@globex.example", NOW)
        answer = browser.post(f"/sign-in/{token}", headers={"Sec-Fetch-Site": "cross-site"})
        assert answer.status_code == 403
        assert "vera@acme.example" in browser.get("/account").text
        old = browser.cookies[COOKIE]
        assert browser.post(f"/sign-in/{token}").status_code == 303
        assert members.visitor(at.engine, "live", old, NOW) is None  # what was there before has ended


def test_a_member_of_two_customers_chooses_and_sees_one_at_a_time(world):
    with visiting(world, "both@example.com") as browser:
        assert browser.get("/account").headers["location"] == "/customers"
        page = browser.get("/customers").text
        form = {"form": form_token(page), "customer": "globex"}
        assert browser.post("/customers", data=form | {"customer": "initech"}).status_code == 404
        assert browser.post("/customers", data=form).status_code == 303
        assert "888,000" in browser.get("/account").text
        browser.post("/customers", data=form | {"customer": "acme"})
        assert "888,000" not in browser.get("/account").text
        assert browser.get("/account/invoices").status_code == 403  # viewer there, owner of the other


# ---- what is shown --------------------------------------------------------------------------------------------------


def test_the_overview_says_what_the_month_comes_to_so_far_and_by_its_end(world):
    with visiting(world, "vera@acme.example") as browser:
        shown = text_of(browser.get("/account").text)

    # 20 times 30,000 tokens at 2.00 per 1,000, and one tool call at 0.50.
    assert "So far 1,200.50 EUR" in shown
    # 14 days back of November 21st 03:30 there are 14 days of 30,000 tokens and the one tool call. Left are 9 days, 19
    # hours and 30 minutes: 9.8125 days. 30,000 * 9.8125 = 294,375 tokens are 588.75; 1 / 14 * 9.8125 calls are 0.35.
    assert "Expected by 2026-12-01 1,789.60 EUR" in shown
    # No two days differ in tokens; calls do: 13 days 0, one day 1, a standard deviation of 0.267261, times 1.645 and
    # the root of 9.8125: 1.3772 calls more, or so many fewer that none is left.
    assert "Most likely 1,789.25 – 1,790.29 EUR" in shown
    assert "llm.tokens.input 600,000 20" in shown.replace(". ", ".")


def test_the_chart_and_its_table_show_the_days_of_the_customer_s_own_zone(world):
    with visiting(world, "vera@acme.example") as browser:
        page = browser.get("/account?meter=llm.tokens.input&by=agent").text
    assert '<svg class="chart"' in page and page.count("<rect") == 20
    assert "2026-11-01, helper: 30,000 tokens" in page  # 23:30 of October 31st in UTC
    assert browser_table(page)["2026-11-02"] == ["30,000"]
    with visiting(world, "vera@acme.example") as browser:  # as many series as there are conversations
        assert browser.get("/account?by=conversation").status_code == 400


def browser_table(page):
    rows = re.findall(r'<tr><th scope="row">(2026-\d\d-\d\d)</th>(.*?)</tr>', page)
    return {day: re.findall(r">([\d,.]+)</td>", cells) for day, cells in rows}


def test_an_invoice_has_its_lines_and_each_line_its_explanation(world):
    with visiting(world, "bill@acme.example") as browser:
        listed = browser.get("/account/invoices").text
        assert "602.00 EUR" in text_of(listed)
        invoice = browser.get(re.search(r'href="(/account/invoices/[0-9a-f]{64})"', listed).group(1)).text
        assert "input 300,000 tokens 600.00 EUR" in text_of(invoice)
        line = browser.get(re.search(r'href="(/account/lines/[0-9a-f]{64})"', invoice).group(1))
    assert "300,000 at 2 EUR per 1,000: 600 EUR" in text_of(line.text)
    assert "price book tests, version 1, line 12" in text_of(line.text)


def test_the_invoices_page_has_what_was_paid_and_went_back_as_the_ledger_has_it(world):
    """Paid, taken back, paid back, and credits bought; what a platform keeps of it is not the customer's business."""
    at, _ = world
    money = (
        ("payment", "receivable", 71_400), ("refund", "receivable", -1_000), ("dispute", "receivable", -9_900),
        ("dispute_won", "receivable", 9_900), ("credit_granted", "deferred_credits", 5_000),
        ("application_fee", "application_fees", -1_785), ("application_fee_refund", "application_fees", 25),
    )  # fmt: skip
    with begin_write(at.engine) as connection:
        for number, (kind, against, amount) in enumerate(money):
            sides = (Entry("cash", amount, "EUR"), Entry(against, -amount, "EUR"))
            moments = {"effective_at": NOW + timedelta(minutes=number), "recorded_at": NOW}
            ledger.post(connection, "live", "globex", [Posting(kind, kind, "m", sides)], **moments)
    with visiting(world, "gus@globex.example") as browser:
        shown = text_of(browser.get("/account/invoices").text)
    _, _, payments = shown.partition("Payments")
    words = "paid back|paid|taken back by the bank|came again|credits bought"
    assert re.findall(rf"({words}) ([−-]?[0-9.,]+) EUR", payments) == [
        ("credits bought", "50.00"), ("came again", "99.00"), ("taken back by the bank", "-99.00"),
        ("paid back", "-10.00"), ("paid", "714.00"),
    ]  # fmt: skip
    assert "17.85" not in shown and "0.25" not in shown


def test_an_invoice_that_is_out_is_shown_with_its_tax(world):
    at, _ = world
    rated = tables.ratings
    with begin_write(at.engine) as connection:
        row = connection.execute(rated.select().where(rated.c.customer_id == "globex")).mappings().first()
        named = {name: row[name] for name in ("rating_id", "namespace", "customer_id", "period_start", "period_end")}
        connection.execute(
            tables.invoices.insert().values(
                **named, invoice_id="i-globex", state="finalised", currency="EUR", total_minor=row["total_minor"],
                stripe_total_minor=row["total_minor"] + 1_234, stripe_invoice_id="in_globex", finalised_at=NOW,
                created_at=NOW,
            )
        )  # fmt: skip
    account = Account(at.engine, lambda: at.client, "live", "globex", at.meters, NOW)
    total = f"{(row['total_minor'] + 1_234) / 100:,.2f} EUR"
    with visiting(world, "gus@globex.example") as browser:
        listed = browser.get("/account/invoices").text
        invoice = text_of(browser.get(f"/account/invoices/{row['rating_id']}").text)
    assert f"{total} to be paid" in text_of(listed)
    (told,) = [_rating(it) for it in account.ratings() if it["rating_id"] == row["rating_id"]]  # in the API
    assert Decimal(told["invoice_total"]) - Decimal(told["total"]) == Decimal("12.34")
    assert f"Tax 12.34 EUR Total {total}" in invoice


@pytest.mark.parametrize(
    ("url", "is_shown"),
    [
        ("https://invoice.stripe.com/i/1", True),
        ("http://127.0.0.1:52397/invoices/in_1", True),  # the local Stripe
        ("http://localhost:1/i", True),
        ("http://[::1]:1/i", True),
        ("http://stripe.example/i", False),
        ("http://stripe.example:80/i", False),
        ("http://127.0.0.1.evil.example:80/i", False),
        ("http://[::1/i", False),
        ("http://127.0.0.1@evil.example/i", False),
        ("javascript:alert(1)", False),
        ("", False),
        (None, False),
    ],
)
def test_the_way_to_pay_is_shown_over_tls_and_of_a_stripe_on_this_machine(url, is_shown):
    assert is_safe(url) is is_shown


def test_customers_are_told_of_each_state_in_words_of_theirs():
    of_invoices = {value for name, value in vars(states).items() if name.isupper() and isinstance(value, str)}
    assert of_invoices and of_invoices <= set(STATES)
    assert "review" not in " ".join(STATES.values())


def test_a_line_can_be_questioned_and_is_answered_once(world):
    at, _ = world
    with visiting(world, "bill@acme.example") as browser:
        listed = browser.get("/account/invoices").text
        invoice = browser.get(re.search(r'href="(/account/invoices/[0-9a-f]{64})"', listed).group(1)).text
        path = re.search(r'href="(/account/lines/[0-9a-f]{64})"', invoice).group(1)
        form = {"form": form_token(browser.get(path).text), "question": "We made no such calls <b>"}
        for _ in range(2):  # sent twice it is one question
            assert browser.post(path, data=form).status_code == 303
        for wrong in (" ", "a\0b", "x" * 2001):
            assert browser.post(path, data=form | {"question": wrong}).status_code == 422
        (asked,) = questions.of_all(at.engine, "live", waiting=True)
        assert (asked.customer_id, asked.amount_minor, asked.who) == ("acme", 60000, "bill@acme.example")
        questions.answer(at.engine, "live", asked.question_id, "rejected", "See the log", who="op", now=NOW)
        with pytest.raises(registry.RegistryError, match="rejected by op already"):
            questions.answer(at.engine, "live", asked.question_id, "accepted", "No", who="op", now=NOW)
        shown = browser.get("/account/questions").text
    assert "We made no such calls &lt;b&gt;" in shown and "Rejected." in text_of(shown)


def test_an_owner_manages_members_and_somebody_stays_owner(world):
    with visiting(world, "gus@globex.example") as browser:
        form = {"form": form_token(browser.get("/account/members").text)}
        assert (
            browser.post("/account/members", data=form | {"email": "x@globex.example", "role": "billing"}).status_code
            == 303
        )
        assert "x@globex.example" in browser.get("/account/members").text
        for who in ("both@example.com", "x@globex.example"):
            assert browser.post("/account/members", data=form | {"email": who, "role": ""}).status_code == 303
        alone = browser.post("/account/members", data=form | {"email": "gus@globex.example", "role": "billing"})
        assert alone.status_code == 422 and "last owner" in alone.text
        browser.post("/account/members", data=form | {"email": "y@globex.example", "role": "viewer"})
        refused = browser.post("/account/members", data=form | {"email": "gus@globex.example", "role": "viewer"})
        assert refused.status_code == 422 and "last owner" in refused.text
        assert browser.post("/account/members", data={"email": "z@globex.example", "role": "owner"}).status_code == 403
    members.set_role(world[0].engine, "live", "globex", "both@example.com", "owner", who="tests", now=NOW)


def test_a_key_is_shown_once_and_only_its_hash_is_kept(world):
    at, _ = world
    with visiting(world, "olga@acme.example") as browser:
        form = {"form": form_token(browser.get("/account/keys").text)}
        text = re.search(r"mhc_[\w-]+", browser.post("/account/keys", data=form | {"name": "nightly"}).text).group(0)
        again = browser.get("/account/keys").text
        assert "nightly" in again and text not in again
        assert access_keys.customer_of(at.engine, "live", text) == "acme"
        (key,) = access_keys.of_customer(at.engine, "live", "acme")
        assert browser.post("/account/keys", data=form | {"revoke": key.key_id}).status_code == 303
    assert access_keys.customer_of(at.engine, "live", text) is None
    with at.engine.connect() as connection:
        stored = connection.exec_driver_sql("SELECT key_sha256 FROM portal_keys").scalar_one()
    assert stored == hashlib.sha256(text.encode()).hexdigest()


def test_the_prices_that_apply_are_listed(world):
    with visiting(world, "vera@acme.example") as browser:
        shown = text_of(browser.get("/account/prices").text)
    assert "input 2.00 EUR per 1,000 tokens Measured: the sum of llm.tokens.input (tokens)." in shown
    assert "Free of charge: llm.requests." in shown and "Nothing is planned." in shown


def test_an_invoice_is_had_as_a_document(world):
    with visiting(world, "bill@acme.example") as browser:
        invoice = re.search(r'href="(/account/invoices/[0-9a-f]{64})"', browser.get("/account/invoices").text).group(1)
        assert f'href="{invoice}/pdf"' in browser.get(invoice).text
        answer = browser.get(f"{invoice}/pdf")
    assert answer.content[:5] == b"%PDF-"
    # Nothing went to Stripe yet: it is a statement, and says that it is no invoice.
    assert answer.headers["content-disposition"] == 'attachment; filename="usage-statement-2026-10-01.pdf"'


def test_members_set_raise_acknowledge_and_remove_their_own_budget_and_no_other(world):
    at, _ = world
    theirs = budgets.Budget("acme", "money", "money", Decimal(5000))
    budgets.set_budget(at.engine, "live", theirs, who="op", why="credit limit", now=NOW)
    with visiting(world, "bill@acme.example") as browser:
        page = browser.get("/account/budgets").text
        assert "1,200.5 of 5,000 EUR" in text_of(page) and "24 % used" in text_of(page)
        form = {"form": form_token(page)}

        def act(**more):
            answer = browser.post("/account/budgets", data=form | more)
            assert answer.status_code == 303, text_of(answer.text)
            return text_of(browser.get("/account/budgets").text)

        shown = act(act="set", amount="1,000.00", thresholds="60, 100", stop="yes")
        assert "1,200.5 of 1,000 EUR" in shown and "120 % used" in shown and "Notices at 60, 100 %" in shown
        assert "Go on this month, and bill it" in shown and "Calls stop at the limit." in shown
        assert len(re.findall(r"2026-11-21 04:30 CET : ", shown)) == 4  # 60 %, 100 %, the cap, and what is above it
        with at.engine.connect() as connection:
            served = json.loads(connection.exec_driver_sql("SELECT limits FROM allowances").scalar_one())
        left = {it["name"]: Decimal(it["left"]) for it in served}
        assert left == {"money": Decimal("3799.5"), "own": Decimal("-200.5")}  # the collector goes by it
        assert "1,200.5 of 2,000 EUR" in act(act="raise", amount="2000")
        assert "It only tells." in act(act="acknowledge")
        (own, operators) = (
            next(it for it in budgets.standing(budgets.changes(at.engine, "live", "acme")) if it.name == name)
            for name in ("own", "money")
        )
        assert own.bill_over and operators == theirs
        assert "Your own budget" not in act(act="remove")
        assert browser.post("/account/budgets", data=form | {"act": "raise", "amount": "9"}).status_code == 404
        for amount in ("much", "-5", "NaN", "1e-999999", "1.500", "1,50,000", "0", "９"):
            assert browser.post("/account/budgets", data=form | {"amount": amount}).status_code == 422
        assert browser.post("/account/budgets", data=form | {"amount": "5", "thresholds": "half"}).status_code == 422
        # What the operator calls `own` is the operator's: its excess is not billed.
        budgets.set_budget(at.engine, "live", replace(theirs, name="own"), who="op", why="limit", now=NOW)
        for more in ({"act": "raise", "amount": "9000"}, {"act": "remove"}, {"act": "set", "amount": "1"}):
            assert browser.post("/account/budgets", data=form | more).status_code == 422
        budgets.remove(at.engine, "live", replace(theirs, name="own"), who="op", why="test", now=NOW)


# ---- nobody sees another's ------------------------------------------------------------------------------------------


def routes(world):
    """Every route of the customers' pages but those of signing in, from the routing table: (method, path, role)."""
    _, settings = world
    from meterhouse_portal.customer_pages import CustomerPages
    from meterhouse_portal.rendering import Rendering
    from meterhouse_portal.stores import Stores
    from meterhouse_store.brand import Brand
    from meterhouse_store.mail import MailSettings

    pages = CustomerPages(
        settings, Stores(settings), Rendering(Brand()), MailSettings(), "", lambda: NOW, app.billing_world
    )
    return [
        (next(iter(it.methods - {"HEAD"})), it.path, it.name)
        for it in pages.routes()
        if isinstance(it, Route) and it.name not in ("open", "operator")
    ]


def objects_of(world, customer):
    """An object of the customer for every route that takes one."""
    at, _ = world
    with at.engine.connect() as connection:
        rating, line = connection.exec_driver_sql(
            "SELECT r.rating_id, l.line_id FROM ratings r JOIN rated_lines l ON l.rating_id = r.rating_id "
            f"WHERE r.customer_id = '{customer}' AND r.state = 'closed' ORDER BY l.position"
        ).fetchone()
    action = {"acme": ("c-20", "2026-11-20T12:00:00+00:00"), "globex": ("c-globex-2", "2026-11-07T10:00:00+00:00")}
    return {
        "/account/invoices/{id}": f"/account/invoices/{rating}",
        "/account/invoices/{id}/pdf": f"/account/invoices/{rating}/pdf",
        "/account/invoices/{id}/evidence": f"/account/invoices/{rating}/evidence",
        "/account/invoices/{id}/evidence.zip": f"/account/invoices/{rating}/evidence.zip",
        "/account/lines/{id}": f"/account/lines/{line}",
        "/account/actions": "/account/actions?id={}&at={}".format(*action[customer]).replace("+", "%2B"),
    }


WITHOUT_OBJECT = {
    "/account", "/account/usage", "/account/usage.csv", "/account/usage.parquet", "/account/invoices",
    "/account/questions", "/account/credits", "/account/members", "/account/keys", "/account/prices",
    "/account/budgets", "/account/top-up",
}  # fmt: skip


@pytest.fixture
def with_packs(world, tmp_path):
    """Each customer has the evidence pack of its closed month, and another one is under way, so that asking waits."""
    at, _ = world
    with at.engine.connect() as connection:
        query = select(tables.ratings).where(tables.ratings.c.state == "closed")
        closed = [dict(it) for it in connection.execute(query).mappings()]
    for it in closed:
        packs.ask(at.engine, "live", it["customer_id"], it, NOW)
    assert [it.state for it in packs.make_asked(at, tmp_path)] == ["made", "made"]
    for it in closed:
        another = it | {"rating_id": hashlib.sha256(it["rating_id"].encode()).hexdigest()}
        packs.ask(at.engine, "live", it["customer_id"], another, NOW)
    yield
    with begin_write(at.engine) as connection:
        for table in (tables.evidence_packs, tables.evidence_blocks):
            connection.execute(delete(table))


@pytest.mark.usefixtures("with_packs")
def test_every_route_is_in_the_matrix_of_objects_and_roles(world):
    """Another customer's objects are answered as ids that do not exist; a role opens what it says and nothing else."""
    mine, theirs = objects_of(world, "acme"), objects_of(world, "globex")
    invented = {
        "/account/invoices/{id}": "/account/invoices/" + "0" * 64,
        "/account/invoices/{id}/pdf": "/account/invoices/" + "0" * 64 + "/pdf",
        "/account/invoices/{id}/evidence": "/account/invoices/" + "0" * 64 + "/evidence",
        "/account/invoices/{id}/evidence.zip": "/account/invoices/" + "0" * 64 + "/evidence.zip",
        "/account/lines/{id}": "/account/lines/" + "0" * 64,
        "/account/actions": "/account/actions?id=c-none&at=2026-11-07T10:00:00%2B00:00",
    }
    everybody = {"viewer": "vera@acme.example", "billing": "bill@acme.example", "owner": "olga@acme.example"}
    for role, email in everybody.items():
        with visiting(world, email) as browser:
            token = form_token(browser.get("/account").text)
            for method, path, needed in routes(world):
                assert path in WITHOUT_OBJECT or path in mine, f"{path} is in no matrix: add it here"
                allowed = members.ROLES.index(role) >= members.ROLES.index(needed)
                send = {"form": token, "question": "", "email": "-", "role": "viewer", "name": ""}

                def ask(address, method=method, browser=browser, send=send):
                    return browser.request(method, address, data=send if method == "POST" else None)

                own = ask(mine.get(path, path))
                assert own.status_code == ((200 if method == "GET" else 422) if allowed else 403), (role, path)
                if path in theirs:
                    other, none = ask(theirs[path]), ask(invented[path])
                    assert other.status_code == (404 if allowed else 403), (role, path)
                    assert other.text == none.text


def test_the_pages_of_one_are_the_same_with_and_without_the_other_s_data(world):
    at, _ = world
    paths = ["/account", "/account/usage", "/account/invoices", "/account/credits", "/account/usage.csv"]

    def shown(path):
        lines = re.sub(r"[0-9a-f]{64}", "H", browser.get(path).text).splitlines()
        return sorted(lines) if path.endswith(".csv") else lines  # a download is in no order

    with visiting(world, "bill@acme.example") as browser:
        before = [shown(path) for path in paths]
        at.client.command(
            f"INSERT INTO events ({COLUMNS}) VALUES "
            + row(900, event("globex", "llm.tokens.input", "2026-11-20 12:00:00", 999_999, call="c-20", model="x"))
        )
        try:
            after = [shown(path) for path in paths]
        finally:
            at.client.command("DELETE FROM events WHERE event_id = 'e900'")
    assert before == after


def test_no_page_reads_the_registry_agreements_or_money_of_others(world):
    of_customers = {name for name, table in tables.metadata.tables.items() if "customer_id" in table.c}
    broad = set()

    def note(_connection, _cursor, statement, parameters, *_):
        found = set(re.findall(r"(?:FROM|JOIN) (\w+)", statement)) & of_customers
        # By e-mail address and session; and what providers ask, which prices may mark up.
        found -= {"portal_members", "portal_sessions", "cost_entries"}
        # By ids of one's own ratings, or a count that tells that anything changed.
        narrow = "rating_id = " in statement or "rating_id IN" in statement or statement.startswith("SELECT count(")
        if found and "acme" not in tuple(parameters) and not narrow:
            broad.add(f"{page}: {statement}")

    with visiting(world, "olga@acme.example") as browser:
        event_hook.listen(Engine, "before_cursor_execute", note)
        try:
            for page in sorted(WITHOUT_OBJECT):
                assert browser.get(page).status_code == 200
        finally:
            event_hook.remove(Engine, "before_cursor_execute", note)
    assert broad == set()


def test_markup_in_names_stays_text(world):
    with visiting(world, "vera@acme.example") as browser:
        page = browser.get("/account/usage").text
    assert "&lt;script&gt;" in page and "<script" not in page


def test_every_answer_forbids_scripts_frames_and_caches(world):
    with visiting(world, "olga@acme.example") as browser:
        for path in ("/account", "/account/usage.csv", "/sign-in", "/account/lines/" + "0" * 64, "/logo"):
            headers = browser.get(path).headers
            assert "default-src 'none'" in headers["content-security-policy"], path
            assert "frame-ancestors 'none'" in headers["content-security-policy"]
            assert headers["cache-control"] == "no-store"
            assert headers["referrer-policy"] == "no-referrer"


def test_a_form_that_is_too_long_is_refused(world):
    with visiting(world, "olga@acme.example") as browser:
        assert browser.post("/account/keys", data={"name": "x" * 70_000}).status_code == 413


def test_the_first_page_is_small(world):
    with visiting(world, "vera@acme.example") as browser:
        assert len(browser.get("/account").content) + len(browser.get("/account.css").content) < 100_000


@pytest.mark.usefixtures("with_packs")
def test_without_a_warehouse_what_is_in_sql_is_shown_and_other_pages_say_so(world):
    at, settings = world
    alone = settings.model_copy(update={"warehouse_url": "http://x:y@127.0.0.1:1"})
    session = members.sign_in(at.engine, "live", members.request_link(at.engine, "live", "olga@acme.example", NOW), NOW)
    without, mine = set(), objects_of(world, "acme")
    with TestClient(app.build(alone, TOKEN, now=lambda: NOW), follow_redirects=False) as browser:
        browser.cookies.set(COOKIE, session)
        for path in sorted(path for method, path, _ in routes(world) if method == "GET"):
            answer = browser.get(mine.get(path, path))
            if answer.status_code == 200:
                without.add(path)
            else:
                assert answer.status_code == 503 and "Usage cannot be read now" in answer.text, path
    # All that is in SQL is shown.
    assert without == {
        "/account/invoices", "/account/invoices/{id}", "/account/invoices/{id}/pdf",
        "/account/invoices/{id}/evidence.zip", "/account/lines/{id}", "/account/questions", "/account/credits",
        "/account/keys", "/account/members", "/account/prices", "/account/top-up",
    }  # fmt: skip
