"""`meterhouse report`: figures for finance, from the warehouse's views, the same as the ledger's."""

import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from meterhouse_reports.definitions import REPORTS, CannotBe, Report
from meterhouse_reports.document_commands import invoice, statement
from meterhouse_store.terminal import Data, existing, explained, fail, write_out

if TYPE_CHECKING:
    from meterhouse_reports.made import Made

EXCEPTIONS: Final = 3
_EPILOG: Final = """
Exit codes: 0 done; 1 failed; 2 called wrongly; 3 done, and something needs a look: stations that differ, or the
warehouse lacks some of the ledger.
"""


class Format(StrEnum):
    """How a report is written."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"
    XLSX = "xlsx"


report = typer.Typer(
    help="Reports for finance: revenue, usage, deferred credits, ageing, tax, reconciliation, accounting export.",
    no_args_is_help=True,
    add_completion=False,
)

Period = Annotated[
    str, typer.Option(help="2026-10, 2026-08..2026-10, 2026 or 2026-10-01..2026-10-15; unsaid: the last whole month.")
]
By = Annotated[str, typer.Option(help="What it is grouped by, with commas between.")]
Customer = Annotated[str | None, typer.Option(help="Only this customer.")]
Form = Annotated[
    Format, typer.Option("--format", help="Money has its currency's digits; in parquet it has those of the views.")
]
Out = Annotated[
    Path | None, typer.Option(help="Write to this file, - is standard output; needed for xlsx and parquet.")
]


def _command(one: Report) -> Callable[..., None]:
    unasked = ",".join(one.by)

    def run(
        period: Period = "",
        by: By = unasked,
        customer: Customer = None,
        form: Form = Format.TABLE,
        out: Out = None,
        data: Data = None,
    ) -> None:
        _write(one, period, by, customer, form, out, data)

    columns = ", ".join(sorted(one.dimensions))
    run.__doc__ = f"{one.about}\n\nIt can be grouped by: {columns}.\n\n{_EPILOG}"
    return run


for _one in REPORTS.values():
    report.command(_one.name)(_command(_one))


@report.command("journal", epilog=_EPILOG)
def journal_command(
    period: Period = "",
    accounts: Annotated[
        Path | None, typer.Option(help="YAML that maps each account to its code, such as `receivable: '1200'`.")
    ] = None,
    customer: Customer = None,
    form: Form = Format.TABLE,
    out: Out = None,
    data: Data = None,
) -> None:
    """The ledger's entries for an accounting program, with debit, credit and the codes of its accounts.

    What was rated is dated with the last day of its period, all else with the day on which it happened.
    """
    from meterhouse_reports.journal import codes_from, journal

    try:
        one = journal(codes_from(accounts))
    except CannotBe as problem:
        raise typer.BadParameter(str(problem)) from None
    _write(one, period, ",".join(one.by), customer, form, out, data)


report.command("invoice")(invoice)
report.command("statement")(statement)


@report.command("dictionary")
def dictionary_command(data: Data = None) -> None:
    """Every view that finance reads, with its columns and types, as Markdown."""
    from clickhouse_connect.driver.exceptions import ClickHouseError

    from meterhouse_reports.dictionary import dictionary
    from meterhouse_store import warehouse

    settings = existing(data)
    try:
        print(dictionary(warehouse.connect(settings, user=warehouse.READER)), end="")
    except (warehouse.WarehouseUnavailable, ClickHouseError) as problem:
        fail(f"the warehouse cannot be asked: {problem}")


def _write(
    one: Report, period: str, by: str, customer: str | None, form: Format, out: Path | None, data: Path | None
) -> None:
    from clickhouse_connect.driver.exceptions import ClickHouseError

    from meterhouse_reports import made as making
    from meterhouse_store import registry, warehouse
    from meterhouse_store.sql import open_engine

    if out is None and form in (Format.PARQUET, Format.XLSX):
        raise typer.BadParameter(f"--format {form} needs --out FILE")
    settings = existing(data)
    grouped = [name.strip() for name in by.split(",") if name.strip()]
    with explained():
        try:
            span = making.span_of(period, datetime.now(UTC))
            client = warehouse.connect(settings, user=warehouse.READER)
            engine = open_engine(settings)
            made = making.make(client, settings.namespace, one, span, grouped, customer)
            if customer and not made.rows and registry.customer(engine, settings.namespace, customer) is None:
                raise CannotBe(f"there is no customer {customer!r}: `meterhouse customers list` shows them")
            short = making.lacking(engine, client, settings.namespace)
            if form is Format.PARQUET:
                told: str | bytes = making.as_file(client, settings.namespace, one, span, grouped, customer, "Parquet")
            else:
                zones = {it.customer_id: it.time_zone for it in registry.customers(engine, settings.namespace)}
                title = f"{one.name} {span.start:%Y-%m-%d}..{span.end:%Y-%m-%d}"
                told = _told(made, form, title, settings.namespace, zones)
        except CannotBe as problem:
            raise typer.BadParameter(str(problem)) from None
        except (warehouse.WarehouseUnavailable, ClickHouseError) as problem:
            fail(f"the warehouse cannot be asked: {problem}")
    if out is None:
        with explained():
            print(told, flush=True)
    else:
        write_out(out, told.encode() if isinstance(told, str) else told)
        count = len(made.rows)
        print(f"{count:,} {'row' if count == 1 else 'rows'} in {out}", file=sys.stderr)
    for sentence in short:
        print(sentence, file=sys.stderr)
    if short or any(row[made.columns.index("differs")] for row in made.rows if "differs" in made.columns):
        raise typer.Exit(EXCEPTIONS)


def _told(made: "Made", form: Format, title: str, namespace: str, zones: Mapping[str, str]) -> str | bytes:
    from meterhouse_reports import formats

    if form is Format.XLSX:
        return formats.as_xlsx(made, title)
    if form is Format.CSV:
        return formats.as_csv(made).rstrip("\r\n")
    if form is Format.JSON:
        return formats.dumps(made, report=made.report.name, namespace=namespace, title=title)
    return f"{title}\n\n{formats.as_table(made, zones)}"
