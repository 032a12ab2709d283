"""One SMTP session: opened, used for one transaction after the other, closed.

Where the relay offers PIPELINING (RFC 2920), the commands of a mail go out together, and those of the
next mail together with the content of this one: a busy session spends one round trip a mail.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from consumer.courier.errand import Errand
from consumer.courier.transaction import (
    DATA,
    END,
    OK,
    START_INPUT,
    Answer,
    Mail,
    commands,
    no_reply,
    read_envelope,
    stuff,
)
from consumer.courier.wire import Wire
from consumer.verdict import Reply, Step
from mailjob import meters
from mailjob.failpoints import Failpoint, die, is_due, reached

COMMAND_SECONDS: Final = 50.0
"""For the replies before the content. RFC 5321, 4.5.3.2 allows minutes; here a relay that says nothing
must not hold a connection for longer than it takes other mail to go on."""

CONTENT_SECONDS: Final = 600.0
"""For the reply to the final dot (RFC 5321, 4.5.3.2.6): giving up early makes duplicates."""

QUIT_SECONDS: Final = 2.0

CLOSING: Final = 421

RESET: Final = b"RSET\r\n"

Next = Callable[[], Errand | None]
"""Gives a mail that is ready to go, if there is one."""


class Session:
    """Carries one errand after the other; belongs to one task."""

    def __init__(self, wire: Wire, *, pipelining: bool) -> None:
        self._wire = wire
        self._pipelining = pipelining
        self._used = False
        self._unended = False
        """The last transaction did not come to its content: RSET goes before the next one."""

    @property
    def usable(self) -> bool:
        return self._wire.lost is None

    async def carry(
        self, errand: Errand, following: Next, put_back: Callable[[Errand], None]
    ) -> Errand | None:
        """Send this mail, then what ``following`` gives, until that is nothing or the session is lost.

        Gives back the errand that could not be begun because the relay had closed a used session, or was
        closing it: nobody's fault, another session will do. ``put_back`` takes a mail for which the
        session turned out to be too slow.
        """
        self._announce(errand)
        while True:
            started = time.perf_counter()
            errand.interrupt = self.close
            heard = await self._hear_envelope(errand.mail)
            if self._used and (not heard or heard[0].code == CLOSING):
                self.close()
                errand.interrupt = None
                return None if errand.abandoned() else errand
            self._used = self._unended = True
            announced = await self._transact(errand, heard, following, put_back)
            meters.SEND_SECONDS.observe(time.perf_counter() - started)
            if announced is None and self.usable and (announced := following()) is not None:
                self._announce(announced)
            if announced is None or not self.usable:
                return announced
            errand = announced

    async def quit(self) -> None:
        self._wire.write(b"QUIT\r\n", 1)
        await self._wire.read(1, QUIT_SECONDS)
        self.close()

    def close(self) -> None:
        self._wire.lose("given up by this program")

    def _announce(self, errand: Errand, content: bytes = b"") -> None:
        """Write the commands of this mail behind the last one's content, where that may be."""
        if self._pipelining:
            lines = [RESET, *commands(errand.mail)] if self._unended else commands(errand.mail)
            self._wire.write(content + b"".join(lines), len(lines) + bool(content))

    async def _hear_envelope(self, mail: Mail) -> list[Answer]:
        """The replies to ``commands``, as far as they came."""
        if self._unended:
            if not self._pipelining:
                self._wire.write(RESET, 1)
            if [answer.code for answer in await self._wire.read(1, COMMAND_SECONDS)] != [OK]:
                self.close()
                return []
        if self._pipelining:
            return await self._wire.read(len(mail.recipients) + 2, COMMAND_SECONDS)
        heard: list[Answer] = []
        for command in commands(mail):
            if command is DATA and not any(answer.takes for answer in heard[1:]):
                break
            self._wire.write(command, 1)
            heard += await self._wire.read(1, COMMAND_SECONDS)
            if not self.usable or heard[0].code != OK:
                break
        return heard

    async def _transact(
        self,
        errand: Errand,
        heard: list[Answer],
        following: Next,
        put_back: Callable[[Errand], None],
    ) -> Errand | None:
        """Mark, and send the content to whom it may go; settle. Gives the mail announced behind it."""
        replies, taken = read_envelope(errand.mail, heard, self._wire.lost or "")
        announced = None
        if errand.abandoned():
            self.close()
        elif taken:
            reached(Failpoint.AFTER_RCPT)
            try:
                await errand.mark()
            except Exception as error:  # noqa: BLE001 - whatever it was, its sender is told
                self.close()  # now that the relay waits for the content, nothing else takes it back
                errand.fail(error)
                return None
            if errand.abandoned():
                self.close()
            elif self._wire.lost is not None:
                replies |= dict.fromkeys(taken, no_reply(Step.DATA, self._wire.lost))
            else:
                announced = following() if self._pipelining else None
                await self._send_content(errand.mail.content, announced)
                slow = announced is not None and not await self._wire.wait(1, COMMAND_SECONDS)
                if announced is not None and slow:
                    put_back(announced)
                    announced = None
                reply = await self._hear_content()
                replies |= dict.fromkeys(taken, reply)
                # After 421 the relay closes; and nobody wants the answers to what was put back.
                if slow or reply.code == CLOSING:
                    self.close()
        elif len(heard) == len(errand.mail.recipients) + 2:
            await self._decline(heard)
        errand.settle(replies)
        return announced

    async def _send_content(self, content: bytes, announced: Errand | None) -> None:
        wire = stuff(content) + END
        if is_due(Failpoint.MID_CONTENT):
            await self._die_having_written(wire[: len(wire) // 2])
        if is_due(Failpoint.AFTER_DOT):
            await self._die_having_written(wire)
        self._unended = False
        if announced is None:
            self._wire.write(wire, 1)
        else:
            self._announce(announced, wire)

    async def _hear_content(self) -> Reply:
        for answer in await self._wire.read(1, CONTENT_SECONDS):
            return Reply(Step.CONTENT, *answer)
        return no_reply(Step.CONTENT, self._wire.lost or "")

    async def _decline(self, heard: list[Answer]) -> None:
        """Nobody is to get the content, so DATA should be refused.

        Where it was not, an empty content ends it if no recipient was taken (RFC 2920, 3.1).
        """
        code = heard[-1].code
        if code == START_INPUT and all(answer.refuses for answer in heard[1:-1]):
            self._wire.write(END, 1)
            await self._wire.read(1, COMMAND_SECONDS)
            self._unended = False
        elif not heard[-1].refuses:
            self.close()

    async def _die_having_written(self, data: bytes) -> None:
        self._wire.write(data, 0)
        await self._wire.flush()
        die()
