"""A report as text, CSV, JSON or a spreadsheet. Amounts keep the digits of their currency, in every one of them."""

import csv
import io
import json
from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Final

from meterhouse_rating.periods import local
from meterhouse_reports.made import Made, totals
from meterhouse_store.currencies import MINOR_DIGITS
from meterhouse_store.numbers import plain
from meterhouse_store.spreadsheet import no_formula

DOUBLE_DIGITS: Final = 15
"""A spreadsheet's numbers are doubles: what has more digits is written as text, or it would be another number."""

_SHORT_ID: Final = 12


def as_table(made: Made, zones: Mapping[str, str]) -> str:
    """For people: columns that line up, totals per currency below; periods on the clocks of `zones`, by customer."""
    if not made.rows:
        return "nothing in this period"
    right = {at for at, name in enumerate(made.columns) if name in made.report.measures}
    cells = [list(made.columns)]
    cells += [[_shown(made, row, at, zones) for at in range(len(row))] for row in made.rows]
    sums = totals(made)
    for currency, of_currency in sorted(sums.items()):
        if len(made.rows) > 1 and made.columns[0] != "currency":
            cells.append([_total_cell(name, currency, of_currency, made) for name in made.columns])
            cells[-1][0] = "total"
    shown = [at for at, name in enumerate(made.columns) if at == 0 or any(row[at] for row in cells[1:])]
    widths = {at: max(len(row[at]) for row in cells) for at in shown}
    lines = [
        "  ".join(row[at].rjust(widths[at]) if at in right else row[at].ljust(widths[at]) for at in shown).rstrip()
        for row in cells
    ]
    if len(cells) > len(made.rows) + 1:
        lines.insert(len(made.rows) + 1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def as_csv(made: Made) -> str:
    """RFC 4180, with a head; times in ISO 8601. A text that a spreadsheet would run begins with an apostrophe."""
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(made.columns)
    for row in made.rows:
        # Names come from agents: a spreadsheet must not run them.
        cells = [_exact(made, row, at) for at in range(len(row))]
        writer.writerow([no_formula(it) if isinstance(row[at], str) else it for at, it in enumerate(cells)])
    return file.getvalue()


def as_json(made: Made) -> list[dict[str, Any]]:
    """A row each; exact numbers are text, as a JSON number may lose digits."""
    kept = (bool, int, type(None))
    return [
        {name: row[at] if isinstance(row[at], kept) else _exact(made, row, at) for at, name in enumerate(made.columns)}
        for row in made.rows
    ]


def as_xlsx(made: Made, title: str) -> bytes:
    """A workbook with one sheet; the same bytes each time."""
    import xlsxwriter

    file = io.BytesIO()
    book = xlsxwriter.Workbook(file, {"in_memory": True, "strings_to_formulas": False, "strings_to_urls": False})
    book.set_properties({"title": title, "created": datetime(2026, 1, 1)})  # noqa: DTZ001 - or it is that of now
    sheet = book.add_worksheet(made.report.name)
    bold = book.add_format({"bold": True})
    forms = {digits: book.add_format({"num_format": f"#,##0{'.' * (digits > 0)}{'0' * digits}"}) for digits in range(4)}
    for at, name in enumerate(made.columns):
        sheet.write_string(0, at, name, bold)
        sheet.set_column(at, at, max(12, len(name) + 2))
    for number, row in enumerate(made.rows, 1):
        for at, value in enumerate(row):
            text = _exact(made, row, at)
            if isinstance(value, Decimal | int) and not isinstance(value, bool) and len(text) <= DOUBLE_DIGITS:
                sheet.write_number(
                    number, at, float(text), forms[_digits(made, row, at)] if _is_money(made, at) else None
                )
            else:
                sheet.write_string(number, at, text)
    sheet.freeze_panes(1, 0)
    book.close()
    return file.getvalue()


def _is_money(made: Made, at: int) -> bool:
    return made.columns[at] in made.report.amounts()


def _digits(made: Made, row: tuple[Any, ...], at: int) -> int:
    return MINOR_DIGITS[row[made.columns.index("currency")]] if _is_money(made, at) else 0


def _exact(made: Made, row: tuple[Any, ...], at: int) -> str:
    value = row[at]
    if value is None:
        return ""
    if isinstance(value, Decimal):
        return f"{value:.{_digits(made, row, at)}f}" if _is_money(made, at) else plain(value)
    if isinstance(value, datetime):
        return value.isoformat(timespec="auto").replace("+00:00", "Z")
    if isinstance(value, date):
        return value.isoformat()
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _shown(made: Made, row: tuple[Any, ...], at: int, zones: Mapping[str, str]) -> str:
    value, name = row[at], made.columns[at]
    if name == "period_start":
        customer = row[made.columns.index("customer")] if "customer" in made.columns else ""
        zone = zones.get(customer, "UTC")
        told = local(value, zone).removesuffix(zone).rstrip().removesuffix(" 00:00")
        return told if zone == "UTC" else f"{told} {zone}"
    if name in ("transaction", "corrects"):
        return str(value)[:_SHORT_ID]  # a hash of 64 digits: what comes after is in the other formats
    if isinstance(value, Decimal) and _is_money(made, at):
        return f"{value:,.{_digits(made, row, at)}f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, Decimal):
        whole, point, rest = plain(value).partition(".")
        return f"{int(whole):,}{point}{rest}" if whole not in ("-0",) else plain(value)
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    if isinstance(value, date):
        return f"{value:%Y-%m}" if name == "month" else value.isoformat()
    return "-" if value is None else _exact(made, row, at)


def _total_cell(name: str, currency: str, sums: Any, made: Made) -> str:
    if name == "currency":
        return currency
    if name not in sums:
        return "-" if name in made.report.unknown else ""
    return f"{sums[name]:,.{MINOR_DIGITS[currency]}f}"


def dumps(made: Made, **about: Any) -> str:
    """One JSON document: what the report is of, and its rows."""
    return json.dumps({**about, "rows": as_json(made)}, indent=2, ensure_ascii=False)
