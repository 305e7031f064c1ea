"""The outbox: what is to be changed in Stripe is a row before it is sent, and has its answer after.

A call is named by namespace, operation and subject. Its idempotency key follows from that name, so a call repeated
after a crash, with the request that was stored, gets the first one's object. Stripe forgets keys after a day; a call
whose outcome is unknown for longer is looked up in Stripe before it is sent again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, Engine, bindparam, insert, select, update

from meterhouse_billing.gateway import BillingError, Gateway, StripeRefused, StripeUnavailable
from meterhouse_rating.ids import digest
from meterhouse_store import switches
from meterhouse_store.sql import begin_write
from meterhouse_store.tables import outbox

KEY_LASTS: Final = timedelta(hours=23)
"""Less than the 24 hours for which Stripe keeps an answer: https://docs.stripe.com/api/idempotent_requests"""

PENDING, DONE, FAILED = "pending", "done", "failed"
_KEPT: Final = ("id", "object", "status", "currency", "total", "number", "hosted_invoice_url", "url")

Find = Callable[[], Mapping[str, Any] | None]
Then = Callable[[Connection, Mapping[str, Any], Mapping[str, Any]], None]
"""What is written with an answer: (connection, the request as it was sent, the answer)."""
Row = Mapping[str, Any]

# Built once: these run four times or more for each invoice, and building a statement takes longer than SQLite does.
_OF_CALL: Final = (
    (outbox.c.namespace == bindparam("namespace"))
    & (outbox.c.operation == bindparam("operation"))
    & (outbox.c.subject_id == bindparam("subject_id"))
)
_ROWS: Final = select(outbox).where(_OF_CALL)
_IN_STATE: Final = select(outbox.c.state).where(_OF_CALL, outbox.c.state == bindparam("state"))
_ADD: Final = insert(outbox)
_CHANGE: Final = update(outbox).where(outbox.c.idempotency_key == bindparam("key"))


@dataclass(frozen=True)
class Outbox:
    """Sends each call once, whatever happens between."""

    engine: Engine
    gateway: Gateway
    namespace: str
    now: Callable[[], datetime]

    def call(
        self,
        operation: str,
        subject_id: str,
        request: Mapping[str, Any],
        find: Find,
        *,
        unique: bool = False,
        then: Then | None = None,
    ) -> Mapping[str, Any]:
        """The answer to the call: all of it where it came just now, else what is kept of it (id, status, total, ...).

        `then` writes what follows from the answer, in the transaction that stores it; repeatable, since it is called
        with an answer that was stored before, too.

        `find` looks for the call's effect in Stripe, None where there is none. A call that Stripe refused is sent
        anew, with a new key, since its cause may have been mended; so is a `unique` one after a 500 that Stripe keeps,
        when `find` has looked for its effect: Stripe has to show that at once, which its search does not. Raises
        StripeRefused, StripeUnavailable, and BillingError where sync is turned off for the namespace.
        """
        row, unsure = self._claim(operation, subject_id, request)
        if row["state"] == DONE:
            answer = dict(row["response"])
            if then is not None:
                with begin_write(self.engine) as connection:
                    then(connection, row["request"], answer)
            return answer
        if unsure:
            found = find()
            if found is not None:
                return self._done(row, found, then)
            self._set(row["idempotency_key"], attempts=row["attempts"] + 1)
        return self._send(row, unique, then)

    def _claim(self, operation: str, subject_id: str, request: Mapping[str, Any]) -> tuple[Row, bool]:
        """The call's latest row, a new one where there is none or the latest was refused; and whether Stripe may have
        the call although its key does not say so. Where it may not, an attempt is counted: the caller is to send it.

        A row with attempts is one whose outcome may be unknown. Raises BillingError where sync is off: it may be turned
        off while a run is under way.
        """
        with begin_write(self.engine) as connection:
            rows = connection.execute(_ROWS, self._named(operation, subject_id)).mappings().all()
            current: Row | None = next((dict(row) for row in rows if row["state"] != FAILED), None)
            if current is not None and current["state"] == DONE:
                return current, False
            changes = switches.changes(connection, self.namespace)
            try:
                switches.require_in(changes, switches.SYNC)
            except switches.SwitchedOff as off:
                raise BillingError(str(off)) from None
            if current is not None and current["attempts"]:
                # After an error the first answer may be one that Stripe keeps saying under this key.
                unsure = current["last_error"] is not None or self.now() - current["created_at"] > KEY_LASTS
            else:  # failed: under the key before, which may have been given up after a 500
                unsure = any(row["state"] == FAILED for row in rows) or _restored(changes)
            tried = int(not unsure)
            if current is not None:
                if tried:
                    more = {"key": current["idempotency_key"], "attempts": current["attempts"] + 1}
                    connection.execute(_CHANGE, more)
                return current, unsure
            row = {
                "idempotency_key": f"meterhouse-{digest([self.namespace, operation, subject_id, len(rows)])}",
                "namespace": self.namespace,
                "operation": operation,
                "subject_id": subject_id,
                "request": dict(request),
                "state": PENDING,
                "attempts": tried,
                "created_at": self.now(),
            }
            connection.execute(_ADD, row)
        return row, unsure

    def answered(self, operation: str, subject_id: str) -> bool:
        """Whether the call's answer is stored."""
        return self._any(operation, subject_id, DONE)

    def request_of(self, operation: str, subject_id: str) -> Mapping[str, Any] | None:
        """What the call was stored with, unless Stripe refused it; None where there is no call."""
        query = select(outbox.c.request).where(_OF_CALL, outbox.c.state != FAILED)
        with self.engine.connect() as connection:
            return connection.execute(query, self._named(operation, subject_id)).scalar_one_or_none()

    def done_on(self, operation: str, on: str) -> list[Mapping[str, Any]]:
        """The requests of an operation on one of Stripe's objects that were answered, in their order."""
        is_it = (outbox.c.namespace == self.namespace) & (outbox.c.operation == operation) & (outbox.c.state == DONE)
        with self.engine.connect() as connection:
            found = connection.execute(select(outbox.c.request).where(is_it).order_by(outbox.c.done_at)).scalars().all()
        return [request for request in found if request.get("on") == on]

    def begun(self, operation: str, subject_id: str) -> bool:
        """Whether the call may have been sent, and its answer is not stored."""
        return self._any(operation, subject_id, PENDING)

    def _any(self, operation: str, subject_id: str, state: str) -> bool:
        with self.engine.connect() as connection:
            asked = self._named(operation, subject_id) | {"state": state}
            return connection.execute(_IN_STATE, asked).first() is not None

    def _named(self, operation: str, subject_id: str) -> dict[str, str]:
        return {"namespace": self.namespace, "operation": operation, "subject_id": subject_id}

    def _send(self, row: Row, unique: bool, then: Then | None) -> Mapping[str, Any]:
        key = row["idempotency_key"]
        try:
            answer = self.gateway.send(row["operation"], row["request"], key)
        except StripeRefused as refused:
            self._set(key, state=FAILED, last_error=str(refused), done_at=self.now())
            raise
        except StripeUnavailable as problem:
            self._set(key, last_error=str(problem), state=FAILED if unique and problem.kept else PENDING)
            raise
        return self._done(row, answer, then)

    def _done(self, row: Row, answer: Mapping[str, Any], then: Then | None) -> Mapping[str, Any]:
        kept = {name: answer[name] for name in _KEPT if name in answer}
        values = {"state": DONE, "response": kept, "last_error": None, "done_at": self.now()}
        with begin_write(self.engine) as connection:
            connection.execute(_CHANGE, {"key": row["idempotency_key"], **values})
            if then is not None:
                then(connection, row["request"], answer)
        return answer

    def _set(self, key: str, **values: Any) -> None:
        with begin_write(self.engine) as connection:
            connection.execute(_CHANGE, {"key": key, **values})


def _restored(changes: Sequence[switches.Change]) -> bool:
    return any(it.switch == switches.SYNC and it.why.startswith(switches.RESTORED) for it in changes)
