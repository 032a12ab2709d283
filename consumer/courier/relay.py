"""A relay: where it is, and how a connection to it is secured."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from mailjob.settings import ConsumerSettings, Tls, is_loopback

SUBMISSIONS_PORT: Final = 465
SUBMISSION_PORT: Final = 587


@dataclass(frozen=True)
class Relay:
    """An SMTP server we hand mail to. ``trust`` replaces the system's certificate authorities."""

    host: str
    port: int
    username: str = ""
    password: str = field(default="", repr=False)
    tls: Tls = Tls.AUTO
    trust: ssl.SSLContext | None = None

    @classmethod
    def of(cls, settings: ConsumerSettings) -> Relay:
        return cls(
            settings.smtp_host,
            settings.smtp_port,
            settings.smtp_username,
            settings.smtp_password,
            settings.smtp_tls,
        )

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
