"""Evidence packs recompute what began before their period: credits from the ledger, levels, and what is above a cap."""

import json
import zipfile
from decimal import Decimal

import pytest
from rating_samples import at
from test_evidence import written

from meterhouse_rating import credit_changes
from meterhouse_rating.credits import Grant
from meterhouse_rating.evidence import make
from meterhouse_rating.evidence_check.main import verify
from meterhouse_rating.periods import parse
from meterhouse_store import budgets
from meterhouse_store.budgets import MONEY, Budget

BOOK = """
book: levels
currency: USD
metrics:
  input: {unit: token, meters: [llm.tokens.input]}
  stored: {unit: GB, meters: [llm.pages], aggregate: latest, of: attributes.volume}
  held: {unit: GB hour, meters: [llm.images], aggregate: time_weighted, per: hour, of: attributes.volume}
plans:
  pay:
    components:
      in: {model: per_unit, metric: input, per: 1000, price: 2.00}
      stored: {model: per_unit, metric: stored, price: 0.10}
      held: {model: per_unit, metric: held, per: 1000, price: 1.00}
"""


@pytest.fixture
def pack(sqlite_house, tmp_path):
    """October of acme. By hand: 3,000 tokens 6.00. Stored at its end: a 7 from September on, b 5: 12 at 0.10 1.20.

    Held: 10 from September on up to 11 October (240 hours), then 20 (504 hours): 12,480 GB hours, 12.48. A cap of 18.00
    takes 1.68. Of credits, the gift of 5.00 pays first, of which September used 2.94 (2.00, 7 stored, 24 hours of 10);
    then 4.00 bought in September and 1.00 in October; and not what begins in November.
    """
    house = sqlite_house
    house.at(at("2026-11-05"))
    house.publish(BOOK, now=at("2026-08-01"))
    house.customer("acme", now=at("2026-08-01"))
    for name, kind, minor, since, priority in (
        ("bought", "bought", 400, "2026-09-02", 0),
        ("gift", "promotional", 500, "2026-09-03", 0),
        ("more", "bought", 100, "2026-10-20", 0),
        ("later", "bought", 9900, "2026-11-01", -1),
    ):
        told = {"reference": name, "who": "ann", "why": "sorry", "now": at("2026-09-05")}
        grant = Grant("", kind, minor, at(since), None, priority)
        credit_changes.grant(house.world.engine, "test", "acme", grant, None, **told)
    cap = Budget("acme", "most", MONEY, Decimal(18))
    budgets.set_budget(house.world.engine, "test", cap, who="ann", why="agreed", now=at("2026-10-02"))
    for meter, quantity, when, volume in (
        ("llm.tokens.input", "1000", "2026-09-10T00:00:00", ""),
        ("llm.pages", "3", "2026-09-10T00:00:00", "a"),
        ("llm.pages", "7", "2026-09-11T00:00:00", "a"),
        ("llm.images", "10", "2026-09-30T00:00:00", "a"),
        ("llm.tokens.input", "3000", "2026-10-10T00:00:00", ""),
        ("llm.pages", "5", "2026-10-11T00:00:00", "b"),
        ("llm.images", "20", "2026-10-11T00:00:00", "a"),
    ):
        house.event("acme", meter, quantity, when, attributes={"volume": volume})
    for month, through in (("2026-09", "2026-10-03"), ("2026-10", "2026-11-05")):
        house.at(at(through))
        house.collected(f"{through}T00:00:00", position=int(through[5:7]) * 100)
        house.close(month)
    file = tmp_path / "acme.zip"
    result = make(house.world, "acme", parse("2026-10", "UTC"), file)
    assert result.verified, result.as_text()
    return file, result


def test_credits_levels_and_caps_are_recomputed_and_nothing_of_them_is_only_carried(pack):
    _, result = pack
    amounts = {line["description"]: line["amount_minor"] for line in result.ratings[0]["lines"]}
    assert amounts == {
        "in": 600,
        "stored": 120,
        "held": 1248,
        "Above the cap of 18 USD: not billed": -168,
        "Credits applied": -706,
    }
    done = result.findings.recomputed
    assert done["balances of credits before a rating, from the ledger"] == 1
    assert done["levels of before the period, that go on into it"] == 2
    assert done["quantities of lines, from the events"] == 3
    assert done["caps, by the names of their lines that the ledger seals"] == 1
    assert done["what is above a cap of money, from the lines"] == 1
    assert set(result.findings.carried) == {
        "statements of completeness, as they were made when the period was closed",
        "when grants of credits hold and in which order: the ledger names them, with amounts",
        "other ledger transactions of the customer: their causes are not in the pack",
        "seals of other customers between those of the pack (a pack made with anchors has them)",
    }


FORGERIES = [
    ("ledger.json", lambda it: it["earlier"].pop(0), "the credits before it"),
    ("ledger.json", lambda it: it["earlier"][0]["entries"][0].update(amount_minor=1), "its seal"),
    ("ratings.json", lambda it: it[0]["levels"][0].update(quantity="1"), "its quantity, from the events"),
    ("ratings.json", lambda it: it[0]["levels"].pop(), "its quantity, from the events"),
    ("ratings.json", lambda it: it[0]["discounts"][0]["cap"].update(limit="10"), "the name of its cap"),
    ("ratings.json", lambda it: it[0]["discounts"][0].update(amount="1.00"), "what is above the cap"),
]


def test_what_began_before_cannot_be_forged(pack, tmp_path):
    for name, change, told in FORGERIES:
        with zipfile.ZipFile(pack[0]) as archive:
            files = {it: archive.read(it) for it in archive.namelist()}
        value = json.loads(files[name])
        change(value)
        files[name] = json.dumps(value).encode()
        problems = verify(written(files, tmp_path / "forged.zip")).findings.problems
        assert any(told in it for it in problems), (told, problems)
