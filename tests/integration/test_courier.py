"""SMTP transactions with a relay that answers as the test says."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import trustme
from relay import CLOSE, HANG, Relay

from consumer.courier import Courier, Mail, opening
from consumer.courier import Relay as Target
from consumer.courier import session as session_module
from consumer.courier.errand import Errand
from consumer.verdict import Reply, Step
from mailjob.errors import AsyncEmailError, LedgerUnavailableError, RelayError
from mailjob.settings import Tls

ADA = "ada@example.org"
BOB = "bob@example.org"
CONTENT = b"Subject: x\r\n\r\n.hidden dot\r\nbare\nend\r\n"


@pytest.fixture(params=["8BITMIME", "PIPELINING"], autouse=True)
def offered(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Everything holds with and without pipelining."""
    offer: str = request.param
    monkeypatch.setattr(Relay, "offers", (offer,))
    return offer


def mail(*recipients: str) -> Mail:
    return Mail("hello@example.org", recipients or (ADA,), CONTENT)


class Marks:
    """Counts marks, and looks at what the relay had heard by then."""

    def __init__(self, relay: Relay, error: AsyncEmailError | None = None) -> None:
        self.heard: list[list[str]] = []
        self._relay = relay
        self._error = error

    async def __call__(self) -> None:
        self.heard.append(list(self._relay.commands))
        if self._error:
            raise self._error


def target(relay: Relay, **options: Any) -> Target:
    return Target("127.0.0.1", relay.port, **{"tls": Tls.AUTO, **options})


async def deliver(
    relay: Relay, *recipients: str, marks: Marks | None = None, **options: Any
) -> dict[str, Reply]:
    courier = Courier(target(relay, **options), 2)
    try:
        return await courier.send(mail(*recipients), marks or Marks(relay))
    finally:
        await courier.close()


def codes(replies: dict[str, Reply]) -> dict[str, tuple[Step, int]]:
    return {address: (reply.step, reply.code) for address, reply in replies.items()}


async def test_the_mark_stands_exactly_before_the_content() -> None:
    async with Relay().serve() as relay:
        marks = Marks(relay)
        replies = await deliver(relay, marks=marks)
    assert codes(replies) == {ADA: (Step.CONTENT, 250)}
    assert str(replies[ADA]) == "250 2.0.0 taken"
    (heard,) = marks.heard
    assert heard[1:] == ["MAIL FROM:<hello@example.org>", f"RCPT TO:<{ADA}>", "DATA"]
    (taken,) = relay.taken
    assert (taken.sender, taken.recipients) == ("hello@example.org", (ADA,))
    assert taken.content == b"Subject: x\r\n\r\n..hidden dot\r\nbare\r\nend\r\n"


@pytest.mark.parametrize(
    ("answers", "step", "code"),
    [
        ({"MAIL": ["451 later"]}, Step.MAIL, 451),
        ({"MAIL": ["550 never"]}, Step.MAIL, 550),
        ({"MAIL": ["421 closing", CLOSE]}, Step.MAIL, 421),
        ({"MAIL": [CLOSE]}, Step.MAIL, 0),
        ({"RCPT": ["450 later"]}, Step.RCPT, 450),
        ({"RCPT": ["550 never"]}, Step.RCPT, 550),
        ({"RCPT": ["421 closing"]}, Step.RCPT, 421),
        ({"RCPT": [CLOSE]}, Step.RCPT, 0),
        ({"DATA": ["451 later"]}, Step.DATA, 451),
        ({"DATA": ["554 never"]}, Step.DATA, 554),
        ({"DATA": ["250 what?"]}, Step.DATA, 250),
        ({"DATA": [CLOSE]}, Step.DATA, 0),
        ({"CONTENT": ["451 later"]}, Step.CONTENT, 451),
        ({"CONTENT": ["554 never"]}, Step.CONTENT, 554),
        ({"CONTENT": [CLOSE]}, Step.CONTENT, 0),
        ({"CONTENT": ["nonsense"]}, Step.CONTENT, 0),
        ({"BANNER": ["554 go away"]}, Step.CONNECT, 554),
        ({"BANNER": [CLOSE]}, Step.CONNECT, 0),
        ({"EHLO": ["421 busy"]}, Step.CONNECT, 421),
    ],
)
async def test_replies_at_each_step(answers: dict[str, Sequence[str]], step: Step, code: int) -> None:
    async with Relay(answers).serve() as relay:
        marks = Marks(relay)
        replies = await deliver(relay, marks=marks)
    assert codes(replies) == {ADA: (step, code)}
    assert len(marks.heard) == (step is Step.CONTENT)
    assert not [taken for taken in relay.taken if taken.reply]


async def test_nobody_there() -> None:
    replies = await Courier(Target("127.0.0.1", 1), 1).send(mail(), Marks(Relay()))
    assert codes(replies) == {ADA: (Step.CONNECT, 0)}


async def test_each_recipient_has_its_own_reply() -> None:
    async with Relay(for_recipient={BOB: "550 5.1.1 no such user"}).serve() as relay:
        replies = await deliver(relay, ADA, BOB)
    assert codes(replies) == {ADA: (Step.CONTENT, 250), BOB: (Step.RCPT, 550)}


async def test_when_all_recipients_are_refused_nothing_is_marked_or_sent() -> None:
    async with Relay(for_recipient={ADA: "450 later", BOB: "550 never"}).serve() as relay:
        marks = Marks(relay)
        replies = await deliver(relay, ADA, BOB, marks=marks)
    assert codes(replies) == {ADA: (Step.RCPT, 450), BOB: (Step.RCPT, 550)}
    assert marks.heard == []
    assert relay.taken == []


async def test_a_refused_mail_leaves_the_session_usable() -> None:
    async with Relay(for_recipient={BOB: "550 never"}).serve() as relay:
        courier = Courier(target(relay), 1)
        for _ in range(3):
            assert codes(await courier.send(mail(BOB), Marks(relay))) == {BOB: (Step.RCPT, 550)}
            assert codes(await courier.send(mail(), Marks(relay))) == {ADA: (Step.CONTENT, 250)}
        assert relay.connections == 1
        assert relay.commands.count("RSET") == 3
        await courier.close()


@pytest.mark.parametrize("error", [AsyncEmailError("lost"), LedgerUnavailableError("away")])
async def test_a_refused_mark_takes_the_transaction_back(error: AsyncEmailError) -> None:
    async with Relay().serve() as relay:
        courier = Courier(target(relay), 1)
        with pytest.raises(type(error)):
            await courier.send(mail(), Marks(relay, error))
        assert relay.commands[-1] == "DATA"
        assert codes(await courier.send(mail(), Marks(relay))) == {ADA: (Step.CONTENT, 250)}
        assert relay.connections == 2
        await courier.close()
    assert len(relay.taken) == 1


async def test_sessions_are_kept_warm() -> None:
    async with Relay().serve() as relay:
        courier = Courier(target(relay), 5)
        for _ in range(10):
            await courier.send(mail(), Marks(relay))
        assert relay.connections == 1
        assert relay.commands.count("MAIL FROM:<hello@example.org>") == 10
        await courier.close()
        assert relay.commands[-1] == "QUIT"


async def test_no_more_sessions_than_allowed() -> None:
    async with Relay().serve() as relay:
        courier = Courier(target(relay), 3)
        await asyncio.gather(*(courier.send(mail(), Marks(relay)) for _ in range(30)))
        assert relay.connections <= 3
        assert len(relay.taken) == 30
        await courier.close()


@pytest.mark.parametrize("reply", [CLOSE, "421 4.4.2 idle too long"])
async def test_a_session_that_died_while_idle_is_nobodys_fault(reply: str) -> None:
    async with Relay({"MAIL": ["250 ok", reply, "250 ok"]}).serve() as relay:
        courier = Courier(target(relay), 1)
        for _ in range(2):
            assert codes(await courier.send(mail(), Marks(relay))) == {ADA: (Step.CONTENT, 250)}
        assert relay.connections == 2
        assert not courier.in_doubt
        await courier.close()


async def test_a_cancelled_mail_closes_its_session() -> None:
    async with Relay({"RCPT": [HANG]}).serve() as relay:
        courier = Courier(target(relay), 1)
        sending = asyncio.create_task(courier.send(mail(), Marks(relay)))
        while len(relay.commands) < 3:
            relay.arrived.clear()
            await relay.arrived.wait()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        relay.answers = {}
        assert codes(await courier.send(mail(), Marks(relay))) == {ADA: (Step.CONTENT, 250)}
        assert relay.connections == 2
        await courier.close()


async def test_a_relay_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "COMMAND_SECONDS", 0.1)
    monkeypatch.setattr(opening, "CONNECT_SECONDS", 0.1)
    for answers, step in (({"BANNER": [HANG]}, Step.CONNECT), ({"RCPT": [HANG]}, Step.RCPT)):
        async with Relay(answers).serve() as relay:
            assert codes(await deliver(relay)) == {ADA: (step, 0)}


async def test_fewer_sessions_than_allowed_are_made_do_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consumer.courier.pool.LIMIT_SECONDS", 0.05)
    relay = Relay()
    relay.script = replace(relay.script, most_connections=3, delay=0.001)
    async with relay.serve():
        courier = Courier(target(relay), 20)
        await courier.send(mail(), Marks(relay))
        replies = await asyncio.gather(*(courier.send(mail(), Marks(relay)) for _ in range(100)))
        assert {reply[ADA].code for reply in replies} == {250}
        relay.script = replace(relay.script, most_connections=None)
        before = relay.connections
        async with asyncio.timeout(10):
            while len(relay.sessions) <= 3:  # the limit is raised again by and by
                await asyncio.gather(*(courier.send(mail(), Marks(relay)) for _ in range(20)))
        assert relay.connections > before
        await courier.close()


async def test_a_limit_on_mails_per_session_is_nobodys_fault() -> None:
    relay = Relay()
    relay.script = replace(relay.script, most_mails=3)
    async with relay.serve():
        courier = Courier(target(relay), 2)
        for _ in range(20):
            assert codes(await courier.send(mail(), Marks(relay))) == {ADA: (Step.CONTENT, 250)}
        assert not courier.in_doubt
        await courier.close()


async def test_mail_that_waits_for_a_session_can_be_cancelled() -> None:
    async with Relay({"CONTENT": [HANG]}).serve() as relay:
        courier = Courier(target(relay), 1)
        first = asyncio.create_task(courier.send(mail(), Marks(relay)))
        while not relay.sessions or "DATA" not in relay.commands:
            relay.arrived.clear()
            await relay.arrived.wait()
        waiting = [asyncio.create_task(courier.send(mail(), Marks(relay))) for _ in range(3)]
        await asyncio.wait(waiting, timeout=0.05)
        waiting[0].cancel()
        relay.answers = {}
        relay.let_go()
        await first
        for task in waiting[1:]:
            assert codes(await task) == {ADA: (Step.CONTENT, 250)}
        with pytest.raises(asyncio.CancelledError):
            await waiting[0]
        await courier.close()


@pytest.mark.parametrize("step", ["MAIL", "CONTENT", "BANNER"])
async def test_replies_in_any_encoding_can_be_stored(step: str) -> None:
    async with Relay({step: ["550 accept\udce9"]}).serve() as relay:
        replies = await deliver(relay)
    assert str(replies[ADA]).encode("utf-8")
    assert "accept" in str(replies[ADA])


def in_doubt(courier: Courier) -> bool:
    return courier.in_doubt


async def test_trouble_makes_a_pause_and_success_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consumer.courier.pool.pause", lambda failures, chance: 0.05 * failures)
    async with Relay({"BANNER": ["421 busy", "421 busy", "220 relay"]}).serve() as relay:
        courier = Courier(target(relay), 5)
        assert codes(await courier.send(mail(), Marks(relay))) == {ADA: (Step.CONNECT, 421)}
        assert in_doubt(courier)
        # During the pause nothing is tried.
        assert codes(await courier.send(mail(), Marks(relay))) == {ADA: (Step.CONNECT, 0)}
        assert relay.connections == 1
        await courier.ready()
        assert codes(await courier.send(mail(), Marks(relay))) == {ADA: (Step.CONNECT, 421)}
        await courier.ready()
        assert codes(await courier.send(mail(), Marks(relay))) == {ADA: (Step.CONTENT, 250)}
        assert not in_doubt(courier)
        await courier.close()


class TestTls:
    async def test_starttls_where_it_is_required(
        self, server_tls: ssl.SSLContext, trust: ssl.SSLContext
    ) -> None:
        async with Relay(extensions=["STARTTLS"], tls=server_tls).serve() as relay:
            replies = await deliver(relay, tls=Tls.STARTTLS, trust=trust)
        assert codes(replies) == {ADA: (Step.CONTENT, 250)}
        assert relay.commands[1] == "STARTTLS"

    async def test_starttls_that_was_stripped_sends_nothing(self) -> None:
        async with Relay().serve() as relay:
            replies = await deliver(relay, tls=Tls.STARTTLS)
        assert codes(replies) == {ADA: (Step.CONNECT, 0)}
        assert "STARTTLS" in str(replies[ADA])
        assert not any(command.startswith("MAIL") for command in relay.commands)

    async def test_a_certificate_of_nobody_we_trust_sends_nothing(
        self, server_tls: ssl.SSLContext
    ) -> None:
        async with Relay(extensions=["STARTTLS"], tls=server_tls).serve() as relay:
            replies = await deliver(relay, tls=Tls.STARTTLS)
        assert codes(replies) == {ADA: (Step.CONNECT, 0)}
        assert "certificate" in str(replies[ADA]).lower()
        assert not any(command.startswith("MAIL") for command in relay.commands)

    async def test_a_certificate_for_another_name_sends_nothing(
        self, authority: trustme.CA, trust: ssl.SSLContext
    ) -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("other.example").configure_cert(context)
        async with Relay(extensions=["STARTTLS"], tls=context).serve() as relay:
            replies = await deliver(relay, tls=Tls.STARTTLS, trust=trust)
        assert codes(replies) == {ADA: (Step.CONNECT, 0)}

    async def test_starttls_is_taken_where_offered(self, server_tls: ssl.SSLContext) -> None:
        """Without a password at stake, encryption to somebody unknown beats none."""
        async with Relay(extensions=["STARTTLS"], tls=server_tls).serve() as relay:
            assert codes(await deliver(relay)) == {ADA: (Step.CONTENT, 250)}
        assert "STARTTLS" in relay.commands

    async def test_none_means_none(self, server_tls: ssl.SSLContext) -> None:
        async with Relay(extensions=["STARTTLS"], tls=server_tls).serve() as relay:
            await deliver(relay, tls=Tls.NONE)
        assert "STARTTLS" not in relay.commands

    def test_the_authorities_are_loaded_once(self) -> None:
        relay = Target("h", 587)
        assert relay.tls_context is relay.tls_context
        assert relay.tls_context.verify_mode is ssl.CERT_REQUIRED
        assert Target("h", 25).tls_context.verify_mode is ssl.CERT_NONE

    @pytest.mark.parametrize(
        ("port", "tls", "mode"),
        [
            (465, Tls.AUTO, Tls.TLS),
            (587, Tls.AUTO, Tls.STARTTLS),
            (25, Tls.AUTO, Tls.AUTO),
            (25, Tls.STARTTLS, Tls.STARTTLS),
            (465, Tls.NONE, Tls.NONE),
        ],
    )
    def test_auto_follows_the_port(self, port: int, tls: Tls, mode: Tls) -> None:
        assert Target("h", port, tls=tls).mode is mode

    def test_certificates_are_checked_where_tls_or_a_password_is_asked_for(self) -> None:
        assert Target("h", 587).verified
        assert Target("h", 465).verified
        assert Target("h", 25, username="u").verified
        assert not Target("h", 25).verified
        assert not Target("127.0.0.1", 25, username="u").verified


class TestAuth:
    async def test_a_refused_password_waits_for_the_operator(self) -> None:
        answers = {"AUTH": ["535 5.7.8 wrong"]}
        async with Relay(answers, extensions=["AUTH PLAIN LOGIN"]).serve() as relay:
            replies = await deliver(relay, username="u", password="hunter2")
        assert codes(replies) == {ADA: (Step.CONNECT, 535)}
        assert "hunter2" not in str(replies[ADA])
        assert not any(command.startswith("MAIL") for command in relay.commands)

    async def test_any_yes_is_a_yes(self) -> None:
        """Postfix's smtp-sink says 250."""
        async with Relay({"AUTH": ["250 ok"]}, extensions=["AUTH PLAIN LOGIN"]).serve() as relay:
            assert codes(await deliver(relay, username="u", password="p")) == {ADA: (Step.CONTENT, 250)}

    async def test_a_relay_without_auth_gets_the_mail_and_no_password(self) -> None:
        async with Relay().serve() as relay:
            assert codes(await deliver(relay, username="u", password="p")) == {ADA: (Step.CONTENT, 250)}
        assert not any(command.startswith("AUTH") for command in relay.commands)

    async def test_a_password_does_not_travel_in_clear_text(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(opening, "is_loopback", lambda _host: False)
        async with Relay(extensions=["AUTH PLAIN"]).serve() as relay:
            replies = await deliver(relay, username="u", password="p")
            assert codes(replies) == {ADA: (Step.CONNECT, 0)}
            assert "SMTP_TLS=none" in str(replies[ADA])
            assert not any(command.startswith("AUTH") for command in relay.commands)
            await deliver(relay, username="u", password="p", tls=Tls.NONE)
            assert any(command.startswith("AUTH") for command in relay.commands)


class TestARelayInTrouble:
    async def test_all_mail_is_told_also_where_it_comes_by_and_by(self) -> None:
        """Lanes that fail one after the other, each while another still tries."""
        relay = Relay({"BANNER": ["421 go away"]})
        relay.script = replace(relay.script, delay=0.03)
        async with relay.serve(), asyncio.timeout(20):
            courier = Courier(target(relay), 10)
            sending = []
            for _ in range(30):
                sending.append(asyncio.create_task(courier.send(mail(), Marks(relay))))
                await asyncio.sleep(0.004)
            replies = await asyncio.gather(*sending)
            assert {reply[ADA].step for reply in replies} == {Step.CONNECT}
            assert in_doubt(courier)
            assert relay.connections <= 12
            await courier.close()

    async def test_a_host_name_that_is_none_is_trouble_as_well(self) -> None:
        async with asyncio.timeout(10):
            replies = await Courier(Target("smtp..example.org", 25), 1).send(mail(), Marks(Relay()))
        assert codes(replies) == {ADA: (Step.CONNECT, 0)}

    async def test_a_pause_is_no_storm(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """One session waits for its reply, another met 421, and there is more mail."""
        tries = 0
        cope = Courier._cope  # noqa: SLF001 - counts the tries

        def count(courier: Courier, error: RelayError, errand: Errand) -> None:
            nonlocal tries
            tries += 1
            cope(courier, error, errand)

        monkeypatch.setattr(Courier, "_cope", count)
        async with Relay({"CONTENT": [HANG, "421 closing", "250 ok"]}).serve() as relay:
            courier = Courier(target(relay), 2)
            first = asyncio.create_task(courier.send(mail(), Marks(relay)))
            while not relay.asked["CONTENT"]:
                await asyncio.sleep(0.01)
            assert codes(await courier.send(mail(), Marks(relay))) == {ADA: (Step.CONTENT, 421)}
            waiting = [asyncio.create_task(courier.send(mail(), Marks(relay))) for _ in range(3)]
            await asyncio.wait([first, *waiting], timeout=0.2)
            assert tries <= 4
            relay.answers = {}
            relay.let_go()
            for task in (first, *waiting):
                assert codes(await task) == {ADA: (Step.CONTENT, 250)}
            await courier.close()
