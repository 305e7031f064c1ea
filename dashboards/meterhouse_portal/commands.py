"""The `meterhouse portal` command."""

import getpass
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from meterhouse_store import logs, registry
from meterhouse_store.terminal import Data, Json, existing, explained, fail, moment, opened_registry, plain, print_table

if TYPE_CHECKING:
    from meterhouse_portal.packs import Pack

ENV_TOKEN = "METERHOUSE_PORTAL_TOKEN"
TOKEN_LENGTH = 16
SHORT: Final = 10
EXCEPTIONS: Final = 3

By = Annotated[str | None, typer.Option("--by", help="Who does it; unsaid: the user of this machine.")]

portal = typer.Typer(
    help="The web pages of operators and of customers, and who may sign in to them.",
    no_args_is_help=True,
    add_completion=False,
)


@portal.callback()
def _portal() -> None:
    """The web pages of operators and of customers, and who may sign in to them."""


@portal.command()
def serve(
    data: Data = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8080,
) -> None:
    """Serve the portal and /healthz until stopped.

    The operator's page shows every customer's figures, so it opens only with the portal's token:
    METERHOUSE_PORTAL_TOKEN, or the one that `meterhouse up` made for its data directory. Open
    http://HOST:PORT/?token=TOKEN once per browser. Customers sign in at /account, whom `meterhouse portal invite` adds.
    """
    import uvicorn
    from pydantic import ValidationError

    from meterhouse_portal.app import build
    from meterhouse_store.terminal import wrong_settings

    settings = existing(data)
    token = portal_token(settings.data)
    if token is None:
        typer.echo(
            f"The portal has no token: set {ENV_TOKEN} to a secret of at least {TOKEN_LENGTH} characters, or start it "
            f"with `meterhouse up --data {settings.data}`, which makes one.",
            err=True,
        )
        raise typer.Exit(1)
    logs.configure()
    typer.echo(f"portal: http://{host}:{port}/ (with /?token= once), health: http://{host}:{port}/healthz")
    try:
        app = build(settings, token, public_url=settings.public_url or f"http://{host}:{port}")
    except ValidationError as wrong:
        typer.echo(wrong_settings(wrong), err=True)
        raise typer.Exit(2) from None
    except (ValueError, OSError) as wrong:  # brand, OpenID provider, frames
        typer.echo(str(wrong), err=True)
        raise typer.Exit(1) from None
    # No access log: the address of the first visit carries the token.
    uvicorn.run(app, host=host, port=port, log_level="warning", access_log=False, log_config=None, server_header=False)


@portal.command()
def invite(
    customer_id: Annotated[str, typer.Argument(metavar="CUSTOMER", help="The customer's id.")],
    email: Annotated[str, typer.Argument(metavar="EMAIL", help="Who may sign in.")],
    role: Annotated[str, typer.Option(help="viewer, billing, owner, or none: not any more.")] = "owner",
    by: By = None,
    data: Data = None,
) -> None:
    """Let somebody sign in for a customer, as viewer (usage), billing (invoices, too) or owner (members, too)."""
    from meterhouse_portal import members

    settings = existing(data)
    with explained(), opened_registry(settings) as engine:
        wanted = None if role == "none" else role
        made = members.set_role(
            engine, settings.namespace, customer_id, email, wanted, who=by or getpass.getuser(), now=datetime.now(UTC)
        )
    if made is None:
        print(f"{email} does not sign in for {customer_id} any more.")
        return
    print(f"{made.email} signs in for {customer_id} as {made.role}, at the portal's /account.")


@portal.command("operators")
def operators_command(
    add: Annotated[str | None, typer.Option(metavar="EMAIL", help="Let somebody sign in as operator.")] = None,
    remove: Annotated[str | None, typer.Option(metavar="EMAIL", help="Not any more, from now on.")] = None,
    by: By = None,
    data: Data = None,
) -> None:
    """List who may sign in at /operator, to review invoices and decide about suspense, prices and questions."""
    from meterhouse_portal import members

    settings = existing(data)
    with explained(), opened_registry(settings) as engine:
        for email, active in ((add, True), (remove, False)):
            if email is not None:
                who = by or getpass.getuser()
                address = members.normalised(email)
                if not active and address not in members.operators(engine, settings.namespace):
                    print(f"{address} is no operator.")
                    continue
                members.set_operator(engine, settings.namespace, address, active, who=who, now=datetime.now(UTC))
                print(f"{address} {'may sign in at /operator' if active else 'is no operator any more'}.")
        found = members.operators(engine, settings.namespace)
    print("\n".join(found) or "There are no operators: `meterhouse portal operators --add EMAIL` makes one.")


@portal.command("members")
def members_command(
    customer_id: Annotated[str, typer.Argument(metavar="CUSTOMER", help="The customer's id.")],
    data: Data = None,
    as_json: Json = False,
) -> None:
    """List who may sign in for a customer. Times are UTC."""
    from meterhouse_portal import members

    settings = existing(data)
    with explained(), opened_registry(settings) as engine:
        if registry.customer(engine, settings.namespace, customer_id) is None:
            fail(f"there is no customer {customer_id!r} in {settings.namespace}: `meterhouse customers list`")
        found = [plain(vars(it)) for it in members.members(engine, settings.namespace, customer_id)]
    print_table(found, _member_row, as_json, f"Nobody: `meterhouse portal invite {customer_id} EMAIL`.")


@portal.command()
def link(
    email: Annotated[str, typer.Argument(metavar="EMAIL", help="A member's address.")],
    data: Data = None,
) -> None:
    """Print a link that signs a member in once, within 15 minutes, for where no e-mail is sent."""
    from meterhouse_portal import members
    from meterhouse_store import endpoints

    settings = existing(data)
    with explained(), opened_registry(settings) as engine:
        token = members.request_link(engine, settings.namespace, email, datetime.now(UTC))
    if token is None:
        fail(f"{email} is no member of any customer and no operator, or {members.MAX_LINKS} links are under way to it.")
    running = endpoints.read(settings.data)
    base = settings.public_url or (running.health.url.removesuffix("/healthz") if running else "http://127.0.0.1:8080")
    print(f"{base}/sign-in/{token}")


@portal.command("embed-keys")
def embed_keys(
    add: Annotated[str | None, typer.Option(metavar="NAME", help="Make a key for this host application.")] = None,
    customer: Annotated[
        str | None, typer.Option(metavar="CUSTOMER", help="It can show this customer only; unsaid: any.")
    ] = None,
    remove: Annotated[
        str | None, typer.Option(metavar="KEY", help="End a key, and what is open by it, at once.")
    ] = None,
    by: By = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """List the keys that host applications sign the addresses of frames with. Times are UTC.

    The text of a key is shown once, when it is made. Keys go on beside each other: make one, give it to the
    application, then remove the old one.
    """
    from meterhouse_portal import embedding

    settings = existing(data)
    if customer is not None and add is None:
        fail("--customer goes with --add")
    with explained(), opened_registry(settings) as engine:
        now = datetime.now(UTC)
        if add is not None:
            who = by or getpass.getuser()
            made, text = embedding.create_key(engine, settings.namespace, add, customer, who=who, now=now)
        if remove is not None:
            embedding.revoke_key(engine, settings.namespace, remove, now)
        found = [plain(vars(it)) for it in embedding.keys(engine, settings.namespace)]
    if add is not None:
        print(json.dumps({"key_id": made.key_id, "key": text}) if as_json else text)
        return
    print_table(found, _embed_key_row, as_json, "No key: `meterhouse portal embed-keys --add NAME`.")


@portal.command("questions")
def questions_command(
    data: Data = None,
    every: Annotated[bool, typer.Option("--all", help="Those that were answered, too.")] = False,
    as_json: Json = False,
) -> None:
    """List what customers ask about lines of their invoices. Times are UTC."""
    from meterhouse_portal import questions

    settings = existing(data)
    with explained(), opened_registry(settings) as engine:
        found = [plain(vars(it)) for it in questions.of_all(engine, settings.namespace, waiting=not every)]
    print_table(found, _question_row, as_json, "No question waits for an answer.")


@portal.command("packs")
def packs_command(data: Data = None, as_json: Json = False) -> None:
    """Make the evidence packs that customers asked for in the portal; `meterhouse jobs` does it every round.

    A pack is made and verified as by `meterhouse evidence`, and kept for a week. May be run again at any time; no pack
    is begun after five minutes of a run. One that cannot be made now is tried again, later each time, eight times in
    all. What waits or cannot be made is told by each run, and why. Exit codes: 0 done; 1 some could not be made now and
    wait; 3 done, but some cannot be made.
    """
    from meterhouse_portal import packs
    from meterhouse_rating.command_line import refusals, world_of

    settings = existing(data)
    with refusals(), packs.alone(settings.packs_scratch) as scratch:
        world = world_of(settings)
        made = [] if scratch is None else [it for it in packs.make_asked(world, scratch) if it.state == packs.MADE]
        left = packs.not_made(world.engine, world.namespace)
    if as_json:
        print(json.dumps([plain(vars(it)) for it in (*made, *left)], indent=2))
    else:
        for pack in (*made, *left):
            print(_told_of_pack(pack))
        if scratch is None:
            print("Another run makes packs now.")
    if any(it.state == packs.ASKED and it.tries for it in left) and scratch is not None:
        raise typer.Exit(1)
    if any(it.state == packs.FAILED for it in left):
        raise typer.Exit(EXCEPTIONS)


@portal.command()
def answer(
    question: Annotated[
        str, typer.Argument(metavar="QUESTION", help="The beginning of its id, as `questions` shows it.")
    ],
    accept: Annotated[bool, typer.Option("--accept/--reject", help="Whether the customer is right.")],
    why: Annotated[str, typer.Option(help="What the customer reads.")],
    by: By = None,
    data: Data = None,
) -> None:
    """Answer a customer's question about a line, once. What is owed is given with `meterhouse ledger adjust`."""
    from meterhouse_portal import questions

    settings = existing(data)
    with explained(), opened_registry(settings) as engine:
        named = [
            it
            for it in questions.of_all(engine, settings.namespace, waiting=False)
            if it.question_id.startswith(question)
        ]
        if len(named) != 1:
            fail(f"{len(named)} questions begin with {question}: `meterhouse portal questions --all` lists them.")
        outcome = questions.ACCEPTED if accept else questions.REJECTED
        made = questions.answer(
            engine,
            settings.namespace,
            named[0].question_id,
            outcome,
            why,
            who=by or getpass.getuser(),
            now=datetime.now(UTC),
        )
    print(f"{made.question_id[:SHORT]} of {made.customer_id} is {made.outcome}.")


def _member_row(it: dict[str, Any]) -> dict[str, str]:
    return {"e-mail": it["email"], "role": it["role"], "since": moment(it["changed_at"]), "by": it["who"]}


def _embed_key_row(it: dict[str, Any]) -> dict[str, str]:
    return {
        "key": it["key_id"],
        "name": it["name"],
        "customer": it["customer_id"] or "any",
        "made": moment(it["created_at"]),
        "by": it["who"],
    }


def _question_row(it: dict[str, Any]) -> dict[str, str]:
    from meterhouse_rating.layout import money

    return {
        "question": it["question_id"][:SHORT],
        "customer": it["customer_id"],
        "line": it["line_id"][:SHORT],
        "amount": f"{money(it['amount_minor'], it['currency'])} {it['currency']}",
        "asked": moment(it["asked_at"]),
        "by": it["who"],
        "text": it["question"],
        "outcome": it["outcome"] or "",
    }


def _told_of_pack(pack: "Pack") -> str:
    from meterhouse_portal import packs
    from meterhouse_rating.periods import Period

    of = f"{pack.customer_id} {Period(pack.period_start, pack.period_end)}"
    if pack.state == packs.MADE:
        return f"{of}: made, {pack.bytes:,} bytes"
    if pack.state == packs.FAILED:
        return f"{of}: cannot be made: {pack.told}"
    if not pack.tries:
        return f"{of}: waits for the next run"
    why = pack.told or "whoever made it was killed"
    return f"{of}: not made now, tried {pack.tries} of {packs.TRIES} times: {why}"


def portal_token(data: Path) -> str | None:
    """The secret of the page: the environment's, else the one of the data directory; None for none or a short one."""
    token = os.environ.get(ENV_TOKEN)
    if not token:
        try:
            token = json.loads((data / "run" / "secrets.json").read_text()).get("portal_token")
        except (FileNotFoundError, ValueError):
            token = None
    return token if token and len(token) >= TOKEN_LENGTH else None
