"""What fuzzing found worth keeping, again: refused in words or a record that reads back, and the warehouse takes it."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from collector_samples import batch
from test_collector_projector import Source, projector

sys.path.insert(0, str(Path(__file__).parent / "fuzz"))

import seeds
import target

from meterhouse_collector.inbox import Inbox
from meterhouse_collector.records import Record, encode

CORPUS = sorted((Path(__file__).parent / "fuzz" / "corpus").iterdir())


@pytest.mark.parametrize("kind", [kind for kind in target.KINDS if kind != "journal"])
def test_each_seed_is_an_honest_request_that_is_taken(kind):
    assert target.one(seeds.seeds()[kind.replace(" ", "-")]) is not None


def test_the_fuzzing_runs_by_itself_as_the_proof_starts_it(tmp_path):
    program = Path(__file__).parent / "fuzz" / "run.py"
    started = [sys.executable, str(program), "1", str(tmp_path / "found")]
    done = subprocess.run(started, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    tried = re.search(r"stat::number_of_executed_units:\s*(\d+)", done.stdout + done.stderr)
    assert (done.returncode, tried is not None and int(tried[1]) > 0) == (0, True), done.stderr[-2000:]


def test_the_corpus_is_refused_in_words_or_becomes_records_and_never_fails():
    assert len(CORPUS) > 50
    taken = [target.one(file.read_bytes()) is not None for file in CORPUS]
    assert any(taken) and not all(taken)


def test_the_warehouse_takes_every_record_of_the_corpus_and_what_stands_between_them_counts(database):
    frames, good = [], 0
    for number, file in enumerate(CORPUS):
        frame = target.one(file.read_bytes())
        if frame is not None:
            good += 1
            own = batch(["acme"], 1, f"g{number}").SerializeToString()
            record = Record("c", "live", (), time.time_ns(), f"{number:032x}", target.SEGMENT, own)
            frames += [frame, encode(record)]
    working = projector(Source(b"".join(frames)), Inbox(database), range_bytes=64 * 2**10)
    while working.step():
        pass
    counted = database.query("SELECT count() FROM usage WHERE event_id LIKE 'g%-acme-0'").result_rows
    assert counted == [(good,)]
