"""Verifies an evidence pack, and says what was recomputed, what is only carried, and what differs."""

import argparse
import errno
import hashlib
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TextIO

from .container import Pack
from .costs import check_costs
from .credits import before, bound
from .dates import period_in
from .findings import Findings, NotReadable, Refused, parse_json, whole
from .ledger import Anchor, check_anchor, check_ledger
from .lines import check_rating
from .money import show
from .prices import Prices, prices_of
from .usage import costs_of, groups_of
from .yaml_subset import Unreadable

VERIFIED, DIFFERS, CALLED_WRONGLY = 0, 1, 2

_BROKEN: Final = (AttributeError, KeyError, TypeError, ValueError, IndexError, OverflowError, StopIteration)
"""What a pack of another shape leads to: it is refused, and no traceback is told."""


@dataclass
class Result:
    """`id`: the SHA-256 of the manifest, which names the pack. `about` is what it says it is of.

    `period` is that for people, in the customer's time zone.
    """

    findings: Findings
    id: str = ""
    about: dict[str, Any] = field(default_factory=dict)
    period: str = ""
    ratings: Sequence[Mapping[str, Any]] = ()

    @property
    def verified(self) -> bool:
        return not self.findings.problems

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "verified": self.verified,
            "pack": self.id,
            **self.about,
            "totals": [
                {
                    "period_start": it["period_start"],
                    "state": it["state"],
                    "total": show(it["total_minor"], it["currency"]),
                    "currency": it["currency"],
                }
                for it in self.ratings
            ],
            "recomputed": self.findings.recomputed,
            "carried": self.findings.carried,
            "problems": self.findings.problems,
        }

    def as_text(self) -> str:
        """For people."""
        found = self.findings
        told = [("recomputed", what, count) for what, count in found.recomputed.items()]
        told += [("carried", what, count) for what, count in found.carried.items()]
        width = max((len(f"{count:,}") for _, _, count in told), default=0)
        lines = []
        if self.about:
            lines.append("Evidence pack of {customer_id} ({namespace}), ".format(**self.about) + self.period)
            lines.append(f"  {self.id}")
        lines += [f"  {how:<10}  {count:>{width},}  {what}" for how, what, count in told]
        lines += [f"! {it}" for it in found.problems]
        if not self.verified:
            return _printed([*lines, f"NOT verified: {len(found.problems)} to look at."])
        totals = ", ".join(
            f"{show(it['total_minor'], it['currency'])} {it['currency']} ({it['state']})" for it in self.ratings
        )
        return _printed([*lines, f"Verified: {totals}."])


def _printed(lines: Sequence[str]) -> str:
    """A line each; what does not print is escaped, or a pack could write its own verdict, or steer the terminal."""
    return "\n".join(
        "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in line) for line in lines
    )


def verify(path: Path, anchors: Sequence[Anchor] = ()) -> Result:
    """Everything that a pack lets one recompute; whatever the file is, what is wrong with it is in the findings.

    Raises NotReadable.
    """
    result = Result(Findings())
    try:
        pack = Pack(path, result.findings)
    except Refused as refused:
        result.findings.wrong(str(refused))
        return result
    except _BROKEN as broken:
        result.findings.wrong(f"the manifest is not as a pack's is ({type(broken).__name__})")
        return result
    try:
        result.id = pack.id
        pack.check_hashes()
        _check(pack, result, anchors)
    except Refused as refused:
        result.findings.wrong(str(refused))
    except _BROKEN as broken:
        result.findings.wrong(f"something in it is not as a pack's is ({type(broken).__name__}: {broken})")
    finally:
        pack.close()
    return result


def _check(pack: Pack, result: Result, anchors: Sequence[Anchor]) -> None:
    findings, about = result.findings, pack.manifest["about"]
    result.about = {name: str(about[name]) for name in ("namespace", "customer_id", "period_start", "period_end")}
    result.period = "{period_start:.10}..{period_end:.10}".format(**result.about)
    ratings = pack.json("ratings.json")
    edges = [edge for it in ratings for edge in (it["period_start"], it["period_end"])]
    if not edges or edges != sorted(edges) or [edges[0], edges[-1]] != [about["period_start"], about["period_end"]]:
        raise Refused("its ratings are not, one after the other, of the period that it is about")
    result.ratings = ratings
    result.period = period_in(edges[0], edges[-1], ratings[0]["zone"])
    seen: set[str] = set()
    for line in (line for rating in ratings for line in rating["lines"]):
        if line["line_id"] in seen:
            findings.wrong(f"line {line['line_id'][:10]} is there twice")
        seen.add(line["line_id"])
    if any("costs" in it for it in ratings):
        told = pack.json("costs.json")
        texts = {it["sha256"]: pack.text(f"catalogues/{it['sha256']}.json") for it in told["catalogues"]}
        check_costs(told, ratings, texts, findings)
    costs = costs_of(pack.events(), ratings)
    groups = groups_of(pack.events(), ratings, findings, costs, result.about["customer_id"])
    ledger = pack.json("ledger.json")
    for at, rating in enumerate(ratings):
        prices, grants = _prices(pack, rating, findings), before(rating, ledger)
        known = bound(rating, ratings[:at], ledger, findings)
        check_rating(rating, prices, groups[at], ratings[:at], findings, grants, known)
    check_ledger(ledger, ratings, about["namespace"], about["customer_id"], findings)
    for anchor in anchors:
        check_anchor(anchor, ledger, about["namespace"], findings)
    _completeness(pack.json("completeness.json"), ratings, findings)


def _prices(pack: Pack, rating: Mapping[str, Any], findings: Findings) -> Prices | str:
    """What the rating was priced by, or why that cannot be read."""
    version = whole(rating["book_version"])
    books = {it["version"]: it for it in pack.json("books.json")}
    text = pack.text(f"books/{version}.yaml")
    found = hashlib.sha256(text.encode()).hexdigest()
    if findings.equal(f"the SHA-256 of price book version {version}", books[version]["sha256"], found):
        findings.done("texts of price books, by the hash they were published under")
    try:
        return prices_of(text, rating)
    except Unreadable as unreadable:
        return f"the price book is written in YAML that is not read here ({unreadable})"


def _completeness(told: Mapping[str, Any], ratings: Sequence[Mapping[str, Any]], findings: Findings) -> None:
    for rating in ratings:
        if told[rating["rating_id"]] is None:
            findings.carry("periods whose completeness was not stated: it is when they are closed")
        else:
            findings.carry("statements of completeness, as they were made when the period was closed")


def read_anchor(path: Path) -> Anchor:
    """An anchor as `meterhouse ledger anchor` writes it. Raises Refused."""
    try:
        said = parse_json(path.read_bytes(), str(path))
        return Anchor(str(said["ledger"]), whole(said["sequence"]), str(said["hash"]))
    except OSError as broken:
        raise Refused(f"{path} cannot be read: {broken.strerror}") from None
    except (Refused, *_BROKEN):
        raise Refused(f"{path} is no anchor: `meterhouse ledger anchor --out FILE` writes one") from None


def main(arguments: Sequence[str], own: Path) -> int:
    """`python3 PACK.zip [--json] [--anchor FILE]`: verifies the pack that this is in, `own`, or another."""
    parser = argparse.ArgumentParser(
        prog="python3 PACK.zip",
        description="Verify an evidence pack.",
        epilog="Exit code 0: verified; 1: something differs; 2: called wrongly.",
    )
    parser.add_argument("pack", nargs="?", type=Path, default=own, help="another pack than this one")
    parser.add_argument("--anchor", action="append", type=Path, default=[], help="a file of `meterhouse ledger anchor`")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    asked = parser.parse_args(arguments)
    try:
        anchors = [read_anchor(path) for path in asked.anchor]
        result = verify(asked.pack, anchors)
    except (NotReadable, Refused) as refused:
        parser.error(str(refused))
    # JSON in ASCII: what is escaped for an encoding that lacks it would be no JSON.
    told = json.dumps(result.as_json(), indent=2) if asked.json else result.as_text()
    return _told(told, VERIFIED if result.verified else DIFFERS)


def _told(text: str, code: int) -> int:
    """The exit code, `code` where the text was written. What the encoding of standard output lacks is escaped."""
    out = sys.stdout
    try:
        if out is None:
            raise OSError(errno.EBADF, "there is no standard output")
        if isinstance(out, io.TextIOWrapper):
            out.reconfigure(errors="backslashreplace")
        print(text, flush=True)
    except BrokenPipeError:
        # Whoever read it had enough (`| head -1`), and what was found stays what it is.
        _forget(out)
    except OSError as broken:
        _forget(out)
        with suppress(OSError):
            print(f"What was found cannot be written: {broken.strerror}.", file=sys.stderr)
        return CALLED_WRONGLY
    return code


def _forget(out: TextIO | None) -> None:
    """Let what could not be written go, or Python tries again when it ends, and says so in its own words."""
    if out is not None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, out.fileno())
        os.close(nowhere)
