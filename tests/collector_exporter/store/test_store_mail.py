"""E-mail against a real SMTP server on this machine."""

import email
import email.policy
import socket
from contextlib import contextmanager

import pytest
from aiosmtpd.controller import Controller
from pydantic import ValidationError

from meterhouse_store import mail
from meterhouse_store.mail import MailRefused, MailSettings, MailUnavailable

SENDER = "Acme AI <billing@acme.example>"


class Inbox:
    """Keeps what arrives; answers RCPT with a line of its own where it has one."""

    def __init__(self, answer=""):
        self.answer, self.messages = answer, []

    async def handle_RCPT(self, server, session, envelope, address, options):
        if self.answer:
            return self.answer
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        self.messages.append(email.message_from_bytes(envelope.content, policy=email.policy.default))
        return "250 OK"


@contextmanager
def listening(inbox):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    controller = Controller(inbox, hostname="127.0.0.1", port=port)
    controller.start()
    try:
        yield f"smtp://127.0.0.1:{port}"
    finally:
        controller.stop()


def test_a_message_arrives_in_text_and_html_with_its_name():
    inbox = Inbox()
    with listening(inbox) as url:
        settings = MailSettings(smtp_url=url, mail_from=SENDER)
        made = mail.message(
            settings, "olga@acme.example", "Zahlung fällig", "Text", html="<p>Text</p>", message_id="n1"
        )
        mail.send(settings, made)
    (found,) = inbox.messages
    assert (found["From"], found["To"], found["Subject"]) == (SENDER, "olga@acme.example", "Zahlung fällig")
    assert found["Message-ID"] == "<n1@acme.example>"
    assert found.get_body(("plain",)).get_content().rstrip() == "Text"
    assert found.get_body(("html",)).get_content().rstrip() == "<p>Text</p>"


@pytest.mark.parametrize(
    ("answer", "kind"), [("550 no such user", MailRefused), ("451 try again later", MailUnavailable)]
)
def test_a_refusal_for_ever_is_another_than_one_for_now(answer, kind):
    with listening(Inbox(answer)) as url:
        settings = MailSettings(smtp_url=url, mail_from=SENDER)
        with pytest.raises(kind, match=answer[4:]):
            mail.send(settings, mail.message(settings, "x@acme.example", "S", "T"))


def test_a_server_that_is_not_there_is_for_now():
    settings = MailSettings(smtp_url="smtp://127.0.0.1:1", mail_from=SENDER)
    with pytest.raises(MailUnavailable, match=r"127\.0\.0\.1 cannot be used"):
        mail.send(settings, mail.message(settings, "x@acme.example", "S", "T"))


def test_nothing_leaves_this_machine_in_the_clear(monkeypatch):
    inbox = Inbox()
    monkeypatch.setattr(mail, "_LOCAL", frozenset())
    with listening(inbox) as url:
        settings = MailSettings(smtp_url=url, mail_from=SENDER)
        with pytest.raises(MailRefused, match="offers no STARTTLS"):
            mail.send(settings, mail.message(settings, "x@acme.example", "S", "T"))
    assert inbox.messages == []


@pytest.mark.parametrize(
    ("settings", "to"),
    [
        (MailSettings(smtp_url="smtp://127.0.0.1", mail_from=""), "x@acme.example"),
        (MailSettings(smtp_url="smtp://127.0.0.1", mail_from=SENDER), "x@acme.example\r\nBcc: everybody@acme.example"),
    ],
)
def test_what_cannot_be_written_is_refused(settings, to):
    with pytest.raises(MailRefused):
        mail.message(settings, to, "S", "T")


def test_an_address_of_another_kind_is_refused():
    with pytest.raises(ValidationError, match=r"smtp://user:password@host:587 or smtps://...:465"):
        MailSettings(smtp_url="http://127.0.0.1", mail_from=SENDER)
