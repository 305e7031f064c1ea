"""`meterhouse backup` and `restore`: SQL, journal and a hash of the warehouse, consistent with each other.

The order makes them so while everything runs. SQL comes first, in one transaction: what it was rated from is in the
journal already. Then the warehouse is asked how far it is, and hashed up to there: that, too, is in the journal. The
journal comes last, up to where it ends at that moment; it only grows, so it holds at least what the other two speak of,
and all that was acknowledged before the backup began. The warehouse itself is left out: it is a projection, which the
restore makes again and compares with the hash.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Final

from clickhouse_connect.driver.client import Client
from sqlalchemy import Connection, Engine, select

from meterhouse_collector import rebuild, segments
from meterhouse_collector.records import frames
from meterhouse_store import sql_dump, switches, tables
from meterhouse_store.archive import BackupRefused, Progress, Reader, Writer

SQL_FILE: Final = "sql.jsonl"
JOURNAL: Final = "journal"
COMPRESSED: Final = ".zst"
_ATTEMPTS: Final = 100
# Locks, and what is being written under another name.
_PASSING: Final = (".lock", ".new", ".partial", ".tmp")

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Part:
    """A file of the journal, as far as the backup takes it."""

    name: str
    size: int


def backup(
    journal: Path, engine: Engine, client: Client | None, writer: Writer, say: Say, *, now: datetime
) -> dict[str, Any]:
    """Write a backup; returns its manifest. Without `client` it has no hash of the warehouse.

    Raises BackupRefused; what was written is then removed.
    """
    try:
        about: dict[str, Any] = {"made_at": now.isoformat(timespec="seconds"), "meterhouse": version("meterhouse")}
        say("SQL")
        about["sql"] = {"rows": _add_sql(engine, writer)}
        if client is not None:
            say("hash of the warehouse")
        about["warehouse"] = None if client is None else warehouse_state(client, now)
        say("journal")
        about["journal"] = _add_journal(journal, writer)
        return writer.close(about)
    except BaseException:
        writer.discard()
        raise


def warehouse_state(client: Client, at: datetime) -> dict[str, Any] | None:
    """What the usage comes to that was known at a time, or, if that was earlier, when all collectors were projected.

    None where no collector has written to the warehouse yet.
    """
    # The time as text: no nanosecond is lost on the way.
    rows = client.query(
        "SELECT count(), toString(least(min(projected_through), toDateTime64({at:String}, 9, 'UTC'))) FROM watermark",
        parameters={"at": at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")},
    ).result_rows
    return rebuild.state(client, str(client.database), rows[0][1]) if rows[0][0] else None


def refill(
    reader: Reader, journal: Path, engine: Engine, client: Client, say: Say
) -> tuple[dict[str, Any] | None, list[str]]:
    """Make the warehouse again from what was restored; returns what it comes to, and what differs from the backup.

    Raises BackupRefused where the database has rows.
    """
    if client.query("SELECT count() FROM events").result_rows[0][0]:
        raise BackupRefused(
            f"the warehouse database {client.database} is not empty: name another METERHOUSE_WAREHOUSE_DATABASE"
        )
    rebuild.fill(journal, client, engine, say)
    before = reader.manifest["warehouse"]
    if before is None:
        return None, []
    after = rebuild.state(client, str(client.database), before["through"])
    differences = [
        f"{namespace} {meter}: {events} events, {quantity} in the backup"
        for namespace, meter, events, quantity in before["totals"]
        if [namespace, meter, events, quantity] not in after["totals"]
    ]
    differences += [
        f"{namespace} {meter}: {events} events, {quantity} restored"
        for namespace, meter, events, quantity in after["totals"]
        if [namespace, meter, events, quantity] not in before["totals"]
    ]
    if after["usage_sha256"] != before["usage_sha256"] and not differences:
        differences = ["the totals are equal, the rows behind them are not"]
    return after, differences


def restore(
    reader: Reader, journal: Path, engine: Engine, say: Say, progress: Progress, *, who: str, now: datetime
) -> None:
    """Put SQL and journal in place, both empty before. Calls to Stripe are turned off in every namespace.

    The backup must have been verified. Raises BackupRefused before anything is changed.
    """
    if journal.exists() and any(journal.iterdir()):
        raise BackupRefused(f"{journal} is not empty: restore into another --data, nothing is overwritten")
    say("journal")
    _restore_journal(reader, journal, progress)
    say("SQL")

    def freeze(connection: Connection) -> None:
        why = f"{switches.RESTORED} from the backup of {reader.manifest['made_at']}: compare with Stripe first"
        for namespace in connection.execute(select(tables.namespaces.c.namespace)).scalars().all():
            switches.record(connection, namespace, switches.SYNC, switches.OFF, who=who, why=why, now=now)

    with reader.stream(SQL_FILE) as source:
        sql_dump.load(engine, source, reader.manifest["sql"]["rows"], freeze)


def _add_sql(engine: Engine, writer: Writer) -> dict[str, int]:
    with tempfile.TemporaryFile(dir=writer.folder) as spool:
        counts = sql_dump.dump(engine, spool)
        size = spool.tell()
        spool.seek(0)
        writer.add(SQL_FILE, spool, size)
    return counts


def _add_journal(journal: Path, writer: Writer) -> dict[str, Any]:
    """Copy the journal's files up to their sizes now; a segment that is compressed meanwhile is looked for again."""
    parts = _parts(journal)
    end = _end(parts)
    taken: set[str] = set()
    for _ in range(_ATTEMPTS):
        for part in parts:
            segment = part.name.removesuffix(COMPRESSED)
            if segment in taken:
                continue
            try:
                source = open(journal / part.name, "rb")  # noqa: SIM115 - closed below
            except FileNotFoundError:
                continue  # compressed, or moved to its archive, since it was listed: the next listing has it
            with source:
                size = _whole(source, part) if part.name == end else part.size
                writer.add(f"{JOURNAL}/{part.name}", source, size)
            taken.add(segment)
        missing = {part.name.removesuffix(COMPRESSED) for part in parts} - taken
        if not missing:
            return {"files": len(taken), "ends_in": end or None}
        parts = [part for part in _parts(journal) if part.name.removesuffix(COMPRESSED) in missing]
    raise BackupRefused(
        f"files of {journal} vanish again and again while they are copied: {', '.join(sorted(missing))}"
    )


def _parts(journal: Path) -> list[Part]:
    if not journal.is_dir():
        raise BackupRefused(f"there is no journal in {journal}: nothing to back up")
    found = []
    for file in journal.rglob("*"):  # tombstones have a folder of their own
        if file.is_file() and file.name != "lock" and not file.name.endswith(_PASSING):
            try:
                found.append(Part(file.relative_to(journal).as_posix(), file.stat().st_size))
            except FileNotFoundError:
                continue  # as above
    return sorted(found, key=lambda part: part.name)


def _end(parts: list[Part]) -> str:
    return max((part.name for part in parts if part.name.endswith(".seg")), default="")


def _whole(source: IO[bytes], part: Part) -> int:
    """Where the last whole frame of the segment ends that is being written: behind it may stand half of one."""
    whole = [frame.end for frame in frames(source.read(part.size), part.name)]
    source.seek(0)
    return whole[-1] if whole else 0


def _restore_journal(reader: Reader, journal: Path, progress: Progress) -> None:
    journal.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name in reader.names(JOURNAL):
        with reader.stream(name) as source:
            data = source.read()
        file = journal / name.removeprefix(f"{JOURNAL}/")
        file.parent.mkdir(exist_ok=True, mode=0o700)
        segments.write_durably(file, data)
        progress(len(data))
