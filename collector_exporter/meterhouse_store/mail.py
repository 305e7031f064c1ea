"""E-mail by SMTP: one message at a time, encrypted wherever it leaves this machine."""

import smtplib
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from email.utils import formataddr, parseaddr
from typing import Final
from urllib.parse import unquote, urlsplit

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from meterhouse_store.settings import is_address

TIMEOUT_S: Final = 20
_LOCAL: Final = frozenset({"127.0.0.1", "::1", "localhost"})
_PORTS: Final = {"smtp": 587, "smtps": 465}


class MailSettings(BaseSettings):
    """Where mail goes out, and from whom; read from `METERHOUSE_SMTP_URL` and `METERHOUSE_MAIL_FROM`."""

    model_config = SettingsConfigDict(env_prefix="METERHOUSE_", frozen=True, extra="ignore", hide_input_in_errors=True)

    smtp_url: str = Field(default="", repr=False)
    """smtp://user:password@host:587 (STARTTLS) or smtps://user:password@host:465; empty: no mail is sent."""
    mail_from: str = ""
    """The sender, as `Acme AI <billing@acme.example>`."""

    @field_validator("smtp_url")
    @classmethod
    def _is_server(cls, value: str) -> str:
        if value and not is_address(value, _PORTS):
            raise ValueError("smtp://user:password@host:587 or smtps://...:465")
        return value

    @field_validator("mail_from")
    @classmethod
    def _is_sender(cls, value: str) -> str:
        if value and "@" not in parseaddr(value)[1]:
            raise ValueError("the sender, such as `Acme AI <billing@acme.example>`")
        return value

    @property
    def usable(self) -> bool:
        """Whether mail can be sent at all."""
        return bool(self.smtp_url)


class MailRefused(ValueError):
    """The message can never be delivered like this, or the settings are wrong; the text says what to change."""


class MailUnavailable(ConnectionError):
    """The mail server did not take the message now; again later."""


def message(
    settings: MailSettings, to: str, subject: str, text: str, *, html: str = "", message_id: str = "", name: str = ""
) -> EmailMessage:
    """A message in text, and HTML where given; the same `message_id` is the same message. Raises MailRefused."""
    sender_name, sender = parseaddr(settings.mail_from)
    if "@" not in sender:
        raise MailRefused("set METERHOUSE_MAIL_FROM to the sender, such as `Acme AI <billing@acme.example>`")
    made = EmailMessage()
    try:
        made["From"] = formataddr((name or sender_name, sender))
        made["To"] = to
        made["Subject"] = subject
        if message_id:
            made["Message-ID"] = f"<{message_id}@{sender.rpartition('@')[2]}>"
    except ValueError as wrong:  # a line break in a header, say
        raise MailRefused(f"the message to {to[:80]!r} cannot be written: {wrong}") from None
    made["Auto-Submitted"] = "auto-generated"
    made.set_content(text)
    if html:
        made.add_alternative(html, subtype="html")
    return made


def send(settings: MailSettings, made: EmailMessage) -> None:
    """Hand it to the mail server. Raises MailRefused, MailUnavailable."""
    with _server(settings) as server:
        server.send_message(made)


@contextmanager
def _server(settings: MailSettings) -> Iterator[smtplib.SMTP]:
    url = urlsplit(settings.smtp_url)
    assert url.hostname, "the settings let no other URL in"
    context = ssl.create_default_context()
    address = (url.hostname, url.port or _PORTS[url.scheme])
    try:
        if url.scheme == "smtps":
            server: smtplib.SMTP = smtplib.SMTP_SSL(*address, timeout=TIMEOUT_S, context=context)
        else:
            server = smtplib.SMTP(*address, timeout=TIMEOUT_S)
        with server:
            server.ehlo_or_helo_if_needed()
            if url.scheme == "smtp" and server.has_extn("starttls"):
                server.starttls(context=context)
            elif url.scheme == "smtp" and url.hostname not in _LOCAL:
                raise MailRefused(f"{url.hostname} offers no STARTTLS: passwords and links would go out in the clear")
            if url.username:
                server.login(unquote(url.username), unquote(url.password or ""))
            yield server
    except (smtplib.SMTPRecipientsRefused, smtplib.SMTPSenderRefused, smtplib.SMTPDataError) as wrong:
        raise _kind(wrong)(f"the mail server refused the message: {_said(wrong)}") from None
    except smtplib.SMTPAuthenticationError as wrong:
        raise MailRefused(f"the mail server refused the password of METERHOUSE_SMTP_URL: {_said(wrong)}") from None
    except (smtplib.SMTPException, OSError) as wrong:
        raise MailUnavailable(f"the mail server {url.hostname} cannot be used: {wrong}") from None


def _kind(wrong: smtplib.SMTPException) -> type[MailRefused | MailUnavailable]:
    codes = [code for code, _ in wrong.recipients.values()] if isinstance(wrong, smtplib.SMTPRecipientsRefused) else []
    codes += [wrong.smtp_code] if isinstance(wrong, smtplib.SMTPResponseException) else []
    # RFC 5321, 4.2.1: 4yz is for now, 5yz for ever.
    return MailUnavailable if all(400 <= code < 500 for code in codes) else MailRefused


def _said(wrong: smtplib.SMTPException) -> str:
    if isinstance(wrong, smtplib.SMTPRecipientsRefused):
        return "; ".join(f"{code} {text.decode(errors='replace')}" for code, text in wrong.recipients.values())
    if isinstance(wrong, smtplib.SMTPResponseException):
        text = wrong.smtp_error
        return f"{wrong.smtp_code} {text.decode(errors='replace') if isinstance(text, bytes) else text}"
    return str(wrong)
