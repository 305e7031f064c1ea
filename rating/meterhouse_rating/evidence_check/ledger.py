"""Checks the ledger of a pack: seals, the chain between them, sums, and that it has closed lines with their amounts."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .findings import Findings, number, whole
from .money import digits

GENESIS: Final = "0" * 64
_SEALED: Final = ("transaction_id", "kind", "source_id", "effective_at", "recorded_at", "corrects")


@dataclass(frozen=True)
class Anchor:
    """Number and hash of a seal that somebody kept."""

    ledger: str
    sequence: int
    hash: str


def check_ledger(
    told: Mapping[str, Any], ratings: Sequence[Mapping[str, Any]], namespace: str, customer: str, findings: Findings
) -> None:
    """The ledger as the pack tells it. `told`: transactions (own ones with customer and memo), anchors."""
    _chain(told, namespace, customer, findings)
    own = [it for it in told["transactions"] if it["own"]]
    for it in (*told["earlier"], *told["transactions"]):
        name = f"ledger transaction {it['sequence']}"
        expected = _sha256(["ledger", namespace, it["kind"], it["source_id"]], sort=True)
        findings.equal(f"{name}: its name", it["transaction_id"], expected)
        sums: dict[str, int] = {}
        for entry in it["entries"]:
            sums[entry["currency"]] = sums.get(entry["currency"], 0) + whole(entry["amount_minor"])
        if any(sums.values()) or not it["entries"]:
            findings.wrong(f"{name} does not sum to zero: {sums}")
        findings.done("ledger transactions that sum to zero in each currency")
    by_source = {(it["kind"], it["source_id"]): it for it in own}
    lines = 0
    for rating in ratings:
        for line in rating["lines"]:
            found = by_source.pop((line["kind"], line["line_id"]), None)
            if rating["state"] == "closed":
                lines += 1
                _line_posted(line, found, findings)
            elif found is not None:
                findings.wrong(f"line {line['line_id'][:10]} is in the ledger, and its rating is open")
    if lines:
        findings.done("lines that are in the ledger with their amount", lines)
    if by_source:
        findings.carry("other ledger transactions of the customer: their causes are not in the pack", len(by_source))


def check_anchor(anchor: Anchor, told: Mapping[str, Any], namespace: str, findings: Findings) -> None:
    """Hold an anchor that was kept elsewhere against the pack."""
    if anchor.ledger != namespace:
        findings.wrong(f"the anchor is of the ledger of {anchor.ledger}, the pack of {namespace}")
        return
    known = {whole(it["sequence"]): it["hash"] for it in told["transactions"]}
    known |= {whole(it["sequence"]) - 1: it["previous_hash"] for it in told["transactions"]}
    if anchor.sequence not in known:
        findings.wrong(
            f"the anchor is of transaction {anchor.sequence}, which the pack does not reach: make it with "
            "`meterhouse evidence --anchor FILE`"
        )
    elif findings.equal(f"the anchor of transaction {anchor.sequence}", anchor.hash, known[anchor.sequence]):
        findings.done("anchors that were kept elsewhere")


def _chain(told: Mapping[str, Any], namespace: str, customer: str, findings: Findings) -> None:
    previous: Mapping[str, Any] | None = None
    gaps = 0
    for it in told["earlier"]:
        _sealed(it, namespace, customer, findings)
    for it in told["transactions"]:
        name = _sealed(it, namespace, customer, findings)
        if it["sequence"] == 1:
            findings.equal(f"{name}: the seal before it, which is none", it["previous_hash"], GENESIS)
        if previous is not None and it["sequence"] <= previous["sequence"]:
            findings.wrong(f"{name} is not in its place in the chain")
        elif previous is not None and it["sequence"] == previous["sequence"] + 1:
            if findings.equal(f"{name}: the seal before it", it["previous_hash"], previous["hash"]):
                findings.done("links of the ledger's chain")
        elif previous is not None:
            gaps += it["sequence"] - previous["sequence"] - 1
        previous = it
    for anchor in told["anchors"]:
        check_anchor(Anchor(namespace, whole(anchor["sequence"]), anchor["hash"]), told, namespace, findings)
    if told["anchors"] and gaps:
        findings.wrong(f"{gaps} ledger transactions between the anchors are missing")
    elif gaps:
        findings.carry("seals of other customers between those of the pack (a pack made with anchors has them)", gaps)


def _sealed(it: Mapping[str, Any], namespace: str, customer: str, findings: Findings) -> str:
    """Check the seal of a transaction; returns what it is called."""
    name = f"ledger transaction {it['sequence']}"
    if it["own"]:
        _person(name, it, customer, findings)
    body = [
        namespace,
        whole(it["sequence"]),
        it["previous_hash"],
        it["personal_sha256"],
        [it[key] for key in _SEALED],
        [
            [entry["position"], entry["account"], entry["amount_minor"], entry["currency"], entry["grant_id"]]
            for entry in it["entries"]
        ],
    ]
    if findings.equal(f"{name}: its seal", it["hash"], _sha256(body)):
        findings.done("seals of ledger transactions")
    return name


def _person(name: str, it: Mapping[str, Any], customer: str, findings: Findings) -> None:
    if it["personal_salt"] is None:
        findings.carry("whose ledger transactions they are: the customer was erased")
        return
    personal = _sha256([it["personal_salt"], customer, it["memo"]])
    findings.equal(f"{name}: the seal of whose it is", it["personal_sha256"], personal)


def _line_posted(line: Mapping[str, Any], found: Mapping[str, Any] | None, findings: Findings) -> None:
    name, amount = f"line {line['line_id'][:10]} ({line['description']})", whole(line["amount_minor"])
    sides: dict[str, int] = {}
    for entry in found["entries"] if found is not None else ():
        findings.equal(f"{name}: its currency in the ledger", line["currency"], entry["currency"])
        sides[entry["account"]] = sides.get(entry["account"], 0) + whole(entry["amount_minor"])
    if found is None and line["kind"] != "credit_pack":
        findings.equal(f"{name}: what the ledger has of it", amount, 0)
        return
    findings.equal(f"{name}: what the ledger says is owed", sides.get("receivable", 0), amount)
    if line["kind"] == "credit_pack":
        granted = int(number(line["explanation"]["credits"]) * 10 ** digits(line["currency"]))
        expected = {"deferred_credits": -granted, "promotions": granted - amount}
    elif line["kind"] in ("credit_applied", "credit_restored"):
        expected = {"deferred_credits": -amount}
    else:
        expected = {"revenue": -amount}
    for account, minor in expected.items():
        findings.equal(f"{name}: the ledger's {account}", sides.get(account, 0), minor)
    for account in sorted(sides.keys() - expected.keys() - {"receivable"}):
        findings.wrong(f"{name}: the ledger posts it to {account}, too")


def _sha256(value: Any, *, sort: bool = False) -> str:
    text = json.dumps(value, sort_keys=sort, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
