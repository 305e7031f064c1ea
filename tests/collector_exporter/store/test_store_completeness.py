"""The completeness report: every kind of exception has a sentence, and without any the verdict says so."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from meterhouse_store.completeness import Baseline, Found, Held, Received, Stream, assess

START, END = datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC)
LATER = datetime(2026, 11, 5, tzinfo=UTC)
EVERY_HOUR = tuple(START - timedelta(days=31) + timedelta(hours=n) for n in range(62 * 24))
STREAM = Stream("shop", "key-1", 2, 744, 0, 0, 0, EVERY_HOUR)
WELL = Found((STREAM,), (), 0, (), (Received("key-1", 800, 744, 0, 6, 50, 0),), (("c0ffee", LATER),), 0)


def exceptions(found, *, now=LATER):
    return assess(found, "live", "acme", START, END, now=now).exceptions


def of_stream(**changed):
    return exceptions(replace(WELL, streams=(replace(STREAM, **changed),)))


def test_usage_without_an_exception_is_complete_as_far_as_can_be_known():
    report = assess(WELL, "live", "acme", START, END, now=LATER)
    assert report.exceptions == ()
    assert report.verdict == (
        "Complete as far as can be known: 744 events of 1 stream, nothing is held back and nothing is missing."
    )


def test_a_stream_that_stopped_is_told_with_its_last_hour():
    hours = tuple(hour for hour in EVERY_HOUR if hour < datetime(2026, 10, 20, 7, tzinfo=UTC))
    assert of_stream(hours=hours) == ("shop (key-1) sent nothing after 2026-10-20 06:00 UTC",)


@pytest.mark.parametrize("sender", ["meterhouse-import", "meterhouse-events"])
def test_what_people_sent_once_has_not_fallen_silent(sender):
    hours = (datetime(2026, 10, 3, 7, tzinfo=UTC), datetime(2026, 10, 20, 7, tzinfo=UTC))
    assert of_stream(service_name=sender, hours=hours) == ()
    assert of_stream(service_name=sender, hours=hours[:1], estimated=2) == (
        f"{sender} (key-1): 2 events are estimates",
    )


def test_a_gap_in_a_stream_is_told_with_both_ends():
    hours = tuple(
        hour
        for hour in EVERY_HOUR
        if not datetime(2026, 10, 9, tzinfo=UTC) <= hour < datetime(2026, 10, 12, tzinfo=UTC)
    )
    assert of_stream(hours=hours) == (
        "shop (key-1) sent nothing between 2026-10-08 23:00 UTC and 2026-10-12 00:00 UTC",
    )


def test_a_stream_that_was_always_silent_at_weekends_is_not_told():
    weekdays = tuple(hour for hour in EVERY_HOUR if hour.weekday() < 5)
    assert of_stream(hours=weekdays) == ()


def test_a_stream_that_sent_before_the_period_and_not_in_it_is_told():
    hours = tuple(hour for hour in EVERY_HOUR if hour < datetime(2026, 9, 20, tzinfo=UTC))
    assert of_stream(hours=hours, events=0, processes=0) == (
        "shop (key-1) sent before the period, up to 2026-09-19, and nothing in it",
    )


def test_calls_without_an_end_or_without_usage_and_estimates_are_told():
    assert of_stream(unfinished=3, without_usage=5, estimated=1) == (
        "shop (key-1): 3 calls died before their answer was read",
        "shop (key-1): of 2 calls no usage was reported",
        "shop (key-1): 1 events are estimates",
    )


def test_suspense_that_may_be_the_customers_is_told():
    held = (Held("conflict", True, 2), Held("series_overflow", False, 9))
    assert exceptions(replace(WELL, held=held)) == (
        "2 rows of acme are in suspense as conflict: the same event came before with another quantity, which counts",
        "9 rows of nobody, sent with the same keys are in suspense as series_overflow: the sender had more series than "
        "it kept apart",
    )


def test_control_totals_that_do_not_add_up_and_waiting_decisions_are_told():
    found = replace(WELL, received=(replace(WELL.received[0], wrong_hours=2),), waiting_decisions=4)
    assert exceptions(found) == (
        "the control totals of key key-1 do not add up in 2 hours: `meterhouse warehouse verify`",
        "4 decisions wait for their rows: `meterhouse suspense apply`",
    )


def test_a_warehouse_that_is_behind_and_a_period_that_is_not_over_are_told():
    found = replace(WELL, projected_through=(("c0ffee", datetime(2026, 10, 31, tzinfo=UTC)),))
    assert exceptions(found) == ("collector c0ffee is in the warehouse up to 2026-10-31 00:00:00 UTC only",)
    assert exceptions(replace(WELL, projected_through=())) == ("no collector has written to this warehouse",)
    assert "the period is not over" in exceptions(WELL, now=END - timedelta(hours=3))


def test_running_totals_that_had_begun_too_early_are_told_with_what_does_not_count():
    found = replace(WELL, baselines=(Baseline("pages.read", 2, Decimal("42.500000000")),))
    assert exceptions(found) == (
        "2 running totals of pages.read had begun before their key was valid, or do not say when: "
        "the 42.5 that they stood at are taken for their beginning and do not count",
    )
