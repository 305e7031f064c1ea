"""Each starter book rates a month, and the invoice is written out here by hand."""

from decimal import Decimal

import pytest
from rating_samples import at, rated, used

from meterhouse_rating import starters
from meterhouse_rating.agreements import AddOn, Agreement
from meterhouse_rating.book import check, parse
from meterhouse_rating.charges import Before
from meterhouse_store.meters import declared
from meterhouse_store.settings import Settings

METERS = declared(Settings())
INPUT, OUTPUT = "llm.tokens.input", "llm.tokens.output"


def invoice(name, *usage, plan, before=None, **more):
    result = rated(parse(starters.text(name)), *usage, plan=plan, declared=frozenset(METERS), before=before, **more)
    assert result.total_minor == sum(line.amount_minor for line in result.lines)
    return [(line.description, line.amount_minor) for line in result.lines], result


@pytest.mark.parametrize("name", starters.names())
def test_every_starter_book_is_without_mistakes_and_leaves_no_meter_unpriced(name):
    checked = check(starters.text(name), {meter: it.unit for meter, it in METERS.items()})
    assert checked.notes == ()
    assert checked.book.name == name


def test_every_starter_book_says_what_it_is_and_is_rated_below():
    with open(__file__, encoding="utf-8") as file:
        source = file.read()
    for name, what in starters.names().items():
        assert len(what) > 20
        assert f'invoice(\n        "{name}"' in source or f'invoice("{name}"' in source, name


def test_free_ends_at_its_limits_and_what_goes_beyond_is_listed():
    lines, result = invoice(
        "free-pro-enterprise",
        used("agent.conversations", "60", events=60),
        used(INPUT, "80000"),
        used(OUTPUT, "30000"),
        plan="free",
    )
    assert lines == [("conversations", 0), ("tokens", 0)]
    assert [(left.meter, left.quantity, left.reason) for left in result.leftovers] == [
        ("agent.conversations", Decimal(10), "no_price"),
        (OUTPUT, Decimal(10000), "no_price"),
    ]


def test_pro_has_a_fee_and_overage():
    lines, _ = invoice(
        "free-pro-enterprise",
        used("agent.conversations", "1200", events=1200),
        used(INPUT, "2500000"),
        used(OUTPUT, "500000"),
        plan="pro",
    )
    # 200 x 0.05; 1,000,000 beyond at 8.00
    assert lines == [("subscription", 4900), ("conversations", 1000), ("tokens", 800)]


def test_enterprise_is_trued_up_to_its_commitment():
    lines, _ = invoice(
        "free-pro-enterprise",
        used("agent.conversations", "12000", events=12000),
        used(INPUT, "40000000"),
        plan="enterprise",
    )
    # 10,000 x 0.04 + 2,000 x 0.03 = 460.00; 40 x 7.00 = 280.00; 260.00 are missing
    assert lines == [("conversations", 46000), ("tokens", 28000), ("commitment", 26000)]


def test_pay_as_you_go_by_model():
    lines, _ = invoice(
        "pay-as-you-go-tokens",
        used(INPUT, "1000000", model="gpt-5-mini-2026"),
        used(INPUT, "1000000", model="gpt-5"),
        used(OUTPUT, "250000", model="other"),
        plan="pay-as-you-go",
    )
    assert lines == [("input (gpt-5)", 250), ("input (gpt-5-mini-2026)", 50), ("output (other)", 400)]


@pytest.mark.parametrize(
    ("plan", "minor"), [("times-3", [375, 3000]), ("times-4", [500, 4000]), ("times-5", [625, 5000])]
)
def test_markup_is_so_many_times_the_cost(plan, minor):
    # Cost: 1,000,000 input at 1.25, 1,000,000 output at 10.00
    lines, result = invoice(
        "markup",
        used(INPUT, "1000000", model="gpt-5", cost="1.25"),
        used(OUTPUT, "1000000", model="gpt-5", cost="10.00"),
        used(OUTPUT, "9", model="unheard-of"),
        plan=plan,
    )
    assert [amount for _, amount in lines] == minor
    assert [(left.reason, left.quantity) for left in result.leftovers] == [("cost_unknown", Decimal(9))]


def test_flat_only_is_the_fee_whatever_was_used():
    lines, result = invoice("flat-only", used(INPUT, "123456789"), plan="flat")
    assert lines == [("subscription", 9900)]
    assert [left.reason for left in result.leftovers] == ["unbilled_meter"]


def test_flat_plus_overage():
    lines, _ = invoice("flat-plus-overage", used(INPUT, "13000000"), used(OUTPUT, "600000"), plan="team")
    # 11,000,000 beyond: 10 x 4.00 + 1 x 3.00; 100,000 beyond at 16.00 a million
    assert lines == [
        ("subscription", 4900),
        ("subscription: input_tokens", 4300),
        ("subscription: output_tokens", 160),
    ]


def test_seats_plus_usage():
    lines, _ = invoice(
        "seats-plus-usage",
        used(INPUT, "3500000"),
        used(OUTPUT, "700000"),
        plan="business",
        facts={"seats": [("2026-01-01", "2"), ("2026-10-01", "3")]},
        before={"seats": Before(charged=True, billed={"2026-10-01..2026-11-01": Decimal(60)})},
    )
    # One seat more than was billed for October: 30.00; three for November; 500,000 x 4.00; 100,000 x 16.00 a million
    assert lines == [
        ("seats (2026-10-01..2026-11-01)", 3000),
        ("seats (2026-11-01..2026-12-01)", 9000),
        ("input", 200),
        ("output", 160),
    ]


def test_credit_packs_pay_usage_and_another_may_be_added():
    pack = AddOn("0123456789abcdef", "pack-100", Decimal(1), at("2026-10-10"), None)
    lines, _ = invoice(
        "credit-packs",
        used(INPUT, "2000000"),
        used(OUTPUT, "6000000"),
        plan="prepaid",
        agreement=Agreement(addons=(pack,)),
    )
    # 25.00 and 110.00 of credits pay 10.00 and 120.00 in full: 5.00 are left.
    assert lines == [
        ("credits", 2000),
        ("input", 1000),
        ("output", 12000),
        ("Credits worth 110", 10000),
        ("Credits applied", -13000),
    ]


def test_budget_has_packages_and_capped_support():
    lines, _ = invoice("budget", used(INPUT, "1200000"), used(OUTPUT, "6150000"), plan="budget")
    # input: 700,000 in 2 packages; output: 6,050,000 in 61; support: 10 % of 63.00 = 6.30, at most 5.00
    assert lines == [("subscription", 500), ("input", 200), ("output", 6100), ("support", 500)]


def test_bundles_with_an_add_on_from_the_middle_of_the_month():
    support = AddOn("a", "priority-support", Decimal(2), at("2026-10-17"), None)
    lines, _ = invoice(
        "bundles",
        used("agent.conversations", "250", events=250),
        used("tool.calls", "1500", events=1500),
        used(INPUT, "900000"),
        plan="starter-bundle",
        until="2026-11-01",
        agreement=Agreement(addons=(support,)),
    )
    # 50 x 0.10; 500 calls at 5.00 a thousand; 2 x 10.00 for 15 of 31 days = 9.677...
    assert lines == [
        ("bundle (2026-10-01..2026-11-01)", 2900),
        ("conversations", 500),
        ("tools", 250),
        ("input", 0),
        ("Priority support", 968),
    ]


def test_per_outcome_bills_what_ended_well():
    lines, result = invoice(
        "per-outcome",
        used("agent.tasks", "120", events=120),
        used("agent.tasks", "30", status="failed", events=30),
        used("tool.calls", "500", events=500, task="ok"),
        used("tool.calls", "70", events=70, task="failed"),
        plan="per-outcome",
    )
    # 100 x 0.99 + 20 x 0.79; 500 calls at 1.00 per hundred
    assert lines == [("tasks", 11480), ("tools", 500)]
    assert sorted((left.reason, left.quantity) for left in result.leftovers) == [
        ("unbilled_status", Decimal(30)),
        ("unbilled_task", Decimal(70)),
    ]


def test_per_agent_hour_bills_seconds_at_the_agents_price():
    lines, _ = invoice(
        "per-agent-hour",
        used("agent.seconds", "7200", agent_name="researcher-1"),
        used("agent.seconds", "3600", agent_name="writer"),
        plan="per-hour",
    )
    # 2 h at 9.00, 1 h at 4.50
    assert lines == [("hours (researcher*)", 1800), ("hours (any)", 450)]
