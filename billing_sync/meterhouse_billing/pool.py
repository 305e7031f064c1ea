"""Many customers at once: threads that each work for one customer at a time, and say what they did in a stable order.

No two threads are at work for one customer: its invoices, the earliest first, then its credit notes. Threads, because
nearly all of the time is spent waiting for Stripe or for a turn within its limits (pace.py).
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Final

from meterhouse_billing.credit_run import credit
from meterhouse_billing.crediting import Note
from meterhouse_billing.documents import Draft
from meterhouse_billing.run import Step, bill
from meterhouse_billing.world import World

WORKERS: Final = 32
"""An invoice is four or five calls, of which each endpoint lets 25 a second through: enough while Stripe answers in a
third of a second. More are asked for by `--workers`."""

Job = Callable[[], Iterator[Step]]
_Outcome = tuple[list[Step], BaseException | None]


def jobs(world: World, drafts: Sequence[Draft], notes: Sequence[Note], *, approve: bool) -> list[Job]:
    """What there is to do, customer by customer in the order of the drafts; those with credit notes only come last."""
    names = dict.fromkeys([*(draft.customer_id for draft in drafts), *(note.customer_id for note in notes)])
    found: dict[str, tuple[list[Draft], list[Note]]] = {name: ([], []) for name in names}
    for draft in drafts:
        found[draft.customer_id][0].append(draft)
    for note in notes:
        found[note.customer_id][1].append(note)

    def job(its_drafts: list[Draft], its_notes: list[Note]) -> Job:
        return lambda: chain(bill(world, its_drafts, approve=approve), credit(world, its_notes, approve=approve))

    return [job(*of_customer) for of_customer in found.values()]


def work(todo: Sequence[Job], workers: int = WORKERS, advance: Callable[[], None] = lambda: None) -> Iterator[Step]:
    """Work all of it off, and yield the steps in the order of the jobs; `advance` is called when one is through.

    The first problem of a job (StripeUnavailable) ends all after the step that each is at, and is raised when what was
    done is told: everything done stays done. So does a caller who leaves.
    """
    stop, telling = threading.Event(), threading.Lock()

    def run(job: Job) -> _Outcome:
        steps: list[Step] = []
        try:
            if not stop.is_set():
                for step in job():
                    steps.append(step)
                    if stop.is_set():
                        return steps, None
                with telling:
                    advance()
        except BaseException as problem:  # noqa: BLE001 (raised by the thread that asked)
            stop.set()
            return steps, problem
        return steps, None

    if workers == 1 or len(todo) == 1:  # here, one step after the other: the next one is done when it is asked for
        for job in todo:
            yield from job()
            advance()
        return
    problems = []
    with ThreadPoolExecutor(min(workers, max(1, len(todo))), "bill") as threads:
        try:
            for outcome in [threads.submit(run, job) for job in todo]:
                steps, problem = outcome.result()
                yield from steps
                problems += [problem] if problem else []
        finally:
            stop.set()
            threads.shutdown(cancel_futures=True)
    if problems:
        raise problems[0]
