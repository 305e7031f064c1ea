"""A change that an operator makes of a customer: what was written in its form, and the rules that all of them have."""

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from meterhouse_portal.operator_visit import OperatorVisit
from meterhouse_portal.stores import Rehearsed
from meterhouse_portal.visit import WrongField
from meterhouse_rating.periods import PeriodError, instant
from meterhouse_store import registry
from meterhouse_store.numbers import D
from meterhouse_store.registry import ALWAYS

MAX_FIELD: Final = 500
MAX_PRICE: Final = 10_000
"""So many characters of a field are taken, and of a price that is written out."""


@dataclass(frozen=True)
class Asked:
    """A change that is to be made: of whom, what was written, and who wrote it why."""

    visit: OperatorVisit
    customer_id: str
    form: Mapping[str, str]
    who: str
    why: str

    def text(self, name: str) -> str | None:
        """What was written there; None for nothing."""
        return self.form.get(name, "").strip() or None

    @property
    def zone(self) -> str:
        """The customer's time zone: the one that is written, or that it has."""
        found = registry.customer(self.visit.engine, self.visit.namespace, self.customer_id)
        return found.time_zone if found is not None else self.text("time_zone") or "UTC"

    def moment(self, name: str) -> datetime | None:
        """A day as the beginning of it in the customer's zone, or an instant. Raises WrongField."""
        said = self.text(name)
        if said is None:
            return None
        try:
            day = date.fromisoformat(said)
        except ValueError:
            try:
                return instant(said)
            except PeriodError as wrong:
                raise WrongField(name, str(wrong)) from None
        try:
            return datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(self.zone)).astimezone(UTC)
        except (ZoneInfoNotFoundError, ValueError, OSError, OverflowError):
            raise WrongField(
                name, f"{said} in {self.zone[:64]!r} is no day: write 2026-12-01, and a zone of IANA"
            ) from None

    def began(self) -> datetime:
        """The day, or instant, from which on it is to hold. Raises WrongField for nothing."""
        found = self.moment("valid_from")
        if found is None:
            raise WrongField("valid_from", "Say from which day on.")
        return found

    def number(self, name: str) -> Decimal | None:
        """A number that was written there; None for nothing. Raises WrongField."""
        said = self.text(name)
        # Not all that Decimal reads: a slip of 1e9 for 19 is a thousand million.
        if said is not None and not re.fullmatch(r"-?[0-9]{1,18}(\.[0-9]{1,18})?", said):
            raise WrongField(name, f"{said!r} is no number. Write digits and a point, such as 12.5.")
        return None if said is None else D(said)

    def needed(self, name: str, what: str) -> str:
        """What was written there. Raises WrongField for nothing."""
        said = self.text(name)
        if said is None:
            raise WrongField(name, f"Say {what}.")
        return said


@dataclass(frozen=True)
class Verb:
    """A change: how it is made, what its form has, and whether it is about what a customer pays.

    `more`: what the names of further fields begin with. `longest`: so many characters of a field are taken.
    """

    make: Callable[[Asked], str]
    fields: tuple[str, ...]
    pays: Callable[[Mapping[str, str]], bool] = lambda _: False
    more: str | None = None
    longest: int = MAX_FIELD

    def told(self, form: Mapping[str, str]) -> dict[str, str]:
        """What was written in its fields. Raises WrongField for more than is taken."""
        names = [*self.fields, *(it for it in sorted(form) if self.more is not None and it.startswith(self.more))]
        said = {name: form[name].strip() for name in names if form.get(name, "").strip()}
        for name, text in said.items():
            if len(text) > self.longest:
                raise WrongField(
                    name, f"{name.replace('_', ' ').capitalize()} has at most {self.longest:,} characters."
                )
        return said


def rehearse(verb: Verb, asked: Asked) -> None:
    """See whether the change could be made now, and make none. Raises what the change would be refused by."""
    visit = replace(asked.visit, stores=asked.visit.stores.rehearsing())
    with suppress(Rehearsed):
        verb.make(replace(asked, visit=visit))


def always(_form: Mapping[str, str]) -> bool:
    """Whatever was written, it is about what a customer pays."""
    return True


def since(moment: datetime | None, zone: str) -> str:
    """` from 2026-12-01 (Europe/Berlin) on`; empty for what holds from the beginning."""
    return "" if moment is None or moment == ALWAYS else f" from {there(moment, zone)} ({zone}) on"


def there(moment: datetime, zone: str) -> str:
    """The moment in the zone; without its time where that is the beginning of a day."""
    local = moment.astimezone(ZoneInfo(zone))
    return local.strftime("%Y-%m-%d" if local.strftime("%H:%M:%S") == "00:00:00" else "%Y-%m-%d %H:%M")
