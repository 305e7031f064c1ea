"""The command `mapping`: is a mapping file right, and what would it make of a metric."""

import json
from pathlib import Path
from typing import Annotated

import typer

from meterhouse_collector.terminal import DONE, Json, failed

mapping = typer.Typer(
    help="The mapping file: which meter and customer the metrics and spans of other sources are.",
    no_args_is_help=True,
    add_completion=False,
)


@mapping.callback()
def _mapping() -> None:
    """The mapping file: which meter and customer the metrics and spans of other sources are."""


@mapping.command("check")
def mapping_check(
    file: Annotated[Path, typer.Argument(help="The mapping file (METERHOUSE_MAPPING).")],
    metric: Annotated[list[str] | None, typer.Option(help="Say which rule this metric gets; several times.")] = None,
    as_json: Json = False,
) -> None:
    """Check a mapping file; all its mistakes are told at once."""
    from meterhouse_collector.foreign.mapping import MappingError, parse

    try:
        found = parse(file.read_text(encoding="utf-8"), str(file))
    except MappingError as problem:
        raise failed(str(problem)) from None
    except OSError as problem:
        raise failed(f"{file} cannot be read: {problem.strerror}") from None
    except UnicodeDecodeError:
        raise failed(f"{file} is no text in UTF-8") from None
    chosen = {name: found.rule_for(name) for name in metric or ()}
    if as_json:
        metrics = {name: None if rule is None else rule.meter or name for name, rule in chosen.items()}
        print(json.dumps({"rules": len(found.rules), "span_customer": found.span_customer, "metrics": metrics}))
        raise typer.Exit(DONE)
    spans = f", spans name their customer in {found.span_customer}" if found.span_customer else ""
    print(f"{file}: {len(found.rules)} rules for metrics{spans}")
    for name, rule in chosen.items():
        print(f"{name}: " + ("no rule fits" if rule is None else f"{rule.metric} -> {rule.meter or name}"))
    raise typer.Exit(DONE)
