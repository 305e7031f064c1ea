"""OpenTelemetry's JavaScript SDK against both doors: its three exporters, its retries, and the example agent."""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from threading import Thread

import pytest
from collector_samples import wait_for, wait_projected
from local_doors import KEY, running
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from meterhouse_collector.intake import HELD_BYTES
from meterhouse_collector.records import decode, frames

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "javascript_agent"
HERE = Path(__file__).parent / "javascript"


@pytest.fixture(scope="session")
def javascript():
    """A directory with the example's packages, the example and the test's script; installed once for each lock file."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("this machine lacks Node.js")
    lock = hashlib.sha256((EXAMPLE / "package-lock.json").read_bytes()).hexdigest()[:16]
    directory = ROOT / ".venvs" / f"javascript-{lock}"
    directory.mkdir(parents=True, exist_ok=True)
    for file in [
        EXAMPLE / "package.json",
        EXAMPLE / "package-lock.json",
        EXAMPLE / "agent.mjs",
        HERE / "conformance.mjs",
    ]:
        shutil.copy(file, directory)
    if not (directory / ".installed").exists():
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        (directory / ".installed").touch()
    return directory


@pytest.fixture(scope="module")
def doors(tmp_path_factory):
    with running(tmp_path_factory.mktemp("javascript")) as doors:
        yield doors


def export(directory, doors, kind, temporality="delta", key=KEY):
    """The result codes of its two exports: 0 is success."""
    url = f"http://{doors.grpc}" if kind == "grpc" else "http://{}:{}/v1/metrics".format(*doors.http[:2])
    done = subprocess.run(
        ["node", "conformance.mjs", kind, url, key, temporality],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def points(doors, metric):
    """The points of a metric in the journal, in order."""
    found = []
    for file in sorted(doors.journal.directory.glob("*.seg")):
        data = file.read_bytes()
        for frame in frames(data, file.name):
            request = ExportMetricsServiceRequest.FromString(decode(data[frame.body : frame.end]).metrics)
            found += [
                (one.sum.aggregation_temporality, point)
                for resource in request.resource_metrics
                for scope in resource.scope_metrics
                for one in scope.metrics
                if one.name == metric
                for point in one.sum.data_points
            ]
    return found


def quantity(point):
    return point.as_int if point.WhichOneof("value") == "as_int" else point.as_double


@pytest.mark.parametrize(
    ("kind", "temporality", "expected"),
    [
        *((kind, "delta", [(1, 2), (1, 3)]) for kind in ("proto", "http", "grpc")),
        ("proto", "cumulative", [(2, 2), (2, 5)]),
        *(pytest.param(kind, "cumulative", [(2, 2), (2, 5)], marks=pytest.mark.long) for kind in ("http", "grpc")),
    ],
)
def test_the_three_exporters_of_the_javascript_sdk_are_acknowledged_and_stored(
    javascript, doors, kind, temporality, expected
):
    before = len(points(doors, "test.calls"))
    assert export(javascript, doors, kind, temporality) == [0, 0]
    new = points(doors, "test.calls")[before:]
    assert [(number, quantity(point)) for number, point in new] == expected
    attributes = {one.key: one.value for one in new[0][1].attributes}
    assert attributes["customer.id"].string_value == "acme"
    assert (attributes["n"].int_value, attributes["part"].double_value, attributes["ok"].bool_value) == (7, 0.5, True)
    assert [one.string_value for one in attributes["list"].array_value.values] == ["a", "b"]


@pytest.mark.parametrize("kind", ["proto", "http", "grpc"])
def test_a_wrong_key_is_a_failure_to_the_javascript_sdk(javascript, doors, kind):
    before = len(points(doors, "test.calls"))
    assert export(javascript, doors, kind, key="mh_wrong") == [1, 1]
    assert len(points(doors, "test.calls")) == before


@pytest.mark.parametrize("kind", ["proto", "http"])
def test_overload_makes_the_javascript_sdk_send_it_again_and_it_is_stored_once(javascript, doors, kind):
    # Its gRPC exporter (0.223) tries nothing again, whatever it is answered: docs/otlp.md says so.
    doors.reported.clear()
    before = len(points(doors, "test.calls"))
    doors.intake.held_bytes = HELD_BYTES

    def relieve():
        wait_for(lambda: doors.reported, within_s=60)
        doors.intake.held_bytes = 0

    relieving = Thread(target=relieve)
    relieving.start()
    assert export(javascript, doors, kind) == [0, 0]
    relieving.join()
    assert doors.reported[0][0] == "overloaded"
    assert [quantity(point) for _, point in points(doors, "test.calls")[before:]] == [2, 3]


def test_the_example_reports_each_customers_pages(javascript, doors):
    environment = os.environ | {
        "METERHOUSE_ENDPOINT": "http://{}:{}".format(*doors.http[:2]),
        "METERHOUSE_API_KEY": KEY,
    }
    subprocess.run(["node", "agent.mjs"], cwd=javascript, env=environment, check=True, timeout=120)
    totals = {}
    for temporality, point in points(doors, "translator.pages"):
        assert temporality == 1
        customer = next(one.value.string_value for one in point.attributes if one.key == "customer.id")
        totals[customer] = totals.get(customer, 0) + quantity(point)
    assert totals == {"acme": 5, "globex": 1}


def test_the_example_is_billed_each_customers_pages_in_usage(javascript, shared_collector, shared_database):
    environment = os.environ | {
        "METERHOUSE_ENDPOINT": shared_collector.http,
        "METERHOUSE_API_KEY": shared_collector.key,
    }
    subprocess.run(["node", "agent.mjs"], cwd=javascript, env=environment, check=True, timeout=120)
    wait_projected(shared_database)
    query = """
        SELECT customer_id, meter, sum(quantity), any(agent_name) FROM usage
        WHERE meter = 'translator.pages' GROUP BY ALL ORDER BY ALL
    """
    assert shared_database.query(query).result_rows == [
        ("acme", "translator.pages", 5, "translator"),
        ("globex", "translator.pages", 1, "translator"),
    ]
