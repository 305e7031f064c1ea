"""Fuzz the way of a request: python tests/collector_exporter/fuzz/run.py SECONDS DIRECTORY

Requests are changed as messages (mutations.py) and as bytes, with atheris (`pip install atheris`) guided by coverage.
DIRECTORY gets what covers more than was covered before; what fails is written there as crash-*, and the exit code is
then not 0.
"""

import random
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]


def main(seconds: int, directory: Path) -> int:
    """0: nothing failed."""
    directory.mkdir(parents=True, exist_ok=True)
    try:
        import atheris
    except ImportError:
        return mutate(seconds, directory)
    with atheris.instrument_imports(include=["meterhouse_collector", "target"]):
        import target
    write_seeds(directory)
    limits = [f"-max_total_time={seconds}", "-timeout=20", "-rss_limit_mb=2000", "-max_len=4096"]
    output = ["-print_final_stats=1", f"-artifact_prefix={directory}/", str(directory)]
    atheris.Setup([sys.argv[0], *limits, *output], target.one, custom_mutator=_mutator(atheris))
    atheris.Fuzz()  # ends the process
    return 0


def write_seeds(directory: Path) -> None:
    import seeds

    for file in (HERE / "corpus").glob("*"):
        (directory / file.name).write_bytes(file.read_bytes())
    for name, data in seeds.seeds().items():
        (directory / f"seed-{name}").write_bytes(data)


def _mutator(atheris: Any) -> Callable[[bytes, int, int], bytes]:
    from mutations import mutated

    def mutator(data: bytes, longest: int, seed: int) -> bytes:
        rng = random.Random(seed)
        found = mutated(data, rng) if rng.random() < 0.7 else None
        return found if found is not None and len(found) <= longest else bytes(atheris.Mutate(data, longest))

    return mutator


def mutate(seconds: int, directory: Path) -> int:
    """Without atheris: whatever the changes give, whether it covers more or not."""
    import target
    from mutations import mutated

    write_seeds(directory)
    known = [file.read_bytes() for file in sorted(directory.iterdir()) if not file.name.startswith("crash-")]
    rng, deadline, runs, failures = random.Random(time.time_ns()), time.monotonic() + seconds, 0, 0
    while time.monotonic() < deadline and failures < 10:
        data = rng.choice(known)
        data = (mutated(data, rng) if rng.random() < 0.7 else None) or flipped(data, rng.choice(known), rng)
        runs += 1
        try:
            target.one(data)
        except Exception:  # noqa: BLE001
            traceback.print_exc()
            failures += 1
            (directory / f"crash-{runs}").write_bytes(data)
    print(f"stat::number_of_executed_units: {runs}")
    return 1 if failures else 0


def flipped(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, put in, taken out, and crossed with another input."""
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 8)):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(4):
            case 0 if changed:
                changed[at % len(changed)] ^= 1 << rng.randrange(8)
            case 1:
                changed[at:at] = rng.randbytes(rng.randrange(1, 9))
            case 2:
                del changed[at : at + rng.randrange(1, 33)]
            case _:
                start = rng.randrange(len(other))
                changed[at:at] = other[start : start + rng.randrange(1, 65)]
    return bytes(changed)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2])))
