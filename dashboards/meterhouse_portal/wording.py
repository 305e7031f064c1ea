"""Small pieces of the page's text, as HTML: names, times and marked-up sentences."""

import html
import re
from datetime import UTC, datetime, timedelta

from meterhouse_portal.overview import Month

# Ids come from outside and may hold any character; HTML may hold no control character but white space.
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def without_controls(text: str) -> str:
    """Text from outside, its control characters shown as U+FFFD."""
    return _CONTROLS.sub("\ufffd", text)


def escape(text: str) -> str:
    """Text from outside as HTML; control characters show as U+FFFD."""
    return html.escape(without_controls(text))


def marked(text: str) -> str:
    """Plain text as HTML, with `code` in backticks; a command's options are not broken at their hyphens."""
    pieces = escape(text).split("`")
    parts = [f"<code>{piece}</code>" if index % 2 else piece for index, piece in enumerate(pieces)]
    return re.sub(r"--[a-z][a-z-]*", r'<span class="option">\g<0></span>', "".join(parts))


def breakable(meter: str) -> str:
    """A dotted name that may be broken after its dots."""
    return escape(meter).replace(".", ".<wbr>")


def duration(length: timedelta) -> str:
    """90 s, 2 min, 5 h, 3 d: whole units, at least two of them but for seconds."""
    seconds = max(0, int(length.total_seconds()))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size:,} {unit}"
    return f"{seconds} s"


def month_name(month: Month) -> str:
    """November 2026."""
    return month.within("UTC").start.strftime("%B %Y")


def day_of(moment: datetime) -> str:
    """2026-11-21, in UTC."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d")


def time_of(moment: datetime) -> str:
    """2026-11-21 03:30 UTC, as an element that machines can read."""
    text = moment.astimezone(UTC)
    return f'<time datetime="{text.isoformat(timespec="seconds")}">{text.strftime("%Y-%m-%d %H:%M")} UTC</time>'


def class_if(name: str, holds: bool) -> str:
    """The attribute, where it holds."""
    return f' class="{name}"' if holds else ""
