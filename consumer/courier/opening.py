"""Opens sessions: aiosmtplib connects, speaks TLS and AUTH; then the wire takes over."""

from __future__ import annotations

import asyncio
from typing import Final, cast

import aiosmtplib
import structlog

from consumer.courier.relay import Relay
from consumer.courier.session import Session
from consumer.courier.wire import Wire
from mailjob.errors import RelayError
from mailjob.settings import Tls, is_loopback

CONNECT_SECONDS: Final = 15.0

log = structlog.get_logger()


async def open_session(relay: Relay, local_hostname: str) -> Session:
    """Connect, secure and authenticate. Raises RelayError."""
    try:
        smtp = aiosmtplib.SMTP(
            hostname=relay.host,
            port=relay.port,
            local_hostname=local_hostname,
            timeout=CONNECT_SECONDS,
            use_tls=relay.mode is Tls.TLS,
            start_tls={Tls.TLS: False, Tls.NONE: False, Tls.STARTTLS: True}.get(relay.mode),
            tls_context=relay.tls_context,
        )
    except (ValueError, OSError) as error:
        raise RelayError(f"relay {relay.host}:{relay.port}: {error}", 0) from error
    try:
        await smtp.connect()
        await _greet(smtp)
        if relay.username:
            await _authenticate(smtp, relay)
    except (aiosmtplib.SMTPException, OSError, ValueError, RuntimeError) as error:
        # ValueError: a name that is none (UnicodeError). RuntimeError: uvloop's, for a closed transport.
        smtp.close()
        code = error.code if isinstance(error, aiosmtplib.SMTPResponseException) else 0
        words = error.message if isinstance(error, aiosmtplib.SMTPException) else str(error)
        if f"{relay.host} on port" not in words:
            words = f"relay {relay.host}:{relay.port}: {words}"
        # A relay's text may be in any encoding; this one must be fit to be stored.
        raise RelayError(words.encode("utf-8", "replace").decode("utf-8"), code) from error
    except BaseException:
        smtp.close()
        raise
    if smtp.transport is None:
        raise RelayError(f"relay {relay.host}:{relay.port}: it closed the connection", 0)
    wire = Wire(cast(asyncio.Transport, smtp.transport))
    return Session(wire, pipelining=smtp.supports_extension("pipelining"))


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
