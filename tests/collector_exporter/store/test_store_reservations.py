"""What is handed out of limits: what arrived, what is on its way and what may still be used are at most the limit."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

from meterhouse_store.reservations import LAPSE, Held, Limit, decide, free, kept

D = Decimal
NOW = datetime(2026, 11, 1, tzinfo=UTC)
SOON = NOW + timedelta(seconds=60)


def limit(left, *, name="calls", agent_id="", least="1", weights=None):
    found = weights or {"calls": "1"}
    return Limit(name, agent_id, D(left), D(least), {meter: D(it) for meter, it in found.items()}, "hard_cap")


def held(*, granted=None, used=None, arrived=None, agent_id="a", expires_at=SOON):
    quantities = [{name: D(it) for name, it in (found or {}).items()} for found in (granted, used, arrived)]
    return Held("lease", agent_id, expires_at, *quantities)


def test_a_lease_is_an_eighth_of_what_is_free_and_the_smallest_share_at_least():
    assert decide([limit(800)], [], NOW).units == 100
    assert decide([limit(40, least="10")], [], NOW).units == 10
    assert decide([limit(3, least="10")], [], NOW).units == 3


def test_what_agents_hold_is_kept_from_others_until_its_usage_has_arrived():
    live = held(granted={"calls": 30}, used={"calls": 20}, arrived={"calls": 5})
    assert free(limit(100), [live], NOW) == 55  # 30 it may use, and 15 that it used and that are on their way
    assert free(limit(95), [held(granted={"calls": 30}, used={"calls": 20}, arrived={"calls": 10})], NOW) == 55
    given_back = held(used={"calls": 20}, arrived={"calls": 20}, expires_at=NOW)
    assert free(limit(80), [given_back], NOW) == 80


def test_a_killed_agent_s_lease_stays_reserved_until_its_usage_arrives_or_it_lapses():
    killed = held(granted={"calls": 30})
    assert free(limit(100), [killed], SOON + LAPSE - timedelta(seconds=1)) == 70
    assert free(limit(100), [killed], SOON + LAPSE) == 100
    assert free(limit(88), [held(granted={"calls": 30}, arrived={"calls": 12})], SOON) == 70


def test_nothing_is_handed_out_of_what_is_used_up_or_in_others_hands():
    used_up = decide([limit(0)], [], NOW)
    assert (used_up.allowed, used_up.reason, used_up.granted) == (False, "hard_cap", {})
    in_hands = decide([limit(30)], [held(granted={"calls": 30})], NOW)
    assert (in_hands.allowed, in_hands.reason) == (False, "reserved")


def test_what_is_left_of_a_grant_is_not_taken_away_while_its_agent_goes_on_with_it():
    before = held(granted={"calls": 40}, used={"calls": 10})
    keeps = kept([limit(100)], before, {"calls": D(30)})
    assert keeps == {"calls": 20}
    now_used = held(used={"calls": 30})
    assert decide([limit(60)], [now_used], NOW, keeps).units == 20  # and not an eighth of the 30 that are free
    others = held(granted={"calls": 80})
    assert decide([limit(100)], [others, now_used], NOW, keeps).units == 20  # nothing else is free
    assert not decide([limit(100)], [others, now_used], NOW, kept([limit(100)], before, {"calls": D(50)})).allowed


def test_several_limits_become_one_lease_that_passes_none_of_them():
    answer = decide(
        [
            limit(80, name="calls", weights={"calls": "1"}),
            limit(8000, name="tokens", weights={"tokens": "1"}),
            limit(16, name="money", least="0.1", weights={"calls": "1", "tokens": "0.001"}),
        ],
        [],
        NOW,
    )
    assert answer.granted == {"calls": D(10), "tokens": D(1000), "money": D(2)}
    # A call is a tenth of the calls and half of the money; a token a thousandth, and half a thousandth.
    assert (answer.units, answer.weights) == (1, {"calls": D("0.5"), "tokens": D("0.001")})


def test_a_limit_of_one_agent_is_nobody_else_s():
    own = limit(10, name="own", agent_id="a")
    others = held(granted={"own": 7}, agent_id="b")
    assert free(own, [others], NOW) == 10
    assert free(limit(100), [others, held(granted={"calls": 7}, agent_id="b")], NOW) == 93
