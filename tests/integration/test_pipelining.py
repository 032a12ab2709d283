"""What goes over the wire, byte for byte, to a relay that offers PIPELINING (RFC 2920)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from consumer.courier import Courier, Mail, Relay
from consumer.verdict import Reply, Step
from mailjob.errors import AsyncEmailError, LedgerUnavailableError

ADA, BOB = "ada@example.org", "bob@example.org"
CONTENT = b"Subject: x\r\n\r\nbody\r\n"
WIRE = CONTENT + b".\r\n"
QUIT = (b"QUIT\r\n", b"221 bye\r\n")

TAKEN = b"250 sender\r\n250 recipient\r\n354 go\r\n"
DONE = b"250 taken\r\n"

Talk = Sequence[tuple[bytes, bytes | None]]
"""What must come, exactly, before each answer; None closes the connection."""


def group(*recipients: str) -> bytes:
    lines = [f"RCPT TO:<{recipient}>\r\n".encode() for recipient in recipients or (ADA,)]
    return b"".join([b"MAIL FROM:<hello@example.org>\r\n", *lines, b"DATA\r\n"])


@asynccontextmanager
async def listening(*talks: Talk, chunk: int = 10_000) -> AsyncIterator[int]:
    """A relay that holds one of these talks on each connection, and nothing else. Gives its port.

    ``chunk`` is how many bytes of an answer are written at once.
    """
    coming = iter(talks)
    talking: set[asyncio.Task[None] | None] = set()
    surprises: list[bytes] = []

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talking.add(asyncio.current_task())
        writer.write(b"220 relay\r\n")
        await reader.readuntil(b"\r\n")
        writer.write(b"250-relay\r\n250 PIPELINING\r\n")
        for expected, answer in next(coming):
            came = b""
            while len(came) < len(expected) and (more := await reader.read(len(expected) - len(came))):
                came += more
            if came != expected:
                surprises.append(came)
            if answer is None or came != expected:
                writer.close()
                return
            for start in range(0, len(answer), chunk):
                writer.write(answer[start : start + chunk])
                await asyncio.sleep(0.001 if chunk < len(answer) else 0)
        surprises.extend([rest] if (rest := await reader.read()) else [])
        writer.close()

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    await asyncio.gather(*(task for task in talking if task))
    assert surprises == []
    assert next(coming, None) is None


def mail(*recipients: str) -> Mail:
    return Mail("hello@example.org", recipients or (ADA,), CONTENT)


async def mark() -> None:
    """It holds."""


async def send_all(port: int, *mails: Mail) -> list[dict[str, tuple[Step, int]]]:
    """Send them over one connection, all ready at once."""
    courier = Courier(Relay("127.0.0.1", port), 1)
    replies = await asyncio.gather(*(courier.send(one, mark) for one in mails))
    await courier.close()
    return [codes(one) for one in replies]


def codes(replies: dict[str, Reply]) -> dict[str, tuple[Step, int]]:
    return {address: (reply.step, reply.code) for address, reply in replies.items()}


SENT = {ADA: (Step.CONTENT, 250)}


@pytest.mark.parametrize("chunk", [1, 7, 10_000])
async def test_a_busy_session_spends_one_round_trip_a_mail(chunk: int) -> None:
    talk: Talk = [
        (group(), TAKEN),
        (WIRE + group(), DONE + TAKEN),
        (WIRE + group(), DONE + TAKEN),
        (WIRE, DONE),
        QUIT,
    ]
    async with listening(talk, chunk=chunk) as port:
        assert await send_all(port, mail(), mail(), mail()) == [SENT, SENT, SENT]


async def test_the_next_mail_is_not_announced_before_it_is_there() -> None:
    talk: Talk = [(group(), TAKEN), (WIRE, DONE), (group(), TAKEN), (WIRE, DONE), QUIT]
    async with listening(talk) as port:
        courier = Courier(Relay("127.0.0.1", port), 1)
        for _ in range(2):
            assert codes(await courier.send(mail(), mark)) == SENT
        await courier.close()


@pytest.mark.parametrize(
    ("answer", "expected", "then"),
    [
        # The sender is refused, and so is all that follows.
        (
            b"550 no\r\n503 no\r\n503 no\r\n503 no\r\n",
            {ADA: (Step.MAIL, 550), BOB: (Step.MAIL, 550)},
            b"",
        ),
        (
            b"451 no\r\n451 no\r\n451 no\r\n451 no\r\n",
            {ADA: (Step.MAIL, 451), BOB: (Step.MAIL, 451)},
            b"",
        ),
        # All recipients are refused; DATA is too, or has to be ended with an empty content.
        (b"250 ok\r\n550 a\r\n450 b\r\n554 no\r\n", {ADA: (Step.RCPT, 550), BOB: (Step.RCPT, 450)}, b""),
        (
            b"250 ok\r\n550 a\r\n450 b\r\n354 go\r\n",
            {ADA: (Step.RCPT, 550), BOB: (Step.RCPT, 450)},
            b".\r\n",
        ),
        # Some are refused, and DATA as well.
        (b"250 ok\r\n550 a\r\n250 b\r\n451 no\r\n", {ADA: (Step.RCPT, 550), BOB: (Step.DATA, 451)}, b""),
        (b"250 ok\r\n550 a\r\n250 b\r\n554 no\r\n", {ADA: (Step.RCPT, 550), BOB: (Step.DATA, 554)}, b""),
    ],
)
async def test_a_refused_mail_does_not_disturb_the_next(
    answer: bytes, expected: dict[str, tuple[Step, int]], then: bytes
) -> None:
    talk: Talk = [
        (group(ADA, BOB), answer),
        *([(then, b"554 no valid recipients\r\n")] if then else []),
        (group() if then else b"RSET\r\n" + group(), (b"" if then else b"250 reset\r\n") + TAKEN),
        (WIRE, DONE),
        QUIT,
    ]
    async with listening(talk) as port:
        assert await send_all(port, mail(ADA, BOB), mail()) == [expected, SENT]


async def test_the_content_goes_to_those_that_were_taken() -> None:
    answer = b"250 ok\r\n550 a\r\n251 b\r\n354 go\r\n"
    talk: Talk = [(group(ADA, BOB), answer), (WIRE + group(), DONE + TAKEN), (WIRE, DONE), QUIT]
    async with listening(talk) as port:
        replies = await send_all(port, mail(ADA, BOB), mail())
    assert replies == [{ADA: (Step.RCPT, 550), BOB: (Step.CONTENT, 250)}, SENT]


@pytest.mark.parametrize(
    "answer",
    [
        b"550 no\r\n250 a\r\n250 b\r\n354 go\r\n",  # it forgot that it refused the sender
        b"250 ok\r\n550 a\r\n550 b\r\n250 what\r\n",  # nobody knows what it waits for now
        b"250 ok\r\n550 a\r\n250 b\r\n250 what\r\n",
    ],
)
async def test_a_relay_out_of_step_gets_nothing_more(answer: bytes) -> None:
    async with listening([(group(ADA, BOB), answer)], [(group(), TAKEN), (WIRE, DONE), QUIT]) as port:
        replies = await send_all(port, mail(ADA, BOB), mail())
    assert replies[1] == SENT
    assert all(step is not Step.CONTENT for step, _ in replies[0].values())


@pytest.mark.parametrize("error", [AsyncEmailError("lost"), LedgerUnavailableError("away")])
async def test_a_refused_mark_closes_the_connection_before_the_dot(error: AsyncEmailError) -> None:
    async def refuse() -> None:
        raise error

    async with listening([(group(), TAKEN)], [(group(), TAKEN), (WIRE, DONE), QUIT]) as port:
        courier = Courier(Relay("127.0.0.1", port), 1)
        first = asyncio.create_task(courier.send(mail(), refuse))
        second = asyncio.create_task(courier.send(mail(), mark))
        with pytest.raises(type(error)):
            await first
        assert codes(await second) == SENT
        await courier.close()


async def test_a_mail_that_is_cancelled_while_it_is_marked_is_not_sent() -> None:
    marking, marked = asyncio.Event(), asyncio.Event()

    async def slow_mark() -> None:
        marking.set()
        await marked.wait()

    async with listening([(group(), TAKEN)], [(group(), TAKEN), (WIRE, DONE), QUIT]) as port:
        courier = Courier(Relay("127.0.0.1", port), 1)
        first = asyncio.create_task(courier.send(mail(), slow_mark))
        await marking.wait()
        first.cancel()
        marked.set()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert codes(await courier.send(mail(), mark)) == SENT
        await courier.close()


async def test_cancelling_an_announced_mail_does_not_touch_the_content_before_it() -> None:
    answered = asyncio.Event()
    announced: list[asyncio.Task[dict[str, Reply]]] = []

    async def cancel_the_next() -> None:
        asyncio.get_running_loop().call_later(0.02, announced[0].cancel)

    # The relay answers the content late, after the announced mail was cancelled; then DATA is left by
    # closing the connection.
    async def answer_late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 relay\r\n")
        await reader.readuntil(b"\r\n")
        writer.write(b"250-relay\r\n250 PIPELINING\r\n")
        await reader.readexactly(len(group()))
        writer.write(TAKEN)
        await reader.readexactly(len(WIRE + group()))
        await asyncio.wait(announced)
        writer.write(DONE + TAKEN)
        assert await reader.read() == b""
        answered.set()
        writer.close()

    async with await asyncio.start_server(answer_late, "127.0.0.1", 0) as server:
        courier = Courier(Relay("127.0.0.1", server.sockets[0].getsockname()[1]), 1)
        first = asyncio.create_task(courier.send(mail(), cancel_the_next))
        announced.append(asyncio.create_task(courier.send(mail(), mark)))
        assert codes(await first) == SENT
        await answered.wait()
        await courier.close()


@pytest.mark.parametrize(
    ("answer", "first"),
    [
        (None, {ADA: (Step.CONTENT, 0)}),  # ambiguous, and it alone
        (b"451 later\r\n421 closing\r\n", {ADA: (Step.CONTENT, 451)}),
        (DONE + b"421 closing\r\n", SENT),
        (b"nonsense\r\n", {ADA: (Step.CONTENT, 0)}),
    ],
)
async def test_what_ends_a_session_is_not_held_against_the_announced_mail(
    answer: bytes | None, first: dict[str, tuple[Step, int]]
) -> None:
    broken: Talk = [(group(), TAKEN), (WIRE + group(), answer), (b"", None)]
    async with listening(broken, [(group(), TAKEN), (WIRE, DONE), QUIT]) as port:
        assert await send_all(port, mail(), mail()) == [first, SENT]


async def test_421_to_a_content_makes_the_announced_mail_wait() -> None:
    broken: Talk = [(group(), TAKEN), (WIRE + group(), b"421 closing\r\n"), (b"", None)]
    async with listening(broken) as port:
        replies = await send_all(port, mail(), mail())
    assert replies == [{ADA: (Step.CONTENT, 421)}, {ADA: (Step.CONNECT, 0)}]


async def test_a_reply_that_nobody_asked_for_ends_the_session() -> None:
    """A later reply would else be taken for the answer to the wrong command."""
    talk: Talk = [(group(), TAKEN), (WIRE, DONE + b"250 and more\r\n"), (b"", None)]
    async with listening(talk, [(group(), TAKEN), (WIRE, DONE), QUIT]) as port:
        courier = Courier(Relay("127.0.0.1", port), 1)
        for _ in range(2):
            assert codes(await courier.send(mail(), mark)) == SENT
        await courier.close()


async def test_a_connection_lost_between_the_groups_replies_counts_for_its_mail() -> None:
    async with listening([(group(), b"250 sender\r\n"), (b"", None)]) as port:
        assert await send_all(port, mail()) == [{ADA: (Step.RCPT, 0)}]
    async with listening([(group(), b"250 sender\r\n250 recipient\r\n"), (b"", None)]) as port:
        assert await send_all(port, mail()) == [{ADA: (Step.DATA, 0)}]


async def test_a_mail_does_not_wait_behind_a_silent_content(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consumer.courier.session.COMMAND_SECONDS", 0.05)
    connections = 0
    other_sent = asyncio.Event()

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        slow = connections == 1
        writer.write(b"220 relay\r\n")
        await reader.readuntil(b"\r\n")
        writer.write(b"250-relay\r\n250 PIPELINING\r\n")
        await reader.readexactly(len(group()))
        writer.write(TAKEN)
        await reader.readexactly(len(WIRE + group() if slow else WIRE))
        if slow:
            await other_sent.wait()
        writer.write(DONE + (TAKEN if slow else b""))
        other_sent.set()
        assert await reader.read() == (b"" if slow else b"QUIT\r\n")
        writer.close()

    async with await asyncio.start_server(hold, "127.0.0.1", 0) as server, asyncio.timeout(10):
        courier = Courier(Relay("127.0.0.1", server.sockets[0].getsockname()[1]), 1)
        first = asyncio.create_task(courier.send(mail(), mark))
        second = asyncio.create_task(courier.send(mail(), mark))
        await asyncio.sleep(0)
        courier._limit = 2  # noqa: SLF001 - one more than when the second mail was announced
        assert codes(await second) == SENT
        assert codes(await first) == SENT
        await courier.close()
