"""An SMTP server whose every reply a test can choose."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field

CLOSE = "(close)"
HANG = "(hang)"


@dataclass
class Taken:
    sender: str
    recipients: list[str]
    content: bytes


@dataclass
class Relay:
    """``answers`` holds replies by step, taken in order, then the last one is repeated.

    Steps: BANNER, EHLO, MAIL, RCPT, DATA, CONTENT, RSET. ``for_recipient`` overrides RCPT by address.
    ``CLOSE`` closes the connection instead of answering, ``HANG`` says nothing
    before ``let_go``.
    """

    answers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    for_recipient: Mapping[str, str] = field(default_factory=dict)
    extensions: Sequence[str] = ("8BITMIME",)
    tls: ssl.SSLContext | None = None
    port: int = 0
    connections: int = 0
    commands: list[str] = field(default_factory=list)
    taken: list[Taken] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    """Set at every command and every taken mail."""
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    released: asyncio.Event = field(default_factory=asyncio.Event)
    loop: asyncio.AbstractEventLoop = field(init=False)
    _asked: dict[str, int] = field(default_factory=dict)

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[Relay]:
        self.loop = asyncio.get_running_loop()
        server = await asyncio.start_server(self._session, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.drop_all()

    def let_go(self) -> None:
        """Answer what hangs, with the step's default. From any thread."""
        self.loop.call_soon_threadsafe(self._release)

    def _release(self) -> None:
        self.released.set()
        self.released = asyncio.Event()

    def drop_all(self) -> None:
        for writer in self.writers:
            writer.transport.abort()

    async def _reply(self, step: str, default: str) -> str:
        answers = self.answers.get(step, ())
        number = self._asked.get(step, 0)
        self._asked[step] = number + 1
        reply = answers[min(number, len(answers) - 1)] if answers else default
        if reply == HANG:
            await self.released.wait()
            return default
        return reply

    async def _session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        try:
            await self._talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sender, recipients = "", list[str]()
        if not await self._say(writer, await self._reply("BANNER", "220 relay")):
            return
        while line := await reader.readline():
            command = line.decode().rstrip("\r\n")
            self.commands.append(command)
            self.arrived.set()
            verb = command.split(" ")[0].upper()
            default = "250 ok"
            if verb == "EHLO":
                default = "\r\n".join(
                    [*(f"250-{name}" for name in ("relay", *self.extensions)), "250 OK"]
                )
            elif verb == "MAIL":
                sender, recipients = command[10:].strip("<>"), []
            elif verb == "RCPT":
                recipients.append(command[8:].strip("<>"))
                default = self.for_recipient.get(recipients[-1], default)
            elif verb == "DATA":
                default = "354 go on"
            elif verb == "STARTTLS":
                await self._say(writer, "220 ready")
                await writer.start_tls(self.tls or ssl.create_default_context())
                continue
            elif verb == "QUIT":
                await self._say(writer, "221 bye")
                return
            reply = await self._reply(verb, default)
            if not await self._say(writer, reply):
                return
            if verb == "DATA" and reply.startswith("354"):
                content = await reader.readuntil(b"\r\n.\r\n")
                reply = await self._reply("CONTENT", "250 2.0.0 taken")
                if reply.startswith("250"):
                    self.taken.append(Taken(sender, recipients, content[:-3]))
                if not await self._say(writer, reply):
                    return
                self.arrived.set()

    async def _say(self, writer: asyncio.StreamWriter, reply: str) -> bool:
        if reply == CLOSE:
            return False
        writer.write(reply.encode() + b"\r\n")
        await writer.drain()
        return True


@contextmanager
def in_thread(relay: Relay) -> Iterator[Relay]:
    """The relay on a loop of its own, for tests that are not asynchronous."""
    ready, stop = threading.Event(), threading.Event()
    loop = asyncio.new_event_loop()

    async def run() -> None:
        async with relay.serve():
            ready.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    ready.wait()
    try:
        yield relay
    finally:
        stop.set()
        thread.join()
        for task in asyncio.all_tasks(loop):
            task.cancel()
            with suppress(asyncio.CancelledError):
                loop.run_until_complete(task)
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
