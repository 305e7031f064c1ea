"""Reports for finance, from a month that was rated, closed, invoiced and paid: figures worked out by hand."""

import csv
import io
import json
import zipfile
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy import insert, select, update
from typer.testing import CliRunner

from meterhouse_billing import postings
from meterhouse_rating import credit_changes, ledger, ledger_books
from meterhouse_rating.credits import Grant
from meterhouse_rating.ledger import Entry, Posting
from meterhouse_rating.mirrors import catch_up
from meterhouse_reports import formats
from meterhouse_reports.commands import report
from meterhouse_reports.definitions import REPORTS, CannotBe
from meterhouse_reports.dictionary import dictionary
from meterhouse_reports.journal import codes_from, journal
from meterhouse_reports.made import Made, lacking, make, span_of
from meterhouse_store import mirror, rollups
from meterhouse_store.sql import begin_write
from meterhouse_store.tables import (
    credit_note_issues,
    credit_notes,
    invoice_taxes,
    invoices,
    ledger_entries,
    ledger_transactions,
    payments,
    ratings,
)

BOOK = """
book: reports
currency: USD
metrics:
  input: {unit: token, meters: [llm.tokens.input]}
plans:
  pay:
    components:
      tokens: {model: per_unit, metric: input, per: 1000, price: 2}
  yen:
    currency: JPY
    components:
      tokens: {model: per_unit, metric: input, per: 1000, price: 300}
"""
NOVEMBER_3 = datetime(2026, 11, 3, 9, tzinfo=UTC)


@pytest.fixture(scope="module")
def books(new_house, tmp_path_factory):
    """For looking only."""
    making = new_house("reports", tmp_path_factory.mktemp("reports"))
    yield furnished(next(making))
    making.close()


@pytest.fixture
def house_of_reports(new_house, tmp_path):
    """For changing."""
    making = new_house("reports_sums", tmp_path)
    yield furnished(next(making))
    making.close()


def furnished(house):
    """October: acme (New York) used 30,500 tokens, of which credits paid 10.00; tokyo 1,001 in yen. Acme's invoice is
    half paid. November has begun."""
    house.publish(BOOK, valid_from=datetime(2026, 1, 1, tzinfo=UTC))
    house.customer("acme", time_zone="America/New_York")
    house.customer("tokyo", plan="yen", currency="JPY", time_zone="Asia/Tokyo")
    house.collected()
    credits(house, 1000, "promotional", datetime(2026, 10, 2, tzinfo=UTC))
    house.event("acme", "llm.tokens.input", "30000", "2026-10-10T00:00:00", model="gpt-5")
    house.event("acme", "llm.tokens.input", "500", "2026-11-01T03:30:00", model="gpt-5")  # 31 October there
    house.event("tokyo", "llm.tokens.input", "1001", "2026-09-30T16:00:00", model="gpt-5")  # 1 October there
    house.event("acme", "llm.tokens.input", "7000", "2026-11-05T00:00:00", model="gpt-5-mini")
    house.close("2026-10")
    house.run("2026-11")
    invoice(house, "acme", "finalised", finalised_at=NOVEMBER_3)
    pay(house, "acme", 2500)
    mirror.push(house.world.engine, house.world.client, "test")
    return house


def credits(house, amount, kind, at):
    wanted = Grant("", kind, amount, at)
    credit_changes.grant(house.world.engine, "test", "acme", wanted, "USD", reference="", who="ann", why="w", now=at)


def invoice(house, customer, state, **more):
    with begin_write(house.world.engine) as connection:
        row = (
            connection.execute(select(ratings).where(ratings.c.customer_id == customer, ratings.c.state == "closed"))
            .mappings()
            .one()
        )
        connection.execute(
            insert(invoices).values(
                invoice_id=f"i-{customer}", namespace="test", customer_id=customer, rating_id=row["rating_id"],
                period_start=row["period_start"], period_end=row["period_end"], state=state, currency=row["currency"],
                total_minor=row["total_minor"], created_at=NOVEMBER_3, number="A-1",
                stripe_invoice_id=f"in_{customer}", stripe_total_minor=row["total_minor"], **more,
            )
        )  # fmt: skip


def pay(house, customer, amount, at=datetime(2026, 11, 10, tzinfo=UTC)):
    with begin_write(house.world.engine) as connection:
        connection.execute(
            insert(payments).values(
                payment_id="p1", namespace="test", invoice_id=f"i-{customer}", customer_id=customer,
                amount_minor=amount, currency="USD", paid_at=at,
            )
        )  # fmt: skip
        sides = (Entry(ledger.CASH, amount, "USD"), Entry(ledger.RECEIVABLE, -amount, "USD"))
        ledger.post(
            connection, "test", customer, [Posting("payment", "p1", "payment", sides)], effective_at=at, recorded_at=at
        )


def rows(house, name, period="2026-10", by=None, customer=None):
    asked = REPORTS[name]
    made = make(house.world.client, "test", asked, span_of(period, NOVEMBER_3), by or asked.by, customer)
    return [dict(zip(made.columns, row, strict=True)) for row in made.rows]


def amounts(found, *names):
    return [tuple(row[name] for name in names) for row in found]


def test_csv_has_no_name_that_a_spreadsheet_runs_and_numbers_as_they_are():
    made = Made(REPORTS["usage"], ("model", "quantity"), (("=cmd|' /c'!A1", Decimal(-5)), ("gpt-5", Decimal(2))))
    assert formats.as_csv(made).splitlines() == ["model,quantity", "'=cmd|' /c'!A1,-5", "gpt-5,2"]


def of_ledger(house, account, currency="USD"):
    """The fold of the ledger in SQL, in major units of a currency with two digits."""
    entries, transactions = ledger_entries, ledger_transactions
    query = (
        select(sqlalchemy.func.sum(entries.c.amount_minor))
        .join(transactions, transactions.c.transaction_id == entries.c.transaction_id)
        .where(entries.c.account == account, entries.c.currency == currency)
    )
    with house.world.engine.connect() as connection:
        return Decimal(connection.execute(query).scalar_one() or 0).scaleb(-2)


def test_revenue_counts_in_the_customer_s_month_and_currencies_stay_apart(books):
    found = rows(books, "revenue")
    assert amounts(found, "customer", "currency", "amount", "closed") == [
        ("acme", "USD", Decimal("61.00"), True),
        ("tokyo", "JPY", Decimal("300"), True),  # 1,001 tokens are 300.3 yen
    ]
    assert -of_ledger(books, "revenue") == Decimal("61.00")
    assert rows(books, "revenue", "2026-09") == rows(books, "revenue", "2026-11") == []
    assert amounts(rows(books, "revenue", by=("component",)), "component", "currency", "amount") == [
        ("tokens", "JPY", Decimal(300)), ("tokens", "USD", Decimal(61)),
    ]  # fmt: skip


def test_usage_says_what_is_closed(books):
    found = rows(books, "usage", "2026-10..2026-11", by=("customer", "model"))
    assert amounts(found, "customer", "model", "quantity", "events", "closed") == [
        ("acme", "gpt-5", Decimal(30500), 2, True),
        ("acme", "gpt-5-mini", Decimal(7000), 1, False),
        ("tokyo", "gpt-5", Decimal(1001), 1, True),
    ]


def test_tokens_are_not_added_to_what_is_no_token(house_of_reports):
    """However it is grouped, a quantity is one of its meter."""
    house = house_of_reports
    house.event("acme", "tool.calls", "3", "2026-10-10T00:00:00", model="gpt-5")
    for by in (("customer",), ("month",), ("conversation",), ("agent", "day")):
        found = [row for row in rows(house, "usage", "2026-10", by=by, customer="acme") if row["meter"] == "tool.calls"]
        assert [(row["quantity"], row["events"]) for row in found] == [(3, 1)]
        assert tuple(found[0])[: len(by) + 1] == (*by, "meter")


def test_usage_and_margins_are_the_same_of_days_that_are_summed(house_of_reports):
    """The days within which acme's and tokyo's months begin are not: these are read event by event."""
    house = house_of_reports
    ask = {
        "usage": ("customer", "model", "day", "month"),
        "margin": ("month", "customer", "state"),
    }

    def told():
        found = {name: rows(house, name, "2026-09..2026-11", by=by) for name, by in ask.items()}
        for row in found["margin"]:
            del row["as_of"]  # the moment at which it was asked
        return found

    before = told()
    assert [row["quantity"] for row in before["usage"]] == [30000, 500, 7000, 1001]
    rollups.roll_up(house.world.client, settled_s=0)
    summed = house.world.client.query("SELECT sum(events) FROM usage_days").first_row
    house.world.client.command("ALTER TABLE usage_days UPDATE quantity = 1 WHERE 1", settings={"mutations_sync": 2})
    changed = [row["quantity"] for row in rows(house, "usage", "2026-09..2026-11", by=ask["usage"])]
    assert (summed, changed) == (
        (4,),
        [1, 500, 1, 1001],
    )  # what is told apart by the customer's time zone is not summed
    house.world.client.command("TRUNCATE TABLE usage_rolled")
    rollups.roll_up(house.world.client, settled_s=0)
    assert told() == before
    whole = amounts(rows(house, "usage", "2026-10..2026-11", by=("customer", "conversation")), "customer", "quantity")
    assert whole == [("acme", 37500), ("tokyo", 1001)]
    # Acme's November is from the 1st, 04:00 UTC, to the 1st of December, 05:00: its middle is the 16th, 04:30.
    hour = rows(house, "usage", "2026-11-16T04:00..2026-11-16T05:00", by=("customer",))
    assert amounts(hour, "customer", "quantity") == [("acme", 7000)]


def test_unbilled_is_what_no_invoice_that_went_out_has(books):
    found = rows(books, "unbilled", "2026-10..2026-11")
    assert amounts(found, "customer", "stage", "currency", "amount", "closed") == [
        ("acme", "period open", "USD", Decimal("14.00"), False),
        ("tokyo", "closed, no invoice", "JPY", Decimal("300"), True),
    ]


def test_deferred_credits_open_move_and_close(books):
    (october,) = rows(books, "deferred", customer="acme")
    assert {name: str(value) for name, value in october.items() if isinstance(value, Decimal) and value} == {
        "granted": "10.000", "used": "-10.000",
    }  # fmt: skip
    assert (october["opening"], october["closing"]) == (0, 0) == (0, of_ledger(books, "deferred_credits"))


def test_ageing_is_the_ledger_s_receivable_at_any_month_s_end(books):
    # October's end: the rating counts in October, its invoice went out later.
    (october,) = rows(books, "ageing", customer="acme")
    assert amounts([october], "not_invoiced", "days_0_30", "receivable") == [(51, 0, 51)]
    (november,) = rows(books, "ageing", "2026-11", customer="acme")
    assert amounts([november], "not_invoiced", "days_0_30", "days_31_60", "receivable") == [(0, 26, 0, 26)]
    (december,) = rows(books, "ageing", "2026-12", customer="acme")
    assert amounts([december], "not_invoiced", "days_0_30", "days_31_60", "receivable") == [(0, 0, 26, 26)]
    assert of_ledger(books, "receivable") == 26


def test_reconciliation_names_the_station_that_differs(books):
    found = rows(books, "reconciliation")
    stations = ("rated", "lines", "ledger", "invoice", "stripe", "paid")
    assert amounts(found, "customer", "state", "differs", *stations) == [
        ("acme", "finalised", "", 51, 51, 51, 51, 51, 25),
        ("tokyo", "no invoice", "", 300, 300, 300, None, None, 0),
    ]


def test_the_journal_has_codes_and_its_sides_are_equal(books, tmp_path):
    file = tmp_path / "codes.yaml"
    accounts = ["receivable", "cash", "revenue", "deferred_credits", "promotions", "adjustments", "tax"]
    accounts.append("application_fees")
    file.write_text("".join(f"{name}: '{4000 + at}'\n" for at, name in enumerate(accounts)))
    told = journal(codes_from(file))
    made = make(books.world.client, "test", told, span_of("2026-10", NOVEMBER_3), told.by)
    found = [dict(zip(made.columns, row, strict=True)) for row in made.rows]
    acme = [row for row in found if row["customer"] == "acme" and row["kind"] == "usage"]
    assert amounts(acme, "account", "code", "debit", "credit") == [
        ("receivable", "4000", 61, 0), ("revenue", "4002", 0, 61),
    ]  # fmt: skip
    assert str(acme[0]["date"]) == "2026-10-31"  # the period ends at 04:00 on 1 November, UTC
    for currency in ("USD", "JPY"):
        sides = [(row["debit"], row["credit"]) for row in found if row["currency"] == currency]
        assert sum(it[0] for it in sides) == sum(it[1] for it in sides) > 0


CODES = """
receivable: 1200
cash: 0400
revenue: 4000.10
deferred_credits: 12:30
promotions: 1_000
adjustments: yes
tax: "2200"
application_fees: 0x10
"""


def test_a_code_is_what_stands_in_the_file_with_and_without_quotes(tmp_path):
    file = tmp_path / "codes.yaml"
    file.write_text(CODES)
    assert list(codes_from(file).values()) == ["1200", "0400", "4000.10", "12:30", "1_000", "yes", "2200", "0x10"]


def test_a_mapping_that_is_not_there_is_told_in_a_sentence(tmp_path):
    with pytest.raises(CannotBe, match=r"codes\.yaml cannot be read: No such file or directory"):
        codes_from(tmp_path / "codes.yaml")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("receivable: 1\n", "has no code for adjustments, application_fees, cash"),
        ("receivabel: 1\n", "there is no account 'receivabel'"),
        ("- 1\n", "has to map accounts to codes"),
        ("a: [\n", "cannot be read"),
        (CODES.replace("0400", ""), "the code of cash has to be 1 to"),
        (CODES.replace("0400", "[4]"), "the code of cash has to be 1 to"),
    ],
)
def test_a_mapping_with_a_mistake_is_refused(tmp_path, text, says):
    file = tmp_path / "codes.yaml"
    file.write_text(text)
    with pytest.raises(CannotBe, match=says):
        codes_from(file)


def test_what_happens_later_shows_too(sqlite_house):
    house = furnished(sqlite_house)
    engine, client = house.world.engine, house.world.client
    assert lacking(engine, client, "test") == []
    credits(house, 300, "bought", NOVEMBER_3)
    why = {"account": "adjustments", "why": "outage", "who": "ann", "corrects": None, "now": NOVEMBER_3}
    ledger_books.adjust(engine, "test", "acme", "-5.00", **why)
    assert lacking(engine, client, "test") == [
        "5 of 7 ledger transactions are in the warehouse: `meterhouse rate run --due` brings what is missing there"
    ]
    catch_up(engine, client, "test")  # brings what came outside of ratings
    assert lacking(engine, client, "test") == []
    invoice(house, "tokyo", "draft")
    assert lacking(engine, client, "test") == [
        "1 of 2 invoices are in the warehouse: `meterhouse bill run --due` brings what is missing there"
    ]
    mirror.push(engine, client, "test")
    (november,) = rows(house, "deferred", "2026-11", customer="acme")
    assert (november["opening"], november["granted"], november["closing"]) == (0, 3, 3)
    assert amounts(rows(house, "corrections", "2026-11"), "customer", "kind", "description", "amount") == [
        ("acme", "adjustment", "outage (ann)", Decimal("-5.00"))
    ]
    (ageing,) = rows(house, "ageing", "2026-11", customer="acme")
    assert amounts([ageing], "not_invoiced", "days_0_30", "receivable") == [(-5, 26, 21)]  # bought credits are paid for
    with begin_write(engine) as connection:
        connection.execute(update(invoices).values(stripe_total_minor=5099, paid_at=NOVEMBER_3))
    mirror.push(engine, client, "test")
    found = rows(house, "reconciliation", customer="acme")
    assert amounts(found, "differs", "stripe") == [("stripe", Decimal("50.99"))]


def test_tax_on_top_of_an_invoice_is_in_the_tax_report_and_owed_until_it_is_paid(sqlite_house):
    house = furnished(sqlite_house)
    engine, client = house.world.engine, house.world.client
    with begin_write(engine) as connection:
        # Rated 51.00; Stripe put 9.69 of tax on top: 60.69 in all, of which 25.00 are paid.
        values = {"stripe_invoice_id": "in_acme", "namespace": "test", "invoice_id": "i-acme", "currency": "USD"}
        amounts_of_it = {"automatic": 1, "added_minor": 969, "contained_minor": 0, "recorded_at": NOVEMBER_3}
        connection.execute(insert(invoice_taxes).values(**values, **amounts_of_it))
        connection.execute(update(invoices).values(stripe_total_minor=6069))
        posting = postings.tax("in_acme", "A-1", 969, 0, "USD")
        ledger.post(connection, "test", "acme", [posting], effective_at=NOVEMBER_3, recorded_at=NOVEMBER_3)
    mirror.push(engine, client, "test")
    assert amounts(rows(house, "tax", "2026-11"), "customer", "amount") == [("acme", Decimal("9.69"))]
    assert of_ledger(house, "tax") == Decimal("-9.69")
    (ageing,) = rows(house, "ageing", "2026-11", customer="acme")
    owed = Decimal("35.69")
    assert amounts([ageing], "not_invoiced", "days_0_30", "receivable") == [(0, owed, owed)]
    found = rows(house, "reconciliation", customer="acme")
    assert amounts(found, "differs", "rated", "stripe") == [("", 51, 51)]


def test_what_a_bank_took_back_is_owed_and_told_until_it_comes_again(sqlite_house):
    house = furnished(sqlite_house)
    engine, client = house.world.engine, house.world.client
    # 51.00, of which 25.00 were paid on the invoice; the bank takes these back.
    taken = postings.disputed("dp_1", "A-1", 2500, "USD")
    with begin_write(engine) as connection:
        ledger.post(connection, "test", "acme", [taken], effective_at=NOVEMBER_3, recorded_at=NOVEMBER_3)
    mirror.push(engine, client, "test")
    (ageing,) = rows(house, "ageing", "2026-11", customer="acme")
    assert amounts([ageing], "not_invoiced", "days_0_30", "disputed", "receivable") == [(0, 26, 25, 51)]
    assert amounts(rows(house, "disputes", "2026-11"), "customer", "taken", "returned") == [("acme", 25, 0)]
    won = postings.dispute_won("test", taken)
    with begin_write(engine) as connection:
        ledger.post(connection, "test", "acme", [won], effective_at=NOVEMBER_3, recorded_at=NOVEMBER_3)
    mirror.push(engine, client, "test")
    (ageing,) = rows(house, "ageing", "2026-11", customer="acme")
    assert amounts([ageing], "not_invoiced", "days_0_30", "disputed", "receivable") == [(0, 26, 0, 26)]
    assert amounts(rows(house, "disputes", "2026-11"), "customer", "taken", "returned") == [("acme", 25, 25)]


def test_what_credit_notes_took_off_an_invoice_is_not_open_any_more(sqlite_house):
    house = furnished(sqlite_house)
    engine, client = house.world.engine, house.world.client
    with begin_write(engine) as connection:
        # Rated 51.00, of which 25.00 are paid; a credit note of 6.00 on what remained.
        rating_id = connection.execute(select(invoices.c.rating_id)).scalar_one()
        named = {"credit_note_id": "n-1", "currency": "USD"}
        note = {"namespace": "test", "customer_id": "acme", "rating_id": rating_id, "total_minor": -600, "lines": []}
        connection.execute(insert(credit_notes).values(**named, **note, as_of=NOVEMBER_3, recorded_at=NOVEMBER_3))
        issue = {"invoice_id": "i-acme", "state": "issued", "amount_minor": 600, "pre_payment_minor": 600}
        moments = {"created_at": NOVEMBER_3, "issued_at": datetime(2026, 11, 12, tzinfo=UTC)}
        connection.execute(insert(credit_note_issues).values(**named, **issue, **moments))
        sides = (Entry(ledger.RECEIVABLE, -600, "USD"), Entry(ledger.REVENUE, 600, "USD"))
        posting = Posting("correction", "n-1", "correction", sides)
        ledger.post(connection, "test", "acme", [posting], effective_at=NOVEMBER_3, recorded_at=NOVEMBER_3)
    mirror.push(engine, client, "test")
    (ageing,) = rows(house, "ageing", "2026-11", customer="acme")
    assert amounts([ageing], "not_invoiced", "days_0_30", "receivable") == [(0, 20, 20)]
    with begin_write(engine) as connection:
        connection.execute(update(invoices).values(state="paid", paid_at=datetime(2026, 11, 20, tzinfo=UTC)))
        connection.execute(update(payments).values(amount_minor=4500))
    mirror.push(engine, client, "test")
    assert amounts(rows(house, "reconciliation", customer="acme"), "differs") == [("",)]
    open_now = client.query("SELECT outstanding_minor, credited_minor FROM finance_invoices").result_rows
    assert list(open_now) == [(0, 600)]


def test_every_report_can_be_grouped_by_each_of_its_columns_and_sums_stay_the_same(books):
    span = span_of("2026-10..2026-11", NOVEMBER_3)
    for asked in REPORTS.values():
        whole = make(books.world.client, "test", asked, span, ())
        for name in asked.dimensions:
            parts = make(books.world.client, "test", asked, span, (name,))
            assert formats.totals(parts) == formats.totals(whole), (asked.name, name)
        if asked.name == "usage":
            assert [row[:2] for row in whole.rows] == [("llm.tokens.input", Decimal(38501))]


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("", "2026-10-01", "2026-11-01"),
        ("2026-12", "2026-12-01", "2027-01-01"),
        ("2026", "2026-01-01", "2027-01-01"),
        ("2026-11..2027-01", "2026-11-01", "2027-02-01"),
        ("2026-10-03..2026-10-04", "2026-10-03", "2026-10-04"),
    ],
)
def test_periods(text, start, end):
    span = span_of(text, NOVEMBER_3)
    assert (span.start, span.end) == tuple(datetime.fromisoformat(it).replace(tzinfo=UTC) for it in (start, end))


@pytest.mark.parametrize(
    "text",
    [
        "2026-13",
        "10-2026",
        "2026-10-02..2026-10-01",
        "2026-10..x",
        "yesterday",
        "9999",
        "9999-12",
        "0001-01",
        "１９９９",
    ],
)
def test_what_is_no_period_is_refused(text):
    with pytest.raises(CannotBe):
        span_of(text, NOVEMBER_3)


def test_the_data_dictionary_is_that_of_the_views(books):
    page = Path(__file__).parents[2] / "docs" / "data-dictionary.md"
    assert page.read_text() == dictionary(books.world.client)


def test_margin_says_that_a_cost_is_unknown(books):
    assert amounts(rows(books, "margin", customer="acme"), "revenue", "margin", "events", "unknown") == [
        (61, None, 2, 2)
    ]  # fmt: skip
    assert amounts(rows(books, "margin", customer="tokyo"), "currency", "revenue") == [("JPY", 300)]  # no hundredths


def test_the_command_writes_every_format(books, command_environment, tmp_path, monkeypatch):
    for name, value in command_environment(books).items():
        monkeypatch.setenv(name, value)

    def call(*arguments):
        done = CliRunner().invoke(report, list(arguments))
        return done.exit_code, done.stdout, done.stderr

    unwritable = call("revenue", "--period", "2026-10", "--format", "csv", "--out", str(tmp_path / "none" / "a.csv"))
    assert unwritable[0] == 1 and "cannot be written" in unwritable[2] and "Traceback" not in unwritable[2]
    nobody = call("revenue", "--period", "2026-10", "--customer", "nobody")
    assert nobody[0] == 2 and "no customer 'nobody'" in nobody[2]
    there = call("revenue", "--period", "1999-10", "--customer", "acme")
    assert there[0] == 0 and "nothing in this period" in there[1]
    piped = CliRunner().invoke(report, ["revenue", "--period", "2026-10", "--format", "parquet", "--out", "-"])
    assert piped.exit_code == 0 and piped.stdout_bytes[:4] == piped.stdout_bytes[-4:] == b"PAR1"
    assert not Path("-").exists()

    code, out, err = call("revenue", "--period", "2026-10", "--by", "customer")
    assert (code, err) == (0, "")
    assert out.splitlines()[:4] == [
        "revenue 2026-10-01..2026-11-01",
        "",
        "customer  currency  amount  entries  as_of             closed",
        "acme      USD        61.00        1  2026-11-21 12:00  yes",
    ]
    assert out.splitlines()[-2].split()[:3] == ["total", "JPY", "300"]
    told = call("unbilled", "--period", "2026-10..2026-11")[1].splitlines()
    assert [line.split()[-1] for line in told[2:5]] == ["closed", "no", "yes"]
    told = call("margin", "--period", "2026-10..2026-11")[1].splitlines()
    # What is not known of one has no sum.
    assert told[-1].split() == ["total", "USD", "75.00", "0.00", "0.00", "-"]
    told = call("journal", "--period", "2026-10")[1].splitlines()
    assert [len(line.split()[1]) for line in told[3:5]] == [12, 12]
    told = call("reconciliation", "--period", "2026-10")[1]
    assert "acme      2026-10-01 America/New_York  finalised" in told
    assert "tokyo     2026-10-01 Asia/Tokyo        no invoice" in told
    told = call("reconciliation", "--period", "2026-10", "--by", "period_start")[1]
    assert [line[:16] for line in told.splitlines()[3:5]] == ["2026-09-30 15:00", "2026-10-01 04:00"]
    told = json.loads(call("revenue", "--period", "2026-10", "--by", "customer", "--format", "json")[1])
    assert told["rows"][0]["amount"] == "61.00" and told["rows"][1]["amount"] == "300"
    sheet = list(csv.reader(io.StringIO(call("journal", "--period", "2026-10", "--format", "csv")[1])))
    assert sheet[0][:2] == ["date", "transaction"] and len(sheet) == 9
    file = tmp_path / "r.xlsx"
    assert call("revenue", "--format", "xlsx")[0] == 2
    assert call("revenue", "--period", "2026-10", "--format", "xlsx", "--out", str(file))[0] == 0
    assert b"<v>61</v>" in zipfile.ZipFile(file).read("xl/worksheets/sheet1.xml")
    first = file.read_bytes()
    call("revenue", "--period", "2026-10", "--format", "xlsx", "--out", str(file))
    assert file.read_bytes() == first
    file = tmp_path / "r.parquet"
    assert call("revenue", "--period", "2026-10", "--format", "parquet", "--out", str(file))[0] == 0
    assert file.read_bytes()[:4] == b"PAR1"
    code, _, err = call("revenue", "--by", "colour")
    assert code == 2 and "cannot be grouped by 'colour'" in err
