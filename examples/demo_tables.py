"""What the demo prints: numbered steps with their time, and tables that line up."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

from demo_proof import Invoice, MeterRow, Proof, ServedCall
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

WIDTH = 118


class Screen:
    """Prints steps and tables; `seconds` keeps how long each step took."""

    def __init__(self) -> None:
        self.console = Console(width=WIDTH, highlight=False)
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, number: int, title: str) -> Iterator[None]:
        self.console.print(f"\n[bold]{number}. {title}[/bold]")
        started = time.monotonic()
        yield
        took = time.monotonic() - started
        self.seconds[title] = took
        self.console.print(f"   [dim]{took:.1f} s[/dim]")

    def say(self, text: str) -> None:
        """A line, or several, indented; rich's markup is understood."""
        for line in text.split("\n"):
            self.console.print(f"   {line}".rstrip(), soft_wrap=True)

    def block(self, text: str) -> None:
        """What a command printed, indented."""
        for line in text.rstrip().splitlines():
            self.console.print(f"   {line}".rstrip(), markup=False, soft_wrap=True)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], numbers_from: int = 1) -> None:
        """A table whose columns from `numbers_from` on hold numbers."""
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for index, column in enumerate(columns):
            table.add_column(column, justify="right" if index >= numbers_from else "left", overflow="fold")
        for row in rows:
            table.add_row(*row)
        # Rich fills every line up to the width; a terminal copies those spaces, and a log keeps them.
        for segments in self.console.render_lines(Padding(table, (0, 0, 0, 3)), pad=False):
            line = Text.assemble(*((segment.text, segment.style or "") for segment in segments))
            line.rstrip()
            self.console.print(line, soft_wrap=True)


def proof_rows(rows: Sequence[MeterRow]) -> list[list[str]]:
    """The proof's table, without its head."""
    return [
        [
            row.meter,
            "-" if row.served is None else whole(row.served),
            whole(row.replayed),
            whole(row.stored),
            whole(row.unfinished),
            whole(row.rated),
            whole(row.unbilled),
            whole(row.invoiced),
        ]
        for row in rows
    ]


PROOF_COLUMNS = (
    "meter",
    "provider's log",
    "+ replay file",
    "stored",
    "+ unfinished",
    "rated",
    "+ unbilled",
    "on invoices",
)


def unfinished_rows(calls: Sequence[ServedCall]) -> list[list[str]]:
    return [
        [call.request_id, call.customer, call.model, ", ".join(f"{m} {whole(u)}" for m, u in call.units.items())]
        for call in calls
    ]


def invoice_rows(invoices: Sequence[Invoice]) -> list[list[str]]:
    return [
        [
            invoice.customer,
            invoice.number,
            invoice.state,
            money(invoice.total_minor, invoice.currency),
            "-" if invoice.stripe_total_minor is None else money(invoice.stripe_total_minor, invoice.currency),
        ]
        for invoice in invoices
    ]


def proof_json(proof: Proof, invoices: Sequence[Invoice], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The proof for machines: quantities as strings, amounts in minor units."""
    return {
        **facts,
        "meters": [
            {name: None if value is None else str(value) for name, value in vars(row).items()} for row in proof.rows
        ],
        "unfinished": [
            {"request_id": call.request_id, "customer": call.customer, "units": _strings(call.units)}
            for call in proof.unfinished
        ],
        "invoices": [{**vars(invoice), "units": _strings(invoice.units)} for invoice in invoices],
        "differences": list(proof.differences),
    }


def _strings(units: Mapping[str, Decimal]) -> dict[str, str]:
    return {meter: str(quantity) for meter, quantity in units.items()}


def whole(quantity: Decimal) -> str:
    """1234567 as 1,234,567; the decimals of a quantity that has some are kept."""
    return f"{quantity.normalize():,f}"


def money(minor: int, currency: str) -> str:
    """Minor units of a currency with two decimals, which all of the demo's have."""
    return f"{Decimal(minor).scaleb(-2):,.2f} {currency}"
