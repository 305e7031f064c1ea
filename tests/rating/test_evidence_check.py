"""The verifier of evidence packs against rating: it reads the same books, and comes to the same amounts by itself."""

import re
import zipfile
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from importlib.resources import files

import pytest
from evidence_samples import agreed_and_closed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_books import Case, cases
from rating_samples import BOOK, at, inputs, used

from meterhouse_rating import document, engine, results, starters
from meterhouse_rating.agreements import Cap
from meterhouse_rating.book import parse as parse_book
from meterhouse_rating.caps import capped
from meterhouse_rating.evidence import make
from meterhouse_rating.evidence_check.amounts import formula
from meterhouse_rating.evidence_check.findings import Findings, NotReadable, Refused
from meterhouse_rating.evidence_check.lines import check_rating
from meterhouse_rating.evidence_check.main import verify
from meterhouse_rating.evidence_check.prices import prices_of
from meterhouse_rating.evidence_check.usage import Group
from meterhouse_rating.evidence_check.yaml_subset import Unreadable, read
from meterhouse_rating.evidence_readme import readmes
from meterhouse_rating.periods import parse
from meterhouse_rating.settled import Used
from meterhouse_rating.sorting import UsageRow
from meterhouse_store.numbers import plain


def as_facts(case, rated):
    """What a pack tells of a case."""
    rows = results.line_rows("rating", case.inputs.currency, rated)
    return {
        "rating_id": "rating",
        "period_start": "2026-10-01T00:00:00.000000000Z",
        "period_end": "2026-11-01T00:00:00.000000000Z",
        "month": "2026-10-01T00:00:00.000000000Z",
        "closed_at": None,
        "zone": "UTC",
        "currency": case.inputs.currency,
        "plan": "sample",
        "overrides": {},
        "addons": {},
        "quantities": {},
        "total_minor": rated.total_minor,
        "lines": [
            row | {"quantity": plain(row["quantity"]), "amount_exact": plain(row["amount_exact"])} for row in rows
        ],
        "left": [
            {"meter": it.meter, "reason": it.reason, "quantity": plain(it.quantity), "events": it.events}
            for it in rated.leftovers
        ],
        "discounts": [
            {"id": it.agreement_id, "percent": plain(it.percent), "components": [], "before_minimum": False}
            for it in case.inputs.agreement.discounts
        ],
    }  # fmt: skip


def groups_of(usage):
    return [
        Group(it.meter, it.status, it.task, it.trial, dict(it.dimensions), it.events, Fraction(it.quantity))
        for it in usage
    ]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(cases())
def test_the_verifier_comes_to_the_amounts_of_random_books_by_itself(case):
    told = as_facts(case, engine.rate(case.inputs))
    findings = Findings()
    check_rating(told, prices_of(case.text, told), groups_of(case.inputs.usage), [], findings)
    assert findings.problems == []
    # Only where credits came from, the rule that buys more of them, and usage without a price is not in the book.
    assert all("credits" in it or "on no line" in it for it in findings.carried), findings.carried
    for line in told["lines"]:
        line["amount_minor"] += 10
    if told["lines"]:
        wrong = Findings()
        check_rating(told, prices_of(case.text, told), groups_of(case.inputs.usage), [], wrong)
        assert len(wrong.problems) >= len(told["lines"])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(
    cases(),
    st.dictionaries(
        st.sampled_from(["one", "two", "three", "llm.tokens.input", "tool.calls", ""]), st.integers(1, 5000), max_size=4
    ),
    st.dictionaries(st.sampled_from(["llm.tokens.input", "tool.calls"]), st.integers(1, 3000)),
    st.integers(0, 300_000),
)
def test_the_verifier_comes_to_what_is_above_random_caps_by_itself(case, limits, earlier, earlier_minor):
    """`earlier`: what another part of the month used per meter."""
    rows: dict[tuple, UsageRow] = {}  # the warehouse answers one row for each combination, in their order
    for row in case.inputs.usage:
        key = (row.meter, row.status, row.dimensions)
        first = rows.get(key, replace(row, events=0, quantity=Decimal(0)))
        rows[key] = replace(first, events=first.events + row.events, quantity=first.quantity + row.quantity)
    usage = tuple(rows[key] for key in sorted(rows))
    above_caps(case.text, replace(case.inputs, usage=usage), limits, earlier, earlier_minor)


BY_MODEL = """
book: by model
currency: USD
metrics: {one: {unit: unit, meters: [llm.tokens.input, llm.tokens.cache_read]}}
plans:
  sample:
    components:
      one:
        model: per_unit
        metric: one
        by: [model]
        prices: [{model: a, price: 1.00}, {model: b, price: 2.00}]
        default: 4.00
"""


def test_what_is_left_of_units_at_a_cap_goes_to_the_first_of_those_that_lack_as_much():
    rows = [used("llm.tokens.input", "1", model=it) for it in "abc"]
    assert above_caps(BY_MODEL, inputs(parse_book(BY_MODEL), *rows), {"one": 2}) == [("one", 400)]


def test_other_parts_of_the_month_leave_less_of_a_cap_of_units_and_of_money():
    rows = [used("llm.tokens.input", "1", model=it) for it in "abc"]
    of_units = above_caps(BY_MODEL, inputs(parse_book(BY_MODEL), *rows), {"one": 2}, {"llm.tokens.cache_read": 1})
    assert of_units == [("one", 600)]  # one unit is left, at 1.00 of 7.00
    assert above_caps(BY_MODEL, inputs(parse_book(BY_MODEL), *rows), {"": 6}, {}, 550) == [("one", 650)]


def test_a_cap_takes_nothing_off_where_a_part_was_taken_out_of_what_has_not_arrived():
    rows = [used("llm.tokens.cache_read", "-5", model="a"), used("llm.tokens.input", "100", model="a")]
    assert above_caps(BY_MODEL, inputs(parse_book(BY_MODEL), *rows), {"one": 50}) == []


FEE = """
book: fee
currency: USD
metrics: {one: {unit: unit, meters: [llm.tokens.input]}, two: {unit: unit, meters: [tool.calls]}}
plans:
  sample:
    components:
      one: {model: flat, price: 1, included: {one: 1}, overage: {one: {per: 1, tiers: [{price: 0.01}]}}}
      two: {model: per_unit, metric: two, price: 0.01}
      support: {model: percentage, of: [one, two], percent: 50}
"""


def test_a_percentage_of_a_fee_stays_where_the_usage_beside_the_fee_is_capped():
    # 101 units: 1.00 and 100 above it, 1.00; half of 2.00 on top. At the cap of 1: 1.00 and 0.50 on top, 1.50 less.
    row = used("llm.tokens.input", "101", model="a")
    assert above_caps(FEE, inputs(parse_book(FEE), row), {"one": 1}) == [("one,two", 150)]


def test_a_percentage_of_what_two_caps_ended_is_of_both():
    # One unit above the fee 0.01, a call 0.01, and both again on top. Each cap takes off its own with what is on top.
    rows = [used("llm.tokens.input", "2", model="a"), used("tool.calls", "1", model="a")]
    book = FEE.replace("percent: 50", "percent: 100")
    limits = {"one": 1, "tool.calls": 0}
    assert above_caps(book, inputs(parse_book(book), *rows), limits) == [("one,two", 2), ("one,two", 2)]


TAKEN = """
book: taken
currency: USD
metrics: {one: {unit: unit, meters: [llm.tokens.input]}, two: {unit: unit, meters: [tool.calls]}}
plans:
  sample:
    components:
      one: {model: per_unit, metric: one, price: 0.0003}
      two: {model: per_unit, metric: two, price: 0.0003}
      support: {model: percentage, of: [one, two], percent: 26}
"""


def test_a_cap_has_no_line_where_another_one_took_all_that_it_is_above():
    # 17 of each at 0.0003: 0.0051, which is 0.01; 26 % of both is 0.0052, another 0.01. The first cap takes off 0.01 of
    # one and the 0.01 on top, which no line of one has: it comes off two, and nothing is left there for the second cap.
    rows = [used("llm.tokens.input", "17", model="a"), used("tool.calls", "17", model="a")]
    taken = above_caps(TAKEN, inputs(parse_book(TAKEN), *rows), {"one": 1, "two": 1})
    assert taken == [("one,two", 2), ("two", 1)]


def above_caps(text, plain_inputs, limits, earlier=None, earlier_minor=0):
    """What rating takes off because of the caps, by the components, after the verifier has come to the same."""
    held = [Cap(f"cap of {of}", of, Decimal(it), {}, frozenset(), at("2026-01-01")) for of, it in limits.items()]
    meters = {name: Decimal(it) for name, it in (earlier or {}).items()}
    rated_by = capped(plain_inputs, held, Used(meters, {plain_inputs.currency: earlier_minor}))
    told = as_facts(Case(text, plain_inputs, ()), engine.rate(rated_by))
    metered = sorted(it.name for it in rated_by.plan.components if it.metrics)
    start = rated_by.setting.period.start.isoformat()
    caps = [{"name": it.name, "of": it.of, "limit": plain(it.limit)} for it in held]
    by = [name for name, _ in rated_by.usage[0].dimensions] if rated_by.usage else []
    told_meters = {name: plain(it) for name, it in meters.items()}
    part = {"kind": "usage", "component": "", "metric": "", "dimensions": {}, "quantity": "0"}
    part |= {"amount_minor": earlier_minor, "currency": plain_inputs.currency, "explanation": {"meters": told_meters}}
    other = [{"rating_id": "other", "month": told["month"], "closed_at": None, "lines": [part]}]
    told["caps"] = {"held": caps, "metered": metered, "by": by, "period_start": start}
    told["caps"]["earlier"] = {"ratings": ["other"], "meters": told_meters, "minor": earlier_minor}
    above = [it for it in rated_by.agreement.discounts if it.budget]
    for made in above:
        cap = next(it for it in caps if it["name"] == made.budget)
        facts = {"id": made.agreement_id, "percent": None, "amount": plain(made.amount), "before_minimum": True}
        more = {"components": list(made.components), "cap": cap | {"period_start": start}}
        told["discounts"].append(facts | more)
    findings, groups = Findings(), groups_of(rated_by.usage)
    check_rating(told, prices_of(text, told), groups, other, findings)
    assert findings.problems == []
    assert not any("cap" in it for it in findings.carried), findings.carried
    if above:
        told["caps"]["held"] = []
        wrong = Findings()
        check_rating(told, prices_of(text, told), groups, other, wrong)
        assert any("what is above the cap" in it for it in wrong.problems)
    return [(",".join(it.components), int(it.amount * 100)) for it in above]


BOOKS = {name: starters.text(name) for name in starters.names()} | {
    "the starter": (files("meterhouse_rating") / "starter.yaml").read_text(),
    "indented lists, quotes, comments": BOOK % """\
      a:   # a component
        model: "per_unit"
        metric: 'input'      # it's 'quoted'
        by: [ model, attributes.a-b ]
        prices:
        - model: gpt-5*
          price: 1_000.50

        - {model: "a: b, #c", attributes.a-b: 'it''s',
           price: 2}   # over two lines
        default: none
      b: {model: flat, price: 1}""",
}  # fmt: skip


@pytest.mark.parametrize("name", BOOKS)
def test_books_are_read_as_rating_reads_them(name):
    assert same(document.read(BOOKS[name], []), read(BOOKS[name]))


@pytest.mark.parametrize(
    "text",
    ["9 ** 6 ** 6", "((((9**6)**6)**6)**6)**6", "x.real", "().__class__", "1 / 0", "f(1)", "1 +", "x" * 501, "1e9"],
)
def test_formulas_that_are_none_are_refused_and_keep_nobody_busy(text):
    with pytest.raises(Refused):
        formula(text, {"x": Fraction(1)})


def same(one, other):
    """Whether the trees are the same, to the lines of every value and key."""
    if one.line != other.line:
        return False
    if isinstance(one, document.Scalar):
        return one.text == other.value
    if isinstance(one, document.Sequence):
        return all(same(*it) for it in zip(one.items, other.value, strict=True))
    if list(one.entries) != list(other.value) or one.key_lines != other.keys:
        return False
    return all(same(node, other.value[key]) for key, node in one.entries.items())


@pytest.mark.parametrize(
    "text",
    [
        "a: &x 1\nb: *x", "a: !!str 1", "a: |\n  text", "a: >\n  text", "a: one\n  two", 'a: "b\\n"', "a: {b: 1",
        "a: 1\n b: 2", "a: {b: 1} c", "a: b: c", "a: 1\na: 2", "\ta: 1", "a: [1, 2\nb: 3", "- a\nb: 1", "",
        "? a\n: b", "a: {b: 1, b: 2}",
    ],
)  # fmt: skip
def test_yaml_beyond_that_is_never_guessed(text):
    with pytest.raises(Unreadable):
        read(text)


def test_what_is_no_file_and_what_is_no_pack_is_said(tmp_path):
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(NotReadable, match=re.escape(f"{tmp_path}/nope.zip cannot be read: No such file or directory")):
        verify(tmp_path / "nope.zip")
    assert verify(tmp_path / "text.zip").findings.problems == [
        f"{tmp_path}/text.zip is no zip file, so it is no evidence pack"
    ]


def test_agreements_plan_changes_conversions_trials_and_corrections_are_recomputed(house, tmp_path):
    agreed_and_closed(house)
    made = [make(house.world, "berlin", parse(it, "Europe/Berlin"), tmp_path / it) for it in ("2026-09", "2026-10")]
    assert all(it.verified for it in made), "\n".join(it.as_text() for it in made)
    assert made[0].as_text().startswith("Evidence pack of berlin (test), 2026-09-01..2026-10-01 Europe/Berlin\n")
    with zipfile.ZipFile(tmp_path / "2026-10") as pack:
        told, german = pack.read("README.txt").decode(), pack.read("LIESMICH.txt").decode()
        names = pack.namelist()
    assert "\n2026-10-01..2026-10-16 Europe/Berlin: Tarif small, abgeschlossen, Stand " in german
    assert re.search(r"\n  Summe +19,33  EUR\n", german) and re.search(r"\n  Total +19.33  EUR\n", told)
    # Prices mark up costs of one's own, none of a price list; of a plan without such prices there are none at all.
    assert "    costs.json  " in told and "catalogues/" not in told + german
    bare = [{name: it for name, it in one.items() if name != "costs"} for one in made[1].ratings]
    for text in readmes(made[1].about, bare, 1, {it["rating_id"]: None for it in bare}).values():
        assert "costs.json" not in text and "catalogues/" not in text
    listed = re.findall(r"^    ([a-z_]+[./][a-z.]*)", told, re.MULTILINE)
    assert [it for it in listed if not any(name.startswith(it) for name in names)] == [] != listed
    assert "Zur Vollständigkeit wurde festgestellt: Nicht sicher vollständig: " in german
    assert "Not certain" in told and "Not certain" not in german
    # The commands, and the names of the files, are the same in both.
    for shown in (r"^    (\S+ (?:verify )?PACK\.zip)", r"^    ([a-z_]+[./]\S*)  "):
        assert re.findall(shown, german, re.MULTILINE) == re.findall(shown, told, re.MULTILINE) != []
    assert "Namespace test, 2026-10-01..2026-11-01 Europe/Berlin (the end is not in it): from 2026-09-30T22:00" in told
    assert "\n2026-10-01..2026-10-16 Europe/Berlin: plan small, closed, as of " in told
    # September: 28 of 30 days of 31.00, 80 at 0.10, of both a half: 14.47 + 4.00. October on `small`: 15 of 31 days of
    # 31.00, 90 at 0.10, 2 packages at 0.30, the peak of 700 at 0.01, two desks 10.00, 5 of 31 days of two seats, two
    # packs 20.00; in euros 7.50 + 4.50 + 0.30 + 3.50 + 5.00 + 0.50 + 10.00, less 5.00, the correction (120 in
    # September: 11.00, of 8.00) 1.50, of which credits pay the usage, 8.47. On `big`: 16.00 + 31.00 in advance, 10 at
    # 0.10 and 50 at 0.05 1.75, 5.00 + 1.60 + 10.00, less 1.75 by credits; the 5.00 of the month are taken off already.
    assert [it["total_minor"] for one in made for it in one.ratings] == [1847, 1933, 6360]
    assert set(made[1].findings.carried) == {
        "corrections of closed periods: their arithmetic is checked, their events are in those periods",
        "statements of completeness, as they were made when the period was closed",
        "events on no line, because of no_price",
    }
    assert made[1].findings.recomputed["amounts of lines, from the text of the price book"] == 14
    # Those of the first half were bought on its line, which is in the pack.
    assert made[1].findings.recomputed["rules of grants of credits: when they hold, and their order"] == 2
    # November is open: what was paid for it in advance is taken off, and nothing of it is in the ledger.
    house.run("2026-11")
    opened = make(house.world, "berlin", parse("2026-11", "Europe/Berlin"), tmp_path / "2026-11")
    assert opened.verified, opened.as_text()
    assert [it["state"] for it in opened.ratings] == ["open"]
    assert "periods whose completeness was not stated: it is when they are closed" in opened.findings.carried
    assert "lines that are in the ledger with their amount" not in opened.findings.recomputed
