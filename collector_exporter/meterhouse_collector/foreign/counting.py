"""The increases of running totals in ClickHouse: brought up to date after their points were stored.

The next points of a sequence cost what they are, however long it is: the number of points that were ever inserted of it
(`sequence_counts`, by a view of ClickHouse's own) says whether `sequence_ends` still stands for all of them. If not,
because a point is late, a copy, another collector's, or of an insert that was interrupted, the sequence is read and
counted from its beginning. So whoever asks last has seen the points of all, and its rows have the largest versions.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, Final

from clickhouse_connect.driver.client import Client

from meterhouse_collector.foreign.increases import Claim, End, Increase, Sequence, count, ordered, sequence_of
from meterhouse_collector.foreign.rows import CumulativePoint, columns, values

_SEQUENCES: Final = 5_000
"""Of one query: each takes about 100 bytes of its text."""
_PAGE: Final = 20_000
"""Points that are read at once: some tens of megabytes."""
_LONG: Final[dict[str, Any]] = {"max_query_size": 2**22}
_STORED: Final[dict[str, Any]] = {"max_partitions_per_insert_block": 0, "optimize_on_insert": 0}

_SEQUENCE: Final = "namespace, series, part, start_time"
_KNOWN: Final = f"""
    SELECT namespace, series, part, toUnixTimestamp64Nano(start_time),
        groupUniqArrayIf((customer_id, meter), inserted > 0), sum(inserted), max(of_end),
        max(toUnixTimestamp64Nano(event_time)), max(highest), max(last), max(version)
    FROM (
        SELECT {_SEQUENCE}, customer_id, meter, sequence_counts.points AS inserted, toUInt64(0) AS of_end,
            toDateTime64(0, 9, 'UTC') AS event_time, toDecimal128(0, 9) AS highest, toDecimal128(0, 9) AS last,
            toUInt128(0) AS version
        FROM sequence_counts
        UNION ALL
        SELECT {_SEQUENCE}, '', '', 0, points, event_time, highest, last, version FROM sequence_ends FINAL
    )
    WHERE ({_SEQUENCE}) IN %(sequences)s
    GROUP BY {_SEQUENCE}
"""  # noqa: S608 - names of our own
_TIMES: Final = ("start_time", "event_time", "received_at")
_COLUMNS: Final = tuple(columns(CumulativePoint))
_READ: Final = ", ".join(f"toUnixTimestamp64Nano({name})" if name in _TIMES else name for name in _COLUMNS)
_POINTS: Final = f"""
    SELECT {_READ} FROM cumulative_points FINAL
    WHERE ({_SEQUENCE}) IN %(sequences)s AND ({_SEQUENCE}, event_time) > %(after)s
    ORDER BY {_SEQUENCE}, event_time LIMIT {_PAGE} WITH TIES
"""  # noqa: S608
_ALL: Final = f"""
    SELECT {_READ} FROM cumulative_points FINAL
    WHERE namespace >= %(namespace)s AND (namespace > %(namespace)s OR series >= %(series)s)
        AND ({_SEQUENCE}, event_time) > %(after)s
    ORDER BY {_SEQUENCE}, event_time LIMIT {_PAGE} WITH TIES
"""  # noqa: S608
_ENDS: Final = {
    "namespace": "String",
    "series": "String",
    "part": "UInt8",
    "start_time": "DateTime64(9, 'UTC')",
    "event_time": "DateTime64(9, 'UTC')",
    "highest": "Decimal(38, 9)",
    "last": "Decimal(38, 9)",
    "version": "UInt128",
    "points": "UInt64",
}


@dataclass(frozen=True, slots=True)
class _Known:
    claims: frozenset[Claim] = frozenset()
    inserted: int = 0
    """Points, copies included: those of `end`, and what was inserted since."""
    points: int = 0
    end: End | None = None


def bring_up_to_date(client: Client, points: Collection[CumulativePoint], settings: dict[str, Any]) -> None:
    """Store the increases of points that have just been inserted. Repeatable."""
    found: dict[Sequence, list[CumulativePoint]] = defaultdict(list)
    for point in points:
        found[sequence_of(point)].append(point)
    sequences = sorted(found)
    for at in range(0, len(sequences), _SEQUENCES):
        some = sequences[at : at + _SEQUENCES]
        known = _known(client, some)
        late = [one for one in some if not _goes_on(known[one], found[one])]
        behind = set(late)
        rows: list[Increase] = []
        ends: dict[Sequence, End] = {}
        for one in some:
            if one not in behind:
                new, end = count(known[one].end, ordered(found[one]))
                rows += new
                if end is not None:
                    ends[one] = end
        store(client, "counted_increases", rows, settings)
        for counted, after in _from_the_beginning(client, late, known):
            store(client, "counted_increases", counted, settings)
            ends |= after
        _store_ends(client, ends, known, settings)


def count_all(client: Client) -> Iterator[list[Increase]]:
    """The increases of all points that are stored, counted anew, in parts."""
    for page, ends in _pages(client, None):
        rows: list[Increase] = []
        for one, points in groupby(page, key=sequence_of):
            new, ends[one] = count(ends.get(one), ordered(points))
            rows += (row for row in new if row.is_row)
        yield rows


def store(client: Client, table: str, rows: list[Increase], settings: dict[str, Any]) -> None:
    """Store increases in a table with the columns of `counted_increases`."""
    if rows:
        types = columns(Increase)
        client.insert(
            table,
            [values(row) for row in rows],
            column_names=list(types),
            column_type_names=list(types.values()),
            settings=settings | _STORED,
        )


def _goes_on(known: _Known, points: list[CumulativePoint]) -> bool:
    """Whether these points are all that came since, and later than all before."""
    if known.inserted != known.points + len(points):
        return False
    return known.end is None or min(point.event_time for point in points) > known.end.event_time


def _known(client: Client, sequences: Collection[Sequence]) -> dict[Sequence, _Known]:
    parameters = {"sequences": tuple(map(_literal, sequences))}
    known = dict.fromkeys(sequences, _Known())
    for *key, claims, inserted, points, time_ns, highest, last, version in client.query(
        _KNOWN, parameters=parameters, settings=_LONG
    ).result_rows:
        end = End(time_ns, highest, last, version) if points else None
        known[_sequence(key)] = _Known(frozenset(map(tuple, claims)), inserted, points, end)
    return known


def _from_the_beginning(
    client: Client, sequences: list[Sequence], known: dict[Sequence, _Known]
) -> Iterator[tuple[list[Increase], dict[Sequence, End]]]:
    """The rows of whole sequences in parts, each with the ends that are reached in it."""
    if not sequences:
        return
    for page, ends in _pages(client, sequences):
        rows: list[Increase] = []
        reached: dict[Sequence, End] = {}
        for one, points in groupby(page, key=sequence_of):
            new, ends[one] = count(ends.get(one), ordered(points), known[one].claims)
            rows += new
            if (end := ends[one]) is not None:
                reached[one] = end
        yield rows, reached


def _pages(
    client: Client, sequences: list[Sequence] | None
) -> Iterator[tuple[list[CumulativePoint], dict[Sequence, End | None]]]:
    """The points of these sequences, or of all, in their order and never cut within a time.

    With each page comes a dict, to be filled by whoever reads it with where its sequences end: the last one may go on.
    """
    after: tuple[Any, ...] = ("", "", 0, _text(0), _text(0))
    ends: dict[Sequence, End | None] = {}
    while True:
        parameters: dict[str, Any] = {"after": after}
        if sequences is None:
            parameters |= {"namespace": after[0], "series": after[1]}
        else:
            parameters["sequences"] = tuple(map(_literal, sequences))
        query = _ALL if sequences is None else _POINTS
        found = client.query(query, parameters=parameters, settings=_LONG).result_rows
        page = [CumulativePoint(**dict(zip(_COLUMNS, row, strict=True))) for row in found]
        if page:
            yield page, ends
        if len(page) < _PAGE:
            return
        last = sequence_of(page[-1])
        after = (*_literal(last), _text(page[-1].event_time))
        ends = {last: ends[last]}


def _store_ends(
    client: Client, ends: dict[Sequence, End], known: dict[Sequence, _Known], settings: dict[str, Any]
) -> None:
    if ends:
        rows = [
            [*one, end.event_time, end.highest, end.last, end.version, known[one].inserted] for one, end in ends.items()
        ]
        client.insert(
            "sequence_ends",
            rows,
            column_names=list(_ENDS),
            column_type_names=list(_ENDS.values()),
            settings=settings | _STORED,
        )


def _sequence(key: list[Any]) -> Sequence:
    namespace, series, part, start_time = key
    return namespace, series, part, start_time


def _literal(sequence: Sequence) -> tuple[str, str, int, str]:
    namespace, series, part, start_time = sequence
    return namespace, series, part, _text(start_time)


def _text(time_ns: int) -> str:
    seconds, rest = divmod(time_ns, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}.{rest:09d}"
