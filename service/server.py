"""Hypercorn, served by parts: its reading of HTTP/1.1, its ASGI, and connections of our own.

Hypercorn writes an answer's head and its body with a call each, and starts and cancels two tasks for
every request to time the pause before it. Here an answer is one write, and a connection has one timer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
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


def server_config() -> Config:
    config = Config()
    config.accesslog = None
    config.errorlog = logging.getLogger("hypercorn.error")
    config.include_server_header = False
    config.keep_alive_max_requests = 1_000_000
    return config


class IdleTimer(AsyncioSingleTask):
    """Closes a connection that waits for a request for too long."""

    def __init__(self, writer: asyncio.StreamWriter, context: WorkerContext) -> None:
        super().__init__()
        self._writer = writer
        self._context = context
        self._timer: asyncio.TimerHandle | None = None

    async def restart(self, *_: object) -> None:
        """The connection is idle from now on."""
        self._cancel()
        seconds = LAST_SECONDS if self._context.terminated.is_set() else KEEP_ALIVE_SECONDS
        self._timer = asyncio.get_running_loop().call_later(seconds, self._writer.close)

    async def stop(self) -> None:
        self._cancel()

    def expire(self) -> None:
        """Do not wait any longer, where the connection is idle."""
        if self._timer is not None:
            self._writer.close()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class ClientConnection(TCPServer):
    """A connection whose answers leave whole: a head waits for what follows it."""

    def __init__(self, *parts: Any) -> None:  # noqa: ANN401 - Hypercorn's own, passed on
        super().__init__(*parts)
        self.idle_task: IdleTimer = IdleTimer(self.writer, self.context)
        self._head = b""

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, RawData):
            data = self._head + event.data
            if not self._head and _is_head(data):
                self._head = data
                return
            self._head = b""
            if data:
                await super().protocol_send(RawData(data))
            return
        if isinstance(event, Closed) and self._head:
            head, self._head = self._head, b""
            await super().protocol_send(RawData(head))
        await super().protocol_send(event)


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
        await stopped()
        await context.terminated.set()  # every connection ends with the request it is at
        server.close()
        for connection in connections.values():
            connection.idle_task.expire()
        if connections:
            _, late = await asyncio.wait(connections, timeout=DRAIN_SECONDS)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=LAST_SECONDS)
    finally:
        await lifespan.wait_for_shutdown()
        await living
