"""Months that evidence packs, explanations and statements are about, with what they come to by hand."""

from decimal import Decimal

from rating_samples import at

from meterhouse_rating import credit_changes
from meterhouse_rating.credits import Grant
from meterhouse_store import agreements, registry

BOOK = """\
book: mixed   # the prices of the month
currency: USD
metrics:
  input: {unit: token, meters: [llm.tokens.input]}
  output: {unit: token, meters: [llm.tokens.output, llm.tokens.reasoning]}
  tools: {unit: call, meters: [tool.calls]}
  images: {unit: image, meters: [llm.images]}
  searches: {unit: search, meters: [llm.web_searches]}
  pages: {unit: page, meters: [llm.pages]}
  people: {unit: person, meters: [agent.conversations], aggregate: unique, of: attributes.user}
  audio: {unit: second, meters: [llm.audio.seconds]}
  code: {unit: execution, meters: [llm.code_executions]}
unbilled:
  meters: [llm.requests]
plans:
  pay:
    components:
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
        prices:
          - {model: gpt-5*, price: 3.00}
        default: 1.00
      tools: {model: graduated, metric: tools, tiers: [{up_to: 10, price: 0.50}, {price: 0.25, flat: 1.00}]}
      images: {model: package, metric: images, size: 10, price: 2.00, free: 5}
      searches: {model: volume, metric: searches, tiers: [{up_to: 100, price: 0.02}, {price: 0.01}]}
      seats: {model: recurring, price: 31.00, quantity: seats}
      pages: {model: formula, inputs: {p: pages}, amount: "max(0, p - 10) * 0.05"}
      people: {model: per_unit, metric: people, price: 1.00}
      audio:
        model: matrix
        metric: audio
        by: [attributes.region]
        cells: [{attributes.region: eu, price: 0.02}]
        default: 0.01
      code: {model: cost_plus, metric: code, markup: 200, cost: {price: 0.05}}
      share: {model: percentage, of: [fee, input], percent: 10}
      least: {model: minimum, amount: 200.00}
"""


def furnished(house):
    """October of acme, closed. What it comes to, by hand:

    fee 49.00, output 400,000 beyond at 9.00 per million 3.60, input 2,000,000 at 3.00 6.00 and 1,500,000 at 1.00 1.50,
    tools 10 x 0.50 + 1.00 + 6 x 0.25 = 7.50, images 21 beyond = 3 packages 6.00, searches 120 x 0.01 1.20, 2 seats from
    11 October on 31.00 x 2 x 21/31 = 42.00, pages 20 x 0.05 1.00, 3 people 3.00, audio 50 x 0.02 + 30 x 0.01 = 1.00 and
    0.30, code 4 x 0.05 x 3 = 0.60, a tenth of fee, output and input 6.01: 128.71. The minimum of 200.00 adds 71.29, a
    tenth off the tools takes 0.75, credits pay 5.00.
    """
    house.at(at("2026-11-05"))
    house.publish(BOOK, now=at("2026-09-01"))
    house.customer("acme", now=at("2026-09-01"))
    house.customer("other", now=at("2026-09-01"))
    engine, known = house.world.engine, {"now": at("2026-09-01")}
    agreements.add_quantity(engine, "test", "acme", "seats", Decimal(2), valid_from=at("2026-10-11"), **known)
    agreements.add_discount(
        engine,
        "test",
        "acme",
        "Launch",
        percent=Decimal(10),
        components=["tools"],
        valid_from=at("2026-10-01"),
        **known,
    )
    said = {"reference": "gift", "who": "ann", "why": "sorry", "now": at("2026-10-02")}
    credit_changes.grant(engine, "test", "acme", Grant("", "promotional", 500, at("2026-10-02")), None, **said)
    used = [
        ("llm.tokens.input", "2000000", {"model": "gpt-5-mini"}),
        ("llm.tokens.input", "1500000", {"model": "llama"}),
        ("llm.tokens.input", "999", {"model": "llama", "status": "failed"}),
        ("llm.tokens.output", "900000", {"model": "llama"}),
        ("llm.tokens.reasoning", "500000", {"model": "llama", "trace_id": "cafe"}),
        ("llm.images", "26", {}),
        ("llm.web_searches", "120", {}),
        ("llm.pages", "30", {}),
        ("llm.audio.seconds", "50", {"attributes": {"region": "eu"}}),
        ("llm.audio.seconds", "30", {"attributes": {"region": "us"}}),
        ("llm.code_executions", "4", {}),
        ("llm.requests", "3", {}),
        *(("tool.calls", "1", {"tool": "search"}) for _ in range(16)),
        *(("agent.conversations", "1", {"attributes": {"user": name}}) for name in ("ann", "bob", "cleo", "ann")),
    ]
    plain = {"status": "ok", "model": "", "tool": "", "trace_id": "", "attributes": {}}
    house.events(
        [
            {"customer_id": "acme", "meter": meter, "quantity": quantity, "when": f"2026-10-{day % 28 + 1:02}T08:00:00",
             "event_id": f"e{day:02}", **plain, **more}
            for day, (meter, quantity, more) in enumerate(used)
        ]
    )  # fmt: skip
    house.event("other", "llm.tokens.input", "1000000", "2026-10-05T00:00:00")
    house.collected("2026-11-05T00:00:00")
    house.close()
    return house


AGREED = """\
book: agreed
currency: USD
rounding: half_up
rates: [{from: USD, to: EUR, rate: 0.5, valid_from: 2026-01-01}]
plan_changes: {apply: at_once, usage: carry_on}
metrics:
  input: {unit: token, meters: [llm.tokens.input]}
  tools: {unit: call, meters: [tool.calls], tasks: not_failed}
  peak: {unit: call, meters: [api.calls], aggregate: max}
  images: {unit: image, meters: [llm.images]}
  audio: {unit: second, meters: [llm.audio.seconds]}
addons:
  desk:
    components:
      fee: {model: flat, price: 5.00}
      seat: {model: recurring, price: 3.10}
      pack: {model: credit_pack, price: 10.00, credits: 12.00}
plans:
  small:
    trial_days: 2
    components:
      base: {model: recurring, price: 31.00}
      in: {model: graduated, metric: input, tiers: [{up_to: 100, price: 0.10}, {price: 0.05}]}
      calls: {model: per_unit, metric: tools, price: 0.20}
      peak: {model: per_unit, metric: peak, price: 0.01}
      audio: {model: cost_plus, metric: audio, markup: 100}
  big:
    components:
      base: {model: recurring, price: 62.00, pay: advance}
      in: {model: graduated, metric: input, tiers: [{up_to: 100, price: 0.10}, {price: 0.05}]}
      images: {model: included, metric: images, included: 3, beyond: none}
"""


def agreed_and_closed(house):
    """Berlin pays in euros (half a dollar each). September on `small`, of which two days are a trial; on 16 October it
    changes to `big`. In between come late usage, an add-on, a price of its own, and a discount."""
    known, engine = {"now": at("2026-08-20")}, house.world.engine
    house.publish(AGREED, **known)
    house.customer(
        "berlin", plan="small", currency="EUR", time_zone="Europe/Berlin", valid_from=at("2026-08-31T22:00"), **known
    )
    own = "model: package\nmetric: tools\nsize: 2\nprice: 0.30\n"
    agreements.add_override(
        engine,
        "test",
        "berlin",
        "calls",
        own,
        valid_from=at("2026-09-30T22:00"),
        valid_until=at("2026-10-15T22:00"),
        **known,
    )
    agreements.add_addon(
        engine, "test", "berlin", "desk", quantity=Decimal(2), valid_from=at("2026-10-10T22:00"), now=at("2026-10-05")
    )
    five = {"amount": Decimal(5), "valid_from": at("2026-10-01"), "before_minimum": True}
    agreements.add_discount(engine, "test", "berlin", "Five off", **five, **known)
    registry.add_customer(engine, "test", "berlin", plan="big", valid_from=at("2026-10-15T22:00"), now=at("2026-10-05"))
    for meter, quantity, when, more in (
        ("llm.tokens.input", "7", "2026-09-01T12:00:00", {}),  # in the trial
        ("llm.tokens.input", "80", "2026-09-20T12:00:00", {}),
        ("llm.tokens.input", "40", "2026-09-21T12:00:00", {"received": "2026-10-20T00:00:00"}),  # late
        ("llm.tokens.input", "90", "2026-10-02T12:00:00", {}),
        ("llm.tokens.input", "60", "2026-10-20T12:00:00", {}),
        ("tool.calls", "3", "2026-10-03T12:00:00", {}),
        ("tool.calls", "50", "2026-10-03T13:00:00", {"task_id": "t1"}),
        ("agent.tasks", "1", "2026-10-03T14:00:00", {"task_id": "t1", "status": "failed"}),
        ("api.calls", "500", "2026-10-04T12:00:00", {}),
        ("api.calls", "700", "2026-10-05T12:00:00", {}),
        ("llm.images", "5", "2026-10-25T12:00:00", {}),
    ):
        house.event("berlin", meter, quantity, when, **({"task_id": "", "received": f"{when[:-1]}1"} | more))
    for moment in ("2026-10-03", "2026-11-05"):
        house.at(at(moment))
        house.collected(f"{moment}T00:00:00", position=int(moment[5:7]) * 100)
        house.close(None)
