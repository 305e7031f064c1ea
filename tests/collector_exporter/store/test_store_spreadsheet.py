"""What a spreadsheet would run of a text is told alike by Python and by ClickHouse, and made a text."""

import pytest

from meterhouse_store.spreadsheet import FORMULA, no_formula

RUN = ["=1", "+1", "-1", "@SUM(A1)", "\t1", "\r1", "\n1", " =1", "\u00a0=1", "\u3000+1", "\ufeff@x", "\u200b=1"]
RUN += ["\uff1d1", "\uff0b1", "\uff0d1", "\uff20x"]  # the wide ones
LEFT = ["", "1", "a=1", "'=1", "gpt-5-mini", "é", " a", "(1", "1-1", "\\=1"]


@pytest.mark.parametrize("text", RUN)
def test_what_would_be_run_begins_with_an_apostrophe(text):
    assert no_formula(text) == f"'{text}"


@pytest.mark.parametrize("text", LEFT)
def test_everything_else_stays_as_it_is(text):
    assert no_formula(text) == text


def test_clickhouse_finds_the_same(database):
    query = "SELECT arrayFilter(it -> match(it, {formula:String}), {texts:Array(String)})"
    ((found,),) = database.query(query, parameters={"formula": FORMULA, "texts": RUN + LEFT}).result_rows
    assert found == RUN
