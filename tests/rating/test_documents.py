"""Invoices and statements as PDFs: what stands on the paper, worked out by hand, and that it stays on the paper."""

import re
from datetime import UTC, datetime
from decimal import Decimal

import pypdfium2
import pytest
from sqlalchemy import delete, func, insert, select, update
from typer.testing import CliRunner

from meterhouse_rating import credit_changes
from meterhouse_rating.credits import Grant
from meterhouse_rating.periods import PeriodError
from meterhouse_reports import documents, drawing
from meterhouse_reports.commands import report
from meterhouse_reports.documents import Document, Item, NoDocument
from meterhouse_reports.right_to_left import visual
from meterhouse_store import agreements, registry
from meterhouse_store.brand import Brand
from meterhouse_store.language import Language
from meterhouse_store.sql import begin_write
from meterhouse_store.tables import (
    invoice_taxes,
    invoices,
    ledger_entries,
    ledger_transactions,
    rated_lines,
    rating_statements,
    ratings,
)

BOOK = """
book: papers
currency: USD
metrics:
  input: {unit: token, meters: [llm.tokens.input]}
  output: {unit: token, meters: [llm.tokens.output]}
unbilled: {meters: [llm.requests]}
plans:
  pro:
    components:
      base: {model: flat, price: 20, title: Base fee}
      input:
        model: graduated
        metric: input
        per: 1000
        tiers: [{up_to: 10000, price: 2}, {price: 1}]
      output:
        model: per_unit
        metric: output
        by: [model]
        per: 1000
        prices: [{model: gpt-5, price: 8}]
        default: 4
  yen:
    currency: JPY
    components:
      tokens: {model: per_unit, metric: input, per: 1000, price: 300}
  dinar:
    currency: KWD
    components:
      tokens: {model: per_unit, metric: input, per: 1000, price: 1.5}
"""
NOVEMBER_3 = datetime(2026, 11, 3, 9, tzinfo=UTC)


@pytest.fixture(scope="module")
def house(new_house, tmp_path_factory):
    """October, closed: acme (New York) on `pro` with 10 % off and 10.00 of credits, invoiced; tokyo in yen, kuwait in
    dinars, both with drafts. November is open."""
    making = new_house("documents", tmp_path_factory.mktemp("documents"))
    house = next(making)
    house.publish(BOOK, valid_from=datetime(2026, 1, 1, tzinfo=UTC))
    engine, october = house.world.engine, datetime(2026, 10, 1, 4, tzinfo=UTC)
    for customer, plan, currency, time_zone, name in (
        ("acme", "pro", "USD", "America/New_York", "Acme Corporation"),
        ("tokyo", "yen", "JPY", "Asia/Tokyo", "東京 Tōkyō"),
        ("kuwait", "dinar", "KWD", "Asia/Kuwait", "شركة الكويت 2026"),
    ):
        registry.add_customer(engine, "test", customer, plan=plan, currency=currency, time_zone=time_zone, name=name)
    house.collected()
    agreements.add_discount(engine, "test", "acme", "Launch partner", percent=Decimal(10), valid_from=october)
    at = datetime(2026, 10, 2, tzinfo=UTC)
    credits = Grant("", "promotional", 1000, at)
    credit_changes.grant(engine, "test", "acme", credits, "USD", reference="", who="ann", why="w", now=at)
    for customer, meter, quantity, when, model in (
        ("acme", "llm.tokens.input", "30000", "2026-10-10T00:00:00", "gpt-5"),
        ("acme", "llm.tokens.input", "500", "2026-11-01T03:30:00", "gpt-5"),  # 31 October there
        ("acme", "llm.tokens.output", "1234", "2026-10-10T00:00:00", "gpt-5"),
        ("acme", "llm.tokens.output", "1001", "2026-10-11T00:00:00", "gpt-5-mini"),
        ("acme", "llm.requests", "7", "2026-10-11T00:00:00", "gpt-5"),
        ("tokyo", "llm.tokens.input", "1001", "2026-10-05T00:00:00", "gpt-5"),
        ("kuwait", "llm.tokens.input", "1234", "2026-10-05T00:00:00", "gpt-5"),
        ("acme", "llm.tokens.input", "1000", "2026-11-05T00:00:00", "gpt-5"),
    ):
        house.event(customer, meter, quantity, when, model=model)
    house.close("2026-10")
    house.run("2026-11")
    for customer, state, number, finalised_at in (
        ("acme", "finalised", "A-0007", NOVEMBER_3), ("tokyo", "draft", None, None), ("kuwait", "draft", None, None),
    ):  # fmt: skip
        invoiced(house, customer, state=state, number=number, finalised_at=finalised_at)
    yield house
    making.close()


def invoiced(house, customer, **more):
    with begin_write(house.world.engine) as connection:
        closed = select(ratings).where(ratings.c.customer_id == customer, ratings.c.state == "closed")
        row = connection.execute(closed).mappings().one()
        shared = {name: row[name] for name in ("rating_id", "period_start", "period_end", "currency", "total_minor")}
        values = {"invoice_id": f"i-{customer}", "namespace": "test", "customer_id": customer, "created_at": NOVEMBER_3}
        connection.execute(insert(invoices).values(**values, **shared, **more))


def pages(content):
    """The text of each page."""
    return [page.get_textpage().get_text_bounded() for page in pypdfium2.PdfDocument(content)]


def of(house, customer, brand=None):
    document = documents.invoice(house.world.engine, "test", customer, "2026-10")
    return document, drawing.draw(document, brand or Brand())


def ledger_total(house, customer):
    """What the ledger's receivable has of the customer, in minor units."""
    of = ledger_transactions.c.customer_id == customer
    query = select(func.sum(ledger_entries.c.amount_minor)).join(ledger_transactions).where(of)
    with house.world.engine.connect() as connection:
        return connection.execute(query.where(ledger_entries.c.account == "receivable")).scalar_one()


def text_of(content):
    return " ".join(" ".join(pages(content)).split())


def test_an_invoice_says_where_each_amount_of_a_month_comes_from(house):
    document, content = of(house, "acme")
    text = text_of(content)
    for said in (
        "Invoice number A-0007 Date of issue 3 November 2026 Period 1 October 2026 to 31 October 2026",
        "Time zone America/New_York (UTC-04:00) Currency USD Plan pro Total 56.93 USD",
        "Base fee 1 month 20 USD 20.00",
        "input 30,500 tokens 40.50",  # 10,000 at 2.00 and 20,500 at 1.00 a thousand
        "10,000 at 2 USD per 1,000, beyond 0 up to 10,000: 20 USD",
        "20,500 at 1 USD per 1,000, beyond 10,000: 20.5 USD",
        "output (gpt-5) 1,234 tokens 8 USD per 1,000 9.87 Only model gpt-5.",
        "Exactly 9.872 USD, rounded half to even, to 0.01 USD: 9.87.",
        "output (gpt-5-mini) 1,001 tokens 4 USD per 1,000 4.00",
        "Launch partner -7.44",  # a tenth of 74.37
        "Credits applied -10.00 Credits before: 10 USD. Pays 10.00 USD of input. Credits left: 0 USD.",
        "Usage 54.37 Fees 20.00 Discounts -7.44 Credits applied -10.00 Total in USD 56.93",
        "Page 1 of 2",
        "Page 2 of 2",
    ):
        assert said in text, said
    assert "Draft" not in text and "llm.requests" not in text
    assert document.total_minor == sum(amount for _, amount in document.sums) == 5693 == ledger_total(house, "acme")


def test_an_invoice_in_german_says_the_same_amounts_with_german_words_and_signs(house):
    german = Language("de")
    document = documents.invoice(house.world.engine, "test", "acme", "2026-10", german)
    content = drawing.draw(document, Brand())
    text = text_of(content)
    for said in (
        "Rechnung",
        "Rechnungsnummer A-0007 Ausgestellt am 3. November 2026 Zeitraum 1. Oktober 2026 bis 31. Oktober 2026",
        "Zeitzone America/New_York (UTC-04:00) Währung USD Tarif pro Summe 56,93 USD",
        "Beschreibung Menge Preis Betrag (USD)",
        "Base fee 1 Monat 20 USD 20,00",
        "input 30.500 Token 40,50",
        "10.000 zu 2 USD je 1.000, über 0 bis 10.000: 20 USD",
        "20.500 zu 1 USD je 1.000, über 10.000: 20,5 USD",
        "output (gpt-5) 1.234 Token 8 USD je 1.000 9,87 Nur model gpt-5.",
        "Genau 9,872 USD, gerundet mit Hälften zur geraden Ziffer, auf 0,01 USD: 9,87.",
        "Launch partner -7,44",
        "Guthaben davor: 10 USD. Zahlt 10,00 USD von input. Guthaben danach: 0 USD.",
        "Gebühren 20,00 Rabatte -7,44 Verrechnetes Guthaben -10,00 Gesamtsumme in USD 56,93",
        "Seite 1 von 2",
    ):
        assert said in text, (said, text)
    english = drawing.draw(documents.invoice(house.world.engine, "test", "acme", "2026-10"), Brand())
    assert document.total_minor == 5693
    # What is left of English are names: of components, units, models, and commands.
    words = set(re.findall(r"[A-Za-z]{3,}", text_of(english))) & set(re.findall(r"[A-Za-z]{3,}", text))
    assert (
        words & {"rounded", "line", "Line", "book", "beyond", "left", "before", "Page", "Total", "Exactly", "the"}
        == set()
    )
    statement = documents.statement(house.world.engine, "test", "acme", "2026-11", german)
    assert (statement.title, statement.stamp) == ("Nutzungsnachweis", "Keine Rechnung")
    assert ("Stand", "offen: Beträge können sich noch ändern") in statement.facts


def test_a_document_made_again_is_the_same_to_the_byte_and_payments_do_not_change_it(house):
    _, first = of(house, "acme")
    with begin_write(house.world.engine) as connection:
        paid = update(invoices).where(invoices.c.invoice_id == "i-acme")
        connection.execute(paid.values(state="paid", paid_at=NOVEMBER_3))
    assert of(house, "acme")[1] == first
    assert of(house, "acme", Brand(name="Somebody else"))[1] != first


@pytest.mark.parametrize(
    ("added", "contained", "said", "total"),
    [
        (1139, 0, "Credits applied -10.00 Tax 11.39 Total in USD 68.32", 6832),  # a fifth of 56.93 on top
        (0, 949, "9.49 USD of the total is tax.", 5693),
    ],
)
def test_tax_that_stripe_put_on_an_invoice_is_on_the_document(house, added, contained, said, total):
    row = {"stripe_invoice_id": "in_1", "namespace": "test", "invoice_id": "i-acme", "currency": "USD"}
    amounts = {"automatic": 1, "added_minor": added, "contained_minor": contained, "recorded_at": NOVEMBER_3}
    is_it = invoices.c.invoice_id == "i-acme"
    with begin_write(house.world.engine) as connection:
        connection.execute(update(invoices).where(is_it).values(stripe_invoice_id="in_1"))
        connection.execute(insert(invoice_taxes).values(**row, **amounts))
    try:
        document, content = of(house, "acme")
    finally:
        with begin_write(house.world.engine) as connection:
            connection.execute(update(invoices).where(is_it).values(stripe_invoice_id=None))
            connection.execute(invoice_taxes.delete())
    assert said in text_of(content)
    assert document.total_minor == sum(amount for _, amount in document.sums) == total


def test_amounts_have_the_digits_of_their_currency(house):
    yen = text_of(of(house, "tokyo")[1])
    assert "tokens 1,001 tokens 300 JPY per 1,000 300 " in yen and "Total in JPY 300 " in yen  # 300.3
    assert "Draft: not issued" in yen and "\u25a1\u25a1 T\u014dky\u014d" in yen  # two characters that the font lacks
    dinar = text_of(of(house, "kuwait")[1])
    assert "1.5 KWD per 1,000 1.850 " in dinar and "Total in KWD 1.850 " in dinar  # 1.851, charged in tens of fils
    assert ledger_total(house, "tokyo") == 300 and ledger_total(house, "kuwait") == 1850


def test_a_statement_shows_what_is_open_and_what_is_free(house):
    engine = house.world.engine
    october = documents.statement(engine, "test", "acme", "2026-10")
    assert october.total_minor == 5693 and october.free == (("llm.requests", "7", "free of charge"),)
    november = documents.statement(engine, "test", "acme", "2026-11")
    text = text_of(drawing.draw(november, Brand()))
    for said in (
        "Usage statement Not an invoice",
        "open: amounts can still change",
        "1 November 2026 to 30 November 2026",
        "(UTC-04:00, from the change of clocks UTC-05:00)",
        "Total in USD 19.80",  # 20.00, and 1,000 tokens at 2.00, less a tenth
    ):
        assert said in text, said


def test_a_statement_in_german_says_how_complete_usage_was(house):
    engine, german = house.world.engine, Language("de")
    state = (
        rating_statements.c.rating_id
        == select(ratings.c.rating_id)
        .where(ratings.c.customer_id == "acme", ratings.c.state == "closed")
        .scalar_subquery()
    )
    with engine.connect() as connection:
        made = dict(connection.execute(select(rating_statements).where(state)).mappings().one())
    of = {"verdict": "as it was said", "streams": [{"events": 1200}, {"events": 34}], "exceptions": ["one", "two"]}
    for changed, said in (
        ({}, "Beim Abschluss des Zeitraums: Nicht sicher vollständig: 1.234 Ereignisse aus 2 Datenströmen, "
             "Auffälligkeiten: 2."),
        ({"streams": [{"events": 1}], "exceptions": []},
         "Beim Abschluss des Zeitraums: Vollständig, soweit es sich wissen lässt: 1 Ereignis aus 1 Datenstrom, nichts "
         "wird zurückgehalten und nichts fehlt."),
    ):  # fmt: skip
        with begin_write(engine) as connection:
            statement = made["statement"] | of | changed
            connection.execute(update(rating_statements).where(state).values(statement=statement))
        assert documents.statement(engine, "test", "acme", "2026-10", german).notes[0] == said
    english = documents.statement(engine, "test", "acme", "2026-10")
    assert english.notes[0] == "When the period was closed: as it was said"


def test_what_cannot_be_an_invoice_is_refused_with_what_to_do(house):
    engine = house.world.engine
    for customer, period, says in (
        ("acme", "2026-11", "is open, so there is no invoice yet"),
        ("acme", "2026-09", "nothing of acme is rated in 2026-09"),
        (
            "acme",
            "2026-10-02..2026-10-03",
            "begins or ends outside of 2026-10-02..2026-10-03: --period 2026-10-01T04:00:00Z",
        ),
        ("acme", "soon", "is no period"),
        ("nobody", "2026-10", "there is no customer 'nobody'"),
    ):
        with pytest.raises((NoDocument, PeriodError), match=says):
            documents.invoice(engine, "test", customer, period)
    with begin_write(engine) as connection:
        connection.execute(update(invoices).where(invoices.c.invoice_id == "i-kuwait").values(state="void"))
    assert documents.invoice(engine, "test", "kuwait", "2026-10").stamp == "Void: not to be paid"
    with begin_write(engine) as connection:
        connection.execute(delete(invoices).where(invoices.c.invoice_id == "i-kuwait"))
    with pytest.raises(NoDocument, match="is closed and has no invoice: `meterhouse bill run` drafts it"):
        documents.invoice(engine, "test", "kuwait", "2026-10")


def test_a_month_that_a_rating_reaches_into_has_no_document_of_its_rest_alone(house):
    engine = house.world.engine
    november = (ratings.c.customer_id == "acme") & (ratings.c.state == "open")
    earlier = datetime(2026, 10, 30, 4, tzinfo=UTC)
    with begin_write(engine) as connection:
        connection.execute(update(ratings).where(november).values(period_start=earlier))
    for document in (documents.statement, documents.invoice):
        with pytest.raises(
            NoDocument, match=r"begins or ends outside of 2026-10: --period 2026-10-01T.*, --period 2026-10-30T"
        ):
            document(engine, "test", "acme", "2026-10")
    with begin_write(engine) as connection:
        connection.execute(update(ratings).where(november).values(period_end=datetime(2026, 10, 31, 4, tzinfo=UTC)))
    with pytest.raises(NoDocument, match="2026-10 of acme was rated in parts, each with a document of its own"):
        documents.statement(engine, "test", "acme", "2026-10")


def test_a_document_that_is_not_what_the_ledger_says_is_refused(house):
    engine = house.world.engine
    closed = (ratings.c.customer_id == "tokyo") & (ratings.c.state == "closed")
    for amount, says in ((301, "is 301 in minor units of JPY, and the ledger has 300"), (300, None)):
        with begin_write(engine) as connection:  # of the ledger itself nothing can be changed
            connection.execute(update(ratings).where(closed).values(total_minor=amount))
            of_line = rated_lines.c.rating_id.in_(select(ratings.c.rating_id).where(closed))
            connection.execute(update(rated_lines).where(of_line).values(amount_minor=amount))
        if says is not None:
            with pytest.raises(NoDocument, match=says):
                documents.statement(engine, "test", "tokyo", "2026-10")
    assert documents.statement(engine, "test", "tokyo", "2026-10").total_minor == 300


def test_long_documents_repeat_their_heads_and_nothing_leaves_the_paper():
    items = tuple(
        Item(
            "x" * 200 if n == 3 else f"Output tokens {n}",
            "123,456,789,012.123456789 tokens",
            "0.000000000123 USD",
            -n * 10**13,
            ("Exactly so.", f"Line {n:064x}.", "y" * 900 if n == 7 else "1 at 2 USD: 2 USD."),
        )
        for n in range(1, 41)
    )
    name = "\u0416\u0443\u043a \u05e9\u05dc\u05d5\u05dd " + "W" * 150
    total = -820 * 10**13
    document = Document(
        *("Usage statement", "r" * 64, "Not an invoice", "c" * 256, name, (("Plan", "p" * 64),), "USD"),
        *(items, (("Usage", total), ("Fees", 0)), total, (("m" * 200, "1", "free"),), ("note " * 400,)),
    )
    pdf = pypdfium2.PdfDocument(drawing.draw(document, Brand(name="O" * 80, address="Street | " + "S" * 200)))
    assert len(pdf) > 4
    drawn = ""
    for number, page in enumerate(pdf, 1):
        told = page.get_textpage()
        text = told.get_text_bounded()
        drawn += "".join(text.split())
        assert f"Page {number} of {len(pdf)}" in text
        if number < len(pdf) - 1:
            assert "Amount (USD)" in text and "Description" in text
        for at in range(told.count_chars()):
            left, low, right, high = told.get_charbox(at)
            assert left >= drawing.MARGIN - 4 and right <= drawing.RIGHT + 4 and low >= 30, (number, at)
            assert high <= drawing.HEIGHT - 20, (number, at)
    # Ids and numbers are whole, whatever lines they take.
    assert [n for n in range(1, 41) if f"{n:064x}" not in drawn or f"-{n * 10**11:,}.00" not in drawn] == []
    assert "123,456,789,012.123456789" in drawn and "-82,000,000,000,000.00" in drawn
    assert drawn.count("y") >= 900 and drawn.count("x") >= 200 and drawn.count("W") >= 150


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("Acme \u05d0\u05d1 GmbH", "Acme \u05d1\u05d0 GmbH"),
        ("\u05d0\u05d1 (\u05d2) 12.5", "12.5 (\u05d2) \u05d1\u05d0"),
        # As it is seen: mim alone, lam with alef joined to the sin before them.
        ("\u0633\u0644\u0627\u0645", "\ufee1\ufefc\ufeb3"),
        ("plain 12 (x)", "plain 12 (x)"),
    ],
)
def test_hebrew_and_arabic_are_seen_in_their_order(text, seen):
    assert visual(text) == seen


def test_the_commands_write_the_same_file_twice(house, command_environment, tmp_path, monkeypatch):
    for name, value in command_environment(house).items():
        monkeypatch.setenv(name, value)

    def call(*arguments):
        done = CliRunner().invoke(report, [*arguments, "--out", str(file)])
        return done.exit_code, done.stderr

    file = tmp_path / "tokyo.pdf"
    for kind in ("invoice", "statement"):
        code, said = call(kind, "tokyo", "--period", "2026-10")
        assert code == 0 and "boxes stand for '\u4eac\u6771'" in said and "METERHOUSE_BRAND_FONT" in said
        first = file.read_bytes()
        assert call(kind, "tokyo", "--period", "2026-10")[0] == 0 and file.read_bytes() == first
    assert call("invoice", "acme", "--period", "2026-11")[0] == 1
    assert call("invoice", "acme", "--period", "soon")[0] == 2
    monkeypatch.setenv("METERHOUSE_BRAND_FONT", str(tmp_path / "none.ttf"))
    refused = f"METERHOUSE_BRAND_FONT: there is no file {tmp_path / 'none.ttf'}\n"
    assert call("invoice", "tokyo", "--period", "2026-10") == (1, refused)
    monkeypatch.delenv("METERHOUSE_BRAND_FONT")
    monkeypatch.setenv("METERHOUSE_BRAND_COLOUR", "blue")
    code, said = call("invoice", "acme", "--period", "2026-10")
    assert code == 1 and said.startswith("METERHOUSE_BRAND_COLOUR: ")
