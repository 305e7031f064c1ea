"""A rated line's explanation in sentences: where its price stands, the arithmetic, the rounding, the credits.

In the language of whoever reads it; names, and the texts of a price book, are as they are written.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from meterhouse_rating.layout import money, number, unit
from meterhouse_rating.periods import Period
from meterhouse_rating.results import Row
from meterhouse_store.language import ENGLISH, Language
from meterhouse_store.numbers import D


def as_text(line: Row) -> str:
    """A heading and the sentences; `line` is a row of `rated_lines` with its rating's customer_id, period and state."""
    currency = line["currency"]
    used = f"{number(line['quantity'])} {unit(line['unit'], line['quantity'])}, " if line["unit"] else ""
    period = Period(line["period_start"], line["period_end"])
    text = [
        f"{line['description']}: {used}{money(line['amount_minor'], currency)} {currency}",
        f"  Line {line['line_id']}",
        f"  of {line['customer_id']} for {period}, {line['state']}.",
    ]
    return "\n".join([*text, *(f"  {sentence}" for sentence in sentences(line))])


def sentences(line: Row, language: Language | None = None) -> list[str]:
    """What the amount of a row of `rated_lines` comes from: price, arithmetic, credits, discounts, tax, rounding."""
    explanation, currency = line["explanation"], line["currency"]
    to = language or _ENGLISH
    text = []
    if price := explanation.get("price"):
        place = {"part": price["component"], "plan": price["plan"], "book": price["book"]}
        place |= {"version": price["version"], "line": price["line"]}
        if "override" in price:
            told = to.say(
                "Priced by %(part)s of the plan %(plan)s: price book %(book)s, version %(version)s, "
                "line %(line)s of the customer's own price %(own)s.",
                **place,
                own=price["override"][:12],
            )
        else:
            told = to.say(
                "Priced by %(part)s of the plan %(plan)s: price book %(book)s, version %(version)s, line %(line)s.",
                **place,
            )
        text.append(told)
    for meter, part in explanation.get("meters", {}).items():
        of_it = {"number": to.number(D(part)), "meter": meter}
        if D(part) == 1:
            text.append(to.say("%(number)s of it is %(meter)s.", **of_it))
        else:
            text.append(to.say("%(number)s of it are %(meter)s.", **of_it))
    if "balance_before" in explanation:
        text.append(to.say("Credits before: %(money)s.", money=_money(explanation["balance_before"], currency, to)))
    if after := explanation.get("corrects", {}).get("after"):
        text.append(to.say("It goes on from %(parts)s of its month, corrected as well.", parts=", ".join(after)))
    if explanation.get("payable", explanation["amount"]) != explanation["amount"]:
        text.append(
            to.say(
                "Credits may pay %(money)s of it: the rest goes off what other corrections of the month give back.",
                money=_money(explanation["payable"], currency, to),
            )
        )
    text += _arithmetic(explanation.get("now", {"steps": ()}), currency, to)
    text += _arithmetic(explanation, currency, to)
    if "balance_after" in explanation:
        text.append(to.say("Credits left: %(money)s.", money=_money(explanation["balance_after"], currency, to)))
    if "credits" in explanation:
        text.append(to.say("Grants credits of %(money)s.", money=_money(explanation["credits"], currency, to)))
    if "discount" in explanation:
        why = to.say("agreement %(name)s", name=explanation["discount"][:12])
        if budget := explanation.get("budget"):
            why = to.say("the cap of the budget %(name)s (`meterhouse budgets show CUSTOMER`)", name=budget)
        if "earlier_this_month" in explanation:
            amount = _money(explanation["earlier_this_month"], currency, to)
            text.append(to.say("Of the amount for this month %(amount)s were taken off before.", amount=amount))
        if "earlier_left" in explanation:
            amount = _money(explanation["earlier_left"], currency, to)
            text.append(to.say("Earlier parts of the month left %(amount)s after it.", amount=amount))
        text.append(to.say("Taken off %(order)s, by %(why)s.", order=to.translated(explanation["order"]), why=why))
    if tax := explanation.get("tax"):
        behaviour, code = to.translated(tax["behaviour"] or "unspecified"), tax["code"] or to.translated("none")
        text.append(to.say("Tax: %(behaviour)s, code %(code)s.", behaviour=behaviour, code=code))
    if "amount_exact" in explanation:
        sums = {
            "exact": _money(explanation["amount_exact"], currency, to),
            "amount": _written(explanation["amount"], to),
        }
        if "corrects" in explanation:
            whole = to.say("Exactly %(exact)s, of two amounts that were rounded by themselves: %(amount)s.", **sums)
        elif "rounding" in explanation:
            rounding = _rounding(explanation["rounding"], to)
            whole = to.say("Exactly %(exact)s, rounded %(rounding)s: %(amount)s.", **sums, rounding=rounding)
        else:  # a top-up needs no rounding
            whole = to.say("Exactly %(exact)s: %(amount)s.", **sums)
        text.append(whole)
    return text


def _arithmetic(explanation: Mapping[str, Any], currency: str, to: Language) -> list[str]:
    """The steps of a line, and how what they come to was converted."""
    conversion = explanation.get("conversion")
    priced_in = currency if conversion is None else conversion["currency"]
    text = [said(step, priced_in, to) for step in explanation["steps"]]
    if conversion is not None:
        rate = {"rate": f"{_written(conversion['rate'], to)} {currency}", "line": conversion["line"]}
        rate |= {"money": _money(conversion["amount"], priced_in, to), "day": conversion["valid_from"][:10]}
        text.append(to.say("%(money)s at %(rate)s (line %(line)s, from %(day)s on).", **rate))
    return text


def said(step: Mapping[str, Any], currency: str, language: Language | None = None) -> str:
    """One step in words: the first of its keys that says what kind of step it is."""
    for key, say in _SAYINGS.items():
        if key in step:
            return say(step, currency, language or _ENGLISH)
    return _units(step, currency, language or _ENGLISH)


_ENGLISH: Final = Language(ENGLISH)


def _written(amount: str, to: Language) -> str:
    """A number with the digits that it is written with, in another language with its signs."""
    return amount if to.tag == ENGLISH else to.fixed(D(amount), len(amount.partition(".")[2]))


def _money(amount: str, currency: str, to: Language) -> str:
    return f"{to.number(D(amount))} {currency}"


def _amount(step: Mapping[str, Any], currency: str, to: Language) -> str:
    return _money(step["amount"], currency, to)


def _line(step: Mapping[str, Any], to: Language, key: str = "book_line") -> str:
    """` (line 12)`, where the step says it."""
    return " " + to.say("(line %(line)s)", line=step[key]) if key in step else ""


def _rounding(told: str, to: Language) -> str:
    """`half_even to 0.01 USD` is half to even, to 0.01 USD."""
    mode, _, rest = told.partition(" ")
    digits, _, currency = rest.removeprefix("to ").partition(" ")
    how = to.translated("half to even" if mode == "half_even" else mode.replace("_", " "))
    return to.say("%(how)s, to %(step)s", how=how, step=f"{_written(digits, to)} {currency}")


def _units(step: Mapping[str, Any], currency: str, to: Language) -> str:
    told = {
        "quantity": to.number(D(step["quantity"])),
        "price": _priced(step, currency, to),
        "tier": _tier(step, to),
        "amount": _amount(step, currency, to),
        "line": _line(step, to),
    }
    if "cost" in step:
        cost = _money(step["cost"], currency, to)
        return to.say("Costs %(cost)s: %(quantity)s at %(price)s%(tier)s: %(amount)s%(line)s.", cost=cost, **told)
    return to.say("%(quantity)s at %(price)s%(tier)s: %(amount)s%(line)s.", **told)


def _priced(step: Mapping[str, Any], currency: str, to: Language) -> str:
    """`2.00 EUR per 1,000`"""
    price = f"{_written(step['price'], to)} {currency}"
    return price if step["per"] == "1" else to.say("%(price)s per %(per)s", price=price, per=to.number(D(step["per"])))


def _tier(step: Mapping[str, Any], to: Language) -> str:
    lower, dots, upper = str(step.get("tier", "")).partition("..")
    if not dots:
        return ""
    edges = {"lower": to.number(D(lower))}
    if not upper:
        return ", " + to.say("beyond %(lower)s", **edges)
    return ", " + to.say("beyond %(lower)s up to %(upper)s", **edges, upper=to.number(D(upper)))


def _part(share: str, to: Language) -> str:
    """`15/30 days`"""
    fraction, _, unit_of_time = share.partition(" ")
    return f"{fraction} {to.translated(unit_of_time)}"


def _share(step: Mapping[str, Any], currency: str, to: Language) -> str:
    share, amount = step["share"], _amount(step, currency, to)
    if "minimum" in step:
        minimum = f"{_written(step['minimum'], to)} {currency}"
        return to.say(
            "%(amount)s of the minimum of %(minimum)s, for %(share)s.",
            amount=amount,
            minimum=minimum,
            share=_part(share, to),
        )
    return to.say(
        "%(quantity)s at %(price)s from %(start)s to %(end)s, %(share)s: %(amount)s.",
        quantity=to.number(D(step["quantity"])), price=f"{_written(step['price'], to)} {currency}", start=step["from"],
        end=step["to"], share=_part(share, to), amount=amount,
    )  # fmt: skip


def _packages(step: Mapping[str, Any], currency: str, to: Language) -> str:
    return to.say(
        "%(quantity)s in %(packages)s packages of %(size)s at %(price)s: %(amount)s%(line)s.",
        quantity=to.number(D(step["quantity"])), packages=to.number(D(step["packages"])),
        size=to.number(D(step["size"])), price=f"{_written(step['price'], to)} {currency}",
        amount=_amount(step, currency, to), line=_line(step, to),
    )  # fmt: skip


def _formula(step: Mapping[str, Any], currency: str, to: Language) -> str:
    inputs = ", ".join(f"{name} {to.number(D(value))}" for name, value in step["inputs"].items())
    amount = _amount(step, currency, to)
    return to.say("%(formula)s with %(inputs)s: %(amount)s.", formula=step["formula"], inputs=inputs, amount=amount)


def _no_quantity(step: Mapping[str, Any], _currency: str, to: Language) -> str:
    return to.say(
        "No quantity of %(name)s is recorded: `meterhouse contracts quantity CUSTOMER %(name)s NUMBER`.",
        name=step["no_quantity"],
    )


def _off(step: Mapping[str, Any], currency: str, to: Language) -> str:
    told = {"name": step["off"], "amount": _amount(step, currency, to)}
    if "percent" not in step:
        return to.say("Off %(name)s: %(amount)s.", **told)
    of = {"percent": _written(step["percent"], to), "money": f"{_written(step['money'], to)} {currency}"}
    return to.say("Off %(name)s: %(percent)s %% of %(money)s: %(amount)s.", **told, **of)


def _included(step: Mapping[str, Any], currency: str, to: Language) -> str:
    return to.say(
        "%(quantity)s are within the included %(included)s: 0 %(currency)s.",
        quantity=to.number(D(step["quantity"])), included=to.number(D(step["included"])), currency=currency,
    )  # fmt: skip


def _asked(step: Mapping[str, Any], currency: str, to: Language) -> str:
    told = {
        "quantity": to.number(D(step["quantity"])),
        "price": _priced(step, step.get("currency", currency), to),
        "amount": _amount(step, currency, to),
        "source": step["asked_by"],
    }
    if "rate" not in step:
        return to.say("The provider asks %(quantity)s at %(price)s: %(amount)s (%(source)s).", **told)
    rate, money = f"{_written(step['rate'], to)} {currency}", _money(step["cost"], step["currency"], to)
    return to.say(
        "The provider asks %(quantity)s at %(price)s: %(money)s at %(rate)s%(line)s: %(amount)s (%(source)s).",
        **told,
        money=money,
        rate=rate,
        line=_line(step, to, "rate_line"),
    )


def _minimum(step: Mapping[str, Any], currency: str, to: Language) -> str:
    return to.say("The minimum is %(amount)s.", amount=_amount(step, currency, to))


def _earlier(step: Mapping[str, Any], currency: str, to: Language) -> str:
    told = {"quantity": to.number(D(step["earlier_this_month"])), "amount": _amount(step, currency, to)}
    return to.say("Less what %(quantity)s came to earlier this month: %(amount)s.", **told)


def _already(step: Mapping[str, Any], _currency: str, to: Language) -> str:
    quantity = to.number(D(step["already_rated_this_month"]))
    return to.say("%(quantity)s were rated earlier this month.", quantity=quantity)


def _percent(step: Mapping[str, Any], currency: str, to: Language) -> str:
    told = {"percent": _written(step["percent"], to), "money": _money(step["money"], currency, to)}
    return to.say("%(percent)s %% of %(money)s: %(amount)s.", **told, amount=_amount(step, currency, to))


def _fixed(step: Mapping[str, Any], currency: str, to: Language) -> str:
    told = {"times": step["times"], "fixed": f"{_written(step['fixed'], to)} {currency}"}
    return to.say("%(times)s times %(fixed)s: %(amount)s.", **told, amount=_amount(step, currency, to))


_SAYINGS: Final[dict[str, Callable[[Mapping[str, Any], str, Language], str]]] = {
    "asked_by": _asked,
    "comes_to": lambda it, money, to: to.say(
        "%(name)s comes to %(amount)s by what is known now.", name=it["comes_to"], amount=_amount(it, money, to)
    ),
    "billed_so_far": lambda it, money, to: to.say(
        "Less what was billed of it so far: %(amount)s.", amount=_amount(it, money, to)
    ),
    "restored": lambda it, money, to: to.say(
        "Grant %(name)s gets %(amount)s back.", name=it["restored"][:12], amount=_amount(it, money, to)
    ),
    "pays": lambda it, money, to: to.say(
        "Pays %(amount)s of %(line)s.", amount=f"{_written(it['amount'], to)} {money}", line=it["pays"]
    ),
    "already_rated_this_month": _already,
    "earlier_this_month": _earlier,
    "billed_before": lambda it, money, to: to.say(
        "Less what was billed before for %(name)s: %(amount)s.", name=it["billed_before"], amount=_amount(it, money, to)
    ),
    "discounted_before": lambda it, money, to: to.say(
        "Of what comes back discounts had taken off %(amount)s.", amount=_amount(it, money, to)
    ),
    "no_quantity": _no_quantity,
    "included": _included,
    "fee": lambda it, money, to: to.say(
        "The fee of the tier%(tier)s: %(amount)s%(line)s.",
        tier=_tier(it, to), amount=_amount(it, money, to), line=_line(it, to),
    ),
    "packages": _packages,
    "share": _share,
    "minimum": _minimum,
    "spent": lambda it, money, to: to.say(
        "The other components come to %(money)s.", money=_money(it["spent"], money, to)
    ),
    "formula": _formula,
    "off": _off,
    "percent": _percent,
    "fixed": _fixed,
    "at_least": lambda it, money, to: to.say(
        "At least %(least)s: %(amount)s more.",
        least=f"{_written(it['at_least'], to)} {money}", amount=_amount(it, money, to),
    ),
    "at_most": lambda it, money, to: to.say(
        "At most %(most)s: %(amount)s.", most=f"{_written(it['at_most'], to)} {money}", amount=_amount(it, money, to)
    ),
    "per": _units,
}  # fmt: skip
"""Key of a step -> what it says, in a currency and a language; the first key that a step has decides."""
