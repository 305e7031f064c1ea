"""A Grafana to test against, written from the documentation of its HTTP API (data source, folder, dashboard, alerting
provisioning): it refuses what that does not allow, and answers with what Grafana adds."""

import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

TOKENS = {"admin-token": "Admin", "viewer-token": "Viewer"}
RULE = {"uid", "title", "orgID", "folderUID", "ruleGroup", "condition", "data", "noDataState", "execErrState", "for"}
OPTIONAL = {"labels", "annotations", "isPaused"}


class Refused(Exception):
    def __init__(self, status, message):
        super().__init__(message)
        self.status, self.message = status, message


def need(fits, message, status=400):
    if not fits:
        raise Refused(status, message)


class Grafana:
    """Its state, and in `writes` what was written, in order."""

    def __init__(self):
        self.sources, self.folders, self.dashboards, self.groups = {}, {}, {}, {}
        self.writes, self.health = [], (200, {"status": "OK", "message": "Data source is working"})

    def answer(self, method, path, role, body):
        if method != "GET":
            need(role in ("Editor", "Admin"), "You'll need additional permissions to perform this action.", 403)
            self.writes.append((method, path))
        for pattern, handler in self.ROUTES:
            found = re.fullmatch(pattern, f"{method} {path}")
            if found:
                return handler(self, *found.groups(), *([body] if method != "GET" else []))
        raise Refused(404, "Not found")

    def about(self):
        return {"commit": "087143f285", "database": "ok", "version": "11.0.0"}

    def source(self, uid):
        need(uid in self.sources, "Data source not found", 404)
        shown = {name: value for name, value in self.sources[uid].items() if name != "secureJsonData"}
        return shown | {"secureJsonFields": dict.fromkeys(self.sources[uid].get("secureJsonData", {}), True)}

    def add_source(self, body):
        need({"name", "type", "access"} <= set(body) and body["access"] in ("proxy", "direct"), "bad request data")
        taken = {one["name"] for one in self.sources.values()} | set(self.sources)
        need(not {body["name"], body["uid"]} & taken, "data source with the same name already exists", 409)
        self.sources[body["uid"]] = {"id": len(self.sources) + 1, "orgId": 1, "version": 1, "readOnly": False, **body}
        return {"datasource": self.source(body["uid"]), "message": "Datasource added", "name": body["name"]}

    def put_source(self, uid, body):
        need(uid in self.sources, "Data source not found", 404)
        self.sources[uid] |= body | {"version": self.sources[uid]["version"] + 1}
        return {"datasource": self.source(uid), "message": "Datasource updated", "name": body["name"]}

    def source_health(self, uid):
        need(uid in self.sources, "Data source not found", 404)
        need(self.health[0] == 200, self.health[1].get("message"), self.health[0])
        return self.health[1]

    def folder(self, uid):
        need(uid in self.folders, "folder not found", 404)
        return self.folders[uid]

    def add_folder(self, body):
        need(set(body) <= {"uid", "title", "parentUid"} and body.get("title"), "bad request data")
        need(re.fullmatch(r"[\w-]{1,40}", body["uid"]), "uid contains illegal characters or is too long")
        need(body["uid"] not in self.folders, "the folder has been changed by someone else", 409)
        self.folders[body["uid"]] = {"id": 1, **body, "version": 1}
        return self.folders[body["uid"]]

    def dashboard(self, uid):
        need(uid in self.dashboards, "Dashboard not found", 404)
        return self.dashboards[uid]

    def save_dashboard(self, body):
        need(set(body) <= {"dashboard", "folderUid", "overwrite", "message"}, "bad request data")
        one, there = body["dashboard"], self.dashboards.get(body["dashboard"]["uid"])
        need(one["title"] and len(one["uid"]) <= 40, "Dashboard title cannot be empty")
        need(body["folderUid"] in self.folders, "folder not found", 404)
        need(there is None or body.get("overwrite"), "The dashboard has been changed by someone else", 412)
        version = there["dashboard"]["version"] + 1 if there else 1
        self.dashboards[one["uid"]] = {
            "dashboard": {**one, "id": 7, "version": version}, "meta": {"folderUid": body["folderUid"]},
        }  # fmt: skip
        return {"uid": one["uid"], "status": "success", "version": version, "url": f"/d/{one['uid']}/x"}

    def group(self, folder, name):
        need((folder, name) in self.groups, "rule group not found", 404)
        return self.groups[folder, name]

    def put_group(self, folder, name, body):
        need(folder in self.folders, "folder not found", 404)
        need(set(body) == {"title", "folderUid", "interval", "rules"}, "bad request data")
        need(type(body["interval"]) is int and body["interval"] % 10 == 0, "interval must be a multiple of 10 seconds")
        need((body["title"], body["folderUid"]) == (name, folder), "group does not fit its address")
        titles = [rule["title"] for rule in body["rules"]]
        need(len(titles) == len(set(titles)), "a conflicting alert rule is found")
        for rule in body["rules"]:
            need(RULE <= set(rule) <= RULE | OPTIONAL, f"invalid alert rule: {set(rule) ^ RULE}")
            need(re.fullmatch(r"[\w-]{1,40}", rule["uid"]), "invalid uid")
            need((rule["folderUID"], rule["ruleGroup"]) == (folder, name), "invalid alert rule: another group")
            need(rule["noDataState"] in ("Alerting", "NoData", "OK"), "unknown no data state")
            need(rule["execErrState"] in ("Alerting", "Error", "OK"), "unknown error state")
            need(rule["condition"] in [query["refId"] for query in rule["data"]], "condition does not exist")
            for query in rule["data"]:
                known = query["datasourceUid"] == "__expr__" or query["datasourceUid"] in self.sources
                need(known, f"data source {query['datasourceUid']} does not exist")
                need(type(query["relativeTimeRange"]["from"]) is int, "bad time range")
            minutes = re.fullmatch(r"(\d+)m", rule["for"])
            need(minutes, "bad duration")
        self.groups[folder, name] = {**body, "rules": [shown(rule) for rule in body["rules"]]}
        return self.groups[folder, name]

    UID = r"([\w-]+)"
    ROUTES = (
        (r"GET /api/health", about),
        (rf"GET /api/datasources/uid/{UID}", source),
        (rf"GET /api/datasources/uid/{UID}/health", source_health),
        (r"POST /api/datasources", add_source),
        (rf"PUT /api/datasources/uid/{UID}", put_source),
        (rf"GET /api/folders/{UID}", folder),
        (r"POST /api/folders", add_folder),
        (rf"GET /api/dashboards/uid/{UID}", dashboard),
        (r"POST /api/dashboards/db", save_dashboard),
        (rf"GET /api/v1/provisioning/folder/{UID}/rule-groups/{UID}", group),
        (rf"PUT /api/v1/provisioning/folder/{UID}/rule-groups/{UID}", put_group),
    )


def shown(rule):
    """A rule as Grafana answers it: durations in its own words, and fields of its own."""
    minutes = int(rule["for"][:-1])
    data = [
        {**query, "queryType": "", "model": {"intervalMs": 1000, "maxDataPoints": 43200, **query["model"]}}
        for query in rule["data"]
    ]
    duration = "0s" if not minutes else f"{minutes // 60}h" if minutes % 60 == 0 else f"{minutes}m"
    return {**rule, "id": 1, "updated": "2026-11-01T00:00:00Z", "provenance": "api", "for": duration, "data": data}


def serve(grafana):
    """Serves it; returns the server, whose address is `server_address`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            length = int(self.headers.get("Content-Length") or 0)
            raw = self.rfile.read(length)
            try:
                role = TOKENS.get((self.headers["Authorization"] or "").removeprefix("Bearer "))
                need(role, "Invalid API key", 401)
                need(self.command == "GET" or self.headers["Content-Type"] == "application/json", "bad content type")
                status, body = 200, grafana.answer(self.command, self.path, role, json.loads(raw) if raw else None)
            except Refused as refused:
                status, body = refused.status, {"message": refused.message}
            text = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_POST = do_PUT = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    return server
