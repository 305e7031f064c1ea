"""The commands `meterhouse customers` and `meterhouse keys`. Heavy imports happen inside."""

import json
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any
from zoneinfo import ZoneInfo

import typer

from meterhouse_store.terminal import (
    Data,
    Json,
    duration,
    existing,
    explained,
    instant,
    moment,
    opened_registry,
    plain,
    print_table,
)

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from meterhouse.grants import Key

customers = typer.Typer(help="Register customers and their plans.", no_args_is_help=True, add_completion=False)
keys = typer.Typer(
    help="Make and revoke the keys that agents report with, and those that read prices.",
    no_args_is_help=True,
    add_completion=False,
)

Ed25519 = Annotated[
    bool, typer.Option("--ed25519", help="Grants are signed with Ed25519: the collector keeps the public key only.")
]


@customers.command("add")
def _customers_add(
    given_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="The id that agents report, customer.id.")
    ] = None,
    data: Data = None,
    pseudonym: Annotated[
        bool, typer.Option("--pseudonym", help="Make an id that says nothing about the customer, instead of ID.")
    ] = False,
    reference: Annotated[
        str | None, typer.Option(help="What you call the customer elsewhere; kept here only, and erasable.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What stands on invoices; the id where it is not given.")] = None,
    plan: Annotated[str | None, typer.Option(help="A plan of the price book.")] = None,
    currency: Annotated[str | None, typer.Option(help="ISO 4217, such as USD. [the plan's]")] = None,
    time_zone: Annotated[str | None, typer.Option(help="IANA name; the customer's months end there. [UTC]")] = None,
    email: Annotated[str | None, typer.Option(help="Where invoices go; '' takes it away.")] = None,
    valid_from: Annotated[
        datetime | None,
        typer.Option(
            parser=instant,
            metavar="T",
            help="Since when the plan holds: 2026-11-01 or 2026-11-01T00:00:00+01:00, UTC where it names no zone. A "
            "first plan holds from the beginning, a later one from now.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Register a customer, or change what is given of one that is there. May be repeated.

    The plan is one of the price book in force. A contract that has not begun
    yet is replaced by another plan with the same --valid-from.

    With --pseudonym agents, usage, ledger and Stripe's metadata know a made-up
    id; name, e-mail and reference stand in the registry alone, and go with
    `customers erase`.
    """
    from meterhouse_store import plans, registry

    if pseudonym == (given_id is not None):
        raise typer.BadParameter("name the ID that agents report, or --pseudonym for a made-up one")
    customer_id = registry.new_pseudonym() if given_id is None else given_id
    settings = existing(data)
    with explained(), opened_registry(settings) as engine:
        currency = plans.currency_on(engine, settings.namespace, customer_id, plan, currency, valid_from)
        customer = registry.add_customer(
            engine,
            settings.namespace,
            customer_id,
            name=name,
            plan=plan,
            currency=currency,
            time_zone=time_zone,
            email=email,
            reference=reference,
            valid_from=valid_from,
        )
        found = _customers(engine, settings.namespace, customer.customer_id)
    print_table(found, _customer_row, as_json)
    if not found[0]["contracts"] and not as_json:
        print(f"No plan yet: usage of {customer_id} stays unrated until `customers add {customer_id} --plan ...`.")
    elif valid_from is not None and not as_json:
        zone = ZoneInfo(customer.time_zone)
        first, since = (f"{it.astimezone(zone):%Y-%m}" for it in (valid_from, customer.registered_at))
        if first < since:
            print(
                f"Months before {since}, in which {customer_id} was registered, are due from its first usage on: fees "
                f"of earlier ones are billed by `meterhouse rate close --period {first} --customer {customer_id}`."
            )


@customers.command("withdraw")
def _customers_withdraw(
    customer_id: Annotated[str, typer.Argument(metavar="ID", help="The customer's id.")],
    valid_from: Annotated[
        datetime, typer.Option(parser=instant, metavar="T", help="When the contract would begin, as `list` shows it.")
    ],
    data: Data = None,
) -> None:
    """Take back a contract that has not begun yet."""
    from meterhouse_store import registry

    settings = existing(data)
    with explained(), opened_registry(settings) as engine:
        gone = registry.withdraw_contract(engine, settings.namespace, customer_id, valid_from)
    print(f"{customer_id} does not go on plan {gone.plan or 'none'} from {moment(gone.valid_from.isoformat())}.")


@customers.command("list")
def _customers_list(data: Data = None, as_json: Json = False) -> None:
    """List the customers with their plans. Times are UTC."""
    settings = existing(data)
    with explained(), opened_registry(settings) as engine:
        found = _customers(engine, settings.namespace)
    print_table(found, _customer_row, as_json, "No customers yet: `meterhouse customers add ID --plan PLAN`.")


@keys.command("create")
def _keys_create(
    name: Annotated[str, typer.Argument(help="What the key is for, such as support-agent.")],
    data: Data = None,
    for_customers: Annotated[
        str | None,
        typer.Option("--customers", metavar="A,B", help="The only customers it is for; any if not given."),
    ] = None,
    role: Annotated[
        str, typer.Option(metavar="metering|pricing", help="What it may do: report usage, or read prices. Never both.")
    ] = "metering",
    grants: Annotated[
        bool, typer.Option("--grants", help="It may report only for customers of signed grants; makes a key for them.")
    ] = False,
    ed25519: Ed25519 = False,
    as_json: Json = False,
) -> None:
    """Make a key. Its text is shown now and never again."""
    from meterhouse_store import access

    settings = existing(data)
    allowed = None if for_customers is None else [part.strip() for part in for_customers.split(",") if part.strip()]
    with explained(), opened_registry(settings) as engine:
        own = _new_grant_key(ed25519) if grants or ed25519 else None
        made, text = access.create_key(engine, settings.namespace, name, customers=allowed, grant_key=own, role=role)
    if as_json:
        signs = {} if own is None else {"grant_key": str(own)}
        print(json.dumps({"credential_id": made.credential_id, "key": text} | signs))
        return
    whom = "any customer" if own is None else "the customers of its grants"
    print(f"{made.credential_id} ({made.name}): for {', '.join(made.customers) if made.customers else whom}")
    if role == access.PRICING:
        print(f"\nIt reads prices: Authorization: Bearer {text}")
    else:
        print(f"\nexport METERHOUSE_API_KEY={text}")
    if own is not None:
        print(f"\nFor the front end that signs the grants, and for nobody else:\n\nexport METERHOUSE_GRANT_KEY={own}")
    print("\nThis is the only time it is shown.")


@keys.command("grant-key")
def _keys_grant_key(
    credential_id: Annotated[str, typer.Argument(metavar="KEY", help="The id that `keys list` shows.")],
    data: Data = None,
    ed25519: Ed25519 = False,
    take: Annotated[
        str | None,
        typer.Option("--take", metavar="TEXT", help="A grant key that exists: for several keys, one front end."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a key that signs grants, one more where there is one. From now on KEY reports only for their customers."""
    from meterhouse_store import access

    with explained(), opened_registry(existing(data)) as engine:
        own = _new_grant_key(ed25519) if take is None else _taken_grant_key(take)
        bound = access.add_grant_key(engine, credential_id, own)
    if as_json:
        signs = {} if own.kind == "ed25519-public" else {"grant_key": str(own)}
        print(json.dumps({"credential_id": credential_id, "grant_key_id": own.key_id} | signs))
        return
    print(f"{credential_id} ({bound.name}) takes grants of {', '.join(_grant_key_ids(bound.grant_keys))}.")
    if take is None:
        print(f"\nexport METERHOUSE_GRANT_KEY={own}\n\nThis is the only time it is shown.")


@keys.command("list")
def _keys_list(data: Data = None, as_json: Json = False) -> None:
    """List the keys, without their text, and when each was last used, to about a minute. Times are UTC."""
    from meterhouse_store import access, key_uses

    settings = existing(data)
    with explained(), opened_registry(settings) as engine:
        found = [plain(vars(credential)) for credential in access.credentials(engine, settings.namespace)]
        used = key_uses.last(engine)
    for credential in found:
        at = used.get(credential["credential_id"])
        credential["last_used_at"] = None if at is None else at.isoformat(timespec="seconds")
        del credential["key_sha256"]
        bound = credential.pop("grant_keys")
        credential["grant_keys"] = None if bound is None else _grant_key_ids(bound)
        until = max((until for _, until in credential.pop("retired")), default=None)
        credential["old_key_until"] = None if until is None else until.isoformat(timespec="seconds")
    print_table(found, _key_row, as_json, "No keys yet: `meterhouse keys create NAME`.")


@keys.command("rotate")
def _keys_rotate(
    credential_id: Annotated[str, typer.Argument(metavar="KEY", help="The id that `keys list` shows.")],
    data: Data = None,
    overlap: Annotated[
        timedelta,
        typer.Option(
            parser=duration, metavar="T", help="How long the old text is taken, too: 30m, 24h, 7d; 0: no longer."
        ),
    ] = "24h",  # type: ignore[assignment]
    as_json: Json = False,
) -> None:
    """Give a key another text. Its text is shown now and never again; id, name and customers stay."""
    from meterhouse_store import access

    with explained(), opened_registry(existing(data)) as engine:
        changed, text = access.rotate_key(engine, credential_id, overlap)
    until = changed.retired[-1][1]
    if as_json:
        print(json.dumps({"credential_id": credential_id, "key": text, "old_key_until": until.isoformat()}))
        return
    print(f"{credential_id} ({changed.name}): the old text is taken until {until:%Y-%m-%d %H:%M:%S} UTC")
    print(f"\nexport METERHOUSE_API_KEY={text}\n\nThis is the only time it is shown.")


@keys.command("revoke")
def _keys_revoke(
    credential_id: Annotated[str, typer.Argument(metavar="KEY", help="The id that `keys list` shows.")],
    data: Data = None,
    grant_key: Annotated[
        str | None, typer.Option("--grant-key", metavar="ID", help="Only this one of its grant keys.")
    ] = None,
) -> None:
    """Revoke a key: what is sent with it from now on is refused."""
    from meterhouse_store import access

    with explained(), opened_registry(existing(data)) as engine:
        if grant_key is not None:
            left = access.revoke_grant_key(engine, credential_id, grant_key)
            print(
                f"{credential_id} takes no grants of {grant_key} any more; {len(left.grant_keys or ())} keys are left."
            )
            return
        revoked = access.revoke_key(engine, credential_id)
    print(f"{revoked.credential_id} ({revoked.name}) is revoked since {revoked.revoked_at:%Y-%m-%d %H:%M:%S} UTC.")


def _new_grant_key(ed25519: bool) -> "Key":
    from meterhouse import grants
    from meterhouse_store.registry import RegistryError

    made = grants.new_key(grants.ED25519 if ed25519 else grants.HMAC)
    try:
        made.verifying()
    except ValueError as problem:
        raise RegistryError(str(problem)) from None
    return made


def _taken_grant_key(text: str) -> "Key":
    from meterhouse.grants import Key
    from meterhouse_store.registry import RegistryError

    try:
        taken = Key.parse(text)
    except ValueError as problem:
        raise RegistryError(str(problem)) from None
    if taken.is_weak:
        raise RegistryError("anybody can sign for this Ed25519 key, its point has a small order: make another one")
    return taken


def _grant_key_ids(keys: Iterable[str] | None) -> list[str]:
    """Their ids; the keys themselves are not shown."""
    from meterhouse.grants import Key

    return [Key.parse(text).key_id for text in keys or ()]


def _customers(engine: "Engine", namespace: str, only: str | None = None) -> list[dict[str, Any]]:
    from meterhouse_store import registry

    contracts: dict[str, list[dict[str, Any]]] = {}
    for contract in registry.contracts(engine, namespace):
        contracts.setdefault(contract.customer_id, []).append(plain(vars(contract)))
    return [
        plain(vars(customer)) | {"contracts": contracts.get(customer.customer_id, [])}
        for customer in registry.customers(engine, namespace)
        if only is None or customer.customer_id == only
    ]


def _customer_row(customer: dict[str, Any]) -> dict[str, str]:
    plans = []
    for contract in customer["contracts"]:
        always = contract["valid_from"].startswith("1970-01-01")
        plan = contract["plan"] or "none"
        plans.append(plan if always else f"{plan} from {moment(contract['valid_from'])}")
    return {
        "customer": customer["customer_id"],
        "name": customer["name"] + (f" ({customer['reference']})" if customer["reference"] else ""),
        "plans": "\n".join(plans) or "none",
        "currency": customer["currency"],
        "time zone": customer["time_zone"],
        "email": customer["email"] or "",
        "registered by": customer["origin"],
    }


def _key_row(credential: dict[str, Any]) -> dict[str, str]:
    return {
        "key": credential["credential_id"],
        "name": credential["name"],
        "role": credential["role"],
        "customers": "any" if credential["customers"] is None else ", ".join(credential["customers"]),
        "grants of": "" if credential["grant_keys"] is None else ", ".join(credential["grant_keys"]) or "nobody",
        "valid from": moment(credential["valid_from"]),
        "last used": moment(credential["last_used_at"] or ""),
        "old text until": moment(credential["old_key_until"] or ""),
        "revoked at": moment(credential["revoked_at"] or ""),
    }
