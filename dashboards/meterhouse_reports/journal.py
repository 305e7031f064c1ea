"""The ledger for an accounting program: each entry a row, with debit, credit and the code of its account there."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import yaml

from meterhouse_rating.ledger import ACCOUNTS
from meterhouse_reports.definitions import CannotBe, Report

CODE_CHARACTERS: Final = 64
_DATE: Final = (
    "if(rating_id = '', toDate(effective_at), "
    "least(toDate(period_end - toIntervalMicrosecond(1)), toLastDayOfMonth(accounted_at)))"
)


def codes_from(file: Path | None) -> dict[str, str]:
    """Account -> its code in the accounting program, from YAML such as `receivable: "1200"`; the names without a file.

    Raises CannotBe.
    """
    if file is None:
        return {name: name for name in ACCOUNTS}
    try:
        # All of it is text: to YAML the code 0400 is the number 256.
        told = yaml.load(file.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except OSError as problem:
        raise CannotBe(f"{file} cannot be read: {problem.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        raise CannotBe(f"{file} cannot be read: {problem}") from None
    if not isinstance(told, Mapping):
        raise CannotBe(f"{file} has to map accounts to codes, a line each, such as\n  receivable: '1200'")
    codes = {str(name): code if isinstance(code, str) else "" for name, code in told.items()}
    strange = sorted(set(codes) - set(ACCOUNTS))
    missing = sorted(set(ACCOUNTS) - set(codes))
    if strange:
        raise CannotBe(f"{file}: there is no account {strange[0]!r}; there are {', '.join(sorted(ACCOUNTS))}")
    if missing:
        raise CannotBe(f"{file} has no code for {', '.join(missing)}: each account needs one, used or not")
    if bad := [name for name, code in codes.items() if not 0 < len(code) <= CODE_CHARACTERS or not code.isprintable()]:
        raise CannotBe(f"{file}: the code of {bad[0]} has to be 1 to {CODE_CHARACTERS} printable characters")
    return codes


def journal(codes: Mapping[str, str]) -> Report:
    """The report: dates are in the month in which the entry counts, at the last day of what was rated."""
    accounts = ", ".join(map(_quoted, codes))
    named = ", ".join(map(_quoted, codes.values()))
    dimensions = {
        "date": _DATE,
        "transaction": "transaction_id",
        "entry": "position",
        "customer": "customer_id",
        "account": "account",
        "code": f"transform(account, [{accounts}], [{named}], account)",
        "kind": "kind",
        "description": "description",
        "corrects": "corrects",
    }
    return Report(
        "journal",
        "The ledger's entries for an accounting program, with the codes of its accounts.",
        "finance_entries",
        dimensions,
        {
            "debit": "sum(if(amount > 0, amount, toDecimal128(0, 3)))",
            "credit": "sum(if(amount < 0, -amount, toDecimal128(0, 3)))",
        },
        tuple(dimensions),
    )


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
