"""A listener in front of another server, on a thread of its own; it may speak TLS, or go silent."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class Proxy:
    """``target`` is a unix socket's path or a port of 127.0.0.1; ``port`` is where to come in."""

    def __init__(self, target: Path | int, context: ssl.SSLContext | None = None) -> None:
        self.port = 0
        self._target = target
        self._context = context
        self._frozen: set[asyncio.StreamWriter] = set()
        self._open: set[asyncio.StreamWriter] = set()
        self._ready, self._stop = threading.Event(), threading.Event()

    def freeze(self) -> None:
        """Forward nothing more on the connections there are; new ones work."""
        self._frozen |= self._open

    @contextmanager
    def serve(self) -> Iterator[Proxy]:
        thread = threading.Thread(target=asyncio.run, args=(self._run(),))
        thread.start()
        self._ready.wait()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join()

    async def _run(self) -> None:
        server = await asyncio.start_server(self._connect, "127.0.0.1", 0, ssl=self._context)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await asyncio.to_thread(self._stop.wait)
        server.close()
        for writer in self._open:
            writer.transport.abort()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if isinstance(self._target, Path):
            to_reader, to_writer = await asyncio.open_unix_connection(str(self._target))
        else:
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._open |= {writer, to_writer}
        await asyncio.gather(self._pump(reader, to_writer), self._pump(to_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if writer not in self._frozen:
                    writer.write(data)
        writer.close()
