"""What is metered, as a matrix of provider or framework by scenario: filled by the tests that prove each cell.

A test names its cells with `@pytest.mark.cell("openai", "stream")`. A cell without a test is declared in NOT_SUPPORTED,
with the reason, which docs/instrumentation.md repeats. A run that has such tests prints the matrix at its end.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

PROVIDERS = ["openai", "anthropic", "google-genai", "bedrock", "litellm", "mistral", "cohere", "groq", "ollama"]
PROVIDER_SCENARIOS = [
    "sync",
    "async",
    "stream",
    "async stream",
    "stream, closed early",
    "stream, collected",
    "async cancelled",
    "retried",
    "failed",
    "failed in mid-stream",
    "timeout",
    "raw response",
    "cached tokens",
    "reasoning tokens",
    "modalities",
    "tool results handed back",
]
FRAMEWORKS = [
    "mcp",
    "langchain",
    "langgraph",
    "openai-agents",
    "pydantic-ai",
    "llama-index",
    "crewai",
    "smolagents",
    "google-adk",
    "autogen",
    "agent-framework",
    "claude-agent-sdk",
]
FRAMEWORK_SCENARIOS = [
    "tool, sync",
    "tool, async",
    "tool failed",
    "agent name",
    "conversation",
    "step",
    "tokens once",
    "only witness",
    "iteration limit",
    "over MCP once",
]

NOT_SUPPORTED: dict[tuple[str, str], str] = {
    ("anthropic", "modalities"): "its usage tells no modality; an image counts as the tokens it is",
    ("litellm", "raw response"): "litellm has none",
    ("mcp", "tool, sync"): "the client is asynchronous only",
    ("mcp", "agent name"): "the protocol knows no agents; what the code around the call says holds",
    ("mcp", "conversation"): "the protocol knows no conversations; what the code around the call says holds",
    ("mcp", "step"): "the protocol knows no steps; what the code around the call says holds",
    ("mcp", "tokens once"): "tools only: it makes no model calls",
    ("mcp", "only witness"): "tools only: it makes no model calls",
    ("mcp", "iteration limit"): "it runs no agents",
    ("mistral", "raw response"): "the SDK has none",
    ("mistral", "reasoning tokens"): "Mistral does not tell them apart: they are in llm.tokens.output",
    ("cohere", "reasoning tokens"): "Cohere does not tell them apart: they are in llm.tokens.output",
    ("ollama", "retried"): "the SDK never retries",
    ("ollama", "raw response"): "the SDK has none",
    ("ollama", "reasoning tokens"): "Ollama does not tell them apart: they are in llm.tokens.output",
    ("ollama", "modalities"): "Ollama reports tokens without their modality",
    ("smolagents", "tool, async"): "its tools are synchronous only",
    ("smolagents", "conversation"): "it has no conversation ids",
    ("autogen", "conversation"): "its agents and teams have no conversation ids",
    ("autogen", "step"): "it does not number an agent's steps",
    (
        "autogen",
        "iteration limit",
    ): "its limits (max_turns, max_tool_iterations, terminations) are ordinary ends of a run",
    ("agent-framework", "step"): "it does not number an agent's steps",
    ("agent-framework", "iteration limit"): "at its limit it asks for a last answer and tells nobody",
    ("claude-agent-sdk", "tool, sync"): "its own tools are asynchronous only",
    ("claude-agent-sdk", "step"): "it reports usage per turn, not per step",
}
"""(provider or framework, scenario) -> why there is no such cell, or why it is not metered."""

_MARK = re.compile(r"pytest\.mark\.cell\(\s*\"([^\"]+)\",\s*\"([^\"]+)\"\s*,?\s*\)")
TABLES = [(PROVIDERS, PROVIDER_SCENARIOS), (FRAMEWORKS, FRAMEWORK_SCENARIOS)]
CELLS = {(subject, scenario) for subjects, scenarios in TABLES for subject in subjects for scenario in scenarios}


def marked(directory: Path) -> set[tuple[str, str]]:
    """The cells that tests of a directory claim, whether or not their libraries are installed here."""
    sources = [path.read_text() for path in sorted(directory.glob("test_*.py"))]
    return {(subject, scenario) for source in sources for subject, scenario in _MARK.findall(source)}


def tables(words: Mapping[tuple[str, str], str]) -> list[list[str]]:
    """The matrix as Markdown tables, scenarios down, with a word per cell."""
    found = []
    for subjects, scenarios in TABLES:
        rows = [["", *subjects]]
        rows += [[scenario, *(words.get((subject, scenario), "") for subject in subjects)] for scenario in scenarios]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [
            "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
        ]
        lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        found.append(lines)
    return found


def documented(claimed: Iterable[tuple[str, str]]) -> str:
    """The matrix as docs/instrumentation.md shows it."""
    words = dict.fromkeys(claimed, "exact") | dict.fromkeys(NOT_SUPPORTED, "no")
    blocks = ["\n".join(lines) for lines in tables(words)]
    reasons: dict[tuple[str, str], list[str]] = {}
    for (subject, scenario), why in sorted(NOT_SUPPORTED.items()):
        reasons.setdefault((subject, why), []).append(scenario)
    notes = [f"- {subject}, {'; '.join(scenarios)}: {why}" for (subject, why), scenarios in reasons.items()]
    return "\n\n".join([*blocks, "Cells that say no:", "\n".join(notes)])


class Matrix:
    """Prints what the cells' tests came to in this run."""

    def __init__(self) -> None:
        self._cells: dict[str, list[tuple[str, str]]] = {}
        self._words: dict[tuple[str, str], str] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            cells = [tuple(mark.args) for mark in item.iter_markers("cell")]
            for cell in cells:
                if cell not in CELLS:
                    raise pytest.UsageError(
                        f"{item.nodeid}: there is no cell {cell} in tests/instrumentation/matrix.py"
                    )
            if cells:
                self._cells[item.nodeid] = cells

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for cell in self._cells.get(report.nodeid, ()):
            if report.failed:
                self._words[cell] = "FAILED"
            elif report.passed and report.when == "call":
                self._words.setdefault(cell, "exact")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self._words:
            return
        terminalreporter.section("what is metered (empty: not run here)", sep="-")
        for lines in tables(self._words | dict.fromkeys(NOT_SUPPORTED, "no")):
            for line in [*lines, ""]:
                terminalreporter.line(line)
