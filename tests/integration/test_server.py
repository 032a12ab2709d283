"""The service's connections: whole answers, timers, and the end of serving."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, Scope
from quart import Quart, request

from mailjob.settings import Bind
from service import server
from service.listener import Listener

REQUEST = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n"
BODY = b"words"
LARGE = bytes(10_000_000)


class Served:
    """An application that echoes bodies, served on a unix socket; ``/half`` breaks behind its head."""

    def __init__(self, folder: Path) -> None:
        self.stopping = asyncio.Event()
        self.at_the_end: Callable[[], Awaitable[None]] | None = None
        self.asked = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self._path = folder / "api.sock"
        self.listener = Listener(Bind(path=str(self._path)))
        app = Quart("echo", static_folder=None)

        @app.post("/echo")
        async def echo() -> bytes | str:
            self.asked.set()
            await self.may_answer.wait()
            return await request.get_data()

        async def breaking(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
            if scope["type"] == "http" and scope["path"] == "/half":
                await send({"type": "http.response.start", "status": 200, "headers": []})
                raise RuntimeError("half an answer")
            if scope["type"] == "http" and scope["path"] == "/large":
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": LARGE, "more_body": False})
                return
            await app(scope, receive, send)

        self.task = asyncio.create_task(server.serve(breaking, self.listener, self._stopped))
        self.listening = asyncio.Event()

    async def _stopped(self) -> None:
        self.listening.set()
        await self.stopping.wait()
        if self.at_the_end is not None:
            await self.at_the_end()

    async def keep_waiting(self, writer: asyncio.StreamWriter) -> None:
        """Let a request be under way until it may be answered."""
        self.may_answer.clear()
        writer.write(REQUEST + b"\r\n" + BODY)
        await self.asked.wait()

    def connections(self) -> list[asyncio.Task[Any]]:
        """The tasks of those that are open."""
        return [task for task in asyncio.all_tasks() if "connected" in repr(task.get_coro())]

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        await self.listening.wait()
        return await asyncio.open_unix_connection(self._path)


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[Served]:
    system = Served(folder)
    async with asyncio.timeout(15):
        yield system
        system.stopping.set()
        await system.task


async def answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    return head, await reader.readexactly(len(BODY))


async def test_an_answer_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[bytes] = []
    write = asyncio.StreamWriter.write

    def count(writer: asyncio.StreamWriter, data: Any) -> None:
        if data.startswith(b"HTTP/") or data == BODY:
            writes.append(data)
        write(writer, data)

    async with served(tmp_path) as system:
        reader, writer = await system.connect()
        monkeypatch.setattr(asyncio.StreamWriter, "write", count)
        for _ in range(2):
            writer.write(REQUEST + b"\r\n" + BODY)
            assert (await answer(reader))[1] == BODY
        writer.close()
    assert len(writes) == 2
    assert all(data.endswith(BODY) for data in writes)


async def test_an_answer_without_a_body_leaves_as_well(tmp_path: Path) -> None:
    async with served(tmp_path) as system:
        reader, writer = await system.connect()
        writer.write(b"HEAD /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 404 " in await reader.readuntil(b"\r\n\r\n")
        writer.write(REQUEST + b"\r\n" + BODY)
        assert (await answer(reader))[1] == BODY
        writer.close()


async def test_half_an_answer_is_not_kept_back(tmp_path: Path) -> None:
    async with served(tmp_path) as system:
        reader, writer = await system.connect()
        writer.write(b"GET /half HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 200 " in await reader.read()
        writer.close()


async def test_a_client_is_told_at_once_to_continue(tmp_path: Path) -> None:
    async with served(tmp_path) as system:
        reader, writer = await system.connect()
        writer.write(REQUEST + b"Expect: 100-continue\r\n\r\n")
        assert b" 100 " in await reader.readuntil(b"\r\n\r\n")
        writer.write(BODY)
        assert b" 200 " in (await answer(reader))[0]
        writer.close()


async def test_nonsense_is_refused(tmp_path: Path) -> None:
    async with served(tmp_path) as system:
        reader, writer = await system.connect()
        writer.write(b"nonsense\r\n\r\n")
        assert b" 400 " in await reader.read()
        writer.close()


async def test_a_connection_is_closed_when_it_is_idle_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "KEEP_ALIVE_SECONDS", 0.1)
    async with served(tmp_path) as system:
        reader, writer = await system.connect()
        await system.keep_waiting(writer)
        with pytest.raises(TimeoutError):  # a request under way is not idle
            async with asyncio.timeout(0.3):
                await reader.read(1)
        system.may_answer.set()
        assert (await answer(reader))[1] == BODY
        assert await reader.read() == b""
        writer.close()


async def test_the_end_waits_for_requests_and_not_for_idle_connections(tmp_path: Path) -> None:
    async with served(tmp_path) as system:
        idle_reader, idle_writer = await system.connect()
        reader, writer = await system.connect()
        await system.keep_waiting(writer)
        system.stopping.set()
        assert await idle_reader.read() == b""
        assert not system.task.done()
        system.may_answer.set()
        assert (await answer(reader))[1] == BODY
        assert await reader.read() == b""
        for each in (idle_writer, writer):
            each.close()


@pytest.mark.parametrize("turns", [0, 1, 2])
async def test_a_request_of_the_last_moment_is_answered(turns: int, tmp_path: Path) -> None:
    """On an idle connection, so many turns of the loop before everything that is idle is closed."""
    async with served(tmp_path) as system:
        reader, writer = await system.connect()

        async def ask() -> None:
            os.write(writer.get_extra_info("socket").fileno(), REQUEST + b"\r\n" + BODY)
            for _ in range(turns):
                await asyncio.sleep(0)

        writer.write(REQUEST + b"\r\n" + BODY)
        await answer(reader)
        system.at_the_end = ask
        system.stopping.set()
        assert (await answer(reader))[1] == BODY
        writer.close()


@pytest.mark.parametrize("turns", [0, 1, 2])
async def test_a_connection_of_the_last_moment_is_served(turns: int, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        async with served(tmp_path) as system:

            async def ask() -> None:
                client.connect(str(tmp_path / "api.sock"))
                client.send(REQUEST + b"\r\n" + BODY)
                while select.select([system.listener.socket], [], [], 0)[0]:
                    await asyncio.sleep(0)
                for _ in range(turns):
                    await asyncio.sleep(0)

            await system.listening.wait()
            system.at_the_end = ask
            system.stopping.set()
            await system.task
        client.settimeout(1)
        assert client.recv(10_000).endswith(BODY)


async def test_a_request_that_comes_with_the_end_of_patience_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "KEEP_ALIVE_SECONDS", 0.05)
    async with served(tmp_path) as system:
        reader, writer = await system.connect()
        writer.write(REQUEST + b"\r\n" + BODY)
        await answer(reader)
        os.write(writer.get_extra_info("socket").fileno(), REQUEST + b"\r\n" + BODY)
        busy_until = time.monotonic() + 0.1
        while time.monotonic() < busy_until:
            pass
        assert (await answer(reader))[1] == BODY
        writer.close()


WEBSOCKET = (
    b"GET /x HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 12\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
HTTP_2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"


@pytest.mark.parametrize(
    "opening", [WEBSOCKET, HTTP_2, b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n"]
)
async def test_a_connection_that_is_stuck_is_ended(
    opening: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last one does not read its answer."""
    monkeypatch.setattr(server, "STUCK_SECONDS", 0.2)
    async with served(tmp_path) as system:
        reader, writer = await system.connect()
        transport = cast(asyncio.Transport, writer.transport)
        transport.pause_reading()
        writer.write(opening)
        await asyncio.sleep(0.1)  # less than its patience
        assert len(system.connections()) == 1
        while system.connections():
            await asyncio.sleep(0.01)
        transport.resume_reading()
        with contextlib.suppress(ConnectionError):
            while await reader.read(1_000_000):
                pass
        writer.close()


async def test_a_request_that_takes_too_long_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "DRAIN_SECONDS", 0.1)
    async with served(tmp_path) as system:
        reader, writer = await system.connect()
        await system.keep_waiting(writer)
        system.stopping.set()
        await system.task
        assert b" 500 " in await reader.read()
        writer.close()


async def test_an_application_that_cannot_start_ends_it(tmp_path: Path) -> None:
    app = Quart("broken", static_folder=None)

    @app.before_serving
    async def fail() -> None:
        raise RuntimeError("it does not start")

    async def stopped() -> None:
        raise AssertionError("it was served")

    listener = Listener(Bind(path=str(tmp_path / "api.sock")))
    with listener.socket, pytest.raises(Exception, match="it does not start"):
        await server.serve(app, listener, stopped)
