"""The command `journal`: what the book of record consists of, whether it is whole, and its copies."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meterhouse_collector.terminal import DONE, EXCEPTIONS, FAILED, Data, Json, failed, print_rows, settings_of

if TYPE_CHECKING:
    from meterhouse_collector.archive import Archive

app = typer.Typer(
    help="The collector's journal: its segments, whether they are whole, and their copies.",
    no_args_is_help=True,
    add_completion=False,
)


@app.callback()
def _app() -> None:
    """The collector's journal: its segments, whether they are whole, and their copies."""


@app.command("status")
def status(data: Data = None, as_json: Json = False) -> None:
    """List the segments: open, sealed, compressed or copied; how large what they hold is, and their files.

    Exit code 3 when segments are missing, whether they were removed by METERHOUSE_JOURNAL_RETENTION_DAYS or otherwise,
    or damaged so that their size is not known.
    """
    from meterhouse_collector import retention, segments

    directory = _journal(data)
    rows = _segments(directory)
    missing, removed = segments.missing(directory), retention.removed(directory)
    if as_json:
        print(json.dumps({"segments": rows, "missing": missing, "removed": removed}))
    else:
        header = ["segment", "state", "bytes", "on disk"]
        print_rows(header, [(one["segment"], one["state"], one["bytes"], one["on_disk"]) for one in rows])
        if missing:
            print(f"{len(missing)} segments are not here; {len(removed)} were removed because of their age")
    is_whole = not missing and all(one["bytes"] is not None for one in rows)
    raise typer.Exit(DONE if is_whole else EXCEPTIONS)


@app.command("verify")
def verify(
    data: Data = None,
    as_json: Json = False,
    copies: Annotated[bool, typer.Option("--copies", help="Read the copies back as well.")] = False,
) -> None:
    """Read every segment: each record against its checksum, each tombstone against its signature.

    Exit code 3 when anything is damaged or missing; a sentence says what.
    """
    from meterhouse_collector import archive, erasure, segments
    from meterhouse_collector.records import frames
    from meterhouse_collector.seekable import NotSeekable

    directory = _journal(data)
    records, mistakes = 0, erasure.mistakes(directory)
    mistakes += [f"segment number {number} is missing" for number in segments.missing(directory)]
    names = segments.names(directory)
    for name in names:
        try:
            content = segments.content(directory, name)
        except NotSeekable as problem:
            mistakes.append(f"{problem}: fetch its copy with `meterhouse journal fetch {name}`")
            continue
        end = 0
        for frame in frames(content, name):
            records, end = records + frame.intact, frame.end
            if not frame.intact:
                mistakes.append(f"{name}: {frame.end - frame.start} bytes at offset {frame.start} are damaged")
        if end < len(content) and name != names[-1]:  # of the last one it may be what is being written
            mistakes.append(f"{name}: {len(content) - end} bytes at offset {end} are no record")
    if copies:
        store = _archive(data, directory)
        mistakes += _bad_copies(store, archive.copies(directory))
    if as_json:
        print(json.dumps({"records": records, "mistakes": mistakes}))
    else:
        print(f"{records} records are whole")
        for mistake in mistakes:
            print(mistake)
    raise typer.Exit(EXCEPTIONS if mistakes else DONE)


@app.command("fetch")
def fetch(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[SEGMENT]...", help="By default all that are missing.")
    ] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Bring segments back from their copies, before a rebuild or after a loss; what is there already stays.

    The copies are where METERHOUSE_JOURNAL_ARCHIVE says. A segment named here replaces a damaged one. Exit code 1 where
    a copy cannot be had, 3 where segments are missing that have none.
    """
    from meterhouse_collector import sealing, segments
    from meterhouse_collector.archive import ArchiveFailed

    directory = _journal(data)
    store = _archive(data, directory)
    fetched: list[str] = []
    problems: list[str] = []
    try:
        here = set(segments.names(directory))
        wanted = names or [name for name in store.names() if name not in here]
    except ArchiveFailed as problem:
        raise failed(str(problem)) from None
    with sealing.upkeep_lock(directory):
        for name in wanted:
            try:
                if name == max(here, default="") and (directory / name).exists():
                    raise ArchiveFailed(f"{name} is the last segment, which the collector writes to: it has no copy")
                store.fetch(directory, name)
            except ArchiveFailed as problem:
                problems.append(str(problem))
                continue
            fetched.append(name)
    missing = segments.missing(directory)
    if as_json:
        print(json.dumps({"fetched": fetched, "problems": problems, "missing": missing}))
    else:
        for name in fetched:
            print(f"fetched {name}")
        print(f"{len(fetched)} segments fetched, {len(missing)} are still missing")
    for sentence in problems:
        print(sentence, file=sys.stderr)
    raise typer.Exit(FAILED if problems else EXCEPTIONS if missing else DONE)


def _segments(directory: Path) -> list[dict[str, Any]]:
    from meterhouse_collector import archive, sealing, segments
    from meterhouse_collector.seekable import NotSeekable
    from meterhouse_collector.segments import COMPRESSED

    names, known = segments.names(directory), archive.copies(directory)
    rows = []
    for name in names:
        packed = sealing.is_compressed(directory, name)
        copied = archive.is_copied(directory, name, known.get(name))
        state = "copied" if copied else "compressed" if packed else "open" if name == names[-1] else "sealed"
        size: int | None = None
        try:
            with segments.opened(directory, name) as content:
                size = content.size
        except NotSeekable:
            state = "damaged"
        on_disk = (directory / (name + COMPRESSED if packed else name)).stat().st_size
        rows.append({"segment": name, "state": state, "bytes": size, "on_disk": on_disk})
    return rows


def _bad_copies(store: "Archive", copies: dict[str, Any]) -> list[str]:
    from meterhouse_collector.archive import ArchiveFailed

    mistakes = []
    for name, copy in copies.items():
        try:
            if store.sha256(name) != copy.sha256:
                mistakes.append(f"the copy of {name} is not what was copied: it was changed or damaged there")
        except ArchiveFailed as problem:
            mistakes.append(f"the copy of {name} cannot be read: {problem}")
    return mistakes


def _journal(data: Path | None) -> Path:
    from meterhouse_collector.service import journal_directory

    directory = journal_directory(settings_of(data).data)
    if not (directory / "collector_id").exists():
        raise failed(f"there is no journal in {directory}: name the data directory with --data or METERHOUSE_DATA")
    return directory


def _archive(data: Path | None, directory: Path) -> "Archive":
    from meterhouse_collector.archive import Archive, ArchiveFailed

    url = settings_of(data).journal_archive
    if url is None:
        raise failed("there are no copies: METERHOUSE_JOURNAL_ARCHIVE (s3://bucket/prefix) is not set")
    try:
        return Archive(url, (directory / "collector_id").read_text(encoding="ascii").strip())
    except ArchiveFailed as problem:
        raise failed(str(problem)) from None
