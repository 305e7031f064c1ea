"""What stops or is held back is seen: the alerts' own queries, asked of what a real projector wrote."""

import time
from pathlib import Path

import pytest
import yaml
from collector_samples import event, record, request_of
from test_collector_projector import Source, projector

from meterhouse_collector.inbox import Inbox

ALERTS = Path(__file__).parents[2] / "dashboards" / "provisioning" / "alerting" / "meterhouse.yaml"
RULES = {rule["uid"]: rule["data"] for rule in yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]}
MINUTE_NS = 60 * 10**9


def fires(database, name):
    query, threshold = RULES[f"meterhouse-{name}"]
    ((value,),) = database.query(query["model"]["rawSql"]).result_rows
    return value > threshold["model"]["conditions"][0]["evaluator"]["params"][0]


@pytest.mark.parametrize("held_back", [False, True])
def test_a_stopped_projector_and_suspense_raise_their_alarms_and_end_them(database, held_back):
    now_ns = time.time_ns()
    sent = request_of(event(7, "a", now_ns), point={} if held_back else {"customer.id": "acme"})
    source = Source(record(sent, 1, received_ns=now_ns - 10 * MINUTE_NS), through_ns=now_ns - 9 * MINUTE_NS)
    one = projector(source, Inbox(database))
    while one.step():
        pass
    assert fires(database, "suspense") is held_back
    assert fires(database, "projection-lag")  # nothing was projected for nine minutes
    source.through_ns = time.time_ns()
    one.step()
    assert not fires(database, "projection-lag")
