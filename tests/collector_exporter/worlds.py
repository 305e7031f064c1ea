"""A journal, its warehouse and decisions, without a collector's process: what a rebuild and a restore start from."""

import itertools
from datetime import UTC, datetime

from collector_samples import DAY_NS, RECEIVED_NS
from foreign_samples import metrics_record, traces_record

from meterhouse_collector import rebuild, segments
from meterhouse_collector.inbox import Inbox
from meterhouse_collector.journal import Horizon
from meterhouse_collector.projector import Projector
from meterhouse_collector.records import encode
from meterhouse_store import decided, decisions, sql, suspended
from meterhouse_store.settings import Settings
from meterhouse_store.suspended import Filter

MS = 1_000_000
ID = "c0ffee00c0ffee00c0ffee00c0ffee00"
# What people and money see. Of a row that was decided about, `raw_value` says what was known then.
VIEWS = {
    "usage": "* EXCEPT (raw_value)",
    "suspense": "*",
    "set_aside": "* EXCEPT (raw_value)",
    "conservation": "*",
    "completeness": "*",
    "decisions": "*",
    "refused": "*",
    "collector_health": "*",
    "collector_durations": "*",
}


def segment_name(number):
    return f"c0ffee00-{number:08d}-{number:08d}.seg"


class World:
    """A journal, a warehouse that follows it record by record, and somebody who decides."""

    def __init__(self, folder, client, connect):
        self.client, self.connect = client, connect
        self.journal = folder / "journal"
        self.journal.mkdir()
        (self.journal / "collector_id").write_text(ID)
        self.engine = sql.open_engine(Settings(data=folder))
        self._projector = Projector(
            ID,
            Inbox(client),
            horizon=lambda: Horizon(segments.end(self.journal), RECEIVED_NS + 3 * DAY_NS),
            read=lambda position, until, limit: segments.read(self.journal, position, until, limit),
        )
        self._number, self._segment = 0, 1
        self._clock = itertools.count()

    def receive(self, make, request, **more):
        """A record, projected alone; a rebuild projects all of the segment in one range."""
        self._number += 1
        record = make(request, self._number, received_ns=RECEIVED_NS + self._number * MS, **more)
        with open(self.journal / segment_name(self._segment), "ab") as file:
            file.write(encode(record))
        while self._projector.step():
            pass

    def rotate(self):
        """What comes from now on stands in another segment."""
        self._segment += 1

    def metrics(self, request, **more):
        self.receive(metrics_record, request, **more)

    def traces(self, request, **more):
        self.receive(traces_record, request, **more)

    def decide(self, rule, *customer, **which):
        chosen = Filter(**which)
        rows = suspended.find(self.client, "live", chosen, 1000)
        now = () if rule is suspended.discard else (suspended.counting(self.client, "live", chosen, *customer),)
        ruling = rule(rows, *customer, *now)
        assert ruling.drafts and not ruling.refused, ruling
        self._record(ruling.drafts)

    def undo(self):
        last = decisions.latest(self.engine, "live", 1)[0]
        undone = decisions.with_its_command(self.engine, "live", last.decision_id, whole=True)
        self._record(decisions.undo(self.engine, undone))

    def _record(self, drafts):
        moment = datetime(2026, 11, 2, 0, 0, next(self._clock), tzinfo=UTC)
        decisions.record(self.engine, drafts, why="so it is", who="ann", clock=lambda: moment)
        assert decided.apply(self.engine, self.client).waiting == 0

    def state(self):
        return {
            name: sorted(map(str, self.client.query(f"SELECT {columns} FROM {name}").result_rows))
            for name, columns in VIEWS.items()
        }

    def rebuild(self, say=lambda _line: None):
        return rebuild.rebuild(self.journal, self.connect, self.engine, self.client.database, say)
