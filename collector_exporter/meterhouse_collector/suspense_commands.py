"""The command `suspense`: look at usage that does not count, and decide about it. Heavy imports happen inside."""

import json
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meterhouse_collector.deciding import (
    Agent,
    Asked,
    By,
    Credential,
    Customer,
    DryRun,
    Event,
    Meter,
    Quantity,
    Reason,
    Since,
    Until,
    Why,
    Yes,
    about_rows,
    agreed,
    apply_decisions,
    counted,
    decide,
    filter_of,
    opened,
    record_and_apply,
    wrong,
)
from meterhouse_collector.terminal import (
    DONE,
    EXCEPTIONS,
    Data,
    Json,
    client_of,
    existing,
    failed,
    print_rows,
    text_of,
)

if TYPE_CHECKING:
    from meterhouse_store.decisions import Decision, Key
    from meterhouse_store.suspended import Held

suspense = typer.Typer(
    help="Usage that was received and does not count, each with its reason: list it, decide about it.",
    no_args_is_help=True,
    add_completion=False,
)


@suspense.callback()
def _suspense() -> None:
    """Usage that was received and does not count, each with its reason: list it, decide about it."""


@suspense.command("list")
def suspense_list(
    data: Data = None,
    as_json: Json = False,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Rows at most, the latest first.")] = 200,
    reason: Reason = None,
    customer: Customer = None,
    meter: Meter = None,
    since: Since = None,
    until: Until = None,
    credential: Credential = None,
    agent: Agent = None,
    event: Event = None,
    quantity: Quantity = None,
) -> None:
    """List suspended usage of the namespace, and what could not be read, the latest first; then what each reason means.

    `meterhouse suspense show EVENT` tells all of one. Exit code 3 when there is any.
    """
    from meterhouse_store import suspended

    which = filter_of(reason, customer, meter, since, until, credential, agent, event, quantity)
    settings = existing(data)
    client = client_of(settings)
    total = suspended.count(client, settings.namespace, which)
    rows = suspended.find(client, settings.namespace, which, limit)
    if as_json:
        print(json.dumps([_as_json(row) for row in rows]))
    elif not total:
        print("nothing is suspended" if which.is_empty else "nothing suspended is like that")
    else:
        print_rows(
            ["received", "reason", "customer", "meter", "quantity", "as sent", "event time", "event"],
            [
                (
                    row.received_at,
                    row.reason,
                    row.key.customer_id or "-",
                    row.key.meter,
                    row.key.quantity,
                    row.raw_value[:24],
                    row.event_time,
                    row.key.event_id,
                )
                for row in rows
            ],
        )
        print(f"{total} suspended" + (f", the latest {limit} shown" if total > limit else ""))
        _print_reasons(rows)
    raise typer.Exit(EXCEPTIONS if total else DONE)


@suspense.command("show")
def suspense_show(event_id: str, data: Data = None, as_json: Json = False) -> None:
    """Show all that is known of an event's rows, whether they are in suspense or not, and every decision about them."""
    from meterhouse_store import decisions

    settings = existing(data)
    client = client_of(settings)
    found: list[dict[str, Any]] = []
    for state in ("usage", "suspense", "set_aside"):
        query = (
            f"SELECT *, toUnixTimestamp64Nano(key_time) AS key_ns FROM {state} "  # noqa: S608 - three names
            "WHERE namespace IN ({namespace:String}, '') AND event_id = {event:String} "
            "ORDER BY meter, customer_id, quantity"
        )
        rows = client.query(query, parameters={"namespace": settings.namespace, "event": event_id})
        found += [{"state": state, **row} for row in rows.named_results()]
    for row in found:
        if not row["decision_id"]:
            row["decided_at"] = None  # in the warehouse 1970
    if not found:
        raise failed(f"there is no event {event_id!r} in namespace {settings.namespace}")
    keys = [_key(row) for row in found]
    with opened(settings) as engine:
        history = [decisions.of_rows(engine, [key.row_id]) for key in keys]
    if as_json:
        both = zip(found, history, strict=True)
        print(json.dumps([{**row, "decisions": [_told(one) for one in past]} for row, past in both], default=text_of))
        return
    for row, past in zip(found, history, strict=True):
        for name, value in row.items():
            if value not in ("", {}, None):
                print(f"{name:20} {text_of(value)}")
        for one in past:
            print(f"{'decision':20} {_sentence(one)}")
        print()


@suspense.command("assign")
@about_rows()
def suspense_assign(
    asked: Asked,
    to: Annotated[str, typer.Argument(metavar="CUSTOMER", help="Whom the usage is billed to.")],
) -> None:
    """Bill suspended usage to CUSTOMER, where the customer is what was in doubt.

    The customer as claimed stays with the row; `usage` has CUSTOMER as billed_customer_id. Exit code 3 when rows that
    were found were refused.
    """
    from meterhouse_store import registry, suspended

    if mistakes := registry.id_mistakes(to):  # nobody could register it
        raise wrong(mistakes[0])
    with opened(asked.settings) as engine:
        known = registry.customer(engine, asked.settings.namespace, to)
    # It may be: the usage of a customer that is still to be added. Or somebody has mistyped it.
    whom = to if known is not None else f"{to}, who is not registered (`meterhouse customers list` shows who is)"
    decide(asked, f"assigned to {whom}", lambda rows, client, namespace: suspended.assign(
        rows, to, suspended.counting(client, namespace, asked.which, to)
    ))  # fmt: skip


@suspense.command("release")
@about_rows()
def suspense_release(asked: Asked) -> None:
    """Let suspended usage count as it stands, for the customer it names.

    One whose time was out of range counts at the time it was received. A copy in conflict takes the place of the one
    that stands, which is retracted. Exit code 3 when rows that were found were refused.
    """
    from meterhouse_store import suspended

    decide(asked, "released", lambda rows, client, namespace: suspended.release(
        rows, suspended.counting(client, namespace, asked.which)
    ))  # fmt: skip


@suspense.command("discard")
@about_rows()
def suspense_discard(asked: Asked) -> None:
    """Take usage out of suspense for good: nobody pays for it. It is kept, in the view `set_aside`."""
    from meterhouse_store import suspended

    decide(asked, "discarded", lambda rows, _client, _namespace: suspended.discard(rows))


@suspense.command("undo")
def suspense_undo(
    decision: Annotated[str, typer.Argument(help="The decision's id, or the beginning of it: `suspense decisions`.")],
    why: Why,
    data: Data = None,
    whole: Annotated[bool, typer.Option("--whole", help="All that the same command decided.")] = False,
    by: By = None,
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """Put rows back to what they were before a decision, by a further decision. What belongs to it goes with it."""
    from meterhouse_store import decisions

    settings = existing(data)
    with opened(settings) as engine:
        try:
            undone = decisions.with_its_command(engine, settings.namespace, decision, whole=whole)
            drafts = decisions.undo(engine, undone)
        except LookupError as problem:
            raise failed(str(problem)) from None
        if not agreed(f"{counted(len(drafts), 'decision')} would be undone", yes, dry_run):
            return
        record_and_apply(settings, engine, drafts, why, by)
    print(f"{counted(len(drafts), 'decision')} undone")


@suspense.command("decisions")
def suspense_decisions(
    data: Data = None,
    as_json: Json = False,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most, the latest first.")] = 50,
) -> None:
    """List what was decided, the latest first."""
    from meterhouse_store import decisions

    settings = existing(data)
    with opened(settings) as engine:
        found = decisions.latest(engine, settings.namespace, limit)
    if as_json:
        print(json.dumps([_told(one) for one in found], default=text_of))
    elif not found:
        print("nothing was decided")
    else:
        print_rows(
            ["decided", "decision", "what", "customer", "meter", "quantity", "event", "by", "why"],
            [
                (
                    one.decided_at,
                    one.decision_id[:12],
                    _what(one),
                    one.draft.key.customer_id or "-",
                    one.draft.key.meter,
                    one.draft.key.quantity,
                    one.draft.key.event_id,
                    one.who,
                    one.why,
                )
                for one in found
            ],
        )


@suspense.command("apply")
def suspense_apply(data: Data = None) -> None:
    """Bring decisions into the warehouse that are not in it yet. The collector does so by itself.

    Exit code 3 where decisions wait for rows that are not in the warehouse.
    """
    settings = existing(data)
    with opened(settings) as engine:
        done = apply_decisions(settings, engine, client_of(settings))
    print(f"{counted(done.applied, 'decision')} applied, {done.waiting} wait for their rows")
    raise typer.Exit(EXCEPTIONS if done.waiting else DONE)


def _print_reasons(rows: "list[Held]") -> None:
    """What the codes of the table mean, the most frequent first, and what may be decided about such rows."""
    from meterhouse_store import reasons, suspended

    print()
    found = Counter(row.reason for row in rows)
    print_rows(
        ["reason", "rows", "what it means", "what may be decided"],
        [(code, number, reasons.sentence(code), ", ".join(suspended.choices(code))) for code, number in
         sorted(found.items(), key=lambda it: (-it[1], it[0]))],
    )  # fmt: skip


def _key(row: dict[str, Any]) -> "Key":
    from meterhouse_store.decisions import Key

    claimed = (row["namespace"], row["customer_id"], row["meter"])
    return Key(*claimed, row.pop("key_ns"), row["event_id"], row["quantity"])


def _as_json(row: "Held") -> dict[str, Any]:
    return {
        "received_at": text_of(row.received_at),
        "reason": row.reason,
        "customer_id": row.key.customer_id,
        "meter": row.key.meter,
        "quantity": text_of(row.key.quantity),
        "raw_value": row.raw_value,
        "event_time": text_of(row.event_time),
        "event_id": row.key.event_id,
        "agent_name": row.agent_name,
        "credential_id": row.credential_id,
    }


def _told(one: "Decision") -> dict[str, Any]:
    key = one.draft.key
    return {
        "decision_id": one.decision_id,
        "kind": one.draft.kind,
        "reason": one.draft.reason,
        "billed_customer_id": one.draft.billed_customer_id,
        "original_reason": one.draft.original_reason,
        "customer_id": key.customer_id,
        "meter": key.meter,
        "event_id": key.event_id,
        "quantity": text_of(key.quantity),
        "follows": one.draft.follows,
        "why": one.why,
        "who": one.who,
        "decided_at": text_of(one.decided_at),
    }


def _what(one: "Decision") -> str:
    to = f" to {one.draft.billed_customer_id}" if one.draft.billed_customer_id else ""
    return f"{one.draft.kind}{to}"


def _sentence(one: "Decision") -> str:
    return f"{text_of(one.decided_at)} {one.decision_id[:12]} {_what(one)} by {one.who}: {one.why}"
