"""Brings the data source, the folder, the dashboards and the alert rules into a Grafana that is there, by its HTTP API.

Everything has a uid of its own, so that it may be repeated: what is there as it should be is left alone. Written from
Grafana's documentation of its HTTP API (data source, folder, dashboard, alerting provisioning; Grafana 10 to 13).
"""

import http.client
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

import yaml

TIMEOUT_S: Final = 30.0
_MOST_BYTES: Final = 16 * 1024 * 1024
SOURCE: Final = "meterhouse-clickhouse"
"""The uid of the data source, as the alert rules name it."""
NEW, CHANGED, SAME = "new", "changed", "as it was"


class GrafanaRefused(RuntimeError):
    """Grafana cannot be reached, or does not want it; the text says what it said and what to do."""


@dataclass(frozen=True)
class Shipped:
    """What Meterhouse has for Grafana: the data source, dashboards by uid, and groups of alert rules."""

    source: dict[str, Any]
    dashboards: dict[str, dict[str, Any]]
    groups: list[dict[str, Any]]


@dataclass(frozen=True)
class Step:
    """What became of one thing, or would: new, changed, or as it was."""

    kind: str
    name: str
    outcome: str


class Grafana:
    """Its HTTP API, at an address such as https://grafana.example.com or https://example.com/grafana."""

    def __init__(self, url: str, token: str) -> None:
        self._parts = urlsplit(url)
        if self._parts.scheme not in ("http", "https") or not self._parts.hostname:
            raise GrafanaRefused(f"{url} is no address of a Grafana: https://grafana.example.com")
        self._url, self._token = url, token

    def get(self, path: str) -> Any:
        """What is there, or None where nothing is. Raises GrafanaRefused."""
        status, answer = self._ask("GET", path, None)
        return None if status == 404 else self._taken("GET", path, status, answer)

    def send(self, method: str, path: str, body: Mapping[str, Any]) -> Any:
        """Write; the answer. Raises GrafanaRefused."""
        return self._taken(method, path, *self._ask(method, path, body))

    def require(self) -> None:
        """Raise GrafanaRefused where no Grafana answers: a 404 of another server would look like an empty Grafana."""
        about = self.get("/api/health")
        if not isinstance(about, dict) or "database" not in about:
            raise GrafanaRefused(
                f"{self._url} is no Grafana: it has no /api/health of one; name the address of its pages, path included"
            )

    def health(self, uid: str) -> str:
        """What is wrong with a data source; empty where it answers."""
        status, answer = self._ask("GET", f"/api/datasources/uid/{uid}/health", None)
        if status == 200 and isinstance(answer, dict) and answer.get("status", "OK") == "OK":
            return ""
        return _message(answer) or f"HTTP {status}"

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None) -> tuple[int, Any]:
        # Without redirects: what stands in the header is for this address and no other.
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._parts.hostname or "", self._parts.port, timeout=TIMEOUT_S)
        headers = {"Authorization": f"Bearer {self._token}", "Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            connection.request(
                method, self._parts.path.rstrip("/") + path, None if body is None else json.dumps(body), headers
            )
            reply = connection.getresponse()
            text = reply.read(_MOST_BYTES)
        except (OSError, http.client.HTTPException, ValueError) as problem:
            raise GrafanaRefused(f"{self._url} does not answer: {type(problem).__name__}: {problem}") from None
        finally:
            connection.close()
        if 300 <= reply.status < 400:
            raise GrafanaRefused(
                f"{self._url} answers with a redirect to {reply.headers['Location']}: name that address"
            )
        try:
            return reply.status, json.loads(text or b"null")
        except ValueError:
            return reply.status, text.decode(errors="replace")[:200]

    def _taken(self, method: str, path: str, status: int, answer: Any) -> Any:
        if 200 <= status < 300:
            if isinstance(answer, str):
                raise GrafanaRefused(f"{self._url}{path} does not answer as a Grafana does: {answer!r}")
            return answer
        if status == 401:
            raise GrafanaRefused("Grafana does not take the token: make one of a service account with the role Admin")
        if status == 403:
            raise GrafanaRefused(
                f"the token may not {method} {path} ({_message(answer)}): its service account needs the role Admin; "
                "what Grafana provisioned from files is changed there"
            )
        raise GrafanaRefused(f"Grafana refused {method} {path}: HTTP {status}: {_message(answer)}")


def shipped() -> Shipped:
    """What this Meterhouse has: of an installed one beside the package, else in the folders of the repository."""
    here = Path(__file__).resolve().parent
    root = here / "shipped" if (here / "shipped").is_dir() else here.parent
    dashboards = [json.loads(file.read_text(encoding="utf-8")) for file in sorted((root / "grafana").glob("*.json"))]
    source = yaml.safe_load((root / "provisioning/datasources/clickhouse.yaml").read_text(encoding="utf-8"))
    rules = yaml.safe_load((root / "provisioning/alerting/meterhouse.yaml").read_text(encoding="utf-8"))
    return Shipped(source["datasources"][0], {it["uid"]: it for it in dashboards}, rules["groups"])


def bring(grafana: Grafana, what: Shipped, warehouse: str, folder: str, docs: str, *, write: bool) -> Iterator[Step]:
    """Bring it all, each thing once it is written; without `write` only look.

    `warehouse`: how Grafana reaches ClickHouse, http://user:password@host:8123; `folder`: the uid of the folder;
    `docs`: what stands before docs/ in the alerts' links to runbooks. Raises GrafanaRefused.
    """
    grafana.require()
    yield _source(grafana, what.source, warehouse, write)
    there = grafana.get(f"/api/folders/{folder}")
    if there is None and write:
        grafana.send("POST", "/api/folders", {"uid": folder, "title": "Meterhouse"})
    yield Step("folder", folder if there is None else there["title"], NEW if there is None else SAME)
    for uid, one in what.dashboards.items():
        yield _dashboard(grafana, uid, one, folder, write)
    for group in what.groups:
        yield from _rules(grafana, group, folder, docs, write)


def _source(grafana: Grafana, source: Mapping[str, Any], warehouse: str, write: bool) -> Step:
    parts = urlsplit(warehouse)
    if parts.scheme not in ("http", "https") or not parts.hostname or not parts.username:
        raise GrafanaRefused("the warehouse's address looks like http://reader:PASSWORD@host:8123")
    secure = parts.scheme == "https"
    wanted = {name: source[name] for name in ("name", "uid", "type", "access")} | {
        "isDefault": False,  # somebody's own stays what they see first
        "jsonData": source["jsonData"] | {
            "host": parts.hostname, "port": parts.port or (8443 if secure else 8123), "secure": secure,
            "protocol": "http", "username": unquote(parts.username),
        },
    }  # fmt: skip
    there = grafana.get(f"/api/datasources/uid/{SOURCE}")
    outcome = NEW if there is None else SAME if _holds(there, wanted) else CHANGED
    if write:
        # Also where it is as it was: the password is not shown, and may be another.
        secret = {"secureJsonData": {"password": unquote(parts.password or "")}}
        method, path = ("POST", "/api/datasources") if there is None else ("PUT", f"/api/datasources/uid/{SOURCE}")
        grafana.send(method, path, wanted | secret)
    return Step("data source", str(source["name"]), outcome)


def _dashboard(grafana: Grafana, uid: str, one: Mapping[str, Any], folder: str, write: bool) -> Step:
    wanted = {**one, "id": None, "templating": {"list": [_chosen(it) for it in one["templating"]["list"]]}}
    there = grafana.get(f"/api/dashboards/uid/{uid}")
    compared = {name: value for name, value in wanted.items() if name not in ("id", "version")}
    if there is None:
        outcome = NEW
    elif there["meta"].get("folderUid") == folder and _holds(there["dashboard"], compared):
        return Step("dashboard", one["title"], SAME)
    else:
        outcome = CHANGED
    if write:
        body = {"dashboard": wanted, "folderUid": folder, "overwrite": True, "message": "meterhouse grafana import"}
        grafana.send("POST", "/api/dashboards/db", body)
    return Step("dashboard", one["title"], outcome)


def _chosen(variable: Mapping[str, Any]) -> Mapping[str, Any]:
    """There may be other ClickHouse sources in this Grafana: the dashboards begin with ours."""
    if variable["type"] != "datasource":
        return variable
    return {**variable, "current": {"text": "Meterhouse", "value": SOURCE}}


def _rules(grafana: Grafana, group: Mapping[str, Any], folder: str, docs: str, write: bool) -> Iterator[Step]:
    """A group is written as a whole, so that rules that we have no longer go with it."""
    path = f"/api/v1/provisioning/folder/{folder}/rule-groups/{quote(group['name'])}"
    rules = [
        {
            **rule, "orgID": group["orgId"], "folderUID": folder, "ruleGroup": group["name"],
            "annotations": rule["annotations"] | {"runbook_url": docs + rule["annotations"]["runbook_url"]},
        }
        for rule in group["rules"]
    ]  # fmt: skip
    interval_s = _seconds(group["interval"])
    there = grafana.get(path)
    known = {rule["uid"]: rule for rule in there["rules"]} if there else {}
    steps = [
        Step("alert rule", rule["title"], NEW if it is None else SAME if _is_rule(it, rule) else CHANGED)
        for rule in rules
        for it in [known.get(rule["uid"])]
    ]
    gone = set(known) - {rule["uid"] for rule in rules}
    steps += [Step("alert rule", known[uid]["title"], "removed") for uid in sorted(gone)]
    same = there is not None and there["interval"] == interval_s and all(step.outcome == SAME for step in steps)
    if write and not same:
        body = {"title": group["name"], "folderUid": folder, "interval": interval_s, "rules": rules}
        grafana.send("PUT", path, body)
    yield from steps


def _is_rule(there: Mapping[str, Any], rule: Mapping[str, Any]) -> bool:
    # Of an organisation the token decides; durations come back in words of Grafana's own (60m as 1h).
    compared = {name: value for name, value in rule.items() if name not in ("orgID", "for")}
    return _seconds(there["for"]) == _seconds(rule["for"]) and _holds(there, compared)


def _holds(there: Any, wanted: Any) -> bool:
    """Whether all that is wanted is there; Grafana adds fields of its own."""
    if isinstance(wanted, Mapping):
        return isinstance(there, Mapping) and all(_holds(there.get(name), it) for name, it in wanted.items())
    if isinstance(wanted, list):
        return isinstance(there, list) and len(there) == len(wanted) and all(map(_holds, there, wanted))
    return bool(there == wanted)


def _seconds(duration: str) -> int:
    """Of `1h`, `5m`, `1h30m`, `0s`."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([smhdw])", duration))


def _message(answer: Any) -> str:
    return str(answer.get("message", answer)) if isinstance(answer, dict) else str(answer or "")
