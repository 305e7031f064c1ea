"""Two questions are asked at once, and nothing of either is lost."""

import threading

import pytest

from meterhouse_rating.together import together


def test_both_are_under_way_at_the_same_time_and_both_answers_come_back():
    both = threading.Barrier(2, timeout=30)  # each goes on only when the other has begun

    def asked(answer):
        both.wait()
        return answer

    assert together(lambda: asked("one"), lambda: asked("other")) == ("one", "other")


def test_what_either_raises_is_raised_once_both_have_ended():
    first_failed, ended = threading.Event(), []

    def fails():
        first_failed.set()
        raise LookupError("one")

    def ends():
        first_failed.wait(30)
        ended.append("other")

    with pytest.raises(LookupError, match="one"):
        together(fails, ends)
    assert ended == ["other"]
    with pytest.raises(LookupError, match="one"):
        together(lambda: None, fails)
