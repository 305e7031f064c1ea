"""The customers' pages: who may open which, and what each one shows. Routes are made of one table."""

import hmac
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import parse_qs, urlencode

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from meterhouse_portal import access_keys, account, chart, members, questions
from meterhouse_portal.account import Account
from meterhouse_portal.exports import Exports
from meterhouse_portal.members import BILLING, OWNER, VIEWER, Visitor
from meterhouse_portal.rates import Bucket
from meterhouse_portal.rendering import Rendering
from meterhouse_portal.stores import UNREADABLE, NoWarehouse, Stores
from meterhouse_rating import explain
from meterhouse_rating.outlook import Outlook
from meterhouse_rating.periods import Period, PeriodError
from meterhouse_rating.settle import WatermarkWentBack
from meterhouse_rating.versions import NotThere
from meterhouse_store import mail, meters
from meterhouse_store.mail import MailSettings
from meterhouse_store.registry import RegistryError
from meterhouse_store.settings import Settings

COOKIE: Final = "meterhouse_session"
MAX_FORM: Final = 64 * 1024
_ID: Final = re.compile(r"[0-9a-f]{64}")

_log = logging.getLogger(__name__)


class NotShown(LookupError):
    """What is asked for is not there, or not this customer's: nobody can tell which."""


class Refused(ValueError):
    """What the visitor sent cannot be taken; the text says what to do."""


@dataclass(frozen=True)
class Visit:
    """A request of somebody who is signed in: who, for whom, and what was sent."""

    request: Request
    visitor: Visitor
    account: Account
    form: Mapping[str, str]

    @property
    def id(self) -> str:
        """The id in the path. Raises NotShown for what cannot be one."""
        found = str(self.request.path_params["id"])
        if not _ID.fullmatch(found):
            raise NotShown(found)
        return found


Handler = Callable[[Visit], Response]


class CustomerPages:
    """All of `/account` and of signing in."""

    def __init__(
        self,
        settings: Settings,
        stores: Stores,
        rendering: Rendering,
        mail_settings: MailSettings,
        public_url: str,
        now: Callable[[], datetime],
    ) -> None:
        self._settings, self._stores, self._draw = settings, stores, rendering
        self._mail, self._public_url, self._now = mail_settings, public_url.rstrip("/"), now
        self._links = Bucket(20, timedelta(hours=1))  # per address that asks
        self._exports = Exports()

    def routes(self) -> list[Route]:
        """The routes; each one but those of signing in names the role that it needs."""
        pages: list[tuple[str, str, str, Handler]] = [
            ("GET", "/account", VIEWER, self.overview),
            ("GET", "/account/usage", VIEWER, self.usage),
            ("GET", "/account/usage.csv", VIEWER, self.usage_csv),
            ("GET", "/account/usage.parquet", VIEWER, self.usage_parquet),
            ("GET", "/account/actions", VIEWER, self.action),
            ("GET", "/account/invoices", BILLING, self.invoices),
            ("GET", "/account/invoices/{id}", BILLING, self.invoice),
            ("GET", "/account/lines/{id}", BILLING, self.line),
            ("POST", "/account/lines/{id}", BILLING, self.question),
            ("GET", "/account/questions", BILLING, self.questions),
            ("GET", "/account/credits", BILLING, self.credits),
            ("GET", "/account/members", OWNER, self.members),
            ("POST", "/account/members", OWNER, self.change_member),
            ("GET", "/account/keys", OWNER, self.keys),
            ("POST", "/account/keys", OWNER, self.change_key),
        ]
        signing = [
            Route("/sign-in", self._form_or_page(self.sign_in), methods=["GET", "POST"], name="open"),
            Route("/sign-in/{token}", self._form_or_page(self.follow_link), methods=["GET", "POST"], name="open"),
            Route("/sign-out", self._form_or_page(self.sign_out), methods=["POST"], name="open"),
            Route("/customers", self._form_or_page(self.choose), methods=["GET", "POST"], name="open"),
        ]
        return signing + [
            Route(path, self._guarded(role, handler), methods=[method], name=role)
            for method, path, role, handler in pages
        ]

    # ---- signing in -------------------------------------------------------------------------------------------------

    def sign_in(self, request: Request, form: Mapping[str, str]) -> Response:
        """The form that asks for an address; sent, it answers the same whether or not the address is known."""
        if request.method == "GET":
            return self._page("sign_in.html")
        email = form.get("email", "")
        try:
            address = members.normalised(email)
        except RegistryError:
            return self._page("sign_in.html", 422, problem="Write the address as name@example.com.", email=email[:320])
        client = request.client.host if request.client else ""
        if self._links.take(client, self._now()):
            self._send_link(address)
        return self._page("sign_in_sent.html", email=address)

    def _send_link(self, address: str) -> None:
        token = members.request_link(self._stores.engine(), self._settings.namespace, address, self._now())
        if token is None:
            return
        if not self._mail.usable:
            _log.warning("a link was asked for, and METERHOUSE_SMTP_URL is not set: `meterhouse portal link` makes one")
            return
        values = {"link": f"{self._public_url}/sign-in/{token}", "minutes": members.LINK_LIFE.seconds // 60}
        made = mail.message(
            self._mail,
            address,
            f"Sign in to {self._draw.brand.name}",
            self._draw.text("mail_sign_in.txt", **values),
            html=self._draw.text("mail_sign_in.html", **values),
            name=self._draw.brand.name,
        )
        try:
            mail.send(self._mail, made)
        except (mail.MailRefused, mail.MailUnavailable) as problem:
            _log.error("a link could not be mailed: %s", problem)

    def follow_link(self, request: Request, form: Mapping[str, str]) -> Response:
        """A button for people: programs that look into mails follow links, and would use this one up."""
        if request.method == "GET":
            return self._page("sign_in_button.html", token=request.path_params["token"])
        namespace = self._settings.namespace
        session = members.sign_in(self._stores.engine(), namespace, request.path_params["token"][:128], self._now())
        if session is None:
            return self._page("sign_in.html", 410, problem="That link was used, or is too old. Ask for a new one.")
        answer = RedirectResponse("/account", 303)
        answer.set_cookie(
            COOKIE, session, max_age=int(members.SESSION_LIFE.total_seconds()), httponly=True, samesite="lax",
            secure=self._public_url.startswith("https:"), path="/",
        )  # fmt: skip
        return answer

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
            return self._page("customers.html", visitor=visitor)
        engine, namespace = self._stores.engine(), self._settings.namespace
        if not _sent_here(visitor, form) or not members.choose(engine, namespace, visitor, form.get("customer", "")):
            return self._message(404, "No such customer", "Choose one of those that are listed.")
        return RedirectResponse("/account", 303)

    # ---- what is used -----------------------------------------------------------------------------------------------

    def overview(self, visit: Visit) -> Response:
        """The month under way: so far, to its end, what was used, and when."""
        mine, customer = visit.account, visit.account.customer()
        query = _known(visit.request, {"meter", "by"})
        month = account.month(None, customer.time_zone, mine.now)
        totals = mine.totals(month)
        shown = [meter for meter, _, _ in totals]
        meter = query.get("meter") or ("llm.tokens.input" if "llm.tokens.input" in shown else next(iter(shown), ""))
        by = query.get("by", "model")
        if by not in account.GROUPS or (meter and meter not in shown):
            raise Refused(f"Usage is shown of one of your meters, by {', '.join(account.GROUPS)}.")
        bars = chart.joined(mine.daily(meter, by, month, customer.time_zone)) if meter else None
        outlook, trouble = _outlook(mine)
        return self._page(
            "overview.html", visit=visit, customer=customer, month=month, plan=mine.plan(month), totals=totals,
            meter=meter, by=by, bars=bars, groups=list(account.GROUPS), outlook=outlook, trouble=trouble,
            drawing=None if bars is None else chart.draw(bars, f"{meter} by day and {by}", _unit(mine, meter)),
        )  # fmt: skip

    def usage(self, visit: Visit) -> Response:
        """The usage log: what was done, when, by which agent, and what it consumed."""
        mine, customer = visit.account, visit.account.customer()
        period, wanted, query = _asked(visit, customer.time_zone, {"after"})
        try:
            log = mine.log(period, wanted, query.get("after"))
        except ValueError as wrong:
            raise Refused(f"{wrong}".capitalize() + ": go back to the first page.") from None
        kept = {**wanted, **({"period": query["period"]} if "period" in query else {})}
        return self._page(
            "usage.html", visit=visit, customer=customer, period=period, wanted=wanted, log=log,
            choices=mine.choices(period), kept=kept, query=urlencode(kept),
            following=None if log.next is None else urlencode({**kept, "after": log.next}),
        )  # fmt: skip

    def usage_csv(self, visit: Visit) -> Response:
        """The events of the log for a spreadsheet."""
        return self._export(visit, "csv", "text/csv; charset=utf-8")

    def usage_parquet(self, visit: Visit) -> Response:
        """The events of the log for programs."""
        return self._export(visit, "parquet", "application/vnd.apache.parquet")

    def _export(self, visit: Visit, form: str, media_type: str) -> Response:
        period, wanted, _ = _asked(visit, visit.account.customer().time_zone, set())
        blocks = self._exports.begin(visit.account.customer_id, visit.account.export(period, wanted, form))
        if blocks is None:
            return self._message(429, "An export is under way", "Wait until the other download of this customer ends.")
        name = f"usage-{period.start:%Y-%m-%d}-{period.end:%Y-%m-%d}.{form}"
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return StreamingResponse(blocks, media_type=media_type, headers=headers)

    def action(self, visit: Visit) -> Response:
        """One action of the log, down to its single events."""
        query = _known(visit.request, {"id", "at"})
        try:
            at = datetime.fromisoformat(query.get("at", "")).astimezone(UTC)
        except ValueError:
            raise NotShown("at") from None
        events = visit.account.events(query.get("id", "")[:256], at)
        if not events:
            raise NotShown(query.get("id", ""))
        return self._page("action.html", visit=visit, customer=visit.account.customer(), events=events)

    # ---- what it costs ----------------------------------------------------------------------------------------------

    def invoices(self, visit: Visit) -> Response:
        """Rated periods with their invoices, and what was paid."""
        _known(visit.request, set())
        mine = visit.account
        return self._page(
            "invoices.html", visit=visit, customer=mine.customer(), ratings=mine.ratings(), payments=mine.payments(),
            corrections=mine.corrections(),
        )  # fmt: skip

    def invoice(self, visit: Visit) -> Response:
        """One period: every line, each with the way to its explanation."""
        found = visit.account.rating(visit.id)
        if found is None:
            raise NotShown(visit.id)
        rating, lines = found
        return self._page("invoice.html", visit=visit, customer=visit.account.customer(), rating=rating, lines=lines)

    def line(self, visit: Visit, problem: str = "", text: str = "") -> Response:
        """One line, explained, with what was asked about it."""
        found = visit.account.line(visit.id)
        if found is None:
            raise NotShown(visit.id)
        mine = visit.account
        asked = questions.of_customer(mine.engine, mine.namespace, mine.customer_id)
        return self._page(
            "line.html", 422 if problem else 200, visit=visit, customer=mine.customer(), line=found,
            explanation=explain.sentences(found), problem=problem, text=text,
            questions=[it for it in asked if it.line_id == found["line_id"]],
        )  # fmt: skip

    def question(self, visit: Visit) -> Response:
        """Ask about a line."""
        found = visit.account.line(visit.id)
        if found is None:
            raise NotShown(visit.id)
        mine, text = visit.account, visit.form.get("question", "")
        try:
            questions.ask(
                mine.engine, mine.namespace, mine.customer_id, found, text, who=visit.visitor.email, now=mine.now
            )
        except RegistryError as wrong:
            return self.line(visit, str(wrong), text)
        return RedirectResponse(f"/account/lines/{found['line_id']}#questions", 303)

    def questions(self, visit: Visit) -> Response:
        """All that was asked and answered."""
        mine = visit.account
        found = questions.of_customer(mine.engine, mine.namespace, mine.customer_id)
        return self._page("questions.html", visit=visit, customer=mine.customer(), questions=found)

    def credits(self, visit: Visit) -> Response:
        """Credits with what is left of each grant."""
        mine = visit.account
        grants = [it for it in mine.credits() if it.left_minor]
        return self._page(
            "credits.html", visit=visit, customer=mine.customer(), grants=grants,
            left=sum(it.left_minor for it in grants if it.expires_at is None or it.expires_at > mine.now),
        )  # fmt: skip

    # ---- who may look -----------------------------------------------------------------------------------------------

    def members(self, visit: Visit, problem: str = "") -> Response:
        """Who may sign in, and as what."""
        mine = visit.account
        found = members.members(mine.engine, mine.namespace, mine.customer_id)
        return self._page(
            "members.html", 422 if problem else 200, visit=visit, customer=mine.customer(), members=found,
            roles=members.ROLES, problem=problem,
        )  # fmt: skip

    def change_member(self, visit: Visit) -> Response:
        """Give somebody a role, or take it away."""
        mine, role = visit.account, visit.form.get("role", "")
        try:
            members.set_role(
                mine.engine, mine.namespace, mine.customer_id, visit.form.get("email", ""), role or None,
                who=visit.visitor.email, now=mine.now,
            )  # fmt: skip
        except RegistryError as wrong:
            return self.members(visit, str(wrong))
        return RedirectResponse("/account/members", 303)

    def keys(self, visit: Visit, problem: str = "", shown: str = "") -> Response:
        """Keys for the API of the customer's own figures."""
        mine = visit.account
        found = access_keys.of_customer(mine.engine, mine.namespace, mine.customer_id)
        return self._page(
            "keys.html", 422 if problem else 200, visit=visit, customer=mine.customer(), keys=found, problem=problem,
            shown=shown,
        )  # fmt: skip

    def change_key(self, visit: Visit) -> Response:
        """Make a key, whose text is on the page that answers and nowhere else, or revoke one."""
        mine, form = visit.account, visit.form
        if "revoke" in form:
            if not access_keys.revoke(mine.engine, mine.namespace, mine.customer_id, form["revoke"], mine.now):
                raise NotShown(form["revoke"])
            return RedirectResponse("/account/keys", 303)
        try:
            _, text = access_keys.create(
                mine.engine, mine.namespace, mine.customer_id, form.get("name", ""), who=visit.visitor.email,
                now=mine.now,
            )  # fmt: skip
        except RegistryError as wrong:
            return self.keys(visit, str(wrong))
        return self.keys(visit, shown=text)

    # ---- around every page ------------------------------------------------------------------------------------------

    def _guarded(self, role: str, handler: Handler) -> Callable[[Request], Any]:
        def run(request: Request, form: Mapping[str, str]) -> Response:
            visitor = self._visitor(request)
            if visitor is None:
                return RedirectResponse("/sign-in", 303)
            if visitor.customer_id is None:
                return RedirectResponse("/customers", 303)
            if not visitor.may(role):
                return self._message(403, "Not for this role", f"An owner can make you {role}: ask one.", visitor)
            if request.method == "POST" and not _sent_here(visitor, form):
                return self._message(
                    403, "This form is too old", "Go back, reload the page and send it again.", visitor
                )
            with self._stores.warehouse() as client:
                declared = meters.declared(self._settings)
                mine = Account(
                    self._stores.engine(), client, self._settings.namespace, visitor.customer_id, declared, self._now()
                )
                try:
                    return handler(Visit(request, visitor, mine, form))
                except NotShown:
                    return self._message(404, "No such page", "It is not here, or not one of yours.", visitor)
                except (Refused, PeriodError) as wrong:
                    return self._message(400, "That cannot be shown", str(wrong), visitor)

        return self._form_or_page(run)

    def _form_or_page(self, run: Callable[[Request, Mapping[str, str]], Response]) -> Callable[[Request], Any]:
        """An endpoint that reads the form, runs in the pool of threads, and answers whatever fails in sentences."""

        def safe(request: Request, form: Mapping[str, str]) -> Response:
            try:
                return run(request, form)
            except NoWarehouse as problem:
                _log.warning("the warehouse could not be read: %s", problem)
                return self._message(503, "Usage cannot be read now", "Nothing is lost. Try again in a minute.")
            except UNREADABLE as problem:
                _log.warning("a page could not be made: %s", problem)
                return self._message(503, "This cannot be read now", "Nothing is lost. Try again in a minute.")

        async def endpoint(request: Request) -> Response:
            form: Mapping[str, str] = {}
            if request.method == "POST":
                body = b""
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > MAX_FORM:
                        return self._message(413, "That is too much", "A form holds at most 64 kB.")
                form = _form(body)
            return await run_in_threadpool(safe, request, form)

        return endpoint

    def _visitor(self, request: Request) -> Visitor | None:
        session = request.cookies.get(COOKIE, "")[:128]
        return members.visitor(self._stores.engine(), self._settings.namespace, session, self._now())

    def _page(self, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        return HTMLResponse(self._draw.page(template, **values), status)

    def _message(self, status: int, title: str, text: str, visitor: Visitor | None = None) -> HTMLResponse:
        return self._page("message.html", status, title=title, text=text, visitor=visitor)


def _outlook(mine: Account) -> tuple[Outlook | None, str]:
    try:
        return mine.outlook(), ""
    except NotThere:
        return None, "There are no prices yet."
    except WatermarkWentBack:
        return None, "The warehouse is being brought up to date: amounts come back when it is."


def _unit(mine: Account, meter: str) -> str:
    return mine.meters[meter].unit.strip("{}") if meter in mine.meters else ""


def _asked(visit: Visit, zone: str, more: set[str]) -> tuple[Period, dict[str, str], dict[str, str]]:
    """Period and filters of the log, and all that was asked."""
    query = _known(visit.request, {*account.FILTERS, "period"} | more)
    wanted = {name: query[name][:256] for name in account.FILTERS if query.get(name)}
    return account.month(query.get("period"), zone, visit.account.now), wanted, query


def _known(request: Request, names: set[str]) -> dict[str, str]:
    """The parameters; empty ones are as if they were not there. Raises Refused for one that the page does not know."""
    if unknown := sorted(set(request.query_params) - names):
        raise Refused(f"This page does not know the parameter {unknown[0][:20]!r}.")
    return {name: value for name, value in request.query_params.items() if value}


def _form(body: bytes) -> dict[str, str]:
    try:
        text = body.decode()
        found = parse_qs(text, keep_blank_values=True, max_num_fields=50)
    except ValueError:
        return {}
    return {name: values[-1] for name, values in found.items()}


def _sent_here(visitor: Visitor, form: Mapping[str, str]) -> bool:
    return hmac.compare_digest(form.get("form", "").encode(), visitor.form_token.encode())
