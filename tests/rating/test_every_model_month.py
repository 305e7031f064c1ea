"""A month with every price model, through the commands from the price book to the closed ledger, by hand."""

import json
import shlex
import sys

import pytest

from meterhouse.cli import main

BOOK = """\
book: everything
currency: USD
metrics:
  input: {unit: token, meters: [llm.tokens.input]}
  output: {unit: token, meters: [llm.tokens.output, llm.tokens.reasoning]}
  tools: {unit: call, meters: [tool.calls]}
  images: {unit: image, meters: [llm.images]}
  searches: {unit: search, meters: [llm.web_searches]}
  pages: {unit: page, meters: [llm.pages]}
  audio: {unit: second, meters: [llm.audio.seconds]}
  code: {unit: execution, meters: [llm.code_executions]}
  calls: {unit: call, meters: [api.calls]}
unbilled: {meters: [llm.requests]}
plans:
  mix:
    components:
      pack: {model: credit_pack, price: 10.00, credits: 12.00}
      fee:
        model: flat
        price: 49.00
        included: {output: 1_000_000}
        overage: {output: {per: 1_000_000, tiers: [{price: 9.00}]}}
      input:
        model: per_unit
        metric: input
        by: [model]
        per: 1_000_000
        prices: [{model: gpt-5*, price: 3.00}]
        default: 1.00
      tools: {model: graduated, metric: tools, tiers: [{up_to: 10, price: 0.50}, {price: 0.25, flat: 1.00}]}
      images: {model: package, metric: images, size: 10, price: 2.00, free: 5}
      searches: {model: volume, metric: searches, tiers: [{up_to: 100, price: 0.02}, {price: 0.01}]}
      seats: {model: recurring, price: 31.00, quantity: seats}
      pages: {model: formula, inputs: {p: pages}, amount: "max(0, p - 10) * 0.05"}
      audio:
        model: matrix
        metric: audio
        by: [attributes.region]
        cells: [{attributes.region: eu, price: 0.02}]
        default: 0.01
      code: {model: cost_plus, metric: code, markup: 200}
      calls: {model: included, metric: calls, included: 100, price: 0.015}
      share: {model: percentage, of: [fee, input], percent: 10}
      least: {model: minimum, amount: 200.00}
"""

LINES = {
    "pack": "10.00",
    "fee": "49.00",
    "fee: output": "3.60",  # 400,000 of 1,400,000 at 9.00 per million
    "input (gpt-5-mini)": "6.00",  # 2,000,000 at 3.00 per million
    "input (llama)": "1.50",
    "tools": "7.50",  # 10 x 0.50, then 1.00 and 6 x 0.25
    "images": "6.00",  # 21 beyond the free 5: 3 packages
    "searches": "1.20",  # all 120 at 0.01
    "seats": "42.00",  # 2 from 11 October on: 2 x 31.00 x 21/31
    "pages": "1.00",  # 20 x 0.05
    "audio (eu)": "1.00",  # 50 x 0.02
    "audio (any)": "0.30",  # 30 x 0.01
    "code": "0.60",  # 4 executions that cost 0.05, three times
    "calls": "1.50",  # 100 beyond what is included
    "share": "6.01",  # a tenth of 49.00, 3.60, 6.00 and 1.50
    "least": "62.79",  # the others come to 137.21
    "Launch": "-0.75",  # a tenth of the tools
    "Credits applied": "-12.00",
}
TOTAL = "187.25"


@pytest.fixture
def meterhouse(sqlite_house, command_environment, tmp_path, monkeypatch, capsys):
    """Runs a command line in this process: what it printed; it has to end well."""
    for name, value in command_environment(sqlite_house).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("METERHOUSE_NAMESPACE", "test")
    monkeypatch.chdir(tmp_path)

    def run(line):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            sys.exit(main(shlex.split(line)))
        said = capsys.readouterr()
        assert ended.value.code == 0, f"{line}: {said.out}{said.err}"
        return said.out

    return run


@pytest.mark.long
def test_a_month_of_all_models_is_billed_explained_stated_and_proved_by_the_commands(
    sqlite_house, meterhouse, tmp_path
):
    house = sqlite_house
    (tmp_path / "book.yaml").write_text(BOOK)
    used = [
        ("llm.tokens.input", "2000000", {"model": "gpt-5-mini"}),
        ("llm.tokens.input", "1500000", {"model": "llama"}),
        ("llm.tokens.output", "900000", {}),
        ("llm.tokens.reasoning", "500000", {}),
        ("llm.images", "26", {}),
        ("llm.web_searches", "120", {}),
        ("llm.pages", "30", {}),
        ("llm.audio.seconds", "50", {"attributes": {"region": "eu"}}),
        ("llm.audio.seconds", "30", {"attributes": {"region": "us"}}),
        ("llm.code_executions", "4", {}),
        ("llm.requests", "3", {}),
        *(("tool.calls", "1", {}) for _ in range(16)),
        ("api.calls", "200", {}),
    ]
    plain = {"model": "", "attributes": {}}
    house.events(
        [
            {"customer_id": "acme", "meter": meter, "quantity": quantity, "when": f"2026-10-{n % 28 + 1:02}T08:00:00"}
            | plain
            | more
            for n, (meter, quantity, more) in enumerate(used)
        ]
    )
    house.collected()
    meterhouse("prices check book.yaml")
    meterhouse("prices publish book.yaml")
    meterhouse("customers add acme --plan mix --valid-from 2026-10-01")
    meterhouse("contracts quantity acme seats 2 --from 2026-10-11")
    meterhouse("contracts discount acme Launch --percent 10 --component tools --from 2026-10-01")
    meterhouse("costs set llm.code_executions 0.05 --why sandbox")
    meterhouse("rate run --period 2026-10")
    meterhouse("rate close --period 2026-10")
    (rating,) = json.loads(meterhouse("rate status --period 2026-10 --json"))["ratings"]
    assert {line["description"]: line["amount"] for line in rating["lines"]} == LINES
    assert (rating["total"], rating["state"]) == (TOTAL, "closed")
    assert f"{TOTAL} USD" in " ".join(meterhouse("statement acme --period 2026-10").split())
    (seats,) = (line["line_id"] for line in rating["lines"] if line["description"] == "seats")
    assert "2 at 31 USD from 2026-10-11 to 2026-11-01, 21/31 days: 42 USD." in meterhouse(f"rate explain {seats}")
    meterhouse("ledger verify")
    meterhouse("rate shadow --period 2026-10")
    meterhouse("evidence acme --period 2026-10 --out acme.zip")
    assert f"Verified: {TOTAL} USD (closed)." in meterhouse("verify acme.zip")
