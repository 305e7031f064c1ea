"""Evidence packs of a customer with credits of long ago, as it was and after it was erased."""

from decimal import Decimal

from rating_samples import at

from meterhouse_rating import credit_changes
from meterhouse_rating.credits import Grant
from meterhouse_rating.evidence import make
from meterhouse_rating.periods import parse
from meterhouse_store import agreements, budgets, privacy, registry
from meterhouse_store.budgets import MONEY, Budget

BOOK = """
book: old
currency: USD
metrics:
  input: {unit: token, meters: [llm.tokens.input]}
plans:
  pay:
    components:
      pack: {model: credit_pack, price: 10.00, credits: 12.00, expires_days: 400}
      seats: {model: recurring, price: 31.00, quantity: seats, pay: advance}
      in: {model: per_unit, metric: input, price: 0.01}
"""
OLDER = "when older grants of credits and packs of earlier periods hold, and their order"
WHOSE = "whose ledger transactions they are: the customer was erased"


def test_packs_of_a_customer_with_old_credits_verify_also_when_it_was_erased(sqlite_house, tmp_path):
    """acme from July on, with a gift of 3.00 that pays first, ends with July and carries 0.50 on up to November.

    By hand: July's 2.00 are the gift's; of its 1.00 that is left 0.50 is carried on. August's 1.00 are these 0.50 and
    0.50 of the pack's 2.00 given away. October's 9.00 are 1.00 above the cap; 1.50 of the rest are of what was given
    away and 6.50 of the 10.00 that were bought. Two seats are billed for the month and the next one, then for the next.
    """
    house = sqlite_house
    house.publish(BOOK, now=at("2026-06-01"))
    engine, july = house.world.engine, {"now": at("2026-07-01"), "valid_from": at("2026-07-01")}
    registry.add_customer(engine, "test", "acme", plan="pay", name="Jane", reference="4711", **july)
    agreements.add_quantity(engine, "test", "acme", "seats", Decimal(2), **july)
    gift = Grant("", "promotional", 300, at("2026-05-01"), at("2026-08-01"), -1, 50)
    said = {"reference": "gift", "who": "ann", "why": "Jane asked", "now": at("2026-07-01")}
    credit_changes.grant(engine, "test", "acme", gift, None, **said)
    cap = Budget("acme", "most", MONEY, Decimal(8))
    budgets.set_budget(engine, "test", cap, who="ann", why="agreed", now=at("2026-10-02"))
    used = [
        {"meter": "llm.tokens.input", "quantity": quantity, "when": f"{day}T00:00:00", "event_id": day}
        for quantity, day in (("200", "2026-07-10"), ("100", "2026-08-10"), ("900", "2026-10-10"))
    ]
    house.events([{"customer_id": "acme", **it} for it in used])
    for month in ("07", "08", "09", "10"):
        closing = f"2026-{int(month) + 1:02d}-02"
        house.at(at(closing))
        house.collected(f"{closing}T00:00:00", position=int(month) * 100)
        house.close(f"2026-{month}")

    def pack(name, month="10"):
        return make(house.world, name, parse(f"2026-{month}", "UTC"), tmp_path / f"{name}-{month}-{len(told)}.zip")

    told = []
    result = pack("acme")
    assert result.verified, result.as_text()
    lines = {it["description"]: it for it in result.ratings[0]["lines"]}
    amounts = {name: it["amount_minor"] for name, it in lines.items()}
    assert amounts == {
        "seats (2026-11-01..2026-12-01)": 6200,
        "in": 900,
        "Above the cap of 8 USD: not billed": -100,
        "Credits applied": -800,
    }
    paid = lines["Credits applied"]["explanation"]
    assert (paid["balance_before"], list(paid["used"].values()), paid["balance_after"]) == (
        "11.50",
        ["1.50", "6.50"],
        "3.50",
    )
    assert OLDER in result.findings.carried  # the pack's line is in July's pack

    told.append("forgotten")
    privacy.forget(engine, "e1", "test", "acme", who="ann", why="ticket", now=at("2026-11-20"))
    for month in ("07", "10"):
        result = pack("acme", month)
        assert result.verified and WHOSE in result.findings.carried

    told.append("renamed")
    house.world.client.command("TRUNCATE TABLE events")
    house.events([{"customer_id": "erased-1", **it} for it in used])
    erasure = privacy.begin(engine, "e2", "test", "acme", who="ann", why="ticket", now=at("2026-11-20"))
    privacy.rename(engine, erasure, "erased-1", {})
    privacy.finish(engine, erasure, "erased-1", at("2026-11-20"))
    for month in ("07", "10"):
        result = pack("erased-1", month)
        assert result.verified and result.findings.recomputed["balances of credits before a rating, from the ledger"]
        assert {it["description"]: it["amount_minor"] for it in result.ratings[0]["lines"]} == amounts or month == "07"
