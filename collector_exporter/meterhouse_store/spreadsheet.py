"""CSV that a spreadsheet opens: what of it would be run as a formula."""

import re
from typing import Final

_PASSED_OVER: Final = "\\s\u00a0\u1680\u2000-\u200f\u2028-\u202f\u205f-\u2064\u3000\ufeff"
FORMULA: Final = f"^[{_PASSED_OVER}]*[=+\\-@\uff1d\uff0b\uff0d\uff20]|^[\\t\\r\\n]"
"""A regular expression of Python's and of ClickHouse's: signs that begin a formula, behind whatever some spreadsheets
pass over; the wide ones count where Chinese, Japanese or Korean is written.
"""

_FORMULA: Final = re.compile(FORMULA)


def no_formula(text: str) -> str:
    """The text as a cell; what would be run begins with an apostrophe."""
    return f"'{text}" if _FORMULA.search(text) else text
