"""Who may look: members with their roles, and keys for the API of the customer's own figures."""

from typing import Final

from starlette.responses import Response

from meterhouse_portal import access_keys, members
from meterhouse_portal.members import OWNER
from meterhouse_portal.visit import NotShown, Page, Visit, WrongField
from meterhouse_store import audit
from meterhouse_store.registry import RegistryError


def show_members(visit: Visit, wrong: RegistryError | None = None) -> Response:
    """Who may sign in, and as what."""
    mine = visit.account
    found = members.members(mine.engine, mine.namespace, mine.customer_id)
    return visit.page("members.html", wrong=wrong, members=found, roles=members.ROLES)


def change_member(visit: Visit) -> Response:
    """Give somebody a role, or take it away."""
    mine, email, role = visit.account, visit.form.get("email", ""), visit.form.get("role", "")
    try:
        address = _address(email)
        members.set_role(
            mine.engine, mine.namespace, mine.customer_id, address, role or None, who=visit.visitor.email, now=mine.now
        )
    except RegistryError as wrong:
        return show_members(visit, wrong)
    return visit.to("/account/members")


def show_keys(visit: Visit, wrong: RegistryError | None = None, shown: str = "") -> Response:
    """Keys for the API of the customer's own figures."""
    mine = visit.account
    found = access_keys.of_customer(mine.engine, mine.namespace, mine.customer_id)
    return visit.page("keys.html", wrong=wrong, keys=found, shown=shown)


def change_key(visit: Visit) -> Response:
    """Make a key, whose text is on the page that answers and nowhere else, or revoke one."""
    mine, form = visit.account, visit.form
    if "revoke" in form:
        with audit.acting(visit.visitor.email):
            if not access_keys.revoke(mine.engine, mine.namespace, mine.customer_id, form["revoke"], mine.now):
                raise NotShown(form["revoke"])
        return visit.to("/account/keys")
    try:
        _, text = access_keys.create(
            mine.engine, mine.namespace, mine.customer_id, form.get("name", ""), who=visit.visitor.email, now=mine.now
        )
    except RegistryError as wrong:
        return show_keys(visit, WrongField("name", str(wrong)))
    return show_keys(visit, shown=text)


def _address(email: str) -> str:
    try:
        return members.normalised(email)
    except RegistryError:
        raise WrongField("email", "Write the address as name@example.com.") from None


PAGES: Final = (
    Page("GET", "/account/members", OWNER, lambda visit: show_members(visit)),
    Page("POST", "/account/members", OWNER, change_member),
    Page("GET", "/account/keys", OWNER, lambda visit: show_keys(visit)),
    Page("POST", "/account/keys", OWNER, change_key),
)
