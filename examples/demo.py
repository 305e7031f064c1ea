"""The whole way, from three agents that know nothing of metering to paid Stripe invoices, and the proof of it.

    make demo                      everything local, about a minute
    make demo ARGS=--stop          and nothing left running
    make demo ARGS=--live          with the real model providers (OPENAI_API_KEY and ANTHROPIC_API_KEY are needed)
    STRIPE_API_KEY=sk_test_... make demo      with Stripe's test mode instead of the sandbox

It exits 0 only when every unit and every cent is accounted for. It uses the public commands and HTTP, nothing else.
"""

import argparse
import json
import os
import secrets
import signal
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import demo_money as money
from demo_agents import CUSTOMERS, Agents, Killed, kill_collector
from demo_proof import Evidence, Proof, ServedCall, executed_tools, prove, replayed_units, served_calls, summed
from demo_system import BIN, DemoError, System, environment, free_port, fresh_directory, get_json, until
from demo_tables import PROOF_COLUMNS, Screen, invoice_rows, proof_json, proof_rows, unfinished_rows

HERE = Path(__file__).parent
TRACE = HERE / "data" / "azure_llm_inference_2023_code_excerpt.csv"
MINI_ROWS = 200
HISTORY = timedelta(days=30)
FAULT_RATE = "0.08"
SEED = "1"


def main() -> int:
    options = _options()
    # Ended from outside, it still stops what it started.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    screen = Screen()
    try:
        demo = Demo(options, screen)
    except DemoError as problem:
        print(f"demo: {problem}", file=sys.stderr)
        return 2
    try:
        return demo.run()
    except DemoError as problem:
        screen.console.print("\n[red]The demo could not go on:[/red]")
        screen.block(str(problem))
        screen.say(f"What every command printed: {demo.system.logs / 'commands.log'}")
        return 1
    finally:
        demo.close()


class Demo:
    """One run; the numbered methods are its steps."""

    def __init__(self, options: argparse.Namespace, screen: Screen) -> None:
        self.options, self.screen = options, screen
        missing = [name for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY") if not os.environ.get(name)]
        if options.live and missing:
            raise DemoError(f"--live needs {' and '.join(missing)} in the environment")
        data: Path = options.data.resolve()
        self.started = datetime.now(UTC)
        self.stripe_is_real = os.environ.get("STRIPE_API_KEY", "").startswith("sk_test_")
        self.webhook_secret = f"whsec_{secrets.token_urlsafe(24)}"
        self.stripe = (
            money.Stripe("https://api.stripe.com", os.environ["STRIPE_API_KEY"])
            if self.stripe_is_real
            else money.Stripe(f"http://127.0.0.1:{free_port()}", "sk_test_sandbox")
        )
        self.provider_url = None if options.live else f"http://127.0.0.1:{free_port()}"
        self.provider_log = data / "provider.jsonl"
        self.trace = TRACE
        fresh_directory(data)
        settings = {"METERHOUSE_DATA": str(data), "METERHOUSE_PORTAL_EVIDENCE": "on"}
        self.system = System(data, {**environment(), **settings, **self._stripe_settings()})
        self.agents: Agents | None = None

    def _stripe_settings(self) -> dict[str, str]:
        settings = {"STRIPE_API_KEY": self.stripe.key, "STRIPE_WEBHOOK_SECRET": self.webhook_secret}
        return settings if self.stripe_is_real else {**settings, "METERHOUSE_STRIPE_URL": self.stripe.url}

    def run(self) -> int:
        with self.screen.step(1, "Start Meterhouse on an empty data directory, publish prices"):
            self.start()
        with self.screen.step(2, "Start a model provider whose log is the truth"):
            self.start_provider()
        with self.screen.step(3, "Run three unmodified agents for three customers"):
            self.run_agents()
        with self.screen.step(4, "Kill one agent in mid-stream and the collector, go on"):
            self.kill_and_go_on()
        with self.screen.step(5, "Load a month of history from a real trace"):
            self.replay()
        with self.screen.step(6, "Rate the period"):
            rating = self.rate()
        with self.screen.step(7, "Invoice with Stripe, get paid, reconcile"):
            self.bill()
        with self.screen.step(8, "Prove it"):
            proof, same = self.prove(rating)
        return self.conclude(proof, same)

    def close(self) -> None:
        """Stop what the demo started itself, and with `--stop` Meterhouse too."""
        self.system.stop_all()
        if self.options.stop:
            self.system.meterhouse("down", ok=(0, 1))

    # ---- 1 to 4: usage comes into being -----------------------------------------------------------------------------

    def start(self) -> None:
        self.system.meterhouse("up", "--detach", "--no-jobs", "--strict", "--stop-after", "2h")
        self.endpoints = self.system.file("run/endpoints.json")
        self._publish_prices()
        for customer, plan in money.PLANS.items():
            self.system.meterhouse("customers", "add", customer, "--name", customer.capitalize(), "--plan", plan)
        self.screen.say(
            f"warehouse {self.endpoints['warehouse']['url']}, collector {self.endpoints['collector']['http']}"
        )
        self.screen.say("customers: " + ", ".join(f"{name} ({plan})" for name, plan in money.PLANS.items()))
        if not self.stripe_is_real:
            self._start_stripe()

    def _publish_prices(self) -> None:
        # Before the customers: they are put on plans of this book. It prices the whole history, which begins later.
        book, history = str(HERE / "pricebook.yaml"), self._time(self.started - HISTORY)
        self.system.meterhouse("prices", "check", book)
        self.screen.block(
            self.system.meterhouse("prices", "publish", book, "--valid-from", history, "--author", "demo")
        )

    def _start_stripe(self) -> None:
        port = self.stripe.url.rpartition(":")[2]
        command = [
            str(BIN / "meterhouse"),
            "sandbox",
            "stripe",
            "--port",
            port,
            "--data",
            str(self.system.data / "stripe"),
        ]
        hook = ["--webhook-url", self.endpoints["webhooks"]["url"], "--webhook-secret", self.webhook_secret]
        self.system.start("stripe", [*command, *hook])
        until("the Stripe sandbox's start", lambda: get_json(f"{self.stripe.url}/healthz"))

    def start_provider(self) -> None:
        if self.provider_url is None:
            self.screen.say("--live: the real providers are called; there is no log of theirs to compare with")
            return
        port = self.provider_url.rpartition(":")[2]
        log = ["--log", str(self.provider_log), "--seed", SEED, "--fault-rate", FAULT_RATE]
        self.system.start("provider", [str(BIN / "meterhouse"), "sandbox", "provider", "--port", port, *log])
        until("the model provider's start", lambda: get_json(f"{self.provider_url}/healthz"))
        self.screen.say(
            f"{self.provider_url} speaks OpenAI and Anthropic; "
            f"it refuses {Decimal(FAULT_RATE) * 100:.0f} % of the attempts"
        )

    def run_agents(self) -> None:
        self.agents = Agents(self.system, self.provider_url, questions=2 if self.options.mini else 8)
        self.agents.work()
        rows = [
            ("help desk", "openai: streaming, tools", "the environment", "opentelemetry-instrument python agent.py"),
            (
                "travel desk",
                "anthropic: a web application",
                "an HTTP header",
                "opentelemetry-instrument python agent.py",
            ),
            ("bookkeeper", "openai: an MCP server's tools", "a five-line host", "meterhouse run -- python host.py"),
        ]
        self.screen.table(("agent", "SDK", "customer from", "started as"), rows, numbers_from=len(rows[0]))

    def _check_cut_off(self, killed: Killed) -> None:
        """The provider's log must have the kill as a stream that broke off."""

        def cut_off() -> bool:
            return any(c.request_id == killed.request_id and c.cut_off for c in self._served())

        until("the provider's line about the stream that broke off", cut_off)

    def kill_and_go_on(self) -> None:
        assert self.agents is not None
        killed = self.agents.kill_in_mid_stream()
        self.screen.say(f"SIGKILL to {killed.agent} after {killed.words_sent} words of its answer {killed.request_id}")
        collector = self._collector_pid()
        kill_collector(collector)
        self.screen.say(f"SIGKILL to the collector, process {collector}")
        if self.provider_url is not None:
            self._check_cut_off(killed)
        self.agents.go_on()
        health = f"{self.endpoints['collector']['http']}/healthz"
        until("the collector's restart", lambda: get_json(health) and self._collector_pid() != collector)
        self.screen.say(f"both started again, the collector as process {self._collector_pid()}")
        self.agents.stop()
        self.system.stop("provider")
        drained = self.system.json("drain", "--journal-dir", self.agents.env["METERHOUSE_JOURNAL_DIR"])
        self.screen.say(f"journals of dead processes that were still to be sent: {drained['journals']}")

    def _collector_pid(self) -> int:
        pid: int = self.system.file("run/children.json")["collector"]
        return pid

    # ---- 5 to 7: history, prices, money -----------------------------------------------------------------------------

    def replay(self) -> None:
        # The cut-off of the period: everything the agents did lies before it.
        self.end = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=1)
        self.begin = self.end - HISTORY
        if self.options.mini:
            self.trace = self.system.data / "trace.csv"
            self.trace.write_text("".join(TRACE.read_text().splitlines(keepends=True)[: MINI_ROWS + 1]))
        window = ("--from", self._time(self.begin), "--to", self._time(self.end))
        told = self.system.meterhouse("replay", str(self.trace), "--customers", ",".join(CUSTOMERS), *window)
        self.screen.block(told)

    def rate(self) -> Any:
        money.wait_for_warehouse(self.system, datetime.now(UTC))
        # 3: done, with usage that has no price; the proof will say which.
        self.system.meterhouse("rate", "run", "--period", self.period, ok=(0, 3))
        self.screen.block(self.system.meterhouse("rate", "status", "--period", self.period, ok=(0, 3)))
        return self.system.json("rate", "status", "--period", self.period, ok=(0, 3))

    def bill(self) -> None:
        self.system.meterhouse("rate", "close", "--period", self.period, "--grace", "0s", ok=(0, 3))
        self.system.meterhouse("bill", "run", "--period", self.period, "--approve")
        money.pay_all(self.system, self.stripe, sandbox=not self.stripe_is_real)
        self.screen.block(self.system.meterhouse("bill", "reconcile", "--period", self.period))
        self._show_margins()

    def _show_margins(self) -> None:
        """What customers pay beside what their usage cost; the models of the trace are in no price list."""
        self.system.meterhouse("costs", "import")
        self.system.meterhouse("costs", "set", "tool.calls", "0", "--why", "functions of the agents' own")
        self.screen.block(self.system.meterhouse("margin", "--period", self.period, ok=(0, 3)))

    @property
    def period(self) -> str:
        return f"{self._time(self.begin)}..{self._time(self.end)}"

    @staticmethod
    def _time(moment: datetime) -> str:
        return moment.strftime("%Y-%m-%dT%H:%M:%SZ")

    # ---- 8: the proof -----------------------------------------------------------------------------------------------

    def prove(self, rating: Any) -> tuple[Proof, bool]:
        evidence = self._evidence(rating)
        proof = prove(evidence)
        self._show(proof, evidence)
        same = self._again_changes_nothing()
        if same:
            self.screen.say("\nrating and billing run again: nothing changed")
        if self.options.json:
            facts = {"period": self.period, "data": str(self.system.data), "repeat_changes_nothing": same}
            self.options.json.write_text(json.dumps(proof_json(proof, evidence.invoices, facts), indent=2))
        return proof, same

    def _evidence(self, rating: Any) -> Evidence:
        return Evidence(
            served=None if self.provider_url is None else self._served(),
            tools=0 if self.provider_url is None else self._executed(),
            replayed=replayed_units(self.trace.read_text().splitlines(), CUSTOMERS),
            stored=money.stored_units(self.system),
            rated=summed(part for units in money.rated_lines(self.system).values() for part in units.items()),
            unbilled=money.left_over(rating, by_choice=True),
            unrated=money.left_over(rating, by_choice=False),
            suspended=money.suspended(self.system),
            invoices=money.invoices(self.system, self.stripe),
        )

    def _show(self, proof: Proof, evidence: Evidence) -> None:
        screen, dead = self.screen, unfinished_rows(proof.unfinished)
        screen.say("log + replay file = stored + unfinished; stored = rated + unbilled; rated = on invoices\n")
        screen.table(PROOF_COLUMNS, proof_rows(proof.rows))
        if evidence.served is None:
            screen.say("the real providers' logs are not at hand: what is proved here begins with the events stored")
        screen.say(f"\nunfinished: killed before the answer could be read ({len(dead)})\n")
        screen.table(("request", "customer", "model", "served, never read"), dead, numbers_from=4)
        screen.say("\ninvoices\n")
        columns = ("customer", "invoice", "state", "ours", "Stripe's")
        screen.table(columns, invoice_rows(evidence.invoices), numbers_from=3)

    def _again_changes_nothing(self) -> bool:
        before = money.fingerprint(self.system)
        self.system.meterhouse("rate", "run", "--period", self.period, ok=(0, 3))
        self.system.meterhouse("bill", "run", "--period", self.period, "--approve")
        return money.fingerprint(self.system) == before

    def _served(self) -> list[ServedCall]:
        return served_calls(self.provider_log.read_text().splitlines())

    def _executed(self) -> int:
        return executed_tools(self.provider_log.read_text().splitlines())

    def conclude(self, proof: Proof, same: bool) -> int:
        say = self.screen.say
        took = (datetime.now(UTC) - self.started).total_seconds()
        if not same:
            say("[red]Running rating and billing again changed something.[/red]")
        for difference in proof.differences:
            say(f"[red]{difference}[/red]")
        if proof.differences or not same:
            say(f"[red]{len(proof.differences)} differences[/red] after {took:.0f} s")
            return 1
        say(f"\n[green]Every unit and every cent is accounted for[/green], after {took:.0f} s.")
        if not self.options.stop:
            token = self.system.file("run/secrets.json")["portal_token"]
            command = os.path.relpath(BIN / "meterhouse")
            say(f"Look at  {self.endpoints['portal']['url']}/?token={token}  (portal)")
            say(f"         {self.endpoints['warehouse']['url']}  (ClickHouse HTTP; users in {self.options.data}/run)")
            if not self.stripe_is_real:
                port = self.stripe.url.rpartition(":")[2]
                say(f"         {self.stripe.url}  (invoices), when this runs:")
                say(f"         {command} sandbox stripe --port {port} --data {self.options.data}/stripe")
            say(f"Stop it  make stop  (or {command} down --data {self.options.data}); by itself after 2 hours")
        return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("demo-data"), help="data directory (default ./demo-data)")
    parser.add_argument("--live", action="store_true", help="call the real model providers")
    parser.add_argument("--mini", action="store_true", help="a few calls and 200 rows of history")
    parser.add_argument("--stop", action="store_true", help="stop Meterhouse at the end")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the proof for machines")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
