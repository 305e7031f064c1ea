"""`meterhouse ledger`: look into the double-entry ledger, prove it, anchor it, and adjust by hand."""

import getpass
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from meterhouse_rating.command_line import FAILED, Data, Json, engine_of, existing, fail, print_json, refusals

if TYPE_CHECKING:
    from meterhouse_rating.ledger_proof import Anchor
    from meterhouse_store.chain_proof import Proof

ledger = typer.Typer(help="The double-entry ledger and its hash chain.", no_args_is_help=True, add_completion=False)

CustomerOption = Annotated[str | None, typer.Option(help="Only this customer.")]
At = Annotated[str | None, typer.Option("--at", metavar="T", help="As of an ISO date or instant (effective time).")]


@ledger.command("verify")
def ledger_verify(
    anchor: Annotated[
        list[Path] | None, typer.Option(help="A file that `ledger anchor` wrote; may be given again.")
    ] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Prove that nothing in the ledger was changed, removed, inserted or reordered. Exit code 1 where something was."""
    from meterhouse_rating.ledger_proof import prove

    with refusals():
        settings = existing(data)
        anchors = [_read_anchor(path) for path in anchor or ()]
        proof = prove(engine_of(settings), settings.namespace, anchors)
        if as_json:
            print_json(vars(proof))
        else:
            print(_words(proof, len(anchors)))
        if proof.problems:
            raise typer.Exit(FAILED)


@ledger.command("anchor")
def ledger_anchor(
    out: Annotated[Path | None, typer.Option(help="A new file to write it to; printed if not given.")] = None,
    data: Data = None,
) -> None:
    """Prove the ledger and tell its last seal, to be kept where nobody who can write the ledger can write."""
    from meterhouse_rating.ledger_proof import prove

    with refusals():
        settings = existing(data)
        proof = prove(engine_of(settings), settings.namespace)
        if proof.problems:
            fail(_words(proof, 0))
        made = {
            "ledger": proof.namespace,
            "sequence": proof.sequence,
            "hash": proof.hash,
            "anchored_at": datetime.now(UTC).isoformat(),
        }
        if out is None:
            print_json(made)
            return
        with out.open("x", encoding="utf-8") as file:
            file.write(json.dumps(made, indent=2) + "\n")
        print(f"{proof.sequence} transactions, last seal {proof.hash[:16]}: {out}")


@ledger.command("balance")
def ledger_balance(customer: CustomerOption = None, at: At = None, data: Data = None, as_json: Json = False) -> None:
    """What stands on each account, by customer and currency: debits positive, credits negative."""
    from meterhouse_rating import ledger_books
    from meterhouse_rating.layout import money, table
    from meterhouse_rating.periods import instant

    with refusals():
        settings = existing(data)
        moment = None if at is None else instant(at)
        found = ledger_books.balances(engine_of(settings), settings.namespace, customer, moment)
        if as_json:
            print_json([it._asdict() for it in found])
        elif not found:
            print("Nothing is posted yet: `meterhouse rate close` posts what it closes.")
        else:
            rows = [(it.customer_id, it.account, money(it.amount_minor, it.currency), it.currency) for it in found]
            print(table([("customer", "account", "balance", ""), *rows], right={2}))


@ledger.command("entries")
def ledger_entries(
    customer: CustomerOption = None,
    account: Annotated[str | None, typer.Option(help="Only this account.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="The last so many transactions.")] = 50,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """The last transactions with their entries, in the order of the chain."""
    from meterhouse_rating import ledger_books
    from meterhouse_rating.layout import money, table

    with refusals():
        settings = existing(data)
        found = ledger_books.entries(engine_of(settings), settings.namespace, customer, account, limit)
        if as_json:
            print_json([dict(row) for row in found])
            return
        head = ("", "effective", "customer", "what", "account", "amount", "", "transaction")
        rows = [
            (
                str(row["sequence"]),
                f"{row['effective_at']:%Y-%m-%d}",
                row["customer_id"],
                f"{row['kind']}: {row['memo']}"[:48],
                row["account"],
                money(row["amount_minor"], row["currency"]),
                row["currency"],
                row["transaction_id"][:12],
            )
            for row in found
        ]
        print(table([head, *rows], right={0, 5}) if rows else "Nothing is posted yet.")


@ledger.command("adjust")
def ledger_adjust(
    customer: Annotated[str, typer.Argument(metavar="CUSTOMER", help="The customer's id.")],
    amount: Annotated[str, typer.Argument(help="What the customer owes more; negative: less. In its currency.")],
    why: Annotated[str, typer.Option(help="Kept with the transaction.")],
    account: Annotated[
        str, typer.Option(help="The other side: adjustments, revenue, tax, or cash (negative: paid by other means).")
    ] = "adjustments",
    corrects: Annotated[str | None, typer.Option(help="The beginning of the transaction that this corrects.")] = None,
    by: Annotated[str | None, typer.Option(help="Who; the user of this machine if not given.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing.")] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Post an adjustment of what a customer owes. The same again, to the letter, changes nothing.

    It is between you and the customer: no invoice is changed by it.
    """
    from meterhouse_rating import ledger_books

    with refusals():
        settings = existing(data)
        made = ledger_books.adjust(
            engine_of(settings),
            settings.namespace,
            customer,
            amount,
            account=account,
            why=why,
            who=by or getpass.getuser(),
            corrects=corrects,
            now=datetime.now(UTC),
            write=not dry_run,
        )
        if as_json:
            print_json(made._asdict() | {"dry_run": dry_run})
        else:
            done = "would be posted (dry run)" if dry_run else "posted" if made.new else "was posted already"
            print(f"{customer} {made.amount} {made.currency} to receivable against {account}: {done}")
            print(f"transaction {made.transaction_id}")


def _read_anchor(path: Path) -> "Anchor":
    from meterhouse_rating.ledger_proof import Anchor

    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        moment = datetime.fromisoformat(said["anchored_at"])
        return Anchor(str(said["ledger"]), int(said["sequence"]), str(said["hash"]), moment)
    except (ValueError, KeyError, TypeError):
        fail(f"{path} is no anchor: `meterhouse ledger anchor --out FILE` writes one.")


def _words(proof: "Proof", anchors: int) -> str:
    count = f"{proof.sequence:,} transaction{'' if proof.sequence == 1 else 's'}"
    erased = f" {proof.erased:,} of them are about erased customers." if proof.erased else ""
    if not proof.problems:
        held = "" if not anchors else f", as {anchors} anchor{'' if anchors == 1 else 's'} said"
        return f"The ledger of {proof.namespace} holds: {count}, last seal {proof.hash[:16]}{held}.{erased}"
    found = "\n".join(f"  {it}" for it in proof.problems)
    return f"The ledger of {proof.namespace} does NOT hold ({count}):\n{found}"
