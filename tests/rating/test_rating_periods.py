"""Periods: calendar months of the customer's time zone, half-open, and what is left beside closed ones."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from rating_samples import at

from meterhouse_rating.periods import Period, PeriodError, months, parse, without


def test_a_month_is_cut_at_midnight_of_the_customers_time_zone():
    # Berlin is UTC+2 on the first of October and UTC+1 on the first of November.
    period = parse("2026-10", "Europe/Berlin")
    assert period == Period(at("2026-09-30T22:00:00"), at("2026-10-31T23:00:00"))
    assert period.end - period.start == timedelta(days=31, hours=1)


def test_a_month_with_the_clock_set_forward_is_an_hour_shorter():
    period = parse("2026-03", "America/New_York")
    assert period.end - period.start == timedelta(days=31) - timedelta(hours=1)


@pytest.mark.parametrize(("text", "days"), [("2028-02", 29), ("2026-02", 28), ("2026-12", 31)])
def test_a_month_has_its_own_length(text, days):
    period = parse(text, "UTC")
    assert period.end - period.start == timedelta(days=days)


def test_consecutive_months_meet_without_gap_or_overlap():
    found = list(months(at("2026-01-15"), at("2026-12-31T23:59:59"), "Australia/Lord_Howe"))
    assert all(one.end == other.start for one, other in pairwise(found))


def test_dates_and_instants_are_utc_where_no_offset_is_written():
    assert parse("2026-10-01..2026-10-15", "Asia/Tokyo") == Period(at("2026-10-01"), at("2026-10-15"))
    assert parse("2026-10-01T02:00:00+02:00..2026-10-02T00:00:00Z", "UTC") == Period(at("2026-10-01"), at("2026-10-02"))


def test_a_period_reads_back_as_it_is_written():
    text = "2026-10-01..2026-10-15T12:30:00Z"
    assert str(parse(text, "UTC")) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("2026-13", "is no month"),
        ("october", "is no period"),
        ("2026-10-02..2026-10-01", "ends before it begins"),
        ("2026-10-01..2026-10-01", "ends before it begins"),
        ("2026-10-01..2026-12-01", "longer than a month"),
        ("2026-09..2026-10", "Write one month"),
        ("2026-10-01..soon", "is no date or instant"),
    ],
)
def test_a_period_that_makes_no_sense_is_refused_with_the_reason(text, why):
    with pytest.raises(PeriodError, match=why):
        parse(text, "UTC")


def test_what_is_left_of_a_month_lies_before_between_and_after_the_closed_parts():
    october = parse("2026-10", "UTC")
    closed = [parse("2026-10-20..2026-10-25", "UTC"), parse("2026-10-05..2026-10-10", "UTC")]
    assert [str(part) for part in without(october, closed)] == [
        "2026-10-01..2026-10-05",
        "2026-10-10..2026-10-20",
        "2026-10-25..2026-11-01",
    ]
    assert without(october, [october]) == []
    assert without(october, [parse("2026-11", "UTC")]) == [october]


def test_a_time_in_the_middle_of_a_clock_change_belongs_to_one_month_only():
    moment = datetime(2026, 10, 31, 23, 30, tzinfo=UTC)
    touching = [period for period in (parse("2026-10", "Europe/Berlin"), parse("2026-11", "Europe/Berlin"))
                if period.start <= moment < period.end]  # fmt: skip
    assert touching == [parse("2026-11", "Europe/Berlin")]
