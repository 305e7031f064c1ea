"""Questions about lines: a customer asks once per line and text, the operator answers once, and both stay on record."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Engine, insert, select, update

from meterhouse_rating.ids import digest
from meterhouse_store.registry import RegistryError
from meterhouse_store.sql import begin_write
from meterhouse_store.tables import line_questions

ACCEPTED, REJECTED = "accepted", "rejected"
MAX_TEXT: Final = 2000
MAX_OPEN: Final = 50
"""So many questions of one customer may wait for an answer."""


@dataclass(frozen=True)
class Question:
    """A question about a line; `outcome` None: not answered yet."""

    question_id: str
    namespace: str
    customer_id: str
    rating_id: str
    line_id: str
    amount_minor: int
    currency: str
    question: str
    who: str
    asked_at: datetime
    outcome: str | None = None
    answer: str | None = None
    answered_by: str | None = None
    answered_at: datetime | None = None


def ask(
    engine: Engine, namespace: str, customer_id: str, line: dict[str, Any], text: str, *, who: str, now: datetime
) -> Question:
    """Put a question about one of the customer's lines; the same again is the same. Raises RegistryError."""
    text = text.strip()
    if not 1 <= len(text) <= MAX_TEXT or "\0" in text:
        raise RegistryError(f"Write what the question is, in at most {MAX_TEXT:,} characters.")
    made = Question(
        digest(["line question", namespace, line["line_id"], text]), namespace, customer_id, line["rating_id"],
        line["line_id"], line["amount_minor"], line["currency"], text, who, now,
    )  # fmt: skip
    with begin_write(engine) as connection:
        there = _read(connection, line_questions.c.question_id == made.question_id)
        if there:
            return there[0]
        mine = (line_questions.c.namespace == namespace) & (line_questions.c.customer_id == customer_id)
        if len(_read(connection, mine & line_questions.c.outcome.is_(None))) >= MAX_OPEN:
            raise RegistryError(f"{MAX_OPEN} questions wait for an answer already: wait for one.")
        connection.execute(insert(line_questions).values(**vars(made)))
    return made


def answer(
    engine: Engine, namespace: str, question_id: str, outcome: str, text: str, *, who: str, now: datetime
) -> Question:
    """Accept or reject a question, with what is told to the customer. Raises RegistryError: it is done once."""
    if outcome not in (ACCEPTED, REJECTED):
        raise RegistryError(f"{outcome!r} is no outcome: {ACCEPTED} or {REJECTED}")
    if not 1 <= len(text.strip()) <= MAX_TEXT or "\0" in text:
        raise RegistryError(f"Say why, in at most {MAX_TEXT:,} characters: the customer reads it.")
    is_it = (line_questions.c.namespace == namespace) & (line_questions.c.question_id == question_id)
    with begin_write(engine) as connection:
        there = _read(connection, is_it)
        if not there:
            raise RegistryError(f"there is no question {question_id[:12]}: `meterhouse portal questions`")
        if there[0].outcome is not None:
            raise RegistryError(
                f"question {question_id[:12]} was {there[0].outcome} by {there[0].answered_by} already: "
                "it is answered once"
            )
        values = {"outcome": outcome, "answer": text.strip(), "answered_by": who, "answered_at": now}
        connection.execute(update(line_questions).where(is_it).values(**values))
        return _read(connection, is_it)[0]


def of_customer(engine: Engine, namespace: str, customer_id: str) -> list[Question]:
    """A customer's questions, latest first."""
    with engine.connect() as connection:
        mine = (line_questions.c.namespace == namespace) & (line_questions.c.customer_id == customer_id)
        return _read(connection, mine)


def of_all(engine: Engine, namespace: str, *, waiting: bool) -> list[Question]:
    """Everybody's questions, latest first; only those that wait for an answer, or all."""
    with engine.connect() as connection:
        found = _read(connection, line_questions.c.namespace == namespace)
    return [it for it in found if it.outcome is None or not waiting]


def _read(connection: Any, where: Any) -> list[Question]:
    query = select(line_questions).where(where).order_by(line_questions.c.asked_at.desc(), line_questions.c.question_id)
    return [Question(**row) for row in connection.execute(query).mappings()]
