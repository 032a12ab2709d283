"""The sink as tests use it: it remembers what it heard and took, and may run on a thread of its own."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace

from console.sink import CLOSE, HANG, Script, Sink, Taken

__all__ = ["CLOSE", "HANG", "Relay", "in_thread"]


class Relay(Sink):
    """``for_recipient`` has replies to RCPT by address."""

    offers: Sequence[str] = ("PIPELINING", "8BITMIME")
    """Where ``extensions`` says nothing else."""

    def __init__(
        self,
        answers: Mapping[str, Sequence[str]] | None = None,
        *,
        for_recipient: Mapping[str, str] | None = None,
        extensions: Sequence[str] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        script = Script(answers=answers or {}, extensions=extensions or self.offers)
        super().__init__(script, on_taken=self._take, on_command=self._hear, tls=tls)
        self.taken: list[Taken] = []
        self.commands: list[str] = []
        self.arrived = asyncio.Event()
        """Set at every command."""
        self._for_recipient = for_recipient or {}
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def answers(self) -> Mapping[str, Sequence[str]]:
        return self.script.answers

    @answers.setter
    def answers(self, answers: Mapping[str, Sequence[str]]) -> None:
        self.asked.clear()
        self.script = replace(self.script, answers=answers)

    @asynccontextmanager
    async def serve(self, port: int = 0) -> AsyncIterator[Relay]:
        self._loop = asyncio.get_running_loop()
        async with super().serve(port):
            yield self

    def fault(self, recipient: str) -> tuple[str, str] | None:
        if recipient in self._for_recipient:
            return "rcpt", self._for_recipient[recipient]
        return super().fault(recipient)

    def let_go(self) -> None:
        """From any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(super().let_go)

    def _take(self, taken: Taken) -> None:
        if taken.accepted:
            self.taken.append(taken)

    def _hear(self, line: str) -> None:
        self.commands.append(line)
        self.arrived.set()


@contextmanager
def in_thread(relay: Relay) -> Iterator[Relay]:
    """The relay on a loop of its own, for tests that are not asynchronous."""
    ready, stop = threading.Event(), threading.Event()

    async def run() -> None:
        async with relay.serve():
            ready.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    ready.wait()
    try:
        yield relay
    finally:
        stop.set()
        thread.join()
