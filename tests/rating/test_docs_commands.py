"""Every command on a line of its own in docs/finance.md and docs/governance.md, run in the order of the page.

They run in one process, on the real engine, SQL and local Stripe. The pages' October is two months ago and their
November the last month, so that the pages hold on any day.
"""

import hashlib
import json
import re
import shlex
import socket
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import uvicorn
import yaml

from meterhouse.cli import main
from meterhouse_collector.journal import Journal
from meterhouse_rating.mirrors import catch_up
from meterhouse_sandbox.stripe_server import application
from meterhouse_store import mirror
from meterhouse_store.tables import ledger_transactions, rated_lines

DOCS = Path(__file__).parents[2] / "docs"
BOOK = """
book: governed
currency: USD
metrics:
  input: {unit: token, meters: [llm.tokens.input]}
plans:
  pay:
    components:
      tokens: {model: per_unit, metric: input, per: 1000, price: 2}
"""
LOOK, DONE = 3, 0
SAYS = {
    "prices approve": "version 2",
    "namespaces set live --sync off": "off: incident 17",
    "bill review": "acme",
    "rate explain": "2 USD per 1,000",
    "rate corrections": "-2.00",  # 1,000 tokens less, at 2.00 a thousand
    "report revenue": "22.00",
    "report invoice": "Invoice, 1 lines",
    "report statement acme --period 2026-11": "Usage statement, 2 lines",
    "ledger balance": "acme",
}
"""What a command's answer has in it, by how the command begins in the page."""


def commands(page):
    """The page's commands, in order, as they stand there; remarks are left out."""
    text = re.sub(r" *\\\n *", " ", (DOCS / page).read_text())
    lines = [line.strip().partition("  #")[0].strip() for line in text.splitlines() if line.startswith("    ")]
    return [line.removeprefix("meterhouse ") for line in lines if line.startswith("meterhouse ")]


def months_ago(count):
    """The first moment of that month."""
    first = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    for _ in range(count):
        first = (first - timedelta(days=1)).replace(day=1)
    return first


@pytest.fixture
def stripe(tmp_path, monkeypatch):
    """The local Stripe on a free port."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(application(tmp_path / "stripe"), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        monkeypatch.setenv("METERHOUSE_STRIPE_URL", url)
        monkeypatch.setenv("STRIPE_API_KEY", "sk_test_docs")
        yield
        server.should_exit = True
        thread.join()


@pytest.fixture
def run(sqlite_house, stripe, command_environment, tmp_path, monkeypatch, capsys):
    """Runs a page's command as it stands there: (exit code, what it said). October is closed."""
    house = sqlite_house
    october, november, december = months_ago(2), months_ago(1), months_ago(0)
    for name, value in command_environment(house).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METERHOUSE_BRAND_NAME", "Operator")
    house.at(datetime.now(UTC))
    house.publish(BOOK, valid_from=datetime(2025, 1, 1, tzinfo=UTC))
    house.customer("acme")
    house.collected(f"{december:%Y-%m-%dT%H:%M:%S}")
    for event, when, tokens in (("one", october, "10000"), ("again", october, "1000"), ("two", november, "500")):
        at = f"{when + timedelta(days=9):%Y-%m-%dT%H:%M:%S}"
        house.event("acme", "llm.tokens.input", tokens, at, event_id=event, model="gpt-5", source="meterhouse")
    house.close(f"{october:%Y-%m}")
    house.run(f"{november:%Y-%m}")
    (line,) = [row["line_id"] for row in house.rows(rated_lines) if row["amount_minor"] == 2200]
    Journal(house.settings.data / "journal", on_fatal=lambda problem: None).close()  # nothing came through a door
    Path("book.yaml").write_text(BOOK.replace("price: 2", "price: 3"))
    accounts = (DOCS / "finance.md").read_text().partition("## Accounting codes")[2]
    Path("codes.yaml").write_text("\n".join(re.findall(r'^    (\w+: "\d+")$', accounts, re.MULTILINE)))
    told = {
        "2026-11-01": f"{november:%Y-%m-%d}",
        "2026-10": f"{october:%Y-%m}",
        "2026-11": f"{november:%Y-%m}",
        "HASH": hashlib.sha256(Path("book.yaml").read_bytes()).hexdigest()[:12],
        "LINE": line,
        "EVENT": "again",
        "set live": "set test",
        "history live": "history test",
    }

    def call(command):
        command = re.sub("|".join(told), lambda found: told[found[0]], command)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            sys.exit(main(shlex.split(command)))
        said = capsys.readouterr()
        return ended.value.code, said.out + said.err

    call.house = house
    assert call("prices persons 2 --why docs --by ann")[0] == DONE
    return call


@pytest.mark.parametrize("page", ["finance.md", "governance.md"])
def test_the_commands_of_the_page_work(run, page):
    assert run("bill run --period 2026-10")[0] in (DONE, LOOK)
    mirror.push(run.house.world.engine, run.house.world.client, "test")
    found = commands(page)
    assert len(found) > 8
    wrong = []
    for command in found:
        code, said = run(command)
        wanted = [text for beginning, text in SAYS.items() if command.startswith(beginning)]
        if code not in (DONE, LOOK) or any(text not in said for text in wanted):
            wrong.append(f"{command}\n  exit code {code}, wanted {wanted}\n{said}")
    assert wrong == [], "\n".join(wrong)
    if page == "governance.md":
        kinds = [row["kind"] for row in run.house.rows(ledger_transactions)]
        assert kinds.count("adjustment") == 0  # a dry run
        catch_up(run.house.world.engine, run.house.world.client, "test")
        assert run("report reconciliation --period 2026-10")[0] == DONE


def test_a_sync_that_fails_is_on_the_dashboard_until_it_works(run, monkeypatch):
    alerts = yaml.safe_load((DOCS.parent / "dashboards/provisioning/alerting/meterhouse.yaml").read_text())
    late = next(it for it in alerts["groups"][0]["rules"] if it["uid"] == "meterhouse-late-invoices")
    panels = json.loads((DOCS.parent / "dashboards/grafana/billing.json").read_text())["panels"]
    (unbilled,) = [it["targets"][0]["rawSql"] for it in panels if it["title"] == "Unbilled revenue"]
    unbilled = re.sub(r"\$__conditionalAll\(.*, \$\w+\)", "1=1", unbilled).replace("${namespace:singlequote}", "'test'")
    client = run.house.world.client

    def shown():
        mirror.push(run.house.world.engine, client, "test")
        ((count,),) = client.query(late["data"][0]["model"]["rawSql"]).result_rows
        return count, {row[0]: str(row[2]) for row in client.query(unbilled).result_rows}

    with monkeypatch.context() as down:
        down.setenv("METERHOUSE_STRIPE_URL", "http://127.0.0.1:9")  # nobody is there
        assert run("bill run --period 2026-10 --approve")[0] == 1
    late_before, stages = shown()
    assert stages == {"draft": "22.000", "period open": "1.000"}
    assert run("bill run --period 2026-10 --approve")[0] in (DONE, LOOK)
    assert shown() == (late_before - 1, {"period open": "1.000"})  # the open month may be late, too
