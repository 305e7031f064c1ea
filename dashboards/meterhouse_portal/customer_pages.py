"""The pages behind a sign-in, customers' and operators': signing in, and who may open which. Tables make the routes."""

import hmac
import logging
import re
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final
from urllib.parse import parse_qs, quote, unquote

from sqlalchemy.exc import DataError
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from meterhouse_billing.world import World
from meterhouse_portal import (
    access_pages,
    billing_pages,
    budget_pages,
    embed_pages,
    embedding,
    members,
    operator_pages,
    top_up_pages,
    usage_pages,
)
from meterhouse_portal.account import Account
from meterhouse_portal.embed_pages import PREFIX, framed
from meterhouse_portal.members import Visitor
from meterhouse_portal.openid import ATTEMPT_LIFE, Attempt, OpenId, OpenIdSettings, ProviderUnavailable, SignInRefused
from meterhouse_portal.operator_visit import MAX_FORM, BillingWorld, OperatorPage, OperatorVisit
from meterhouse_portal.rates import Bucket
from meterhouse_portal.rendering import Rendering
from meterhouse_portal.stores import UNREADABLE, NoWarehouse, Stores
from meterhouse_portal.visit import NotShown, Page, Refused, Visit, WrongField
from meterhouse_store import mail, meters
from meterhouse_store.language import ENGLISH, LANGUAGES, wanted
from meterhouse_store.mail import MailSettings
from meterhouse_store.registry import RegistryError
from meterhouse_store.roles import NotAllowed
from meterhouse_store.settings import Settings

PAGES: Final = (*usage_pages.PAGES, *billing_pages.PAGES, *budget_pages.PAGES, *top_up_pages.PAGES, *access_pages.PAGES)
COOKIE: Final = "meterhouse_session"
LANGUAGE_COOKIE: Final = "meterhouse_language"
LANGUAGE_LIFE: Final = timedelta(days=365)
WANTED_COOKIE: Final = "meterhouse_wanted"
WANTED_LIFE: Final = timedelta(hours=1)
_LONGEST_WANTED: Final = 1000
_OWN_PAGE: Final = re.compile(r"/(account|operator)(?:[/?][!-\[\]-~]*)?")
"""An address of pages behind a sign-in: visible ASCII without backslashes, which browsers take for slashes."""
_MAX_FIELDS: Final = 1100

_log = logging.getLogger(__name__)


class CustomerPages:
    """All of `/account` and `/operator`, and of signing in."""

    def __init__(
        self,
        settings: Settings,
        stores: Stores,
        rendering: Rendering,
        mail_settings: MailSettings,
        public_url: str,
        now: Callable[[], datetime],
        billing: BillingWorld,
        openid: OpenIdSettings | None = None,
        frame_origins: tuple[str, ...] = (),
    ) -> None:
        self._billing = billing
        self._settings, self._stores, self._brand = settings, stores, rendering.brand
        self._draw = {code: rendering.in_language(code) for code in LANGUAGES}
        self._own_language = rendering.language.code
        self._mail, self._public_url, self._now = mail_settings, public_url.rstrip("/"), now
        self._links = Bucket(20, timedelta(hours=1))  # per address that asks
        self._provider_visits = Bucket(120, timedelta(hours=1))  # there and back, per address
        self._openid = None if openid is None else OpenId(openid, f"{self._public_url}/openid/callback", now)
        self._frame_origins = frame_origins
        self._secure = self._public_url.startswith("https:")

    def routes(self) -> list[Route]:
        """The routes; each one but those of signing in names the role that it needs."""
        signing = [
            Route("/sign-in", self._form_or_page(self.sign_in), methods=["GET", "POST"], name="open"),
            Route("/sign-in/{token}", self._form_or_page(self.follow_link), methods=["GET", "POST"], name="open"),
            Route("/sign-out", self._form_or_page(self.sign_out), methods=["POST"], name="open"),
            Route("/language/{code}", self._form_or_page(self.choose_language), methods=["GET"], name="open"),
            Route("/customers", self._form_or_page(self.choose), methods=["GET", "POST"], name="open"),
        ]
        if self._openid is not None:
            signing += [
                Route("/openid", self._form_or_page(self.to_provider), methods=["GET"], name="open"),
                Route("/openid/callback", self._form_or_page(self.from_provider), methods=["GET"], name="open"),
            ]
        operators = [
            Route(it.path, self._for_operators(it), methods=[it.method], name="operator") for it in operator_pages.PAGES
        ]
        customers = [Route(it.path, self._guarded(it), methods=[it.method], name=it.role) for it in PAGES]
        return signing + operators + customers + (self._frames() if self._frame_origins else [])

    def _frames(self) -> list[Route]:
        """What a frame of another application shows: what viewers read, and no more."""
        shown = {it.path: self._in_frame(it) for it in PAGES if (it.method, it.role) == ("GET", members.VIEWER)}
        every = {"": self.open_frame, **shown, "/{rest:path}": self.not_in_frame}
        return [
            Route(PREFIX + path, framed(self._frame_origins, self._form_or_page(run)), methods=["GET"], name="embed")
            for path, run in every.items()
        ]

    # ---- signing in -------------------------------------------------------------------------------------------------

    def sign_in(self, request: Request, form: Mapping[str, str]) -> Response:
        """The form that asks for an address; sent, it answers the same whether or not the address is known."""
        if not self._mail.usable:
            return self._page(request, "sign_in.html", 200 if request.method == "GET" else 503)
        if request.method == "GET":
            return self._page(request, "sign_in.html")
        email = form.get("email", "")
        try:
            address = members.normalised(email)
        except RegistryError:
            told = {"problem": "Write the address as name@example.com.", "field": "email", "email": email[:320]}
            return self._page(request, "sign_in.html", 422, **told)
        client = request.client.host if request.client else ""
        answer = self._page(request, "sign_in_sent.html", email=address)
        if self._links.take(client, self._now()):
            # After the answer: how long it takes says nothing of who is a member.
            answer.background = BackgroundTask(self._send_link, address, self._drawn(request))
        return answer

    def _send_link(self, address: str, drawn: Rendering) -> None:
        token = members.request_link(self._stores.engine(), self._settings.namespace, address, self._now())
        if token is None:
            return
        values = {"link": f"{self._public_url}/sign-in/{token}", "minutes": members.LINK_LIFE.seconds // 60}
        try:
            made = mail.message(
                self._mail,
                address,
                drawn.language.say("Sign in to %(name)s", name=self._brand.name),
                drawn.text("mail_sign_in.txt", **values),
                html=drawn.text("mail_sign_in.html", **values),
                name=self._brand.name,
            )
            mail.send(self._mail, made)
        except (mail.MailRefused, mail.MailUnavailable) as problem:
            _log.error("a link could not be mailed: %s", problem)

    def choose_language(self, request: Request, form: Mapping[str, str]) -> Response:
        """From now on in this browser in that language."""
        code = request.path_params["code"]
        if code not in self._draw:
            return self._message(request, 404, "No such page", "It is not here, or not one of yours.")
        answer = RedirectResponse("/account", 303)
        self._set_cookie(answer, LANGUAGE_COOKIE, code, LANGUAGE_LIFE)
        return answer

    def follow_link(self, request: Request, form: Mapping[str, str]) -> Response:
        """A button for people: programs that look into mails follow links, and would use this one up."""
        if request.method == "GET":
            return self._page(request, "sign_in_button.html", token=request.path_params["token"])
        namespace = self._settings.namespace
        if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return self._message(
                request, 403, "Not from another page", "Open the link in your mail, and use its button."
            )
        session = members.sign_in(self._stores.engine(), namespace, request.path_params["token"][:128], self._now())
        if session is None:
            return self._page(
                request, "sign_in.html", 410, problem="That link was used, or is too old. Ask for a new one."
            )
        return self._signed_in(request, session)

    def to_provider(self, request: Request, form: Mapping[str, str]) -> Response:
        """On to the provider; what its answer has to fit goes into a cookie."""
        if too_often := self._too_often(request):
            return too_often
        attempt = Attempt.new()
        try:
            answer = RedirectResponse(self._provider.address(attempt), 303)
        except ProviderUnavailable as problem:
            _log.error("nobody can sign in with the OpenID provider: %s", problem)
            return self._not_reached(request)
        self._set_cookie(answer, self._attempt_cookie, attempt.secret, ATTEMPT_LIFE)
        return answer

    def from_provider(self, request: Request, form: Mapping[str, str]) -> Response:
        """Back from the provider: whoever it names is signed in, if that is a member or an operator."""
        answer = self._taken(request)
        answer.delete_cookie(self._attempt_cookie, path="/", secure=self._secure, httponly=True, samesite="lax")
        return answer

    def _taken(self, request: Request) -> Response:
        if too_often := self._too_often(request):
            return too_often
        attempt = Attempt(request.cookies.get(self._attempt_cookie, "")[:128])
        try:
            if not attempt.secret:
                raise SignInRefused("no sign-in is under way in this browser")
            email = self._provider.email(attempt, request.query_params)
            session = members.sign_in_as(
                self._stores.engine(), self._settings.namespace, email, attempt.nonce, self._now()
            )
        except (SignInRefused, RegistryError) as refused:
            _log.warning("a sign-in with the OpenID provider was refused: %s", refused)
            return self._message(
                request, 403, "Not signed in", "That did not work, or took too long: begin again.", begin_again=True
            )
        except ProviderUnavailable as problem:
            _log.error("nobody can sign in with the OpenID provider: %s", problem)
            return self._not_reached(request)
        if session is None:
            return self._message(
                request, 403, "Not a member", "%(email)s is no member here. Ask whoever manages the account to add it.",
                email=email[:320],
            )  # fmt: skip
        return self._signed_in(request, session)

    def _too_often(self, request: Request) -> Response | None:
        client = request.client.host if request.client else ""
        if self._provider_visits.take(client, self._now()):
            return None
        return self._message(request, 429, "Too often", "Try again in an hour, or ask for a link by e-mail.")

    def _not_reached(self, request: Request) -> Response:
        return self._message(
            request, 503, "Not reached",
            "Your organisation's sign-in does not answer. Try again in a minute, or ask for a link by e-mail.",
        )  # fmt: skip

    @property
    def _provider(self) -> OpenId:
        assert self._openid is not None  # its routes are there with it only
        return self._openid

    @property
    def _attempt_cookie(self) -> str:
        # With the prefix no other host of the domain can set it (RFC 6265bis, 4.1.3.2).
        return "__Host-meterhouse_openid" if self._secure else "meterhouse_openid"

    def _signed_in(self, request: Request, session: str) -> Response:
        namespace = self._settings.namespace
        if before := request.cookies.get(COOKIE):
            members.sign_out(self._stores.engine(), namespace, before[:128], self._now())
        visitor = members.visitor(self._stores.engine(), namespace, session, self._now())
        begins = "/operator" if visitor is not None and visitor.operator else "/account"
        wanted = _wanted_page(request, visitor)
        answer = RedirectResponse(wanted or begins, 303)
        self._set_cookie(answer, COOKIE, session, members.SESSION_LIFE)
        answer.delete_cookie(WANTED_COOKIE, path="/")
        return answer

    def _to(self, where: str, request: Request) -> Response:
        """On to signing in, or choosing a customer; afterwards to what was asked for."""
        answer = RedirectResponse(where, 303)
        asked = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        if request.method == "GET" and len(asked) <= _LONGEST_WANTED:
            self._set_cookie(answer, WANTED_COOKIE, quote(asked, safe=""), WANTED_LIFE)
        return answer

    def _set_cookie(self, answer: Response, name: str, value: str, life: timedelta) -> None:
        answer.set_cookie(
            name, value, max_age=int(life.total_seconds()), httponly=True, samesite="lax", secure=self._secure, path="/"
        )

    def sign_out(self, request: Request, form: Mapping[str, str]) -> Response:
        """End the session."""
        visitor = self._visitor(request)
        if visitor is not None:
            if not _sent_here(visitor, form):
                return RedirectResponse("/account", 303)
            members.sign_out(self._stores.engine(), self._settings.namespace, visitor.session, self._now())
        answer = RedirectResponse("/sign-in", 303)
        answer.delete_cookie(COOKIE, path="/")
        return answer

    def choose(self, request: Request, form: Mapping[str, str]) -> Response:
        """Which customer to look at, for those who are members of several."""
        visitor = self._visitor(request)
        if visitor is None:
            return RedirectResponse("/sign-in", 303)
        if request.method == "GET":
            return self._page(request, "customers.html", visitor=visitor)
        engine, namespace = self._stores.engine(), self._settings.namespace
        if not _sent_here(visitor, form) or not members.choose(engine, namespace, visitor, form.get("customer", "")):
            return self._message(request, 404, "No such customer", "Choose one of those that are listed.")
        answer = RedirectResponse(_wanted_page(request, visitor) or "/account", 303)
        answer.delete_cookie(WANTED_COOKIE, path="/")
        return answer

    # ---- in a frame -------------------------------------------------------------------------------------------------

    def open_frame(self, request: Request, form: Mapping[str, str]) -> Response:
        """The signed address of a frame: good once, and in a frame only."""
        if request.method == "HEAD":
            # Whoever only looks whether the address is there (a link checker, a proxy) must not use it up.
            return Response(status_code=405, headers={"Allow": "GET"})
        if request.headers.get("sec-fetch-dest", "iframe") != "iframe":
            return self._message(request, 403, "Only in a frame", "Open this page in the application that shows it.")
        namespace, token = self._settings.namespace, request.query_params.get("token", "")
        try:
            return embed_pages.opened(embedding.begin(self._stores.engine(), namespace, token, self._now()))
        except embedding.EmbedRefused as refused:
            _log.warning("a frame was refused: %s", refused)
            # Whoever was here before is not whom this frame is for.
            return embed_pages.closed(self._message(request, 403, "Not shown", f"{refused}."))

    def _in_frame(self, page: Page) -> Callable[[Request, Mapping[str, str]], Response]:
        def run(request: Request, form: Mapping[str, str]) -> Response:
            session = request.cookies.get(embed_pages.COOKIE, "")[:128]
            visitor = embedding.visitor(self._stores.engine(), self._settings.namespace, session, self._now())
            if visitor is None:
                return self._message(
                    request, 401, "Not open any more",
                    "Reload the page around this frame. If it stays so, this browser keeps no cookies in frames.",
                )  # fmt: skip
            return embed_pages.inside(self._shown(page, request, visitor, form))

        return run

    def not_in_frame(self, request: Request, form: Mapping[str, str]) -> Response:
        """What is not shown in frames, whether or not it is shown elsewhere."""
        return self._message(request, 404, "No such page", "It is not shown here.")

    # ---- around every page ------------------------------------------------------------------------------------------

    def _guarded(self, page: Page) -> Callable[[Request], Any]:
        def run(request: Request, form: Mapping[str, str]) -> Response:
            visitor = self._visitor(request)
            if visitor is None:
                return self._to("/sign-in", request)
            if visitor.customer_id is None:
                return self._to("/customers", request) if visitor.memberships else RedirectResponse("/operator", 303)
            if not visitor.may(page.role):
                return self._message(
                    request,
                    403,
                    "Not for this role",
                    "An owner can make you %(role)s: ask one.",
                    visitor,
                    role=page.role,
                )
            if request.method == "POST" and not _sent_here(visitor, form):
                return self._message(
                    request, 403, "This form is too old", "Go back, reload the page, send it again.", visitor
                )
            return self._shown(page, request, visitor, form)

        return self._form_or_page(run)

    def _shown(self, page: Page, request: Request, visitor: Visitor, form: Mapping[str, str]) -> Response:
        assert visitor.customer_id is not None

        def billing() -> World:
            return self._billing(self._stores.engine(), self._settings.namespace, visitor.email, self._now)

        with self._stores.warehouse_when_asked() as connect:
            declared = meters.declared(self._settings)
            mine = Account(
                self._stores.engine(), connect, self._settings.namespace, visitor.customer_id, declared, self._now()
            )
            try:
                return page.handler(
                    Visit(
                        request, visitor, mine, form, self._drawn(request), billing, self._public_url,
                        with_packs=self._settings.portal_evidence,
                    )
                )  # fmt: skip
            except NotShown:
                return self._message(request, 404, "No such page", "It is not here, or not one of yours.", visitor)
            except (Refused, WrongField) as wrong:
                return self._message(request, 400, "That cannot be shown", str(wrong), visitor)

    def _for_operators(self, page: OperatorPage) -> Callable[[Request], Any]:
        def run(request: Request, form: Mapping[str, str]) -> Response:
            visitor = self._visitor(request)
            if visitor is None:
                return self._to("/sign-in", request)
            if not visitor.operator:
                return self._message(request, 404, "No such page", "It is not here, or not one of yours.", visitor)
            if request.method == "POST" and not _sent_here(visitor, form):
                return self._message(
                    request, 403, "This form is too old", "Go back, reload the page, send it again.", visitor
                )
            at = OperatorVisit(
                request, visitor, self._settings, self._stores, form, self._draw[ENGLISH], self._now, self._billing
            )
            try:
                return page.handler(at)
            except NotShown:
                return self._message(request, 404, "No such page", "It is not here any more.", visitor)
            except Refused as wrong:
                return self._message(request, 400, "That cannot be done", str(wrong), visitor)
            except NotAllowed as refused:
                return self._message(request, 403, "That is for others to decide", str(refused), visitor)

        return self._form_or_page(run, page.max_form)

    def _form_or_page(
        self, run: Callable[[Request, Mapping[str, str]], Response], max_form: int = MAX_FORM
    ) -> Callable[[Request], Any]:
        """An endpoint that reads the form, runs in the pool of threads, and answers whatever fails in sentences."""

        def safe(request: Request, form: Mapping[str, str]) -> Response:
            try:
                return run(request, form)
            except NoWarehouse as problem:
                _log.warning("the warehouse could not be read: %s", problem)
                return self._message(
                    request, 503, "Usage cannot be read now", "Nothing is lost. Try again in a minute."
                )
            except DataError:  # what the database cannot hold, such as a NUL, is nobody's name
                return self._message(request, 404, "No such page", "It is not here, or not one of yours.")
            except UNREADABLE as problem:
                _log.warning("a page could not be made: %s", problem)
                return self._message(request, 503, "This cannot be read now", "Nothing is lost. Try again in a minute.")

        async def endpoint(request: Request) -> Response:
            form: Mapping[str, str] = {}
            if request.method == "POST":
                body = b""
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > max_form:
                        most = str(max_form // 1024)
                        return self._message(
                            request, 413, "That is too much", "A form holds at most %(most)s kB.", most=most
                        )
                form = _form(body)
            return await run_in_threadpool(safe, request, form)

        return endpoint

    def no_such_page(self, request: Request) -> Response:
        """For an address that nothing is at."""
        return self._message(request, 404, "No such page", "Customers begin at /account, operators at /operator.")

    def no_such_method(self, request: Request) -> Response:
        """For a page that is asked for in a way that it does not know."""
        return self._message(request, 405, "Not so", "This page is not asked for in that way.")

    def is_operator(self, request: Request) -> bool:
        """Whether an operator is signed in."""
        visitor = self._visitor(request)
        return visitor is not None and visitor.operator

    def _visitor(self, request: Request) -> Visitor | None:
        session = request.cookies.get(COOKIE, "")[:128]
        return members.visitor(self._stores.engine(), self._settings.namespace, session, self._now())

    def _drawn(self, request: Request) -> Rendering:
        """In the language that was chosen here, else the one that the browser asks for, else the brand's."""
        chosen = request.cookies.get(LANGUAGE_COOKIE, "")
        if chosen not in self._draw:
            chosen = wanted(request.headers.get("accept-language", "")) or self._own_language
        return self._draw[chosen]

    def _page(self, request: Request, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        told = {"openid": "" if self._openid is None else self._openid.name, "has_mail": self._mail.usable}
        told |= {"problem": "", "field": ""}
        values = told | values
        return HTMLResponse(self._drawn(request).page(template, **values), status)

    def _message(
        self,
        request: Request,
        status: int,
        title: str,
        text: str,
        visitor: Visitor | None = None,
        *,
        begin_again: bool = False,
        **values: str,
    ) -> HTMLResponse:
        """A page with one message, of which the catalogue may have a translation; `values` are its placeholders'.

        `begin_again`: with a link to the page where one signs in.
        """
        return self._page(
            request, "message.html", status, title=title, text=self._drawn(request).language.say(text, **values),
            visitor=visitor, begin_again=begin_again,
        )  # fmt: skip


def _form(body: bytes) -> dict[str, str]:
    try:
        text = body.decode()
        found = parse_qs(text, keep_blank_values=True, max_num_fields=_MAX_FIELDS)
    except ValueError:
        return {}
    return {name: values[-1] for name, values in found.items()}


def _wanted_page(request: Request, visitor: Visitor | None) -> str:
    """The page that was asked for before signing in, if it is one of the visitor's; empty for anything else.

    The cookie may come from anywhere: what does not begin with `/account` or `/operator` leads nowhere.
    """
    wanted = unquote(request.cookies.get(WANTED_COOKIE, ""))
    found = _OWN_PAGE.fullmatch(wanted)
    if found is None or visitor is None or "/.." in wanted:
        return ""
    return wanted if (visitor.operator if found[1] == "operator" else visitor.memberships) else ""


def _sent_here(visitor: Visitor, form: Mapping[str, str]) -> bool:
    return hmac.compare_digest(form.get("form", "").encode(), visitor.form_token.encode())
