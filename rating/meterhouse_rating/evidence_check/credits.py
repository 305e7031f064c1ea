"""A customer's credits before a rating, from the ledger in the pack, and how they are used up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any, Final

from .dates import moment
from .findings import Findings, number, sha256, whole
from .money import minor, show

_BEFORE_GRANTS: Final = "before-grants"
_ALWAYS: Final = "1970-01-01T00:00:00.000000000Z"
_NEVER: Final = "9999"


@dataclass(frozen=True)
class Grant:
    """Credits of one origin, in minor units; times are text that compares as it is."""

    name: str
    kind: str
    left: int
    granted_at: str
    expires_at: str
    priority: int
    rollover: int

    @property
    def place(self) -> tuple[Any, ...]:
        """Where it stands among the grants as they are used up."""
        return self.priority, self.expires_at, self.kind == "bought", self.granted_at, self.name


def before(rating: Mapping[str, Any], ledger: Mapping[str, Any]) -> list[Grant] | None:
    """What the customer had when the rating was closed: the fold of entries before its own. None for an open one."""
    lines = {line["line_id"] for line in rating["lines"]}
    own = [it for it in (*ledger["earlier"], *ledger["transactions"]) if it["own"]]
    first = min((whole(it["sequence"]) for it in own if it["source_id"] in lines), default=None)
    if rating["state"] != "closed" or first is None:
        return None
    left: dict[str, int] = {}
    expired = set()
    for it in own:
        for entry in it["entries"] if it["sequence"] < first else ():
            if entry["account"] == "deferred_credits" and entry["currency"] == rating["currency"]:
                name = entry["grant_id"] or _BEFORE_GRANTS
                left[name] = left.get(name, 0) - whole(entry["amount_minor"])
                if it["kind"] == "credit_expired" and whole(entry["amount_minor"]) > 0:
                    expired.add(name)  # what comes back after that is not carried on
    for line in rating["lines"]:
        # What comes back on the rating may pay at once; from before lines said so it does not.
        if line["kind"] == "credit_restored" and "payable" in line["explanation"]:
            for name, used in line["explanation"]["used"].items():
                left[name] = left.get(name, 0) - minor(number(used), rating["currency"], "half_even")
    found = []
    for name, amount in left.items():
        told = rating["grants"].get(name, {})
        rules = (told.get("granted_at", _ALWAYS), told.get("expires_at") or _NEVER, told.get("priority", 0))
        rollover = 0 if name in expired else whole(told.get("rollover", 0))
        found.append(Grant(name, told.get("kind", "bought"), amount, *rules, rollover))
    return _at_start(found, rating["period_start"])


def bound(
    rating: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]], ledger: Mapping[str, Any], findings: Findings
) -> set[str]:
    """The grants whose rules the pack proves: they are sealed in the ledger, or are those of a line of a rating before
    it (which are checked by its book), or follow from another grant's.
    """
    granting = {
        it["source_id"]: it
        for it in (*ledger["earlier"], *ledger["transactions"])
        if it["own"] and it["kind"] == "credit_granted"
    }
    told, found = rating["grants"], set[str]()
    for name, it in told.items():
        posted = granting.get(name)
        if posted is None or posted["personal_salt"] is None:
            continue
        what = f"the grant {name[:10]}"
        sides = {entry["account"] for entry in posted["entries"]}
        kind = "bought" if "cash" in sides else "promotional"
        same = findings.equal(f"{what}: its kind, by the ledger", it["kind"], kind)
        since = _text(datetime.fromisoformat(posted["effective_at"]))
        same &= findings.equal(f"{what}: from when it holds, by the ledger", it["granted_at"], since)
        if posted["memo"].startswith(f"{kind} credits, "):  # before that was written there, nothing says the rest
            words = _rules(it, rating["currency"])
            if not posted["memo"].startswith(f"{words}: "):
                same = findings.equal(f"{what}: its rules, by the ledger", words, posted["memo"])
            if same:
                found.add(name)
    for it in (grant for other in earlier for line in other["lines"] for grant in made_by(line, lambda _: 0)):
        if it.name in told:
            said = told[it.name]
            rules = [said["kind"], said["granted_at"], said["expires_at"] or _NEVER, said["priority"], said["rollover"]]
            by_line = [it.kind, it.granted_at, it.expires_at, it.priority, it.rollover]
            if findings.equal(f"the grant {it.name[:10]}: its rules, by its line", rules, by_line):
                found.add(it.name)
    # One that was rolled over is named by the one it comes from, which may have been so itself.
    origins = {sha256(["grant", "rollover", name]): name for name in told}
    for name in told:
        chain = [name]
        while chain[-1] not in found and origins.get(chain[-1]) in told and len(chain) <= len(told):
            chain.append(origins[chain[-1]])
        for following, origin in pairwise(chain):
            _check_carried(following, told[following], told[origin], findings)
        if chain[-1] in found:
            found |= set(chain)
    return found


def _check_carried(name: str, it: Mapping[str, Any], origin: Mapping[str, Any], findings: Findings) -> None:
    length = moment(origin["expires_at"]) - moment(origin["granted_at"])
    rules = {name: it[name] for name in ("kind", "granted_at", "expires_at", "priority", "rollover")}
    follow = {
        "kind": origin["kind"],
        "granted_at": origin["expires_at"],
        "expires_at": _text(moment(origin["expires_at"]) + length),
        "priority": origin["priority"],
        "rollover": 0,
    }
    findings.equal(f"the grant {name[:10]}: its rules, by the one that it carries on", rules, follow)


def _rules(it: Mapping[str, Any], currency: str) -> str:
    """As the ledger has them."""
    until = "without end" if it["expires_at"] is None else f"until {_short(it['expires_at'])}"
    rollover = whole(it["rollover"])
    rolled = f", up to {show(rollover, currency)} rolled over" if rollover else ""
    return f"{it['kind']} credits, priority {whole(it['priority'])}, {until}{rolled}"


def _short(text: str) -> str:
    return f"{text[:26].removesuffix('.000000')}Z".removesuffix("T00:00:00Z")


def _at_start(grants: Sequence[Grant], start: str) -> list[Grant]:
    """What has expired is gone, or carried on once, for as long again."""
    found = [it for it in grants if it.expires_at > start and it.left > 0]
    for it in grants:
        carried = min(it.rollover, it.left)
        if it.expires_at <= start and carried > 0:
            until = moment(it.expires_at) + (moment(it.expires_at) - moment(it.granted_at))
            name = sha256(["grant", "rollover", it.name])
            following = Grant(name, it.kind, carried, it.expires_at, _text(until), it.priority, 0)
            found += [following] if following.expires_at > start else []
    return found


def made_by(line: Mapping[str, Any], minor: Any) -> list[Grant]:
    """The grants that a line of the rating itself makes. `minor`: reads an amount of the rating's currency."""
    return [
        Grant(
            it["grant"],
            it["kind"],
            minor(it["amount"]),
            _text(datetime.fromisoformat(it["granted_at"])),
            _NEVER if it["expires_at"] is None else _text(datetime.fromisoformat(it["expires_at"])),
            whole(it["priority"]),
            0,
        )
        for it in line["explanation"].get("grants", ())
    ]


def burnt(grants: Sequence[Grant], payable: Sequence[int], period_end: str) -> tuple[int, dict[str, int]]:
    """How much there is for a period, and what of each grant pays the lines: each in their order."""
    usable = sorted((it for it in grants if it.left > 0 and it.granted_at < period_end), key=lambda it: it.place)
    open_amount = sum(it for it in payable if it > 0)
    used = {}
    for it in usable:
        paid = min(open_amount, it.left)
        if paid:
            used[it.name] = paid
        open_amount -= paid
    return sum(it.left for it in usable), used


def _text(value: datetime) -> str:
    return f"{value:%Y-%m-%dT%H:%M:%S.%f}000Z"
