"""An SMTP server nobody here wrote: aiosmtpd, with STARTTLS and AUTH."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from programs import free_port

from consumer.courier import Courier, Mail, Relay
from consumer.verdict import Step
from mailjob.settings import Tls

MAIL = Mail(
    "hello@example.org", ["ada@example.org", "bob@example.org"], b"Subject: x\r\n\r\n.dot\r\n..\r\n"
)


class Handler:
    def __init__(self) -> None:
        self.envelopes: list[Envelope] = []

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        if address.startswith("bob"):
            return "550 5.1.1 no such user"
        envelope.rcpt_tos.append(address)
        return "250 ok"

    async def handle_DATA(  # noqa: N802 - aiosmtpd's name
        self, _server: SMTP, _session: Session, envelope: Envelope
    ) -> str:
        self.envelopes.append(envelope)
        return "250 2.0.0 kept"


def check(
    _server: SMTP, _session: Session, _envelope: Envelope, _mechanism: str, data: LoginPassword
) -> AuthResult:
    known = (data.login, data.password) == (b"shop", b"hunter2")
    return AuthResult(success=known, handled=False)


@pytest.fixture
def relay(server_tls: ssl.SSLContext) -> Iterator[tuple[int, Handler]]:
    handler = Handler()
    controller = Controller(
        handler,
        hostname="127.0.0.1",
        port=free_port(),
        tls_context=server_tls,
        require_starttls=True,
        authenticator=check,
        auth_required=True,
    )
    controller.start()
    yield controller.port, handler
    controller.stop()


async def mark() -> None:
    pass


async def test_a_mail_under_tls_and_auth(relay: tuple[int, Handler], trust: ssl.SSLContext) -> None:
    port, handler = relay
    courier = Courier(Relay("127.0.0.1", port, "shop", "hunter2", Tls.STARTTLS, trust), 2)
    for _ in range(3):
        replies = await courier.send(MAIL, mark)
        assert str(replies["ada@example.org"]) == "250 2.0.0 kept"
        assert str(replies["bob@example.org"]) == "550 5.1.1 no such user"
    await courier.close()
    assert [envelope.content for envelope in handler.envelopes] == [MAIL.content] * 3
    assert handler.envelopes[0].rcpt_tos == ["ada@example.org"]
    assert handler.envelopes[0].mail_from == "hello@example.org"


async def test_a_wrong_password(relay: tuple[int, Handler], trust: ssl.SSLContext) -> None:
    port, handler = relay
    courier = Courier(Relay("127.0.0.1", port, "shop", "wrong", Tls.STARTTLS, trust), 2)
    replies = await courier.send(MAIL, mark)
    assert {(reply.step, reply.code) for reply in replies.values()} == {(Step.CONNECT, 535)}
    assert not handler.envelopes
    await courier.close()


async def test_without_tls_nothing_is_sent(relay: tuple[int, Handler]) -> None:
    port, handler = relay
    courier = Courier(Relay("127.0.0.1", port, "shop", "hunter2", Tls.NONE), 2)
    replies = await courier.send(MAIL, mark)
    assert {reply.code for reply in replies.values()} == {530}
    assert not handler.envelopes
    await courier.close()
