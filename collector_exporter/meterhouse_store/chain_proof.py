"""What the proofs of the ledger and of the audit log have in common: how far they got, what is wrong, the anchors."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar

GENESIS: Final = "0" * 64
"""The hash before the first row of a chain."""
MAX_PROBLEMS: Final = 100
"""So many problems are told; who finds that many needs no more."""
CHUNK: Final = 5_000
"""Rows of a chain that are read at once."""


class Seal(Protocol):
    """An anchor: a seal that was kept where who can write the chain cannot."""

    @property
    def namespace(self) -> str: ...
    @property
    def sequence(self) -> int: ...


A = TypeVar("A", bound=Seal)


@dataclass
class Proof:
    """How far a chain was read, and all that is wrong with it. `erased`: rows about persons who were taken out."""

    namespace: str
    sequence: int = 0
    hash: str = GENESIS
    erased: int = 0
    problems: list[str] = field(default_factory=list)

    def wrong(self, text: str) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(text)


def by_sequence(proof: Proof, anchors: Iterable[A], chain: str) -> dict[int, list[A]]:
    """The anchors of this namespace by the row that they are of; `chain` is what it is called."""
    wanted: dict[int, list[A]] = {}
    for anchor in anchors:
        if anchor.namespace != proof.namespace:
            proof.wrong(f"an anchor is of the {chain} of {anchor.namespace}, this is that of {proof.namespace}")
        elif anchor.sequence:
            wanted.setdefault(anchor.sequence, []).append(anchor)
    return wanted


def end_is_there(proof: Proof, left: Iterable[int], chain: str, rows: str) -> None:
    """Of the anchors whose rows did not come: the chain was longer."""
    for sequence in sorted(left):
        proof.wrong(f"an anchor knows {sequence} {rows}, the {chain} has {proof.sequence}: its end is missing")
