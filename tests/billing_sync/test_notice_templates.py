"""The operator's own texts of notices: what is sent, what `notices check` refuses, and that nobody goes without."""

import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from meterhouse_billing import notice_samples, notice_sending, notices
from meterhouse_billing.notice_commands import notices as command
from meterhouse_billing.notice_sending import Sender
from meterhouse_billing.notice_templates import TemplateBroken, Templates
from meterhouse_billing.notices import KINDS, Notice
from meterhouse_store import registry, tables
from meterhouse_store.brand import Brand
from meterhouse_store.mail import MailSettings
from meterhouse_store.sql import begin_write

INVOICE = notice_samples.FULL["invoice"]
TEXT = "Subject: {{ brand.name }}: {{ number }}\n\nDear {{ customer_id }},\n{{ total }} {{ currency }} are due.\n"
HTML = "<h1>{{ number }}</h1>{% for line in lines %}<p>{{ line.description }}: {{ line.amount }}</p>{% endfor %}"


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "texts"
    made.mkdir()
    (made / "invoice.txt").write_text(TEXT)
    (made / "invoice.html").write_text(HTML)
    return made


def told(folder, kind="invoice", facts=None, language="en"):
    brand = Brand(name="Acme AI", language=language)
    return Templates(folder).of(kind, "acme", "subject", facts or INVOICE | {"number": "A<1>"}, brand)


def wrong(folder):
    return list(Templates(folder).check(Brand(name="Acme AI")))


def test_the_operators_text_goes_out_escaped_in_html_and_the_others_stay(folder):
    assert wrong(folder) == []
    made = told(folder)
    assert (made.subject, made.text) == ("Acme AI: A<1>", "Dear acme,\n1200.50 USD are due.\n")
    assert made.html.startswith("<h1>A&lt;1&gt;</h1><p>Tokens &lt;mark&gt;&amp;&#34;&#39;: 1200.00</p>")
    assert told(folder, "receipt").subject == "Acme AI: Received: 1200.50 USD"  # built in


def test_a_language_goes_before_and_one_with_a_country_before_that(folder):
    for name, text in (("de", "Subject: Rechnung\n\nFällig."), ("de-AT", "Subject: Faktura\n\nFällig.")):
        (folder / f"invoice.{name}.txt").write_text(text)
        (folder / f"invoice.{name}.html").write_text("<p>F&auml;llig.</p>")
    assert wrong(folder) == []
    assert [told(folder, language=tag).subject for tag in ("de", "de-CH", "de-AT")] == [
        "Rechnung",
        "Rechnung",
        "Faktura",
    ]
    assert told(folder).subject == "Acme AI: A<1>"


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        (
            "invoice.html",
            "{% if False %}{{ totl }}{% endif %}",
            "invoice.html: there is no totl; there are brand, currency",
        ),
        ("invoice.html", "{% for line in lines %}{{ line.price }}{% endfor %}", "has no attribute 'price'"),
        ("invoice.html", "{{ lines[0].description }}", "invoice.html: "),  # an invoice without lines
        ("invoice.html", "{% autoescape false %}{{ number }}{% endautoescape %}", "escaping is not turned off"),
        ("invoice.html", "{{ number | safe }}", "No filter named 'safe'"),
        ("invoice.html", "{{ ''.__class__.__mro__ }}", "is unsafe"),
        ("invoice.html", "{% if %}", "line 1: "),
        ("invoice.html", "{% include '../secret.txt' %}", "../secret.txt"),
        ("invoice.txt", "Your invoice", "its first line is `Subject: ...`"),
        ("receipt.txt", "Subject: thanks\n\n", "receipt.txt: receipt.html is missing"),
        ("invioce.txt", "Subject: x\n\n", "invioce.txt: is no notice"),
    ],
)
def test_check_refuses(folder, name, text, why):
    (folder.parent / "secret.txt").write_text("secret")
    (folder / name).write_text(text)
    [sentence] = wrong(folder)
    assert why in sentence


def test_what_is_included_is_escaped_too_and_is_no_notice_by_itself(folder):
    (folder / "_foot.html").write_text("<p>{{ number }}</p>")
    (folder / "invoice.html").write_text("{% include '_foot.html' %}")
    assert wrong(folder) == []
    assert told(folder).html == "<p>A&lt;1&gt;</p>"
    with pytest.raises(TemplateBroken, match="number"):
        told(folder, facts={"total": "1", "currency": "USD"})


def test_there_is_a_sample_of_each_kind_and_the_built_in_texts_take_it():
    assert set(notice_samples.FULL) == set(notice_samples.BARE) == set(KINDS)
    for kind in KINDS:
        for facts in (notice_samples.FULL[kind], notice_samples.BARE[kind]):
            assert notice_samples.MARK not in told(None, kind, facts).html


def test_a_template_that_fails_keeps_nobody_from_being_told(books, world, folder, monkeypatch):
    registry.add_customer(books.engine, "test", "acme", email="olga@acme.example", now=world.now())
    facts = INVOICE | {"number": "A-1"}
    with begin_write(books.engine) as connection:
        notices.keep(connection, [Notice("test", "acme", "invoice", ("a",), "invoice", facts)], world.now())
    (folder / "invoice.html").write_text("{{ nothing }}")
    sent = []
    monkeypatch.setattr(notice_sending.mail, "send", lambda settings, message: sent.append(message))
    mail = MailSettings(smtp_url="smtp://127.0.0.1:25", mail_from="billing@acme.example")
    [done] = notice_sending.send(Sender(books.engine, "test", mail, Brand(), Templates(folder)), world.now())
    assert done.state == "sent" and done.problem.startswith("the built-in text was sent: invoice.html: ")
    assert sent[0]["Subject"] == "Meterhouse: Invoice A-1: 1200.50 USD"
    with books.engine.connect() as connection:
        assert connection.execute(select(tables.notice_deliveries.c.last_error)).scalar_one() == done.problem


def test_the_command(folder, monkeypatch):
    monkeypatch.setenv("METERHOUSE_NOTICE_TEMPLATES", str(folder))
    done = CliRunner().invoke(command, ["check"])
    assert (done.exit_code, done.output) == (0, f"The templates in {folder} can be used.\n")
    (folder / "invoice.html").write_text("{{ totl }}")
    done = CliRunner().invoke(command, ["check"])
    assert done.exit_code == 1 and done.output.startswith("! invoice.html: there is no totl")
    monkeypatch.setenv("METERHOUSE_NOTICE_TEMPLATES", "")
    assert "built-in texts" in CliRunner().invoke(command, ["check"]).output
