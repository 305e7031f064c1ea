"""What the portal, documents and notices say to customers, taken out of templates and code."""

from pathlib import Path

from babel.messages.extract import extract
from jinja2.ext import babel_extract

import meterhouse_portal
from meterhouse_billing import notice_texts
from meterhouse_portal import members, price_words, rendering, usage_pages
from meterhouse_rating import explain, layout
from meterhouse_reports import documents, drawing

HERE = Path(meterhouse_portal.__file__).parent
ELSEWHERE = [Path(it.__file__) for it in (notice_texts, explain, documents, drawing)]
TEMPLATES = HERE / "templates"
MODULES = (
    "customer_pages",
    "usage_pages",
    "budget_pages",
    "access_pages",
    "billing_pages",
    "access_keys",
    "top_up_pages",
    "price_words",
    "packs",
)
KEYWORDS = {"say": (1,), "_message": (3, 4), "RegistryError": (1,), "Refused": (1,), "WrongField": (2,)}

NOT_TRANSLATED = {it.name for it in TEMPLATES.iterdir() if it.name.startswith("operator")}
"""Pages that are in English only: the operators'."""

CHOSEN = (
    *rendering.STATES.values(), *rendering.PAID.values(), *members.ROLES, *usage_pages.MEANINGS.values(),
    *usage_pages.STATUSES.values(),
    *usage_pages.CHANGES.values(), *usage_pages.SOURCES.values(), *layout.UNITS.items(), "audio", "video", "text",
    "That link was used, or is too old. Ask for a new one.",
    "This page does not know the parameter %(name)s.",
    usage_pages.NO_PERIOD,
    *usage_pages.NOT_PRICED.values(), *price_words.DIMENSIONS.values(), *price_words.STATUS_WORDS.values(),
    *price_words.TASK_WORDS.values(), *price_words.PRORATIONS.values(), *price_words.SPANS.values(),
    *price_words.MATCHING, price_words.BY_UNITS, price_words.BY_VOLUME, price_words.FEE_BY_UNITS,
    price_words.FEE_BY_VOLUME, *price_words.FIXED, "any",  # in price lists
    "model", "agent", "tool", "status", "provider",  # how usage is shown
    "Meter", "Model", "Agent", "Tool", "Status", "Conversation", "Task", "Provider",  # how the log is narrowed
    "Accepted", "Rejected", "Not shown", "That cannot be shown", "That cannot be done",
    "An export is under way", "Wait until the other download of this customer ends.",
    "The warehouse is being brought up to date: amounts come back when it is.",
    "bought", "promotional",
    "Choose one of the amounts.", "That was often: try again in an hour.",
    "Payments cannot be reached now: try again in a minute. Nothing was charged.",
    *documents.KINDS.values(), *documents.FREE.values(), *documents.STATED.items(), "has no price yet",
    "before the minimum commitment", "after the minimum commitment", "unspecified", "inclusive", "exclusive", "none",
    "half to even", "half up", "up", "down", "days", "seconds", "months",  # in explanations
)  # fmt: skip
"""What is said by a value of the data, or put together where it is not seen."""


def in_templates():
    """Each message, or the pair of a plural, with the template that has it."""
    for path in sorted(TEMPLATES.iterdir()):
        with path.open("rb") as file:
            for _, _, message, _ in babel_extract(file, ("_", "gettext", "ngettext"), [], {}):
                yield message if isinstance(message, str) else message[:2], path.name


def in_code():
    """Each message with its module."""
    for path in (*(HERE / f"{name}.py" for name in MODULES), *ELSEWHERE):
        with path.open("rb") as file:
            for _, message, _, _ in extract("python", file, keywords=KEYWORDS):
                for one in (message,) if isinstance(message, str) else message:
                    yield one, path.stem


def every():
    """All of them, once."""
    found = dict(in_templates()) | dict(in_code()) | dict.fromkeys(CHOSEN, "data")
    return {message: where for message, where in found.items() if message}
