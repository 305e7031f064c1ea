"""The customer's price list: every price model in words, with the figures that a rating charges by."""

import re
from datetime import UTC, datetime
from decimal import Decimal
from html import unescape
from math import ceil

import pytest
from portal_samples import NOW, event, portal_world, text_of, visiting
from sqlalchemy import select

from meterhouse_portal import price_words, usage_pages
from meterhouse_rating.models import MODELS
from meterhouse_rating.price_api import price_list
from meterhouse_rating.settled import lines_of
from meterhouse_store import agreements
from meterhouse_store.tables import ratings

BOOK = """
book: every-model
currency: EUR
tax: {behaviour: exclusive}
metrics:
  input: {unit: token, meters: [llm.tokens.input]}
  output: {unit: token, meters: [llm.tokens.output]}
  cached: {unit: token, meters: [llm.tokens.cache_read]}
  reasoning: {unit: token, meters: [llm.tokens.reasoning]}
  api: {unit: call, meters: [api.calls]}
  images: {unit: image, meters: [llm.images]}
  pages: {unit: page, meters: [llm.pages]}
  tools: {unit: call, meters: [tool.calls], aggregate: count}
  seconds: {unit: s, meters: [agent.seconds]}
  talks: {unit: conversation, meters: [llm.requests], aggregate: unique, of: conversation_id}
plans:
  pay:
    title: Everything
    components:
      by-model:
        title: Input
        model: per_unit
        metric: input
        per: 1_000_000
        by: [model]
        prices: [{model: gpt-5-mini*, price: 4.00}, {model: gpt-5*, price: 20.00}]
        default: 12.5
      by-tier:
        title: Output
        model: graduated
        metric: output
        per: 1_000_000
        tiers: [{up_to: 1_000_000, price: 10.00}, {up_to: 2_000_000, price: 9.00}, {price: 8.00, flat: 5.00}]
      by-volume:
        title: Cached
        model: volume
        metric: cached
        per: 1_000_000
        tiers: [{up_to: 1_000_000, price: 3.00}, {price: 2.00, flat: 1.50}]
      packages: {title: Calls, model: package, metric: api, size: 100, price: 5.00, free: 100}
      pictures:
        title: Images
        model: included
        metric: images
        included: 10
        tiers: [{up_to: 10, price: 0.50}, {price: 0.4}]
      cells:
        title: Pages
        model: matrix
        metric: pages
        by: [model]
        cells:
          - {model: gpt-5, mode: volume, tiers: [{up_to: 1000, price: 0.02}, {price: 0.01}]}
          - {model: claude, price: 0.05}
        default: none
      asked:
        title: Reasoning
        model: cost_plus
        metric: reasoning
        markup: 25
        fee: 0.50
        per: 1_000_000
        cost: {by: [model], per: 1_000_000, prices: [{model: gpt-5*, price: 10.00}], default: none}
      sums: {title: Tools, model: formula, inputs: {n: tools}, amount: "max(0, n - 2) * 0.25"}
      base:
        title: Base
        model: flat
        price: 49.00
        included: {seconds: 1000}
        overage: {seconds: {tiers: [{price: 0.001}]}}
      dialogues: {title: Talks, model: per_unit, metric: talks, price: 0.30, statuses: [ok, failed]}
      seats: {title: Seats, model: recurring, price: 10.00, quantity: 3, unit: seat}
      service: {title: Service, model: percentage, of: [by-model, by-tier], percent: 2.5, min: 0.50}
      pack: {title: Pack, model: credit_pack, price: 20.00, credits: 25.00, expires_days: 365}
      floor: {title: Commitment, model: minimum, amount: 400.00}
addons:
  support: {title: Support, components: {fee: {title: Support, model: recurring, price: 99.00}}}
"""
USED = (
    ("llm.tokens.input", 100_000, "gpt-5-mini-2"), ("llm.tokens.input", 50_000, "gpt-5"),
    ("llm.tokens.input", 10_000, "claude"), ("llm.tokens.output", 2_500_000, "gpt-5"),
    ("llm.tokens.cache_read", 3_000_000, "gpt-5"), ("llm.tokens.reasoning", 40_000, "gpt-5"),
    ("api.calls", 350, ""), ("llm.images", 25, ""), ("llm.pages", 1500, "gpt-5"), ("llm.pages", 100, "claude"),
    *(("tool.calls", 1, ""),) * 7, ("agent.seconds", 5000, ""),
    ("llm.requests", 1, "gpt-5"),
)  # fmt: skip
EVENTS = [
    event("acme", meter, f"2026-10-05 10:00:{at:02}", quantity, call=f"c-{at}", model=model, conversation="one")
    for at, (meter, quantity, model) in enumerate(USED)
]
WORDS = {
    "en": {"per": "per", "to": "up to", "beyond": "beyond", "included": "included", "other": "any", "free": "first",
           "package": "package of", "month": "a month", "least": "At least"},
    "de": {"per": "je", "to": "bis", "beyond": "über", "included": "enthalten", "other": "beliebig", "free": "ersten",
           "package": "Paket von", "month": "im Monat", "least": "Mindestens"},
}  # fmt: skip


@pytest.fixture(scope="module")
def world(warehouse_address, tmp_path_factory):
    with portal_world(warehouse_address, tmp_path_factory.mktemp("portal") / "data", BOOK, EVENTS) as made:
        yield made


class Shown:
    """What a person sees of a part, and the numbers in it, read as the language writes them."""

    def __init__(self, html, code):
        self.code, self.words = code, WORDS[code]
        self.title = text_of(re.search(r"<h[34]>(.*?)</h[34]>", html, re.DOTALL)[1]).strip()
        figure = re.search(r'<p class="figure">(.*?)</p>', html, re.DOTALL)
        self.price = unescape(text_of(figure[1])) if figure else ""
        self.rows = [
            [text_of(cell).strip() for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)]
            for row in re.findall(r"<tr>(.*?)</tr>", " ".join(re.findall(r"<tbody>.*?</tbody>", html, re.DOTALL)))
        ]
        self.text = text_of(html)

    def number(self, text):
        found = re.search(r"[0-9][0-9.,]*[0-9]|[0-9]", text)[0]
        group, point = (",", ".") if self.code == "en" else (".", ",")
        return Decimal(found.replace(group, "").replace(point, "."))

    def unit_price(self, text):
        """The price of one, of `4.00 EUR per 1,000,000 tokens`."""
        if text == self.words["included"]:
            return Decimal(0)
        price, _, per = text.partition(f" {self.words['per']} ")
        return self.number(price) / (self.number(per) if re.search("[0-9]", per) else 1)

    def upper(self, text):
        """The last unit of a row; None of the last row."""
        return self.number(text.rpartition(self.words["to"])[2]) if self.words["to"] in text else None

    def tiers(self, rows):
        return [(self.upper(row[0]), self.unit_price(row[1]), self.fee(row[2:])) for row in rows]

    def fee(self, cells):
        return self.number(cells[0]) if cells and cells[0] != "–" else Decimal(0)

    def note(self, before):
        return self.number(self.text.partition(before)[2])


def unit_by_unit(tiers, quantity):
    amount, lower = Decimal(0), Decimal(0)
    for upper, price, fee in tiers:
        here = min(quantity, quantity if upper is None else upper) - lower
        if here > 0:
            amount += here * price + fee
        lower = upper
        if upper is None or quantity <= upper:
            return amount
    raise AssertionError("the last row has an end")


def all_alike(tiers, quantity):
    return next(quantity * price + fee for upper, price, fee in tiers if upper is None or quantity <= upper)


def shown_to(world, code):
    with visiting(world, "vera@acme.example") as browser:
        page = browser.get("/account/prices", headers={"Accept-Language": code}).text
    sections = re.findall(r'<section class="card offer">(.*?)</section>', page, re.DOTALL)
    return {it.title: it for it in (Shown(html, code) for html in sections)}, page


def by_price_list(shown):
    """What October comes to by what a person reads, line by line (what it calls them -> amount)."""
    part, expected = shown, {}
    prices = {row[0]: part["Input"].unit_price(row[1]) for row in part["Input"].rows}
    other = next(price for name, price in prices.items() if "gpt" not in name)
    expected["Input (gpt-5-mini-2)"] = 100_000 * prices["gpt-5-mini*"]
    expected["Input (gpt-5)"] = 50_000 * prices["gpt-5*"]
    expected["Input (claude)"] = 10_000 * other
    expected["Output"] = unit_by_unit(part["Output"].tiers(part["Output"].rows), Decimal(2_500_000))
    expected["Cached"] = all_alike(part["Cached"].tiers(part["Cached"].rows), Decimal(3_000_000))
    calls = part["Calls"]
    size, free = calls.note(calls.words["package"]), calls.note(calls.words["free"])
    expected["Calls"] = ceil((350 - free) / size) * calls.number(calls.price)
    expected["Images"] = unit_by_unit(part["Images"].tiers(part["Images"].rows), Decimal(25))
    pages = part["Pages"]
    of_gpt = [row[1:] for row in pages.rows if row[0] == "gpt-5"]
    expected["Pages (gpt-5)"] = all_alike(pages.tiers(of_gpt), Decimal(1500))
    of_claude = [row[1:] for row in pages.rows if row[0] == "claude"]
    expected["Pages (claude)"] = unit_by_unit(pages.tiers(of_claude), Decimal(100))
    asked = part["Reasoning"]
    fee = asked.unit_price(re.search(r"(?:Plus|Dazu) (.*?)\. ", asked.text)[1])
    expected["Reasoning (gpt-5)"] = 40_000 * (asked.unit_price(asked.rows[0][2]) + fee)
    assert asked.unit_price(asked.rows[0][1]) * (100 + asked.number(asked.price)) / 100 == asked.unit_price(
        asked.rows[0][2]
    )
    expected["Tools"] = eval(part["Tools"].price, {"max": max, "n": 7})
    expected["Base"] = part["Base"].number(part["Base"].price)
    expected["Base: seconds"] = unit_by_unit(part["Base"].tiers(part["Base"].rows), Decimal(5000))
    expected["Talks"] = part["Talks"].unit_price(part["Talks"].price)
    expected["Seats"] = 3 * part["Seats"].number(part["Seats"].price)
    assert f"{part['Seats'].number(part['Seats'].price) * 3:.2f}".partition(".")[0] in part["Seats"].text
    of = sum(
        (round(Decimal(it), 2) for name, it in expected.items() if name.startswith(("Input", "Output"))), Decimal(0)
    )
    service = part["Service"]
    expected["Service"] = max(of * service.number(service.price) / 100, service.note(service.words["least"]))
    expected["Pack"] = part["Pack"].number(part["Pack"].price)
    spent = sum(round(Decimal(it), 2) for it in expected.values())
    expected["Commitment"] = part["Commitment"].number(part["Commitment"].price) - spent
    return {name: round(Decimal(it), 2) for name, it in expected.items()}


@pytest.mark.parametrize("code", ["en", "de"])
def test_what_is_read_off_the_price_list_is_what_a_rating_charges(world, code):
    shown, _ = shown_to(world, code)
    with world[0].engine.connect() as connection:
        october = connection.execute(
            select(ratings.c.rating_id).where(ratings.c.customer_id == "acme", ratings.c.state == "closed")
        ).scalar_one()
        lines = lines_of(connection, [october])
    billed = {
        row["description"]: Decimal(row["amount_minor"]) / 100
        for row in lines
        if row["kind"] in ("usage", "flat", "minimum", "credit_pack")
    }
    assert by_price_list(shown) == billed


def test_a_part_says_what_is_measured_which_calls_are_billed_and_what_there_is_beside_its_price(world):
    shown, page = shown_to(world, "en")
    told = text_of(page)
    assert "Measured: the sum of llm.tokens.input (tokens)." in shown["Input"].text
    assert (
        "Measured: how many different values of Conversation llm.requests has (conversations)." in shown["Talks"].text
    )
    assert "Not billed are calls that are: broken off, not finished." in shown["Talks"].text
    assert (
        told.count("Unless a part says otherwise: Not billed are calls that are: failed, broken off, not finished.")
        == 1
    )
    assert told.count("Not billed are calls") == 2
    assert "A * at the end stands for any ending." in shown["Input"].text
    assert "What fits no row has no price here." in shown["Pages"].text
    assert "credits of 25.00 EUR" in shown["Pack"].text and "365 days" in shown["Pack"].text
    assert "Prices are without tax, which is added." in told and "Everything" in told
    assert "per_unit" not in told and "up_to" not in told and "metric " not in told


def test_discounts_have_their_currency_and_days_and_what_they_are_off(world):
    engine, began = world[0].engine, datetime(2026, 10, 31, 23, tzinfo=UTC)
    told = {"namespace": "live", "customer_id": "acme", "valid_from": began, "now": NOW}
    december = datetime(2026, 11, 30, 23, tzinfo=UTC)
    agreements.add_discount(engine, name="Launch", amount=Decimal("12.5"), components=["by-tier"], months=3, **told)
    agreements.add_discount(engine, **told | {"name": "Later", "amount": Decimal(5), "valid_from": december})
    agreements.add_addon(engine, **told | {"addon": "support", "quantity": Decimal(2)})
    shown = text_of(shown_to(world, "en")[1])
    assert "Launch: 12.50 EUR a month off Output, from 2026-11-01 on, for 3 calendar months in all" in shown
    assert "2026-12-01: discount Later begins (5.00 EUR)" in shown
    assert "2 × Support, from 2026-11-01 on" in shown and "99.00 EUR a month each" in shown
    german = text_of(shown_to(world, "de")[1])
    assert "Launch: 12,50 EUR im Monat weniger auf Output, ab 01.11.2026" in german
    assert "01.12.2026: Rabatt Later beginnt (5,00 EUR)" in german


def test_an_own_price_is_marked_and_what_is_included_for_each_seat_is_counted(world):
    engine, began = world[0].engine, datetime(2026, 10, 31, 23, tzinfo=UTC)
    told = {"namespace": "live", "customer_id": "acme", "valid_from": began, "now": NOW}
    included = "included: 1_000_000\neach: seats\nper: 1_000_000\nprice: 7.50\n"
    own = f"title: Output\nmodel: included\nmetric: output\n{included}"
    agreements.add_override(engine, component="by-tier", source=own, **told)
    agreements.add_quantity(engine, name="seats", quantity=Decimal(5), **told)
    shown, page = shown_to(world, "en")
    output = shown["Output your own price"]
    assert "Included in a month: 1,000,000 tokens for each of seats. 5 of them now: 5,000,000 included." in output.text
    assert output.rows == [["all", "7.50 EUR per 1,000,000 tokens"]]
    assert "seats: 5, from 2026-11-01 on" in text_of(page)


def test_every_price_model_has_words():
    made = {it.__module__.rpartition(".")[2] for it in price_words._SAYINGS}
    assert made == {it.__module__.rpartition(".")[2] for it in MODELS.values()}


def test_why_there_are_no_prices_is_told_without_commands_in_each_language(world, monkeypatch):
    reasons = {price_list.NO_BOOK, price_list.NO_PLAN, price_list.CONTRACT_ENDED, price_list.PLAN_NOT_IN_BOOK,
               price_list.TERMS_DO_NOT_FIT, price_list.NO_RATE}  # fmt: skip
    assert set(usage_pages.NOT_PRICED) == reasons

    def refused(self):
        raise price_list.NotPriced(price_list.TERMS_DO_NOT_FIT, "meterhouse contracts end 3f2a")

    monkeypatch.setattr("meterhouse_portal.account.Account.prices", refused)
    assert "What was agreed with you does not fit the price list" in text_of(shown_to(world, "en")[1])
    assert "Was mit Ihnen vereinbart ist, passt nicht" in text_of(shown_to(world, "de")[1])
