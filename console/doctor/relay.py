"""The relay: whether it lets us in, and on request whether it takes a mail."""

from __future__ import annotations

import asyncio
import socket
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, formataddr, localtime, make_msgid
from typing import Final

from console.doctor.finding import Finding, Verdict
from consumer.courier import Courier, Mail, Relay
from consumer.courier.opening import open_session
from consumer.verdict import Reply, Step, judge
from consumer.verdict import Verdict as Judgement
from mailjob.errors import RelayError
from mailjob.settings import ConsumerSettings, Sender

ADVICE: Final = "check SMTP_HOST, SMTP_PORT, SMTP_TLS, SMTP_USERNAME and SMTP_PASSWORD"


def look_at_relay(settings: ConsumerSettings) -> Finding:
    """Connects, secures the connection, logs in and leaves."""
    relay = Relay.of(settings)

    async def greet() -> None:
        session = await open_session(relay, socket.getfqdn())
        await session.quit()

    try:
        asyncio.run(greet())
    except RelayError as error:
        words = str(Reply(Step.CONNECT, error.code, str(error)))
        return Finding("relay", Verdict.FAILED, words, ADVICE)
    login = "and takes the login" if relay.username else "without a login"
    return Finding("relay", Verdict.OK, f"{relay.host}:{relay.port} answers {login}")


def send_test_mail(settings: ConsumerSettings, recipient: str) -> Finding:
    """One mail, by the way that every mail takes, but without the ledger."""
    sender = settings.mail_from

    async def send() -> Reply:
        courier = Courier(Relay.of(settings), 1)
        try:
            mail = Mail(sender.address, (recipient,), write_test_mail(sender, recipient))
            return (await courier.send(mail, _nothing_to_mark))[recipient]
        finally:
            await courier.close()

    reply = asyncio.run(send())
    if judge(reply) is Judgement.SENT:
        words = f"the relay took one for {recipient}: {reply}"
        return Finding("test mail", Verdict.OK, words, "look whether it arrives, and where")
    advice = "the relay's answer says why; MAIL_FROM must be a sender it lets you be"
    return Finding("test mail", Verdict.FAILED, f"not taken for {recipient}: {reply}", advice)


def write_test_mail(sender: Sender, recipient: str) -> bytes:
    message = EmailMessage(policy=SMTP)
    message["From"] = formataddr((sender.name, sender.address))
    message["To"] = recipient
    message["Subject"] = "Test mail from async-email doctor"
    message["Date"] = format_datetime(localtime())
    message["Message-ID"] = make_msgid(domain=sender.address.rpartition("@")[2])
    message["Auto-Submitted"] = "auto-generated"
    message.set_content("If you can read this, mail from this server arrives.\n")
    return message.as_bytes()


async def _nothing_to_mark() -> None:
    """No job stands behind a test mail."""
