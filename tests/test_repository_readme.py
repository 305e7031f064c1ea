"""The README and the docs against the repository: commands, options, make targets, links and folders exist."""

import re
import shlex
import tomllib
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from typer.main import get_command

from meterhouse_store.stack import USUAL_PORTS

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "bench" / "README.md", ROOT / ".env.example"])
README = (ROOT / "README.md").read_text()
COMMANDS = {entry.name: entry for entry in entry_points(group="meterhouse.commands")}


def code_of(page: Path) -> list[str]:
    """The page's code: what is in backticks, and the lines of indented blocks."""
    text = re.sub(r" *\\\n *", " ", page.read_text())  # a command may go on in the next line
    blocks = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    prose = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    return blocks + [" ".join(found.split()) for found in re.findall(r"`([^`]+)`", prose)]


def calls_of(page: Path) -> list[str]:
    """Every call of the `meterhouse` command in the page's code, without the word `meterhouse`."""
    text = [re.sub(r"^.*docker compose run --rm migrate ", "meterhouse ", line) for line in code_of(page)]
    lines = [re.sub(r"^#\s*", "", line) for line in text]
    # A name alone (`meterhouse`), a file or a URL with that name is no call.
    return [line.removeprefix("meterhouse ") for line in lines if re.match(r"meterhouse [a-z-]", line)]


CALLS = sorted({(page.relative_to(ROOT).as_posix(), call) for page in PAGES for call in calls_of(page)})


def problem_with(call: str) -> str | None:
    """Why this call could not work; None when command, subcommand and options exist."""
    words = shlex.split(call.replace("...", ""), comments=True)
    own = words[: words.index("--")] if "--" in words else words
    if own[0].startswith("-"):
        return None if own[0] in ("--help", "--version") else f"no option {own[0]}"
    if own[0] not in COMMANDS:
        return f"no command {own[0]}"
    loaded: Any = COMMANDS[own[0]].load()
    if not hasattr(loaded, "registered_commands"):
        return None
    command: Any = get_command(loaded)
    rest = own[1:]
    while hasattr(command, "commands"):
        if not rest or rest[0].startswith("-"):
            break
        if rest[0] not in command.commands:
            return f"{own[0]} has no subcommand {rest[0]}"
        command, rest = command.commands[rest[0]], rest[1:]
    known = {name for parameter in command.params for name in [*parameter.opts, *parameter.secondary_opts]}
    unknown = {word.partition("=")[0] for word in rest if word.startswith("--")} - known - {"--help"}
    return f"no option {', '.join(sorted(unknown))}" if unknown else None


@pytest.mark.parametrize(("page", "call"), CALLS, ids=[f"{page}: {call}" for page, call in CALLS])
def test_every_meterhouse_command_in_the_docs_exists_with_its_options(page, call):
    assert problem_with(call) is None


def test_the_check_above_can_see_a_mistake():
    assert len(CALLS) > 15
    assert problem_with("portal serv --port 8080") == "portal has no subcommand serv"
    assert problem_with("portal serve --prot 8080") == "no option --prot"
    assert problem_with("portol serve") == "no command portol"
    assert problem_with("run -- python agent.py --whatever") is None


def test_every_make_target_in_the_docs_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        target for page in PAGES for line in code_of(page) for target in re.findall(r"(?:^|&& |\s)make ([a-z]+)", line)
    }
    assert {"demo", "up", "test", "check", "bench", "prove", "stop"} <= named
    assert named <= targets


def test_the_quick_start_is_two_commands():
    section = README.partition("## Quick start")[2].partition("\n## ")[0]
    assert [line.split("#")[0].strip() for line in section.splitlines() if line.startswith("    ")] == [
        "make demo",
        "make up",
    ]


def test_an_existing_agent_is_metered_by_three_lines():
    section = README.partition("## Meter an existing agent")[2].partition("\n## ")[0]
    assert len([line for line in section.splitlines() if line.startswith("    ")]) == 3


def test_the_quick_start_says_once_where_the_command_is():
    assert README.count("source .venv/bin/activate") == 1
    assert "source .venv/bin/activate" in README.partition("## Quick start")[2].partition("\n## ")[0]


def test_what_is_started_by_make_can_be_stopped_by_make():
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^stop:.*\n\t@.*meterhouse down --data demo-data$", makefile, re.MULTILINE)
    assert re.search(r"^down:.*\n\t@.*meterhouse down \$\(ARGS\)$", makefile, re.MULTILINE)


def test_the_limits_say_what_happens_to_usage_in_suspense_and_to_late_usage():
    limits = README.partition("## Limits")[2].partition("\n## ")[0]
    assert "Suspense: quantities that are none can be discarded" in limits
    assert "arrives after its period was closed" in limits


def test_what_it_is_takes_three_sentences():
    first = README.split("\n\n")[1].replace("\n", " ")
    assert len(re.findall(r"[.](?:\s|$)", first)) == 3


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.suffix == ".md"], ids=lambda page: str(page.relative_to(ROOT))
)
def test_every_link_in_the_docs_leads_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_every_package_and_its_folder_are_in_the_readme():
    section = README.partition("## What each folder is")[2].partition("\n## ")[0]
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    packages = [path for path in wheel["only-include"] if (ROOT / path / "__init__.py").exists()]
    assert len(packages) == 8
    assert [path for path in packages if not all(f"`{part}" in section for part in path.split("/"))] == []
    assert [folder for folder in re.findall(r"`(\w+)/`", section) if not (ROOT / folder).is_dir()] == []


def test_the_readme_says_that_the_images_were_not_run():
    assert "The images were not run" in README


def test_the_exporter_of_the_readme_is_a_real_one():
    code = README.partition("    from meterhouse.metric_exporter")[2].partition("\n\nExactly")[0]
    scope: dict[str, Any] = {}
    exec("from meterhouse.metric_exporter" + code.replace("\n    ", "\n"), scope)
    try:
        assert scope["exporter"]._endpoint == "http://127.0.0.1:4318/v1/metrics"
    finally:
        scope["exporter"].shutdown()


def test_the_indented_yaml_of_the_docs_is_yaml_and_keeps_usage_safe():
    block = re.search(r"(?m)^    exporters:\n(?:    .*\n)+", (ROOT / "docs" / "otlp.md").read_text())
    example = yaml.safe_load(block[0])["exporters"]["otlp_http"]
    config = yaml.safe_load((ROOT / "dashboards/provisioning/otel-collector/config.yaml").read_text())
    for exporter in (example, config["exporters"]["otlp_http"]):
        assert exporter["retry_on_failure"]["max_elapsed_time"] == "0s"
        assert exporter["sending_queue"]["storage"] == "file_storage"
        assert exporter["sending_queue"]["block_on_overflow"] is True
        # The exporter appends /v1/metrics to a base URL, which is that of our HTTP door.
        assert urlsplit(exporter["endpoint"]).port == USUAL_PORTS["http"] and not urlsplit(exporter["endpoint"]).path
        assert exporter["headers"] == {"Authorization": "Bearer ${env:METERHOUSE_API_KEY}"}
    assert config["service"]["pipelines"] == {"metrics": {"receivers": ["otlp"], "exporters": ["otlp_http"]}}
    # Agents reach it on the ports of our own doors.
    protocols = config["receivers"]["otlp"]["protocols"]
    ports = {name: int(told["endpoint"].rpartition(":")[2]) for name, told in protocols.items()}
    assert ports == {name: USUAL_PORTS[name] for name in ("grpc", "http")}
    assert set(config["service"]["extensions"]) == set(config["extensions"])


def test_the_docs_say_of_the_usual_processors_what_they_do_to_exemplars():
    section = (ROOT / "docs" / "otlp.md").read_text().partition("### What a Collector's processors do\n")[2]
    table = section.partition("\n\nThis table")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()]
    assert rows[0] == ["processor", "to our own events (exemplars)", "to running totals"]
    said = {name: row[1] for row in rows[2:] for name in re.findall(r"`(\w+)`", row[0])}
    aggregating = {"deltatocumulative", "metricstransform", "interval", "groupbyattrs", "transform"}
    assert {name for name, effect in said.items() if "`exemplars_missing`" in effect} == aggregating
    assert set(said) - aggregating == {
        "batch", "memory_limiter", "filter", "resource", "attributes", "resourcedetection", "cumulativetodelta"
    }  # fmt: skip
