"""`meterhouse audit`: who changed what, when and why, and the proof that the log was not changed since."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meterhouse_store.terminal import (
    Data,
    Json,
    existing,
    explained,
    fail,
    instant,
    moment,
    opened_registry,
    plain,
    print_table,
)

if TYPE_CHECKING:
    from meterhouse_store.audit_book import Anchor
    from meterhouse_store.chain_proof import Proof

audit = typer.Typer(help="Who changed what, when and why.", no_args_is_help=True, add_completion=False)


@audit.command("list")
def _list(
    customer: Annotated[str | None, typer.Option(help="Only what is about this customer.")] = None,
    what: Annotated[str | None, typer.Option(help="Only changes of this kind: invoice, budget, key, ...")] = None,
    who: Annotated[str | None, typer.Option(help="Only what this person did.")] = None,
    since: Annotated[datetime | None, typer.Option(parser=instant, metavar="T", help="Only from then on.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="The last so many.")] = 50,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """List the last changes of the namespace, the latest first. Times are UTC; --json has all details."""
    from meterhouse_store import audit_book

    settings = existing(data)
    with explained(), opened_registry(settings) as engine:
        found = audit_book.entries(
            engine, settings.namespace, customer_id=customer, what=what, who=who, since=since, limit=limit
        )
    print_table([plain(vars(it)) for it in found], _row, as_json, "Nothing was changed that fits.")


@audit.command("verify")
def _verify(
    anchor: Annotated[
        list[Path] | None, typer.Option(help="A file that `audit anchor` wrote; may be given again.")
    ] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Prove that nothing in the log was changed, removed, inserted or reordered. Exit code 1 where something was."""
    from meterhouse_store import audit_book

    settings = existing(data)
    with explained(), opened_registry(settings) as engine:
        anchors = [_read_anchor(path) for path in anchor or ()]
        proof = audit_book.verify(engine, settings.namespace, anchors)
    if as_json:
        print(json.dumps(vars(proof), indent=2))
    else:
        print(_words(proof, len(anchors)))
    if proof.problems:
        raise typer.Exit(1)


@audit.command("anchor")
def _anchor(
    out: Annotated[Path | None, typer.Option(help="A new file to write it to; printed if not given.")] = None,
    data: Data = None,
) -> None:
    """Prove the log and tell its last seal, to be kept where nobody who can write the log can write."""
    from meterhouse_store import audit_book

    settings = existing(data)
    with explained(), opened_registry(settings) as engine:
        proof = audit_book.verify(engine, settings.namespace)
    if proof.problems:
        fail(_words(proof, 0))
    now = datetime.now(UTC).isoformat()
    made = {"audit": proof.namespace, "sequence": proof.sequence, "hash": proof.hash, "anchored_at": now}
    text = json.dumps(made, indent=2)
    if out is None:
        print(text)
        return
    with explained(), out.open("x", encoding="utf-8") as file:
        file.write(text + "\n")
    print(f"{proof.sequence} changes, last seal {proof.hash[:16]}: {out}")


def _row(found: dict[str, Any]) -> dict[str, str]:
    from meterhouse_store.audit_book import told

    return {
        "": str(found["sequence"]),
        "when": moment(found["changed_at"]),
        "who": found["who"],
        "what": found["what"],
        "customer": found["customer_id"],
        "which": found["subject"],
        "change": told(found["details"]),
        "why": found["why"],
    }


def _read_anchor(path: Path) -> "Anchor":
    from meterhouse_store.audit_book import Anchor

    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        return Anchor(str(said["audit"]), int(said["sequence"]), str(said["hash"]))
    except (ValueError, KeyError, TypeError):
        raise typer.BadParameter(f"{path} is no anchor: `meterhouse audit anchor --out FILE` writes one") from None


def _words(proof: "Proof", anchors: int) -> str:
    count = f"{proof.sequence:,} change{'' if proof.sequence == 1 else 's'}"
    erased = f" {proof.erased:,} of them are about erased persons." if proof.erased else ""
    if not proof.problems:
        held = "" if not anchors else f", as {anchors} anchor{'' if anchors == 1 else 's'} said"
        return f"The audit log of {proof.namespace} holds: {count}, last seal {proof.hash[:16]}{held}.{erased}"
    found = "\n".join(f"  {it}" for it in proof.problems)
    return f"The audit log of {proof.namespace} does NOT hold ({count}):\n{found}"
