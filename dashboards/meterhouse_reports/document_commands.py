"""`meterhouse report invoice` and `statement`: a customer's period as a PDF, the same bytes each time."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from meterhouse_store.terminal import Data, existing, explained, fail, write_out

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from meterhouse_reports.documents import Document
    from meterhouse_store.language import Language

Whom = Annotated[str, typer.Argument(metavar="CUSTOMER", help="The customer's id.")]
Period = Annotated[str, typer.Option(help="A month in the customer's time zone (2026-10), or START..END.")]
Out = Annotated[Path, typer.Option(help="The PDF to write; - is standard output.")]


def invoice(customer: Whom, period: Period, out: Out, data: Data = None) -> None:
    """The invoice of a closed period as a PDF, with where each amount comes from.

    It says what the ledger says, or is refused. In the brand's language. Made again it is the same, byte by byte.
    """
    from meterhouse_reports import documents

    _write(documents.invoice, customer, period, out, data)


def statement(customer: Whom, period: Period, out: Out, data: Data = None) -> None:
    """What a period comes to as a PDF, open or closed, before anything is charged; with the usage that is free.

    It is made of what the last `meterhouse rate run` left. Made again from the same it is the same, byte by byte.
    """
    from meterhouse_reports import documents

    _write(documents.statement, customer, period, out, data)


def _write(
    read: "Callable[[Engine, str, str, str, Language], Document]",
    customer: str,
    period: str,
    out: Path,
    data: Path | None,
) -> None:
    from pydantic import ValidationError

    from meterhouse_rating.periods import PeriodError
    from meterhouse_reports.documents import NoDocument
    from meterhouse_reports.drawing import draw, undrawable
    from meterhouse_store.brand import Brand
    from meterhouse_store.language import Language
    from meterhouse_store.sql import open_engine
    from meterhouse_store.terminal import wrong_settings

    settings = existing(data)
    with explained():
        try:
            brand = Brand()
            document = read(open_engine(settings), settings.namespace, customer, period, Language(brand.language))
            content = draw(document, brand)
        except ValidationError as refused:
            fail(wrong_settings(refused))
        except PeriodError as refused:
            raise typer.BadParameter(str(refused)) from None
        except (NoDocument, ValueError, OSError) as refused:
            fail(str(refused))
    write_out(out, content)
    print(f"{document.title}, {len(document.items):,} lines, in {out}", file=sys.stderr)
    if missing := undrawable(document, brand):
        print(f"boxes stand for {missing!r}, which no font has: METERHOUSE_BRAND_FONT can name one", file=sys.stderr)
