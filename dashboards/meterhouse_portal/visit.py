"""A request of somebody who is signed in, and what every page of the customers' does with one."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from meterhouse_billing.world import World as BillingWorld
from meterhouse_portal.account import Account
from meterhouse_portal.embed_pages import PREFIX
from meterhouse_portal.exports import Exports
from meterhouse_portal.members import Visitor
from meterhouse_portal.rendering import Rendering
from meterhouse_store.language import Language
from meterhouse_store.registry import RegistryError

_ID: Final = re.compile(r"[0-9a-f]{64}")
_EXPORTS: Final = Exports()


class NotShown(LookupError):
    """What is asked for is not there, or not this customer's: nobody can tell which."""


class Refused(ValueError):
    """What the visitor sent cannot be taken; the text says what to do."""


class WrongField(RegistryError):
    """What was typed into one field of a form cannot be taken; the text says what to do."""

    def __init__(self, field: str, text: str) -> None:
        super().__init__(text)
        self.field = field


def field_of(wrong: Exception | None) -> str:
    """The field that a refusal is about; empty where it is about none."""
    return wrong.field if isinstance(wrong, WrongField) else ""


@dataclass(frozen=True)
class Visit:
    """Who is here, for whom, and what was sent."""

    request: Request
    visitor: Visitor
    account: Account
    form: Mapping[str, str]
    drawn_by: Rendering
    billing: Callable[[], BillingWorld]
    """The way to Stripe, in the visitor's name. Raises BillingError where there is none."""
    public_url: str
    with_packs: bool
    """Whether customers can have evidence packs."""

    @property
    def path(self) -> str:
        """The page's path, wherever it is shown."""
        return self.request.url.path.removeprefix(PREFIX)

    @property
    def language(self) -> Language:
        """What the visitor is spoken to in."""
        return self.drawn_by.language

    @property
    def id(self) -> str:
        """The id in the path. Raises NotShown for what cannot be one."""
        found = str(self.request.path_params["id"])
        if not _ID.fullmatch(found):
            raise NotShown(found)
        return found

    def query(self, names: set[str]) -> dict[str, str]:
        """The parameters, without empty ones. Raises Refused for one that the page does not know."""
        if unknown := sorted(set(self.request.query_params) - names):
            told = "This page does not know the parameter %(name)s."
            raise Refused(self.language.say(told, name=repr(unknown[0][:20])))
        return {name: value for name, value in self.request.query_params.items() if value}

    def page(self, template: str, *, wrong: Exception | None = None, **values: Any) -> HTMLResponse:
        """The template, filled. Where something in its form is `wrong`, the answer says so: beside the field, if it is
        about one, and with all that was typed.
        """
        customer, problem = self.account.customer(), "" if wrong is None else str(wrong)
        told = {"problem": problem, "field": field_of(wrong)}
        typed = {} if wrong is None else self.form
        text = self.drawn_by.page(template, visit=self, customer=customer, typed=typed, **told, **values)
        return HTMLResponse(text, 422 if problem else 200)

    def download(self, name: str, blocks: Iterator[bytes], media_type: str, size: int | None = None) -> Response:
        """A file of that name, block by block, of so many bytes where that is known; a page where it has to wait."""
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        if size is not None:
            headers["Content-Length"] = str(size)
        if self.request.method == "HEAD":
            return Response(headers=headers, media_type=media_type)
        download = _EXPORTS.begin(self.account.customer_id, blocks, headers, media_type)
        if download is None:
            told = {"title": "An export is under way", "text": "Wait until the other download of this customer ends."}
            return HTMLResponse(self.drawn_by.page("message.html", visitor=self.visitor, **told), 429)
        return download

    def to(self, path: str) -> Response:
        """On to another page, after something was done."""
        return RedirectResponse(path, 303)


@dataclass(frozen=True)
class Page:
    """One page of the customers': how it is asked for, the role that it needs, and what it shows."""

    method: str
    path: str
    role: str
    handler: Callable[[Visit], Response]
