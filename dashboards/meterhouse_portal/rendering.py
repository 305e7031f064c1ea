"""Templates: pages and e-mails in the operator's brand, with times in the customer's zone and grouped numbers."""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from importlib.resources import files
from typing import Any, Final
from zoneinfo import ZoneInfo

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape

from meterhouse_portal.wording import without_controls
from meterhouse_rating.layout import money, number
from meterhouse_store.brand import Brand
from meterhouse_store.currencies import MINOR_DIGITS
from meterhouse_store.numbers import plain
from meterhouse_store.reasons import sentence

_TOLD: Final = frozenset({"model", "title", "tax"})
"""Terms of a price that stand elsewhere on its row."""

_STATES: Final = {
    "open": "under way",
    "closed": "closed",
    "draft": "being prepared",
    "approved": "being prepared",
    "finalised": "to be paid",
    "paid": "paid",
    "failed": "payment failed",
    "void": "void",
}


class Rendering:
    """The templates, filled."""

    def __init__(self, brand: Brand) -> None:
        self.brand = brand
        self.logo = brand.logo_image()
        self._environment = Environment(
            loader=PackageLoader("meterhouse_portal"),
            autoescape=select_autoescape(("html",)),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=_clean,
        )
        self._environment.globals.update(brand=brand, has_logo=self.logo is not None, style_version=self._version())
        self._environment.globals["terms"] = terms
        self._environment.filters.update(
            local=local, day=day, month=month_name, money=_money, amount=money, number=number, state=_state,
            price=price, breakable=_breakable, shortened=_shortened, reason=sentence,
        )  # fmt: skip

    def page(self, template: str, **values: Any) -> str:
        """A whole page."""
        visit = values.get("visit")
        values.setdefault("visitor", None if visit is None else visit.visitor)
        values.setdefault("visit", None)
        return self._environment.get_template(template).render(**values)

    def text(self, template: str, **values: Any) -> str:
        """An e-mail's text or HTML."""
        return self._environment.get_template(template).render(**values)

    def style(self) -> str:
        """The style sheet, with the brand's colour in it."""
        own = f":root {{ --brand: {self.brand.colour}; --on-brand: {self.brand.on_colour}; }}\n"  # both are #rrggbb
        return own + (files("meterhouse_portal") / "account.css").read_text(encoding="utf-8")

    def _version(self) -> str:
        return hashlib.sha256(self.style().encode()).hexdigest()[:12]


def local(moment: datetime, zone: str, seconds: bool = False) -> Markup:
    """The moment in the zone, labelled with it, as an element that machines can read."""
    there = moment.astimezone(ZoneInfo(zone))
    shown = there.strftime("%Y-%m-%d %H:%M:%S" if seconds else "%Y-%m-%d %H:%M")
    machine = moment.astimezone(UTC).isoformat(timespec="seconds")
    return Markup('<time datetime="{}">{} {}</time>').format(machine, shown, there.tzname() or zone)


def day(moment: datetime, zone: str) -> str:
    """The day in the zone."""
    return moment.astimezone(ZoneInfo(zone)).strftime("%Y-%m-%d")


def month_name(moment: datetime, zone: str) -> str:
    """November 2026."""
    return moment.astimezone(ZoneInfo(zone)).strftime("%B %Y")


def _money(amount_minor: int, currency: str) -> str:
    return f"{money(amount_minor, currency)} {currency}"


def price(amount: Decimal, currency: str, is_average: bool) -> str:
    """What a use costs: exactly, with all digits that it has, or an average with four digits that say something."""
    digits = MINOR_DIGITS.get(currency, 2)
    if is_average and amount:
        digits = max(digits, 3 - amount.adjusted())
    elif not is_average:
        digits = max(digits, len(plain(amount).partition(".")[2]))
    shown = amount.quantize(Decimal(1).scaleb(-digits), rounding="ROUND_HALF_UP")
    return f"{'≈ ' if is_average else ''}{shown:,f} {currency}"


def _shortened(value: Decimal) -> str:
    """At most two decimals, rounded half up: for amounts beside a bar."""
    return number(value.quantize(Decimal("0.01"), rounding="ROUND_HALF_UP"))


def terms(written: Mapping[str, Any]) -> str:
    """The terms of a price as the book has them, in words: `price 2.00, per 1000, metric input tokens`."""
    return ", ".join(f"{name.replace('_', ' ')} {_said(value)}" for name, value in written.items() if name not in _TOLD)


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name.replace('_', ' ')} {_said(part)}" for name, part in value.items())
    if isinstance(value, list):
        return "; ".join(_said(part) for part in value)
    return str(value).replace("_", " ")


def _state(state: str | None) -> str:
    return "" if state is None else _STATES.get(state, state)


def _breakable(name: str) -> Markup:
    return Markup(escape(name).replace(".", Markup(".<wbr>")))


def _clean(value: Any) -> Any:
    """Ids come from outside and may hold any character; HTML may hold no control character but white space."""
    if isinstance(value, Markup):
        return value
    if isinstance(value, Decimal):
        return number(value)
    return without_controls(value) if isinstance(value, str) else value
