"""docker-compose.yml without Docker: its rules, and each of our services with its exact command and environment.

The images are not run. Hosts and ports are mapped to this machine, the ClickHouse server is the embedded engine behind
its ClickHouse HTTP port, and PostgreSQL a throwaway server (SQLite where the machine has none). Health is asked for
with the health checks' own commands.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from meterhouse_store import warehouse
from meterhouse_store.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("migrate", "collector", "jobs", "webhooks", "portal", "prices")
ONE_SHOT = {"migrate", "otel-check"}
VARIABLE = re.compile(r"\$\{(\w+)(?::([?-])([^}]*))?\}")
EXAMPLE = dict(
    line.split("=", 1) for line in (ROOT / ".env.example").read_text().splitlines() if re.match(r"[A-Z_]+=", line)
)
SECRETS = {
    "CLICKHOUSE_PASSWORD": "clickhouse-password",
    "CLICKHOUSE_READER_PASSWORD": "reader-password",
    "POSTGRES_PASSWORD": "postgres-password",
    "METERHOUSE_PORTAL_TOKEN": "portal-token-of-the-tests",
    "GRAFANA_ADMIN_PASSWORD": "grafana-password",
    "STRIPE_API_KEY": "sk_test_compose",
    "STRIPE_WEBHOOK_SECRET": "whsec_compose",
}


# ---- the file -------------------------------------------------------------------------------------------------------


def test_every_service_that_is_asked_for_is_there():
    assert set(SERVICES) == {
        *OURS, "clickhouse", "postgres", "grafana", "otel-check", "otel-collector",
    }  # fmt: skip
    assert {name for name, service in SERVICES.items() if "profiles" in service} == {"otel-check", "otel-collector"}


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_on_this_host_only_and_images_are_pinned(name):
    service = SERVICES[name]
    assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", []))
    assert re.fullmatch(r"[a-z/-]+:\d+\.\d+[.\d]*", service["image"])


@pytest.mark.parametrize("name", sorted(set(SERVICES) - ONE_SHOT - {"otel-collector"}))
def test_every_service_that_stays_has_a_health_check_and_comes_back(name):
    assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"
    assert SERVICES[name]["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", OURS)
def test_our_services_can_change_nothing_but_their_own_data(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "user" not in service  # the image's own, which is not root
    assert re.search(r"(?m)^USER (?!0|root)\S+$", (ROOT / "Dockerfile").read_text())


def test_there_is_no_default_secret_and_the_example_names_all_of_them():
    text = (ROOT / "docker-compose.yml").read_text()
    variables = {(name, kind, rest) for name, kind, rest in VARIABLE.findall(text)}
    required = {name for name, kind, _ in variables if kind == "?"}
    assert required == set(SECRETS)
    # What may be absent is no secret, or is refused by a check of its own.
    assert {(name, rest) for name, kind, rest in variables if kind != "?"} == {
        ("METERHOUSE_NAMESPACE", "live"),
        ("METERHOUSE_API_KEY", ""),
        ("METERHOUSE_PUBLIC_URL", ""),
        ("METERHOUSE_BRAND_COLOUR", ""),
        ("METERHOUSE_BRAND_SUPPORT", ""),
        ("METERHOUSE_BRAND_LANGUAGE", ""),
        ("METERHOUSE_PORTAL_EVIDENCE", ""),
        ("METERHOUSE_EMBED_ORIGINS", ""),
        ("METERHOUSE_OIDC_ISSUER", ""),
        ("METERHOUSE_OIDC_CLIENT_ID", ""),
        ("METERHOUSE_OIDC_CLIENT_SECRET", ""),  # without an issuer nobody needs it
        ("METERHOUSE_SMTP_URL", ""),  # without it no mail is sent
        ("METERHOUSE_MAIL_FROM", ""),
        ("METERHOUSE_BRAND_NAME", ""),
        ("METERHOUSE_DAYS_TO_LOOK", ""),
        ("METERHOUSE_PAUSE_AFTER_FAILED_PAYMENT_DAYS", ""),
    }
    assert set(EXAMPLE) == {name for name, _, _ in variables}
    assert {name for name, value in EXAMPLE.items() if value} == {"METERHOUSE_NAMESPACE"}


def test_the_mounted_files_exist_and_the_volumes_are_declared():
    mounts = [volume.split(":") for service in SERVICES.values() for volume in service.get("volumes", [])]
    assert [source for source, *_ in mounts if source.startswith("./") and not (ROOT / source).exists()] == []
    assert {source for source, *_ in mounts if not source.startswith("./")} == set(COMPOSE["volumes"])


def test_the_image_is_built_from_files_that_exist_and_are_not_ignored():
    dockerfile = (ROOT / "Dockerfile").read_text()
    copied = [word for line in re.findall(r"(?m)^COPY (?!--from)(.*)$", dockerfile) for word in line.split()[:-1]]
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert [path for path in copied if not (ROOT / path).exists() or f"!{path}" not in ignored] == []
    assert 'ENTRYPOINT ["meterhouse"]' in dockerfile


def test_a_missing_key_stops_the_opentelemetry_collector_before_it_can_lose_anything():
    script = SERVICES["otel-check"]["command"][0].replace("/queue", "{queue}").replace("10001", str(os.geteuid()))
    assert SERVICES["otel-check"]["entrypoint"] == ["python", "-c"]
    for key, code in (("", 1), ("mh_key", 0)):
        done = subprocess.run(
            [sys.executable, "-c", script.replace("{queue}", str(ROOT / "tests"))],
            env={"METERHOUSE_API_KEY": key}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert ("set METERHOUSE_API_KEY" in done.stderr) == (code == 1)
    assert SERVICES["otel-collector"]["depends_on"]["otel-check"] == {"condition": "service_completed_successfully"}


# ---- the services ---------------------------------------------------------------------------------------------------


def interpolated(text: str) -> str:
    def value(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        return SECRETS.get(name) or (rest if kind == "-" else pytest.fail(f"{name} is not set: {rest}"))

    return VARIABLE.sub(value, text)


class Stack:
    """Our services as processes: `ports` maps the ports of the file to free ones of this machine."""

    def __init__(self, folder: Path, warehouse_url: str, sql_url: str, ports: dict[str, int]) -> None:
        self.folder, self.warehouse_url, self.sql_url, self.ports = folder, warehouse_url, sql_url, ports
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def environment(self, name: str) -> dict[str, str]:
        found = {key: interpolated(str(value)) for key, value in SERVICES[name]["environment"].items()}
        assert found["METERHOUSE_WAREHOUSE_URL"] == "http://meterhouse:clickhouse-password@clickhouse:8123"
        assert found["METERHOUSE_SQL_URL"].endswith("://meterhouse:postgres-password@postgres:5432/meterhouse")
        found |= {"METERHOUSE_WAREHOUSE_URL": self.warehouse_url, "METERHOUSE_SQL_URL": self.sql_url}
        if "METERHOUSE_ENDPOINT" in found:
            found["METERHOUSE_ENDPOINT"] = self.local(found["METERHOUSE_ENDPOINT"].replace("collector", "127.0.0.1"))
        data = self.folder / name
        data.mkdir(exist_ok=True)
        found["METERHOUSE_DATA"] = str(data)
        # Stripe is a host like the others: here nobody listens.
        return found | {"METERHOUSE_STRIPE_URL": "http://127.0.0.1:9", "PATH": os.environ["PATH"], "HOME": str(data)}

    def command(self, name: str, arguments: list[str] | None = None) -> list[str]:
        words = SERVICES[name]["command"] if arguments is None else arguments
        mapped = [str(self.ports[word]) if word in self.ports else word for word in words]
        return [
            str(Path(sys.executable).parent / "meterhouse"),
            *(word.replace("0.0.0.0", "127.0.0.1") for word in mapped),
        ]

    def local(self, text: str) -> str:
        for port, free in self.ports.items():
            text = text.replace(f":{port}", f":{free}")
        return text

    def run(self, name: str, arguments: list[str] | None = None) -> str:
        """`docker compose run --rm NAME ARGUMENTS`: what it printed."""
        done = subprocess.run(
            self.command(name, arguments),
            env=self.environment(name),
            cwd=self.folder / name,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, name: str) -> None:
        environment = self.environment(name)
        log = (self.folder / f"{name}.log").open("wb")
        with log:
            self.processes[name] = subprocess.Popen(
                self.command(name), env=environment, cwd=self.folder / name, stdout=log, stderr=log
            )

    def wait_until_healthy(self, name: str) -> None:
        probe = [self.local(part) for part in SERVICES[name]["healthcheck"]["test"][1:]]
        probe = [part.replace("/var/lib/meterhouse", str(self.folder / name)) for part in probe]
        assert probe[0] == "python"
        deadline = time.monotonic() + 60
        while subprocess.run([sys.executable, *probe[1:]], capture_output=True).returncode != 0:
            log = (self.folder / f"{name}.log").read_text()
            assert self.processes[name].poll() is None, f"{name} ended:\n{log}"
            assert time.monotonic() < deadline, f"{name} is not healthy after 60 s:\n{log}"
            time.sleep(0.2)

    def stop(self) -> dict[str, int]:
        """SIGTERM to all, as `docker compose stop` does; the exit codes."""
        for process in self.processes.values():
            process.terminate()
        codes = {}
        for name, process in self.processes.items():
            try:
                codes[name] = process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                codes[name] = process.wait()
        return codes


def free_ports(*names: str) -> dict[str, int]:
    """A free port for each name, held together so that no two are the same."""
    with contextlib.ExitStack() as held:
        sockets = {name: held.enter_context(socket.socket()) for name in names}
        for free in sockets.values():
            free.bind(("127.0.0.1", 0))
        return {name: free.getsockname()[1] for name, free in sockets.items()}


@pytest.fixture(scope="module")
def stack(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("compose")
    ports = free_ports("8123", "4317", "4318", "8080", "8081", "8082")
    try:
        sql_url = request.getfixturevalue("postgres_server")
    except pytest.skip.Exception:
        sql_url = f"sqlite:///{folder / 'meterhouse.db'}"
    code = (
        "import sys; from pathlib import Path; from meterhouse_store.embedded import serve; "
        f"serve(Path({str(folder / 'clickhouse')!r}), '127.0.0.1', {ports['8123']}, {{'admin': 'a-password'}})"
    )
    engine = subprocess.Popen([sys.executable, "-c", code], cwd=folder, env={"PATH": os.environ["PATH"]})
    stack = Stack(folder, f"http://admin:a-password@127.0.0.1:{ports['8123']}", sql_url, ports)
    try:
        warehouse.connect(Settings(warehouse_url=stack.warehouse_url), timeout_s=30, database="default").close()
        stack.run("migrate")
        for name in OURS[1:]:
            stack.start(name)
        yield stack
    finally:
        stack.stop()
        engine.terminate()
        engine.wait(30)


@pytest.mark.parametrize("name", OURS[1:])
def test_the_service_starts_and_its_health_check_passes(stack, name):
    stack.wait_until_healthy(name)


def test_migrate_may_run_again(stack):
    stack.run("migrate")


def test_the_portal_opens_with_its_token_only(stack):
    stack.wait_until_healthy("portal")
    base = f"http://127.0.0.1:{stack.ports['8080']}"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(base, timeout=10)
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    with opener.open(f"{base}/?token={SECRETS['METERHOUSE_PORTAL_TOKEN']}", timeout=10) as page:
        text = page.read().decode()
    assert "The warehouse does not answer" not in text
    assert "No usage yet." in text


def test_metrics_of_a_plain_otel_exporter_wait_in_suspense_as_the_readme_says(stack):
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    stack.wait_until_healthy("collector")
    key = json.loads(stack.run("migrate", ["keys", "create", "production", "--json"]))["key"]
    exporter = OTLPMetricExporter(
        endpoint=f"http://127.0.0.1:{stack.ports['4318']}/v1/metrics", headers={"Authorization": f"Bearer {key}"}
    )
    provider = MeterProvider([PeriodicExportingMetricReader(exporter)])
    provider.get_meter("somebody.else").create_counter("requests").add(3)
    assert provider.force_flush()
    provider.shutdown()

    client = warehouse.connect(Settings(warehouse_url=stack.warehouse_url))
    query = "SELECT reason, quantity FROM suspense WHERE meter = 'requests'"
    deadline = time.monotonic() + 30
    while not (rows := client.query(query).result_rows):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    client.close()
    # A cumulative sum repeats itself with every export.
    assert {(reason, int(quantity)) for reason, quantity in rows} == {("source_unsupported", 3)}


def test_every_service_stops_when_it_is_told_to(stack):
    codes = stack.stop()
    assert set(codes) == set(OURS[1:])
    assert set(codes.values()) <= {0, -signal.SIGTERM}
