"""The sink as a server on 127.0.0.1."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cached_property

from console.sink.script import Behaviour
from console.sink.session import Session


class Sink(Behaviour):
    """``port`` tells where it listens once it serves; the rest is ``Behaviour``'s."""

    port = 0

    @cached_property
    def sessions(self) -> set[Session]:
        """The open connections."""
        return set()

    @asynccontextmanager
    async def serve(self, port: int = 0) -> AsyncIterator[Sink]:
        """On this port, or on any."""
        loop = asyncio.get_running_loop()
        context = self.tls if self.implicit_tls else None
        server = await loop.create_server(
            lambda: Session(self, self.sessions), "127.0.0.1", port, ssl=context, backlog=1024
        )
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for session in set(self.sessions):
                session.abort()

    def let_go(self) -> None:
        """Answer all that hangs as if it had not been told to."""
        for session in set(self.sessions):
            session.let_go()
