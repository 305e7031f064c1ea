"""Proves that the collector neither loses an acknowledged event nor counts one twice, whenever it is killed.

`collector.sigkill_steps` enumerates: a life of the journal, projector and compression is killed at each system call of
append, seal, project, checkpoint and compress in turn (collector_steps.py). `collector.sigkill` samples: the real
collector is killed at random moments under load. At the end every acknowledged event is in `usage` once, nothing is
that was not sent, and a rebuild from the journal gives the same hash.
"""

import http.client
import json
import random
import shutil
import subprocess
import sys
import threading
import time
from typing import Any

from collector import MAIN, SENDERS, _connection, _post, _request, _System, _system, _wait_projected
from collector_steps import live_and_die

from meterhouse_store import warehouse
from meterhouse_store.settings import Settings

ROUNDS = 200
EVENTS = 10


def prove() -> list[dict[str, Any]]:
    """`cases`: steps at which something was killed, and events that were acknowledged before a kill."""
    if shutil.which("strace") is None:
        raise RuntimeError("these proofs need strace (apt install strace)")
    with _system() as system:
        system.kill_collector()
        settings = Settings(data=system.data, warehouse_url=system.environment["METERHOUSE_WAREHOUSE_URL"])
        steps = live_and_die(system.data / "journal", lambda: warehouse.connect(settings), 0)
        system.start_collector()
        step_violations = [*steps.mistakes, *_differences(system, steps.acknowledged, steps.sent, of_steps=True)]
        print(f"steps: {steps.killed} kills, {len(steps.acknowledged)} events acknowledged", flush=True)
        acknowledged, sent = _kill_at_random(system)
        violations = _differences(system, acknowledged, sent, of_steps=False)
        rebuilt = _rebuilt(system)
    for violation in [*step_violations, *violations, *rebuilt]:
        print(violation, file=sys.stderr)
    return [
        {"name": "collector.sigkill_steps", "cases": steps.killed, "violations": len(step_violations)},
        {"name": "collector.sigkill", "cases": len(acknowledged), "violations": len(violations)},
        {"name": "collector.rebuild_hash", "cases": 1, "violations": len(rebuilt)},
    ]


def _kill_at_random(system: _System) -> tuple[set[str], set[str]]:
    rng = random.Random(1)
    acknowledged: list[int] = []
    sent: list[int] = []
    for number in range(ROUNDS):
        stop = threading.Event()
        senders = [
            threading.Thread(
                target=_send_until, args=(system, stop, acknowledged, sent, (number * SENDERS + one) * 100_000)
            )
            for one in range(SENDERS)
        ]
        for sender in senders:
            sender.start()
        time.sleep(0.05 + 0.4 * rng.random())
        system.kill_collector()
        stop.set()
        for sender in senders:
            sender.join()
        system.start_collector()
    return _ids(acknowledged), _ids(sent)


def _ids(seeds: list[int]) -> set[str]:
    return {f"{seed}-{event}" for seed in seeds for event in range(EVENTS)}


def _send_until(
    system: _System, stop: threading.Event, acknowledged: list[int], sent: list[int], first_seed: int
) -> None:
    connection = _connection(system)
    seed = first_seed
    while not stop.is_set():
        seed += 1
        sent.append(seed)
        try:
            if _post(system, connection, _request(EVENTS, seed)) == 200:
                acknowledged.append(seed)
        except (OSError, http.client.HTTPException):
            break
    connection.close()


def _differences(system: _System, acknowledged: set[str], sent: set[str], *, of_steps: bool) -> list[str]:
    """Sentences about what `usage` has and should not, or lacks."""
    _wait_projected(system.client)
    query = "SELECT event_id FROM usage WHERE startsWith(event_id, 'step-') = {of_steps:UInt8}"
    found = [row[0] for row in system.client.query(query, parameters={"of_steps": int(of_steps)}).result_rows]
    once = set(found)
    told = [f"{name} was acknowledged and is not in usage" for name in sorted(acknowledged - once)]
    told += [f"{name} is in usage and was not sent" for name in sorted(once - sent)]
    if len(found) > len(once):
        told.append(f"{len(found) - len(once)} events are in usage twice")
    return told


def _rebuilt(system: _System) -> list[str]:
    command = [sys.executable, "-c", MAIN, "warehouse", "rebuild", "--json"]
    done = subprocess.run(command, env=system.environment, cwd=system.data, capture_output=True, text=True)
    if done.returncode == 1:
        return [f"the rebuild failed: {done.stderr}"]
    result = json.loads(done.stdout)
    return [] if result["live_sha256"] == result["rebuilt_sha256"] else ["the rebuild has another hash"]
