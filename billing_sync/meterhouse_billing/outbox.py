"""The outbox: what is to be changed in Stripe is a row before it is sent, and has its answer after.

A call is named by namespace, operation and subject. Its idempotency key follows from that name, so a call repeated
after a crash, with the request that was stored, gets the first one's object. Stripe forgets keys after a day; a call
whose outcome is unknown for longer is looked up in Stripe before it is sent again.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, Engine, RowMapping, func, insert, select, update

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


@dataclass(frozen=True)
class Outbox:
    """Sends each call once, whatever happens between."""

    engine: Engine
    gateway: Gateway
    namespace: str
    now: Callable[[], datetime]

    def call(
        self, operation: str, subject_id: str, request: Mapping[str, Any], find: Find, *, unique: bool = False
    ) -> Mapping[str, Any]:
        """The answer to the call (id, status, total, ...), now or from an earlier run.

        `find` looks for the call's effect in Stripe, None where there is none. A call that Stripe refused is sent
        anew, with a new key, since its cause may have been mended; so is a `unique` one after a 500 that Stripe keeps,
        when `find` has looked for its effect: Stripe has to show that at once, which its search does not. Raises
        StripeRefused, StripeUnavailable, and BillingError where sync is turned off for the namespace.
        """
        row = self._row(operation, subject_id, request)
        if row["state"] == DONE:
            return dict(row["response"])
        try:  # at each call: sync may be turned off while a run is under way
            switches.require(self.engine, self.namespace, switches.SYNC)
        except switches.SwitchedOff as off:
            raise BillingError(str(off)) from None
        if self._is_unsure(row):
            found = find()
            if found is not None:
                return self._done(row["idempotency_key"], found)
        return self._send(row, unique)

    def _is_unsure(self, row: RowMapping) -> bool:
        """Whether Stripe may have it although its key does not say so: after a day, an error, or a restore."""
        if row["attempts"]:
            # After an error the first answer may be one that Stripe keeps saying under this key.
            return row["last_error"] is not None or self.now() - row["created_at"] > KEY_LASTS
        if self._any(row["operation"], row["subject_id"], FAILED):
            return True  # under the key before, which may have been given up after a 500
        changes = switches.history(self.engine, self.namespace)
        return any(change.switch == switches.SYNC and change.why.startswith(switches.RESTORED) for change in changes)

    def answered(self, operation: str, subject_id: str) -> bool:
        """Whether the call's answer is stored."""
        return self._any(operation, subject_id, DONE)

    def request_of(self, operation: str, subject_id: str) -> Mapping[str, Any] | None:
        """What the call was stored with, unless Stripe refused it; None where there is no call."""
        query = select(outbox.c.request).where(self._is(operation, subject_id), outbox.c.state != FAILED)
        with self.engine.connect() as connection:
            return connection.execute(query).scalar_one_or_none()

    def begun(self, operation: str, subject_id: str) -> bool:
        """Whether the call may have been sent, and its answer is not stored."""
        return self._any(operation, subject_id, PENDING)

    def _any(self, operation: str, subject_id: str, state: str) -> bool:
        query = select(outbox.c.state).where(self._is(operation, subject_id), outbox.c.state == state)
        with self.engine.connect() as connection:
            return connection.execute(query).first() is not None

    def _is(self, operation: str, subject_id: str) -> ColumnElement[bool]:
        return (
            (outbox.c.namespace == self.namespace)
            & (outbox.c.operation == operation)
            & (outbox.c.subject_id == subject_id)
        )

    def _row(self, operation: str, subject_id: str, request: Mapping[str, Any]) -> RowMapping:
        """The call's latest row; a new one where there is none, or where the latest was refused."""
        is_it = self._is(operation, subject_id)
        with begin_write(self.engine) as connection:
            rows = connection.execute(select(func.count()).select_from(outbox).where(is_it)).scalar_one()
            current = select(outbox).where(is_it, outbox.c.state != FAILED)
            row = connection.execute(current).mappings().one_or_none()
            if row is None:
                key = f"meterhouse-{digest([self.namespace, operation, subject_id, rows])}"
                connection.execute(
                    insert(outbox).values(
                        idempotency_key=key,
                        namespace=self.namespace,
                        operation=operation,
                        subject_id=subject_id,
                        request=dict(request),
                        state=PENDING,
                        attempts=0,
                        created_at=self.now(),
                    )
                )
                row = connection.execute(current).mappings().one()
        return row

    def _send(self, row: RowMapping, unique: bool) -> Mapping[str, Any]:
        key = row["idempotency_key"]
        # Before sending: a row with attempts is one whose outcome may be unknown.
        self._set(key, attempts=row["attempts"] + 1)
        try:
            answer = self.gateway.send(row["operation"], row["request"], key)
        except StripeRefused as refused:
            self._set(key, state=FAILED, last_error=str(refused), done_at=self.now())
            raise
        except StripeUnavailable as problem:
            self._set(key, last_error=str(problem), state=FAILED if unique and problem.kept else PENDING)
            raise
        return self._done(key, answer)

    def _done(self, key: str, answer: Mapping[str, Any]) -> Mapping[str, Any]:
        kept = {name: answer[name] for name in _KEPT if name in answer}
        self._set(key, state=DONE, response=kept, last_error=None, done_at=self.now())
        return kept

    def _set(self, key: str, **values: Any) -> None:
        with begin_write(self.engine) as connection:
            connection.execute(update(outbox).where(outbox.c.idempotency_key == key).values(**values))
