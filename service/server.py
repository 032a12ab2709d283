"""Hypercorn, served by parts: its reading of HTTP/1.1, its ASGI, and connections of our own.

Hypercorn writes an answer's head and its body with a call each, and starts and cancels two tasks for
every request to time the pause before it. Here an answer is one write, and a connection has one timer.
"""

from __future__ import annotations

import asyncio
import logging
import select
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from hypercorn.asyncio.lifespan import Lifespan
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import AsyncioSingleTask, WorkerContext
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData
from hypercorn.typing import Framework, LifespanState
from hypercorn.utils import wrap_app

from service.listener import BACKLOG, Listener

DRAIN_SECONDS: Final = 20.0
"""How long requests under way may take to end after SIGTERM."""

KEEP_ALIVE_SECONDS: Final = 75.0
"""Longer than Nginx keeps an idle upstream connection (60 s): it never writes into a closed one."""

LAST_SECONDS: Final = 1.0
"""How long the request of a connection may take to come that was accepted last."""

STUCK_SECONDS: Final = 30.0
"""A request under way that leaves nothing to be written for so long will not end: a client that does not
read, or a protocol that is none of ours. Longer than BODY_SECONDS."""

TURNS: Final = 5
"""Of the event loop, from accepting a connection to its task; with a margin."""


def server_config() -> Config:
    config = Config()
    config.accesslog = None
    config.errorlog = logging.getLogger("hypercorn.error")
    config.include_server_header = False
    config.keep_alive_max_requests = 1_000_000
    return config


class ConnectionTimer(AsyncioSingleTask):
    """Ends a connection that waits for a request for too long, or is stuck in one.

    In the place of Hypercorn's idle task, and called like it: ``restart`` where a connection gets idle,
    ``stop`` where a request begins.
    """

    def __init__(self, connection: ClientConnection) -> None:
        super().__init__()
        self._connection = connection
        self._timer: asyncio.TimerHandle | None = None
        self._idle = False

    async def restart(self, *_: object) -> None:
        self._idle = True
        last = self._connection.context.terminated.is_set()
        self._set(LAST_SECONDS if last else KEEP_ALIVE_SECONDS)

    async def stop(self) -> None:
        self._idle = False
        self._set(STUCK_SECONDS)

    def end(self) -> None:
        """The connection is over."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def wait_no_longer(self) -> None:
        """Where the connection is idle."""
        if self._idle and self._timer is not None:
            self._timer.cancel()
            self._over()

    def _set(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._over)

    def _over(self) -> None:
        connection = self._connection
        if not self._idle:
            moved = asyncio.get_running_loop().time() - connection.moved
            if moved < STUCK_SECONDS:
                self._set(STUCK_SECONDS - moved)
            else:
                connection.writer.transport.abort()
        elif connection.writer.is_closing():
            pass  # the client left in this very moment
        elif connection.has_unread():  # a request came in this very moment
            self._set(LAST_SECONDS)
        else:
            connection.writer.close()


class ClientConnection(TCPServer):
    """A connection whose answers leave whole: a head waits for what follows it."""

    def __init__(self, *parts: Any) -> None:  # noqa: ANN401 - Hypercorn's own, passed on
        super().__init__(*parts)
        self.idle_task: ConnectionTimer = ConnectionTimer(self)
        self.moved = 0.0
        """When something was last written, in the loop's time."""
        self._head = b""

    async def run(self) -> None:
        try:
            await super().run()
        finally:
            self.idle_task.end()

    def has_unread(self) -> bool:
        """Whether the client sent something that was not looked at yet."""
        if self.reader._buffer:  # type: ignore[attr-defined]  # noqa: SLF001 - asyncio does not tell it otherwise
            return True
        poll = select.poll()
        poll.register(self.writer.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(poll.poll(0))

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, RawData):
            data = self._head + event.data
            if not self._head and _is_head(data):
                self._head = data
                return
            self._head = b""
            if data:
                await self._send(data)
            return
        if isinstance(event, Closed) and self._head:
            head, self._head = self._head, b""
            await self._send(head)
        await super().protocol_send(event)

    async def _send(self, data: bytes) -> None:
        self.moved = self.loop.time()
        await super().protocol_send(RawData(data))


def _is_head(data: bytes) -> bool:
    """Of the answer itself: ``100 Continue`` must not wait."""
    return data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 1")


async def serve(app: Framework, listener: Listener, stopped: Callable[[], Awaitable[None]]) -> None:
    """Serve until ``stopped`` returns and requests under way have ended.

    ``stopped`` is called once the service listens.
    """
    loop, config, state = asyncio.get_running_loop(), server_config(), LifespanState()
    wrapped = wrap_app(app, config.wsgi_max_body_size, "asgi")
    lifespan = Lifespan(wrapped, config, loop, state)
    living = loop.create_task(lifespan.handle_lifespan())
    await lifespan.wait_for_startup()
    if living.done():  # it failed
        await living
    context = WorkerContext(None)
    connections: dict[asyncio.Task[None], ClientConnection] = {}

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - for the type checker
        connection = ClientConnection(wrapped, loop, config, context, state, reader, writer)
        connections[task] = connection
        try:
            await connection.run()
        except asyncio.CancelledError:
            pass  # given up below; asyncio's streams would report it as an error
        finally:
            del connections[task]

    try:
        server = await asyncio.start_server(connected, sock=listener.socket, backlog=BACKLOG)
        try:
            await stopped()
        finally:
            await context.terminated.set()  # every connection ends with the request it is at
            for _ in range(TURNS):
                await asyncio.sleep(0)
            server.close()
            await _end(connections)
    finally:
        await lifespan.wait_for_shutdown()
        await living


async def _end(connections: Mapping[asyncio.Task[None], ClientConnection]) -> None:
    """Close those that are idle, and wait for the others."""
    for connection in list(connections.values()):
        connection.idle_task.wait_no_longer()
        # A socket is closed at the end of a turn: one in each, or a request comes in between.
        await asyncio.sleep(0)
    loop = asyncio.get_running_loop()
    until = loop.time() + DRAIN_SECONDS
    while connections and (left := until - loop.time()) > 0:
        await asyncio.wait(connections, timeout=left)
    late = list(connections)
    for task in late:
        task.cancel()
    if late:
        await asyncio.wait(late, timeout=LAST_SECONDS)
