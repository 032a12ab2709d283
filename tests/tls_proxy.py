"""A TLS listener in front of a unix socket, on a thread of its own."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def tls_proxy(target: Path, context: ssl.SSLContext) -> Iterator[int]:
    """Gives the port on 127.0.0.1."""
    ready, stop = threading.Event(), threading.Event()
    port = 0

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_unix_connection(str(target))
        await asyncio.gather(pump(reader, to_writer), pump(to_reader, writer))

    async def run() -> None:
        nonlocal port
        server = await asyncio.start_server(connect, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        ready.set()
        await asyncio.to_thread(stop.wait)
        server.close()

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    ready.wait()
    try:
        yield port
    finally:
        stop.set()
        thread.join()
