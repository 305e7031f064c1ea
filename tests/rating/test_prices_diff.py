"""`prices diff`: what differs between two price books, wherever they are."""

import json

import pytest
from typer.testing import CliRunner

from meterhouse_rating import publishing, versions
from meterhouse_rating.commands import prices
from meterhouse_rating.publishing import Person
from meterhouse_store.settings import Settings
from meterhouse_store.sql import open_engine

BOOK = """
book: shop
currency: USD
metrics:
  calls: {unit: call, meters: [tool.calls]}
  input: {unit: token, meters: [llm.tokens.input]}
plans:
  pay:
    components:
      calls: {model: graduated, metric: calls, tiers: [{up_to: 100, price: 0.10}, {price: 0.04}]}
      in:
        model: per_unit
        metric: input
        per: 1_000
        by: [model]
        prices:
          - {model: gpt-5*, price: 2.00}
        default: none
"""
NEW = (
    BOOK.replace("up_to: 100, price: 0.10", "up_to: 100, price: 0.12")
    .replace("          - {model: gpt-5*", "          - {model: mini, price: 0.50}\n          - {model: gpt-5*")
    .replace("llm.tokens.input]", "llm.tokens.input, llm.tokens.cache_read]")
    .replace("1_000", "1000  # the same number")
)
WANTED = [
    ("metrics.input.meters", "llm.tokens.input", "llm.tokens.input, llm.tokens.cache_read"),
    ("plans.pay.components.calls.tiers[up_to=100].price", "0.10", "0.12"),
    ("plans.pay.components.in.prices[model=mini].model", None, "mini"),
    ("plans.pay.components.in.prices[model=mini].price", None, "0.50"),
]
METERS = {"tool.calls": "{call}", "llm.tokens.input": "{token}", "llm.tokens.cache_read": "{token}"}


@pytest.fixture
def call(tmp_path, monkeypatch):
    for name in ("METERHOUSE_SQL_URL", "METERHOUSE_WAREHOUSE_URL", "METERHOUSE_METERS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("METERHOUSE_DATA", str(tmp_path))
    monkeypatch.setenv("METERHOUSE_NAMESPACE", "test")
    engine = open_engine(Settings(data=tmp_path))
    versions.publish(engine, "test", BOOK, METERS, author="ann")
    ann, now = Person("ann", "ann"), versions.versions(engine, "test")[0].recorded_at
    publishing.propose(engine, "test", NEW, METERS, by=ann, valid_from=None, now=now)
    engine.dispose()

    def called(*arguments):
        done = CliRunner().invoke(prices, ["diff", *arguments])
        return done.exit_code, done.output

    return called


def told(said):
    return [(it["place"], it["before"], it["after"]) for it in json.loads(said)]


def test_files_versions_and_proposals_are_compared_value_by_value(call, tmp_path):
    (tmp_path / "new.yaml").write_text(NEW)
    for arguments in (("1", "2"), (str(tmp_path / "new.yaml"),), ("1", str(tmp_path / "new.yaml"))):
        code, said = call(*arguments, "--json")
        assert (code, told(said)) == (1, WANTED)
    code, said = call("2", "1")
    assert code == 1 and said.splitlines()[-1].split() == [
        "plans.pay.components.in.prices[model=mini].price",
        "0.50",
        "-",
    ]


def test_the_layout_of_a_text_is_no_difference(call, tmp_path):
    (tmp_path / "same.yaml").write_text(BOOK.replace("per: 1_000", "per: 1000") + "# the end\n")
    assert call(str(tmp_path / "same.yaml")) == (0, "Nothing differs.\n")


def test_what_is_no_book_is_refused(call, tmp_path):
    (tmp_path / "broken.yaml").write_text("book: [")
    assert call(str(tmp_path / "broken.yaml"))[0] == 1
    gone = "/nope.yaml cannot be read: No such file or directory. Name a price book in YAML.\n"
    assert call("/nope.yaml") == (1, gone)
    assert call("1", "nope.yml") == (1, gone.replace("/nope.yaml", "nope.yml"))
    assert call("")[0] == 2
    code, said = call("7")
    assert (code, said) == (1, "nothing named 7 is proposed: `meterhouse prices proposals` lists what is\n")
