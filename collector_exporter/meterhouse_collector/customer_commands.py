"""`meterhouse customers`, with `erase`, which reaches the journal, beside what the store has."""

import getpass
import json
import secrets
import shutil
import sys
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meterhouse_collector.deciding import Yes, agreed, counted
from meterhouse_store.registry_commands import customers
from meterhouse_store.terminal import Data, Json, existing, explained, fail, opened_registry

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client
    from sqlalchemy import Engine

    from meterhouse_store.settings import Settings

__all__ = ["customers"]

EXCEPTIONS = 3


@customers.command("erase")
def _erase(
    customer_id: Annotated[str, typer.Argument(metavar="ID", help="The customer's id.")],
    why: Annotated[str, typer.Option(help="Kept with the erasure: name nobody in it.")],
    data: Data = None,
    of_bytes: Annotated[
        bool, typer.Option("--bytes", help="The id too: rewrite journal and warehouse under a pseudonym.")
    ] = False,
    yes: Yes = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change; change nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Remove what says who a customer is. Totals, ratings, ledger and invoices stay.

    Without --bytes: name, e-mail and reference, from the registry and wherever
    SQL repeats them. The id stays, so a made-up one (`customers add
    --pseudonym`) says nothing any more. With --bytes, where the id itself says
    who it is: it and the attributes of the customer's events are overwritten in
    the journal, and the warehouse is made again, also of a customer that is not
    registered. It says what it would change and asks. Revoke the customer's keys
    first, or usage comes anew; run it again where it was interrupted. Older
    backups, and Stripe, have to be seen to there. Exit code 3 where something
    is left.
    """
    from meterhouse_store import privacy

    settings = existing(data)
    with explained(), opened_registry(settings) as engine:
        privacy.check_reason(why)
        found = _counted(engine, settings, customer_id, of_bytes)
        if dry_run:
            _print({"customer_id": customer_id, **found}, as_json, _would(customer_id, found))
            return
        if not agreed(f"{_would(customer_id, found)}\nNo backup is made of it", yes, dry_run=False):
            return
        outcome = _erased(engine, settings, customer_id, why, of_bytes)
    _print(outcome, as_json, _sentence(customer_id, outcome))
    for line in outcome["left"]:
        print(f"left: {line}", file=sys.stderr)
    if outcome["left"]:
        raise typer.Exit(EXCEPTIONS)


def _counted(engine: "Engine", settings: "Settings", customer_id: str, of_bytes: bool) -> dict[str, Any]:
    """What an erasure would change; ends the command where there is nothing."""
    from meterhouse_collector import erasure
    from meterhouse_collector.service import journal_directory
    from meterhouse_store import privacy

    namespace = settings.namespace
    if not of_bytes:
        privacy.check_registered(engine, namespace, customer_id)
        return {"would_change": privacy.count(engine, namespace, customer_id, ids=False)}
    would_change = privacy.count(engine, namespace, customer_id, ids=True)
    try:
        records, segments = erasure.count(journal_directory(settings.data), customer_id, namespace)
    except erasure.CannotErase as problem:
        fail(str(problem))
    if not (would_change or records or privacy.is_under_way(engine, namespace, customer_id)):
        fail(f"nothing in {namespace} has the id {customer_id!r}: mind its spelling (`meterhouse customers list`)")
    return {"would_change": would_change, "journal": {"records": records, "segments": segments}}


def _clear_scratch(settings: "Settings") -> None:
    """Remove what a killed maker of evidence packs left; one that is at it tries again."""
    for left in settings.packs_scratch.glob("*/"):
        shutil.rmtree(left, ignore_errors=True)


def _erased(engine: "Engine", settings: "Settings", customer_id: str, why: str, of_bytes: bool) -> dict[str, Any]:
    from clickhouse_connect.driver.exceptions import Error

    from meterhouse_collector import forgetting
    from meterhouse_collector.erasure import CannotErase
    from meterhouse_collector.rebuild import CannotRebuild
    from meterhouse_collector.service import journal_directory
    from meterhouse_store import privacy
    from meterhouse_store.warehouse import WarehouseUnavailable, connect

    own, now = secrets.token_hex(8), datetime.now(UTC)
    said: dict[str, Any] = {"namespace": settings.namespace, "who": getpass.getuser(), "why": why, "now": now}
    if not of_bytes:
        privacy.forget(engine, own, customer_id=customer_id, **said)
        _clear_scratch(settings)
        return {"customer_id": customer_id, "bytes": False, "left": []}

    def client_of(database: str) -> "Client":
        return connect(settings, timeout_s=10, database=database)

    if not privacy.is_under_way(engine, settings.namespace, customer_id):
        # What can never be done must not be begun: nothing is decided about a customer until its erasure is through.
        try:
            with closing(client_of(settings.warehouse_database)) as client:
                forgetting.check_free(engine, client, settings.namespace, customer_id)
        except (CannotErase, WarehouseUnavailable, Error) as problem:
            fail(str(problem))
    begun = privacy.begin(engine, own, customer_id=customer_id, **said)
    try:
        done = forgetting.forget_bytes(
            journal_directory(settings.data),
            engine,
            client_of,
            settings.warehouse_database,
            begun,
            lambda line: print(line, file=sys.stderr, flush=True),
            now=now,
        )
    except (CannotErase, CannotRebuild, WarehouseUnavailable, Error) as problem:
        fail(f"not finished: {problem}. Run the same command again")
    _clear_scratch(settings)
    return {
        "customer_id": done.pseudonym,
        "bytes": True,
        "usage_sha256": done.rebuilt.rebuilt_sha256,
        "left": [*done.left, *done.rebuilt.differences],
    }


def _print(document: dict[str, Any], as_json: bool, sentence: str) -> None:
    print(json.dumps(document, indent=2) if as_json else sentence)


def _would(customer_id: str, found: dict[str, Any]) -> str:
    lines = [f"  {table}: {counted(rows, 'row')}" for table, rows in found["would_change"].items()]
    if journal := found.get("journal"):
        records, segments = counted(journal["records"], "record"), counted(journal["segments"], "segment")
        lines.append(f"  journal: {records} in {segments}, overwritten for good; the warehouse is made again")
    return "\n".join([f"erasing {customer_id} would change", *lines]) if lines else f"nothing says who {customer_id} is"


def _sentence(customer_id: str, outcome: dict[str, Any]) -> str:
    if not outcome["bytes"]:
        return f"{customer_id}: name, e-mail and reference are gone; usage and ledger go on under the id"
    return (
        f"the customer is {outcome['customer_id']} now; totals and ledger are what they were. Stripe keeps what it was "
        "given, and so do older backups"
    )
