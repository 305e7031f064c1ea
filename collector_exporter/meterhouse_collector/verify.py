"""`meterhouse warehouse verify`: the journal is read again and the warehouse compared with it, range by range.

Each range is projected into a scratch database by the projector itself, so what is compared is what it would store now.
Of a duplicate the live row may name another segment, the one of the copy that came first: rows are found by their key.
With `repair` a range that differs is projected into the live database again, which adds only what is missing.

Then the increases of running totals are counted anew from all points that are stored, and compared; and so are the sums
of days.
"""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from clickhouse_connect.driver.client import Client

from meterhouse_collector import segments
from meterhouse_collector.foreign import counting, storing
from meterhouse_collector.inbox import Inbox
from meterhouse_collector.journal import Horizon
from meterhouse_collector.projection import projection_lock
from meterhouse_collector.projector import Checkpoint, Projector
from meterhouse_collector.seekable import NotSeekable
from meterhouse_collector.segments import START, Position
from meterhouse_store import conflicts, decided, rollups, schema

_KEY: Final = f"{conflicts.IDENTITY}, quantity"
_BY_KEY: Final = " AND ".join(f"live.{name} = told.{name}" for name in _KEY.split(", "))

# Verdicts about spans are left out of what is told here (schema/01_events.sql says how versions rank).
# A live version that ranks below what the journal says is as good as none; one of the same rank says the same.
_MISSING: Final = f"""
    SELECT count() FROM (
        SELECT {_KEY}, max(events.first) AS first, argMax(events.reason, events.first) AS reason
        FROM %(scratch)s.events
        WHERE events.first < 8646911284551352320 OR events.first BETWEEN 9223372036854775808 AND 17293822569102704638
        GROUP BY {_KEY}
    ) AS told
    LEFT JOIN (
        SELECT {_KEY}, first, reason FROM %(live)s.events FINAL
        WHERE ({_KEY}) IN (SELECT {_KEY} FROM %(scratch)s.events)
    ) AS live ON {_BY_KEY}
    WHERE live.first < told.first OR live.first = told.first AND live.reason != told.reason
"""  # noqa: S608 - names of our own
# What conflicts are found by, and running totals and spans worked out from, has no versions: it is there or not.
_IDENTITIES: Final = "event_time, identity, quantity"
_POINTS: Final = "namespace, series, part, start_time, event_time, value"
_SPANS: Final = "namespace, trace_id, span_id, parent_id, event_time, customer_id, is_call, has_usage, response_id"
_ABSENT: Final = " UNION ALL ".join(
    f"SELECT count() AS n FROM (SELECT DISTINCT {key} FROM %(scratch)s.{table}) "  # noqa: S608 - names of our own
    f"WHERE ({key}) NOT IN ("
    f"SELECT {key} FROM %(live)s.{table} WHERE ({key}) IN (SELECT {key} FROM %(scratch)s.{table}))"
    for table, key in (("identities", _IDENTITIES), ("cumulative_points", _POINTS), ("spans", _SPANS))
)
_SURPLUS: Final = f"""
    SELECT count() FROM %(live)s.events FINAL
    WHERE record_id IN (SELECT record_id FROM %(scratch)s.events)
        AND received_at >= (SELECT min(received_at) FROM %(scratch)s.events)
        AND received_at <= (SELECT max(received_at) FROM %(scratch)s.events)
        AND ({_KEY}) NOT IN (SELECT {_KEY} FROM %(scratch)s.events)
        AND ({conflicts.IDENTITY}) NOT IN (SELECT {conflicts.IDENTITY} FROM %(live)s.decided_increases)
"""  # noqa: S608 - names of our own
_TOTALS: Final = """
    SELECT count() FROM (
        SELECT segment, record_id, source FROM (
            SELECT segment, record_id, source, hour, arraySort(arrayZip(reasons, rows, quantities)) AS told
            FROM %(live)s.segment_totals FINAL
            WHERE (segment, record_id) IN (SELECT segment, record_id FROM %(scratch)s.segment_totals)
            UNION ALL
            SELECT segment, record_id, source, hour, arraySort(arrayZip(reasons, rows, quantities))
            FROM %(scratch)s.segment_totals FINAL
        )
        GROUP BY segment, record_id, source HAVING count() != 2 OR uniqExact((hour, told)) != 1
    )
"""
# Increases as they are stored, beside those that their points give now.
_IDENTITY: Final = conflicts.IDENTITY
_WRONG: Final = f"""
    SELECT {_IDENTITY} FROM (
        SELECT {_IDENTITY}, quantity, raw_value, reason, record_id FROM %(live)s.counted_increases FINAL
        WHERE is_row AND received_at <= fromUnixTimestamp64Nano(%(through_ns)s, 'UTC')
        UNION ALL
        SELECT {_IDENTITY}, quantity, raw_value, reason, record_id FROM %(scratch)s.counted_increases FINAL
        WHERE is_row AND received_at <= fromUnixTimestamp64Nano(%(through_ns)s, 'UTC')
    )
    GROUP BY {_IDENTITY} HAVING count() != 2 OR uniqExact((quantity, raw_value, reason, record_id)) != 1
"""  # noqa: S608 - names of our own
_MEND: Final = (
    f"""
    INSERT INTO %(live)s.counted_increases
    SELECT * REPLACE (false AS is_row) FROM %(live)s.counted_increases FINAL
    WHERE counted_increases.is_row AND ({_IDENTITY}) IN ({_WRONG})
        AND ({_IDENTITY}) NOT IN (SELECT {_IDENTITY} FROM %(scratch)s.counted_increases)
    """,  # noqa: S608
    f"""
    INSERT INTO %(live)s.counted_increases
    SELECT told.* REPLACE (greatest(told.version, stored.version) AS version)
    FROM (SELECT * FROM %(scratch)s.counted_increases FINAL WHERE ({_IDENTITY}) IN ({_WRONG})) AS told
    LEFT JOIN (
        SELECT {_IDENTITY}, version FROM %(live)s.counted_increases FINAL
        WHERE ({_IDENTITY}) IN (SELECT {_IDENTITY} FROM %(scratch)s.counted_increases)
    ) AS stored ON {" AND ".join(f"stored.{name} = told.{name}" for name in _IDENTITY.split(", "))}
    """,  # noqa: S608
    # Another number of points than where any sequence stood: the next point has each counted from its beginning.
    """
    INSERT INTO %(live)s.sequence_counts (namespace, series, part, start_time, customer_id, meter, points)
    SELECT DISTINCT namespace, series, part, start_time, customer_id, meter, 1 FROM %(live)s.cumulative_points
    """,
)
_MENDING: Final[dict[str, Any]] = {
    "async_insert": 0,
    "distributed_foreground_insert": 1,
    "max_partitions_per_insert_block": 0,
}
_ALWAYS_NS: Final = 2**63 - 1
_FINAL: Final[dict[str, Any]] = {"do_not_merge_across_partitions_select_final": 1}
_WITH_ROWS: Final = "SELECT name FROM system.tables WHERE database = currentDatabase() AND total_rows > 0"


# What follows from several records is asked of all that is stored: which copy stands, and which span is the call.
_RECEIVED: Final = """
    SELECT toUnixTimestamp64Nano(min(received_at)), toUnixTimestamp64Nano(max(received_at)), count() FROM (
        SELECT received_at FROM %(scratch)s.events UNION ALL SELECT received_at FROM %(scratch)s.spans)
"""
_UNMARKED: Final = f"""
    SELECT count() FROM %(scratch)s.conflicts FINAL
    WHERE ({conflicts.IDENTITY}, standing_quantity) NOT IN (
        SELECT {conflicts.IDENTITY}, standing_quantity FROM %(live)s.conflicts FINAL
        WHERE ({conflicts.IDENTITY}) IN (SELECT {conflicts.IDENTITY} FROM %(scratch)s.conflicts))
"""  # noqa: S608 - names of our own


class CannotVerify(RuntimeError):
    """There is no journal here that the warehouse could be compared with, or not this segment."""


class Progress(Protocol):
    """Told how many segments are done, of how many."""

    def __call__(self, done: int, total: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Difference:
    """A range of the journal that the warehouse does not agree with; `mended` when it does now."""

    segment: str
    start: int
    end: int
    missing: int
    surplus: int
    totals: int
    mended: bool

    def __str__(self) -> str:
        parts = [
            f"{self.missing} rows are missing or changed" if self.missing else "",
            f"the control totals of {self.totals} records differ" if self.totals else "",
            f"{self.surplus} rows are not in the journal" if self.surplus else "",
        ]
        text = f"{self.segment}, bytes {self.start} to {self.end}: {', '.join(part for part in parts if part)}"
        return text + (" (mended)" if self.mended else "")


@dataclass(slots=True)
class Verified:
    """What was compared and what differed.

    `lost_decisions` were recorded and are not in their rows; `wrong_increases` are not what the points give, and the
    sums of `wrong_days` not those of their usage. `unreadable` says of segments why they could not be compared.
    """

    ranges: int = 0
    bytes: int = 0
    differences: list[Difference] = field(default_factory=list)
    lost_decisions: int = 0
    decisions_mended: bool = False
    wrong_increases: int = 0
    increases_mended: bool = False
    wrong_days: int = 0
    days_mended: bool = False
    unreadable: list[str] = field(default_factory=list)

    @property
    def is_wrong(self) -> bool:
        """Whether something differs now."""
        return (
            any(not one.mended for one in self.differences)
            or bool(self.unreadable)
            or (self.lost_decisions > 0 and not self.decisions_mended)
            or (self.wrong_increases > 0 and not self.increases_mended)
            or (self.wrong_days > 0 and not self.days_mended)
        )

    def verdict(self) -> str:
        """The result in a sentence."""
        ranges = "1 range" if self.ranges == 1 else f"{self.ranges} ranges"
        found = f"{ranges}, {self.bytes / 2**20:.1f} MB of the journal read"
        lost = "".join(f"; a segment is damaged: {problem}" for problem in self.unreadable)
        if self.unreadable:
            lost += " (`meterhouse journal fetch` brings its copy back where it is moved away)"
        if self.lost_decisions:
            lost += f"; {self.lost_decisions} decisions were not in their rows"
            lost += " and are applied again" if self.decisions_mended else ""
        if self.wrong_increases:
            lost += f"; {self.wrong_increases} increases of running totals were not what their points give"
            lost += " and are now" if self.increases_mended else ""
        if self.wrong_days:
            lost += f"; the sums of {self.wrong_days} days were not those of their usage"
            lost += " and are read no more" if self.days_mended else ""
        if not self.differences and not lost:
            return f"{found}: the warehouse agrees with it"
        if self.is_wrong:
            return f"{found}: {len(self.differences)} differ{lost}. `--repair` projects them again"
        return f"{found}: {len(self.differences)} differed and were mended{lost}"

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        names = Difference.__slots__
        return {
            "ranges": self.ranges,
            "bytes": self.bytes,
            "differences": [{name: getattr(one, name) for name in names} for one in self.differences],
            "unreadable": self.unreadable,
            "lost_decisions": self.lost_decisions,
            "decisions_mended": self.decisions_mended,
            "wrong_increases": self.wrong_increases,
            "increases_mended": self.increases_mended,
            "wrong_days": self.wrong_days,
            "days_mended": self.days_mended,
            "agrees": not self.is_wrong,
        }


def verify(
    directory: Path,
    connect: Callable[[str], Client],
    database: str,
    progress: Progress,
    *,
    segment: str | None = None,
    repair: bool = False,
) -> Verified:
    """Compare `database` with the journal in `directory`, as far as it is projected, by way of `<database>_verify`.

    `connect` gives a client of the database of that name. Raises CannotVerify, and clickhouse-connect's errors; it may
    be run at any time and again.
    """
    if not (directory / "collector_id").exists():
        raise CannotVerify(f"there is no journal in {directory}: run this where the collector runs")
    scratch = f"{database}_verify"
    with closing(connect("default")) as admin:
        admin.command(f"DROP DATABASE IF EXISTS {scratch} SYNC")
        schema.create_scratch(admin, scratch)
        try:
            with closing(connect(database)) as live, closing(connect(scratch)) as told:
                work = _Verification(directory, live, told, repair)
                result = work.run(progress, segment)
        finally:
            admin.command(f"DROP DATABASE IF EXISTS {scratch} SYNC")
    return result


@contextmanager
def terminal_progress() -> Iterator[Progress]:
    """A bar on the terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    with Bars(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bars:
        bar = bars.add_task("")
        yield lambda done, total: bars.update(bar, completed=done, total=total)


@contextmanager
def no_progress() -> Iterator[Progress]:
    """Silence, for what is not a terminal."""
    yield lambda done, total: None


class _Range:
    """A store that begins at a place and notes nothing: the projector's step is one range into `inbox`."""

    def __init__(self, inbox: Inbox, start: Position) -> None:
        self._inbox, self._start = inbox, start

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inbox, name)

    def checkpoint(self, _collector_id: str) -> Checkpoint:
        return Checkpoint(self._start, 0, 0)

    def write_checkpoint(self, _collector_id: str, _checkpoint: Checkpoint) -> None:
        pass


class _Verification:
    def __init__(self, directory: Path, live: Client, scratch: Client, repair: bool) -> None:
        self._directory, self._live, self._scratch, self._repair = directory, live, scratch, repair
        self._names = {"live": str(live.database), "scratch": str(scratch.database)}
        self._collector_id = (directory / "collector_id").read_text(encoding="ascii").strip()

    def run(self, progress: Progress, segment: str | None) -> Verified:
        goal = Inbox(self._live).checkpoint(self._collector_id)
        until = goal.position if goal else START
        names = [name for name in segments.names(self._directory) if name <= until.segment]
        if segment is not None:
            if segment not in names:
                raise CannotVerify(f"there is no segment {segment} that is projected; there are {', '.join(names)}")
            names = [segment]
        result, total = Verified(), len(names)
        for number, name in enumerate(names):
            self._verify_segment(name, until, result)
            progress(number + 1, total)
        self._verify_increases(goal.through_ns + 999 if goal else 0, result)  # a checkpoint has whole microseconds
        result.lost_decisions = decided.lost(self._live)
        if result.lost_decisions and self._repair:
            with projection_lock(self._directory, wait=True):
                decided.apply_lost(self._live)
            result.decisions_mended = decided.lost(self._live) == 0
        days = rollups.wrong_days(self._live)
        result.wrong_days = len(days)
        if days and self._repair:
            rollups.distrust(self._live, days)
            result.days_mended = rollups.wrong_days(self._live) == []
        return result

    def _verify_segment(self, name: str, until: Position, result: Verified) -> None:
        start = Position(name, 0)
        while True:
            for (table,) in self._scratch.query(_WITH_ROWS).result_rows:
                self._scratch.command(f"TRUNCATE TABLE {table}")
            try:
                end = self._project(self._scratch, start, until)
            except NotSeekable as problem:
                result.unreadable.append(str(problem))
                return
            if end.segment != name or end == start:
                return
            result.ranges += 1
            result.bytes += end.offset - start.offset
            found = self._compare()
            if any(found):
                mended = False
                if self._repair:
                    with projection_lock(self._directory, wait=True):
                        self._project(self._live, start, end)
                    mended = not any(self._compare())
                result.differences.append(Difference(name, start.offset, end.offset, *found, mended))
            start = end

    def _verify_increases(self, through_ns: int, result: Verified) -> None:
        if not self._wrong_increases(through_ns):
            return
        # What came meanwhile may have changed others: nothing comes now.
        with projection_lock(self._directory, wait=True):
            result.wrong_increases = self._wrong_increases(_ALWAYS_NS)
            if result.wrong_increases and self._repair:
                for statement in _MEND:
                    names = self._names | {"through_ns": _ALWAYS_NS}
                    self._live.command(statement % names, settings=_FINAL | _MENDING)
                result.increases_mended = self._wrong_increases(_ALWAYS_NS) == 0

    def _wrong_increases(self, through_ns: int) -> int:
        self._scratch.command("TRUNCATE TABLE counted_increases")
        for rows in counting.count_all(self._live):
            counting.store(self._scratch, "counted_increases", rows, {})
        query = f"SELECT count() FROM ({_WRONG})" % (self._names | {"through_ns": through_ns})  # noqa: S608
        return int(self._live.query(query, settings=_FINAL).result_rows[0][0])

    def _project(self, client: Client, start: Position, until: Position) -> Position:
        projector = Projector(
            self._collector_id,
            _Range(Inbox(client), start),
            horizon=lambda: Horizon(until, 0),
            read=lambda position, goal, limit: segments.read(self._directory, position, goal, limit),
            gather_bytes=0,
        )
        projector.step()
        return projector.done.position if projector.done else start

    def _compare(self) -> tuple[int, int, int]:
        missing, absent, surplus, totals = (
            sum(int(row[0]) for row in self._live.query(query % self._names, settings=_FINAL).result_rows)
            for query in (_MISSING, _ABSENT, _SURPLUS, _TOTALS)
        )
        if self._undecided():
            with projection_lock(self._directory, wait=True):  # nothing comes now that is not decided yet
                missing += self._undecided()
        return missing + absent, surplus, totals

    def _undecided(self) -> int:
        """How many rows of the range do not have what follows from others: a conflict, or a verdict about a span."""
        self._scratch.command("TRUNCATE TABLE conflicts")
        unmarked = 0
        if conflicts.mark_again(self._live, str(self._scratch.database), _MENDING):
            unmarked = int(self._live.query(_UNMARKED % self._names, settings=_FINAL).result_rows[0][0])
        from_ns, through_ns, rows = self._live.query(_RECEIVED % self._names).result_rows[0]
        return unmarked + (storing.unsettled(self._live, from_ns, through_ns) if rows else 0)
