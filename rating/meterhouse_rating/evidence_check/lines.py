"""Checks the lines of a rating: quantities against the events, amounts against the price book, the total."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from fractions import Fraction
from typing import Any, Final

from . import amounts, caps, late, money
from .amounts import Carried, twelve_digits
from .costs import amount_of
from .credits import Grant, burnt, made_by
from .dates import days, instant, moment, share_of
from .findings import Findings, number, sha256, shown, whole
from .prices import Part, Prices
from .usage import BY_CHOICE, Counted, Group, Key, count, inputs_of

BOOK: Final = "amounts of lines, from the text of the price book"
ROUNDED: Final = "roundings to the minor unit"
QUANTITIES: Final = "quantities of lines, from the events"
DISCOUNTS: Final = "discounts, from the agreement and the lines"
CAPS: Final = "what is above caps, from the events and the lines"
CREDITS: Final = "use of credits, from the balance and the lines"
_IN_PARTS: Final = "minimums and percentages of fees in a month that was rated in parts"
_GIVE_BACK: Final = ("usage", "flat", "minimum")


def check_rating(
    rating: Mapping[str, Any],
    prices: Prices | str,
    groups: list[Group],
    earlier: Sequence[Mapping[str, Any]],
    findings: Findings,
    grants: Sequence[Grant] | None = None,
    bound: Collection[str] = (),
) -> None:
    """All that can be said of one rating. `prices` may be why the book cannot be read; `earlier`: ratings before it;
    `grants`: the customer's credits before it, where the ledger says; `bound`: those whose rules it proves.
    """
    what = f"rating {rating['period_start'][:10]}"
    if isinstance(prices, str):
        findings.carry(f"amounts: {prices}", len(rating["lines"]))
        counted: dict[Key, Counted] = {}
    else:
        counted, free = count(prices, groups, rating["left"])
        _check_free(rating, free, findings)
    _conservation(rating, groups, findings)
    for it in rating["left"]:
        if it["reason"] not in BY_CHOICE:
            findings.carry(f"events on no line, because of {it['reason']}", whole(it["events"]))
    bill = _Bill(rating, prices, groups, earlier, findings, counted, grants, bound)
    for line in rating["lines"]:
        name = f"line {line['line_id'][:10]} ({line['description']})"
        findings.equal(f"{name}: its currency", line["currency"], rating["currency"])
        bill.check(line)
    if not isinstance(prices, str):
        bill.check_missing()
    late.check(rating, earlier, findings)
    total = sum(whole(line["amount_minor"]) for line in rating["lines"])
    if findings.equal(f"the total of {what}", whole(rating["total_minor"]), total):
        findings.done("totals as the sum of their lines")


def check_line(
    rating: Mapping[str, Any],
    prices: Prices | str,
    groups: list[Group],
    earlier: Sequence[Mapping[str, Any]],
    line_id: str,
) -> tuple[Findings, Counted | None]:
    """What can be said of one line of a rating, and the events on it; None of a line that no events are on."""
    counted = {} if isinstance(prices, str) else count(prices, groups, rating["left"])[0]
    bill = _Bill(rating, prices, groups, earlier, Findings(), counted)
    for line in rating["lines"]:
        # The lines above it are needed for discounts, minimums and credits; what is said of them is not.
        bill.findings = Findings()
        bill.check(line)
        if line["line_id"] == line_id:
            if isinstance(prices, str):
                bill.findings.carry(f"the amount: {prices}")
            return bill.findings, counted.get(bill.key(line))
    raise KeyError(line_id)


def _check_free(rating: Mapping[str, Any], free: Mapping[str, Fraction], findings: Findings) -> None:
    said: dict[str, Fraction] = {}
    for it in rating["left"]:
        if it["reason"] in BY_CHOICE:
            key = f"{it['meter']} {it['reason']}"
            said[key] = said.get(key, Fraction(0)) + number(it["quantity"])
    for key in sorted({*said, *free}):
        findings.equal(f"usage that is free ({key})", said.get(key, Fraction(0)), free.get(key, Fraction(0)))


def _conservation(rating: Mapping[str, Any], groups: list[Group], findings: Findings) -> None:
    """Per meter: what the events come to is on lines or left over."""
    used: dict[str, Fraction] = {}
    for group in groups:
        used[group.meter] = used.get(group.meter, Fraction(0)) + group.quantity
    said: dict[str, Fraction] = {}
    for line in rating["lines"]:
        for meter, quantity in line["explanation"].get("meters", {}).items():
            said[meter] = said.get(meter, Fraction(0)) + number(quantity)
    for it in rating["left"]:
        said[it["meter"]] = said.get(it["meter"], Fraction(0)) + number(it["quantity"])
    for meter in sorted({*used, *said}):
        what = f"{meter} on lines and left over"
        if findings.equal(what, said.get(meter, Fraction(0)), used.get(meter, Fraction(0))):
            findings.done("meters whose events add up to lines and what is left over")


@dataclass
class _Bill:
    """The lines up to the one at hand; `left` is what discounts left of each, `parts` what components come to."""

    rating: Mapping[str, Any]
    prices: Prices | str
    groups: list[Group]
    earlier: Sequence[Mapping[str, Any]]
    findings: Findings
    counted: dict[Key, Counted]
    grants: Sequence[Grant] | None = None
    bound: Collection[str] = ()
    lines: list[Mapping[str, Any]] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    parts: dict[str, Fraction] = field(default_factory=dict)
    seen: set[Key] = field(default_factory=set)
    above: dict[str, caps.Above] = field(init=False, default_factory=dict)
    """What is not billed because of caps, in minor units, by the name of the discount; `uncapped`: why nobody knows."""
    uncapped: str | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if isinstance(self.prices, str):
            return
        if "caps" not in self.rating:
            self.uncapped = "what is above caps, in packs that do not say which caps hold"
            return
        self._check_earlier()
        try:
            self.above = {it.name: it for it in caps.above(self.prices, self.groups, self.rating)}
        except Carried as why:
            self.uncapped = f"{why}"

    def _check_earlier(self) -> None:
        """What the month's other parts used of caps: of ratings in the pack, or carried."""
        rating, told = self.rating, self.rating["caps"].get("earlier")
        if told is None or not rating["caps"]["held"]:
            return
        closed_at = rating["closed_at"]
        found = [
            it
            for it in self.earlier
            if it["month"] == rating["month"]
            and (closed_at is None or (it["closed_at"] is not None and it["closed_at"] <= closed_at))
        ]
        known = {it["rating_id"] for it in found}
        if not known <= set(told["ratings"]):
            self.findings.wrong("an earlier part of the month is not among those that used of caps")
        elif known < set(told["ratings"]):
            self.findings.carry("what other parts of the month used of caps: they are not before it in the pack")
            return
        lines = self._lines_of(found, "usage")
        meters: dict[str, Fraction] = {}
        for line in lines:
            for meter, quantity in line["explanation"]["meters"].items():
                meters[meter] = meters.get(meter, Fraction(0)) + number(quantity)
        money_used = sum(whole(it["amount_minor"]) for it in lines if it["currency"] == rating["currency"])
        if "elsewhere" in told:
            self.findings.carry("corrections of other parts of the month on credit notes or ratings of other months")
            money_used += whole(told["elsewhere"]["minor"])
            for meter, quantity in told["elsewhere"]["meters"].items():
                meters[meter] = meters.get(meter, Fraction(0)) + number(quantity)
        off: dict[str, int] = {}
        for line in self._lines_of(found, "discount"):
            if budget := line["explanation"].get("budget"):
                off[budget] = off.get(budget, 0) - whole(line["amount_minor"])
        for budget, minor in told.get("elsewhere", {}).get("off", {}).items():
            off[budget] = off.get(budget, 0) + whole(minor)
        claimed_off = {name: whole(it) for name, it in told.get("off", {}).items()}
        claimed = {meter: number(it) for meter, it in told["meters"].items()}, whole(told["minor"]), claimed_off
        used = meters, money_used, off
        if self.findings.equal("what earlier parts of the month used of caps", claimed, used) and found:
            self.findings.done("what earlier parts of the month used of caps, from their lines", len(found))

    def check(self, line: Mapping[str, Any]) -> None:
        """Check one line; those before it are checked already."""
        name = f"line {line['line_id'][:10]} ({line['description']})"
        exact, amount = number(line["amount_exact"]), whole(line["amount_minor"])
        try:
            match line["kind"]:
                case "discount":
                    self._discount(name, line)
                case "credit_applied":
                    self._credits(name, line)
                case "correction" | "credit_restored":
                    self._correction(name, line)
                case _:
                    self._charge(name, line, exact, amount)
        except Carried as why:
            self.findings.carry(f"{why}")
        self.lines.append(line)
        self.left.append(0 if line["kind"] in ("discount", "credit_applied") else amount)

    def key(self, line: Mapping[str, Any]) -> Key:
        """The line's name among what was counted; it stands for nothing where no events are on it."""
        part = None if isinstance(self.prices, str) else self.prices.parts.get(line["component"])
        by = part.by if part is not None and line["kind"] == "usage" else []
        return line["component"], str(line["metric"]), tuple((name, line["dimensions"].get(name, "")) for name in by)

    def check_missing(self) -> None:
        """Lines that the events and the book ask for, and that are not there."""
        assert not isinstance(self.prices, str)
        given_up = {it["meter"] for it in self.rating["left"] if it["reason"] not in BY_CHOICE}
        for key, counted in self.counted.items():
            if key not in self.seen and not given_up.intersection(counted.meters):
                self.findings.wrong(f"the events of {key[0]} ({key[1]}) are priced by the book and on no line")
        self._end_caps()

    def _end_caps(self) -> None:
        """All lines of caps are there: one that has none had nothing left to take off."""
        missing, self.above = list(self.above.values()), {}
        for cap in missing:
            currency = self.rating["currency"]
            if self._open(cap.components, -1 if cap.minor < 0 else 1):
                told = f"{money.show(cap.minor, currency)} {currency}"
                self.findings.wrong(f"{told} are above a cap, and no line takes them off")

    def _open(self, components: Collection[str], sign: int) -> list[int]:
        """What is left of each line, of that sign, as far as it is of these components (none: all of them)."""
        found = [
            left if left * sign > 0 and (not components or it["component"] in components) else 0
            for it, left in zip(self.lines, self.left, strict=True)
        ]
        return found if any(found) else []

    def _whole(self, components: Collection[str]) -> list[int]:
        """The same, less than nothing of what usage, fees and minimums give back; a fee in advance gives back what was
        paid for it.
        """
        return [
            0
            if (components and it["component"] not in components)
            else left
            if it["kind"] in _GIVE_BACK and "service" not in it["explanation"]
            else max(0, left)
            for it, left in zip(self.lines, self.left, strict=True)
        ]

    def _charge(self, name: str, line: Mapping[str, Any], exact: Fraction, amount: int) -> None:
        explanation, currency = line["explanation"], self.rating["currency"]
        steps = sum((number(it.get("amount", "0")) for it in explanation["steps"]), Fraction(0))
        conversion = explanation.get("conversion")
        in_plan = exact if conversion is None else number(conversion["amount"])
        self.findings.equal(f"{name}: the sum of its arithmetic", in_plan, steps)
        self.findings.equal(f"{name}: the explained amount", explanation["amount"], money.show(amount, currency))
        if "price" not in explanation:
            # A top-up is bought by a rule of the customer, not by the book.
            if self.findings.equal(f"{name}: its rounded amount", amount, money.minor(exact, currency, "half_even")):
                self.findings.done(ROUNDED)
            raise Carried("top-ups of credits: bought by a rule of the customer")
        if isinstance(self.prices, str):
            return
        if conversion is not None:
            rate = self.prices.rate(conversion["currency"], currency, whole(conversion["line"]))
            self.findings.equal(f"{name}: the conversion rate of the book", number(conversion["rate"]), rate)
            self.findings.equal(f"{name}: its converted amount", exact, in_plan * (rate or 0))
        if self.findings.equal(
            f"{name}: its rounded amount", amount, money.minor(exact, currency, self.prices.rounding)
        ):
            self.findings.done(ROUNDED)
        part = self.prices.parts.get(line["component"])
        if part is None:
            self.findings.wrong(f"{name}: the price book has no component {line['component']} for this customer")
            return
        priced_in = currency if conversion is None else conversion["currency"]
        self.findings.equal(f"{name}: the currency of its price", priced_in, part.currency)
        at = whole(explanation["price"]["line"])
        if not part.line <= at <= part.node.last_line():
            self.findings.wrong(f"{name}: its price does not stand on line {at} of the book")
        plan_minor = money.minor(in_plan, part.currency, self.prices.rounding)
        try:
            expected = self._usage(name, line, part) if line["metric"] else self._fee(name, line, part)
            if self.findings.equal(f"{name}: its amount by the price book", in_plan, expected):
                self.findings.done(BOOK)
        finally:
            now = money.major(plan_minor, part.currency)
            self.parts[part.name] = self.parts.get(part.name, Fraction(0)) + now

    def _usage(self, name: str, line: Mapping[str, Any], part: Part) -> Fraction:
        assert not isinstance(self.prices, str)
        metric, key = line["metric"], self.key(line)
        dimensions = dict(key[2])
        counted = self.counted.get(key, Counted(None if self.prices.measured(metric) else Fraction(0), 0))
        if key in self.seen:
            self.findings.wrong(f"{name} is there twice")
        self.seen.add(key)
        start, quantity = self._start(line), number(line["quantity"])
        each = self.prices.each(part)
        capped = part.model == "included" and part.node.text("beyond") == "none"
        if counted.quantity is None:
            self.findings.carry(f"quantities that are {self.prices.aggregate(metric)}, where a trial is in the period")
        else:
            room = max(Fraction(0), part.amount("included") * each - start) if capped else counted.quantity
            what = f"{name}: its quantity, from the events"
            if self.findings.equal(what, quantity, min(counted.quantity, room)):
                self.findings.done(QUANTITIES)
        if not capped:
            said = {meter: number(it) for meter, it in line["explanation"]["meters"].items()}
            for meter in sorted({*said, *counted.meters}):
                what = f"{name}: its {meter}, from the events"
                self.findings.equal(what, said.get(meter, Fraction(0)), counted.meters.get(meter, Fraction(0)))
        caps.check_whole(part, line)
        if part.model == "formula":
            return amounts.formula(part.node.text("amount"), inputs_of(self.prices, part, self.groups))
        if part.marks_up_costs:
            cost = amount_of(counted.asked, self.prices.rates_to(part.currency, line["explanation"]["steps"]))
            self.findings.done("what providers asked, from the events and the dated costs in the pack")
            return cost * (100 + part.amount("markup")) / 100 + quantity * part.amount("fee") / part.amount("per", "1")
        return amounts.usage_amount(part, metric, dimensions, quantity, start, counted.events, each)

    def _start(self, line: Mapping[str, Any]) -> Fraction:
        """How much of the month is on earlier lines: of ratings in the pack, or carried."""
        said = caps.went_on_from(line)
        if not said:
            return said
        key = (line["component"], line["metric"], line["dimensions"])
        known = [
            number(it["quantity"])
            for it in self._earlier_lines("usage")
            if (it["component"], it["metric"], it["dimensions"]) == key
        ]
        if not known or sum(known) != said:
            self.findings.carry("where tiers and included usage went on from: an earlier rating of the month")
        return said

    def _fee(self, name: str, line: Mapping[str, Any], part: Part) -> Fraction:
        """A fee: flat, recurring, a minimum, a percentage of other components, or a pack of credits."""
        steps, number_of = line["explanation"]["steps"], max(part.times, Fraction(1))
        match part.model:
            case "flat":
                return part.amount("price") * number_of
            case "credit_pack":
                worth = number(line["explanation"]["credits"])
                if line["explanation"].get("conversion") is None:
                    self.findings.equal(
                        f"{name}: the credits that it grants", worth, part.amount("credits") * part.times
                    )
                self._packed(name, line, part)
                return part.amount("price") * part.times
            case "recurring":
                return self._recurring(name, steps, part)
            case "minimum":
                if any("billed_before" in it for it in steps):
                    raise Carried(_IN_PARTS)
                share = share_of(steps[0].get("share", "1/1"))
                return twelve_digits(part.amount("amount") * share) - self._spent(part)
            case "percentage":
                caps.check_whole(part, line)
                base = self._spent(part)
                return amounts.percentage(part, base, 1 if base else 0)
        raise Carried(f"fees of the model {part.model}")

    def _packed(self, name: str, line: Mapping[str, Any], part: Part) -> None:
        """The rules of the grants of a pack: by the book, from the period's start on."""
        since = moment(self.rating["period_start"])
        days_of = part.node.text("expires_days")
        until = None if not days_of else (since + timedelta(days=int(days_of))).isoformat()
        contract = line["explanation"]["price"]["contract"]
        for it in line["explanation"]["grants"]:
            told = [it["grant"], it["granted_at"], it["expires_at"], it["priority"]]
            named = sha256(["grant", contract, line["component"], since.isoformat(), it["kind"]])
            rules = [named, since.isoformat(), until, int(part.amount("priority"))]
            self.findings.equal(f"{name}: the rules of its credits", told, rules)

    def _spent(self, part: Part) -> Fraction:
        """What the components that it is of come to, in the plan's currency, after discounts."""
        if self.rating["period_start"] != self.rating["month"]:
            raise Carried(_IN_PARTS)
        prefix = f"{part.addon}." if part.addon else ""
        of = {f"{prefix}{name}" for name in part.node.texts("of")}
        return sum((amount for name, amount in self.parts.items() if not of or name in of), Fraction(0))

    def _recurring(self, name: str, steps: list[Mapping[str, Any]], part: Part) -> Fraction:
        assert not isinstance(self.prices, str)
        said = part.node.text("quantity", "1")
        fixed = said.replace("_", "").replace(".", "").isdigit()
        if part.addon and fixed:
            fixed, said = False, part.addon  # so many as there are of the add-on
        reached, result = Fraction(0), Fraction(0)
        for step in steps:
            if "billed_before" in step:
                self.findings.carry("fees billed in advance, that are taken off")
                result += number(step["amount"])
            if "discounted_before" in step:
                result += number(step["amount"])
            if "share" not in step:
                continue
            quantity = number(step["quantity"])
            self.findings.equal(f"{name}: the price in the book", number(step["price"]), part.amount("price"))
            moment = instant(step["from"])
            known = number(said.replace("_", "")) if fixed else self.prices.quantity_at(said, moment, before=False)
            if part.node.text("prorate", "day") == "none":
                known = known if fixed else quantity
            self.findings.equal(f"{name}: how many there were from {step['from']}", quantity, known)
            share, told = share_of(step["share"]), step["share"]
            if told.endswith("days"):
                used = days(step["from"], step["to"], self.rating["zone"])
                self.findings.equal(
                    f"{name}: the days of {step['from']}..{step['to']}", told.partition("/")[0], str(used)
                )
            reached += part.amount("price") * quantity * share
            result += twelve_digits(reached) - twelve_digits(reached - part.amount("price") * quantity * share)
        return result

    def _discount(self, name: str, line: Mapping[str, Any]) -> None:
        currency, amount = self.rating["currency"], whole(line["amount_minor"])
        said = next((it for it in self.rating["discounts"] if it["id"] == line["explanation"]["discount"]), None)
        if said is None:
            self.findings.wrong(f"{name}: the agreement that it names is not in the pack")
            return
        if isinstance(self.prices, str):
            return
        if "cap" in said:
            self._cap(name, line, said)
        else:
            self._end_caps()
        base = self._whole(said["components"])
        if said["percent"] is not None:
            percent = number(said["percent"])
            exact = money.major(sum(base), currency) * percent / 100
        else:
            percent = None
            exact = number(said["amount"]) - self._taken_earlier(line)
        off = money.minor(exact, currency, self.prices.rounding)
        off = self._off_or_back(line, said, off, sum(base)) if percent is None else min(max(0, sum(base)), off)
        if self.findings.equal(f"{name}: what it takes off", amount, -off):
            self.findings.done(DISCOUNTS)
        if not any(base):
            return
        for at, share in enumerate(money.share_out(off, base, currency, percent)):
            self.left[at] -= share
            component = self.lines[at]["component"]
            if share and component in self.parts:
                conversion = self.lines[at]["explanation"].get("conversion")
                taken = money.major(share, currency)
                self.parts[component] -= (
                    taken if conversion is None else twelve_digits(taken / number(conversion["rate"]))
                )

    def _off_or_back(self, line: Mapping[str, Any], said: Mapping[str, Any], room: int, whole_now: int) -> int:
        """What an amount is off lines that come to so much: of the month's, less what it was off earlier parts."""
        currency, told = self.rating["currency"], line["explanation"]
        earlier, left = (
            money.minor(number(told.get(it, "0")), currency, "half_even")
            for it in ("earlier_this_month", "earlier_left")
        )
        if "earlier_this_month" in told:
            known = self._left_earlier(said)
            if known is None:
                self.findings.carry("what discounts of so much a month left of other parts of the month")
            else:
                self.findings.equal(f"what {said['name']} left of earlier parts of the month", left, known)
        wanted = min(room, max(-earlier, left + whole_now))
        return max(min(wanted, max(0, whole_now)), min(0, whole_now))

    def _left_earlier(self, said: Mapping[str, Any]) -> int | None:
        """What a discount of so much left of earlier parts of the month; None where their lines alone do not say it."""
        told = self.rating["caps"].get("earlier", {"ratings": None})
        found = [it for it in self.earlier if it["rating_id"] in (told["ratings"] or ())]
        if told["ratings"] is None or len(found) < len(told["ratings"]) or "elsewhere" in told:
            return None
        if any(line["kind"] == "correction" for it in (*found, self.rating) for line in it["lines"]):
            return None
        left = 0
        for it in found:
            of = {one["id"]: set(one["components"]) for one in it.get("discounts", ())}
            names = [line["explanation"].get("discount") for line in it["lines"]]
            if said["id"] not in names or said["id"] not in of:
                return None
            for line in it["lines"][: names.index(said["id"]) + 1]:
                if line["kind"] == "discount":
                    covered = of[line["explanation"]["discount"]]
                    if said["components"] and not (covered and covered <= set(said["components"])):
                        return None
                    left += whole(line["amount_minor"])
                elif not said["components"] or line["component"] in said["components"]:
                    gives_back = line["kind"] in _GIVE_BACK and "service" not in line["explanation"]
                    left += whole(line["amount_minor"]) if gives_back else max(0, whole(line["amount_minor"]))
        return max(0, left)

    def _earlier_lines(self, kind: str) -> list[Mapping[str, Any]]:
        """The lines of a kind of earlier ratings of the month, as far as the pack has them."""
        return self._lines_of([it for it in self.earlier if it["month"] == self.rating["month"]], kind)

    def _lines_of(self, ratings: Sequence[Mapping[str, Any]], kind: str) -> list[Mapping[str, Any]]:
        """The lines of a kind of these ratings, and what corrections on them, and on this one, change of them."""
        names = {it["rating_id"] for it in ratings}
        found = [line for it in ratings for line in it["lines"] if line["kind"] == kind]
        for line in (line for it in (*ratings, self.rating) for line in it["lines"] if line["kind"] == "correction"):
            corrects = line["explanation"]["corrects"]
            if "settles" in line["explanation"] and corrects["rating"] in names and corrects["kind"] == kind:
                told = {"meters": line["explanation"]["corrected_meters"]}
                told |= {"discount": line["dimensions"].get("discount"), "budget": corrects.get("budget")}
                found.append({**line, "explanation": told})
        return found

    def _taken_earlier(self, line: Mapping[str, Any]) -> Fraction:
        """What of an amount a month earlier ratings of the month took off: as the pack has them, or carried."""
        said = number(line["explanation"].get("earlier_this_month", "0"))
        known = [
            whole(it["amount_minor"])
            for it in self._earlier_lines("discount")
            if it["explanation"]["discount"] == line["explanation"]["discount"]
        ]
        if said != -money.major(sum(known), self.rating["currency"]):
            self.findings.carry("what discounts of so much a month took off in other parts of the month")
        return said

    def _cap(self, name: str, line: Mapping[str, Any], said: Mapping[str, Any]) -> None:
        """What is above a cap: the cap is bound to the ledger by the name of the line, which the ledger seals."""
        cap, rating, currency = said["cap"], self.rating, self.rating["currency"]
        told = ["cap", cap["name"], cap["of"], cap["limit"], cap["period_start"], *said["components"]]
        known = self.findings.equal(f"{name}: the name of its cap", said["id"], sha256(told))
        identity = ["line", rating["rating_id"], "discount", "discounts", None, [["discount", said["id"]]]]
        if self.findings.equal(f"{name}: the name of the line", line["line_id"], sha256(identity)) and known:
            self.findings.done("caps, by the names of their lines that the ledger seals")
        over = self.above.pop(said["id"]).minor if said["id"] in self.above else 0
        if self.uncapped is not None:
            self.findings.carry(self.uncapped)
        elif self.findings.equal(f"{name}: what is above the cap", number(said["amount"]), money.major(over, currency)):
            self.findings.done(CAPS)

    def _credits(self, name: str, line: Mapping[str, Any]) -> None:
        explanation, currency, amount = line["explanation"], self.rating["currency"], whole(line["amount_minor"])
        payable = [
            left if it["kind"] == "usage" else late.payable(it, currency) if it["kind"] == "correction" else 0
            for it, left in zip(self.lines, self.left, strict=True)
        ]
        before, after = number(explanation["balance_before"]), number(explanation["balance_after"])
        spent, open_amount = -money.major(amount, currency), sum(it for it in payable if it > 0)
        if self.findings.equal(f"{name}: what credits pay", spent, min(before, money.major(open_amount, currency))):
            self.findings.done(CREDITS)
        self.findings.equal(f"{name}: the credits that are left", after, before - spent)
        for key, told in (
            ("what it pays of each line", [it["amount"] for it in explanation["steps"]]),
            ("what it takes of each grant", list(explanation["used"].values())),
        ):
            self.findings.equal(f"{name}: {key}, in sum", spent, sum(map(number, told), Fraction(0)))
        if self.grants is None:
            self.findings.carry("balances of credits before the period, of ratings that the ledger does not have yet")
            return

        def minor(text: str) -> int:
            return int(number(text) * 10 ** money.digits(currency))

        made = [it for line in self.lines for it in made_by(line, minor)]
        balance, used = burnt([*self.grants, *made], payable, self.rating["period_end"])
        said = {name: minor(it) for name, it in explanation["used"].items()}
        both = self.findings.equal(f"{name}: the credits before it", before, money.major(balance, currency))
        if self.findings.equal(f"{name}: what it takes of each grant, in their order", said, used) and both:
            self.findings.done("balances of credits before a rating, from the ledger")
            if all(it.name in self.bound for it in self.grants):
                self.findings.done("rules of grants of credits: when they hold, and their order")
            else:
                self.findings.carry("when older grants of credits and packs of earlier periods hold, and their order")

    def _correction(self, name: str, line: Mapping[str, Any]) -> None:
        exact, amount = number(line["amount_exact"]), whole(line["amount_minor"])
        steps = sum((number(it["amount"]) for it in line["explanation"]["steps"]), Fraction(0))
        currency = self.rating["currency"]
        self.findings.equal(f"{name}: the sum of its arithmetic", exact, steps)
        late.check_now(name, line, self.findings)
        # Both sides were rounded by themselves, so that a correction may be a unit off its exact amount.
        if abs(money.major(amount, currency) - exact) >= 2 * money.major(money.unit(currency), currency):
            self.findings.wrong(f"{name}: {money.show(amount, currency)} is not {shown(exact)} {currency}, rounded")
        self.findings.carry(
            "corrections of closed periods: their arithmetic is checked, their events are in those periods"
        )
