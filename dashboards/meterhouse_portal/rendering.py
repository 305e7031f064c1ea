"""Templates: pages and e-mails in the operator's brand, in one language, with times in the customer's zone."""

import hashlib
from datetime import UTC, datetime
from decimal import Decimal
from importlib.resources import files
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape

from meterhouse_portal.addresses import is_safe
from meterhouse_portal.wording import without_controls
from meterhouse_rating.layout import unit_in
from meterhouse_store.brand import Brand
from meterhouse_store.currencies import MINOR_DIGITS
from meterhouse_store.language import LANGUAGES, Language
from meterhouse_store.numbers import plain
from meterhouse_store.reasons import sentence

STATES: Final = {
    "open": "under way",
    "closed": "closed",
    "draft": "being prepared",
    "in review": "being prepared",
    "approved": "being prepared",
    "finalised": "to be paid",
    "paid": "paid",
    "failed": "payment failed",
    "void": "void",
}

PAID: Final = {
    "payment": "paid",
    "credit_granted": "credits bought",
    "refund": "paid back",
    "credit_refunded": "paid back",
    "dispute": "taken back by the bank",
    "credit_disputed": "taken back by the bank",
    "dispute_won": "came again",
    "credit_reinstated": "came again",
    "adjustment": "adjusted",
}
"""What a customer's money is called by what moved it."""


class Rendering:
    """The templates, filled, in one language."""

    def __init__(self, brand: Brand, language: Language | None = None) -> None:
        self.brand = brand
        self.language = Language(brand.language) if language is None else language
        self.logo = brand.logo_image()
        self._environment = Environment(
            loader=PackageLoader("meterhouse_portal"),
            extensions=["jinja2.ext.i18n"],
            autoescape=select_autoescape(("html",)),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=self._clean,
        )
        # The extension adds this method to the environment.
        self._environment.install_gettext_callables(  # type: ignore[attr-defined]
            self.language.translated, self.language.plural, newstyle=True
        )
        self._environment.globals.update(
            brand=brand, has_logo=self.logo is not None, style_version=self._version(), language=self.language,
            languages=list(LANGUAGES.items()),
        )  # fmt: skip
        self._environment.filters.update(
            local=self.local, day=self.language.day, month=self.language.month, money=self.money, amount=self.amount,
            number=self.language.number, state=self._state, paid=self._paid, price=self.price, breakable=_breakable,
            shortened=self._shortened, reason=sentence,
            said=self.language.translated, is_safe=is_safe, unit=self._unit,
        )  # fmt: skip

    def in_language(self, code: str) -> "Rendering":
        """The same in another language; in the brand's own with the formats that it has."""
        if code == self.language.code:
            return self
        own = Language(self.brand.language)
        return Rendering(self.brand, own if code == own.code else Language(code))

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

    # ---- filters ----------------------------------------------------------------------------------------------------

    def local(self, moment: datetime, zone: str, seconds: bool = False) -> Markup:
        """The moment in the zone, labelled with it, as an element that machines can read."""
        machine = moment.astimezone(UTC).isoformat(timespec="seconds")
        shown = self.language.time(moment, zone, seconds=seconds)
        return Markup('<time datetime="{}">{}</time>').format(machine, shown)

    def amount(self, amount_minor: int, currency: str) -> str:
        """123456 of USD is `1,234.56`."""
        digits = MINOR_DIGITS.get(currency, 2)
        return self.language.fixed(Decimal(amount_minor).scaleb(-digits), digits)

    def money(self, amount_minor: int, currency: str) -> str:
        """123456 of USD is `1,234.56 USD`."""
        return f"{self.amount(amount_minor, currency)} {currency}"

    def price(self, amount: Decimal, currency: str, is_average: bool) -> str:
        """What a use costs: exactly, with all digits that it has, or an average with four digits that say something."""
        digits = MINOR_DIGITS.get(currency, 2)
        if is_average and amount:
            digits = max(digits, 3 - amount.adjusted())
        elif not is_average:
            digits = max(digits, len(plain(amount).partition(".")[2]))
        shown = amount.quantize(Decimal(1).scaleb(-digits), rounding="ROUND_HALF_UP")
        return f"{'≈ ' if is_average else ''}{self.language.fixed(shown, digits)} {currency}"

    def _shortened(self, value: Decimal) -> str:
        """Rounded half up: for amounts beside a bar."""
        return self.language.number(value.quantize(Decimal("0.01"), rounding="ROUND_HALF_UP"))

    def _unit(self, name: str, quantity: Decimal) -> str:
        return unit_in(self.language, name, quantity)

    def _paid(self, kind: str) -> str:
        return self.language.translated(PAID.get(kind, kind))

    def _state(self, state: str | None) -> str:
        return "" if state is None else self.language.translated(STATES.get(state, state))

    def _clean(self, value: Any) -> Any:
        """Ids come from outside and may hold any character; HTML may hold no control character but white space."""
        if isinstance(value, Markup):
            return value
        if isinstance(value, Decimal):
            return self.language.number(value)
        return without_controls(value) if isinstance(value, str) else value


def _breakable(name: str) -> Markup:
    return Markup(escape(name).replace(".", Markup(".<wbr>")))
