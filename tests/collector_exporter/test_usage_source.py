"""A customer's usage by the view that is planned the soonest is that of `usage`, whatever came or was decided."""

import pytest
from collector_samples import DAY_NS, RECEIVED_NS, event, request_of
from foreign_samples import call, span, total_of

from meterhouse_store import suspended, usage_source

ANY = {"valid_from_ns": 0}
ALL = "SELECT * EXCEPT (attributes), toString(attributes) FROM {} WHERE billed_customer_id = '{}' ORDER BY ALL"


def came(world, *events, **more):
    world.metrics(request_of(*events, **more), **ANY)


def nothing(world):
    pass


def copied(world):
    came(world, event(7, "a"))


def spans(world):
    world.traces(span(1, more=call(50, 20)))


def running_total(world):
    world.metrics(total_of((1, 10), (2_000, 30)))


def agents(world):
    """Usage of nobody, which waits in suspense."""
    came(world, event(11, "n"), point={"gen_ai.agent.name": "x"})


def held(world):
    """Usage of acme that waits in suspense, as it is told to be of three days later."""
    came(world, event(3, "later", time_ns=RECEIVED_NS + 3 * DAY_NS))


def held_and_released(world):
    held(world)
    world.decide(suspended.release, reason="time_out_of_range")


def held_and_discarded(world):
    held(world)
    world.decide(suspended.discard, reason="time_out_of_range")


def once(world):
    came(world, event(1, "task", extra={"meterhouse.once": "true"}), name="meterhouse.agent.tasks")


def conflict(world):
    came(world, event(5, "b"))
    came(world, event(9, "b"))


def released(world):
    conflict(world)
    world.decide(suspended.release, reason="conflict")


def assigned(world):
    agents(world)
    world.decide(suspended.assign, "globex", events=("n",))


def assigned_from_acme(world):
    """Usage that names acme, by a key that may not report for it."""
    world.metrics(request_of(event(3, "f")), allowed=("globex",), **ANY)
    world.decide(suspended.assign, "globex", events=("f",))


def assigned_and_undone(world):
    assigned(world)
    world.undo()


@pytest.mark.sampled(6)
@pytest.mark.parametrize(
    ("what", "acme", "globex"),
    [
        (nothing, "usage_plain", "usage_plain"),
        (copied, "usage_plain", "usage_plain"),
        (agents, "usage_plain", "usage_plain"),
        (held, "usage_plain", "usage_plain"),
        (held_and_released, "usage_plain", "usage_plain"),
        (held_and_discarded, "usage_plain", "usage_plain"),
        (once, "usage", "usage_plain"),
        (conflict, "usage", "usage_plain"),
        (released, "usage", "usage_plain"),
        (assigned, "usage_plain", "usage"),
        (assigned_and_undone, "usage_plain", "usage"),
        (assigned_from_acme, "usage_plain", "usage"),
        (spans, "usage_plain", "usage_plain"),
        (running_total, "usage", "usage_plain"),
    ],
)
def test_the_view_for_a_customer_has_what_usage_has(world, what, acme, globex):
    came(world, event(7, "a"), event(5, "c"))
    what(world)
    for customer, expected in (("acme", acme), ("globex", globex)):
        assert usage_source.of_customer(world.client, "live", customer) == expected
        assert usage_source.of_customer(world.client, "test", customer) == "usage_plain"
        own, whole = (world.client.query(ALL.format(view, customer)) for view in (expected, "usage"))
        assert own.column_names == whole.column_names
        assert own.result_rows == whole.result_rows
    assert world.client.query("SELECT count() >= 2 FROM usage WHERE billed_customer_id = 'acme'").result_rows == [(1,)]
