"""The mapping file: what it says, what is wrong in it, and that a record carries what it was decided by."""

import json
import os
import subprocess
import sys
import time

import pytest
from collector_samples import MAIN, wait_projected
from foreign_samples import START_NS, call, span, sum_of

from meterhouse_collector.foreign.mapping import MappingError, from_record, parse
from meterhouse_collector.foreign.mapping_file import MappingFile

GOOD = """
metrics:
  - metric: shop.pages.*
    meter: pages.read
    customer: tenant.id
    attributes: {model: llm.model}
  - metric: "*"
    scale: "0.5"
    value: count
spans:
  customer: tenant.id
"""


def test_a_record_gets_the_rules_that_concern_it_and_they_read_the_same_again():
    mapping = parse(GOOD, "mapping.yaml")
    text = mapping.for_record(["shop.pages.seen"])
    assert [rule["metric"] for rule in json.loads(text)["metrics"]] == ["shop.pages.*", "*"]
    assert from_record(text).rules == mapping.rules
    assert [rule["metric"] for rule in json.loads(mapping.for_record(["other"]))["metrics"]] == ["*"]
    assert json.loads(mapping.for_record(())) == {"spans": {"customer": "tenant.id"}}
    assert parse("metrics: [{metric: a}]", "m").for_record(["b"]) == ""


def test_the_first_rule_that_fits_counts():
    mapping = parse(GOOD, "mapping.yaml")
    assert mapping.rule_for("shop.pages.seen").meter == "pages.read"
    assert mapping.rule_for("Shop.pages.seen").metric == "*"


def test_an_empty_file_maps_nothing():
    assert parse("", "m").rules == ()
    assert parse("# nothing yet\n", "m").rules == ()


def test_all_mistakes_are_told_at_once_with_their_lines():
    text = """
metrics:
  - meter: pages read
  - metric: a
    value: average
    scale: "-1"
    colour: red
  - metric: b
    attributes: {customer: x, model: ""}
span:
  customer: c
"""
    with pytest.raises(MappingError) as found:
        parse(text, "mapping.yaml")
    assert str(found.value).splitlines() == [
        "mapping.yaml: line 10: 'span' is not known in the file; it has metrics, spans",
        "mapping.yaml: line 3: a rule needs `metric`: a name, or a pattern with * and ?",
        "mapping.yaml: line 3: meter 'pages read': names separated by dots, such as pages.read",
        "mapping.yaml: line 7: 'colour' is not known in a rule; it has metric, meter, customer, attributes, value, "
        "scale",
        "mapping.yaml: line 5: `value` is sum or count, not 'average'",
        "mapping.yaml: line 6: `scale` is a number above 0 with at most nine decimals, not '-1'",
        "mapping.yaml: line 9: 'customer' is not known in attributes; it has agent_id, agent_name, provider, model, "
        "operation, tool, modality, cache_ttl, service_tier, status",
        "mapping.yaml: line 9: `model` must be a text of 1 to 256 bytes",
    ]


def test_a_changed_file_holds_and_a_broken_one_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr("meterhouse_collector.foreign.mapping_file.LOOK_S", 0)
    file = tmp_path / "mapping.yaml"
    file.write_text("metrics: [{metric: a}]")
    mapping = MappingFile(file)
    mapping.load()
    assert mapping.current().rule_for("a") is not None
    file.write_text("metrics: [{metric: b}]\n# changed")
    assert mapping.current().rule_for("a") is None
    file.write_text("metrics: nonsense")
    assert mapping.current().rule_for("b") is not None
    file.unlink()
    assert mapping.current().rule_for("b") is not None


def test_the_door_writes_what_held_into_the_record_and_usage_follows_it(collector, database):
    collector.kill()
    file = collector.data / "mapping.yaml"
    file.write_text("metrics: [{metric: seen, meter: pages.read, customer: tenant}]\nspans: {customer: tenant}")
    collector.environment["METERHOUSE_MAPPING"] = str(file)
    collector.start()
    seconds = (time.time_ns() - START_NS) // 10**9
    request = sum_of((seconds, 5), name="seen", customer=None, tenant="acme")
    assert collector.post(request)[0] == 200
    traces = span(1, customer=None, more=call(30, 4) | {"tenant": "globex"}, second=seconds - 1)
    assert collector.post(traces, path="/v1/traces")[0] == 200
    wait_projected(database)
    query = "SELECT customer_id, meter, toInt64(quantity) FROM usage ORDER BY ALL"
    assert database.query(query).result_rows == [
        ("acme", "pages.read", 5),
        ("globex", "llm.requests", 1),
        ("globex", "llm.tokens.input", 30),
        ("globex", "llm.tokens.output", 4),
    ]


def test_the_command_checks_a_file(tmp_path):
    def run(text, *arguments):
        (tmp_path / "mapping.yaml").write_text(text)
        command = [sys.executable, "-c", MAIN, "mapping", "check", "mapping.yaml", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True)

    good = run(GOOD, "--metric", "shop.pages.seen", "--json")
    assert good.returncode == 0, good.stderr
    assert json.loads(good.stdout) == {
        "rules": 2,
        "span_customer": "tenant.id",
        "metrics": {"shop.pages.seen": "pages.read"},
    }
    bad = run("metrics: 5")
    assert (bad.returncode, bad.stdout) == (1, "")
    assert bad.stderr == "mapping.yaml: line 1: `metrics` must be a list of rules (- metric: NAME)\n"
    (tmp_path / "mapping.yaml").write_bytes(b"\xff")
    command = [sys.executable, "-c", MAIN, "mapping", "check"]
    for file, told in (("mapping.yaml", "is no text in UTF-8"), ("none", "cannot be read: No such file or directory")):
        found = subprocess.run([*command, file], cwd=tmp_path, env=os.environ, capture_output=True, text=True)
        assert (found.returncode, found.stderr) == (1, f"{file} {told}\n")
