"""CSV for spreadsheets: no name that an agent or a customer chose is run as a formula, and numbers stay numbers."""

import csv
import io
from datetime import UTC, datetime

import pytest
from rating_samples import at
from typer.testing import CliRunner

from meterhouse_portal import usage_log
from meterhouse_portal.account import Account
from meterhouse_rating import credit_changes
from meterhouse_rating.commands import prices
from meterhouse_rating.credits import Grant
from meterhouse_rating.periods import parse
from meterhouse_rating.usage_statement_command import app as statement
from meterhouse_reports import formats
from meterhouse_reports.commands import report
from meterhouse_reports.definitions import REPORTS
from meterhouse_reports.made import make, span_of
from meterhouse_store import mirror

# In a spreadsheet a \r that is not quoted begins a row, too.
RUN = ("=", "+", "-", "@", "\t", "\r")
NAMES = ['=HYPERLINK("http://evil")', "+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "a\r=1"]
CUSTOMER = "=1+1"
TEXTS = ["agent_id", "agent_name", "model", "tool", "provider", "operation", "modality", "cache_ttl", "service_tier"]
TEXTS += ["conversation_id", "task_id", "step", "call_id", "trace_id"]
BOOK = """
book: test
currency: USD
metrics:
  input: {unit: token, meters: [llm.tokens.input]}
plans:
  pay:
    components:
      in: {model: per_unit, metric: input, price: 0.01}
"""


def as_cell(text):
    return f"'{text}" if text.startswith(RUN) else text


def cells(text):
    return list(csv.DictReader(io.StringIO(text, newline="")))


@pytest.fixture(scope="module")
def hostile(new_house, tmp_path_factory):
    """A customer that is called like a formula. It has credits of 5.00, and of each of the names 15.00 of one meter,
    and less than nothing of a meter that is called so, which nobody prices. For looking only."""
    making = new_house("formulas", tmp_path_factory.mktemp("formulas"))
    house = next(making)
    house.publish(BOOK, now=at("2026-09-01"), valid_from=at("2026-01-01"))
    house.customer(CUSTOMER, now=at("2026-10-01"), valid_from=at("2026-10-01"))
    wanted = Grant("", "promotional", 500, at("2026-10-02"))
    credit_changes.grant(
        house.world.engine, "test", CUSTOMER, wanted, "USD", reference="", who="ann", why="w", now=at("2026-10-02")
    )
    for name in NAMES:
        named = dict.fromkeys(TEXTS, name)
        house.event(CUSTOMER, "llm.tokens.input", "1500", "2026-10-02T00:00:00", event_id=f"{name}1", **named)
        house.event(CUSTOMER, name, "-1.50", "2026-10-03T00:00:00", event_id=f"{name}2", **named)
    house.collected()
    house.close("2026-10")
    mirror.push(house.world.engine, house.world.client, "test")
    yield house
    making.close()


@pytest.fixture
def written(hostile, tmp_path, command_environment):
    """The rows of the CSV that a command writes into the file that its last argument names."""

    def call(app, *arguments):
        file = tmp_path / "it.csv"
        done = CliRunner().invoke(app, [*arguments, str(file)], env=command_environment(hostile))
        assert done.exit_code in (0, 3), done.output
        return cells(file.read_bytes().decode())

    return call


def test_a_report_by_models_names_them_as_text(written):
    asked = ("usage", "--period", "2026-10", "--by", "customer,model", "--format", "csv", "--out")
    found = {(row["customer"], row["model"], row["meter"], row["quantity"]) for row in written(report, *asked)}
    assert found == {
        (f"'{CUSTOMER}", as_cell(name), meter, quantity)
        for name in NAMES
        for meter, quantity in (("llm.tokens.input", "1500"), (as_cell(name), "-1.5"))
    }


def test_every_report_by_all_that_it_can_be_grouped_by_has_texts_as_texts_and_numbers_as_numbers(hostile):
    names, negative = set(), set()
    for one in REPORTS.values():
        span = span_of("2026-10", datetime(2026, 11, 3, tzinfo=UTC))
        made = make(hostile.world.client, "test", one, span, list(one.dimensions), None)
        for found, row in zip(cells(formats.as_csv(made)), formats.as_json(made), strict=True):
            for column, value in row.items():
                if column in one.dimensions and isinstance(value, str):
                    assert found[column] == as_cell(value), (one.name, column)
                    names.add(value)
                elif column in one.measures and value is not None:
                    assert found[column] == str(value), (one.name, column)
                    negative |= {value} if str(value).startswith("-") else set()
    assert names >= {CUSTOMER, *NAMES}
    assert negative == {"-1.5", "-5.00"}


def test_a_statement_names_meters_as_text_and_what_credits_paid_as_a_number(written):
    found = written(statement, CUSTOMER, "--period", "2026-10", "--csv")
    assert [(row["what"], row["quantity"], row["events"]) for row in found if row["section"] == "unrated"] == [
        (as_cell(name), "-1.5", "1") for name in sorted(NAMES)
    ]
    # Seven names used 1,500 each at 0.01.
    assert [(row["section"], row["amount"]) for row in found if row["amount"]] == [
        ("usage", "105.00"), ("credit_applied", "-5.00"),
    ]  # fmt: skip


def test_a_simulation_names_customers_as_text_and_what_they_pay_less_as_a_number(written, tmp_path):
    (tmp_path / "new.yaml").write_text(BOOK.replace("0.01", "0.005"))
    asked = ("simulate", "--book", str(tmp_path / "new.yaml"), "--period", "2026-10", "--csv")
    found = written(prices, *asked)
    assert [(row["customer"], row["old"], row["change"], row["change_percent"]) for row in found] == [
        (f"'{CUSTOMER}", "105.00", "-52.50", "-50")
    ]


def test_what_a_customer_downloads_of_its_usage_has_every_text_as_text(hostile):
    it = hostile.world
    mine = Account(it.engine, lambda: it.client, "test", CUSTOMER, it.meters, it.now())
    exported = b"".join(usage_log.export(mine, parse("2026-10", "UTC"), {}, "csv")).decode()
    found = cells(exported)
    assert sorted((row["quantity"], row["model"]) for row in found) == sorted(
        (quantity, as_cell(name)) for name in NAMES for quantity in ("1500", "-1.5")
    )
    for row in found:
        assert {row[name] for name in TEXTS} == {row["model"]}
        assert row["event_id"] in (f"{row['model']}1", f"{row['model']}2")
        assert row["meter"] in (row["model"], "llm.tokens.input")
