"""The wire of an SMTP session: commands out, replies in, in their order.

Takes the connection over from aiosmtplib once it is secured and authenticated: that library's protocol
waits for one reply at a time and drops what else arrives, so that nothing could be pipelined.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from consumer.courier.transaction import Answer

LINE_BYTES: Final = 8192
"""Longest line of a reply; RFC 5321, 4.5.3.1.5 allows 512."""

REPLY_LINES: Final = 100

CODE_DIGITS: Final = 3


class Wire(asyncio.Protocol):
    """Belongs to one task. ``lost`` says why it can no longer be used; None while it can."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.lost: str | None = None
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._rest = b""
        self._lines: list[str] = []
        self._owed = 0
        self._answers: deque[Answer] = deque()
        self._wanted = 0
        self._waiter: asyncio.Future[None] | None = None
        transport.set_protocol(self)
        if transport.is_closing():
            self.lose("the relay closed the connection")

    def write(self, data: bytes, replies: int) -> None:
        """Send what will be answered with so many replies. A lost wire swallows it."""
        if self.lost is None and not self._transport.is_closing():
            self._owed += replies
            self._transport.write(data)

    async def wait(self, replies: int, seconds: float) -> bool:
        """Whether so many replies came, or the connection was lost, within the time. Changes nothing."""
        if len(self._answers) < replies and self.lost is None:
            self._wanted = replies
            self._waiter = self._loop.create_future()
            timer = self._loop.call_later(seconds, self._wake)
            try:
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None
        return len(self._answers) >= replies or self.lost is not None

    async def read(self, replies: int, seconds: float) -> list[Answer]:
        """The next replies; fewer when the connection is lost first, or they take too many seconds."""
        if not await self.wait(replies, seconds):
            self.lose(f"no reply within {seconds:g} s")
        answers = self._answers
        return [answers.popleft() for _ in range(min(replies, len(answers)))]

    async def flush(self) -> None:
        """Wait until all that was written has left this program."""
        await asyncio.sleep(0)  # uvloop writes at the end of its turn
        while self._transport.get_write_buffer_size():
            await asyncio.sleep(0)

    def lose(self, why: str) -> None:
        """Give the connection up. Whoever reads is told at once."""
        if self.lost is None:
            self.lost = why
            self._transport.abort()
        self._wake()

    # What asyncio calls

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._hear(line)
        if len(self._rest) > LINE_BYTES:
            self.lose("the relay sent a line without end")
        if len(self._answers) >= self._wanted:
            self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lose(f"the relay closed the connection{f': {exc}' if exc else ''}")

    # In between

    def _hear(self, line: bytes) -> None:
        code = line[:CODE_DIGITS]
        if len(code) < CODE_DIGITS or not code.isdigit() or len(self._lines) > REPLY_LINES:
            self.lose(f"the relay sent no reply: {line[:80].decode('utf-8', 'replace').strip()}")
            return
        self._lines.append(line[CODE_DIGITS + 1 :].decode("utf-8", "replace").strip())
        if line[CODE_DIGITS : CODE_DIGITS + 1] == b"-":
            return
        text = "\n".join(self._lines)
        self._lines = []
        if self.lost is None and self._owed:
            self._owed -= 1
            self._answers.append(Answer(int(code), text))
        else:  # nobody asked: most often 421 on a connection that was idle for too long
            self.lose(f"the relay said {int(code)} {text}")

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
