"""All that a rating depends on, with a hash of everything that can change the result."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from meterhouse_rating.agreements import Agreement
from meterhouse_rating.book import Book, Plan
from meterhouse_rating.charges import Before, Setting
from meterhouse_rating.credits import Grant, TopUp, order
from meterhouse_rating.ids import digest
from meterhouse_rating.rated import RatedLine
from meterhouse_rating.rates import Rate
from meterhouse_rating.sorting import Measure, UsageRow
from meterhouse_store.numbers import plain


@dataclass(frozen=True)
class Inputs:
    """All that a rating depends on.

    `contract_id` names the agreement that put the customer on the plan, `plan` is the plan with the customer's add-ons
    and own prices in it, `overrides` names the latter by component. `declared` are the declared meters, `before` what
    was settled earlier per component, `credits` the customer's grants with what is left of them before this period,
    `top_up` the rule by which more are bought, `corrections` lines about closed periods that this rating bills. `rate`
    converts from the plan's currency to `currency`, where they differ.
    """

    contract_id: str
    currency: str
    book: Book
    version: int
    plan: Plan
    usage: tuple[UsageRow, ...]
    declared: frozenset[str]
    setting: Setting
    before: Mapping[str, Before] = field(default_factory=dict)
    credits: tuple[Grant, ...] = ()
    measures: tuple[Measure, ...] = ()
    agreement: Agreement = field(default_factory=Agreement)
    overrides: Mapping[str, str] = field(default_factory=dict)
    rate: Rate | None = None
    top_up: TopUp | None = None
    corrections: tuple[RatedLine, ...] = ()

    def sha256(self) -> str:
        """The hash of everything that can change the result."""
        return self._sha256

    @cached_property
    def _sha256(self) -> str:
        usage = [
            [
                *(row.meter, row.status, [list(d) for d in row.dimensions], row.events, plain(row.quantity)),
                *(row.task, row.trial, None if row.cost is None else row.cost.canonical()),
            ]
            for row in self.usage
        ]
        measures = [
            [it.measurement.metric.name, [list(d) for d in it.dimensions], it.events, plain(it.value)]
            for it in self.measures
        ]
        book = [self.book.sha256, self.version, self.plan.name]
        credits = [it.canonical() for it in order(self.credits)]
        top_up = None if self.top_up is None else list(vars(self.top_up).values())
        money = [self.currency, credits, top_up, {name: _before_json(it) for name, it in self.before.items()}]
        return digest(
            [
                self.contract_id,
                book,
                sorted(usage, key=digest),
                sorted(measures, key=digest),
                sorted(self.declared),
                money,
                _setting_json(self.setting),
                self.agreement.canonical(),
                *([] if not self.corrections else [[vars(it) for it in self.corrections]]),
            ]
        )


def _before_json(before: Before) -> dict[str, Any]:
    told: dict[str, Any] = {
        "charged": before.charged,
        "quantities": {name: plain(it) for name, it in before.quantities.items()},
        "cells": sorted([[name, [list(d) for d in key], plain(it)] for (name, key), it in before.cells.items()]),
        "events": dict(before.events),
        "billed": {name: plain(it) for name, it in before.billed.items()},
    }
    # Of a month that is rated as a whole they are the same.
    ahead = {name: plain(it) for name, it in before.billed_ahead.items()}
    told |= {} if ahead == told["billed"] else {"billed_ahead": ahead}
    off = {name: plain(it) for name, it in before.billed_off.items()}
    return told | {"billed_off": off} if off else told


def _setting_json(setting: Setting) -> list[Any]:
    earlier = {name: plain(it) for name, it in setting.earlier.items()}
    until = None if setting.until is None else setting.until.isoformat()
    discounted = {name: plain(it) for name, it in sorted(setting.discounted.items())}
    known: list[Any] = [
        str(setting.period),
        str(setting.month),
        setting.zone,
        setting.since.isoformat(),
        until,
        earlier,
    ]
    off = {name: plain(it) for name, it in sorted(setting.earlier_off.items())}
    later = setting.settled_until is not None and setting.settled_until > setting.period.end
    if discounted or off or later:
        known += [discounted, off, str(setting.settled_until)] if later else [discounted, off]
    left = {name: plain(it) for name, it in sorted(setting.discounted_left.items()) if it}
    return [*known, {"left": left}] if left else known
