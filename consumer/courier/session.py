"""One SMTP session: opened, used for one transaction after the other, closed."""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, cast

import aiosmtplib
import structlog

from consumer.verdict import Reply, Step
from mailjob.errors import AsyncEmailError, RelayError
from mailjob.failpoints import Failpoint, die, is_due, reached
from mailjob.settings import Tls, is_loopback

CONNECT_SECONDS: Final = 15.0
COMMAND_SECONDS: Final = 50.0
"""For each reply before the content. RFC 5321, 4.5.3.2 allows minutes; here a relay that says nothing
must not hold a connection for longer than it takes other mail to go on."""

CONTENT_SECONDS: Final = 600.0
"""For the reply to the final dot (RFC 5321, 4.5.3.2.6): giving up early makes duplicates."""

QUIT_SECONDS: Final = 2.0

SUBMISSIONS_PORT: Final = 465
SUBMISSION_PORT: Final = 587

OK: Final = 250
WILL_FORWARD: Final = 251
START_INPUT: Final = 354

_LINE_END = re.compile(rb"\r\n|\r|\n")
_LEADING_DOT = re.compile(rb"^\.", re.MULTILINE)

log = structlog.get_logger()

Mark = Callable[[], Awaitable[None]]
"""Called once all is ready for the content. Raises an AsyncEmailError: then nothing of it is sent."""


@dataclass(frozen=True)
class Relay:
    """An SMTP server we hand mail to. ``trust`` replaces the system's certificate authorities."""

    host: str
    port: int
    username: str = ""
    password: str = field(default="", repr=False)
    tls: Tls = Tls.AUTO
    trust: ssl.SSLContext | None = None

    @property
    def mode(self) -> Tls:
        """AUTO resolved by the port; it stays AUTO where STARTTLS is used if offered."""
        if self.tls is Tls.AUTO and self.port == SUBMISSIONS_PORT:
            return Tls.TLS
        if self.tls is Tls.AUTO and self.port == SUBMISSION_PORT:
            return Tls.STARTTLS
        return self.tls

    @property
    def verified(self) -> bool:
        """Whether the relay must prove who it is.

        Where TLS is only used if offered, an attacker could as well hide the offer; so there it protects
        from onlookers, and a certificate is only asked for when a password is at stake.
        """
        secret_at_stake = bool(self.username) and not is_loopback(self.host)
        return self.mode in {Tls.TLS, Tls.STARTTLS} or secret_at_stake

    @cached_property
    def tls_context(self) -> ssl.SSLContext:
        """Made once: to load the system's authorities takes 20 ms, in which nothing else happens."""
        if self.verified:
            return self.trust or ssl.create_default_context()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context


@dataclass(frozen=True, slots=True)
class Mail:
    """An envelope and its content. All addresses are ASCII and were checked at the door."""

    sender: str
    recipients: Sequence[str]
    content: bytes


class Session:
    """Not for use by two tasks at once. ``usable`` is False when it must be thrown away."""

    def __init__(self, smtp: aiosmtplib.SMTP) -> None:
        self._smtp = smtp
        self._in_step = True
        self.used = False
        self.idle_since = time.monotonic()

    @property
    def usable(self) -> bool:
        return self._in_step and self._smtp.is_connected

    async def send(self, mail: Mail, mark: Mark) -> dict[str, Reply]:
        """One transaction. The decisive reply for each recipient; code 0 where the connection was lost.

        Whatever ``mark`` raises is raised again, with the transaction taken back.
        """
        self._in_step = False  # until the transaction has come to an end
        replies: dict[str, Reply] = {}
        step = Step.MAIL
        try:
            reply = await self._command(step, b"MAIL FROM:<%s>" % mail.sender.encode("ascii"))
            if reply.code != OK:
                return self._settled(dict.fromkeys(mail.recipients, reply))
            step = Step.RCPT
            for recipient in mail.recipients:
                reply = await self._command(step, b"RCPT TO:<%s>" % recipient.encode("ascii"))
                if reply.code not in {OK, WILL_FORWARD}:
                    replies[recipient] = reply
            taken = [recipient for recipient in mail.recipients if recipient not in replies]
            if not taken:
                return await self._reset(replies)
            reached(Failpoint.AFTER_RCPT)
            try:
                await mark()
            except AsyncEmailError:
                await self._reset(replies)
                raise
            step = Step.DATA
            reply = await self._command(step, b"DATA")
            if reply.code != START_INPUT:
                return await self._reset({**replies, **dict.fromkeys(taken, reply)})
            step = Step.CONTENT
            reply = await self._send_content(mail.content)
            return self._settled({**replies, **dict.fromkeys(taken, reply)})
        except (aiosmtplib.SMTPException, OSError) as error:
            lost = _lost(step, error)
            return {recipient: replies.get(recipient, lost) for recipient in mail.recipients}
        finally:
            self.used = True
            self.idle_since = time.monotonic()
            if not self._in_step:
                self._smtp.close()

    async def quit(self) -> None:
        try:
            await self._smtp.quit(timeout=QUIT_SECONDS)
        except (aiosmtplib.SMTPException, OSError):
            pass
        finally:
            self._smtp.close()

    def close(self) -> None:
        self._smtp.close()

    async def _command(self, step: Step, line: bytes) -> Reply:
        response = await self._smtp.execute_command(line, timeout=COMMAND_SECONDS)
        return Reply(step, response.code, _words(response.message))

    async def _send_content(self, content: bytes) -> Reply:
        protocol = self._smtp.protocol
        if protocol is None:
            raise aiosmtplib.SMTPServerDisconnected("Connection lost before the content")
        wire = stuff(content) + b".\r\n"
        if is_due(Failpoint.MID_CONTENT):
            await self._die_having_written(wire[: len(wire) // 2])
        if is_due(Failpoint.AFTER_DOT):
            await self._die_having_written(wire)
        # The reply is awaited in the same turn: aiosmtplib drops what comes while nobody waits.
        protocol.write(wire)
        response = await protocol.read_response(timeout=CONTENT_SECONDS)
        return Reply(Step.CONTENT, response.code, _words(response.message))

    async def _die_having_written(self, wire: bytes) -> None:
        transport = cast(asyncio.WriteTransport, self._smtp.transport)
        transport.write(wire)
        await asyncio.sleep(0)  # uvloop writes at the end of its turn
        while transport.get_write_buffer_size():
            await asyncio.sleep(0)
        die()

    async def _reset(self, replies: dict[str, Reply]) -> dict[str, Reply]:
        """Take the transaction back; a connection that does not manage that is closed."""
        try:
            reply = await self._command(Step.MAIL, b"RSET")
        except (aiosmtplib.SMTPException, OSError):
            return replies
        self._in_step = reply.code == OK
        return replies

    def _settled(self, replies: dict[str, Reply]) -> dict[str, Reply]:
        self._in_step = True
        return replies


async def open_session(relay: Relay, local_hostname: str) -> Session:
    """Connect, secure and authenticate. Raises RelayError."""
    smtp = aiosmtplib.SMTP(
        hostname=relay.host,
        port=relay.port,
        local_hostname=local_hostname,
        timeout=CONNECT_SECONDS,
        use_tls=relay.mode is Tls.TLS,
        start_tls={Tls.TLS: False, Tls.NONE: False, Tls.STARTTLS: True}.get(relay.mode),
        tls_context=relay.tls_context,
    )
    try:
        await smtp.connect()
        await _greet(smtp)
        if relay.username:
            await _authenticate(smtp, relay)
    except (aiosmtplib.SMTPException, OSError) as error:
        smtp.close()
        code = error.code if isinstance(error, aiosmtplib.SMTPResponseException) else 0
        words = error.message if isinstance(error, aiosmtplib.SMTPException) else str(error)
        if f"{relay.host} on port" not in words:
            words = f"relay {relay.host}:{relay.port}: {words}"
        raise RelayError(_words(words), code) from error
    except BaseException:
        smtp.close()
        raise
    return Session(smtp)


async def _greet(smtp: aiosmtplib.SMTP) -> None:
    if smtp.is_ehlo_or_helo_needed:
        try:
            await smtp.ehlo()
        except aiosmtplib.SMTPHeloError:
            await smtp.helo()


async def _authenticate(smtp: aiosmtplib.SMTP, relay: Relay) -> None:
    encrypted = smtp.get_transport_info("sslcontext") is not None
    if not encrypted and relay.tls is not Tls.NONE and not is_loopback(relay.host):
        raise aiosmtplib.SMTPException(
            "it offers no STARTTLS, and the password must not travel in clear text; "
            "set SMTP_TLS=none if it may"
        )
    if not smtp.supports_extension("auth"):
        log.warning("relay_offers_no_auth", hint="mail is sent without AUTH; unset SMTP_USERNAME?")
        return
    try:
        await smtp.login(relay.username, relay.password)
    except aiosmtplib.SMTPAuthenticationError as error:
        # aiosmtplib wants 235; what begins with 2 is a yes all the same (RFC 5321, 4.2.1).
        if not 200 <= error.code < 300:  # noqa: PLR2004 - the 2yz class
            raise


def stuff(content: bytes) -> bytes:
    """Content for DATA: every line end CR LF, then dots doubled (RFC 5321, 4.5.2), in that order.

    The order matters: a relay that takes a bare LF for a line end would else see a final dot where we
    see none (SMTP smuggling).
    """
    normal = _LINE_END.sub(b"\r\n", content)
    if not normal.endswith(b"\r\n"):
        normal += b"\r\n"
    return _LEADING_DOT.sub(b"..", normal)


def _words(text: str) -> str:
    """A relay's text, which may be in any encoding, as text that can be stored."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _lost(step: Step, error: Exception) -> Reply:
    code = error.code if isinstance(error, aiosmtplib.SMTPResponseException) else 0
    words = _words(str(error)) or type(error).__name__
    if code <= 0:
        return Reply(step, 0, f"connection lost at {step}: {words}")
    return Reply(step, code, words)
