"""The demo's middle part: starts the three example agents, gives them work for three customers, kills and restarts.

Agents are started exactly as a user would start them; what makes them metered is in `LAUNCH` and the environment.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo_system import BIN, DemoError, System, free_port, get_json, post_json, until

HERE = Path(__file__).parent
CUSTOMERS = ("acme", "globex", "initech")
AGENT_TIMEOUT_S = 90.0
WORDS_BEFORE_KILL = 5
LIVE_SECONDS_BEFORE_KILL = 6.0
LONG_QUESTION = "Tell me the history of this shop in full detail."

AUTO = [str(BIN / "opentelemetry-instrument"), sys.executable]
RUN = [str(BIN / "meterhouse"), "run", "--", sys.executable]


@dataclass(frozen=True)
class Killed:
    """The agent that was killed, and the request that was being streamed to it (empty where nobody can know)."""

    agent: str
    request_id: str
    words_sent: int


class Agents:
    """The agents of one run, asked `questions` times per agent and customer.

    `provider_url` None: the real providers are called (`--live`).
    """

    def __init__(self, system: System, provider_url: str | None, questions: int) -> None:
        self.system, self.provider_url, self.questions = system, provider_url, questions
        self.tool_log = system.data / "tool-server.jsonl"
        self.web_port = free_port()
        endpoints = system.file("run/endpoints.json")["collector"]
        self.env: dict[str, str] = {
            "METERHOUSE_ENDPOINT": endpoints["http"],
            "METERHOUSE_API_KEY": endpoints["api_key"],
            "METERHOUSE_JOURNAL_DIR": str(system.data / "agent-journals"),
        }
        if provider_url is not None:
            self.env |= {
                "OPENAI_BASE_URL": f"{provider_url}/v1",
                "OPENAI_API_KEY": "sk-local",
                "ANTHROPIC_BASE_URL": provider_url,
                "ANTHROPIC_API_KEY": "local",
            }

    # ---- the three agents -------------------------------------------------------------------------------------------

    def start_help_desk(self, customer: str, name: str) -> subprocess.Popen[str]:
        """openai SDK; its customer comes from the environment."""
        env = {"METERHOUSE_CUSTOMER": customer, "METERHOUSE_AGENT": "help-desk", "AGENT_USER": customer}
        return self._start(name, [*AUTO, "agent.py"], "openai_agent", env)

    def start_travel_desk(self) -> None:
        """anthropic SDK in a web application; the customer of each request comes from its header x-customer-id."""
        env = {"METERHOUSE_AGENT": "travel-desk", "ASGI_MIDDLEWARE": "meterhouse.middleware:CustomerFromHeader"}
        self._start("travel-desk", [*AUTO, "agent.py", "--port", str(self.web_port)], "anthropic_agent", env)
        until("the travel desk's start", lambda: get_json(f"http://127.0.0.1:{self.web_port}/healthz"))

    def start_bookkeeper(self) -> subprocess.Popen[str]:
        """openai SDK and an MCP server's tools; a five-line host says for whom."""
        env = {"METERHOUSE_AGENT": "bookkeeper", "TOOL_LOG": str(self.tool_log)}
        return self._start("bookkeeper", [*RUN, "host.py"], "mcp_agent", env)

    def _start(self, name: str, command: list[str], folder: str, env: Mapping[str, str]) -> subprocess.Popen[str]:
        return self.system.start(name, command, cwd=HERE / folder, env={**self.env, **env})

    # ---- their work -------------------------------------------------------------------------------------------------

    def work(self) -> None:
        """All three at work at the same time, each for all three customers."""
        for customer in CUSTOMERS:
            help_desk = self.start_help_desk(customer, _help_desk(customer))
            ask(help_desk, self._questions("Where is order", self.questions))
        bookkeeper = self.start_bookkeeper()
        asked = self._questions("What is open on account", self.questions)
        ask(bookkeeper, [f"{customer}: {question}" for question in asked for customer in CUSTOMERS])
        close_input(bookkeeper)
        self.start_travel_desk()
        self.ask_travel_desk(self.questions)
        self.system.finish("bookkeeper", AGENT_TIMEOUT_S)
        for customer in CUSTOMERS[1:]:
            self.system.finish(_help_desk(customer), AGENT_TIMEOUT_S)

    def kill_in_mid_stream(self) -> Killed:
        """The first customer's help desk is asked for a long answer and dies by SIGKILL while it is being streamed."""
        victim = _help_desk(CUSTOMERS[0])
        ask(self.system.process(victim), [LONG_QUESTION])
        if self.provider_url is None:
            time.sleep(LIVE_SECONDS_BEFORE_KILL)
            self.system.kill(victim)
            return Killed(victim, "", 0)
        stream = until("a long answer to be streamed", self._long_stream, AGENT_TIMEOUT_S, pause_s=0.05)
        self.system.kill(victim)
        return Killed(victim, stream["request_id"], stream["words_sent"])

    def go_on(self) -> None:
        """The killed help desk starts again and goes on; the travel desk never stopped."""
        name = _help_desk(CUSTOMERS[0])
        ask(self.start_help_desk(CUSTOMERS[0], name), self._questions("Is it open on day", self.questions))
        self.ask_travel_desk(max(1, self.questions // 2))
        self.system.finish(name, AGENT_TIMEOUT_S)

    def ask_travel_desk(self, questions: int) -> None:
        """Requests of all customers at once, interleaved in one process."""
        jobs = [(customer, n) for n in range(questions) for customer in CUSTOMERS]
        with ThreadPoolExecutor(len(CUSTOMERS)) as pool:
            list(pool.map(lambda job: self._ask_one(*job), jobs))

    def _ask_one(self, customer: str, number: int) -> Any:
        return post_json(
            f"http://127.0.0.1:{self.web_port}/ask",
            {"question": f"When does train {number} leave?"},
            {"x-customer-id": customer, "content-type": "application/json"},
        )

    def stop(self) -> None:
        """The web application gets SIGTERM, as from any process manager."""
        self.system.stop("travel-desk")

    @staticmethod
    def _questions(what: str, count: int) -> list[str]:
        return [f"{what} {4711 + number}?" for number in range(count)]

    def _long_stream(self) -> dict[str, Any] | None:
        streams = get_json(f"{self.provider_url}/sandbox/streams") or []
        return next((s for s in streams if s["words"] > 20 and s["words_sent"] >= WORDS_BEFORE_KILL), None)


def _help_desk(customer: str) -> str:
    return f"help-desk-{customer}"


def ask(process: subprocess.Popen[str], lines: list[str]) -> None:
    """Write questions to an agent's standard input, which stays open."""
    if process.stdin is None:
        raise DemoError("the agent has no standard input")
    process.stdin.write("".join(f"{line}\n" for line in lines))
    process.stdin.flush()


def close_input(process: subprocess.Popen[str]) -> None:
    """The agent has all its work and may end when it is done."""
    if process.stdin is not None:
        process.stdin.close()


def kill_collector(pid: int) -> None:
    """SIGKILL; `meterhouse up` starts it again."""
    os.kill(pid, signal.SIGKILL)
