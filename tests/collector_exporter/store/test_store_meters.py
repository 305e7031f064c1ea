"""meters.yaml: the built-in meters and files of one's own."""

from decimal import Decimal

import pytest

from meterhouse import vocabulary
from meterhouse_store.meters import Meter, MetersError, declared, parse
from meterhouse_store.settings import Settings


def test_every_meter_that_the_instrumentation_emits_is_declared(tmp_path):
    found = declared(Settings(data=tmp_path))
    names = {vocabulary.TOKENS_INPUT, vocabulary.TOKENS_CACHE_READ, vocabulary.TOKENS_CACHE_WRITE}
    names |= {vocabulary.TOKENS_OUTPUT, vocabulary.TOKENS_REASONING, vocabulary.LLM_REQUESTS, vocabulary.TOOL_CALLS}
    assert names <= set(found)
    assert found["agent.seconds"].step == Decimal("0.001")


def test_an_own_file_adds_meters(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(
        'meters:\n  pages.read:\n    unit: "{page}"\n    counts: pages read\n    values: integer\n    step: 1\n'
    )
    found = declared(Settings(data=tmp_path, meters_file=file))
    assert found["pages.read"] == Meter("pages.read", "{page}", "pages read", "integer", Decimal(1))
    assert "llm.requests" in found


def test_an_own_file_that_was_changed_is_read_anew_and_nobody_changes_what_others_are_told(tmp_path):
    file, entry = tmp_path / "own.yaml", '  {}: {{unit: "1", counts: x, values: integer, step: 1}}\n'
    settings = Settings(data=tmp_path, meters_file=file)
    file.write_text("meters:\n" + entry.format("pages.read"))
    first = declared(settings)
    del first["pages.read"], first["llm.requests"]
    assert {"pages.read", "llm.requests"} <= set(declared(settings))
    parse(file.read_text(), "own.yaml").clear()
    assert set(parse(file.read_text(), "own.yaml")) == {"pages.read"}
    file.write_text("meters:\n" + entry.format("pages.written"))
    assert "pages.written" in declared(settings) and "pages.read" not in declared(settings)


def test_all_mistakes_are_told_each_with_its_line():
    text = """meters:
  pages.read:
    unit: "{page}"
    counts: pages
    values: float
    step: 0
    colour: red
  Bad Name:
    unit: "1"
    counts: x
    values: integer
    step: 0.5
  pages.read:
    unit: "{page}"
other: 1
"""
    with pytest.raises(MetersError) as refused:
        parse(text, "own.yaml")
    assert str(refused.value).splitlines() == [
        "own.yaml: line 15: 'other' is not known here; the only key is `meters`",
        "own.yaml: line 13: 'pages.read' stands twice in meters",
        "own.yaml: line 13: meter pages.read: `counts` is missing",
        "own.yaml: line 13: meter pages.read: `values` is missing",
        "own.yaml: line 13: meter pages.read: `step` is missing",
        "own.yaml: line 8: meter 'Bad Name': names separated by dots, such as pages.read, at most 128 characters",
        "own.yaml: line 12: meter Bad Name: `step` of a meter of integers is an integer",
    ]


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("", "the file must be a mapping"),
        ("- a", "the file must be a mapping"),
        ("meters: 3", "meters must be a mapping"),
        ("meters: [", "not YAML"),
        ("meters:\n  a.b: {unit: s, counts: x, values: decimal, step: -1}", "`step` is a number above 0, not '-1'"),
        ("meters:\n  a.b: {unit: s, counts: x, values: decimal, step: many}", "`step` is a number above 0, not 'many'"),
        ("meters:\n  a.b: {unit: s, counts: x, values: other, step: 1}", "integer or decimal, not 'other'"),
    ],
)
def test_a_file_that_is_no_list_of_meters_is_refused(text, mistake):
    with pytest.raises(MetersError, match="(?s).*" + mistake.replace("`", ".").replace("(", ".")):
        parse(text, "own.yaml")


def test_a_built_in_meter_cannot_be_declared_again(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text('meters:\n  llm.requests: {unit: "1", counts: x, values: integer, step: 1}\n')
    with pytest.raises(MetersError, match=r"llm\.requests is a built-in meter"):
        declared(Settings(data=tmp_path, meters_file=file))
