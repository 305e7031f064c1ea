"""`meterhouse grafana`: dashboards and alert rules for a Grafana that is there."""

import json
from typing import Annotated, Final

import typer

from meterhouse_store.terminal import Data, Json, existing, explained, fail, print_table

EXCEPTIONS: Final = 3

app = typer.Typer(help="Dashboards and alert rules for your Grafana.", no_args_is_help=True, add_completion=False)


@app.callback()
def _only() -> None:
    """Dashboards and alert rules for your Grafana."""


@app.command("import")
def import_command(
    url: Annotated[str, typer.Option(help="The Grafana: https://grafana.example.com.")],
    token: Annotated[
        str, typer.Option(envvar="METERHOUSE_GRAFANA_TOKEN", help="Of a service account with the role Admin.")
    ],
    warehouse: Annotated[
        str | None,
        typer.Option(
            envvar="METERHOUSE_GRAFANA_WAREHOUSE",
            help="How Grafana reaches ClickHouse, as a user that may only read: http://reader:PASSWORD@host:8123. "
            "Unsaid: the embedded engine of `meterhouse up` on this machine.",
        ),
    ] = None,
    folder: Annotated[str, typer.Option(metavar="UID", help="The folder's uid; made where it is not there.")] = (
        "meterhouse"
    ),
    docs: Annotated[str, typer.Option(help="Where docs/ is found; stands before the alerts' links to runbooks.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Look, and write nothing.")] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Bring the data source, the folder, the dashboards and the alert rules into a Grafana.

    May be repeated: what is there is brought up to date. The plugin grafana-clickhouse-datasource has to be installed
    there. Exit codes: 0 done; 1 refused; 2 called wrongly; 3 done, and the data source does not answer Grafana.
    """
    from meterhouse_reports.grafana import SOURCE, Grafana, GrafanaRefused, Step, bring, shipped
    from meterhouse_store import warehouse as stored

    try:
        grafana = Grafana(url, token)
    except GrafanaRefused as problem:
        raise typer.BadParameter(str(problem)) from None
    done: list[Step] = []
    trouble = ""
    with explained():
        try:
            address = warehouse or stored.embedded_url(existing(data), stored.READER)
            base = docs and f"{docs.rstrip('/').removesuffix('/docs')}/"
            done.extend(bring(grafana, shipped(), address, folder, base, write=not dry_run))
            trouble = "" if dry_run else grafana.health(SOURCE)
        except stored.WarehouseUnavailable as problem:
            fail(f"{problem}; or say how Grafana reaches ClickHouse: --warehouse")
        except GrafanaRefused as problem:
            fail(str(problem))
    if as_json:
        print(json.dumps({"done": [vars(it) for it in done], "dry_run": dry_run, "trouble": trouble or None}, indent=2))
    else:
        rows = [vars(it) for it in done]
        print_table(rows, lambda it: {"what": it["kind"], "name": it["name"], "outcome": it["outcome"]}, False)
        if dry_run:
            print("Nothing was written (dry run).")
        if trouble:
            print(f"The data source does not answer Grafana: {trouble}")
    if trouble:
        raise typer.Exit(EXCEPTIONS)
