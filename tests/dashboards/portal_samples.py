"""Two customers with a closed October and November under way, and browsers that visit their pages."""

import re
import socket
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import uvicorn
from quick_stores import empty
from starlette.testclient import TestClient

from meterhouse_portal import app, members
from meterhouse_rating import run as rating_run
from meterhouse_rating import versions
from meterhouse_rating.run import Request
from meterhouse_rating.world import World
from meterhouse_store import meters, registry, sql, warehouse
from meterhouse_store.settings import Settings

NOW = datetime(2026, 11, 21, 3, 30, tzinfo=UTC)
TOKEN = "a-token-of-more-than-16-characters"
BOOK = """
book: tests
currency: EUR
metrics:
  input_tokens: {unit: token, meters: [llm.tokens.input]}
  tool_calls: {unit: call, meters: [tool.calls]}
unbilled: {meters: [llm.requests]}
plans:
  pay:
    title: Pay
    components:
      input: {model: per_unit, metric: input_tokens, per: 1000, price: 2.00}
      tools: {model: per_unit, metric: tool_calls, price: 0.50}
"""
COLUMNS = (
    "namespace, customer_id, meter, event_id, event_time, quantity, raw_value, reason, status, agent_name, model, "
    "tool, call_id, conversation_id, received_at, first"
)


def event(customer, meter, time, quantity, **more):
    return {"customer": customer, "meter": meter, "time": time, "quantity": quantity} | more


# Acme's October, in Berlin: 300,000 tokens are 600.00 EUR, four tool calls 2.00. November: 30,000 a day for 20 days.
EVENTS = [
    event("acme", "llm.tokens.input", "2026-10-05 10:00:00", 200_000, call="c-oct-1", model="gpt-5", agent="helper"),
    event("acme", "llm.tokens.input", "2026-10-31 22:30:00", 100_000, call="c-oct-2", model="gpt-5", agent="helper"),
    event("acme", "tool.calls", "2026-10-05 10:00:01", 4, tool="search", agent="helper"),
    event("acme", "llm.tokens.input", "2026-10-31 23:30:00", 30_000, call="c-nov-0", model="gpt-5", agent="helper"),
    *(
        event("acme", "llm.tokens.input", f"2026-11-{day:02} 12:00:00", 30_000, call=f"c-{day}", model="gpt-5",
              agent="helper", conversation="talk-7" if day == 20 else "")
        for day in range(2, 21)
    ),
    event("acme", "llm.requests", "2026-11-20 12:00:00", 1, call="c-20", model="gpt-5", agent="helper",
          conversation="talk-7"),
    event("acme", "tool.calls", "2026-11-20 12:00:05", 1, tool='=HYPERLINK("http://evil")', agent="<script>"),
    event("globex", "llm.tokens.input", "2026-10-07 10:00:00", 777_000, call="c-globex", model="secret-model"),
    event("globex", "llm.tokens.input", "2026-11-07 10:00:00", 888_000, call="c-globex-2", model="secret-model"),
]  # fmt: skip


@contextmanager
def portal_world(warehouse_address, data, book=BOOK, events=None):
    """The world as the operator has it, and the settings of a portal that may read only."""
    passwords = {name: f"{name}-password-of-the-tests" for name in ("admin", "reader")}

    def settings(user):
        url = f"http://{user}:{passwords[user]}@{warehouse_address}"
        return Settings(data=data, warehouse_url=url, portal_evidence=True)

    client = warehouse.connect(settings("admin"), timeout_s=30)
    empty(client)
    client.command(
        f"INSERT INTO events ({COLUMNS}) VALUES " + ", ".join(row(n, it) for n, it in enumerate(events or EVENTS))
    )
    client.command(
        "INSERT INTO checkpoints (collector_id, segment, position, projected_through, step) "
        f"VALUES ('c', 's', 1, '{NOW:%Y-%m-%d %H:%M:%S}', 1)"
    )
    engine = sql.open_engine(settings("admin"))
    registry.ensure_namespace(engine, "live", now=NOW - timedelta(days=90))
    declared = meters.declared(settings("admin"))
    versions.publish(engine, "live", book, {name: it.unit for name, it in declared.items()}, author="tests", now=NOW)
    for name, zone in (("acme", "Europe/Berlin"), ("globex", "UTC")):
        registry.add_customer(
            engine, "live", name, name=name.capitalize(), currency="EUR", time_zone=zone, plan="pay",
            now=NOW - timedelta(days=60),
        )  # fmt: skip
    at = World(engine, client, "live", declared, now=lambda: NOW)
    list(rating_run.close(at, Request("2026-10"), grace=timedelta(0), wait_s=5))
    for email, customer, role in (
        ("olga@acme.example", "acme", "owner"),
        ("bill@acme.example", "acme", "billing"),
        ("vera@acme.example", "acme", "viewer"),
        ("gus@globex.example", "globex", "owner"),
        ("both@example.com", "acme", "viewer"),
        ("both@example.com", "globex", "owner"),
    ):
        members.set_role(engine, "live", customer, email, role, who="tests", now=NOW)
    yield at, settings("reader")
    client.close()
    engine.dispose()


def row(number, it):
    def quoted(text):
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

    texts = ", ".join(quoted(it.get(name, "")) for name in ("agent", "model", "tool", "call", "conversation"))
    return (
        f"('live', '{it['customer']}', '{it['meter']}', 'e{number}', toDateTime64('{it['time']}', 9, 'UTC'), "
        f"{it['quantity']}, '', '', 'ok', {texts}, toDateTime64('{it['time']}', 9, 'UTC'), {number})"
    )


@contextmanager
def visiting(world, email=None, now=NOW):
    """A browser; signed in where an address is given."""
    at, settings = world
    with TestClient(app.build(settings, TOKEN, now=lambda: now), follow_redirects=False) as browser:
        if email:
            token = members.request_link(at.engine, "live", email, now)
            answer = browser.post(f"/sign-in/{token}")
            assert answer.status_code == 303, answer.text
        yield browser


@contextmanager
def serving(built):
    """The application at an address of its own, for real browsers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(built, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def form_token(page):
    return re.search(r'name="form" value="([0-9a-f]{64})"', page).group(1)


def text_of(page):
    """What a person reads."""
    shown = re.sub(r"<(script|style|title|svg).*?</\1>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", shown))
