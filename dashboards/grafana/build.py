"""Writes Grafana's dashboards and alert rules from what is in `panels`: `python dashboards/grafana/build.py [--check]`.

What it writes is checked in beside it, and a test runs every query. overview.json is written by hand. The files are for
the plugin grafana-clickhouse-datasource 4.20; the data source's user reads views and nothing else.
"""

# ruff: noqa: E501, S608 - texts; what is put into the queries stands here, or is a variable that Grafana quotes

import json
import sys
from pathlib import Path
from typing import Any, Final

import yaml
from panels import DASHBOARDS
from panels.alerts import RULES
from panels.parts import OF, Alert, Panel

HERE: Final = Path(__file__).resolve().parent
ALERTS: Final = HERE.parent / "provisioning" / "alerting" / "meterhouse.yaml"
RUNBOOKS: Final = "docs/runbooks"
_SOURCE: Final = {"type": "grafana-clickhouse-datasource", "uid": "${datasource}"}
# Where traces are looked up is the user's own: what stands before the id in an address.
_TRACES: Final = {
    "name": "traces", "label": "Address of traces", "type": "textbox", "query": "", "hide": 0, "options": [],
    "current": {"text": "", "value": ""},
}  # fmt: skip


def dashboard(name: str) -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    of = DASHBOARDS[name]
    placed, x, y, height = [], 0, 0, 0
    for number, panel in enumerate(of.PANELS, 1):
        width, rows = panel.size
        if x + width > 24:
            x, y, height = 0, y + height, 0
        placed.append(_panel(panel, number, {"x": x, "y": y, "w": width, "h": rows}))
        x, height = x + width, max(height, rows)
    return {
        "uid": f"meterhouse-{name}",
        "title": of.TITLE,
        "description": of.DESCRIPTION,
        "tags": ["meterhouse"],
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "timezone": "utc",
        "refresh": "1m",
        "time": {"from": "now-24h" if name == "pipeline" else "now-30d", "to": "now"},
        "annotations": {"list": []},
        "links": [{"type": "dashboards", "tags": ["meterhouse"], "title": "Meterhouse", "asDropdown": True}],
        "templating": {"list": _variables(of.PANELS)},
        "panels": placed,
    }


def alerts() -> dict[str, Any]:
    """The rules as Grafana provisions them."""
    return {
        "apiVersion": 1,
        "groups": [
            {
                "orgId": 1,
                "name": "meterhouse",
                "folder": "Meterhouse",
                "interval": "1m",
                "rules": [_rule(alert) for alert in RULES],
            }
        ],
    }


def files() -> dict[Path, str]:
    """What is written where."""
    made = {HERE / f"{name}.json": json.dumps(dashboard(name), indent=2) + "\n" for name in DASHBOARDS}
    head = "# Written by dashboards/grafana/build.py.\n"
    return made | {ALERTS: head + yaml.safe_dump(alerts(), sort_keys=False, width=120)}


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    series = panel.kind == "timeseries"
    target = {
        "refId": "A",
        "datasource": _SOURCE,
        "editorType": "sql",
        "queryType": "timeseries" if series else "table",
        "format": 0 if series else 1,
        "pluginVersion": "4.20.0",
        "rawSql": panel.sql,
    }
    defaults: dict[str, Any] = {"unit": panel.unit}
    if series:
        defaults |= {"min": 0, "custom": {"drawStyle": "line", "lineWidth": 2, "fillOpacity": 10, "showPoints": "auto"}}
    overrides = [
        {
            "matcher": {"id": "byName", "options": column},
            "properties": [{"id": "links", "value": [{"title": "Show", "url": address}]}],
        }
        for column, address in panel.links.items()
    ]
    overrides += [
        {"matcher": {"id": "byName", "options": column}, "properties": [{"id": "unit", "value": unit}]}
        for column, unit in panel.units.items()
    ]
    options: dict[str, Any] = {"cellHeight": "sm", "showHeader": True}
    if series:
        legend = {"displayMode": "list", "placement": "bottom", "showLegend": True}
        options = {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
    elif panel.kind == "stat":
        calculated = {"calcs": ["lastNotNull"], "fields": "", "values": False}
        options = {"colorMode": "value", "graphMode": "none", "textMode": "auto", "reduceOptions": calculated}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "gridPos": place,
        "datasource": _SOURCE,
        "targets": [target],
        "fieldConfig": {"defaults": defaults, "overrides": overrides},
        "options": options,
    }


def _variables(panels: list[Panel]) -> list[dict[str, Any]]:
    queries = {
        "namespace": "SELECT DISTINCT namespace FROM received ORDER BY namespace",
        "customer": f"SELECT DISTINCT billed_customer_id FROM usage_by_day WHERE {OF} ORDER BY billed_customer_id LIMIT 1000",
        "agent": f"SELECT DISTINCT agent_name FROM usage_by_hour WHERE {OF} ORDER BY agent_name LIMIT 1000",
        "model": f"SELECT DISTINCT model FROM usage_by_hour WHERE {OF} ORDER BY model LIMIT 1000",
    }
    used = [name for name in queries if any(f"${{{name}:" in panel.sql for panel in panels)]
    source = {
        "name": "datasource", "label": "Data source", "type": "datasource", "query": _SOURCE["type"], "refresh": 1,
        "hide": 0, "options": [], "current": {},
    }  # fmt: skip
    traces = [_TRACES] if any("${traces}" in address for panel in panels for address in panel.links.values()) else []
    return [source, *(_variable(name, queries[name]) for name in used), *traces]


def _variable(name: str, query: str) -> dict[str, Any]:
    many = name != "namespace"
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": _SOURCE,
        "query": query,
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "hide": 0,
        "options": [],
        "current": {"text": ["All"], "value": ["$__all"]} if many else {},
        "multi": many,
        "includeAll": many,
    }


def _rule(alert: Alert) -> dict[str, Any]:
    source = "meterhouse-clickhouse"
    query = {
        "refId": "A", "editorType": "sql", "queryType": "table", "format": 1, "pluginVersion": "4.20.0",
        "rawSql": alert.sql,
    }  # fmt: skip
    threshold = {
        "refId": "B", "type": "threshold", "expression": "A",
        "conditions": [{"evaluator": {"type": "gt", "params": [alert.above]}}],
    }  # fmt: skip
    window = {"from": 600, "to": 0}
    return {
        "uid": f"meterhouse-{alert.uid}",
        "title": alert.title,
        "condition": "B",
        "for": f"{alert.minutes}m",
        "noDataState": "Alerting" if alert.uid == "projection-lag" else "OK",
        "execErrState": "Error",
        "labels": {"severity": alert.severity},
        "annotations": {"summary": alert.summary, "runbook_url": f"{RUNBOOKS}/{alert.uid}.md"},
        "data": [
            {"refId": "A", "relativeTimeRange": window, "datasourceUid": source, "model": query},
            {"refId": "B", "relativeTimeRange": window, "datasourceUid": "__expr__", "model": threshold},
        ],
    }


def main() -> int:
    """Write the files, or with --check say which differ (exit code 1)."""
    stale = [file for file, text in files().items() if not file.exists() or file.read_text() != text]
    if "--check" in sys.argv[1:]:
        for file in stale:
            print(f"{file} is not what build.py writes: run it", file=sys.stderr)
        return 1 if stale else 0
    for file, text in files().items():
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    print(f"{len(files())} files, {len(stale)} of them new or changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
